"""ONNX: one .onnx file of standard operators, NHWC inputs as in Keras, for onnxruntime and its like."""

from __future__ import annotations

from pathlib import Path

import keras

from tfprune.errors import ExportError
from tfprune.export import onnx_passes, tf_to_onnx
from tfprune.export.registry import Exporter, Options, Runner, register
from tfprune.export.runtime import onnx_session
from tfprune.export.trace import trace

#: tf2onnx 1.17 refuses 19 and above; below 13, Squeeze and others have another form.
OPSETS = range(13, 19)


def write(model: keras.Model, path: Path, options: Options) -> None:
    """Convert by tf2onnx, put the weights in, and check that the file is standard ONNX.

    The weights are held three times at most: by Keras, in the ONNX model, and in the bytes being written.

    Raises:
        ExportError: the opset is not one of 13 to 18, or the model cannot be converted.
    """
    if options.opset not in OPSETS:
        raise ExportError(
            f"opset must be {OPSETS[0]} to {OPSETS[-1]}, which is what tf2onnx can write; got {options.opset}"
        )
    traced = trace(model, options, lower_control_flow=False)
    onnx_model, open_weights = tf_to_onnx.convert(traced, options)
    constants = onnx_passes.take_constants(onnx_model)
    for value in [value for value in onnx_model.graph.input if value.name in open_weights]:
        onnx_model.graph.input.remove(value)
    for name in open_weights:
        constants[name] = keras.ops.convert_to_numpy(traced.weights[name])
    origins = onnx_passes.fold_constants(onnx_model, constants)
    paths = {
        name: traced.weights[origins.get(name, name)].path
        for name in constants
        if origins.get(name, name) in open_weights
    }
    onnx_passes.rename_constants(onnx_model, constants, paths)
    onnx_passes.fold_affine(onnx_model, constants)
    onnx_passes.keep_zero_padding(onnx_model)
    onnx_passes.put_constants(onnx_model, constants)
    onnx_passes.finish(
        onnx_model,
        list(zip(options.inputs, model.inputs, strict=True)),
        list(zip(options.outputs, model.outputs, strict=True)),
        {"model": model.name, "keras": keras.__version__},
    )
    onnx_passes.check(onnx_model, options.opset, options.inputs, options.outputs)
    path.write_bytes(onnx_model.SerializeToString())


def load(path: Path, options: Options) -> Runner:
    """Load into onnxruntime, with its usual optimisations, as a user would."""
    session = onnx_session(path)
    return lambda arrays: session.run(list(options.outputs), dict(zip(options.inputs, arrays, strict=True)))


register(
    Exporter(
        "onnx",
        ".onnx",
        write,
        load,
        requires={"tensorflow": "tensorflow", "tf2onnx": "tf2onnx", "onnx": "onnx", "onnxruntime": "onnxruntime"},
    )
)
