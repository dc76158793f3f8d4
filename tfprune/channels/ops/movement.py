"""Ops that only move channels: each is the same numpy call on the tensor, on its labels and on its facts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tfprune.channels.labels import Indices, Labels, Shape, expand, varies
from tfprune.channels.ops.base import Facts, Narrowing, Op, Violation
from tfprune.channels.ops.elementwise import Spatial


@dataclass(eq=False)
class Rearrange(Op):
    """A numpy function on label arrays.

    A subclass says how its inputs are `prepared` (made as large as the move needs) and `move`d. All else follows:
    constants move as labels do, what is read moves back, and in the smaller model every position is traced to the
    position it came from.
    """

    def prepared(self, arrays: list[NDArray], shapes: list[Shape]) -> list[NDArray]:
        """Broadcast each input along the axes that the move merges or splits."""
        raise NotImplementedError

    def move(self, arrays: list[NDArray], old: Shape) -> NDArray:
        """The move itself; `old` is the original output shape. Must also work on arrays that lost positions.

        Raises:
            ValueError: what is left cannot be moved so.
        """
        raise NotImplementedError

    def label(self, labels: Labels, shapes: dict[int, Shape]) -> None:
        sizes = [shapes[value] for value in self.inputs]
        self._sizes = sizes
        arrays = self.prepared([labels.of[value] for value in self.inputs], sizes)
        self._prepared = [array.shape for array in arrays]
        labels.of[self.output] = self.move(arrays, shapes[self.output])

    def forward(self, facts: Facts) -> None:
        arrays = self.prepared([facts.constant[value] for value in self.inputs], self._sizes)
        facts.constant[self.output] = self.move(arrays, facts.labels[self.output].shape)

    def _sources(self, old: Shape) -> Indices:
        """For each output position, which input position (counted over all prepared inputs) it is."""
        offset, arrays = 0, []
        for shape in self._prepared:
            size = math.prod(shape)
            arrays.append(np.arange(offset, offset + size).reshape(shape))
            offset += size
        return self.move(arrays, old)

    def backward(self, facts: Facts) -> None:
        read = facts.read[self.output]
        counts = np.bincount(
            self._sources(read.shape).ravel(), weights=read.ravel(), minlength=sum(map(math.prod, self._prepared))
        )
        offset = 0
        for value, shape in zip(self.inputs, self._prepared, strict=True):
            size = math.prod(shape)
            facts.demand(value, counts[offset : offset + size].reshape(shape) > 0)
            offset += size

    def narrow(self, new: Narrowing) -> None:
        old = new.labels[self.output].shape
        if all(map(new.empty, self.inputs)):
            new.kept[self.output] = np.zeros((0,) * len(old), np.intp)
            return
        ids, offset = [], 0
        for value, prepared in zip(self.inputs, self._prepared, strict=True):
            ids.append(self._ids(new.kept[value], new.labels[value].shape, prepared) + offset)
            offset += math.prod(prepared)
        try:
            moved = self.move(ids, new.shapes[self.output])
        except ValueError as error:
            raise Violation(self.missed(new, error), f"{self.layer} cannot rearrange what would be left") from error
        new.kept[self.output] = _match(self._sources(old), moved)

    def missed(self, new: Narrowing, error: ValueError) -> Indices:
        """The labels that have to come back for the move to be possible."""
        return np.concatenate([new.labels[value].ravel() for value in self.inputs])

    def _ids(self, kept: Indices, own: tuple[int, ...], prepared: tuple[int, ...]) -> Indices:
        """The prepared positions of what is kept: compact axes are stretched as `prepared` stretched them."""
        if not kept.size:
            return np.zeros((0,) * len(own), np.intp)
        coordinates = list(np.unravel_index(kept, own))
        stretched = tuple(axis for axis in range(len(own)) if own[axis] == 1 and prepared[axis] > 1)
        shape = tuple(prepared[axis] if axis in stretched else kept.shape[axis] for axis in range(kept.ndim))
        result = np.zeros(shape, np.intp)
        for axis in range(len(own)):
            if axis in stretched:
                along = np.arange(prepared[axis]).reshape([-1 if i == axis else 1 for i in range(len(own))])
            else:
                along = coordinates[axis]
            result = result * prepared[axis] + along
        return result


def _match(before: Indices, after: Indices) -> Indices:
    """Where in `before` (flat) each entry of `after` is; the k-th of several equal ones is the k-th there."""
    flat = before.ravel()
    order = np.argsort(flat, kind="stable")
    ordered = flat[order]
    wanted = after.ravel()
    start = np.searchsorted(ordered, wanted)
    if len(flat) and ordered[0] <= ordered[-1] and not (np.diff(ordered) == 0).any():
        return order[start].reshape(after.shape)
    rank = np.argsort(np.argsort(wanted, kind="stable"), kind="stable")
    first = np.searchsorted(np.sort(wanted), wanted)
    return order[start + rank - first].reshape(after.shape)


@dataclass(eq=False)
class Permute(Rearrange):
    """Transpose: `axes[i]` is the input axis that becomes output axis i, the batch axis not counted."""

    axes: tuple[int, ...]

    def prepared(self, arrays: list[NDArray], shapes: list[Shape]) -> list[NDArray]:
        return arrays

    def move(self, arrays: list[NDArray], old: Shape) -> NDArray:
        return arrays[0].transpose(self.axes)


@dataclass(eq=False)
class Gather(Rearrange):
    """Slices, one part of a split, flips, rolls, repeats: output position i along one axis is the input's select[i].

    Attributes:
        select: from the size of the axis to the indices that are taken.
        rewritable: whether the call can be written with any other indices too. If not, what is left must be what the
            same call takes from the narrower input.
    """

    axis: int
    select: Callable[[int], Indices]
    rewritable: bool = False

    def settled(self, labels: Labels, shapes: dict[int, Shape]) -> Op:
        if varies(labels.of[self.inputs[0]], (self.axis,)):
            return self
        return Spatial(self.layer, self.inputs, self.outputs, None, (self.axis,))

    def label(self, labels: Labels, shapes: dict[int, Shape]) -> None:
        self._indices = np.asarray(self.select(labels.of[self.inputs[0]].shape[self.axis]), np.intp)
        super().label(labels, shapes)

    def prepared(self, arrays: list[NDArray], shapes: list[Shape]) -> list[NDArray]:
        return arrays

    def move(self, arrays: list[NDArray], old: Shape) -> NDArray:
        return np.take(arrays[0], self._indices, axis=self.axis)

    def narrow(self, new: Narrowing) -> None:
        value, labels = self.inputs[0], new.labels[self.output]
        if new.empty(value):
            new.kept[self.output] = np.zeros((0,) * labels.ndim, np.intp)
            return
        along = new.positions(value, (self.axis,))
        taken = taken_from(along, self._indices)
        staying = np.flatnonzero(taken >= 0)
        if not self.rewritable and not is_natural(self.select, len(along), taken[staying]):
            raise Violation(new.labels[value], f"{self.layer} cannot be written with what would be left")
        moved = np.take(new.kept[value], taken[staying], axis=self.axis)
        coordinates = list(np.unravel_index(moved, new.labels[value].shape))
        line = staying.reshape([-1 if axis == self.axis else 1 for axis in range(labels.ndim)])
        coordinates[self.axis] = np.broadcast_to(line, moved.shape)
        new.kept[self.output] = np.ravel_multi_index(coordinates, labels.shape)


def taken_from(left: Indices, indices: Indices) -> Indices:
    """Where the old positions `indices` are among those that are left; -1 where they are gone.

    >>> taken_from(np.array([0, 2, 3]), np.array([1, 2, 3])).tolist()
    [-1, 1, 2]
    """
    where = np.full(max(left.max(initial=-1), indices.max(initial=-1)) + 1, -1)
    where[left] = np.arange(len(left))
    return where[indices]


def is_natural(select: Callable[[int], Indices], size: int, indices: Indices) -> bool:
    """Whether `indices` are what `select` takes from an axis of this size."""
    try:
        return np.array_equal(select(size), indices)
    except (ValueError, IndexError):
        return False


@dataclass(eq=False)
class Pad(Rearrange):
    """Constants before and after what is there along one axis. Along channels they are channels too, and may go.

    Attributes:
        before, after: how many.
        fill: what they hold; NaN if that is not known.
    """

    axis: int
    before: int
    after: int
    fill: float = 0.0

    def settled(self, labels: Labels, shapes: dict[int, Shape]) -> Op:
        if varies(labels.of[self.inputs[0]], (self.axis,)):
            return self
        return Spatial(self.layer, self.inputs, self.outputs, None, (self.axis,), True, self.fill)

    def obstacle(self, labels: Labels, shapes: dict[int, Shape]) -> str | None:
        source = labels.of[self.inputs[0]]
        others = tuple(axis for axis in range(source.ndim) if axis != self.axis)
        if varies(source, (self.axis,)) and varies(source, others):
            return f"{self.layer} pads an axis that holds channels of several kinds"
        return None

    def _padded(self, array: NDArray, pads: NDArray) -> NDArray:
        shape = [-1 if axis == self.axis else 1 for axis in range(array.ndim)]
        return np.concatenate(
            [pads[: self.before].reshape(shape), array, pads[self.before :].reshape(shape)], axis=self.axis
        )

    def label(self, labels: Labels, shapes: dict[int, Shape]) -> None:
        source = labels.of[self.inputs[0]]
        labels.of[self.output] = self._padded(source, labels.fresh(self.before + self.after))

    def forward(self, facts: Facts) -> None:
        pads = np.full(self.before + self.after, self.fill)
        facts.constant[self.output] = self._padded(facts.constant[self.inputs[0]], pads)

    def backward(self, facts: Facts) -> None:
        size = facts.labels[self.inputs[0]].shape[self.axis]
        inside = np.arange(self.before, self.before + size)
        facts.demand(self.inputs[0], np.take(facts.read[self.output], inside, axis=self.axis))

    def narrow(self, new: Narrowing) -> None:
        value, labels = self.inputs[0], new.labels[self.output]
        size = new.labels[value].size
        stays = np.flatnonzero(new.keep[labels.ravel()])
        pads = stays[(stays < self.before) | (stays >= self.before + size)]
        inside = new.kept[value].ravel() + self.before
        if pads.size and not inside.size:
            raise Violation(new.labels[value].ravel()[:1], f"{self.layer} would have nothing left to pad")
        left = np.concatenate([pads[pads < self.before], inside, pads[pads >= self.before]])
        new.kept[self.output] = left.reshape([-1 if axis == self.axis else 1 for axis in range(labels.ndim)])


@dataclass(eq=False)
class Concatenate(Rearrange):
    """Concatenation along one axis. An input of which nothing is left drops out."""

    axis: int

    def settled(self, labels: Labels, shapes: dict[int, Shape]) -> Op:
        if any(labels.of[value].shape[self.axis] > 1 for value in self.inputs):
            return self
        return Stack(self.layer, self.inputs, self.outputs, self.axis)

    def prepared(self, arrays: list[NDArray], shapes: list[Shape]) -> list[NDArray]:
        arrays = [expand(array, shape, (self.axis,)) for array, shape in zip(arrays, shapes, strict=True)]
        others = [tuple(size for axis, size in enumerate(a.shape) if axis != self.axis) for a in arrays]
        common = np.broadcast_shapes(*others)
        return [np.broadcast_to(a, (*common[: self.axis], a.shape[self.axis], *common[self.axis :])) for a in arrays]

    def move(self, arrays: list[NDArray], old: Shape) -> NDArray:
        return np.concatenate([array for array in arrays if array.size] or arrays[:1], axis=self.axis)


@dataclass(eq=False)
class Stack(Op):
    """Concatenation along an axis that holds no channels: the inputs' channels lie behind each other, tied."""

    axis: int

    def label(self, labels: Labels, shapes: dict[int, Shape]) -> None:
        arrays = np.broadcast_arrays(*(labels.of[value] for value in self.inputs))
        for other in arrays[1:]:
            labels.tie(arrays[0], other)
        labels.of[self.output] = arrays[0]

    def forward(self, facts: Facts) -> None:
        arrays = np.broadcast_arrays(*(facts.constant[value] for value in self.inputs))
        same = np.logical_and.reduce([array == arrays[0] for array in arrays])
        facts.constant[self.output] = np.where(same, arrays[0], np.nan)

    def backward(self, facts: Facts) -> None:
        for value in self.inputs:
            facts.demand(value, facts.read[self.output])

    def narrow(self, new: Narrowing) -> None:
        kept = [new.kept[value] for value in self.inputs]
        shapes = [new.labels[value].shape for value in self.inputs]
        if any(shape != shapes[0] for shape in shapes) or any(not np.array_equal(k, kept[0]) for k in kept):
            dead = np.concatenate([new.labels[value].ravel() for value in self.inputs])
            if new.keep[dead].all():
                new.kept[self.output] = np.arange(new.labels[self.output].size).reshape(new.labels[self.output].shape)
                return
            raise Violation(dead, f"{self.layer} would stack channels that no longer match")
        new.kept[self.output] = kept[0]


class _Uneven(ValueError):
    """What is left of a reshape's axes is so many positions short of even groups."""

    def __init__(self, axes: tuple[int, ...], groups: int, short: int):
        super().__init__(f"{short} positions are missing for {groups} even groups")
        self.axes, self.groups, self.short = axes, groups, short


@dataclass(eq=False)
class Reshape(Rearrange):
    """Reshape, Flatten, squeezing and adding axes. The new shape is found again from what is left, never patched.

    Attributes:
        blocks: (input axes, output axes) that hold the same positions, see `reshape_blocks`.
        tiles: whether an axis of unknown size may be merged with channels behind it, as a batch with heads. The merged
            axis has the labels of one sample, over and over.
    """

    blocks: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    tiles: bool = False

    def obstacle(self, labels: Labels, shapes: dict[int, Shape]) -> str | None:
        old, new = shapes[self.inputs[0]], shapes[self.output]
        for inputs, outputs in self._varying(labels.of[self.inputs[0]]):
            sizes = [old[axis] for axis in inputs], [new[axis] for axis in outputs]
            if self.tiles and all(map(_unknown_first, sizes)) and self._fits(labels, inputs, sizes):
                continue
            if None in sizes[0] + sizes[1]:
                return f"{self.layer} merges channels with an axis of unknown size"
        return None

    def _fits(self, labels: Labels, inputs: tuple[int, ...], sizes: tuple[list[int | None], list[int | None]]) -> bool:
        """Whether a block's channels are the known sizes of the output, once or several times."""
        array = labels.of[self.inputs[0]]
        own = zip(inputs, sizes[0], strict=True)
        there = math.prod(array.shape[axis] if size is None else size for axis, size in own)
        known = math.prod(size for size in sizes[1] if size is not None)
        return there == known if None not in sizes[1] else there % known == 0

    def _varying(self, array: NDArray) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        return [block for block in self.blocks if any(array.shape[axis] > 1 for axis in block[0])]

    def label(self, labels: Labels, shapes: dict[int, Shape]) -> None:
        self._full = shapes[self.output]
        self._moved = self._varying(labels.of[self.inputs[0]])
        if self.tiles:
            self._full = self._sizes_of_one(labels.of[self.inputs[0]], shapes)
        super().label(labels, shapes)
        self._keep_even(labels, labels.of[self.output])

    def _sizes_of_one(self, array: Indices, shapes: dict[int, Shape]) -> Shape:
        """The output's sizes for one sample: what is left over of a block's channels is along its unknown axis."""
        result = list(shapes[self.output])
        old = shapes[self.inputs[0]]
        for inputs, outputs in self._moved:
            unknown = [axis for axis in outputs if result[axis] is None]
            if unknown:
                there = math.prod(array.shape[axis] if old[axis] is None else old[axis] or 1 for axis in inputs)
                result[unknown[-1]] = there // math.prod(result[axis] or 1 for axis in outputs)
        return tuple(result)

    def _keep_even(self, labels: Labels, array: Indices) -> None:
        """Have selection take as many of each group, where one axis becomes groups and channels in them."""
        for _, outputs in self._moved:
            wide = [axis for axis in outputs if array.shape[axis] > 1]
            groups = math.prod(array.shape[axis] for axis in wide[:-1])
            if len(wide) > 1 and array.shape[wide[-1]] >= groups:
                first = tuple(slice(0, 1) if axis in wide[:-1] else slice(None) for axis in range(array.ndim))
                labels.lockstep(array, array[first])

    def prepared(self, arrays: list[NDArray], shapes: list[Shape]) -> list[NDArray]:
        axes = tuple(axis for inputs, _ in self._moved for axis in inputs)
        return [expand(arrays[0], shapes[0], axes)]

    def move(self, arrays: list[NDArray], old: Shape) -> NDArray:
        target = [1] * len(old)
        for inputs, outputs in self._moved:
            for axis, size in zip(outputs, self._sizes_left(arrays[0], inputs, outputs), strict=True):
                target[axis] = size
        return arrays[0].reshape(target)

    def _sizes_left(self, array: NDArray, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> list[int]:
        """The sizes of a block's output axes for what is left of its input axes.

        Raises:
            ValueError: no sizes fit.
        """
        left = math.prod(array.shape[axis] for axis in inputs)
        full = [self._full[axis] or 1 for axis in outputs]
        if left == math.prod(full):
            return full
        wide = [index for index, size in enumerate(full) if size != 1]
        if len(wide) == 1:
            return [left if index == wide[0] else 1 for index in range(len(full))]
        counts = self._grid(array, inputs, full)
        if counts is not None:
            return counts
        groups = math.prod(full[:-1])
        if left % groups:
            raise _Uneven(outputs, groups, -left % groups)
        return [*full[:-1], left // groups]

    def missed(self, new: Narrowing, error: ValueError) -> Indices:
        """As few as make the groups even, of those groups that lost most."""
        if not isinstance(error, _Uneven):
            return super().missed(new, error)
        labels = np.moveaxis(new.labels[self.output], error.axes, range(len(error.axes))).reshape(error.groups, -1)
        gone = ~new.keep[labels]
        order = np.argsort(-gone.sum(axis=1), kind="stable")
        return np.array(list(dict.fromkeys(labels[order][gone[order]].tolist()))[: error.short], np.intp)

    def _grid(self, ids: Indices, inputs: tuple[int, ...], full: list[int]) -> list[int] | None:
        """The sizes of what is left, if it is a grid over the output axes (whole heads, whole groups)."""
        others = tuple(axis for axis in range(ids.ndim) if axis not in inputs)
        flat = ids.transpose(*inputs, *others).reshape(math.prod(ids.shape[axis] for axis in inputs), -1)
        if not flat.size:
            return None
        coordinates = np.unravel_index(flat[:, 0], self._prepared[0])
        within = np.zeros(len(flat), np.intp)
        for axis in inputs:
            within = within * self._prepared[0][axis] + coordinates[axis]
        grid = np.unravel_index(within, full)
        counts = [len(np.unique(index)) for index in grid]
        if math.prod(counts) != len(flat):
            return None
        for axis, index in enumerate(grid):
            lines = np.moveaxis(index.reshape(counts), axis, -1).reshape(-1, counts[axis])
            if (lines != lines[0]).any():
                return None
        return counts


def _unknown_first(sizes: list[int | None]) -> bool:
    unknown = sum(size is None for size in sizes)
    return None not in sizes[unknown:]


def reshape_blocks(old: Shape, new: Shape) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    """Split a reshape into the finest blocks of axes that hold the same positions.

    Axes of unknown size, and what lies between them, are one block.

    >>> reshape_blocks((7, 7, 64), (7, 7, 8, 8))
    (((0,), (0,)), ((1,), (1,)), ((2,), (2, 3)))
    >>> reshape_blocks((None, None, 64), (None, 8, 8))
    (((0, 1), (0,)), ((2,), (1, 2)))
    """
    front = _blocks(old, new)
    i, j = sum(len(a) for a, _ in front), sum(len(b) for _, b in front)
    back = _blocks(old[i:][::-1], new[j:][::-1])
    k, m = len(old) - sum(len(a) for a, _ in back), len(new) - sum(len(b) for _, b in back)
    middle = [(tuple(range(i, k)), tuple(range(j, m)))] if k > i or m > j else []
    mirrored = [
        (tuple(len(old) - 1 - axis for axis in a[::-1]), tuple(len(new) - 1 - axis for axis in b[::-1]))
        for a, b in back[::-1]
    ]
    return (*front, *middle, *mirrored)


def _blocks(old: Shape, new: Shape) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The blocks from the front, as far as all sizes are known."""
    blocks: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        ends, sizes = [i, j], [1, 1]
        while ends == [i, j] or sizes[0] != sizes[1]:
            behind = 0 if ends[0] == i or (sizes[0] < sizes[1] and ends[1] > j) else 1
            shape = (old, new)[behind]
            if ends[behind] == len(shape):
                behind = 1 - behind
                shape = (old, new)[behind]
            if ends[behind] == len(shape) or shape[ends[behind]] is None:
                return blocks
            sizes[behind] *= shape[ends[behind]] or 1
            ends[behind] += 1
        blocks.append((tuple(range(i, ends[0])), tuple(range(j, ends[1]))))
        i, j = ends
    return blocks
