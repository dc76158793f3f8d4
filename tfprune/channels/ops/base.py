"""What every channel op answers, and the records they share.

An op is walked four times: `label` (who is tied to whom), `forward` (which channels are constant), `backward` (which
are read) and `narrow` (where everything is once some channels are gone). Adding an op is adding a class with these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tfprune.channels.labels import Indices, Labels, Shape
from tfprune.channels.weights import Slot, Weight

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Violation(Exception):
    """The channels that are left do not fit together here; these labels have to come back."""

    def __init__(self, labels: Indices, reason: str):
        super().__init__(reason)
        self.labels = labels.ravel()
        self.reason = reason


@dataclass
class Facts:
    """What the weights prove of every value; arrays are shaped as the value's label array.

    Attributes:
        constant: the constant that a channel is at inference, or NaN where it depends on the input.
        read: whether anything that reaches an output depends on the channel.
        weight: a weight's array.
    """

    labels: dict[int, Indices]
    weight: Callable[[Weight], NDArray]
    constant: dict[int, Floats] = field(default_factory=dict)
    read: dict[int, Bools] = field(default_factory=dict)
    tables: dict[tuple[Weight, tuple[int, ...]], Bools] = field(default_factory=dict)

    def demand(self, value: int, read: Bools) -> None:
        """Note that `read` of the value's channels are read, beside what was known before."""
        shape = self.labels[value].shape
        if read.shape != shape:
            extra = tuple(axis for axis in range(len(shape)) if shape[axis] == 1 and read.shape[axis] > 1)
            read = np.broadcast_to(read.any(axis=extra, keepdims=True), shape)
        before = self.read.get(value)
        self.read[value] = read if before is None else before | read


@dataclass
class Narrowing:
    """Where everything is in the smaller model, found by walking it: order is never inferred by filtering.

    Attributes:
        keep: label -> whether it stays.
        kept: value -> positions in the value's (flat) label array, shaped as the smaller label array.
        indices: slot -> which labels of the slot stay, flat, in their new order.
        groups: kernel -> how many groups are left of a grouped convolution.
        constant: value -> the constants of its channels, where they are known (NaN where not).
    """

    labels: dict[int, Indices]
    shapes: dict[int, Shape]
    slots: dict[tuple[Weight, str], Slot]
    keep: Bools
    kept: dict[int, Indices] = field(default_factory=dict)
    indices: dict[tuple[Weight, str], Indices] = field(default_factory=dict)
    groups: dict[Weight, int] = field(default_factory=dict)
    constant: dict[int, Floats] = field(default_factory=dict)

    def empty(self, value: int) -> bool:
        """Whether nothing is left of the value."""
        return self.kept[value].size == 0

    def narrowed(self, value: int) -> bool:
        """Whether any of the value's channels are gone or elsewhere."""
        kept = self.kept[value]
        return kept.size != self.labels[value].size or bool((kept.ravel() != np.arange(kept.size)).any())

    def shape(self, value: int) -> Shape:
        """The value's new shape, without the batch axis."""
        labels, kept = self.labels[value], self.kept[value]
        return tuple(
            old if kept.size and (old is None or labels.shape[axis] == 1) else kept.shape[axis]
            for axis, old in enumerate(self.shapes[value])
        )

    def positions(self, value: int, axes: tuple[int, ...]) -> Indices:
        """Which positions along `axes` (flat over them) are left, for a weight that knows no other axis.

        Returns:
            an array shaped as the new sizes along `axes`.

        Raises:
            Violation: they are not the same everywhere along the other axes.
        """
        labels, kept, shape = self.labels[value], self.kept[value], self.shapes[value]
        if not kept.size:
            return np.zeros((0,) * len(axes), np.intp)
        if len(axes) == 1 and labels.size == labels.shape[axes[0]] == shape[axes[0]]:
            return kept.ravel()
        coordinates = np.unravel_index(kept, labels.shape)
        sizes = [shape[axis] or 1 for axis in axes]
        flat = np.zeros((1,) * kept.ndim, np.intp)
        for axis, size in zip(axes, sizes, strict=True):
            along = coordinates[axis]
            if labels.shape[axis] == 1 and kept.size:
                along = np.arange(size).reshape([-1 if i == axis else 1 for i in range(kept.ndim)])
            flat = flat * size + along
        others = tuple(axis for axis in range(flat.ndim) if axis not in axes)
        flat = flat.transpose(*axes, *others).reshape(*(flat.shape[axis] for axis in axes), -1)
        if flat.shape[-1] and (flat != flat[..., :1]).any():
            raise Violation(labels, "its channels would differ from one position to the next")
        return flat[..., 0] if flat.shape[-1] else flat.reshape(flat.shape[:-1])

    def positions_everywhere(self, value: int, axes: tuple[int, ...]) -> Indices:
        """The same for an op whose output does not tell the other axes apart: there all must be where it was.

        Raises:
            Violation: what is left lies in another order along another axis: pixels that were channels before.
        """
        labels, kept = self.labels[value], self.kept[value]
        others = [axis for axis in range(labels.ndim) if axis not in axes and labels.shape[axis] > 1]
        if others and kept.size:
            coordinates = np.unravel_index(kept, labels.shape)
            for axis in others:
                line = np.arange(labels.shape[axis]).reshape([-1 if i == axis else 1 for i in range(labels.ndim)])
                if kept.shape[axis] != labels.shape[axis] or (coordinates[axis] != line).any():
                    raise Violation(labels, "its positions would be in another order")
        return self.positions(value, axes)

    def one_along(self, value: int, axes: tuple[int, ...]) -> Indices:
        """What is left of a value in the label array that `labels.one_along` made of its own.

        Raises:
            Violation: lines along `axes` would lose positions, or have them in another order.
        """
        labels, kept = self.labels[value], self.kept[value]
        over = [axis for axis in axes if labels.shape[axis] > 1]
        if not over or not kept.size:
            return kept
        coordinates = np.unravel_index(kept, labels.shape)
        first = tuple(slice(1) if axis in over else slice(None) for axis in range(kept.ndim))
        for axis, along in enumerate(coordinates):
            line = [-1 if other == axis else 1 for other in range(kept.ndim)]
            wanted = np.arange(labels.shape[axis]).reshape(line) if axis in over else along[first]
            if (kept.shape[axis] != labels.shape[axis] and axis in over) or (along != wanted).any():
                raise Violation(labels, "its lines would lose positions")
        small = tuple(1 if axis in over else size for axis, size in enumerate(labels.shape))
        left = [np.zeros_like(c[first]) if axis in over else c[first] for axis, c in enumerate(coordinates)]
        return np.ravel_multi_index(left, small)

    def fix(self, weight: Weight, role: str, indices: Indices, labels: Indices) -> None:
        """Record what stays of a weight; a shared layer must keep the same in each of its calls.

        Raises:
            Violation: another call of the same layer keeps something else.
        """
        before = self.indices.setdefault((weight, role), indices)
        if before is not indices and not np.array_equal(before, indices):
            raise Violation(labels, f"{weight.layer} is shared and would need another order in each of its calls")


@dataclass(eq=False)
class Op:
    """One channel op. `inputs` and `outputs` are value numbers; `layer` is who it was lowered from."""

    layer: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def output(self) -> int:
        return self.outputs[0]

    def weights(self) -> tuple[Weight, ...]:
        """The weights this op uses."""
        return ()

    def macs(self, sizes: Callable[[Weight], int]) -> int:
        """Multiply-adds for one sample, when weights have these sizes."""
        return 0

    def obstacle(self, labels: Labels, shapes: dict[int, Shape]) -> str | None:
        """Why this op cannot be followed for the labels it meets; it then counts as opaque."""
        return None

    def settled(self, labels: Labels, shapes: dict[int, Shape]) -> Op:
        """The op to use for the labels it meets; itself, unless there is an `obstacle`."""
        return self

    def label(self, labels: Labels, shapes: dict[int, Shape]) -> None:
        raise NotImplementedError

    def forward(self, facts: Facts) -> None:
        raise NotImplementedError

    def backward(self, facts: Facts) -> None:
        raise NotImplementedError

    def narrow(self, new: Narrowing) -> None:
        raise NotImplementedError

    def unfoldable(self, facts: Facts) -> dict[int, Bools]:
        """Input value -> which of its channels are constants that this op reads and could not do without."""
        return {}

    def why_unknown(self) -> str:
        """Why a channel that it writes has to stay, in words."""
        return f"what {self.layer} writes there depends on the input, and is read"

    def why_unfoldable(self, constant: float, writer: str) -> str:
        """Why a constant has to stay, in words."""
        return f"{constant:.3g} after {writer} is read by {self.layer}"

    def shift(self, facts: Facts, new: Narrowing) -> Floats | None:
        """What the bias gains from constant inputs that are gone, flat over all old outputs; None for nothing."""
        return None

    def dead(self, facts: Facts) -> dict[Weight, Bools]:
        """Kernel -> which of the labels that it writes have filters of zeros, flat."""
        return {}


def unfoldable_constants(op: Op, facts: Facts, folds: bool, axes: tuple[int, ...]) -> dict[int, Bools]:
    """Which constants an op with a kernel reads and cannot take into its bias.

    Args:
        op: its first input is what the kernel reads, along `axes`.
        folds: whether it has, or may have, a bias of its own. One bias serves all positions: a constant that is not the
            same at all of them cannot be part of it.
    """
    value = op.inputs[0]
    constant = facts.constant[value]
    kept = np.isfinite(constant) & (constant != 0) & facts.read[value]
    if folds and kept.any():
        others = tuple(axis for axis in range(constant.ndim) if axis not in axes)
        kept &= (constant != constant.min(axis=others, keepdims=True)).any(axis=others, keepdims=True)
    if not kept.any():
        return {}
    own = Facts(facts.labels, facts.weight, constant=facts.constant, tables=facts.tables)
    own.read.update({out: facts.read[out] for out in op.outputs})
    op.backward(own)
    return {value: kept & own.read.get(value, np.zeros(constant.shape, bool))}
