"""LiteRT (once TensorFlow Lite) on the CPU: ai-edge-litert, or the interpreter inside TensorFlow."""

import numpy as np


def runtime():
    """The interpreter's class."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        from tensorflow.lite import Interpreter
    return Interpreter


def load(path, inputs, outputs, threads=None):
    """Load a .tflite file whose first signature names its inputs and outputs.

    A file of batch 1 runs larger arrays sample by sample. Integer inputs and outputs of a quantized file are given and
    returned as the real numbers that they stand for.

    Args:
        path: the file.
        inputs: names of the inputs, in the order of the arrays to come.
        outputs: names of the outputs wanted.
        threads: how many threads one operator may use; None leaves it to LiteRT.
    """
    interpreter = runtime()(path, num_threads=threads)
    interpreter.allocate_tensors()
    runner = interpreter.get_signature_runner(next(iter(interpreter.get_signature_list())))
    takes, gives = runner.get_input_details(), runner.get_output_details()
    size = int(takes[inputs[0]]["shape"][0]) if len(takes[inputs[0]]["shape"]) else 1

    def run(arrays):
        count = len(arrays[0]) if np.ndim(arrays[0]) else size
        parts = []
        for start in range(0, count, size):
            fed = {
                name: _quantized(array[start : start + size], takes[name])
                for name, array in zip(inputs, arrays, strict=True)
            }
            got = runner(**fed)
            parts.append([_real(got[name], gives[name]) for name in outputs])
        return [np.concatenate(column) if len(column) > 1 else column[0] for column in zip(*parts, strict=True)]

    return run


def _quantized(array, details):
    scale, zero = details["quantization"]
    if not scale:
        return array
    limits = np.iinfo(details["dtype"])
    return np.clip(np.round(array / scale + zero), limits.min, limits.max).astype(details["dtype"])


def _real(array, details):
    scale, zero = details["quantization"]
    return (array.astype(np.float32) - zero) * np.float32(scale) if scale else np.array(array)
