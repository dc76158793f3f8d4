"""A Keras model as one flat TensorFlow graph without variables: what the .pb and the .onnx are made from.

The weights are not in the graph. Each is a Placeholder, and `TracedGraph.weights` says which Keras variable belongs
there, so that a writer decides where the bytes go. Freezing the usual way copies each weight four times over
(variable, numpy, constant in the new function, its GraphDef) before anything is converted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from tfprune.errors import ExportError
from tfprune.export.registry import Options

#: protobuf, which a GraphDef and an ONNX file are, stops at 2 GiB.
PROTOBUF_LIMIT = 2**31 - 2**20
#: what is appended to the name of a node that stands in the way of an input's or output's
INNER = "__inner"
TO_NCHW, TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)


@dataclass(frozen=True)
class TracedGraph:
    """A GraphDef without functions, variables or weights.

    Attributes:
        graph_def: its inputs are Placeholders named as asked, its outputs Identity nodes named as asked, at the end.
        weights: name of a Placeholder to the Keras variable whose value belongs there.
    """

    graph_def: Any
    weights: Mapping[str, keras.Variable]


def trace(model: keras.Model, options: Options, lower_control_flow: bool, channels_first: bool = False) -> TracedGraph:
    """Trace `model` at inference.

    Args:
        model: a functional model.
        options: the names of its inputs and outputs, and the shapes of its inputs if they are not the model's.
        lower_control_flow: write loops as the Switch and Merge nodes of TensorFlow 1, not as While nodes and functions.
        channels_first: whether inputs of rank 4 have their channels on axis 1.

    Raises:
        ExportError: the weights exceed the 2 GiB that one protobuf can hold.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    variables = list({id(v): v for v in model.variables}.values())
    _refuse_too_large(model, variables)

    def call(inputs, weights):
        inputs = [tf.transpose(x, TO_NHWC) if moved(x) else x for x in inputs]
        with keras.StatelessScope(state_mapping=list(zip(variables, weights, strict=True))):
            outputs = model(keras.tree.pack_sequence_as(model._inputs_struct, inputs), training=False)
        return [tf.identity(y) for y in keras.tree.flatten(outputs)]

    def moved(x):
        return channels_first and len(x.shape) == 4

    shapes = options.shapes or tuple(x.shape for x in model.inputs)
    input_specs = [
        tf.TensorSpec(nchw(shape) if moved(x) else shape, x.dtype, f"tfprune_input_{i}")
        for i, (x, shape) in enumerate(zip(model.inputs, shapes, strict=True))
    ]
    weight_specs = [tf.TensorSpec(v.shape, v.dtype, f"tfprune_weight_{i}") for i, v in enumerate(variables)]
    with _functions_inlined():
        function = tf.function(call, autograph=False).get_concrete_function(input_specs, weight_specs)
    # What is left to freeze are captured constants (Normalization's mean and variance, which tf2onnx would turn into
    # inputs that nobody can feed) and variables that are not Keras'. Calls of functions are inlined on the way.
    frozen = convert_variables_to_constants_v2(function, lower_control_flow=lower_control_flow)
    given = {tensor.op.name for tensor in frozen.inputs}
    missing = [spec.name for spec in input_specs + weight_specs if spec.name not in given]
    if missing:
        raise ExportError(f"{model.name!r}: TensorFlow lost the inputs {missing} while freezing the graph")
    graph_def = outputs_only(
        frozen.graph.as_graph_def(),
        renamed={
            **{spec.name: name for spec, name in zip(input_specs, options.inputs, strict=True)},
            **{tensor.op.name: name for tensor, name in zip(frozen.outputs, options.outputs, strict=True)},
        },
        inputs=options.inputs,
        outputs=options.outputs,
    )
    present = {node.name for node in graph_def.node}
    weights = {spec.name: v for spec, v in zip(weight_specs, variables, strict=True) if spec.name in present}
    return TracedGraph(graph_def, weights)


def nchw(shape: Sequence[Any]) -> tuple[Any, ...]:
    """Batch, height, width, channels as batch, channels, height, width."""
    return tuple(shape[axis] for axis in TO_NCHW)


def with_constants(traced: TracedGraph, names: set[str]) -> Any:
    """Put the values of the weights `names` into the graph, in place, and return the GraphDef."""
    import tensorflow as tf

    for node in traced.graph_def.node:
        if node.name in names:
            value = np.ascontiguousarray(numbers(traced.weights[node.name]))
            dtype = node.attr["dtype"].type
            node.op = "Const"
            node.ClearField("attr")
            node.attr["dtype"].type = dtype
            tensor = node.attr["value"].tensor
            tensor.dtype = dtype
            tensor.tensor_shape.CopyFrom(tf.TensorShape(value.shape).as_proto())
            tensor.tensor_content = value.tobytes()
    return traced.graph_def


def numbers(variable: keras.Variable) -> np.ndarray:
    """The variable's value, to be read only: it is TensorFlow's own memory. Keras' way copies it twice."""
    import tensorflow as tf

    return np.asarray(tf.convert_to_tensor(variable.value))


@contextlib.contextmanager
def _functions_inlined() -> Iterator[None]:
    """Trace what Keras wraps in `tf.function(jit_compile=True)` (grouped convolutions) as plain nodes.

    Otherwise they become StatefulPartitionedCall nodes that freezing leaves alone and tf2onnx cannot read:
    https://github.com/onnx/tensorflow-onnx/issues/2099 and 2412.
    """
    import tensorflow as tf

    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


def outputs_only(graph_def: Any, renamed: dict[str, str], inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Any:
    """What the outputs need, plus all inputs, with `renamed` nodes; inputs first, outputs last."""
    import tensorflow as tf

    taken = set(renamed.values())
    names = {node.name: node.name for node in graph_def.node}
    for name in list(names):
        if name in taken and name not in renamed:
            names[name] = f"{name}{INNER}"
    names.update(renamed)
    for node in graph_def.node:
        node.name = names[node.name]
        for index, reference in enumerate(node.input):
            node.input[index] = _renamed_reference(reference, names)
        node.attr.pop("_class", None)
    by_name = {node.name: node for node in graph_def.node}
    needed, waiting = set(), list(outputs)
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting.extend(reference.lstrip("^").partition(":")[0] for reference in by_name[name].input)
    result = tf.compat.v1.GraphDef(versions=graph_def.versions)
    result.library.CopyFrom(_used_functions(graph_def))
    result.node.extend(by_name[name] for name in inputs)
    result.node.extend(by_name[name] for name in by_name if name in needed.difference(inputs, outputs))
    result.node.extend(by_name[name] for name in outputs)
    return result


def _used_functions(graph_def: Any) -> Any:
    """The functions (bodies of loops) that nodes name, and those that these name in turn."""
    functions = {function.signature.name: function for function in graph_def.library.function}
    used: set[str] = set()
    waiting = list(graph_def.node)
    while waiting:
        for attribute in waiting.pop().attr.values():
            names = {attribute.func.name, *(function.name for function in attribute.list.func)} & functions.keys()
            waiting.extend(node for name in names - used for node in functions[name].node_def)
            used |= names
    library = type(graph_def.library)()
    library.function.extend(functions[name] for name in functions if name in used)
    return library


def _renamed_reference(reference: str, names: dict[str, str]) -> str:
    """A node's input is `name`, `name:port` or, for control only, `^name`."""
    control = reference.startswith("^")
    name, colon, port = reference.lstrip("^").partition(":")
    return f"{'^' if control else ''}{names[name]}{colon}{port}"


def _refuse_too_large(model: keras.Model, variables: list[keras.Variable]) -> None:
    size = sum(int(np.prod(v.shape)) * _item_bytes(v.dtype) for v in variables)
    if size > PROTOBUF_LIMIT:
        raise ExportError(
            f"{model.name!r} has {size / 2**30:.1f} GiB of weights, more than the 2 GiB that one .pb or .onnx file can "
            f"hold; export it as saved_model or keras"
        )


def _item_bytes(dtype: str) -> int:
    import tensorflow as tf

    return tf.dtypes.as_dtype(dtype).size
