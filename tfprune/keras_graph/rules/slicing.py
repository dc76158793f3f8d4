"""Slices, splits, takes, flips, rolls, repeats and pads: positions along an axis are taken, repeated or added."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from tfprune.channels.labels import Indices
from tfprune.channels.ops import Narrowing
from tfprune.channels.taken import Part, as_slice, at, moved
from tfprune.keras_graph.lowering import Lowering, Refused, register_operation, register_rule
from tfprune.keras_graph.rules.axes import own_axes, own_axis
from tfprune.keras_graph.rules.reshaping import target

_BACKWARD = slice(None, None, -1)


def _taken(lower: Lowering, value: int, parts: Sequence[Part]) -> tuple[int, list[Part]]:
    """Lower what is taken along some axes; the parts, with their values."""
    placed = []
    for part in parts:
        taken = lower.gather(value, part.axis, part.select, 1 if part.drops else None, rewritable=True)
        placed.append(Part(part.axis, part.select, part.key, value, taken))
        value = taken
    return value, placed


def _written(new: Narrowing, tensor: Any, parts: Sequence[Part], layout: Sequence[int | None], name: str) -> Any:
    """Write what is taken with other indices.

    Args:
        layout: the axes in order, None for an axis of size 1 that is added.
    """
    key: dict[int, Any] = {}
    for part in parts:
        indices = part.left(new)
        if indices is None and part.key is not None:
            key[part.axis] = part.key
            continue
        if indices is None:
            indices = part.select(tensor.shape[part.axis + 1])
        regular = as_slice(indices)
        if part.drops:
            key[part.axis] = int(indices[0])
        elif regular is None:
            tensor = _named(
                keras.ops.take(tensor, indices.tolist(), axis=part.axis + 1), f"{name}_axis_{part.axis + 1}"
            )
        elif regular != slice(0, tensor.shape[part.axis + 1], 1):
            key[part.axis] = regular
    entries = [slice(None), *(None if axis is None else key.get(axis, slice(None)) for axis in layout)]
    if all(entry == slice(None) for entry in entries):
        return tensor
    return _named(tensor[tuple(entries)], name)


def _named(tensor: Any, name: str) -> Any:
    """The tensor of a new operation that takes the old one's name."""
    tensor._keras_history.operation.name = name
    return tensor


def _one(lower: Lowering, parts: Sequence[Part], layout: Sequence[int | None] | None = None) -> int:
    """The rule of an operation with one output that takes along some axes, and drops and adds some."""
    x = lower.inputs[0]
    layout = tuple(range(len(lower.shape(x)))) if layout is None else layout
    y, placed = _taken(lower, x, parts)
    dropped = {part.axis for part in parts if part.drops}

    def write(new: Narrowing, operation: Any, tensors: Sequence[Any]) -> Any:
        if not any(part.changes(new) for part in placed):
            return None
        return _written(new, tensors[0], placed, layout, operation.name)

    lower.rewrite(write)
    return lower.reshape(y, lower.output_shape) if dropped or None in layout else y


@register_operation("GetItem")
def get_item(operation, lower: Lowering):
    arguments = lower.node.arguments
    key = arguments.kwargs["key"] if "key" in arguments.kwargs else arguments.args[1]
    entries = list(key) if isinstance(key, tuple | list) else [key]
    rank = len(lower.shape(lower.inputs[0])) + 1
    if not any(entry is Ellipsis for entry in entries):
        entries.append(Ellipsis)
    where = next(index for index, entry in enumerate(entries) if entry is Ellipsis)
    rest = rank - sum(entry is not None and entry is not Ellipsis for entry in entries)
    entries[where : where + 1] = [slice(None)] * rest
    if entries[0] is None:
        return Refused("it adds an axis before the batch axis")
    parts: list[Part] = []
    layout: list[int | None] = []
    axis = -1
    for entry in entries:
        if entry is None:
            layout.append(None)
            continue
        axis += 1
        if axis > 0:
            layout.append(axis - 1)
        if entry == slice(None):
            continue
        if axis == 0:
            return Refused("it takes a part of the batch")
        if isinstance(entry, slice):
            parts.append(Part(axis - 1, functools.partial(at, key=entry), entry))
        elif isinstance(entry, int | np.integer):
            parts.append(Part(axis - 1, functools.partial(at, key=[entry]), int(entry)))
        else:
            return Refused(f"an index in it is a {type(entry).__name__}")
    return _one(lower, parts, layout)


@register_operation("Slice")
def slice_of(operation, lower: Lowering):
    given = lower.arguments()
    starts = given["start_indices"]
    if len(lower.inputs) > 1 or not isinstance(starts, tuple | list | np.ndarray):
        return Refused("where it starts is computed")
    batch, sizes = lower.node.input_tensors[0].shape[0], list(operation.shape)
    if int(starts[0]) != 0 or sizes[0] not in (-1, batch):
        return Refused("it takes a part of the batch")
    parts = []
    for axis, (start, size, old) in enumerate(zip(starts[1:], sizes[1:], lower.shape(lower.inputs[0]), strict=True)):
        start = int(start)
        if start == 0 and size in (-1, old):
            continue
        stop = None if size == -1 else start + size
        parts.append(Part(axis, functools.partial(at, key=slice(start, stop)), slice(start, stop)))
    y = _one(lower, parts)
    write = lower.rewriter
    assert write is not None

    def always(new: Narrowing, operation: Any, tensors: Sequence[Any]) -> Any:
        # Its shape names every axis, those of which nothing is taken among them.
        result = write(new, operation, tensors)
        if result is None and new.shape(y) != lower.output_shape:
            starts_left = [0, *(int(start) for start in starts[1:])]
            return _named(keras.ops.slice(tensors[0], starts_left, (sizes[0], *target(new.shape(y)))), operation.name)
        return result

    lower.rewrite(always)
    return y


@register_operation("Take")
def take(operation, lower: Lowering):
    indices = lower.arguments().get("indices")
    axis = own_axis(operation.axis, len(lower.shape(lower.inputs[0])))
    if len(lower.inputs) > 1:
        return Refused("its indices are computed")
    if axis is None:
        return Refused("it takes along the batch axis")
    array = np.asarray(keras.ops.convert_to_numpy(indices)).astype(np.intp)
    if array.ndim == 0:
        return _one(lower, [Part(axis, functools.partial(at, key=[int(array)]), int(array))])
    if array.ndim == 1:
        return _one(lower, [Part(axis, functools.partial(at, key=array))])
    y = lower.gather(lower.inputs[0], axis, functools.partial(at, key=array.ravel()), array.size)
    return lower.reshape(y, lower.output_shape)


def _sections(size: int, sections: Any, number: int) -> Indices:
    """The indices of one part of a split."""
    if isinstance(sections, int) and size % sections:
        raise ValueError(f"{size} positions cannot be split into {sections}")
    return np.split(np.arange(size), sections)[number]


def _split(lower: Lowering, axis: int | None, select: Callable[..., Indices], drops: bool = False):
    """Several outputs, each a part of one axis; `select(size, number)` are the indices of one."""
    if axis is None:
        return Refused("it splits the batch")
    x = lower.inputs[0]
    outputs, parts = [], []
    for number, shape in enumerate(lower.output_shapes):
        own = functools.partial(select, number=number)
        y = lower.gather(x, axis, own, 1 if drops else shape[axis], rewritable=True)
        parts.append(Part(axis, own, number if drops else None, x, y))
        outputs.append(lower.reshape(y, shape) if drops else y)

    def write(new: Narrowing, operation: Any, tensors: Sequence[Any]) -> Any:
        empty = [new.empty(value) for value in outputs]
        if not any(empty) and not any(part.changes(new) for part in parts):
            return None
        layout = tuple(range(len(lower.shape(x))))
        names = [operation.name, *(f"{operation.name}_part_{number}" for number in range(1, len(parts)))]
        return [
            None if gone else _written(new, tensors[0], [part], layout, name)
            for part, gone, name in zip(parts, empty, names, strict=True)
        ]

    lower.rewrite(write)
    return tuple(outputs)


@register_operation("Split", "Hsplit", "Dsplit", "ArraySplit")
def split(operation, lower: Lowering):
    rank = len(lower.shape(lower.inputs[0]))
    kind = type(operation).__name__
    named = {"Hsplit": 1 if rank else 0, "Dsplit": 2}
    axis = own_axis(named.get(kind, getattr(operation, "axis", 0)), rank)
    sections = operation.indices_or_sections
    if kind == "ArraySplit":
        return _split(lower, axis, lambda size, number: np.array_split(np.arange(size), sections)[number])
    return _split(lower, axis, functools.partial(_sections, sections=sections))


@register_operation("Unstack")
def unstack(operation, lower: Lowering):
    axis = own_axis(operation.axis, len(lower.shape(lower.inputs[0])))

    def one(size: int, number: int) -> Indices:
        if size != len(lower.output_shapes):
            raise ValueError(f"{size} positions are no {len(lower.output_shapes)}")
        return np.array([number])

    return _split(lower, axis, one, drops=True)


@register_operation("Flip", "Fliplr")
def flip(operation, lower: Lowering):
    kind = type(operation).__name__
    axes = own_axes(1 if kind == "Fliplr" else operation.axis, _rank(lower))
    if isinstance(axes, Refused):
        return axes
    return _one(lower, [Part(axis, functools.partial(at, key=_BACKWARD), _BACKWARD) for axis in axes])


def _rank(lower: Lowering) -> int:
    return len(lower.shape(lower.inputs[0]))


@register_operation("Roll")
def roll(operation, lower: Lowering):
    axes = own_axes(operation.axis, _rank(lower))
    if isinstance(axes, Refused):
        return axes
    shifts = np.broadcast_to(operation.shift, len(axes)).tolist()
    return _one(
        lower,
        [Part(axis, functools.partial(moved, np.roll, shift=by)) for axis, by in zip(axes, shifts, strict=True)],
    )


@register_operation("Repeat")
def repeat(operation, lower: Lowering):
    axis = own_axis(operation.axis, _rank(lower))
    if axis is None:
        return Refused("it repeats along the batch axis")
    repeats = np.asarray(operation.repeats).ravel()
    return _one(lower, [Part(axis, functools.partial(moved, np.repeat, repeats=repeats))])


def _tiled(lower: Lowering, value: int, repeats: Sequence[int]) -> int:
    """Repeat a value along its axes."""
    for axis, times in enumerate(repeats):
        if times != 1:
            value = lower.gather(value, axis, functools.partial(moved, np.tile, reps=times))
    return value


@register_operation("Tile")
def tile(operation, lower: Lowering):
    rank = _rank(lower) + 1
    repeats = np.atleast_1d(operation.repeats).tolist()
    repeats = [1] * (rank - len(repeats)) + repeats
    if len(repeats) > rank or repeats[0] != 1:
        return Refused("it repeats the batch")
    return _tiled(lower, lower.inputs[0], repeats[1:])


@register_operation("BroadcastTo")
def broadcast_to(operation, lower: Lowering):
    shape, result = lower.shape(lower.inputs[0]), lower.output_shape
    batch = lower.node.input_tensors[0].shape[0]
    if len(result) != len(shape) or lower.node.outputs[0].shape[0] != batch:
        return Refused("it adds axes, or repeats the batch")
    repeats = [1 if old == size else size for old, size in zip(shape, result, strict=True)]
    known = [times for times in repeats if times is not None]
    if len(known) < len(repeats):
        return Refused("it repeats to an unknown size")
    y = _tiled(lower, lower.inputs[0], known)
    lower.settings(lambda new: {"shape": (batch, *new.shape(y))})
    return y


@register_rule(layers.RepeatVector)
def repeat_vector(layer, lower: Lowering) -> int:
    y = lower.reshape(lower.inputs[0], (1, *lower.shape(lower.inputs[0])))
    return _tiled(lower, y, (layer.n, 1))


@register_operation("Rot90")
def rot90(operation, lower: Lowering):
    rank = _rank(lower)
    axes = own_axes(operation.axes, rank)
    if isinstance(axes, Refused):
        return axes
    x, (first, second), turns = lower.inputs[0], axes, operation.k % 4
    order = list(range(rank))
    order[first], order[second] = second, first

    def reverse(value: int, axis: int) -> int:
        return lower.gather(value, axis, functools.partial(at, key=_BACKWARD))

    if turns == 2:
        return reverse(reverse(x, first), second)
    if turns == 1:
        return lower.permute(reverse(x, second), order)
    return reverse(lower.permute(x, order), second) if turns == 3 else x


@register_operation("Pad")
def pad(operation, lower: Lowering):
    x = lower.inputs[0]
    rank = _rank(lower)
    widths = [tuple(map(int, pair)) for pair in operation.pad_width]
    widths = widths * (rank + 1) if len(widths) == 1 else widths
    if any(widths[0]):
        return Refused("it pads the batch")
    if len(lower.inputs) > 1:
        return Refused("the number it pads with is computed")
    if operation.mode != "constant":
        return _mirrored(operation, lower, widths[1:])
    number = lower.arguments().get("constant_values")
    fill = 0.0 if number is None else float(np.asarray(keras.ops.convert_to_numpy(number)))
    padded: list[tuple[int, int, int]] = []
    value = x
    for axis, (before, after) in enumerate(widths[1:]):
        if before or after:
            after_value = lower.pad(value, axis, before, after, fill)
            padded.append((axis, value, after_value))
            value = after_value

    def settings(new: Narrowing) -> dict[str, Any]:
        left = list(widths)
        for axis, source, result in padded:
            size = new.labels[source].shape[axis]
            if new.labels[result].shape[axis] > 1 and size > 1:
                kept = new.positions(result, (axis,))
                before = widths[axis + 1][0]
                left[axis + 1] = (int((kept < before).sum()), int((kept >= before + size).sum()))
        return {"pad_width": tuple(left)}

    lower.settings(settings)
    return value


def _mirrored(operation: Any, lower: Lowering, widths: Sequence[tuple[int, ...]]):
    """Padding with what is there: mirrored or wrapped."""
    return _one(
        lower,
        [
            Part(axis, functools.partial(moved, np.pad, pad_width=pair, mode=operation.mode))
            for axis, pair in enumerate(widths)
            if any(pair)
        ],
    )


@register_operation("Glu")
def glu(operation, lower: Lowering):
    axis = own_axis(operation.axis, _rank(lower))
    if axis is None:
        return Refused("it splits the batch")
    x = lower.inputs[0]
    halves = [lower.gather(x, axis, functools.partial(_sections, sections=2, number=n)) for n in (0, 1)]
    gate = lower.map(halves[1], lambda constant: 1 / (1 + np.exp(-constant)))
    return lower.combine((halves[0], gate), "multiply", np.multiply, lower.output_shape)
