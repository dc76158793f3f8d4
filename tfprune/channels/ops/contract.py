"""Ops with a kernel: `Contract` mixes all its input channels, `Depthwise` gives each its own outputs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tfprune.channels.labels import Indices, Labels, Shape, along, varies
from tfprune.channels.ops.base import Bools, Facts, Floats, Narrowing, Op, Violation, unfoldable_constants
from tfprune.channels.ops.elementwise import Affine, Spatial
from tfprune.channels.weights import Weight

_LARGE = 1 << 20  # entries; more than that are not copied to be looked at


@dataclass(eq=False)
class Contract(Op):
    """Convolution of any rank, grouped or transposed; Dense; EinsumDense: reads labels, writes fresh ones.

    Attributes:
        kernel: the weight.
        read: (value axis, kernel axis) of what is summed over.
        write: (value axis, kernel axis) of what is written.
        bias: of the size of the written axes, if there is one.
        groups: of a grouped convolution, whose kernel is (..., inputs of a group, outputs); or, where `read` and
            `write` are two axes each, how many blocks of inputs have outputs of their own along the first.
        pads: whether zeros from outside the input enter the sum, so that a constant does not stay constant.
        positions: how often the kernel is applied to one sample; 0 if unknown.
        foldable: whether a constant may be added to (or become) its bias.
        shared: whether other calls in the graph use the kernel too; then no constant may be added.
        along: (value axis, kernel axis, output axis) of what input, kernel and output have in common: a kernel of its
            own for each position, or for each head.
        roles: what the two sides of the kernel are called; the other way round for a kernel that another call of the
            layer uses transposed.
    """

    kernel: Weight
    read: tuple[tuple[int, int], ...]
    write: tuple[tuple[int, int], ...]
    bias: Weight | None = None
    groups: int = 1
    pads: bool = False
    positions: int = 0
    foldable: bool = True
    shared: bool = False
    along: tuple[tuple[int, int, int], ...] = ()
    roles: tuple[str, str] = ("read", "write")

    def __post_init__(self) -> None:
        self.read_axes = tuple(axis for axis, _ in self.read)
        self.write_axes = tuple(axis for axis, _ in self.write)
        read, write = (tuple(axis for _, axis in pairs) for pairs in (self.read, self.write))
        # A grouped kernel (k, inputs/groups, outputs) is really (k, inputs/groups, groups, outputs/groups).
        self.split = self.kernel.shape
        self.read_slots, self.write_slots = read, write
        self.sizes = tuple(self.kernel.shape[axis] for axis in write)
        if self.groups > 1 and len(read) == 1:
            inputs, outputs = read[0], write[0]
            size = self.kernel.shape[outputs] // self.groups
            self.split = (*self.kernel.shape[:outputs], self.groups, size, *self.kernel.shape[outputs + 1 :])
            self.read_slots = (outputs, inputs + (inputs > outputs))
            self.write_slots = (outputs, outputs + 1)

    def _read_sizes(self) -> list[int]:
        """The old sizes of the axes that are read."""
        times = self.groups if len(self.read) == 1 else 1
        return [self.kernel.shape[axis] * times for _, axis in self.read]

    @property
    def folds(self) -> bool:
        """Whether a constant may become part of its bias, or a scale of its kernel."""
        return self.foldable and not self.shared and bool(self.write)

    def weights(self) -> tuple[Weight, ...]:
        return (self.kernel,) if self.bias is None else (self.kernel, self.bias)

    def macs(self, sizes: Callable[[Weight], int]) -> int:
        return self.positions * sizes(self.kernel)

    def obstacle(self, labels: Labels, shapes: dict[int, Shape]) -> str | None:
        for axis, size in zip(self.read_axes, self._read_sizes(), strict=True):
            if labels.of[self.inputs[0]].shape[axis] not in (1, size):
                return f"{self.layer} reads {size} channels, and {labels.of[self.inputs[0]].shape[axis]} come"
        if len(self._heads(labels)) > 1 or (self._heads(labels) and len(self.read) != len(self.write)):
            return f"{self.layer} has kernels of their own along several axes that hold channels"
        if self._heads(labels) and self.shared:
            return f"{self.layer} is shared, and not each of its calls has channels along the same axes"
        return None

    def _heads(self, labels: Labels) -> list[tuple[int, int, int]]:
        """Which of what input and output have in common holds channels."""
        return [axes for axes in self.along if labels.of[self.inputs[0]].shape[axes[0]] > 1]

    def settled(self, labels: Labels, shapes: dict[int, Shape]) -> Op:
        heads = self._heads(labels)
        if self._is_over_positions(labels):
            return OverPositions(
                self.layer, self.inputs, self.outputs, _unknown, self.read_axes, False, 0.0, self.kernel, self.positions
            )
        if not heads:
            return self
        (axis, kernel_axis, out), rest = heads[0], tuple(axes for axes in self.along if axes != heads[0])
        if not self.read:
            return self._scale(axis, kernel_axis)
        return dataclasses.replace(
            self,
            read=((axis, kernel_axis), *self.read),
            write=((out, kernel_axis), *self.write),
            groups=self.kernel.shape[kernel_axis],
            pads=bool(rest),
            along=rest,
        )

    def _is_over_positions(self, labels: Labels) -> bool:
        """Whether channels lie along other axes than the one that is read and written."""
        array = labels.of[self.inputs[0]]
        others = tuple(axis for axis in range(array.ndim) if axis not in self.read_axes)
        same = len(self.read) == 1 and self.read_axes == self.write_axes and not self.shared
        # A convolution's window slides over the other axes, channels among them.
        same = same and len(self.kernel.shape) == 2
        return same and not varies(array, self.read_axes) and varies(array, others)

    def _scale(self, axis: int, kernel_axis: int) -> Op:
        """`...c,c->...c` multiplies each channel by a number."""
        parameters = [(self.kernel, "scale")] + ([] if self.bias is None else [(self.bias, "shift")])
        return Affine(
            self.layer, self.inputs, self.outputs, axis, tuple(parameters), lambda scale, shift=0.0: (scale, shift)
        )

    def label(self, labels: Labels, shapes: dict[int, Shape]) -> None:
        value = self.inputs[0]
        known = dict(zip(self.read_axes, self._read_sizes(), strict=True))
        # Keras may not know a size that the kernel does.
        shapes[value] = tuple(known.get(axis, size) for axis, size in enumerate(shapes[value]))
        source = along(labels, labels.of[value], shapes[value], self.read_axes)
        sizes, rank = self.sizes, len(shapes[self.output])
        reads, writes = self.roles
        if not self.write:
            labels.bind(self.kernel, reads, source, self.split, self.read_slots)
            labels.of[self.output] = labels.protected_value(rank, f"{self.layer} writes no channels")
            return
        bound = labels.slots.get((self.kernel, writes))
        target = bound.labels.reshape(sizes) if bound else labels.fresh(math.prod(sizes)).reshape(sizes)
        if self.groups > 1:
            source_grouped = source.reshape(self.groups, -1)
            target_grouped = target.reshape(self.groups, -1)
            labels.lockstep(source_grouped, source_grouped[:1])
            labels.lockstep(target_grouped, target_grouped[:1])
            labels.bind(self.kernel, reads, source_grouped, self.split, self.read_slots)
            labels.bind(self.kernel, writes, target_grouped, self.split, self.write_slots)
        else:
            if self.read:
                labels.bind(self.kernel, reads, source, self.split, self.read_slots)
            labels.bind(self.kernel, writes, target, self.split, self.write_slots)
            if len(sizes) > 1:
                # Heads stay equally wide.
                labels.lockstep(target, target[(slice(0, 1),) * (len(sizes) - 1)])
        if self.bias is not None:
            labels.bind(self.bias, "bias", target, sizes, tuple(range(len(sizes))))
        shape = [1] * rank
        for axis, size in zip(self.write_axes, sizes, strict=True):
            shape[axis] = size
        labels.of[self.output] = target.transpose(np.argsort(self.write_axes)).reshape(shape)

    def table(self, facts: Facts) -> NDArray:
        """(groups, inputs, outputs), not 0 where the output depends on the input at all. Each weight is read once.

        A large kernel that has no other axes is its own table.
        """
        table = facts.tables.get((self.kernel, self.read_slots))
        if table is None:
            grouped = self._grouped(facts.weight(self.kernel))
            if grouped.ndim == 3 and grouped.size > _LARGE:
                return grouped
            table = (grouped != 0).any(axis=tuple(range(grouped.ndim - 3)))
            facts.tables[self.kernel, self.read_slots] = table
        return table

    def _grouped(self, kernel: np.ndarray) -> np.ndarray:
        """The kernel as (..., groups, inputs of a group, outputs of a group)."""
        kernel = kernel.reshape(self.split)
        axes = (*self.read_slots, *self.write_slots)
        others = tuple(axis for axis in range(kernel.ndim) if axis not in axes)
        if self.groups > 1:
            return kernel.transpose(*others, self.read_slots[0], self.read_slots[1], self.write_slots[1])
        kernel = kernel.transpose(*others, *self.read_slots, *self.write_slots)
        inputs = math.prod(self.kernel.shape[axis] for axis in self.read_slots)
        return kernel.reshape(*(self.split[axis] for axis in others), 1, inputs, -1)

    def sums(self, facts: Facts, constants: Floats) -> Floats:
        """What constant inputs add to each output, flat; exact only where nothing is padded.

        Args:
            constants: one number an input, flat.
        """
        grouped = self._grouped(facts.weight(self.kernel))
        by_group = constants.reshape(self.groups, -1)
        rows = np.flatnonzero(by_group.any(axis=0))
        total = grouped[..., rows, :].astype(np.float64).sum(axis=tuple(range(grouped.ndim - 3)))
        return np.einsum("gi,gio->go", by_group[:, rows], total).ravel()

    def constants_read(self, facts: Facts) -> Floats:
        """The constant of each input, flat over the read axes; NaN where unknown or different across positions."""
        value = self.inputs[0]
        constant = facts.constant[value]
        others = tuple(axis for axis in range(constant.ndim) if axis not in self.read_axes)
        if any(constant.shape[axis] > 1 for axis in others):
            first = constant.min(axis=others, keepdims=True)
            constant = np.where((constant == first).all(axis=others, keepdims=True), first, np.nan)
        sizes = [1] * constant.ndim
        for axis, size in zip(self.read_axes, self._read_sizes(), strict=True):
            sizes[axis] = size
        constant = np.broadcast_to(constant, sizes)
        rest = tuple(axis for axis in range(constant.ndim) if axis not in self.read_axes)
        return constant.transpose(*self.read_axes, *rest).ravel()

    def forward(self, facts: Facts) -> None:
        if not self.write:
            facts.constant[self.output] = np.full(facts.labels[self.output].shape, np.nan)
            return
        table = self.table(facts)
        constant = self.constants_read(facts)
        unknown = np.isnan(constant)
        known = ~unknown & (constant != 0)
        if self.pads:
            unknown, known = unknown | known, np.zeros_like(known)
        moving = reached(table, unknown.reshape(self.groups, -1))
        result = np.where(moving.ravel(), np.nan, 0.0)
        if known.any():
            result = result + self.sums(facts, np.where(known, constant, 0.0))
        if self.bias is not None:
            result = result + np.asarray(facts.weight(self.bias), np.float64).ravel()
        result = np.where(np.isfinite(result), result, np.nan)
        shape = facts.labels[self.output].shape
        facts.constant[self.output] = result.reshape(self.sizes).transpose(np.argsort(self.write_axes)).reshape(shape)

    def backward(self, facts: Facts) -> None:
        read = facts.read[self.output]
        others = tuple(axis for axis in range(read.ndim) if axis not in self.write_axes)
        wanted = np.transpose(read.any(axis=others, keepdims=True), (*self.write_axes, *others)).ravel()
        table = self.table(facts)
        needed = reached(table.swapaxes(1, 2), wanted.reshape(self.groups, -1))
        self.demand_inputs(facts, needed.ravel())

    def unfoldable(self, facts: Facts) -> dict[int, Bools]:
        return unfoldable_constants(self, facts, self.folds and not self.pads, self.read_axes)

    def why_unfoldable(self, constant: float, writer: str) -> str:
        if self.pads:
            return f"{constant:.3g} after {writer} crosses the padded {self.layer}"
        return f"{constant:.3g} after {writer} cannot become a bias of {self.layer}, which is shared or has none"

    def shift(self, facts: Facts, new: Narrowing) -> Floats | None:
        if self.pads or not self.folds:
            return None
        constant = self.constants_read(facts)
        gone = np.isfinite(constant) & (constant != 0)
        gone[new.indices[self.kernel, self.roles[0]].ravel()] = False
        if not gone.any():
            return None
        shift = self.sums(facts, np.where(gone, constant, 0.0))
        return shift if shift.any() else None

    def dead(self, facts: Facts) -> dict[Weight, Bools]:
        if not self.write or self.roles[1] != "write":
            return {}
        return {self.kernel: ~self.table(facts).any(axis=1).ravel()}

    def demand_inputs(self, facts: Facts, needed: Bools) -> None:
        """Pass `needed`, flat over the read axes, on to the value that is read."""
        value = self.inputs[0]
        sizes = self._read_sizes()
        full = [1] * facts.labels[value].ndim
        for axis, size in zip(self.read_axes, sizes, strict=True):
            full[axis] = size
        facts.demand(value, needed.reshape(sizes).transpose(np.argsort(self.read_axes)).reshape(full))

    def narrow(self, new: Narrowing) -> None:
        value = self.inputs[0]
        source = new.positions_everywhere(value, self.read_axes)
        reads, writes = self.roles
        if not self.write:
            if new.empty(value):
                raise Violation(new.labels[value].ravel()[:1], f"{self.layer} would have nothing left to read")
            new.fix(self.kernel, reads, source, new.labels[value])
            new.kept[self.output] = np.zeros(new.labels[self.output].shape, np.intp)
            return
        slot = new.slots[self.kernel, writes]
        target = np.flatnonzero(new.keep[slot.labels.ravel()])
        if self.groups > 1:
            self._narrow_groups(new, source.ravel(), target)
        elif new.empty(value) and target.size:
            # One channel that it may read, so that it can write its constants.
            raise Violation(new.labels[value].ravel()[:1], f"{self.layer} would have nothing left to read")
        target = self._rectangle(target, slot.labels)
        if self.read:
            new.fix(self.kernel, reads, source, new.labels[value])
        new.fix(self.kernel, writes, target, new.labels[self.output])
        if self.bias is not None:
            new.fix(self.bias, "bias", target, new.labels[self.output])
        self._place(new, target)

    def _rectangle(self, target: Indices, labels: Indices) -> Indices:
        """The flat positions that are left, shaped as the axes that are left.

        Each head may have lost other channels, but all must have lost equally many.

        Raises:
            Violation: with labels that make them even.
        """
        if len(self.sizes) < 2:
            return target
        heads, size = math.prod(self.sizes[:-1]), self.sizes[-1]
        counts = np.bincount(target // size, minlength=heads)
        alive, most = counts > 0, int(counts.max(initial=0))
        if (counts[alive] < most).any():
            by_head = labels.reshape(heads, size)
            short = [
                _first_missing(by_head[head], target[target // size == head] % size, most - counts[head])
                for head in np.flatnonzero(alive & (counts < most))
            ]
            raise Violation(np.concatenate(short), f"{self.layer} would have heads of different sizes")
        left = [len(np.unique(index)) for index in np.unravel_index(np.flatnonzero(alive), self.sizes[:-1])]
        if math.prod(left) != int(alive.sum()):
            raise Violation(labels, f"{self.layer} would have heads that are no grid")
        return target.reshape(*left, most)

    def _place(self, new: Narrowing, target: Indices) -> None:
        """Say where the written channels are in the new output."""
        order = np.argsort(self.write_axes)
        shape = [1] * len(new.shapes[self.output])
        for axis, size in zip(self.write_axes, target.shape, strict=True):
            shape[axis] = size
        # Positions count along the label array, whose axes may come in another order than the kernel's.
        where = np.arange(math.prod(self.sizes)).reshape([self.sizes[i] for i in order])
        flat = where.transpose(np.argsort(order)).ravel()[target]
        new.kept[self.output] = flat.transpose(order).reshape(shape)

    def _narrow_groups(self, new: Narrowing, source: Indices, target: Indices) -> None:
        """Groups must stay rectangular: all of one size, or gone altogether.

        Raises:
            Violation: with the labels that make the groups even again.
        """
        inputs, outputs = (new.slots[self.kernel, role].labels for role in self.roles)
        per_input, per_output = inputs.shape[1], outputs.shape[1]
        sources = [source[source // per_input == group] for group in range(self.groups)]
        targets = [target[target // per_output == group] for group in range(self.groups)]
        # A group that nobody writes to or reads from goes whole; half a group needs its other half back.
        for group in range(self.groups):
            if bool(len(sources[group])) != bool(len(targets[group])):
                missing = inputs[group, :1] if len(targets[group]) else outputs[group, :1]
                raise Violation(missing, f"{self.layer} would have a group with only one side left")
        for name, parts, all_labels in (("inputs", sources, inputs), ("outputs", targets, outputs)):
            sizes = [len(part) for part in parts if len(part)]
            if len(set(sizes)) > 1:
                short = [
                    _first_missing(all_labels[group], part % all_labels.shape[1], max(sizes) - len(part))
                    for group, part in enumerate(parts)
                    if len(part)
                ]
                raise Violation(np.concatenate(short), f"{self.layer}'s groups would have uneven {name}")
        alive = [group for group in range(self.groups) if len(sources[group])]
        if not np.array_equal(source, np.concatenate([*(sources[group] for group in alive), source[:0]])):
            raise Violation(inputs, f"{self.layer}'s groups would be mixed up")
        new.groups[self.kernel] = len(alive)


@dataclass(eq=False)
class OverPositions(Spatial):
    """A kernel that mixes positions and is the same for every channel: the token-mixing layers of an MLP-Mixer.

    What it writes are positions, which stay.
    """

    kernel: Weight | None = None
    positions: int = 0

    def weights(self) -> tuple[Weight, ...]:
        return (self.kernel,) if self.kernel is not None else ()

    def macs(self, sizes: Callable[[Weight], int]) -> int:
        return self.positions * sum(map(sizes, self.weights()))


def _unknown(constants: NDArray) -> NDArray:
    return np.full(constants.shape, np.nan)


def reached(table: NDArray, chosen: Bools) -> Bools:
    """Which columns have an entry that is not 0 in one of the chosen rows.

    Args:
        table: shape (groups, rows, columns).
        chosen: shape (groups, rows).

    >>> reached(np.array([[[1.0, 0.0], [0.0, 2.0]]]), np.array([[True, False]])).tolist()
    [[True, False]]
    """
    if chosen.all():
        return np.asarray(table.any(axis=1))
    result = np.zeros((table.shape[0], table.shape[2]), bool)
    step = max(1, _LARGE // max(1, table.shape[0] * table.shape[2]))
    for start in range(0, table.shape[1], step):
        rows = slice(start, start + step)
        if chosen[:, rows].any():
            result |= ((table[:, rows] != 0) & chosen[:, rows, None]).any(axis=1)
    return result


def _first_missing(labels: Indices, present: Indices, count: int) -> Indices:
    """The first `count` labels whose positions are not in `present`."""
    return labels[np.setdiff1d(np.arange(len(labels)), present)[:count]]


@dataclass(eq=False)
class Depthwise(Op):
    """Each input channel has its own outputs: depthwise convolutions, and grouped ones with one input a group.

    Output `channel * multiplier + j` is input `channel`'s, and carries its label.

    Attributes:
        axis: the channel axis of both values.
        split: the kernel's shape as (..., channels, multiplier), in that order and with `axes` naming the two.
    """

    kernel: Weight
    axis: int
    split: tuple[int, ...]
    axes: tuple[int, int]
    bias: Weight | None = None
    pads: bool = False
    positions: int = 0

    def __post_init__(self) -> None:
        self.channels, self.multiplier = (self.split[axis] for axis in self.axes)

    def weights(self) -> tuple[Weight, ...]:
        return (self.kernel,) if self.bias is None else (self.kernel, self.bias)

    def macs(self, sizes: Callable[[Weight], int]) -> int:
        return self.positions * sizes(self.kernel)

    def label(self, labels: Labels, shapes: dict[int, Shape]) -> None:
        value = self.inputs[0]
        source = along(labels, labels.of[value], shapes[value], (self.axis,))
        labels.bind(self.kernel, "depthwise", source, self.split, self.axes[:1])
        target = source if self.multiplier == 1 else np.repeat(source, self.multiplier)
        if self.bias is not None:
            labels.bind(self.bias, "bias", target, (target.size,), (0,))
        labels.of[self.output] = self._shaped(target, len(shapes[self.output]))

    def _shaped(self, flat: np.ndarray, rank: int) -> np.ndarray:
        return flat.reshape([-1 if axis == self.axis else 1 for axis in range(rank)])

    def _weights(self, facts: Facts) -> np.ndarray:
        """(channels, multiplier, values of one filter)"""
        kernel = facts.weight(self.kernel).reshape(self.split)
        others = tuple(axis for axis in range(kernel.ndim) if axis not in self.axes)
        return kernel.transpose(*self.axes, *others).reshape(self.channels, self.multiplier, -1)

    def table(self, facts: Facts) -> Bools:
        table = facts.tables.get((self.kernel, self.axes))
        if table is None:
            table = facts.tables[self.kernel, self.axes] = (self._weights(facts) != 0).any(axis=2)
        return table

    def forward(self, facts: Facts) -> None:
        constant = facts.constant[self.inputs[0]]
        others = tuple(axis for axis in range(constant.ndim) if axis != self.axis)
        if any(constant.shape[axis] > 1 for axis in others):
            constant = np.where((constant == 0).all(axis=others, keepdims=True), 0.0, np.nan).max(
                axis=others, keepdims=True
            )
        flat = np.broadcast_to(constant.ravel(), self.channels)[:, None]
        if self.pads:
            flat = np.where(flat == 0, 0.0, np.nan)
        table = self.table(facts)
        result = np.where(table & np.isnan(flat), np.nan, 0.0)
        moved = table & np.isfinite(flat) & (flat != 0)
        if moved.any():
            sums = np.asarray(self._weights(facts), np.float64).sum(axis=2)
            result = result + np.where(moved, sums * np.nan_to_num(flat), 0.0)
        result = result.ravel()
        if self.bias is not None:
            result = result + facts.weight(self.bias)
        facts.constant[self.output] = self._shaped(result, facts.labels[self.output].ndim)

    def backward(self, facts: Facts) -> None:
        read = facts.read[self.output]
        others = tuple(axis for axis in range(read.ndim) if axis != self.axis)
        wanted = read.any(axis=others).reshape(self.channels, self.multiplier)
        needed: Bools = np.any(wanted & self.table(facts), axis=1)
        facts.demand(self.inputs[0], self._shaped(needed, facts.labels[self.inputs[0]].ndim))

    def narrow(self, new: Narrowing) -> None:
        value = self.inputs[0]
        source = new.positions_everywhere(value, (self.axis,))
        new.fix(self.kernel, "depthwise", source, new.labels[value])
        target = source
        if self.multiplier > 1:
            target = (source[:, None] * self.multiplier + np.arange(self.multiplier)).ravel()
        if self.bias is not None:
            new.fix(self.bias, "bias", target, new.labels[value])
        new.kept[self.output] = self._shaped(target, len(new.shapes[self.output]))
