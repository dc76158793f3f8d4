"""Ops that work on each channel by itself, or on the same channel of several values."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tfprune.channels.labels import Indices, Labels, Shape, along, one_along, varies
from tfprune.channels.ops.base import Bools, Facts, Floats, Narrowing, Op, Violation
from tfprune.channels.weights import Weight


@dataclass(eq=False)
class Source(Op):
    """A value that comes from outside: a model input, or an array written into the model.

    Attributes:
        axes: along which its channels may be removed; none for an input, whose shape is the user's.
        array: the numbers, where they are known.
    """

    axes: tuple[int, ...] = ()
    array: NDArray | None = None

    @property
    def known(self) -> bool:
        """Whether it is the same whatever the model is given."""
        return self.array is not None

    def label(self, labels: Labels, shapes: dict[int, Shape]) -> None:
        shape = shapes[self.output]
        if not self.axes:
            reason = "it is an input of the model" if self.array is None else f"an array in {self.layer} spans it"
            labels.of[self.output] = labels.protected_value(len(shape), reason)
            return
        sizes = [(shape[axis] or 1) if axis in self.axes else 1 for axis in range(len(shape))]
        labels.of[self.output] = labels.fresh(math.prod(sizes)).reshape(sizes)

    def forward(self, facts: Facts) -> None:
        shape = facts.labels[self.output].shape
        constant = np.full(shape, np.nan)
        if self.array is not None:
            array = np.asarray(self.array, np.float64)
            uneven = tuple(axis for axis in range(array.ndim) if shape[axis] == 1)
            low, high = array.min(axis=uneven, keepdims=True), array.max(axis=uneven, keepdims=True)
            constant = np.where(low == high, low, np.nan)
        facts.constant[self.output] = constant

    def backward(self, facts: Facts) -> None:
        pass

    def narrow(self, new: Narrowing) -> None:
        labels = new.labels[self.output]
        if not self.axes:
            new.kept[self.output] = np.zeros(labels.shape, np.intp)
            return
        left = np.flatnonzero(new.keep[labels.ravel()])
        counts = [
            len(np.unique(index)) if size > 1 else 1
            for index, size in zip(np.unravel_index(left, labels.shape), labels.shape, strict=True)
        ]
        if math.prod(counts) != left.size:
            raise Violation(labels, f"an array in {self.layer} would stop being rectangular")
        new.kept[self.output] = left.reshape(counts)


@dataclass(eq=False)
class Map(Op):
    """Elementwise: activations, dropout at inference, a scalar added or multiplied.

    Attributes:
        function: what happens to a constant; None for the identity.
    """

    function: Callable[[NDArray], NDArray] | None = None

    def label(self, labels: Labels, shapes: dict[int, Shape]) -> None:
        labels.of[self.output] = labels.of[self.inputs[0]]

    def forward(self, facts: Facts) -> None:
        constant = facts.constant[self.inputs[0]]
        if self.function is not None:
            constant = applied(self.function, constant)
        facts.constant[self.output] = constant

    def backward(self, facts: Facts) -> None:
        facts.demand(self.inputs[0], facts.read[self.output])

    def narrow(self, new: Narrowing) -> None:
        new.kept[self.output] = new.kept[self.inputs[0]]


def applied(function: Callable[[NDArray], NDArray], constant: Floats) -> Floats:
    """`function` of each different constant, NaN where it is unknown."""
    known = np.isfinite(constant)
    if not known.any():
        return np.full(constant.shape, np.nan)
    values, where = np.unique(constant[known], return_inverse=True)
    result = np.full(constant.shape, np.nan)
    images = np.asarray(function(values), np.float64)
    result[known] = np.where(np.isfinite(images), images, np.nan)[where]
    return result


@dataclass(eq=False)
class AsOne(Map):
    """From here on nothing tells the positions along `axes` apart: channels there go or stay together."""

    axes: tuple[int, ...] = ()

    def label(self, labels: Labels, shapes: dict[int, Shape]) -> None:
        labels.of[self.output] = one_along(labels, labels.of[self.inputs[0]], self.axes)

    def forward(self, facts: Facts) -> None:
        super().forward(facts)
        facts.constant[self.output] = uniform(facts.constant[self.output], facts.labels[self.output].shape)

    def narrow(self, new: Narrowing) -> None:
        new.kept[self.output] = new.one_along(self.inputs[0], self.axes)


@dataclass(eq=False)
class Spatial(AsOne):
    """Pooling, padding, cropping, resizing, sorting: positions along `axes` move or mix, channels do not.

    Attributes:
        axes: the axes whose positions move. Channels that lie along them and along others are tied.
        pads: whether positions come in from outside.
        fill: what they hold; no other constant survives.
    """

    pads: bool = False
    fill: float = 0.0

    def obstacle(self, labels: Labels, shapes: dict[int, Shape]) -> str | None:
        if only_along(labels.of[self.inputs[0]], self.axes):
            return f"{self.layer} works along an axis that holds channels"
        return None

    def forward(self, facts: Facts) -> None:
        super().forward(facts)
        if self.pads:
            constant = facts.constant[self.output]
            facts.constant[self.output] = np.where(constant == self.fill, self.fill, np.nan)


def only_along(array: NDArray, axes: tuple[int, ...]) -> bool:
    """Whether a value's channels lie along `axes` and no other axis."""
    others = tuple(axis for axis in range(array.ndim) if axis not in axes)
    return varies(array, axes) and not varies(array, others)


@dataclass(eq=False)
class Reduce(Op):
    """Mean, maximum, sum and the like over some axes; global pooling.

    Over positions it works on each channel by itself, and channels that lie along `axes` and along others are tied.
    Over channels alone it reads all of them into one number a position. Channels that are constant may then go if the
    number can be put together again from what is left and those constants.

    Attributes:
        axes: what is reduced.
        keepdims: whether they stay with size 1.
        function: what becomes of a constant that comes `count` times (NaN if that is unknown); None where it stays what
            it is (mean, maximum).
        fold: what becomes of several such results over channels; None: no channel may go.
    """

    axes: tuple[int, ...] = ()
    keepdims: bool = False
    function: Callable[..., NDArray] | None = None
    fold: Callable[[NDArray], float] | None = None

    def _reduced(self, array: NDArray) -> NDArray:
        return array if self.keepdims else array.squeeze(self.axes)

    def label(self, labels: Labels, shapes: dict[int, Shape]) -> None:
        source = labels.of[self.inputs[0]]
        self._shape = shapes[self.inputs[0]]
        if not self.over_channels(labels.of):
            labels.of[self.output] = self._reduced(one_along(labels, source, self.axes))
            return
        if self.fold is None:
            labels.protect(source, f"{self.layer} reduces over channels")
        labels.of[self.output] = labels.fresh(1).reshape((1,) * len(shapes[self.output]))

    def over_channels(self, labels: dict[int, Indices]) -> bool:
        """Whether channels are reduced, and not positions of each channel."""
        return only_along(labels[self.inputs[0]], self.axes)

    def contributions(self, constant: Floats, labels: dict[int, Indices], shape: Shape) -> Floats:
        """What each constant is once positions are reduced; NaN where that is not known."""
        if self.function is None:
            return constant
        own, over = labels[self.inputs[0]].shape, self.over_channels(labels)
        positions = [shape[axis] for axis in self.axes if not over or own[axis] == 1]
        count = math.nan if None in positions else math.prod(positions)  # type: ignore[arg-type]
        return applied(functools.partial(self.function, count=count), constant)

    def forward(self, facts: Facts) -> None:
        constant = self.contributions(facts.constant[self.inputs[0]], facts.labels, self._shape)
        shape = facts.labels[self.output].shape
        if not self.over_channels(facts.labels):
            kept = tuple(1 if axis in self.axes else size for axis, size in enumerate(constant.shape))
            facts.constant[self.output] = self._reduced(uniform(constant, kept)).reshape(shape)
        elif self.fold is None or np.isnan(constant).any():
            facts.constant[self.output] = np.full(shape, np.nan)
        else:
            facts.constant[self.output] = np.full(shape, self.fold(constant.ravel()), np.float64)

    def backward(self, facts: Facts) -> None:
        read, shape = facts.read[self.output], facts.labels[self.inputs[0]].shape
        if self.over_channels(facts.labels):
            facts.demand(self.inputs[0], np.full(shape, read.any()))
        else:
            lines = tuple(1 if axis in self.axes else size for axis, size in enumerate(shape))
            facts.demand(self.inputs[0], read.reshape(lines))

    def unfoldable(self, facts: Facts) -> dict[int, Bools]:
        value = self.inputs[0]
        if not self.over_channels(facts.labels) or not facts.read[self.output].any():
            return {}
        constant = facts.constant[value]
        return {value: np.isfinite(constant) & np.isnan(self.contributions(constant, facts.labels, self._shape))}

    def narrow(self, new: Narrowing) -> None:
        value, labels = self.inputs[0], new.labels[self.output]
        if not self.over_channels(new.labels):
            left = new.one_along(value, self.axes)
            new.kept[self.output] = self._reduced(left) if left.size else left
            return
        stays = bool(new.keep[labels].all())
        if stays and new.empty(value):
            raise Violation(new.labels[value].ravel()[:1], f"{self.layer} would have nothing left to reduce")
        new.kept[self.output] = np.zeros(labels.shape if stays else (0,) * labels.ndim, np.intp)


@dataclass(eq=False)
class Affine(Op):
    """Scale and shift of each channel: BatchNormalization at inference, a vector multiplied or added.

    Attributes:
        axis: the channel axis.
        parameters: (weight, role) of each weight, all vectors along the axis; leading axes have one entry.
        coefficients: from the weights' arrays, in that order, to (scale, shift), which broadcast to (channels,).
    """

    axis: int
    parameters: tuple[tuple[Weight, str], ...]
    coefficients: Callable[..., tuple[NDArray, NDArray]]

    def weights(self) -> tuple[Weight, ...]:
        return tuple(weight for weight, _ in self.parameters)

    def label(self, labels: Labels, shapes: dict[int, Shape]) -> None:
        source = labels.of[self.inputs[0]]
        shape = shapes[self.inputs[0]]
        labels.of[self.output] = source
        flat = along(labels, source, shape, (self.axis,))
        for weight, role in self.parameters:
            labels.bind(weight, role + ":" + weight.name, flat, weight.shape, (len(weight.shape) - 1,))

    def scale_and_shift(self, facts: Facts) -> tuple[Floats, Floats]:
        """Both of shape (channels,), or (1,)."""
        arrays = [np.asarray(facts.weight(weight), np.float64) for weight, _ in self.parameters]
        with np.errstate(all="ignore"):
            scale, shift = self.coefficients(*arrays)
        return np.atleast_1d(np.asarray(scale, np.float64)), np.atleast_1d(np.asarray(shift, np.float64))

    def _shaped(self, flat: NDArray, rank: int) -> NDArray:
        return flat.reshape([-1 if axis == self.axis else 1 for axis in range(rank)])

    def forward(self, facts: Facts) -> None:
        constant = facts.constant[self.inputs[0]]
        scale, shift = (self._shaped(part, constant.ndim) for part in self.scale_and_shift(facts))
        with np.errstate(all="ignore"):
            result = np.where((scale == 0) & np.isfinite(shift), shift, constant * scale + shift)
        result = np.where(np.isfinite(result), result, np.nan)
        facts.constant[self.output] = uniform(result, facts.labels[self.output].shape)

    def backward(self, facts: Facts) -> None:
        read = facts.read[self.output]
        scale, _ = self.scale_and_shift(facts)
        facts.demand(self.inputs[0], read & self._shaped(scale != 0, read.ndim))

    def narrow(self, new: Narrowing) -> None:
        value = self.inputs[0]
        new.kept[self.output] = new.kept[value]
        if self.parameters:
            indices = new.positions(value, (self.axis,))
            for weight, role in self.parameters:
                new.fix(weight, role + ":" + weight.name, indices, new.labels[value])


@dataclass(eq=False)
class Slope(Op):
    """PReLU: x where x >= 0, and slope * x below; the slope has the value's rank, with size 1 where it is shared."""

    slope: Weight

    def weights(self) -> tuple[Weight, ...]:
        return (self.slope,)

    def _axes(self) -> tuple[int, ...]:
        return tuple(axis for axis, size in enumerate(self.slope.shape) if size > 1)

    def label(self, labels: Labels, shapes: dict[int, Shape]) -> None:
        source = labels.of[self.inputs[0]]
        labels.of[self.output] = source
        if self._axes():
            flat = along(labels, source, shapes[self.inputs[0]], self._axes())
            labels.bind(self.slope, "slope", flat, self.slope.shape, self._axes())

    def forward(self, facts: Facts) -> None:
        constant = facts.constant[self.inputs[0]]
        slope = np.asarray(facts.weight(self.slope), np.float64)
        result = np.where(constant >= 0, constant, constant * slope)
        facts.constant[self.output] = uniform(result, facts.labels[self.output].shape)

    def backward(self, facts: Facts) -> None:
        facts.demand(self.inputs[0], facts.read[self.output])

    def narrow(self, new: Narrowing) -> None:
        value = self.inputs[0]
        new.kept[self.output] = new.kept[value]
        if self._axes():
            new.fix(self.slope, "slope", new.positions(value, self._axes()), new.labels[value])


def uniform(array: Floats, shape: tuple[int, ...]) -> Floats:
    """Make an array as compact as the label array it belongs to: NaN where it is not the same all along an axis."""
    extra = tuple(axis for axis in range(array.ndim) if shape[axis] == 1 and array.shape[axis] > 1)
    if extra:
        first = array.max(axis=extra, keepdims=True)
        array = np.where((array == first).all(axis=extra, keepdims=True), first, np.nan)
    return np.broadcast_to(array, shape)


@dataclass(eq=False)
class Combine(Op):
    """Several values into one, channel by channel: Add, Multiply, Maximum, `x * gate`.

    Attributes:
        kind: `add`, `subtract`, `multiply`, or anything else, which only constants pass.
        function: the operation on constants, one argument an input.
    """

    kind: str
    function: Callable[..., NDArray]

    def _operands(self, of: dict[int, Indices], shapes: dict[int, Shape]) -> tuple[list, list, tuple[int, ...]]:
        """The label arrays at full rank; those whose axes of size 1 are stretched over channels; the result's shape."""
        rank = len(shapes[self.output])
        arrays = [self._aligned(of[value], rank) for value in self.inputs]
        target = np.broadcast_shapes(*(array.shape for array in arrays))
        whole: list[Indices] = []
        stretched: list[Indices] = []
        for array, value in zip(arrays, self.inputs, strict=True):
            size = (1,) * (rank - len(shapes[value])) + tuple(shapes[value])
            over = any(s == 1 and t > 1 for s, t in zip(size, target, strict=True))
            (stretched if over else whole).append(array)
        return whole, stretched, target

    def obstacle(self, labels: Labels, shapes: dict[int, Shape]) -> str | None:
        whole, stretched, target = self._operands(labels.of, shapes)
        if any(array.size > 1 for array in stretched):
            return f"{self.layer} stretches channels over another value's channels"
        if not whole or np.broadcast_shapes(*(array.shape for array in whole)) != target:
            return f"{self.layer} stretches its inputs over each other"
        return None

    def label(self, labels: Labels, shapes: dict[int, Shape]) -> None:
        whole, _, target = self._operands(labels.of, shapes)
        first = next((array for array in whole if array.shape == target), np.broadcast_to(whole[0], target))
        for other in whole:
            labels.tie(first, other)
        labels.of[self.output] = first

    def _aligned(self, array: NDArray, rank: int) -> NDArray:
        return array.reshape((1,) * (rank - array.ndim) + array.shape)

    def forward(self, facts: Facts) -> None:
        shape = facts.labels[self.output].shape
        constants = [self._aligned(facts.constant[value], len(shape)) for value in self.inputs]
        constants = list(np.broadcast_arrays(*constants))
        result = np.full(constants[0].shape, np.nan)
        known = np.logical_and.reduce([np.isfinite(constant) for constant in constants])
        if known.any():
            result[known] = self.function(*(constant[known] for constant in constants))
        if self.kind == "multiply":
            result[np.logical_or.reduce([constant == 0 for constant in constants])] = 0.0
        facts.constant[self.output] = uniform(np.where(np.isfinite(result), result, np.nan), shape)

    def backward(self, facts: Facts) -> None:
        read = facts.read[self.output]
        absorbs = self.kind == "multiply"
        zeros = [self._aligned(facts.constant[value], read.ndim) == 0 for value in self.inputs] if absorbs else []
        for index, value in enumerate(self.inputs):
            wanted = read
            # Beside a 0 nobody is read; of several the first is, or each could become something else.
            for other in zeros[:index]:
                wanted = wanted & ~other
            for other in zeros[index + 1 :]:
                wanted = wanted & (~other | zeros[index])
            self.demand(facts, value, wanted)

    def demand(self, facts: Facts, value: int, wanted: Bools) -> None:
        """Note that an operand is read where `wanted`, which is shaped as the result."""
        extra = tuple(range(wanted.ndim - facts.labels[value].ndim))
        facts.demand(value, np.any(wanted, axis=extra) if extra else wanted)

    def narrow(self, new: Narrowing) -> None:
        labels = new.labels[self.output]
        rank = labels.ndim
        kept = [self._aligned(new.kept[value], rank) for value in self.inputs]
        if not any(k.size for k in kept):
            new.kept[self.output] = kept[0]
            return
        empty = [new.labels[value].ravel() for k, value in zip(kept, self.inputs, strict=True) if not k.size]
        if empty:
            raise Violation(np.concatenate(empty), f"{self.layer} would have nothing left on one side")
        shape = np.broadcast_shapes(*(k.shape for k in kept)) if _broadcast(kept) else None
        where: list[Indices | None] = [None] * rank
        for k, value in zip(kept, self.inputs, strict=True):
            own = self._aligned(new.labels[value], rank).shape
            for axis, index in enumerate(np.unravel_index(k, own) if own else ()):
                if own[axis] == 1 or own[axis] != labels.shape[axis] or shape is None:
                    continue
                index = np.broadcast_to(index, shape)
                before = where[axis]
                if before is None:
                    where[axis] = index
                elif not np.array_equal(before, index):
                    shape = None
        if shape is None:
            reason = f"{self.layer} would combine channels that no longer match"
            raise Violation(np.concatenate([new.labels[value].ravel() for value in self.inputs]), reason)
        if labels.size == 1:
            new.kept[self.output] = np.zeros(labels.shape, np.intp)
            return
        coordinates = [np.zeros(shape, np.intp) if index is None else index for index in where]
        new.kept[self.output] = np.ravel_multi_index(coordinates, labels.shape).reshape(shape)


def _broadcast(arrays: list[Indices]) -> bool:
    try:
        np.broadcast_shapes(*(array.shape for array in arrays))
    except ValueError:
        return False
    return True


@dataclass(eq=False)
class Mix(Op):
    """Every output depends on all that lies along `axes`: LayerNormalization, softmax, cumulative sums.

    The channels keep their places. Where nothing else tells them apart none may go; where they lie along other axes
    too, as scores of several heads do, those that differ along `axes` alone go together.

    Attributes:
        axes: what is read together; None for everything.
        function: what becomes of a constant that is the same along `axes`; None: not known.
    """

    axes: tuple[int, ...] | None = None
    function: Callable[[NDArray], NDArray] | None = None

    def _axes(self, array: NDArray) -> tuple[int, ...]:
        return tuple(range(array.ndim)) if self.axes is None else self.axes

    def label(self, labels: Labels, shapes: dict[int, Shape]) -> None:
        source = labels.of[self.inputs[0]]
        if only_along(source, self._axes(source)) or (self.axes is None and source.size == 1):
            labels.protect(source, f"{self.layer} reads all channels together")
        else:
            one_along(labels, source, self._axes(source))
        labels.of[self.output] = source

    def forward(self, facts: Facts) -> None:
        constant = facts.constant[self.inputs[0]]
        if self.function is None:
            constant = np.full(constant.shape, np.nan)
        else:
            axes = self._axes(constant)
            lines = tuple(1 if axis in axes else size for axis, size in enumerate(constant.shape))
            constant = applied(self.function, np.broadcast_to(uniform(constant, lines), constant.shape))
        facts.constant[self.output] = constant

    def backward(self, facts: Facts) -> None:
        read = facts.read[self.output]
        facts.demand(self.inputs[0], np.broadcast_to(read.any(axis=self._axes(read), keepdims=True), read.shape))

    def narrow(self, new: Narrowing) -> None:
        value = self.inputs[0]
        new.one_along(value, self._axes(new.labels[value]))
        new.kept[self.output] = new.kept[value]


@dataclass(eq=False)
class Opaque(Op):
    """Anything not known: what it touches stays as it is, and the reason is told.

    Attributes:
        reason: why nothing is known.
    """

    reason: str

    def label(self, labels: Labels, shapes: dict[int, Shape]) -> None:
        for value in self.inputs:
            labels.protect(labels.of[value], self.reason)
        for value in self.outputs:
            labels.of[value] = labels.protected_value(len(shapes[value]), self.reason)

    def forward(self, facts: Facts) -> None:
        for value in self.outputs:
            facts.constant[value] = np.full(facts.labels[value].shape, np.nan)

    def backward(self, facts: Facts) -> None:
        demand_all(self, facts)

    def narrow(self, new: Narrowing) -> None:
        for value in self.outputs:
            new.kept[value] = np.zeros(new.labels[value].shape, np.intp)


def demand_all(op: Op, facts: Facts) -> None:
    """Every channel of every input is read, if any output is."""
    if any(facts.read[value].any() for value in op.outputs):
        for value in op.inputs:
            facts.demand(value, np.ones(facts.labels[value].shape, bool))
