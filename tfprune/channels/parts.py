"""What channels touch: each layer that loses something with them, of which weights, and how many numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tfprune.channels.weights import Slot, Weight
from tfprune.tables import listed, table

Loss = tuple[Slot, NDArray[np.bool_]]  # where channels live in a weight, and which of its flat labels go

OUTPUTS, INPUTS, CARRIED = "output channels", "input channels", "channels"
STATISTIC = "statistic"


class Part(NamedTuple):
    """What one layer loses on one side.

    Attributes:
        layer: its name.
        side: `output channels` (filters and their bias), `input channels` (kernel slices that read them), or `channels`
            (BatchNormalization, depthwise kernels: what has numbers of its own for each channel).
        channels: which, along that side of the layer.
        weights: the weights they are taken from.
        parameters: how many trained numbers go.
        statistics: how many others go: moving means and variances, which Keras counts as non-trainable parameters.
    """

    layer: str
    side: str
    channels: tuple[int, ...]
    weights: tuple[Weight, ...]
    parameters: int
    statistics: int

    def __str__(self) -> str:
        numbers = [f"{self.parameters:,} parameters"] if self.parameters or not self.statistics else []
        numbers += [f"{self.statistics:,} statistics"] if self.statistics else []
        return (
            f"{self.layer} loses {self.side} {indices(self.channels)}: {' and '.join(numbers)} of {named(self.weights)}"
        )


def parts(losses: Iterable[Loss]) -> list[Part]:
    """One part a layer and side, in the order of the losses.

    What two sides of a kernel share is counted once, at the first of them: the sum over all parts is what goes.
    """
    grouped: dict[tuple[str, str], list[Loss]] = {}
    for slot, gone in losses:
        grouped.setdefault((slot.weight.layer, side_of(slot)), []).append((slot, gone))
    _name_by_kernel(grouped)
    seen: dict[Weight, list[Loss]] = {}
    found = []
    for (layer, side), own in grouped.items():
        own.sort(key=lambda loss: loss[0].kind == STATISTIC)
        numbers = {True: 0, False: 0}
        for slot, gone in own:
            before = seen.setdefault(slot.weight, [])
            left = left_of(slot.weight, before)
            before.append((slot, gone))
            numbers[slot.kind == STATISTIC] += left - left_of(slot.weight, before)
        channels = tuple(np.flatnonzero(own[0][1]).tolist())
        weights = tuple(dict.fromkeys(slot.weight for slot, _ in own))
        found.append(Part(layer, side, channels, weights, numbers[False], numbers[True]))
    return found


def side_of(slot: Slot) -> str:
    """Which side of its layer a slot is on; a bias is on the side of its kernel's filters."""
    return {"write": OUTPUTS, "bias": OUTPUTS, "read": INPUTS}.get(slot.kind, CARRIED)


def _name_by_kernel(grouped: dict[tuple[str, str], list[Loss]]) -> None:
    """A depthwise convolution's bias belongs to its channels, not to filters that it does not have."""
    for (layer, side), own in list(grouped.items()):
        biases = side == OUTPUTS and all(slot.kind == "bias" for slot, _ in own)
        if biases and (layer, CARRIED) in grouped:
            grouped[layer, CARRIED] += grouped.pop((layer, side))


def left_of(weight: Weight, losses: Sequence[Loss]) -> int:
    """How many of a weight's numbers are left.

    >>> slot = Slot(Weight("conv/kernel", (1, 1, 2, 3)), "write", np.arange(3), (1, 1, 2, 3), (3,))
    >>> left_of(slot.weight, [(slot, np.array([True, False, False]))])
    4
    """
    axes = [axis for slot, _ in losses for axis in slot.axes]
    if len(axes) == len(set(axes)) and len({slot.split for slot, _ in losses}) <= 1:
        left = weight.size
        for slot, gone in losses:
            left = left // slot.labels.size * int(np.count_nonzero(~gone))
        return left
    splits = {slot.split for slot, _ in losses}
    if len(splits) == 1:  # a kernel with groups: two sides share an axis; a number a cell that they tell apart
        kept = np.ones((), bool)
        for slot, gone in losses:
            kept = kept & slot.mask(~gone)
        return int(np.count_nonzero(kept)) * (weight.size // kept.size)
    whole = np.ones(weight.size, bool)
    for slot, gone in losses:
        np.copyto(whole.reshape(slot.split), False, where=slot.mask(gone))
    return int(np.count_nonzero(whole))


def as_table(title: str, found: Sequence[Part]) -> str:
    """The parts as a table, and what they come to."""
    rows: list[tuple] = []
    for part in found:
        loses = f"{part.side} {indices(part.channels)}"
        rows.append((part.layer, loses, named(part.weights), part.parameters, part.statistics or None))
    header = ("layer", "loses", "of", "parameters", "statistics")
    columns = 5 if any(part.statistics for part in found) else 4
    return table(title, header[:columns], [row[:columns] for row in rows]) + f"\n{total(found)}"


def total(found: Iterable[Part]) -> str:
    """The sums, in words."""
    found = list(found)
    statistics = sum(part.statistics for part in found)
    moving = f", and {statistics:,} moving statistics" if statistics else ""
    return f"{sum(part.parameters for part in found):,} parameters go{moving}"


def named(weights: Sequence[Weight]) -> str:
    """The weights' names; those of one shape share it: `gamma, beta 64`."""
    by_shape: dict[tuple[int, ...], list[str]] = {}
    for weight in weights:
        by_shape.setdefault(weight.shape, []).append(weight.name)
    return ", ".join(f"{', '.join(names)} {'x'.join(map(str, shape))}" for shape, names in by_shape.items())


def indices(channels: Sequence[int], most: int = 8) -> str:
    """The first few indices, in brackets.

    >>> indices((2, 6, 9))
    '[2, 6, 9]'
    """
    return f"[{listed([str(channel) for channel in channels], most)}]"


def share(slot: Slot) -> int:
    """How many of a weight's numbers belong to one label."""
    return math.prod(slot.split) // max(1, slot.labels.size)
