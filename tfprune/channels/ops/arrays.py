"""Arrays of the model's own that meet a value element by element: biases, gates, position embeddings, masks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tfprune.channels.labels import Indices, Labels, Shape, along
from tfprune.channels.ops.base import Facts, Narrowing, Op
from tfprune.channels.ops.elementwise import Source, uniform
from tfprune.channels.ops.normalize import uniform_any
from tfprune.channels.weights import Weight


@dataclass(eq=False)
class WithArrays(Op):
    """`function` of one value and some weights that broadcast with it; a weight has slots where the channels lie.

    Attributes:
        operands: in order, a weight and its role, or None where the value stands.
        kind: `add`, `subtract`, `multiply`, or another word for what only constants pass.
        function: the operation on arrays, one argument an operand.
    """

    operands: tuple[tuple[Weight, str] | None, ...]
    kind: str
    function: Callable[..., NDArray]

    def weights(self) -> tuple[Weight, ...]:
        return tuple(operand[0] for operand in self.operands if operand is not None)

    def _lead(self, rank: int) -> int:
        """How many axes the result has before the value's own."""
        return self._rank - rank

    def _axes(self, weight: Weight) -> tuple[int, ...]:
        """The axes of the result along which the channels lie and the weight has a number for each."""
        lead = self._lead(len(weight.shape))
        return tuple(lead + axis for axis, size in enumerate(weight.shape) if size > 1 and self._sizes[lead + axis] > 1)

    def label(self, labels: Labels, shapes: dict[int, Shape]) -> None:
        source, shape = labels.of[self.inputs[0]], shapes[self.output]
        self._rank = len(shape)
        source = source.reshape((1,) * (self._rank - source.ndim) + source.shape)
        self._sizes = source.shape
        labels.of[self.output] = source
        for operand in self.operands:
            if operand is not None and (axes := self._axes(operand[0])):
                weight, role = operand
                own = along(labels, source, shape, axes)
                lead = self._lead(len(weight.shape))
                labels.bind(weight, f"{role}:{weight.name}", own, weight.shape, tuple(axis - lead for axis in axes))

    def forward(self, facts: Facts) -> None:
        shape = facts.labels[self.output].shape
        value = facts.constant[self.inputs[0]].reshape(shape)
        arrays = [
            value if operand is None else np.asarray(facts.weight(operand[0]), np.float64) for operand in self.operands
        ]
        with np.errstate(all="ignore"):
            result = np.asarray(self.function(*arrays), np.float64)
            result = np.where(np.isnan(value), np.nan, result)
            if self.kind == "multiply":
                for array in arrays:
                    result = np.where(array == 0, 0.0, result)
        facts.constant[self.output] = uniform(np.where(np.isfinite(result), result, np.nan), shape)

    def backward(self, facts: Facts) -> None:
        read = facts.read[self.output]
        for weight in self.weights() if self.kind == "multiply" else ():
            moving = np.asarray(facts.weight(weight)) != 0
            moving = moving.reshape((1,) * (read.ndim - moving.ndim) + moving.shape)
            read = read & uniform_any(
                np.broadcast_to(moving, np.broadcast_shapes(moving.shape, read.shape)), read.shape
            )
        facts.demand(self.inputs[0], read.reshape(facts.labels[self.inputs[0]].shape))

    def narrow(self, new: Narrowing) -> None:
        value = self.inputs[0]
        kept, lead = new.kept[value], self._lead(len(new.shapes[value]))
        new.kept[self.output] = kept.reshape((1,) * lead + kept.shape) if kept.size else kept
        for operand in self.operands:
            if operand is not None and (axes := self._axes(operand[0])):
                positions = new.positions(value, tuple(axis - lead for axis in axes))
                new.fix(operand[0], f"{operand[1]}:{operand[0].name}", positions, new.labels[value])


@dataclass(eq=False)
class Parameter(Source):
    """A value that is a weight itself: a class token, position embeddings that are concatenated or added.

    Attributes:
        weight: the weight; its axes are the value's last ones.
        role: what its slot is called.
    """

    weight: Weight | None = None
    role: str = "shift"

    @property
    def known(self) -> bool:
        return True

    def weights(self) -> tuple[Weight, ...]:
        return () if self.weight is None else (self.weight,)

    def _own(self, rank: int) -> tuple[int, ...]:
        """The channel axes, as the weight counts them."""
        assert self.weight is not None
        return tuple(axis - (rank - len(self.weight.shape)) for axis in self.axes)

    def label(self, labels: Labels, shapes: dict[int, Shape]) -> None:
        super().label(labels, shapes)
        if self.axes and self.weight is not None:
            own = labels.of[self.output]
            sizes = [own.shape[axis] for axis in self.axes]
            labels.bind(self.weight, self.role, own.reshape(sizes), self.weight.shape, self._own(own.ndim))

    def forward(self, facts: Facts) -> None:
        assert self.weight is not None
        shape = facts.labels[self.output].shape
        array = np.asarray(facts.weight(self.weight), np.float64)
        array = array.reshape((1,) * (len(shape) - array.ndim) + array.shape)
        facts.constant[self.output] = uniform(np.where(np.isfinite(array), array, np.nan), shape)

    def narrow(self, new: Narrowing) -> None:
        super().narrow(new)
        if self.axes and self.weight is not None:
            kept = new.kept[self.output]
            sizes = [kept.shape[axis] for axis in self.axes] if kept.size else [0] * len(self.axes)
            positions: Indices = kept.reshape(sizes) if math.prod(sizes) else np.zeros(sizes, np.intp)
            new.fix(self.weight, self.role, positions, new.labels[self.output])
