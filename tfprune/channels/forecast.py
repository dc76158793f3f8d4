"""What a model costs without some of its channels, counted from label arrays: nothing is walked or rebuilt.

A weight's size is a product of how many labels are left along its axes, and the multiply-adds of an op are its
kernel's size times how often it is applied. So the cost of a plan is one sparse matrix times the mask of what stays,
and a sum of products: a thousand plans take about a second.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from tfprune.channels.graph import ChannelGraph
from tfprune.channels.ops import Op
from tfprune.channels.ops.contract import Contract, Depthwise, OverPositions
from tfprune.channels.removal import calls_left, written_alone
from tfprune.channels.weights import Slot, Weight

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Expected:
    """One cost of a model before and after stripping.

    Attributes:
        what: `parameters`, `MACs`, `latency` or `.onnx bytes`.
        before, after: numbers, multiply-adds for one sample, milliseconds or bytes.
        budget: the fraction of `before` that may be left; None where none was asked for.
    """

    what: str
    before: float
    after: float
    budget: float | None = None

    def __str__(self) -> str:
        before, after = (
            f"{n:.3g} ms" if self.what == "latency" else f"{round(n):,}" for n in (self.before, self.after)
        )
        asked = "" if self.budget is None else f", budget {self.budget:.2%}"
        return f"{self.what}: {before} -> {after} ({self.after / max(self.before, 1e-12):.2%} left{asked})"


@dataclass(frozen=True)
class Forecast:
    """What stripping a plan will leave.

    Attributes:
        costs: parameters and MACs, and what else a budget was asked for.
        notes: why a budget is not met within 1 %.
    """

    costs: tuple[Expected, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join([f"expected {cost}" for cost in self.costs] + list(self.notes))


@dataclass(frozen=True)
class LayerWidths:
    """One kernel as it would be in the smaller model: what a latency is looked up by.

    Attributes:
        layer: its name, `outer/inner` in nested models.
        kind: its layer's class.
        weight: the kernel's name in the layer.
        kernel: the kernel's shape now.
        read, written: how many channels it would read and write, and how many it does now, as (left, now).
        groups: of a grouped convolution: how many would be left and how many there are; (1, 1) otherwise.
        inputs, outputs: the tensors' sizes now along the axes that hold no channels.
        window: the kernel's sizes along the axes that hold no channels.
        positions: how often the kernel is applied to one sample.
        scale: which fraction of those positions is left: 1 but for kernels over positions, which are applied to each
            channel.
        depthwise: whether each channel has a kernel of its own, so that what is read is what is written.
    """

    layer: str
    kind: str
    weight: str
    kernel: tuple[int, ...]
    read: tuple[int, int]
    written: tuple[int, int]
    groups: tuple[int, int]
    inputs: tuple[int | None, ...]
    outputs: tuple[int | None, ...]
    window: tuple[int, ...]
    positions: int
    scale: float = 1.0
    depthwise: bool = False


class Left(NamedTuple):
    """Of each call, each weight and each channel: whether it is left without some whole layers."""

    calls: Bools
    weights: Bools
    channels: Bools


class CostModel:
    """A graph's parameters and multiply-adds as a function of which channels stay and which whole layers go.

    What is counted is what `tfprune.cost` counts in the stripped model, as long as no channel has to come back to make
    things fit (`channels.narrow` says which do).
    """

    def __init__(self, graph: ChannelGraph):
        self.graph = graph
        self._rows: list[NDArray[np.intp]] = []
        self._row_of: dict[bytes, int] = {}
        self._blocks: list[NDArray[np.intp]] = []
        one = self._row(np.zeros(0, np.intp))
        slots: dict[Weight, dict[tuple[int, ...], Slot]] = {}
        for slot in graph.labels.slots.values():
            slots.setdefault(slot.weight, {})[slot.axes] = slot
        used = {weight for call in graph.calls for op in call.ops for weight in op.weights()}
        called = {call.layer for call in graph.calls}
        self.weights = [weight for weight in graph.weights if weight in used or _is_part_of(weight.layer, called)]
        self._number = {weight: number for number, weight in enumerate(self.weights)}
        most = max((len(by_axes) for by_axes in slots.values()), default=1)
        self._factors = np.full((len(self.weights), most), one)
        self._block = np.full(len(self.weights), -1)
        self._rest = np.array([float(weight.size) for weight in self.weights])
        self._slots = slots
        for weight, by_axes in slots.items():
            if weight not in self._number:
                continue
            number = self._number[weight]
            for place, slot in enumerate(by_axes.values()):
                self._factors[number, place] = self._row(graph.channel_of[slot.labels.ravel()])
                self._rest[number] /= max(1, slot.labels.size)
            axes = [axis for slot in by_axes.values() for axis in slot.axes]
            if len(set(axes)) < len(axes):  # groups: a block of the kernel for each
                first = next(iter(by_axes.values()))
                self._block[number] = len(self._blocks)
                self._blocks.append(graph.channel_of[first.labels.reshape(first.labels.shape[0], -1)])
                self._rest[number] *= first.labels.shape[0]
        self._ops: list[tuple[int, Op, int, float, int]] = []
        settled = iter(graph.ops)
        for index, call in enumerate(graph.calls):
            for op in call.ops:
                over_positions = isinstance(next(settled), OverPositions)
                for weight in dict.fromkeys(op.weights()):
                    times = _times(op, weight)
                    if times:
                        spread = one
                        if over_positions:  # it is applied to each channel
                            labels = graph.labels.of[op.output]
                            spread, times = self._row(graph.channel_of[labels.ravel()]), times / max(1, labels.size)
                        self._ops.append((index, op, self._number[weight], times, spread))
        self._matrix = _counting(self._rows, graph.channels)
        self._matrix_of_blocks = [_counting(list(block), graph.channels) for block in self._blocks]
        self._whole = np.ones(graph.channels, bool)
        self._op_calls = np.array([index for index, *_ in self._ops], np.intp)
        self._op_weights = np.array([number for _, _, number, _, _ in self._ops], np.intp)
        self._op_times = np.array([times for _, _, _, times, _ in self._ops])
        self._op_spread = np.array([spread for *_, spread in self._ops], np.intp)
        self._left: dict[frozenset[str], Left] = {}

    def _row(self, channels: NDArray[np.intp]) -> int:
        """The number of a row of the counting matrix; equal arrays share one. Row 0 counts as 1."""
        key = channels.tobytes()
        if key not in self._row_of:
            self._row_of[key] = len(self._rows)
            self._rows.append(channels)
        return self._row_of[key]

    # -- what is left ---------------------------------------------------------------------------------------------

    def sizes(self, keep: Bools, cut: Collection[str] = ()) -> Floats:
        """The size of each of `weights`, when the channels in `keep` stay and the layers in `cut` write 0."""
        keep = keep & self.left(cut).channels
        return self._sizes(self._counts(keep), keep) * self.left(cut).weights

    def parameters(self, keep: Bools, cut: Collection[str] = ()) -> float:
        """Numbers in all weights."""
        return float(self.sizes(keep, cut).sum())

    def bytes(self, keep: Bools, cut: Collection[str], itemsizes: Floats) -> float:
        """Bytes of all weights; `itemsizes` has those of one number of each of `weights`."""
        return float(self.sizes(keep, cut) @ itemsizes)

    def macs(self, keep: Bools, cut: Collection[str] = ()) -> float:
        """Multiply-adds for one sample."""
        keep = keep & self.left(cut).channels
        counts = self._counts(keep)
        each = self._sizes(counts, keep)[self._op_weights] * self._op_times * counts[self._op_spread]
        return float(each @ self.left(cut).calls[self._op_calls])

    def widths(self, keep: Bools, cut: Collection[str] = ()) -> list[LayerWidths]:
        """Every kernel that is left, as it would be; the same kernels in the same order for the same `cut`."""
        keep = keep & self.left(cut).channels
        counts, alive = self._counts(keep).astype(int).tolist(), self.left(cut).calls
        groups = [int((matrix @ keep > 0).sum()) for matrix in self._matrix_of_blocks]
        found = []
        for index, op, number, _, spread in self._ops:
            if not alive[index]:
                continue
            call, weight = self.graph.calls[index], self.weights[number]
            read = written = (1, 1)
            depthwise = False
            for place, slot in enumerate(self._slots.get(weight, {}).values()):
                pair = (counts[self._factors[number, place]], slot.labels.size)
                if slot.kind == "read":
                    read = pair
                elif slot.kind == "write":
                    written = pair
                elif slot.kind == "depthwise":
                    read = written = pair
                    depthwise = True
            block = int(self._block[number])
            each = (groups[block], len(self._blocks[block])) if block >= 0 else (1, 1)
            scale = counts[spread] / max(1, len(self._rows[spread])) if spread else 1.0
            source, target, window = self._beside_channels(op, weight)
            found.append(
                LayerWidths(
                    call.layer, call.kind, weight.name, weight.shape, read, written, each,
                    source, target, window, int(_times(op, weight)), scale, depthwise,
                )
            )  # fmt: skip
        return found

    def _beside_channels(self, op: Op, weight: Weight) -> tuple[tuple, tuple, tuple[int, ...]]:
        """The sizes of an op's input, output and kernel along the axes that hold no channels."""
        source, target = self.graph.shapes[op.inputs[0]], self.graph.shapes[op.output]
        read: tuple[int, ...] = (len(source) - 1,)
        write: tuple[int, ...] = (len(target) - 1,)
        if isinstance(op, Contract):
            read, write = op.read_axes, op.write_axes
        elif isinstance(op, Depthwise):
            read = write = (op.axis,)
        slots = list(self._slots.get(weight, {}).values())
        held = {axis for slot in slots for axis in slot.axes} | set(op.axes if isinstance(op, Depthwise) else ())
        split = slots[0].split if slots else weight.shape
        return _without(source, read), _without(target, write), _without(split, tuple(held))

    def left(self, cut: Collection[str]) -> Left:
        """What is left when the layers in `cut` write 0."""
        key = frozenset(cut)
        if key not in self._left:
            calls, weights = np.ones(len(self.graph.calls), bool), np.ones(len(self.weights), bool)
            channels = self._whole
            if key:
                calls, channels = calls_left(self.graph, key), ~written_alone(self.graph, key)
                used: dict[Weight, bool] = {}
                for call, alive in zip(self.graph.calls, calls.tolist(), strict=True):
                    for op in call.ops:
                        for weight in op.weights():
                            used[weight] = used.get(weight, False) or alive
                layers = {call.layer for call, alive in zip(self.graph.calls, calls, strict=True) if alive}
                gone = {call.layer for call in self.graph.calls} - layers
                weights = np.array([used.get(weight, weight.layer not in gone) for weight in self.weights])
            self._left[key] = Left(calls, weights, channels)
        return self._left[key]

    def _counts(self, keep: Bools) -> Floats:
        counts = self._matrix @ keep.astype(np.float64)
        counts[0] = 1.0
        return counts

    def _sizes(self, counts: Floats, keep: Bools) -> Floats:
        sizes = self._rest * counts[self._factors].prod(axis=1)
        for number in np.flatnonzero(self._block >= 0).tolist():
            sizes[number] /= max(1, int((self._matrix_of_blocks[self._block[number]] @ keep > 0).sum()))
        return sizes

    @cached_property
    def before(self) -> tuple[float, float]:
        """(parameters, multiply-adds) of the model as it is."""
        return self.parameters(self._whole), self.macs(self._whole)


def _without(sizes: tuple, axes: tuple[int, ...]) -> tuple:
    return tuple(size for axis, size in enumerate(sizes) if axis not in axes)


def _is_part_of(layer: str, called: Collection[str]) -> bool:
    """Whether a layer is called, holds one that is, or is part of one that is."""
    if any(name == layer or name.startswith(f"{layer}/") for name in called):
        return True
    return bool(layer) and layer.rpartition("/")[0] in called


def _times(op: Op, weight: Weight) -> float:
    """How often each number of a weight is multiplied for one sample."""
    return float(op.macs(lambda which: int(which is weight)))


def _counting(rows: list[NDArray[np.intp]], channels: int) -> csr_array:
    """A matrix that counts, for each row's array of channels, how many of them a mask keeps."""
    lengths = np.array([row.size for row in rows], np.intp)
    columns = np.concatenate([row.ravel() for row in rows]) if rows else np.zeros(0, np.intp)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    matrix = csr_array((np.ones(len(columns)), columns, starts), shape=(len(rows), channels))
    matrix.sum_duplicates()
    return matrix
