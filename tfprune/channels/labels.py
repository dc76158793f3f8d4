"""What channel sits where in a tensor, and which channels are tied together.

A *label array* is an integer array that broadcasts to a tensor's shape without the batch axis. Its size is 1 along
every axis where nothing varies, so a feature map of shape (H, W, C) has a (1, 1, C) label array. Two labels that can
only be kept or removed together are *tied*; a set of tied labels is one *channel*.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tfprune.channels.weights import Slot, Weight

Shape = tuple[int | None, ...]
Indices = NDArray[np.intp]


@dataclass
class Labels:
    """The label arrays of all values while they are being found, with their ties and protections.

    Attributes:
        of: value -> label array.
        blocks: for each batch of labels that was made together, its first label; ascending.
        protections: (labels, reason) of what may not be removed.
        slots: where channels live in the weights; the calls of a shared layer meet here.
        names: first label of a batch -> who made it, where that is no layer that writes it.
        contained: (outer, inner) labels: the inner ones go when the outer ones go (a head and its channels).
    """

    of: dict[int, Indices] = field(default_factory=dict)
    count: int = 0
    blocks: list[int] = field(default_factory=list)
    protections: list[tuple[Indices, str]] = field(default_factory=list)
    slots: dict[tuple[Weight, str], Slot] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    contained: list[tuple[Indices, Indices]] = field(default_factory=list)
    _ties: list[tuple[Indices, Indices]] = field(default_factory=list)
    _lockstep: list[tuple[Indices, Indices]] = field(default_factory=list)

    def fresh(self, size: int, name: str = "") -> Indices:
        """`size` labels that nothing else carries yet."""
        self.blocks.append(self.count)
        if name:
            self.names[self.count] = name
        self.count += size
        return np.arange(self.count - size, self.count)

    def tie(self, a: Indices, b: Indices) -> None:
        """Keep or remove `a` and `b` together, elementwise (they broadcast)."""
        if a is not b:
            a, b = np.broadcast_arrays(a, b)
            self._ties.append((a.ravel(), b.ravel()))

    def lockstep(self, a: Indices, b: Indices) -> None:
        """Have selection choose `a` and `b` together; strip may still tell them apart."""
        a, b = np.broadcast_arrays(a, b)
        self._lockstep.append((a.ravel(), b.ravel()))

    def contain(self, outer: Indices, inner: Indices) -> None:
        """Have `inner` go whenever `outer` goes (they broadcast); the inner ones may go by themselves."""
        outer, inner = np.broadcast_arrays(outer, inner)
        self.contained.append((outer.ravel(), inner.ravel()))

    def protect(self, labels: Indices, reason: str) -> None:
        """Never remove these labels, because of `reason`."""
        self.protections.append((labels.ravel(), reason))

    def protected_value(self, rank: int, reason: str) -> Indices:
        """The label array of a value that nobody may narrow: one protected label."""
        labels = self.fresh(1).reshape((1,) * rank)
        self.protect(labels, reason)
        return labels

    def bind(self, weight: Weight, role: str, labels: Indices, split: tuple[int, ...], axes: tuple[int, ...]) -> Slot:
        """Say that `labels` live along `axes` of a weight; tie them to what another call has put there."""
        slot = self.slots.get((weight, role))
        if slot is None:
            slot = self.slots[weight, role] = Slot(weight, role, labels, split, axes)
        else:
            self.tie(slot.labels, labels)
        return slot

    def channels(self) -> Indices:
        """label -> channel, after all ties."""
        return components(self._ties, self.count)

    def units(self) -> Indices:
        """label -> what selection chooses as one: channels that are also in lockstep."""
        return components(self._ties + self._lockstep, self.count)


def components(pairs: list[tuple[Indices, Indices]], count: int) -> Indices:
    """Number the connected components of `count` labels under `pairs`, in the order of their first labels.

    >>> components([(np.array([0, 3]), np.array([2, 4]))], 5)
    array([0, 1, 0, 2, 2]...)
    """
    if not pairs:
        return np.arange(count)
    a = np.concatenate([pair[0] for pair in pairs])
    b = np.concatenate([pair[1] for pair in pairs])
    _, component = connected_components(coo_array((np.ones(len(a), bool), (a, b)), (count, count)), directed=False)
    first = np.full(component.max(initial=-1) + 1, count)
    np.minimum.at(first, component, np.arange(count))
    rank = np.empty_like(first)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[component].astype(np.intp)


def expand(array: NDArray, shape: Shape, axes: tuple[int, ...]) -> NDArray:
    """Broadcast an array that is compact along `axes` to the tensor's real size there.

    >>> expand(np.zeros((1, 1, 3)), (7, 7, 3), (0,)).shape
    (7, 1, 3)
    """
    target = list(array.shape)
    for axis in axes:
        size = shape[axis]
        if target[axis] == 1 and size is not None:
            target[axis] = size
    return np.broadcast_to(array, target)


def varies(array: NDArray, axes: tuple[int, ...] | None = None) -> bool:
    """Whether a label array tells positions apart along any of `axes` (all by default)."""
    return any(array.shape[axis] > 1 for axis in (range(array.ndim) if axes is None else axes))


def along(labels: Labels, array: Indices, shape: Shape, axes: tuple[int, ...]) -> Indices:
    """The labels along `axes` alone, for a weight that knows no other axis.

    Labels that vary along another axis too are tied there: the weight cannot tell them apart.

    Returns:
        an array of the tensor's sizes along `axes`, in that order.
    """
    array = expand(array, shape, axes)
    others = tuple(axis for axis in range(array.ndim) if axis not in axes)
    flat = array.transpose(*axes, *others).reshape(*(array.shape[axis] for axis in axes), -1)
    if flat.shape[-1] > 1:
        labels.tie(flat, flat[..., :1])
    return flat[..., 0]


def one_along(labels: Labels, array: Indices, axes: tuple[int, ...]) -> Indices:
    """Tie the labels that differ along `axes` alone, for what works on whole lines there.

    Returns:
        the label array with size 1 along `axes`.
    """
    if not varies(array, axes):
        return array
    first = array[tuple(slice(1) if axis in axes else slice(None) for axis in range(array.ndim))]
    labels.tie(array, first)
    return first
