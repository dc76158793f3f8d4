"""A traced TensorFlow graph as an ONNX model without weights, by tf2onnx.

What tf2onnx 1.17 gets wrong with Keras 3 and TensorFlow 2.21, and where it is dealt with:

| trouble | what would come out | where |
|---|---|---|
| Normalization's captured mean and variance | graph inputs that nobody can feed | `trace`: frozen first |
| Sequential, and outputs called keras_tensor_N (tensorflow-onnx#2319, #2448) | KeyError | `names.functional`, `trace` |
| grouped and some depthwise convolutions (#2099, #2412) | StatefulPartitionedCall | `trace._functions_inlined` |
| weights as constants: a deep copy of the graph a pass (as in #1562) | memory without end | `trace`, `_constant_weights` |
| exact GELU's Erfc (#2347, #2463) | an invalid file, no exception | `_erfc` |
| a scalar added after a convolution (a like failure: #1729) | all Transposes stay | `_scalars_to_vectors` |
| passes that fail are skipped with a log line | slow or wrong files | `convert`: errors are not caught |
| an unsupported operator is only logged | an invalid file, no exception | `onnx_passes.check` |
| zero padding before MaxPool (an onnxruntime bug) | borders off by 1e-3 | `onnx_passes.keep_zero_padding` |
| names such as Identity:0 and unk__12 | | `convert`, `onnx_passes.finish` |
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np

from tfprune.errors import ExportError
from tfprune.export.registry import Options
from tfprune.export.trace import TracedGraph, with_constants

#: The operand that may be a weight which tf2onnx does not see: it moves or reshapes that operand, but never reads it.
_WEIGHT_OPERANDS = {
    "Conv2D": (1,),
    "Conv3D": (1,),
    "DepthwiseConv2dNative": (1,),
    "Conv2DBackpropInput": (1,),
    "MatMul": (0, 1),
    "BatchMatMulV2": (0, 1),
    "GatherV2": (0,),
    "ResourceGather": (0,),
}
#: Through these a weight is still itself.
_VIEWS = ("Identity", "Cast", "ExpandDims", "Reshape", "Squeeze", "Transpose")


def convert(traced: TracedGraph, options: Options) -> tuple[Any, set[str]]:
    """An ONNX model, and the names of those of its inputs that are weights still to be put in.

    Raises:
        ExportError: tf2onnx cannot convert the graph.
    """
    import tensorflow as tf
    from tf2onnx import optimizer, tf_loader, tfonnx

    open_weights = _open_weights(traced)
    graph_def = with_constants(traced, set(traced.weights) - open_weights)
    inputs = [f"{name}:0" for name in (*options.inputs, *sorted(open_weights))]
    outputs = [f"{name}:0" for name in options.outputs]
    with _log() as said:
        try:
            with tf.device("/cpu:0"):
                with tf.Graph().as_default():
                    tf.import_graph_def(graph_def, name="")
                    graph_def = tf_loader.tf_optimize(inputs, outputs, graph_def)
                graph_def = _scalars_to_vectors(graph_def)
                with tf.Graph().as_default() as graph:
                    tf.import_graph_def(graph_def, name="")
                    converted = tfonnx.process_tf_graph(
                        graph,
                        opset=options.opset,
                        custom_op_handlers={"Erfc": (_erfc, [])},
                        input_names=inputs,
                        output_names=outputs,
                        tensors_to_rename={tensor: tensor[:-2] for tensor in inputs + outputs},
                    )
            # Not catching errors also spares a deep copy of the whole graph for each pass.
            converted = optimizer.optimize_graph(converted, catch_errors=False)
            return converted.make_model("tfprune"), open_weights
        except Exception as error:
            details = "; ".join(dict.fromkeys([f"{type(error).__name__}: {error}", *said]))
            raise ExportError(f"tf2onnx cannot convert the model: {details}") from error


def _open_weights(traced: TracedGraph) -> set[str]:
    """The weights that only convolutions, matrix products and gathers read.

    All others (biases, normalisation, recurrent layers, which tf2onnx matches as patterns) become constants.
    """
    readers: dict[str, list[tuple[Any, int]]] = {}
    nodes = [*traced.graph_def.node, *(n for f in traced.graph_def.library.function for n in f.node_def)]
    for node in nodes:
        for position, reference in enumerate(node.input):
            readers.setdefault(reference.lstrip("^").partition(":")[0], []).append((node, position))

    def only_moved(name: str) -> bool:
        return all(
            position in _WEIGHT_OPERANDS.get(node.op, ()) or (node.op in _VIEWS and position == 0 and only_moved(node.name))
            for node, position in readers.get(name, ())
        )

    return {name for name, variable in traced.weights.items() if len(variable.shape) >= 2 and only_moved(name)}


def _scalars_to_vectors(graph_def: Any) -> Any:
    """Give scalar constants that are added to something the shape (1,).

    The transpose pass takes an addend behind a convolution for a bias and asks for the largest of its dimensions,
    which a scalar (the 3 in hard-swish) does not have; it dies, is skipped, and every Transpose stays.
    """
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
    safe = {}
    for op in graph.get_operations():
        if op.type == "Const" and op.outputs[0].shape.rank == 0 and op.outputs[0].dtype.is_floating:
            readers = op.outputs[0].consumers()
            safe[op.name] = bool(readers) and all(
                reader.type in ("Add", "AddV2") and any((x.shape.rank or 0) > 0 for x in reader.inputs) for reader in readers
            )
    for node in graph_def.node:
        if safe.get(node.name):
            value = tf.make_ndarray(node.attr["value"].tensor).reshape(1)
            node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
            node.attr.pop("_output_shapes", None)
    return graph_def


def _erfc(context: Any, node: Any, name: str, args: Any) -> None:
    """erfc(x) = 1 - erf(x), which ONNX has no operator for and TensorFlow's exact GELU uses since 2.16 or so."""
    shape, dtype = context.get_shape(node.output[0]), context.get_dtype(node.output[0])
    value = node.input[0]
    output = node.output[0]
    from tf2onnx import utils

    one = context.make_const(utils.make_name("one"), np.ones(1, utils.map_onnx_to_numpy_type(dtype)))
    context.remove_node(node.name)
    erf = context.make_node("Erf", [value], shapes=[shape], dtypes=[dtype])
    context.make_node("Sub", [one.output[0], erf.output[0]], name=name, outputs=[output], shapes=[shape], dtypes=[dtype])


@contextlib.contextmanager
def _log() -> Iterator[list[str]]:
    """Collect tf2onnx's errors for our own, instead of having its log on the user's screen."""
    said: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.ERROR:
                said.append(record.getMessage())

    import tf2onnx  # noqa: F401  (sets up its loggers)

    handler = Collector()
    loggers = [logging.getLogger(name) for name in ("tf2onnx", "tensorflow")]
    before = [(logger, logger.propagate, logger.level, logger.handlers[:]) for logger in loggers]
    for logger in loggers:
        logger.propagate, logger.handlers = False, [handler]
        logger.setLevel(logging.ERROR)
    try:
        yield said
    finally:
        for logger, propagate, level, handlers in before:
            logger.propagate, logger.handlers = propagate, handlers
            logger.setLevel(level)
