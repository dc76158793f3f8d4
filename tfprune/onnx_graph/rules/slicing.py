"""Slices, splits, gathers, concatenations and pads: positions along an axis are taken, joined or added."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfprune.channels.ops import Narrowing
from tfprune.channels.taken import Part, as_slice, at
from tfprune.onnx_graph.lowering import Edit, Lowering, Refused, register_node

_FAR = np.iinfo(np.int64).max


@register_node("Slice")
def slice_of(lower: Lowering) -> Any:
    x = lower.value(0)
    rank = len(lower.shape(x))
    starts, ends = lower.numbers("starts", 1) or [], lower.numbers("ends", 2) or []
    axes = [axis % rank for axis in lower.whole("axes", 3) or range(len(starts))]
    steps = lower.whole("steps", 4) or [1] * len(starts)
    parts, moved = [], []
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        size = lower.shape(x)[axis]
        if start is None or end is None or size is None:
            moved.append(axis)
            continue
        key = slice(start, None if end <= -size - 1 and step < 0 else end, step)
        parts.append(Part(axis, functools.partial(at, key=key), key))
    y = x
    if moved:
        shape = tuple(lower.output_shape[a] if a in moved else size for a, size in enumerate(lower.shape(x)))
        y = lower.spatial(x, shape, axes=moved)
    placed = []
    for part in parts:
        taken = lower.gather(y, part.axis, part.select, rewritable=not moved)
        placed.append(Part(part.axis, part.select, part.key, y, taken))
        y = taken

    def write(new: Narrowing, edit: Edit) -> None:
        if any(part.changes(new) for part in placed):
            edit.instead(_taken(new, edit, placed))

    lower.rewrite(write)
    return y if placed or moved else lower.identity(x)


def _taken(new: Narrowing, edit: Edit, parts: Sequence[Part]) -> list[Any]:
    """The nodes that take other indices along some axes."""
    name, nodes, last = edit.node.input[0], [], edit.node.output[0]
    for number, part in enumerate(parts):
        out = last if number == len(parts) - 1 else edit.name(f"axis_{part.axis}")
        indices = part.left(new)
        nodes.append(_take(edit, name, out, part.axis, part.key if indices is None else as_slice(indices), indices))
        name = out
    return nodes


def _take(edit: Edit, source: str, out: str, axis: int, key: Any, indices: Any) -> Any:
    if key is None:
        where = edit.constant(np.asarray(indices, np.int64), f"indices_{axis}")
        return edit.make("Gather", [source, where], [out], axis=axis)
    step = 1 if key.step is None else key.step
    ends = (-_FAR if step < 0 else _FAR) if key.stop is None else key.stop
    numbers = {"start": key.start or 0, "end": ends, "axis": axis, "step": step}
    if edit.opset < 10:
        return edit.make("Slice", [source], [out], starts=[numbers["start"]], ends=[ends], axes=[axis])
    given = [edit.constant(np.array([value], np.int64), f"{key}_{axis}") for key, value in numbers.items()]
    return edit.make("Slice", [source, *given], [out])


@register_node("Split")
def split(lower: Lowering) -> Any:
    x = lower.value(0)
    axis = int(lower.attribute("axis", 0)) % len(lower.shape(x))
    sizes = [shape[axis] for shape in lower.output_shapes]
    if lower.shape(x)[axis] is None or None in sizes or len(sizes) != len(lower.node.outputs):
        return Refused("where it splits is not known")
    parts, start = [], 0
    for size in sizes:
        stop = start + size  # type: ignore[operator]
        select = functools.partial(at, key=slice(start, stop))
        taken = lower.gather(x, axis, select, rewritable=True)
        parts.append(Part(axis, select, slice(start, stop), x, taken))
        start = stop

    def write(new: Narrowing, edit: Edit) -> None:
        left = [index for part in parts if (index := part.left(new)) is not None]
        if len(left) < len(parts):
            return
        outputs = [(name, index) for name, index in zip(edit.node.output, left, strict=True) if len(index)]
        joined = np.concatenate([index for _, index in outputs])
        if np.array_equal(joined, np.arange(new.shape(x)[axis] or 0)):
            counts = [len(index) for _, index in outputs]
            nodes = [_split(edit, [name for name, _ in outputs], axis, counts)]
        else:
            source = edit.node.input[0]
            nodes = [_take(edit, source, name, axis, as_slice(index), index) for name, index in outputs]
        edit.instead(nodes)

    lower.rewrite(write)
    return tuple(part.target for part in parts)


def _split(edit: Edit, outputs: list[str], axis: int, counts: list[int]) -> Any:
    if len(outputs) == 1:
        return edit.make("Identity", [edit.node.input[0]], outputs)
    if edit.opset < 13:
        return edit.make("Split", [edit.node.input[0]], outputs, axis=axis, split=counts)
    sizes = edit.constant(np.array(counts, np.int64), "split")
    return edit.make("Split", [edit.node.input[0], sizes], outputs, axis=axis)


@register_node("Gather")
def gather(lower: Lowering) -> Any:
    axis = int(lower.attribute("axis", 0))
    if lower.fixed(0):
        return _looked_up(lower, axis)
    x = lower.value(0)
    axis %= len(lower.shape(x))
    size = lower.shape(x)[axis]
    if not lower.fixed(1) or size is None:
        return Refused("what it takes is computed")
    indices = lower.array(1)
    flat = np.where(indices < 0, indices + size, indices).astype(np.intp).ravel()

    def select(count: int) -> np.ndarray:
        if count != size:
            raise IndexError("the indices are those of the whole axis")
        return flat

    taken = lower.gather(x, axis, select, rewritable=True)
    part = Part(axis, select, None, x, taken)

    def write(new: Narrowing, edit: Edit) -> None:
        left = part.left(new)
        if left is not None:
            fits = left if indices.ndim else left.reshape(())
            edit.put(1, np.asarray(fits, np.int64), "indices")

    lower.rewrite(write)
    return taken if indices.ndim == 1 else lower.reshape(taken, lower.output_shape)


def _looked_up(lower: Lowering, axis: int) -> Any:
    """An embedding: rows of a constant table."""
    if axis or len(lower.constant_shape(0)) != 2:
        return Refused("it takes from constants that are no table")
    lower.value(1)
    last = len(lower.output_shape) - 1
    return lower.contract(
        lower.value(1), lower.kernel(0), read=[], write=[(last, 1)], shape=lower.output_shape, pads=True
    )


@register_node("Concat")
def concat(lower: Lowering) -> int:
    rank = len(lower.output_shape)
    axis = int(lower.attribute("axis")) % rank
    values = []
    for index in range(len(lower.node.inputs)):
        if lower.fixed(index):
            variable = lower.own(index, "constant")
            wide = [a for a, size in enumerate(variable.shape) if size > 1]
            channel = [a for a in wide if a == (1 if rank == 4 else rank - 1)] or wide[-1:]
            lower.values[index] = lower.parameter(variable, channel, variable.shape)
        values.append(lower.value(index))
    y = lower.concatenate(values, axis, lower.output_shape)

    def write(new: Narrowing, edit: Edit) -> None:
        left = [name for name, value in zip(edit.node.input, values, strict=True) if not new.empty(value)]
        if len(left) < len(values):
            del edit.node.input[:]
            edit.node.input.extend(left)

    lower.rewrite(write)
    return y


@register_node("Pad")
def pad(lower: Lowering) -> Any:
    x = lower.value(0)
    rank, mode = len(lower.shape(x)), lower.attribute("mode", "constant")
    given = lower.whole("pads", 1) or lower.whole("paddings", 1) or []
    own = [axis % rank for axis in lower.whole("axes", 3) or range(rank)]
    pads = {axis: (given[i], given[i + len(own)]) for i, axis in enumerate(own)}
    pads = {axis: pair for axis, pair in pads.items() if any(pair)}
    fill = float(lower.attribute("value", 0.0))
    if lower.has(2):
        if not lower.fixed(2):
            return Refused("what it pads with is computed")
        fill = float(np.ravel(lower.array(2))[0])
    if not pads:
        return lower.identity(x)
    if mode != "constant" or any(min(pair) < 0 for pair in pads.values()):
        # Positions are repeated or cut off; where there are channels it is not followed.
        return lower.spatial(x, lower.output_shape, axes=list(pads), pads=mode == "constant", fill=fill)
    y, placed = x, []
    for axis, (before, after) in pads.items():
        source, y = y, lower.pad(y, axis, before, after, fill)
        placed.append((axis, before, source, y))

    def write(new: Narrowing, edit: Edit) -> None:
        sizes = [pads.get(axis, (0, 0)) for axis in range(rank)]
        changed = False
        for axis, before, source, target in placed:
            if new.labels[source].shape[axis] == 1:
                continue
            left = new.kept[target].ravel()
            first = int((left < before).sum())
            last = int((left >= before + new.labels[source].size).sum())
            changed = changed or (first, last) != sizes[axis]
            sizes[axis] = first, last
        if not changed:
            return
        flat = [first for first, _ in sizes] + [last for _, last in sizes]
        if edit.opset < 11:
            edit.set("pads", flat)
        else:
            edit.put(1, np.array(flat, np.int64), "pads")
            del edit.node.input[3:]

    lower.rewrite(write)
    return y


@register_node("Tile")
def tile(lower: Lowering) -> Any:
    x = lower.value(0)
    repeats = lower.whole("repeats", 1) or []
    y = x
    for axis, count in enumerate(repeats):
        if count == 1:
            continue
        if lower.shape(y)[axis] is None:
            shape = tuple(lower.output_shape[a] if a <= axis else size for a, size in enumerate(lower.shape(y)))
            y = lower.spatial(y, shape, axes=(axis,))
        else:
            y = lower.gather(y, axis, functools.partial(_tiled, count=count))
    return y if y != x else lower.identity(x)


def _tiled(size: int, count: int) -> np.ndarray:
    return np.tile(np.arange(size), count)


@register_node("TopK")
def top(lower: Lowering) -> Any:
    x = lower.value(0)
    axis = int(lower.attribute("axis", -1)) % len(lower.shape(x))
    return tuple(
        lower.spatial(x, shape, axes=(axis,), function=lambda constant: np.full(constant.shape, np.nan))
        for shape in lower.output_shapes
    )
