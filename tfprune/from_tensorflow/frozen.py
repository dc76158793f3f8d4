"""A frozen graph, one .pb file of TensorFlow 1."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfprune.errors import TraceError, nearest
from tfprune.export.device import tf_graph
from tfprune.from_tensorflow.source import Shapes, Source, between, given, made, text


def read(path: Path, inputs: Sequence[str] | None, outputs: Sequence[str] | None, shapes: Shapes) -> Source:
    """A frozen graph between its inputs and outputs.

    Args:
        path: the file.
        inputs, outputs: names of tensors (`x:0`) or of nodes (`x`, whose first output is meant); None: placeholders,
            and what no other node reads.
        shapes: of inputs, by name; or of the only one.

    Raises:
        TraceError: it is no frozen graph, or has no such tensors.
    """
    graph_def = _parsed(path)
    graph = _imported(graph_def, path)
    feeds = _placeholders(graph) if inputs is None else [_tensor(graph, name, "input", path) for name in inputs]
    if not feeds:
        raise TraceError(f"{text(path)} has no placeholder; name the tensors at which the data comes in (--inputs)")
    fetches = _sinks(graph, feeds) if outputs is None else [_tensor(graph, name, "output", path) for name in outputs]
    if not fetches:
        raise TraceError(f"{text(path)} has nothing that depends on {', '.join(x.name for x in feeds)}; name outputs")
    if inputs is None:  # what the outputs do not need is none
        needed = _behind(fetches)
        feeds = [tensor for tensor in feeds if tensor.op in needed]
    names = _names([*feeds, *fetches])
    taken = given(feeds, names[: len(feeds)], shapes)
    left = made(fetches, names[len(feeds) :])
    guessed = [what for what, found in (("inputs", inputs), ("outputs", outputs)) if found is None]
    guess = f" ({' and '.join(guessed)} guessed; --{' and --'.join(guessed)} say otherwise)" if guessed else ""
    tensors = [[tensor.name for tensor in part] for part in (feeds, fetches)]
    return Source(
        between(graph_def, taken, left, text(path)),
        tuple(names[: len(feeds)]),
        tuple(names[len(feeds) :]),
        tuple(end.shape for end in taken),
        tuple(end.shape for end in left),
        lambda arrays: tf_graph.load(str(path), *tensors)(arrays),
        f"inputs {', '.join(tensors[0])}; outputs {', '.join(tensors[1])}{guess}",
    )


def _parsed(path: Path) -> Any:
    import tensorflow as tf

    graph_def = tf.compat.v1.GraphDef()
    try:
        graph_def.ParseFromString(path.read_bytes())
    except Exception as error:
        raise TraceError(f"{text(path)} is no frozen TensorFlow graph, or is damaged ({error})") from error
    if not graph_def.node:
        raise TraceError(f"{text(path)} is no frozen TensorFlow graph: there are no nodes in it")
    return graph_def


def _imported(graph_def: Any, path: Path) -> Any:
    import tensorflow as tf

    graph = tf.Graph()
    try:
        with graph.as_default():
            tf.import_graph_def(graph_def, name="")
    except Exception as error:  # an operator that this TensorFlow does not know, a node that is not there
        first = " ".join(str(error).split())[:300]
        raise TraceError(f"TensorFlow cannot read the graph in {text(path)}: {first}") from error
    return graph


def _tensor(graph: Any, name: str, what: str, path: Path) -> Any:
    try:
        return graph.get_tensor_by_name(name if ":" in name else f"{name}:0")
    except (KeyError, ValueError) as error:
        there = _placeholders(graph) if what == "input" else _sinks(graph, _placeholders(graph))
        every = [op.name for op in graph.get_operations()]
        raise TraceError(
            f"{text(path)} has no {what} {name!r}{nearest(name.partition(':')[0], every)}; its "
            f"{'placeholders' if what == 'input' else 'ends'} are {_listed(there)}"
        ) from error


def _listed(tensors: Sequence[Any]) -> str:
    shown = ", ".join(f"{tensor.name} {tensor.shape}" for tensor in tensors[:12])
    return (shown or "none") + (", ..." if len(tensors) > 12 else "")


def _placeholders(graph: Any) -> list[Any]:
    return [op.outputs[0] for op in graph.get_operations() if op.type in ("Placeholder", "PlaceholderV2")]


def _sinks(graph: Any, feeds: Sequence[Any]) -> list[Any]:
    """What depends on the inputs, and no other node reads."""
    import tensorflow as tf

    found = []
    for op in graph.get_operations():
        unread = op.outputs and not any(tensor.consumers() for tensor in op.outputs)
        if not unread or op.outputs[0] in feeds or not _behind(op.outputs) & {feed.op for feed in feeds}:
            continue
        # The other outputs of a normalization are of use for training alone.
        ends = op.outputs[:1] if op.type.startswith("FusedBatchNorm") else op.outputs
        found += [tensor for tensor in ends if tensor.dtype != tf.string]
    return found


def _behind(tensors: Sequence[Any]) -> set[Any]:
    """The operations that tensors depend on."""
    found, waiting = set(), [tensor.op for tensor in tensors]
    while waiting:
        op = waiting.pop()
        if op not in found:
            found.add(op)
            waiting += [tensor.op for tensor in op.inputs]
    return found


def _names(tensors: Sequence[Any]) -> list[str]:
    """What tensors are called in the ONNX model: as their node; with its number, an output that is not the first."""
    names: list[str] = []
    for tensor in tensors:
        number = tensor.value_index
        base = name = tensor.op.name if not number else f"{tensor.op.name}_{number}"
        while name in names:
            number += 1
            name = f"{base}_{number}"
        names.append(name)
    return names
