"""Products of two values that sum over an axis: attention's scores and its output, Dot, matmul, einsum."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tfprune.channels.labels import Indices, Labels, Shape
from tfprune.channels.ops.base import Bools, Facts, Floats, Narrowing, Op, Violation


@dataclass(eq=False)
class Product(Op):
    """An einsum of two values: each axis is a letter, the batch axis not counted.

    A letter of both operands that the output lacks is summed over: the operands' channels there are tied. A head, the
    letter `h` of `qhd,khd->hqk`, is a channel of its own that *contains* the channels it sums over; and in
    `hqk,khd->qhd` it contains those that it passes on.

    Attributes:
        letters: of the first operand, the second, and the output.
        averages: whether the first operand's numbers sum to 1 over what is summed (softmax before it), so that a
            constant of the second stays what it is.
    """

    letters: tuple[str, str, str]
    averages: bool = False

    def _varying(self, labels: dict[int, Indices]) -> tuple[str, str]:
        """The letters along which each operand's labels vary."""
        first, second = (
            "".join(letter for letter, size in zip(letters, labels[value].shape, strict=True) if size > 1)
            for letters, value in zip(self.letters, self.inputs, strict=False)
        )
        return first, second

    def obstacle(self, labels: Labels, shapes: dict[int, Shape]) -> str | None:
        varying = self._varying(labels.of)
        a, b, out = self.letters
        sizes = dict(zip(a + b, (*shapes[self.inputs[0]], *shapes[self.inputs[1]]), strict=True))
        for letter in set("".join(varying)):
            if (letter in a) != (letter in b) and letter not in out:
                return f"{self.layer} sums one side's channels alone"
            if letter in a and letter in b and (letter in varying[0]) != (letter in varying[1]):
                other = shapes[self.inputs[letter in varying[0]]][(b if letter in varying[0] else a).index(letter)]
                if other != 1 or sizes[letter] == 1:
                    return f"{self.layer} multiplies channels with positions"
        if self._kind(varying) is None:
            return f"{self.layer} multiplies channels in a way that is not followed"
        return None

    def _summed(self, varying: tuple[str, str]) -> str:
        return "".join(letter for letter in varying[0] if letter in varying[1] and letter not in self.letters[2])

    def _written(self, varying: tuple[str, str]) -> str:
        return "".join(letter for letter in self.letters[2] if letter in varying[0] + varying[1])

    def _kind(self, varying: tuple[str, str]) -> str | None:
        """Whose labels the output carries: both operands', one's, or its own inside or around theirs."""
        a, b = (set(letters) for letters in varying)
        out, summed = set(self._written(varying)), set(self._summed(varying))
        if summed:
            return "around" if out <= a and out <= b else None
        if a == b == out:
            return "tied"
        if a == out:
            return "first"
        return "second" if b == out else "inside"

    def _aligned(self, arrays: tuple[NDArray, NDArray]) -> tuple[NDArray, NDArray, str]:
        """Both operands' arrays with all letters as axes, so that they broadcast; and the letters."""
        letters = self._all_letters
        return _spread(arrays[0], self.letters[0], letters), _spread(arrays[1], self.letters[1], letters), letters

    def label(self, labels: Labels, shapes: dict[int, Shape]) -> None:
        varying = self._varying(labels.of)
        kind, summed, written = self._kind(varying), self._summed(varying), self._written(varying)
        first, second, letters = self._aligned((labels.of[self.inputs[0]], labels.of[self.inputs[1]]))
        if summed or kind == "tied":
            labels.tie(first, second)
        shared = "".join(letter for letter in written if letter in varying[0] and letter in varying[1])
        for array, own in ((first, varying[0]), (second, varying[1])):
            if shared and len(own) > len(shared):
                # Every head has as many channels as the next.
                labels.lockstep(array, _first(array, letters, shared))
        if kind == "tied" or kind == "first":
            out = first
        elif kind == "second":
            out = second
        elif written:
            sizes = [first.shape[axis] * second.shape[axis] // (first.shape[axis] if letter in shared else 1)
                     for axis, letter in enumerate(letters) if letter in written]  # fmt: skip
            own_letters = "".join(letter for letter in letters if letter in written)
            fresh = labels.fresh(math.prod(sizes), self.layer if kind == "around" else "")
            out = _spread(fresh.reshape(sizes), own_letters, letters)
        else:
            out = labels.protected_value(len(letters), f"{self.layer} writes no channels")
        for array, own in ((first, varying[0]), (second, varying[1])):
            if kind == "around" and written:
                labels.contain(out, array)
                labels.lockstep(*_owners(out, array))
            elif kind == "inside" or (kind in ("first", "second") and array is not out and own):
                labels.contain(array, out)
        labels.of[self.output] = _gathered(out, letters, self.letters[2])

    def forward(self, facts: Facts) -> None:
        first, second, letters = self._aligned((facts.constant[self.inputs[0]], facts.constant[self.inputs[1]]))
        zero = (first == 0) | (second == 0)
        zero = zero.all(axis=self._dropped(letters), keepdims=True)
        result = np.where(zero, 0.0, np.nan)
        if self.averages:
            result = np.where(zero, result, _same(second, self._dropped(letters)))
        shape = facts.labels[self.output].shape
        gathered = _gathered(result, letters, self.letters[2])
        extra = tuple(axis for axis in range(len(shape)) if shape[axis] == 1 and gathered.shape[axis] > 1)
        facts.constant[self.output] = np.broadcast_to(_same(gathered, extra), shape)

    def _dropped(self, letters: str) -> tuple[int, ...]:
        """The axes, among `letters`, that the output lacks."""
        return tuple(axis for axis, letter in enumerate(letters) if letter not in self.letters[2])

    def backward(self, facts: Facts) -> None:
        first, second, letters = self._aligned((facts.constant[self.inputs[0]], facts.constant[self.inputs[1]]))
        read = _spread(facts.read[self.output], self.letters[2], letters)
        # What is averaged to the constant that it is does not depend on the weights of the average.
        passive = np.isfinite(second) if self.averages else second == 0
        # Where both are 0 the second is read: it could become something else otherwise, and so could the first.
        both = (read & ~passive, read & ((first != 0) | (second == 0)))
        for value, axes, wanted in zip(self.inputs, self.letters, both, strict=False):
            facts.demand(value, _any_over(wanted, letters, axes))

    def unfoldable(self, facts: Facts) -> dict[int, Bools]:
        """A constant other than 0 adds to what is summed over channels, and has nowhere to go."""
        varying = self._varying(facts.labels)
        summed = self._summed(varying)
        if not summed:
            return {}
        found = {}
        for value in self.inputs:
            constant = facts.constant[value]
            kept = np.isfinite(constant) & (constant != 0) & facts.read[value]
            if kept.any():
                found[value] = kept
        return found

    def narrow(self, new: Narrowing) -> None:
        varying = self._varying(new.labels)
        written = self._written(varying)
        kept = [new.kept[value] for value in self.inputs]
        labels = [new.labels[value] for value in self.inputs]
        if not all(k.size for k in kept) and any(k.size for k in kept):
            dead = np.concatenate([array.ravel() for k, array in zip(kept, labels, strict=True) if not k.size])
            raise Violation(dead[~new.keep[dead]][:1], f"{self.layer} would have nothing left on one side")
        own = new.labels[self.output]
        if not kept[0].size:
            self._check_out(new, np.zeros(0, np.intp), varying)
            new.kept[self.output] = np.zeros([0] * own.ndim, np.intp)
            return
        places = [
            dict(zip(axes, np.unravel_index(k, array.shape), strict=True))
            for axes, k, array in zip(self.letters, kept, labels, strict=False)
        ]
        for letter in varying[0]:
            if letter in varying[1]:
                self._match(new, letter, varying, places)
        out, letters = self.letters[2], self._all_letters
        coordinates = [np.zeros([1] * len(out), np.intp)] * len(out)
        for letter in written:
            which = 0 if letter in varying[0] else 1
            array = places[which][letter]
            axes = self.letters[which]
            lost = tuple(axis for axis, name in enumerate(axes) if name not in out)
            first = array[tuple(slice(0, 1) if axis in lost else slice(None) for axis in range(array.ndim))]
            if (array != first).any():
                raise Violation(labels[which], f"{self.layer} would mix up its heads")
            coordinates[out.index(letter)] = _gathered(_spread(first, axes, letters), letters, out)
        shape = np.broadcast_shapes(*(array.shape for array in coordinates))
        coordinates = [np.broadcast_to(array, shape) for array in coordinates]
        flat = np.ravel_multi_index(coordinates, own.shape) if own.ndim else np.zeros((), np.intp)
        self._check_out(new, np.asarray(flat), varying)
        new.kept[self.output] = np.asarray(flat)

    def _match(self, new: Narrowing, letter: str, varying: tuple[str, str], places: list[dict[str, Indices]]) -> None:
        """Both operands must have kept the same along a letter.

        Raises:
            Violation: with the labels that one of them lacks.
        """
        pair = [
            _spread(place[letter], axes, self._all_letters) for place, axes in zip(places, self.letters, strict=False)
        ]
        same = all(a == b or a == 1 or b == 1 for a, b in zip(pair[0].shape, pair[1].shape, strict=True))
        if same and bool(np.all(pair[0] == pair[1])):
            return
        for which in (0, 1):
            here, there = set(pair[which].ravel().tolist()), set(pair[1 - which].ravel().tolist())
            missing = np.array(sorted(there - here), np.intp)
            if len(missing):
                array = np.moveaxis(new.labels[self.inputs[which]], self.letters[which].index(letter), 0)[missing]
                gone = array.reshape(len(missing), -1)
                # One of each is enough to bring the head back.
                raise Violation(gone[:, :1], f"{self.layer} would have other heads on one side than on the other")
        self._bring_back(new, np.concatenate([new.labels[value].ravel() for value in self.inputs]))

    @property
    def _all_letters(self) -> str:
        """Each letter of the operands once; the output has no others."""
        return "".join(dict.fromkeys(self.letters[0] + self.letters[1]))

    def _bring_back(self, new: Narrowing, labels: Indices) -> None:
        raise Violation(labels[~new.keep[labels]], f"{self.layer} would multiply channels that no longer match")

    def _check_out(self, new: Narrowing, flat: Indices, varying: tuple[str, str]) -> None:
        """What the output's own labels say must be what is left.

        Raises:
            Violation: a head stays although all of its channels are gone, or is gone although some stay.
        """
        own = new.labels[self.output].ravel()
        here = np.zeros(own.size, bool)
        here[flat.ravel()] = True
        gone = own[here & ~new.keep[own]]
        if len(gone):
            raise Violation(gone, f"{self.layer} still has channels of it")
        missing = np.flatnonzero(~here & new.keep[own])
        if not len(missing) or self._kind(varying) in ("tied", "first", "second"):
            return
        kept = np.zeros(own.size, bool)
        kept[missing] = True
        shape = new.labels[self.output].shape
        spread = _spread(kept.reshape(shape), self.letters[2], self._all_letters)
        numbers = _spread(np.arange(own.size).reshape(shape), self.letters[2], self._all_letters)
        for value, axes in zip(self.inputs, self.letters, strict=False):
            array = _spread(new.labels[value], axes, self._all_letters)
            shape = np.broadcast_shapes(array.shape, spread.shape)
            here = np.broadcast_to(spread, shape) & ~new.keep[np.broadcast_to(array, shape)]
            wanted = np.broadcast_to(array, shape)[here]
            if len(wanted):
                # One channel of each head.
                heads = np.broadcast_to(numbers, shape)[here]
                _, first = np.unique(heads, return_index=True)
                raise Violation(wanted[first], f"{self.layer} needs a channel of each head that stays")


def _spread(array: NDArray, axes: str, letters: str) -> NDArray:
    """An array whose axes are named `axes` with all of `letters` as axes; size 1 where it has none."""
    order = [axes.index(letter) for letter in letters if letter in axes]
    moved = array.transpose(order)
    return moved[tuple(slice(None) if letter in axes else None for letter in letters)]


def _gathered(array: NDArray, letters: str, axes: str) -> NDArray:
    """An array over all `letters` with `axes` alone; the others must have size 1."""
    others = tuple(axis for axis, letter in enumerate(letters) if letter not in axes)
    left = "".join(letter for letter in letters if letter in axes)
    return array.squeeze(others).transpose([left.index(letter) for letter in axes])


def _owners(outer: Indices, inner: Indices) -> tuple[Indices, Indices]:
    """Each owner of an inner label beside the first that owns it: query heads that share a key head go together."""
    outer, inner = (array.ravel() for array in np.broadcast_arrays(outer, inner))
    _, first, where = np.unique(inner, return_index=True, return_inverse=True)
    return outer, outer[first][where]


def _first(array: NDArray, letters: str, along: str) -> NDArray:
    """The first entry along some letters."""
    return array[tuple(slice(0, 1) if letter in along else slice(None) for letter in letters)]


def _same(array: Floats, axes: tuple[int, ...]) -> Floats:
    """The number that an array is all along some axes, NaN where it is not the same there; those axes have size 1."""
    if not axes:
        return array
    first = array.min(axis=axes, keepdims=True)
    return np.where((array == first).all(axis=axes, keepdims=True), first, np.nan)


def _any_over(wanted: Bools, letters: str, axes: str) -> Bools:
    """Whether any is wanted, with `axes` alone."""
    others = tuple(axis for axis, letter in enumerate(letters) if letter not in axes)
    return _gathered(np.any(wanted, axis=others, keepdims=True), letters, axes)
