"""From progress to a threshold or a ratio. A schedule is any function from an epoch (or step) to a number.

The ones here are values: frozen, comparable, printable, and composable by plain Python.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real

from tfprune.errors import PlanError

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class Constant:
    """The same value at every epoch or step.

    >>> Constant(0.5)(7)
    0.5
    """

    value: float

    def __call__(self, progress: int) -> float:
        return self.value


@dataclass(frozen=True)
class Ladder:
    """Each value in turn, for `every` epochs or steps; then the last one.

    Source: the threshold ladder of Tensorflow_Model_Pruning (0.8, 0.7, 0.6, 0.55, 0.5).

    >>> [Ladder((0.8, 0.7), every=2)(epoch) for epoch in range(6)]
    [0.8, 0.8, 0.7, 0.7, 0.7, 0.7]
    """

    values: tuple[float, ...]
    every: int = 1

    def __post_init__(self) -> None:
        if not self.values:
            raise PlanError("a ladder needs at least one value")
        if self.every < 1:
            raise PlanError(f"a ladder stays on each value for at least 1 epoch or step, and every={self.every} came")

    def __call__(self, progress: int) -> float:
        return self.values[min(max(progress, 0) // self.every, len(self.values) - 1)]


@dataclass(frozen=True)
class Polynomial:
    """From `start` to `end` over `length` epochs or steps, fast first: end + (start - end) * (1 - t / length) ** power.

    power 3 is Zhu & Gupta, "To prune, or not to prune" (arXiv:1710.01878); power 1 is linear. Before 0 it is `start`,
    from `length` on `end`.

    >>> [round(Polynomial(0.0, 0.8, length=4, power=1)(epoch), 2) for epoch in range(6)]
    [0.0, 0.2, 0.4, 0.6, 0.8, 0.8]
    """

    start: float
    end: float
    length: int
    power: float = 3.0

    def __post_init__(self) -> None:
        if self.length < 1:
            raise PlanError(f"a schedule runs over at least 1 epoch or step, and length={self.length} came")

    def __call__(self, progress: int) -> float:
        left = 1 - min(max(progress, 0), self.length) / self.length
        return self.end + (self.start - self.end) * left**self.power


def as_schedule(value: float | Sequence[float] | Schedule, every: int, name: str) -> Schedule:
    """A number as a constant, a sequence as a ladder; a schedule as it is.

    Raises:
        PlanError: a number is not in [0, 1], or it is none of these.
    """
    if callable(value):
        return value
    numbers = [value] if isinstance(value, Real) else list(value) if isinstance(value, Sequence) else []
    if not numbers:
        raise PlanError(f"{name} must be a number, a sequence of numbers or a schedule, and {value!r} came")
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, Real) or not 0 <= float(number) <= 1:
            raise PlanError(f"{name} must be numbers in [0, 1], and {number!r} came")
    values = tuple(float(number) for number in numbers)
    return Constant(values[0]) if isinstance(value, Real) else Ladder(values, max(every, 1))
