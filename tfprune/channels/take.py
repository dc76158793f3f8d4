"""The smaller arrays: each weight gathers the slices that its labels now ask for."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tfprune.channels.graph import ChannelGraph
from tfprune.channels.ops import Facts, Narrowing, Op
from tfprune.channels.weights import Slot, Weight

_CHUNK = 1 << 18  # entries that are gathered at a time


def slots_by_weight(graph: ChannelGraph) -> dict[Weight, list[Slot]]:
    """The slots of each weight that has any."""
    found: dict[Weight, list[Slot]] = {}
    for slot in graph.labels.slots.values():
        found.setdefault(slot.weight, []).append(slot)
    return found


def take(array: NDArray, slots: list[Slot], new: Narrowing) -> NDArray:
    """What is left of a weight.

    Args:
        array: the weight.
        slots: where channels live in it.
        new: which of them stay.
    """
    if all(_whole(slot, new.indices[slot.weight, slot.role]) for slot in slots):
        return array
    shape = array.shape
    array = array.reshape(slots[0].split)
    read = next((slot for slot in slots if slot.role == "read"), None)
    write = next((slot for slot in slots if slot.role == "write"), None)
    if read and write and set(read.axes) & set(write.axes):
        array = _take_blocks(array, read, write, new)
    else:
        # A kernel that another call uses transposed has each axis twice.
        distinct = {slot.axes: slot for slot in slots}
        if all(len(axes) == 1 for axes in distinct):
            array = _take_axes(array, {axes[0]: new.indices[s.weight, s.role].ravel() for axes, s in distinct.items()})
        else:
            for slot in distinct.values():
                array = _take_slot(array, slot, new.indices[slot.weight, slot.role])
    return _merged(array, shape, slots[0].split)


def _merged(array: NDArray, shape: Sequence[int], split: Sequence[int]) -> NDArray:
    """Put the axis together again that a slot has split in two, at the first size that differs."""
    if len(split) == len(shape):
        return array
    at = next((axis for axis, size in enumerate(shape) if size != split[axis]), len(shape) - 1)
    return array.reshape(*array.shape[:at], array.shape[at] * array.shape[at + 1], *array.shape[at + 2 :])


def _whole(slot: Slot, indices: NDArray) -> bool:
    """Whether everything stays where it is."""
    return slot.labels.size == indices.size and bool((indices.ravel() == np.arange(indices.size)).all())


def aligned(shape: Sequence[int], dtype: np.dtype) -> NDArray:
    """An empty array that starts where a backend can take it over as it is: at a multiple of 64 bytes.

    >>> aligned((2, 3), np.dtype("float32")).ctypes.data % 64
    0
    """
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def _take_axes(array: NDArray, indices: dict[int, NDArray]) -> NDArray:
    """Gather along several axes, a few rows at a time: nothing larger than the result is made."""
    (first, rows), *others = indices.items()
    shape = [len(indices[axis]) if axis in indices else size for axis, size in enumerate(array.shape)]
    result = aligned(shape, array.dtype)
    step = max(1, _CHUNK * array.shape[first] // max(1, array.size))
    for start in range(0, len(rows), step):
        part = np.take(array, rows[start : start + step], axis=first)
        for axis, index in others:
            part = np.take(part, index, axis=axis)
        result[(slice(None),) * first + (slice(start, start + step),)] = part
    return result


def _take_slot(array: NDArray, slot: Slot, indices: NDArray) -> NDArray:
    """Gather along a slot's axes; over several axes each row may keep other positions (heads)."""
    if len(slot.axes) == 1:
        return np.take(array, indices.ravel(), axis=slot.axes[0])
    front = tuple(range(len(slot.axes)))
    moved = np.moveaxis(array, slot.axes, front)
    flat = moved.reshape(-1, *moved.shape[len(front) :])
    return np.moveaxis(flat[indices.ravel()].reshape(*indices.shape, *flat.shape[1:]), front, slot.axes)


def _take_blocks(array: NDArray, read: Slot, write: Slot, new: Narrowing) -> NDArray:
    """A kernel with groups: along its first slot axis each block has inputs and outputs of its own."""
    axes = (read.axes[0], read.axes[1], write.axes[1])
    moved = np.moveaxis(array, axes, (-3, -2, -1))
    inputs, outputs = (np.divmod(new.indices[s.weight, s.role].ravel(), s.labels.shape[1]) for s in (read, write))
    blocks = [
        np.take(
            np.take(moved[..., group, :, :], inputs[1][inputs[0] == group], axis=-2),
            outputs[1][outputs[0] == group],
            axis=-1,
        )
        for group in np.unique(outputs[0])
    ]
    return np.moveaxis(np.stack(blocks, axis=-3), (-3, -2, -1), axes)


def bias_shifts(graph: ChannelGraph, facts: Facts, new: Narrowing) -> dict[Op, NDArray]:
    """op -> what its bias gains (flat, over all old outputs) from constant inputs that are gone."""
    found = {op: op.shift(facts, new) for op in graph.ops}
    return {op: shift for op, shift in found.items() if shift is not None}


def by_bias(shifts: dict[Op, NDArray], new: Narrowing) -> tuple[dict[Weight, NDArray], dict[Weight, NDArray]]:
    """Where `bias_shifts` go.

    Returns:
        bias -> what it gains, flat over its old entries; kernel without one -> the bias it gets in the smaller model.
    """
    gained, made = {}, {}
    for op, shift in shifts.items():
        kernel, bias = op.weights()[0], getattr(op, "bias", None)
        if bias is not None:
            gained[bias] = shift
        else:
            made[kernel] = shift[new.indices[kernel, "write"].ravel()]
    return gained, made
