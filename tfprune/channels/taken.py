"""What a slice, a split or a gather takes along an axis, and what that is in the smaller model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfprune.channels.labels import Indices
from tfprune.channels.ops import Narrowing, is_natural, taken_from

Select = Callable[[int], Indices]


def at(size: int, key: Any) -> Indices:
    """The indices that a key takes from an axis of this size."""
    return np.arange(size)[key]


def moved(function: Callable[..., Indices], size: int, **settings: Any) -> Indices:
    """The indices that a numpy function makes of those of an axis."""
    return function(np.arange(size), **settings)


@dataclass(frozen=True)
class Part:
    """What is taken along one axis.

    Attributes:
        select: from the size of the axis to the indices.
        key: how it was written: a slice, or a number, whose axis disappears; None where it was neither.
        source, target: the values before and after.
    """

    axis: int
    select: Select
    key: slice | int | None = None
    source: int = -1
    target: int = -1

    @property
    def drops(self) -> bool:
        """Whether the axis disappears."""
        return isinstance(self.key, int)

    def left(self, new: Narrowing) -> Indices | None:
        """The indices in the smaller model; None where the axis holds no channels."""
        if new.labels[self.source].shape[self.axis] == 1:
            return None
        along = new.positions(self.source, (self.axis,))
        indices = np.asarray(self.select(new.labels[self.source].shape[self.axis]), np.intp)
        return taken_from(along, indices[new.positions(self.target, (self.axis,))])

    def changes(self, new: Narrowing) -> bool:
        """Whether the call as it is takes something else in the smaller model."""
        left = self.left(new)
        if left is None:
            return False
        size = len(new.positions(self.source, (self.axis,)))
        return not is_natural(self.select, size, left)


def as_slice(indices: Indices) -> slice | None:
    """Indices with a regular step forward as a slice."""
    if not len(indices):
        return None
    steps = np.unique(np.diff(indices))
    if len(steps) > 1 or (len(steps) and steps[0] <= 0):
        return None
    return slice(int(indices[0]), int(indices[-1]) + 1, int(steps[0]) if len(steps) else 1)
