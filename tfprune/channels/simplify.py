"""Take out sums and products whose other side is a known constant: that is how whole branches disappear.

requires: a graph with its facts.
does:     1. a sum with an operand that is 0 throughout becomes its other operand (a zeroed residual branch);
          2. a product with a constant operand becomes a scale of the other (a constant gate): folded into the kernels
             that read it where all its readers have one of their own, a vector otherwise;
          3. a sum with a constant operand becomes a shift, as a vector.
ensures:  the same function with fewer ties. What fed the constant sides is needed by nobody and is gone.
"""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tfprune.channels.graph import ChannelGraph
from tfprune.channels.labels import Shape
from tfprune.channels.ops import Affine, Combine, Contract, Facts, Map, Op, Source
from tfprune.channels.weights import Weight


@dataclass(frozen=True)
class Replacement:
    """What a sum or product became.

    Attributes:
        operands: the operands that are left, by number. One and no vectors: it is that operand.
        scale, shift: vectors along `axis`, or None.
    """

    operands: tuple[int, ...]
    scale: NDArray | None = None
    shift: NDArray | None = None
    axis: int = 0


@dataclass(frozen=True)
class Simplified:
    """A graph, what its sums and products became (by origin), and the weights it computes with."""

    graph: ChannelGraph
    replacements: dict[int, Replacement]
    weight: Callable[[Weight], NDArray]


def simplify(graph: ChannelGraph, facts: Facts) -> Simplified:
    """Replace what can be replaced; see the module's cases 1 to 3."""
    calls_of = Counter(id(call.origin) for call in graph.calls)
    readers: dict[int, list[Op]] = defaultdict(list)
    for op in graph.ops:
        for value in op.inputs:
            readers[value].append(op)
    arrays = {op.output for op in graph.ops if isinstance(op, Source) and op.known}
    replacements: dict[int, Replacement] = {}
    ops: dict[int, tuple[Op, ...]] = {}
    scales: dict[Weight, NDArray] = {}
    for index, call in enumerate(graph.calls):
        # A nested model that is called twice must be the same in both calls.
        if len(call.ops) != 1 or not isinstance(call.ops[0], Combine) or calls_of[id(call.origin)] > 1:
            continue
        if call.masked:
            continue
        op = call.ops[0]
        # An array written into the model costs nothing, and no branch goes with it.
        if not facts.read[op.output].any() or not arrays.isdisjoint(op.inputs):
            continue
        replacement = _replacement(op, graph, facts)
        if replacement is None:
            continue
        if replacement.scale is not None and _foldable(op, replacement, readers, graph, scales):
            for reader in readers[op.output]:
                assert isinstance(reader, Contract)
                scales[reader.kernel] = replacement.scale
            replacement = Replacement(replacement.operands)
        replacements[id(call.origin)] = replacement
        ops[index] = _ops(op, replacement)
    if not replacements:
        return Simplified(graph, {}, facts.weight)
    return Simplified(graph.replaced(ops), replacements, _scaled(facts.weight, scales, graph))


def _replacement(op: Combine, graph: ChannelGraph, facts: Facts) -> Replacement | None:
    if op.kind not in ("add", "subtract", "multiply"):
        return None
    constants = _constants(op, facts)
    fixed = [bool(np.isfinite(constant).all()) for constant in constants]
    left = tuple(index for index, known in enumerate(fixed) if not known)
    if not left or not any(fixed):
        return None
    if not all(_fills(graph.shapes[op.inputs[index]], graph.shapes[op.output]) for index in left):
        return None
    known = [constant for constant, is_fixed in zip(constants, fixed, strict=True) if is_fixed]
    if op.kind == "multiply":
        return _vector(op, left, graph, scale=_product(known)) if len(left) == 1 else None
    if op.kind == "subtract" and left != (0,):
        return None
    if all((constant == 0).all() for constant in known):
        return Replacement(left)
    if len(left) > 1:
        return None
    shift = known[0] if op.kind == "add" else -known[0]
    for other in known[1:]:
        shift = shift + other
    return _vector(op, left, graph, shift=shift)


def _fills(shape: Shape, whole: Shape) -> bool:
    """Whether an operand of this shape is as large as the result, of which less may be known inside a nested model."""
    return len(shape) == len(whole) and all(
        own == size or (size is None and own is not None and own > 1) for own, size in zip(shape, whole, strict=True)
    )


def _constants(op: Combine, facts: Facts) -> list[NDArray]:
    """Each operand's constants. What nobody reads counts as what changes nothing, but where the result is known.

    Whoever knows a result need not read it, and still counts on it.
    """
    own = Facts(facts.labels, facts.weight, constant=facts.constant)
    own.read[op.output] = facts.read[op.output]
    op.backward(own)
    counted = Facts(facts.labels, facts.weight)
    for value in op.inputs:
        op.demand(counted, value, np.isfinite(facts.constant[op.output]))
    neutral = 1.0 if op.kind == "multiply" else 0.0
    constants = [facts.constant[value] for value in op.inputs]
    stays = [own.read[value] | (counted.read[value] & np.isfinite(facts.constant[value])) for value in op.inputs]
    return [np.where(where, constant, neutral) for where, constant in zip(stays, constants, strict=True)]


def _product(arrays: list[NDArray]) -> NDArray:
    result = arrays[0]
    for other in arrays[1:]:
        result = result * other
    return result


def _vector(
    op: Combine, left: tuple[int, ...], graph: ChannelGraph, scale: NDArray | None = None, shift: NDArray | None = None
) -> Replacement | None:
    """A scale or shift, if it varies along an axis that a vector may lie along: in Keras the last one alone."""
    vector = scale if scale is not None else shift
    assert vector is not None
    varying = [axis for axis, size in enumerate(vector.shape) if size > 1]
    last = len(graph.shapes[op.output]) - 1
    axis = varying[0] if varying else last
    if len(varying) > 1 or (axis != last and not graph.vectors_anywhere):
        return None
    size = graph.shapes[op.output][axis]
    if size is None:
        return None
    flat = np.broadcast_to(vector.reshape(-1), size)
    if scale is not None:
        return Replacement(left) if (flat == 1).all() else Replacement(left, scale=flat, axis=axis)
    return Replacement(left, shift=flat, axis=axis)


def _foldable(
    op: Combine, replacement: Replacement, readers: dict[int, list[Op]], graph: ChannelGraph, scales: dict
) -> bool:
    """Whether every reader multiplies each channel with a kernel slice of its own, once."""
    return (
        bool(readers[op.output])
        and op.output not in graph.outputs
        and not any(op.output in (*boundary.inputs, *boundary.outputs) for boundary in graph.boundaries)
        and all(
            isinstance(reader, Contract)
            and reader.folds
            and reader.groups == 1
            and reader.read_axes == (replacement.axis,)
            and reader.kernel not in scales
            for reader in readers[op.output]
        )
    )


def _ops(op: Combine, replacement: Replacement) -> tuple[Op, ...]:
    inputs = tuple(op.inputs[index] for index in replacement.operands)
    if len(inputs) > 1:
        return (Combine(op.layer, inputs, op.outputs, op.kind, op.function),)
    if replacement.scale is None and replacement.shift is None:
        return (Map(op.layer, inputs, op.outputs),)
    scale = np.ones(1) if replacement.scale is None else replacement.scale
    shift = np.zeros(1) if replacement.shift is None else replacement.shift
    return (Affine(op.layer, inputs, op.outputs, replacement.axis, (), lambda: (scale, shift)),)


def _scaled(
    weight: Callable[[Weight], NDArray], scales: dict[Weight, NDArray], graph: ChannelGraph
) -> Callable[[Weight], NDArray]:
    """The weights with the folded scales in them."""

    @functools.cache
    def scaled(which: Weight) -> NDArray:
        array = weight(which)
        if which not in scales:
            return array
        slot = graph.labels.slots[which, "read"]
        shape = [-1 if axis in slot.axes else 1 for axis in range(array.ndim)]
        return (array * scales[which].reshape(shape)).astype(array.dtype)

    return scaled
