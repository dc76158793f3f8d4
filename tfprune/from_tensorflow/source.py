"""A TensorFlow graph between the tensors that count: what a frozen graph and a SavedModel both become."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfprune.errors import TraceError, nearest
from tfprune.export.trace import INNER, outputs_only

#: shape of an input, None where a size is unknown; None if even the rank is
Shape = tuple[int | None, ...] | None
#: what a user says of shapes: of inputs by name, or of the only one
Shapes = Mapping[str, Sequence[int | None]] | Sequence[int | None] | None
_VARIABLES = frozenset("Variable VariableV2 VarHandleOp ReadVariableOp AutoReloadVariable".split())


@dataclass(frozen=True)
class Source:
    """A graph without variables, and how to run what it came from.

    Attributes:
        graph_def: its inputs are Placeholders named as in `inputs`, its outputs Identity nodes named as in `outputs`.
        inputs, outputs: their names in the ONNX model.
        shapes, output_shapes: their shapes.
        run: input arrays, in the order of `inputs`, to output arrays, computed by TensorFlow from the file as it is.
        taken: which tensors of the file these are.
    """

    graph_def: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shapes: tuple[Shape, ...]
    output_shapes: tuple[Shape, ...]
    run: Callable[[Sequence[np.ndarray]], list[np.ndarray]]
    taken: str


@dataclass(frozen=True)
class End:
    """An input or output: which tensor of the graph, and what it is called in the ONNX model."""

    tensor: Any
    name: str
    shape: Shape


def given(tensors: Sequence[Any], names: Sequence[str], shapes: Shapes) -> list[End]:
    """Inputs with their shapes, of which `shapes` may say more than the graph does.

    Raises:
        TraceError: an input has no shape, or another than the graph says, or there is no such input.
    """
    by_name = _by_name(names, shapes)
    unknown = [name for name in by_name if name not in (*names, *(tensor.name for tensor in tensors))]
    if unknown:
        raise TraceError(f"there is no input {unknown[0]!r} to have a shape; there are {', '.join(names)}")
    result = []
    for tensor, name in zip(tensors, names, strict=True):
        more = by_name.get(name, by_name.get(tensor.name))
        try:
            end = End(tensor, name, _sizes(tensor.shape if more is None else tensor.shape.merge_with(list(more))))
        except ValueError as error:
            raise TraceError(f"the input {name!r} has shape {tensor.shape}, and {tuple(more or ())} came") from error
        if end.shape is None:
            raise TraceError(
                f"the input {name!r} has no shape in the file, and an ONNX model needs one; give shapes={{{name!r}: "
                f"(None, 224, 224, 3)}} or the like (--input_shape=224,224,3), with None for a batch of any size"
            )
        result.append(end)
    return result


def made(tensors: Sequence[Any], names: Sequence[str]) -> list[End]:
    """Outputs with what is known of their shapes."""
    return [End(tensor, name, _sizes(tensor.shape)) for tensor, name in zip(tensors, names, strict=True)]


def _by_name(names: Sequence[str], shapes: Shapes) -> dict[str, Sequence[int | None]]:
    if shapes is None or isinstance(shapes, Mapping):
        return dict(shapes or {})
    if len(names) != 1:
        raise TraceError(f"one shape came for {len(names)} inputs; give shapes by name: {', '.join(names)}")
    return {names[0]: shapes}


def _sizes(shape: Any) -> Shape:
    return None if shape.rank is None else tuple(shape.as_list())


def between(graph_def: Any, inputs: Sequence[End], outputs: Sequence[End], where: str) -> Any:
    """What the outputs need of a graph, from the inputs on; both become nodes with their own names.

    Raises:
        TraceError: the outputs need variables or placeholders that are no inputs, or do not need an input.
    """
    import tensorflow as tf

    result = tf.compat.v1.GraphDef()
    result.CopyFrom(graph_def)
    fed, renamed = {}, {}
    for number, end in enumerate(inputs):
        node = result.node.add(name=f"tfprune_input_{number}", op="Placeholder")
        node.attr["dtype"].type = end.tensor.dtype.as_datatype_enum
        node.attr["shape"].shape.CopyFrom(tf.TensorShape(end.shape).as_proto())
        fed[end.tensor.name], renamed[node.name] = node.name, end.name
    for node in result.node:
        node.attr.pop("_output_shapes", None)
        if node.op == "PlaceholderWithDefault":
            _take_default(node)
        for index, reference in enumerate(node.input):
            node.input[index] = _fed(reference, fed)
    # XLA's functions would stay calls, which tf2onnx cannot read.
    called = result.library.function
    for item in (*called, *result.node, *(node for function in called for node in function.node_def)):
        for mark in ("_XlaMustCompile", "_noinline"):
            item.attr.pop(mark, None)
    for number, end in enumerate(outputs):
        name = f"tfprune_output_{number}"
        node = result.node.add(name=name, op="Identity", input=[_fed(end.tensor.name, fed)])
        node.attr["T"].type = end.tensor.dtype.base_dtype.as_datatype_enum
        renamed[name] = end.name
    names = tuple(end.name for end in inputs)
    cut = outputs_only(result, renamed, names, tuple(end.name for end in outputs))
    _check(cut, names, where)
    return cut


def _fed(reference: str, fed: Mapping[str, str]) -> str:
    """A node's input, or the Placeholder that takes its place."""
    if reference.startswith("^"):
        return f"^{fed[reference[1:] + ':0']}" if f"{reference[1:]}:0" in fed else reference
    return fed.get(reference if ":" in reference else f"{reference}:0", reference)


def _take_default(node: Any) -> None:
    """A placeholder that may stay empty has its default."""
    kind = node.attr["dtype"].type
    node.op = "Identity"
    node.ClearField("attr")
    node.attr["T"].type = kind


def _check(graph_def: Any, inputs: Sequence[str], where: str) -> None:
    variables = [node.name for node in graph_def.node if node.op in _VARIABLES]
    if variables:
        raise TraceError(
            f"{where} is not frozen: it reads the variable {variables[0]!r}, whose numbers are in another file; give "
            f"the SavedModel, or freeze the graph (tf.compat.v1.graph_util.convert_variables_to_constants)"
        )
    empty = [node.name for node in graph_def.node if node.op.startswith("Placeholder") and node.name not in inputs]
    if empty:
        raise TraceError(
            f"the outputs of {where} need {empty[0].removesuffix(INNER)!r} too, a placeholder that is none of the "
            f"inputs {list(inputs)}; name it as well"
        )
    read = {reference.partition(":")[0] for node in graph_def.node for reference in node.input}
    unread = [name for name in inputs if name not in read]
    if unread:
        raise TraceError(f"the outputs of {where} do not depend on the input {unread[0]!r}; leave it out")


def chosen(wanted: Sequence[str], known: Sequence[str], what: str, where: str) -> None:
    """Raise a TraceError that lists what there is, unless all that is wanted is known."""
    for name in wanted:
        if name not in known:
            shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
            raise TraceError(f"{where} has no {what} {name!r}{nearest(name, known)}; there are {shown or 'none'}")


def text(path: str | os.PathLike) -> str:
    """A path for messages."""
    return repr(os.fspath(path))
