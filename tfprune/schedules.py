"""From progress to a threshold or a ratio. A schedule is any function from an epoch (or step) to a number.

The ones here are values: frozen, comparable, printable, and composable by plain Python. Progress is a count of epochs
or of steps, whichever `SoftPruning(every=...)` counts; before 0 it has its first value, behind its end the last.

| value | from start to end |
|---|---|
| `Constant` | always the same |
| `OneShot` | nothing, then all at once |
| `Ladder` | given values in turn |
| `Rounds` | rounds that each take the same fraction of what is left |
| `Linear`, `Polynomial` | straight; fast first and slow last (Zhu & Gupta) |
| `Cosine` | slow, fast, slow |
| `Exponential` | the same fraction of what is left every epoch or step |
| `Asymptotic` | three quarters early, the rest slowly (ASFP) |

`join` puts schedules one after the other, `warm_up` lets one begin gently. `docs/schedules.md` draws them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral, Real
from typing import Any

from scipy.optimize import brentq

from tfprune.errors import PlanError, nearest

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class Constant:
    """The same value at every epoch or step.

    >>> Constant(0.5)(7)
    0.5
    """

    value: float

    def __post_init__(self) -> None:
        _fractions("a constant schedule", value=self.value)

    def __call__(self, progress: int) -> float:
        return self.value


@dataclass(frozen=True)
class OneShot:
    """0 before `at`, `value` from then on.

    >>> [OneShot(0.5, at=2)(epoch) for epoch in range(4)]
    [0.0, 0.0, 0.5, 0.5]
    """

    value: float
    at: int = 0

    def __post_init__(self) -> None:
        _fractions("a one-shot schedule", value=self.value)
        _whole("one shot is fired at an epoch or step from 0 on", at=self.at, low=0)

    def __call__(self, progress: int) -> float:
        return self.value if progress >= self.at else 0.0


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
        if not isinstance(self.values, Sequence) or not self.values:
            raise PlanError(f"a ladder needs at least one value, and {self.values!r} came")
        object.__setattr__(self, "values", tuple(self.values))
        _fractions("a ladder", **{f"values[{index}]": value for index, value in enumerate(self.values)})
        _whole("a ladder stays on each value for at least 1 epoch or step", every=self.every)

    def __call__(self, progress: int) -> float:
        return self.values[min(max(progress, 0) // self.every, len(self.values) - 1)]


@dataclass(frozen=True)
class Rounds:
    """Up to `end` in `rounds` steps, one every `every` epochs or steps, each of the same fraction of what is left.

    After round r: 1 - (1 - end) ** (r / rounds); the first round is at 0.

    Source: Torch-Pruning's first README prunes a ResNet-18 in five rounds with 30 epochs of training after each. Rounds
    of an equal fraction of what is left are Frankle & Carbin's, "The Lottery Ticket Hypothesis" (arXiv:1803.03635).

    >>> [round(Rounds(0.75, rounds=2, every=2)(epoch), 2) for epoch in range(5)]
    [0.5, 0.5, 0.75, 0.75, 0.75]
    """

    end: float
    rounds: int = 5
    every: int = 1

    def __post_init__(self) -> None:
        _fractions("a schedule in rounds", end=self.end)
        _whole("a schedule in rounds has at least 1", rounds=self.rounds)
        _whole("a round lasts at least 1 epoch or step", every=self.every)

    def __call__(self, progress: int) -> float:
        done = min(max(progress, 0) // self.every + 1, self.rounds)
        return self.end if done == self.rounds else 1 - (1 - self.end) ** (done / self.rounds)


@dataclass(frozen=True)
class Polynomial:
    """From `start` to `end` over `length` epochs or steps, fast first: end + (start - end) * (1 - t / length) ** power.

    power 3 is Zhu & Gupta, "To prune, or not to prune" (arXiv:1710.01878); power 1 is linear. Before 0 it is `start`,
    from `length` on `end`.

    >>> [round(Polynomial(0.0, 0.8, length=4)(epoch), 3) for epoch in range(6)]
    [0.0, 0.463, 0.7, 0.788, 0.8, 0.8]
    """

    start: float
    end: float
    length: int
    power: float = 3.0

    def __post_init__(self) -> None:
        _ramp("a polynomial schedule", self.start, self.end, self.length)
        if not _is_number(self.power) or not 0 < self.power < math.inf:
            raise PlanError(f"a polynomial schedule needs a power above 0, and power={self.power!r} came")

    def __call__(self, progress: int) -> float:
        return _between(self.start, self.end, 1 - (1 - _part(progress, self.length)) ** self.power)


@dataclass(frozen=True)
class Linear:
    """From `start` to `end` over `length` epochs or steps, evenly: start + (end - start) * t / length.

    >>> [round(Linear(0.0, 0.8, length=4)(epoch), 2) for epoch in range(6)]
    [0.0, 0.2, 0.4, 0.6, 0.8, 0.8]
    """

    start: float
    end: float
    length: int

    def __post_init__(self) -> None:
        _ramp("a linear schedule", self.start, self.end, self.length)

    def __call__(self, progress: int) -> float:
        return Polynomial(self.start, self.end, self.length, power=1.0)(progress)


@dataclass(frozen=True)
class Cosine:
    """From `start` to `end` over `length`, slow at both ends: end + (start - end) * (1 + cos(pi * t / length)) / 2.

    Source: the half period of Loshchilov & Hutter, "SGDR" (arXiv:1608.03983), from learning rates.

    >>> [round(Cosine(0.0, 0.8, length=4)(epoch), 3) for epoch in range(6)]
    [0.0, 0.117, 0.4, 0.683, 0.8, 0.8]
    """

    start: float
    end: float
    length: int

    def __post_init__(self) -> None:
        _ramp("a cosine schedule", self.start, self.end, self.length)

    def __call__(self, progress: int) -> float:
        return _between(self.start, self.end, (1 - math.cos(math.pi * _part(progress, self.length))) / 2)


@dataclass(frozen=True)
class Exponential:
    """What is left shrinks by the same factor every epoch or step, from 1 - start to 1 - end over `length`.

    1 - (1 - start) * ((1 - end) / (1 - start)) ** (t / length), with start and end below 1.

    Source: what iterative pruning comes to with one round an epoch or step, as in Frankle & Carbin, "The Lottery Ticket
    Hypothesis" (arXiv:1803.03635).

    >>> [round(Exponential(0.0, 0.75, length=2)(epoch), 2) for epoch in range(4)]
    [0.0, 0.5, 0.75, 0.75]
    """

    start: float
    end: float
    length: int

    def __post_init__(self) -> None:
        _ramp("an exponential schedule", self.start, self.end, self.length)
        if max(self.start, self.end) >= 1:
            raise PlanError(f"an exponential schedule never reaches 1, and start={self.start}, end={self.end} came")

    def __call__(self, progress: int) -> float:
        part = _part(progress, self.length)
        if part in (0, 1):
            return self.end if part else self.start
        return 1 - (1 - self.start) * ((1 - self.end) / (1 - self.start)) ** part


@dataclass(frozen=True)
class Asymptotic:
    """The curve a * exp(-k * t) + b through (0, start), (knee * length, 3/4 * end) and (length, end).

    Three quarters of the ratio come early, the rest slowly: with the paper's knee after an eighth of the training.

    Source: He et al., "Asymptotic Soft Filter Pruning" (arXiv:1808.07471), where start is 0 and knee is 1/8.

    >>> [round(Asymptotic(0.0, 0.4, length=16)(epoch), 3) for epoch in (0, 2, 8, 16, 20)]
    [0.0, 0.3, 0.398, 0.4, 0.4]
    """

    start: float
    end: float
    length: int
    knee: float = 0.125

    def __post_init__(self) -> None:
        _ramp("an asymptotic schedule", self.start, self.end, self.length)
        if not _is_number(self.knee) or not 0 < self.knee < 1:
            raise PlanError(f"the knee of an asymptotic schedule lies between 0 and 1, and knee={self.knee!r} came")
        if (self.start or self.end) and not self.knee < self._early < 1:
            raise PlanError(
                f"an asymptotic schedule bends upwards: at knee={self.knee} it must be above the straight line from "
                f"start={self.start} to end={self.end}, and 3/4 of end is not; start lower, or use Linear or Polynomial"
            )

    @property
    def _early(self) -> float:
        """Which part of the way is done at the knee."""
        way = self.end - self.start
        return (0.75 * self.end - self.start) / way if way else math.inf

    @cached_property
    def _decay(self) -> float:
        """k * length, from (1 - exp(-k * knee * length)) / (1 - exp(-k * length)) = the part done at the knee."""
        return brentq(lambda k: math.expm1(-k * self.knee) / math.expm1(-k) - self._early, 1e-9, 700.0)

    def __call__(self, progress: int) -> float:
        part = _part(progress, self.length)
        if not self.end or part in (0, 1):
            return self.end if part == 1 else self.start
        return _between(self.start, self.end, math.expm1(-self._decay * part) / math.expm1(-self._decay))


@dataclass(frozen=True)
class Join:
    """Schedules one after the other; each counts from its own beginning.

    `at[i]` is where schedule i + 1 begins. See `join`.
    """

    schedules: tuple[Schedule, ...]
    at: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.schedules or not all(map(callable, self.schedules)):
            raise PlanError(f"join takes schedules, and {self.schedules!r} came")
        if len(self.at) != len(self.schedules) - 1:
            raise PlanError(
                f"{len(self.schedules)} schedules are joined at {len(self.schedules) - 1} places, and at={self.at} came"
            )
        for place in self.at:
            _whole("schedules are joined at an epoch or step", at=place)
        if list(self.at) != sorted(set(self.at)):
            raise PlanError(f"schedules are joined at ascending epochs or steps, and at={self.at} came")

    def __call__(self, progress: int) -> float:
        index = sum(progress >= place for place in self.at)
        return self.schedules[index](progress - (self.at[index - 1] if index else 0))


def join(*schedules: Schedule, at: int | Sequence[int]) -> Join:
    """Schedules one after the other; each counts from its own beginning.

    Args:
        schedules: two or more.
        at: the epochs or steps at which the second and later ones begin; a number for two schedules.

    Raises:
        PlanError: not one place fewer than schedules, or places that do not ascend.

    >>> both = join(Constant(0.0), Linear(0.0, 0.5, length=2), at=3)
    >>> [both(epoch) for epoch in range(7)]
    [0.0, 0.0, 0.0, 0.0, 0.25, 0.5, 0.5]
    """
    return Join(tuple(schedules), tuple(at) if isinstance(at, Sequence) else (at,))


@dataclass(frozen=True)
class WarmUp:
    """Evenly from `start` to the schedule's first value over `length` epochs or steps, then the schedule.

    See `warm_up`.
    """

    schedule: Schedule
    length: int
    start: float = 0.0

    def __post_init__(self) -> None:
        if not callable(self.schedule):
            raise PlanError(f"warm_up takes a schedule, and {self.schedule!r} came")
        _ramp("a warm-up", self.start, 1.0, self.length)

    def __call__(self, progress: int) -> float:
        if progress >= self.length:
            return self.schedule(progress - self.length)
        return _between(self.start, self.schedule(0), _part(progress, self.length))


def warm_up(schedule: Schedule, length: int, start: float = 0.0) -> WarmUp:
    """Let a schedule begin gently: evenly from `start` to its first value over `length` epochs or steps, then it runs.

    Raises:
        PlanError: it is no schedule, length is below 1, or start is not in [0, 1].

    >>> [warm_up(Constant(0.5), length=2)(epoch) for epoch in range(4)]
    [0.0, 0.25, 0.5, 0.5]
    """
    return WarmUp(schedule, length, start)


# Name -> the schedule that brings a value to `end` over `length` epochs or steps.
_NAMED: dict[str, Callable[[float, int], Schedule]] = {
    "constant": lambda end, length: Constant(end),
    "one_shot": lambda end, length: OneShot(end),
    "ladder": lambda end, length: Ladder(_rungs(end, min(5, length)), max(1, length // 5)),
    "rounds": lambda end, length: Rounds(end, min(5, length), max(1, length // 5)),
    "linear": lambda end, length: Linear(0.0, end, length),
    "polynomial": lambda end, length: Polynomial(0.0, end, length),
    "cosine": lambda end, length: Cosine(0.0, end, length),
    "exponential": lambda end, length: Exponential(0.0, end, length),
    "asymptotic": lambda end, length: Asymptotic(0.0, end, length),
}

NAMES = tuple(_NAMED)


def _rungs(end: float, count: int) -> tuple[float, ...]:
    return (*(end * rung / count for rung in range(1, count)), end)


def named(name: str, end: float, length: int) -> Schedule:
    """The schedule with this name, from 0 to `end` over `length` epochs or steps.

    Names: constant, one_shot, ladder (five equal steps), rounds (five), linear, polynomial, cosine, exponential,
    asymptotic.

    Raises:
        PlanError: there is none with this name, or a value is out of range.

    >>> named("polynomial", 0.5, length=20)
    Polynomial(start=0.0, end=0.5, length=20, power=3.0)
    """
    if name not in _NAMED:
        raise PlanError(f"there is no schedule {name!r}; there are {', '.join(_NAMED)}{nearest(str(name), _NAMED)}")
    _fractions(f"the schedule {name!r}", end=end)
    _whole(f"the schedule {name!r} runs over at least 1 epoch or step", length=length)
    return _NAMED[name](end, length)


def as_schedule(value: float | Sequence[float] | Schedule, every: int, name: str) -> Schedule:
    """A number as a constant, a sequence as a ladder; a schedule as it is.

    Raises:
        PlanError: a number is not in [0, 1], or it is none of these.
    """
    if callable(value):
        return value
    numbers = [value] if isinstance(value, Real) else list(value) if isinstance(value, Sequence) else []
    if not numbers or isinstance(value, str):
        hint = f"; a schedule by name is tfprune.schedules.named({value!r}, end, length)" if value in NAMES else ""
        raise PlanError(f"{name} must be a number, a sequence of numbers or a schedule, and {value!r} came{hint}")
    for number in numbers:
        if not _is_number(number) or not 0 <= float(number) <= 1:
            raise PlanError(f"{name} must be numbers in [0, 1], and {number!r} came")
    values = tuple(float(number) for number in numbers)
    return Constant(values[0]) if isinstance(value, Real) else Ladder(values, max(every, 1))


# -- what they share ----------------------------------------------------------------------------------------------


def _part(progress: int, length: int) -> float:
    """Which part of the way is done, from 0 to 1."""
    return min(max(progress, 0), length) / length


def _between(start: float, end: float, part: float) -> float:
    """The value at a part of the way; exact at both ends."""
    return end + (start - end) * (1 - part) if part else start


def _ramp(what: str, start: float, end: float, length: int) -> None:
    _fractions(what, start=start, end=end)
    _whole(f"{what} runs over at least 1 epoch or step", length=length)


def _fractions(what: str, **values: Any) -> None:
    for name, value in values.items():
        if not _is_number(value) or not 0 <= value <= 1:
            raise PlanError(f"{what} takes fractions in [0, 1], and {name}={value!r} came")


def _whole(needed: str, *, low: int = 1, **values: Any) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < low:
            raise PlanError(f"{needed}, and {name}={value!r} came")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
