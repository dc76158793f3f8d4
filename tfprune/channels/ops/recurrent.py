"""Recurrent layers: LSTM, GRU, SimpleRNN and their convolutional forms are one op."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tfprune.channels.labels import Indices, Labels, Shape, along
from tfprune.channels.ops.base import Bools, Facts, Floats, Narrowing, Op, Violation, unfoldable_constants
from tfprune.channels.ops.elementwise import applied
from tfprune.channels.weights import Weight


@dataclass(eq=False)
class Recurrent(Op):
    """Reads a sequence step by step, with states as wide as its output; one label a unit, fresh.

    A step computes `gates` vectors of the size of the units, each from the input (through `kernel`), the output of
    the step before (through `recurrent`) and a bias. One of them, behind the activation, is the candidate. A unit
    whose state is 0 and whose candidate is always 0 stays 0, whatever its other gates do: LSTM's carry is
    f * 0 + i * 0 and its output o * activation(0); GRU's is z * 0 + (1 - z) * 0; SimpleRNN's is the candidate.

    The first input is the sequence; then come `states` initial states, and masks. The first output is the sequence or
    its last step, then come states. A masked step repeats the state and the output before it, which were 0, or is 0.

    Attributes:
        kernel: shape (..., inputs, gates * units).
        recurrent: shape (..., units, gates * units).
        bias: shape (gates * units,), or (2, gates * units) where the recurrent part has a bias of its own, which
            another gate multiplies.
        gates, candidate: how many gates, and which of them is the candidate.
        activation: the candidate's, on constants; None for none.
        carries: whether the output is a gate times the activation of the state.
        rank, axis: how many axes the sequence has, of which the first is time, and which holds the channels.
        states: how many initial states are given; 0 where they are zeros.
        pads: whether zeros from outside the input enter the sum.
        positions: how often the kernel is applied to one sample; 0 if unknown.
        stacked: whether the sequence comes from another cell of the same layer, so that neither can go alone.
        pair: the output of the layer that runs the other way and must stay as wide, or None.
        name: of the channel group; by default that of the kernel's layer.
        shared: whether other calls in the graph use the kernel too; then no constant may be added.
    """

    kernel: Weight
    recurrent: Weight
    bias: Weight | None
    gates: int
    candidate: int
    activation: Callable[[NDArray], NDArray] | None
    carries: bool
    rank: int
    axis: int
    states: int = 0
    pads: bool = False
    positions: int = 0
    stacked: bool = False
    pair: int | None = None
    name: str = ""
    shared: bool = False

    def __post_init__(self) -> None:
        self.units = self.kernel.shape[-1] // self.gates
        self.length = self.kernel.shape[-2]

    @property
    def initial(self) -> tuple[int, ...]:
        """The initial states."""
        return self.inputs[1 : 1 + self.states]

    @property
    def folds(self) -> bool:
        """Whether a constant input may become part of the bias."""
        return self.bias is not None and not self.shared and not self.pads

    def weights(self) -> tuple[Weight, ...]:
        found = (self.kernel, self.recurrent)
        return found if self.bias is None else (*found, self.bias)

    def macs(self, sizes: Callable[[Weight], int]) -> int:
        return self.positions * (sizes(self.kernel) + sizes(self.recurrent))

    def _axis(self, rank: int) -> int:
        """The channel axis of a value with so many axes: all but the sequences have no time axis."""
        return self.axis - (self.rank - rank)

    def _shaped(self, flat: NDArray, rank: int) -> NDArray:
        """One entry a channel, along the channel axis of a value with so many axes."""
        return flat.reshape([-1 if axis == self._axis(rank) else 1 for axis in range(rank)])

    def label(self, labels: Labels, shapes: dict[int, Shape]) -> None:
        value = self.inputs[0]
        source = along(labels, labels.of[value], shapes[value], (self.axis,))
        known = labels.slots.get((self.kernel, "write"))
        units = known.labels if known else labels.fresh(self.units, self.name)
        for weight, ending, rows in ((self.kernel, "", source), (self.recurrent, ":recurrent", units)):
            split = (*weight.shape[:-1], self.gates, self.units)
            labels.bind(weight, "read" + ending, rows, split, (len(split) - 3,))
            labels.bind(weight, "write" + ending, units, split, (len(split) - 1,))
        if self.bias is not None:
            split = (*self.bias.shape[:-1], self.gates, self.units)
            labels.bind(self.bias, "bias", units, split, (len(split) - 1,))
        for state in self.initial:
            labels.tie(along(labels, labels.of[state], shapes[state], (self._axis(len(shapes[state])),)), units)
        if self.pair is not None:
            labels.lockstep(units, labels.of[self.pair].ravel())
        for out in self.outputs:
            labels.of[out] = self._shaped(units, len(shapes[out]))

    def table(self, facts: Facts, weight: Weight) -> Bools:
        """(rows, gates, units): where a kernel has anything but zeros."""
        table = facts.tables.get((weight, (self.gates,)))
        if table is None:
            nonzero = facts.weight(weight) != 0
            nonzero = nonzero.any(axis=tuple(range(nonzero.ndim - 2)))
            table = facts.tables[weight, (self.gates,)] = nonzero.reshape(-1, self.gates, self.units)
        return table

    def constants_of(self, facts: Facts, value: int, size: int) -> Floats:
        """The constant of each channel of an input; NaN where unknown or different across positions."""
        constant = facts.constant[value]
        others = tuple(axis for axis in range(constant.ndim) if axis != self._axis(constant.ndim))
        low, high = constant.min(axis=others), constant.max(axis=others)
        return np.broadcast_to(np.where(low == high, low, np.nan), size)

    def sums(self, facts: Facts, constants: Floats) -> Floats:
        """What constant inputs add to each gate of each unit: shape (gates, units)."""
        kernel = facts.weight(self.kernel)
        rows = np.flatnonzero(constants)
        total = kernel[..., rows, :].astype(np.float64).sum(axis=tuple(range(kernel.ndim - 2)))
        return (constants[rows] @ total).reshape(self.gates, self.units)

    def zeros(self, facts: Facts) -> Bools:
        """unit -> whether it is 0 at every step: the largest set of units that keep each other at 0."""
        constant = self.constants_of(facts, self.inputs[0], self.length)
        unknown = np.isnan(constant) | (self.pads & (constant != 0))
        before = np.zeros(self.units)
        if not unknown.all():
            before = before + self.sums(facts, np.where(unknown, 0.0, constant))[self.candidate]
        settled = np.ones(self.units, bool)
        if self.bias is not None:
            bias = np.asarray(facts.weight(self.bias), np.float64).reshape(-1, self.gates, self.units)
            before = before + bias[0, self.candidate]
            settled = (bias[1:, self.candidate] == 0).all(axis=0)
        zero = settled & (self._activated(before) == 0)
        if self.carries:
            zero &= bool(self._activated(np.zeros(1))[0] == 0)
        zero &= ~self.table(facts, self.kernel)[unknown, self.candidate].any(axis=0)
        for state in self.initial:
            zero &= self.constants_of(facts, state, self.units) == 0
        reads = self.table(facts, self.recurrent)[:, self.candidate]
        while (moved := zero & reads[~zero].any(axis=0)).any():
            zero = zero & ~moved
        return zero

    def _activated(self, constants: Floats) -> Floats:
        return constants if self.activation is None else applied(self.activation, constants)

    def forward(self, facts: Facts) -> None:
        constant = np.where(self.zeros(facts), 0.0, np.nan)
        for out in self.outputs:
            facts.constant[out] = constant.reshape(facts.labels[out].shape)

    def backward(self, facts: Facts) -> None:
        read = np.logical_or.reduce([facts.read[out].ravel() for out in self.outputs])
        if not read.any():
            return
        # A unit that is 0 is 0 without its inputs, too.
        moving = np.isnan(facts.constant[self.output].ravel())
        reads = self.table(facts, self.recurrent).any(axis=1) & moving[:, None]
        wanted = read & moving
        while (more := reads[:, wanted].any(axis=1) & ~wanted).any():
            wanted = wanted | more
        facts.demand(self.output, wanted.reshape(facts.labels[self.output].shape))
        table = self.table(facts, self.kernel)
        # A unit that constants hold at 0 needs them to stay what they are.
        constant = self.constants_of(facts, self.inputs[0], self.length)
        holding = np.isfinite(constant) & (constant != 0) & table[..., read & ~moving].any(axis=(1, 2))
        rows: Bools = table[..., wanted].any(axis=(1, 2)) | holding
        facts.demand(self.inputs[0], self._shaped(rows, self.rank))
        for state in self.initial:
            facts.demand(state, self._shaped(wanted, facts.labels[state].ndim))
        for mask in self.inputs[1 + self.states :]:
            facts.demand(mask, np.ones(facts.labels[mask].shape, bool))

    def unfoldable(self, facts: Facts) -> dict[int, Bools]:
        return unfoldable_constants(self, facts, self.folds, (self.axis,))

    def why_unknown(self) -> str:
        return f"what {self.layer} writes there is not 0 at every step, and is read"

    def why_unfoldable(self, constant: float, writer: str) -> str:
        if self.pads:
            return f"{constant:.3g} after {writer} crosses the padded {self.layer}"
        return f"{constant:.3g} after {writer} cannot become a bias of {self.layer}, which is shared or has none"

    def shift(self, facts: Facts, new: Narrowing) -> Floats | None:
        if self.bias is None or not self.folds:
            return None
        constant = self.constants_of(facts, self.inputs[0], self.length)
        gone = np.isfinite(constant) & (constant != 0)
        gone[new.indices[self.kernel, "read"].ravel()] = False
        if not gone.any():
            return None
        shift = np.zeros((self.bias.size // (self.gates * self.units), self.gates, self.units))
        shift[0] = self.sums(facts, np.where(gone, constant, 0.0))
        return shift.ravel() if shift.any() else None

    def dead(self, facts: Facts) -> dict[Weight, Bools]:
        columns = (self.table(facts, weight)[:, self.candidate] for weight in (self.kernel, self.recurrent))
        found: Bools = np.any(np.concatenate(list(columns)), axis=0)
        return {self.kernel: ~found}

    def narrow(self, new: Narrowing) -> None:
        value = self.inputs[0]
        source = new.positions_everywhere(value, (self.axis,)).ravel()
        units = new.slots[self.kernel, "write"].labels
        target = np.flatnonzero(new.keep[units])
        if target.size and not source.size:
            # One channel that it may read, so that it can run.
            raise Violation(new.labels[value].ravel()[:1], f"{self.layer} would have nothing left to read")
        if self.stacked and source.size and not target.size:
            raise Violation(units[:1], f"{self.layer} would have a cell without units")
        self._even(new, units, target)
        for state in self.initial:
            axis = self._axis(len(new.shapes[state]))
            if not np.array_equal(new.positions(state, (axis,)).ravel(), target):
                both = np.concatenate([units, new.labels[state].ravel()])
                raise Violation(both, f"{self.layer} would need its units in the order of its initial state")
        for weight, ending, rows in ((self.kernel, "", source), (self.recurrent, ":recurrent", target)):
            new.fix(weight, "read" + ending, rows, new.labels[value])
            new.fix(weight, "write" + ending, target, units)
        if self.bias is not None:
            new.fix(self.bias, "bias", target, units)
        for out in self.outputs:
            new.kept[out] = self._shaped(target, new.labels[out].ndim)

    def _even(self, new: Narrowing, units: Indices, target: Indices) -> None:
        """Both directions of a bidirectional layer have one width.

        Raises:
            Violation: with the labels that make them even again.
        """
        if self.pair is None:
            return
        other = new.kept[self.pair].ravel()
        smaller, left = (units, target) if target.size < other.size else (new.labels[self.pair].ravel(), other)
        missing = np.setdiff1d(np.arange(len(smaller)), left)[: abs(target.size - other.size)]
        if len(missing):
            raise Violation(smaller[missing], f"{self.layer}'s two directions would have different widths")
