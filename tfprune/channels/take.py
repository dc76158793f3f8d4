"""The smaller arrays: each weight gathers the slices that its labels now ask for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tfprune.channels.graph import ChannelGraph
from tfprune.channels.ops import Facts, Narrowing, Op
from tfprune.channels.weights import Slot, Weight


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
    rank = array.ndim
    array = array.reshape(slots[0].split)
    if array.ndim > rank and len(slots) > 1:
        return _take_groups(array, slots, new)
    for slot in slots:
        # The flat positions are a grid over the slot's axes; `narrow` has made sure of it.
        grid = np.unravel_index(new.indices[slot.weight, slot.role], slot.labels.shape)
        for axis, index in zip(slot.axes, grid, strict=True):
            array = np.take(array, _distinct(index), axis=axis)
    return array if array.ndim == rank else array.reshape(*array.shape[: rank - 1], -1)


def _whole(slot: Slot, indices: NDArray) -> bool:
    """Whether everything stays where it is."""
    return slot.labels.size == indices.size and bool((indices.ravel() == np.arange(indices.size)).all())


def _distinct(index: NDArray) -> NDArray:
    """The different entries, in the order in which they come."""
    _, first = np.unique(index, return_index=True)
    return index.ravel()[np.sort(first)]


def _take_groups(array: NDArray, slots: list[Slot], new: Narrowing) -> NDArray:
    """A grouped kernel, split as (..., inputs of a group, groups, outputs of a group)."""
    read = next(slot for slot in slots if slot.role == "read")
    write = next(slot for slot in slots if slot.role == "write")
    inputs, outputs = (np.divmod(new.indices[s.weight, s.role], s.labels.shape[1]) for s in (read, write))
    blocks = [
        np.take(
            np.take(array[..., group, :], inputs[1][inputs[0] == group], axis=-2), outputs[1][outputs[0] == group], -1
        )
        for group in np.unique(outputs[0])
    ]
    return np.concatenate(blocks, axis=-1)


def bias_shifts(graph: ChannelGraph, facts: Facts, new: Narrowing) -> dict[Op, NDArray]:
    """op -> what its bias gains (flat, over all old outputs) from constant inputs that are gone."""
    found = {op: op.shift(facts, new) for op in graph.ops}
    return {op: shift for op, shift in found.items() if shift is not None}
