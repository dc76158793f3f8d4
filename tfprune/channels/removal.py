"""Which whole convolutions a model can live without, and what goes with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from tfprune.channels.graph import Call, ChannelGraph
from tfprune.channels.ops import Affine, Combine, Contract, Depthwise, Map, Op, Recurrent, Source, WithArrays

_VARYING, _CONSTANT, _ZERO = range(3)


def droppable(graph: ChannelGraph, without: Collection[str] = ()) -> list[str]:
    """The convolutions whose output may be 0 everywhere, when those in `without` are already.

    One such is the last kernel of a residual branch, of a branch that is concatenated, or of a gate: every output
    of the model still depends on its inputs, and no other kernel is left with nothing but constants to read.
    """
    layers = dict.fromkeys(
        op.layer for op in graph.ops if isinstance(op, Contract) and op.write and op.layer not in without
    )
    return [layer for layer in layers if can_drop(graph, {*without, layer})]


def can_drop(graph: ChannelGraph, cut: Collection[str]) -> bool:
    """Whether the model still depends on its inputs, with constants nowhere else, when the layers in `cut` write 0."""
    return _states(graph, cut) is not None


def calls_left(graph: ChannelGraph, cut: Collection[str]) -> NDArray[np.bool_]:
    """Of each call, whether strip leaves it when the layers in `cut` write 0: what fed only them goes along.

    What only they write goes with them (a concatenated branch). A sum with a side that is 0 becomes its other side, and
    a product with a constant a scale, as `simplify` does it.
    """
    state = _states(graph, cut)
    assert state is not None, "these layers cannot be dropped together"
    calls_of = Counter(id(call.origin) for call in graph.calls)
    left = np.zeros(len(graph.calls), bool)
    needed = set(graph.outputs)
    gone = written_alone(graph, cut)
    empty = {layer for layer, channels in _written(graph).items() if layer in cut and gone[channels].all()}
    size = -1
    while size != len(needed):
        size = len(needed)
        for index in reversed(range(len(graph.calls))):
            call = graph.calls[index]
            if left[index] or call.layer in empty:
                continue
            if not call.inputs or any(value in needed for value in call.outputs):
                left[index] = True
                needed.update(_sides_left(call, state) if calls_of[id(call.origin)] == 1 else call.inputs)
        for boundary in graph.boundaries:
            if any(value in needed for value in boundary.outputs):
                needed.update(boundary.inputs, boundary.outputs)
    return left


def written_alone(graph: ChannelGraph, layers: Collection[str]) -> NDArray[np.bool_]:
    """channel -> whether these layers write it and no other does, so that it goes when they write 0."""
    result = np.zeros(graph.channels, bool)
    others = np.zeros(graph.channels, bool)
    for layer, channels in _written(graph).items():
        (result if layer in layers else others)[channels] = True
    others[list(graph.protected)] = True
    return result & ~others


def _written(graph: ChannelGraph) -> dict[str, NDArray[np.intp]]:
    """layer -> the channels that its kernels write."""
    found: dict[str, list[NDArray[np.intp]]] = {}
    for slot in graph.labels.slots.values():
        if slot.kind == "write":
            found.setdefault(slot.weight.layer, []).append(graph.channel_of[slot.labels.ravel()])
    return {layer: np.concatenate(channels) for layer, channels in found.items()}


def _sides_left(call: Call, state: dict[int, int]) -> tuple[int, ...]:
    """The inputs that a call still needs; see `simplify`."""
    op = call.ops[0] if len(call.ops) == 1 else None
    if not isinstance(op, Combine) or call.masked or op.kind not in ("add", "subtract", "multiply"):
        return call.inputs
    left = tuple(value for value in op.inputs if state[value] == _VARYING)
    if not left or (op.kind == "subtract" and left != op.inputs[:1]):
        return call.inputs
    zero = op.kind == "add" and all(state[value] != _CONSTANT for value in op.inputs)
    return left if len(left) == 1 or zero else call.inputs


def _states(graph: ChannelGraph, cut: Collection[str]) -> dict[int, int] | None:
    """value -> whether it varies with the input, is constant or 0 throughout; None if too much would be constant."""
    state: dict[int, int] = {}
    zeroed: set[int] = set()
    writers: dict[int, str] = {}
    for op in graph.ops:
        inputs = [state[value] for value in op.inputs]
        if op.layer in cut and isinstance(op, Contract):
            if inputs[0] != _VARYING and writers[op.inputs[0]] not in cut:
                return None
            result = _ZERO
            zeroed.add(op.output)
        elif isinstance(op, Affine) and op.inputs[0] in zeroed:
            result = _ZERO
            zeroed.add(op.output)
        else:
            if isinstance(op, Contract | Depthwise | Recurrent) and inputs[0] != _VARYING:
                return None
            result = _follow(op, inputs)
        state.update(dict.fromkeys(op.outputs, result))
        writers.update(dict.fromkeys(op.outputs, op.layer))
    return state if all(state[value] == _VARYING for value in graph.outputs) else None


def _follow(op: Op, inputs: list[int]) -> int:
    if isinstance(op, Source):
        return _CONSTANT if op.known else _VARYING
    if isinstance(op, Combine | WithArrays) and op.kind == "multiply" and _ZERO in inputs:
        return _ZERO
    if _VARYING in inputs:
        return _VARYING
    if isinstance(op, Map):
        if inputs == [_ZERO] and (op.function is None or float(np.ravel(op.function(np.zeros(1)))[0]) == 0):
            return _ZERO
        return _CONSTANT
    return _ZERO if all(known == _ZERO for known in inputs) and not isinstance(op, Affine | WithArrays) else _CONSTANT
