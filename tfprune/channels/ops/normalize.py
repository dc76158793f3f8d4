"""Normalization by the channels' own statistics: what the channels of one set do to each other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfprune.channels.labels import Indices, Labels, Shape, along, varies
from tfprune.channels.ops.base import Bools, Facts, Floats, Narrowing, Op
from tfprune.channels.ops.elementwise import uniform
from tfprune.channels.weights import Weight


@dataclass(eq=False)
class Normalize(Op):
    """LayerNormalization, GroupNormalization, RMSNormalization, UnitNormalization.

    A mean is taken away in the first two: a channel that goes would move it for all others, so that a set goes whole
    or not at all. Without a mean, a channel that is 0 adds nothing to the sum of squares and may go; where that sum is
    divided by the width, the rule makes up for it.

    Attributes:
        axes: what is normalized over, the axes of parameters among them.
        centred: whether a mean is taken away.
        axis: with `groups`, the channel axis; each of its `groups` equal parts is a set.
        parameters: (weight, role) of the scale and shift, which have the sizes of `parameter_axes`.
    """

    axes: tuple[int, ...]
    centred: bool
    parameters: tuple[tuple[Weight, str], ...] = ()
    parameter_axes: tuple[int, ...] = ()
    axis: int = -1
    groups: int = 1

    def weights(self) -> tuple[Weight, ...]:
        return tuple(weight for weight, _ in self.parameters)

    def _sets(self, array: NDArray) -> NDArray:
        """An array as (sets, members): what shares its statistics is one row."""
        if self.groups > 1:
            axis, shape = self.axis, array.shape
            array = array.reshape(*shape[:axis], self.groups, shape[axis] // self.groups, *shape[axis + 1 :])
            inside = *(other + (other > axis) for other in self.axes if other != axis), axis + 1
        else:
            inside = self.axes
        others = tuple(axis for axis in range(array.ndim) if axis not in inside)
        return array.transpose(*others, *inside).reshape(math.prod(array.shape[axis] for axis in others), -1)

    def obstacle(self, labels: Labels, shapes: dict[int, Shape]) -> str | None:
        array = labels.of[self.inputs[0]]
        if self.groups > 1 and array.shape[self.axis] > 1 and array.shape[self.axis] % self.groups:
            return f"{self.layer} normalizes groups that are no parts of its channels"
        return None

    def _is_apart(self, array: Indices) -> bool:
        """Whether each channel is normalized by itself."""
        return not varies(array, self.axes) or self._sets_of(array).shape[1] == 1

    def _sets_of(self, array: NDArray) -> NDArray:
        # Where nothing varies along the channel axis there is nothing to split.
        return self._sets(array) if self.groups == 1 or array.shape[self.axis] > 1 else array.reshape(1, -1)

    def label(self, labels: Labels, shapes: dict[int, Shape]) -> None:
        value = self.inputs[0]
        array = labels.of[value]
        labels.of[self.output] = array
        if self.centred and not self._is_apart(array):
            sets = self._sets_of(array)
            if len(sets) == 1:
                labels.protect(array, f"{self.layer} reads all channels together")
            else:
                labels.tie(sets, sets[:, :1])
        if varies(array, self.parameter_axes):
            own = along(labels, array, shapes[value], self.parameter_axes)
            for weight, role in self.parameters:
                labels.bind(weight, f"{role}:{weight.name}", own, weight.shape, tuple(range(len(weight.shape))))

    def _parameter(self, facts: Facts, role: str, absent: float) -> Floats:
        """A parameter, as an array of the value's rank."""
        shape = facts.labels[self.output].shape
        for weight, own in self.parameters:
            if own == role:
                array = np.asarray(facts.weight(weight), np.float64)
                order = np.argsort(self.parameter_axes)
                sizes = [1] * len(shape)
                for axis, size in zip(self.parameter_axes, weight.shape, strict=True):
                    sizes[axis] = size
                return array.transpose(order).reshape(sizes)
        return np.full((1,) * len(shape), absent)

    def forward(self, facts: Facts) -> None:
        constant = facts.constant[self.inputs[0]]
        shape = facts.labels[self.output].shape
        scale, shift = self._parameter(facts, "scale", 1.0), self._parameter(facts, "shift", 0.0)
        zero = constant == 0
        if self.centred and not self._is_apart(facts.labels[self.output]):
            sets = self._sets_of(np.broadcast_to(zero, shape)).all(axis=1)
            zero = self._back(sets, shape)
        result = np.where(zero | (scale == 0), shift, np.nan)
        facts.constant[self.output] = uniform(np.where(np.isfinite(result), result, np.nan), shape)

    def _back(self, sets: Any, shape: tuple[int, ...]) -> NDArray:
        """One entry a set, as an array of the value's labels."""
        numbers = self._sets_of(np.arange(math.prod(shape)).reshape(shape))
        result = np.zeros(math.prod(shape), bool)
        result[numbers.ravel()] = np.repeat(sets, numbers.shape[1])
        return result.reshape(shape)

    def backward(self, facts: Facts) -> None:
        shape = facts.labels[self.output].shape
        scale = self._parameter(facts, "scale", 1.0)
        moving = uniform_any(np.broadcast_to(scale != 0, np.broadcast_shapes(scale.shape, shape)), shape)
        read = facts.read[self.output] & moving
        if not self._is_apart(facts.labels[self.output]):
            # A channel that is 0 comes out as its shift, whatever the others are; it has to stay 0 itself.
            varying = np.broadcast_to(read & np.isnan(facts.constant[self.output]), shape)
            read = read | self._back(self._sets_of(varying).any(axis=1), shape)
        facts.demand(self.inputs[0], read)

    def unfoldable(self, facts: Facts) -> dict[int, Bools]:
        value = self.inputs[0]
        constant = facts.constant[value]
        kept = np.isfinite(constant) & (constant != 0) & facts.read[value]
        return {value: kept} if kept.any() and not self._is_apart(facts.labels[value]) else {}

    def narrow(self, new: Narrowing) -> None:
        value = self.inputs[0]
        new.kept[self.output] = new.kept[value]
        if varies(new.labels[value], self.parameter_axes):
            positions = new.positions(value, self.parameter_axes)
            for weight, role in self.parameters:
                new.fix(weight, f"{role}:{weight.name}", positions, new.labels[value])


def uniform_any(array: Bools, shape: tuple[int, ...]) -> Bools:
    """As compact as a label array: true where any is."""
    extra = tuple(axis for axis in range(array.ndim) if shape[axis] == 1 and array.shape[axis] > 1)
    return np.any(array, axis=extra, keepdims=True) if extra else array
