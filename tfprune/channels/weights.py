"""Weights, and where channels live in them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_CHUNK = 1 << 20  # entries that are worked on at a time: a few megabytes stay in the cache


@dataclass(eq=False)
class Weight:
    """One weight array of the model; the calls of a shared layer share it.

    Attributes:
        key: `layer/name`, with nested models' names in front.
        shape: its shape.
    """

    key: str
    shape: tuple[int, ...]

    @property
    def layer(self) -> str:
        return self.key.rpartition("/")[0]

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(eq=False)
class Slot:
    """Where channels live in a weight: reshape it to `split`, bring `axes` to the front, and row i is label i's.

    Attributes:
        role: `write` or `read` (a kernel's output and input side), `depthwise`, `bias`, `scale`, `shift` or
            `statistic`.
        labels: an array of the sizes of `axes`.
    """

    weight: Weight
    role: str
    labels: NDArray[np.intp]
    split: tuple[int, ...]
    axes: tuple[int, ...]

    def __post_init__(self) -> None:
        #: the role without what follows a colon
        self.kind = self.role.partition(":")[0]

    def rows(self, array: NDArray) -> NDArray:
        """The weight with a row for every label: shape (labels, values of one label).

        >>> slot = Slot(Weight("conv/kernel", (1, 1, 2, 3)), "write", np.arange(3), (1, 1, 2, 3), (3,))
        >>> slot.rows(np.arange(6).reshape(1, 1, 2, 3)).tolist()
        [[0, 3], [1, 4], [2, 5]]
        """
        others = tuple(axis for axis in range(len(self.split)) if axis not in self.axes)
        return array.reshape(self.split).transpose(*self.axes, *others).reshape(self.labels.size, -1)

    def sums(
        self, array: NDArray, function: Callable[[NDArray], NDArray], by: np.ufunc = np.add
    ) -> NDArray[np.float64]:
        """For every label, the sum of an elementwise function of its values; the weight is not copied.

        Args:
            by: `np.maximum` takes the largest instead; the function's values are then at least 0.

        >>> slot = Slot(Weight("conv/kernel", (1, 1, 2, 3)), "write", np.arange(3), (1, 1, 2, 3), (3,))
        >>> slot.sums(-np.arange(6).reshape(1, 1, 2, 3), np.abs).tolist()
        [3.0, 5.0, 7.0]
        """
        array = array.reshape(self.split)
        others = tuple(axis for axis in range(array.ndim) if axis not in self.axes)
        longest = int(np.argmax(self.split))
        result = np.zeros([self.split[axis] for axis in range(array.ndim) if axis in self.axes])
        where = sum(axis in self.axes for axis in range(longest))
        for start in range(0, self.split[longest], step := max(1, _CHUNK * self.split[longest] // array.size)):
            part = (slice(None),) * longest + (slice(start, start + step),)
            total = by.reduce(function(array[part]), axis=others, dtype=np.float64)
            if longest in self.axes:
                result[(slice(None),) * where + (part[-1],)] = total
            else:
                by(result, total, out=result)
        return result.transpose(np.argsort(np.argsort(self.axes))).ravel()

    def mask(self, keep: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """`keep`, one entry a label, shaped so that it broadcasts to `split`."""
        shape = [size if axis in self.axes else 1 for axis, size in enumerate(self.split)]
        return keep.reshape(self.labels.shape).transpose(np.argsort(self.axes)).reshape(shape)
