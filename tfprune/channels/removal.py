"""Which whole convolutions a model can live without."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from tfprune.channels.graph import ChannelGraph
from tfprune.channels.ops import Affine, Combine, Contract, Depthwise, Map, Op, Recurrent, Source

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


def can_drop(graph: ChannelGraph, cut: set[str]) -> bool:
    """Whether the model still depends on its inputs, with constants nowhere else, when the layers in `cut` write 0."""
    state: dict[int, int] = {}
    zeroed: set[int] = set()
    writers: dict[int, str] = {}
    for op in graph.ops:
        inputs = [state[value] for value in op.inputs]
        if op.layer in cut and isinstance(op, Contract):
            if inputs[0] != _VARYING and writers[op.inputs[0]] not in cut:
                return False
            result = _ZERO
            zeroed.add(op.output)
        elif isinstance(op, Affine) and op.inputs[0] in zeroed:
            result = _ZERO
            zeroed.add(op.output)
        else:
            if isinstance(op, Contract | Depthwise | Recurrent) and inputs[0] != _VARYING:
                return False
            result = _follow(op, inputs)
        state.update(dict.fromkeys(op.outputs, result))
        writers.update(dict.fromkeys(op.outputs, op.layer))
    return all(state[value] == _VARYING for value in graph.outputs)


def _follow(op: Op, inputs: list[int]) -> int:
    if isinstance(op, Source):
        return _CONSTANT if op.array is not None else _VARYING
    if isinstance(op, Combine) and op.kind == "multiply" and _ZERO in inputs:
        return _ZERO
    if _VARYING in inputs:
        return _VARYING
    if isinstance(op, Map):
        if inputs == [_ZERO] and (op.function is None or float(np.ravel(op.function(np.zeros(1)))[0]) == 0):
            return _ZERO
        return _CONSTANT
    return _ZERO if all(known == _ZERO for known in inputs) and not isinstance(op, Affine) else _CONSTANT
