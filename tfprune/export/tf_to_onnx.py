"""A traced TensorFlow graph as an ONNX model without weights, by tf2onnx.

What tf2onnx 1.17 gets wrong with Keras 3 and TensorFlow 2.21, and where it is dealt with:

| trouble | what would come out | where |
|---|---|---|
| Normalization's captured mean and variance | graph inputs that nobody can feed | `trace`: frozen first |
| Sequential, and outputs called keras_tensor_N (tensorflow-onnx#2319, #2448) | KeyError | `names.functional`, `trace` |
| grouped and some depthwise convolutions (#2099, #2412) | StatefulPartitionedCall | `trace._functions_inlined` |
| a deep copy of the graph, weights and all, for each pass (#1562) | memory runs out | `trace`, `_open_weights` |
| exact GELU's Erfc (#2347, #2463) | an invalid file, no exception | `_erfc` |
| CELU's Expm1 | an invalid file, no exception | `_expm1` |
| a reduction that drops axes, from opset 18 on | its Transpose stays | `_passes` |
| a scalar added after a convolution (a like failure: #1729) | all Transposes stay | `_passes` |
| LayerNormalization in eleven nodes | slow files | `layer_norm` |
| Dense and LayerNormalization between convolutions | two Transposes a block (ConvNeXt) | `channels_first` |
| Dense on more than two axes as tf.tensordot | a dozen nodes of shape arithmetic | `_without_tensordot` |
| passes that fail are skipped with a log line | slow or wrong files | `convert`: errors are not caught |
| an unsupported operator is only logged | an invalid file, no exception | `onnx_passes.check` |
| zero padding before MaxPool (an onnxruntime bug) | borders off by 1e-3 | `onnx_passes.keep_zero_padding` |
| names such as Identity:0 and unk__12 | | `convert`, `onnx_passes.finish` |
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tfprune.errors import ExportError
from tfprune.export import channels_first, layer_norm
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
                graph_def = _without_tensordot(graph_def)
                with tf.Graph().as_default() as graph:
                    tf.import_graph_def(graph_def, name="")
                    converted = tfonnx.process_tf_graph(
                        graph,
                        opset=options.opset,
                        custom_op_handlers={"Erfc": (_erfc, []), "Expm1": (_expm1, [])},
                        custom_rewriter=[layer_norm.fuse],
                        input_names=inputs,
                        output_names=outputs,
                        tensors_to_rename={tensor: tensor[:-2] for tensor in inputs + outputs},
                    )
            channels_first.spread(converted)
            layer_norm.lower_for(converted)
            # Not catching errors also spares a deep copy of the whole graph for each pass.
            converted = optimizer.optimize_graph(converted, catch_errors=False, optimizers=_passes())
            return converted.make_model("tfprune"), open_weights
        except Exception as error:
            details = "; ".join(dict.fromkeys([f"{type(error).__name__}: {error}", *said]))
            raise ExportError(f"tf2onnx cannot convert the model: {details}") from error


def _passes() -> dict[str, Any]:
    """tf2onnx's passes, with another way for Transposes.

    Its own goes back to the first node of the graph after every single step, which is most of a conversion's time. It
    takes a number added behind a convolution for a bias and asks for the largest of its dimensions; a scalar (the 3
    in hard-swish) has none, so the pass dies, is skipped, and every Transpose stays. And it stops at what GELU
    divides by or raises to.
    """
    from tf2onnx import optimizer
    from tf2onnx.optimizer import transpose_optimizer

    class TransposeOptimizer(transpose_optimizer.TransposeOptimizer):
        def _initialize_handlers(self) -> None:
            super()._initialize_handlers()
            self._handler_map["Erf"] = self._simple_through_handler
            for kind in ("Add", "Sub", "Div", "Pow"):
                self._handler_map[kind] = functools.partial(self._number, self._handler_map.get(kind))

        def _number(self, otherwise: Callable[[Any, Any], bool] | None, transpose: Any, node: Any) -> bool:
            """One number as an operand is the same in every layout."""
            constants = [operand for operand in node.inputs if operand.is_const()]
            if len(constants) == 1 and np.size(constants[0].get_tensor_value(as_list=False)) == 1:
                return self._switch_transpose_and_node(node, transpose)
            return otherwise is not None and otherwise(transpose, node)

        def _reduce_latest_handler(self, transpose: Any, node: Any) -> bool:
            """A reduction whose axes are an operand (all from opset 18 on), also one that drops them.

            tf2onnx's own leaves those that drop axes, and changes the axes before it knows whether it may go on.
            """
            known = len(node.input) > 1 and node.inputs[1].is_const()
            if not known or not self._nodes_has_single_consumer_node([transpose]):
                return False
            perm, shape = transpose.get_attr_value("perm"), self._g.get_shape(node.output[0])
            axes = [perm[axis] for axis in np.atleast_1d(node.inputs[1].get_tensor_value(as_list=False))]
            operand = self._g.make_const(f"{node.name}__axes_{transpose.name}", np.array(axes, np.int64))
            self._g.replace_input(node, node.input[1], operand.output[0], 1)
            keep = node.get_attr_value("keepdims", 1)
            self._switch_transpose_and_node(node, transpose, update_shape=bool(keep))
            if not keep:
                left = [axis for axis in range(len(perm)) if axis not in axes]
                order = [left.index(axis) for axis in perm if axis in left]
                transpose.set_attr("perm", order)
                if shape:
                    self._g.set_shape(node.output[0], [shape[order.index(place)] for place in range(len(order))])
                    self._g.set_shape(transpose.output[0], shape)
            return True

        def _optimize_at_current_graph_level(self, graph: Any) -> Any:
            self._g = graph
            self.pre_optimize_action()
            while self._sweep(graph):
                self.graph_been_opt = True
            self.merge_duplicated_transposes()
            self.post_optimize_action()
            return self._g

        def _sweep(self, graph: Any) -> bool:
            """Push each Transpose as far as it goes; whether any moved."""
            moved = False
            for node in [node for node in self.nodes if transpose_optimizer.is_transpose(node)]:
                # A step may remove the node, or make it another one of the same name.
                while graph.get_node_by_name(node.name) is node:
                    if transpose_optimizer.is_useless_transpose(node):
                        self._remove_useless_tranpose(node)
                    elif not self._handle_nhwc_tranpose(node):
                        # It also says no after dealing one Transpose out to several readers; those are for next time.
                        moved = moved or graph.get_node_by_name(node.name) is not node
                        break
                    moved = True
            return moved

    return {**optimizer._get_optimizers(), "optimize_transpose": TransposeOptimizer}


def _open_weights(traced: TracedGraph) -> set[str]:
    """The weights that only convolutions, matrix products and gathers read.

    All others (biases, normalisation, recurrent layers, which tf2onnx matches as patterns) become constants.
    """
    readers: dict[str, list[tuple[Any, int]]] = {}
    nodes = [*traced.graph_def.node, *(n for f in traced.graph_def.library.function for n in f.node_def)]
    for node in nodes:
        for position, reference in enumerate(node.input):
            readers.setdefault(reference.lstrip("^").partition(":")[0], []).append((node, position))

    def harmless(node: Any, position: int) -> bool:
        if node.op in _VIEWS:
            return position == 0 and only_moved(node.name)
        return position in _WEIGHT_OPERANDS.get(node.op, ())

    def only_moved(name: str) -> bool:
        return all(harmless(node, position) for node, position in readers.get(name, ()))

    return {name for name, variable in traced.weights.items() if len(variable.shape) >= 2 and only_moved(name)}


def _without_tensordot(graph_def: Any) -> Any:
    """Write tf.tensordot, which a Dense layer on more than two axes is, as one batched product.

    It is Reshape, MatMul, Reshape with both shapes computed from the input's: a dozen nodes a layer that no tf2onnx
    pass removes.
    """
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
    products = {op.name: found for op in graph.get_operations() if (found := _tensordot(op)) is not None}
    for node in graph_def.node:
        if node.name in products:
            kind = node.attr["T"].type
            node.op = "BatchMatMulV2"
            node.input[:] = products[node.name]
            node.ClearField("attr")
            node.attr["T"].type = kind
    return graph_def


def _tensordot(after: Any) -> tuple[str, str] | None:
    """The names of x and w, if the operation is the last of Reshape(Reshape(x, (-1, c)) @ w, (*x.shape[:-1], n)).

    That the shapes are those is read from how they are computed; the last axis of x is known to be c.
    """
    import tensorflow as tf

    def is_a(kind: str, op: Any) -> bool:
        return op.type == kind

    if not is_a("Reshape", after) or not is_a("MatMul", product := after.inputs[0].op):
        return None
    if product.get_attr("transpose_a") or product.get_attr("transpose_b"):
        return None
    if not is_a("Reshape", before := product.inputs[0].op) or not is_a("ConcatV2", target := after.inputs[1].op):
        return None
    data, weight = before.inputs[0], product.inputs[1]
    if is_a("Transpose", data.op):
        order = tf.get_static_value(data.op.inputs[1])
        if order is None or list(order) != list(range(len(order))):
            return None
        data = data.op.inputs[0]
    if not data.shape.rank or weight.shape.rank != 2 or data.shape[-1] != weight.shape[0] or len(target.inputs) != 3:
        return None
    leading, last = target.inputs[0].op, tf.get_static_value(target.inputs[1])
    if not is_a("GatherV2", leading) or not is_a("Shape", leading.inputs[0].op) or last is None:
        return None
    same = leading.inputs[0].op.inputs[0] is data
    axes = tf.get_static_value(leading.inputs[1])
    if not same or axes is None or list(axes) != list(range(data.shape.rank - 1)) or list(last) != [weight.shape[1]]:
        return None
    return data.name, weight.name


def _erfc(context: Any, node: Any, name: str, args: Any) -> None:
    """erfc(x) = 1 - erf(x): ONNX has no Erfc, which TensorFlow's exact GELU is made of.

    GELU's x erfc(-x / sqrt(2)) / 2 becomes x (1 + erf(x / sqrt(2))) / 2, the form that runtimes know and fuse.
    """
    from tf2onnx import utils

    shape, dtype = context.get_shape(node.output[0]), context.get_dtype(node.output[0])
    real = utils.map_onnx_to_numpy_type(dtype)
    output, value = node.output[0], node.input[0]

    def make(op: str, *inputs: str, **more: Any) -> str:
        return context.make_node(op, list(inputs), shapes=[shape], dtypes=[dtype], **more).output[0]

    def constant(number: float) -> str:
        return context.make_const(utils.make_name("erfc"), np.full(1, number, real)).output[0]

    negated = _negated_over_root_two(node.inputs[0])
    context.remove_node(node.name)
    if negated is None:
        make("Sub", constant(1), make("Erf", value), name=name, outputs=[output])
    else:
        erf = make("Erf", make("Div", negated, constant(np.sqrt(2))))
        make("Add", erf, constant(1), name=name, outputs=[output])


def _expm1(context: Any, node: Any, name: str, args: Any) -> None:
    """exp(x) - 1: ONNX has no Expm1, which CELU is made of."""
    from tf2onnx import utils

    shape, dtype = context.get_shape(node.output[0]), context.get_dtype(node.output[0])
    one = context.make_const(utils.make_name("expm1"), np.ones(1, utils.map_onnx_to_numpy_type(dtype)))
    output, value = node.output[0], node.input[0]
    context.remove_node(node.name)
    power = context.make_node("Exp", [value], shapes=[shape], dtypes=[dtype])
    operands = [power.output[0], one.output[0]]
    context.make_node("Sub", operands, name=name, outputs=[output], shapes=[shape], dtypes=[dtype])


def _negated_over_root_two(node: Any) -> str | None:
    """The x of `-x * (1 / sqrt(2))`, or None if `node` is anything else."""
    if node.type != "Mul":
        return None
    for negative, factor in (node.inputs, node.inputs[::-1]):
        if negative.type == "Neg" and factor.is_const():
            value = factor.get_tensor_value(as_list=False)
            if value.size == 1 and np.isclose(value.item(), np.sqrt(0.5), rtol=1e-3):
                return negative.input[0]
    return None


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
