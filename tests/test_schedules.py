"""Schedules are functions from an epoch to a number: one table of all of them, and the same tests for each."""

from __future__ import annotations

import dataclasses
import inspect
import math

import numpy as np
import pytest

from tfprune import schedules
from tfprune.errors import PlanError
from tfprune.schedules import (
    Asymptotic,
    Constant,
    Cosine,
    Exponential,
    Join,
    Ladder,
    Linear,
    OneShot,
    Polynomial,
    Rounds,
    WarmUp,
    as_schedule,
    join,
    named,
    warm_up,
)

# schedule -> its first value, its last one, and the epoch from which on it has that
ALL = {
    Constant(0.5): (0.5, 0.5, 0),
    OneShot(0.5, at=4): (0.0, 0.5, 4),
    Ladder((0.8, 0.7, 0.6, 0.55, 0.5), every=3): (0.8, 0.5, 12),
    Rounds(0.9, rounds=5, every=3): (1 - 0.1**0.2, 0.9, 12),
    Linear(0.1, 0.8, length=12): (0.1, 0.8, 12),
    Polynomial(0.1, 0.8, length=12): (0.1, 0.8, 12),
    Polynomial(0.8, 0.1, length=12, power=2): (0.8, 0.1, 12),
    Cosine(0.1, 0.8, length=12): (0.1, 0.8, 12),
    Exponential(0.1, 0.8, length=12): (0.1, 0.8, 12),
    Asymptotic(0.1, 0.8, length=16): (0.1, 0.8, 16),
    Join((Constant(0.2), Linear(0.2, 0.6, 5)), at=(3,)): (0.2, 0.6, 8),
    WarmUp(Polynomial(0.4, 0.8, 5), length=3, start=0.1): (0.1, 0.8, 8),
}

every_schedule = pytest.mark.parametrize("schedule", ALL, ids=lambda schedule: type(schedule).__name__)


def test_no_schedule_is_missing_here():
    classes = {
        kind for _, kind in inspect.getmembers(schedules, inspect.isclass) if kind.__module__ == schedules.__name__
    }
    assert classes == {type(schedule) for schedule in ALL}
    assert set(schedules.NAMES) == {"constant", "one_shot", "ladder", "rounds", "linear", "polynomial", "cosine",
                                    "exponential", "asymptotic"}  # fmt: skip


@every_schedule
def test_it_starts_and_ends_where_it_says(schedule):
    first, last, end = ALL[schedule]
    assert schedule(0) == pytest.approx(first, abs=1e-15) and schedule(-3) == schedule(0)
    assert schedule(end) == schedule(end + 1) == schedule(10**6) == last
    if end:
        assert schedule(end - 1) != last


@every_schedule
def test_it_stays_in_range_and_moves_one_way(schedule):
    values = [schedule(epoch) for epoch in range(40)]
    assert all(0 <= value <= 1 for value in values)
    steps = np.sign(np.diff(values))
    assert len(set(steps[steps != 0])) <= 1


@every_schedule
def test_it_is_a_value(schedule):
    again = eval(repr(schedule), vars(schedules))
    assert again == schedule and hash(again) == hash(schedule) and again is not schedule
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.end = 0.3


@every_schedule
@pytest.mark.parametrize("bad", [1.5, -0.1, float("nan"), True, "half", None])
def test_it_refuses_what_is_no_fraction(schedule, bad):
    for field in dataclasses.fields(schedule):
        if field.name in ("start", "end", "value"):
            with pytest.raises(PlanError, match=f"fractions in .0, 1., and {field.name}="):
                dataclasses.replace(schedule, **{field.name: bad})


@every_schedule
@pytest.mark.parametrize("bad", [-1, 0, 2.5, True, "3"])
def test_it_refuses_what_is_no_number_of_epochs(schedule, bad):
    for field in dataclasses.fields(schedule):
        if field.name in ("length", "every", "rounds"):
            with pytest.raises(PlanError, match=f"{field.name}="):
                dataclasses.replace(schedule, **{field.name: bad})


def test_ladder_stays_on_each_value_and_then_on_the_last():
    assert [Ladder((0.8, 0.7, 0.5), every=2)(epoch) for epoch in (-1, 0, 1, 2, 3, 4, 5, 99)] == [
        0.8, 0.8, 0.8, 0.7, 0.7, 0.5, 0.5, 0.5,
    ]  # fmt: skip
    assert Ladder([0.8, 0.7]) == Ladder((0.8, 0.7))


def test_polynomial_is_zhu_and_gupta():
    # s_t = s_f + (s_i - s_f)(1 - t/n)^3, by hand for s_i = 0, s_f = 0.8, n = 4.
    by_hand = [0.0, 0.8 - 0.8 * 27 / 64, 0.8 - 0.8 / 8, 0.8 - 0.8 / 64, 0.8, 0.8]
    assert [Polynomial(0.0, 0.8, 4)(t) for t in range(6)] == pytest.approx(by_hand)
    assert [Linear(0.0, 0.8, 4)(t) for t in range(6)] == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 0.8])


def test_cosine_by_hand():
    assert [Cosine(0.0, 1.0, 6)(t) for t in range(7)] == pytest.approx(
        [0, 0.5 - 3**0.5 / 4, 0.25, 0.5, 0.75, 0.5 + 3**0.5 / 4, 1]
    )


def test_exponential_takes_the_same_fraction_of_what_is_left():
    left = 1 - np.array([Exponential(0.2, 0.9, 7)(t) for t in range(8)])
    np.testing.assert_allclose(left[1:] / left[:-1], (0.1 / 0.8) ** (1 / 7))


def test_rounds_take_the_same_fraction_of_what_is_left():
    left = 1 - np.array([0.0, *(Rounds(0.98, rounds=5, every=30)(t) for t in range(0, 150, 30))])
    np.testing.assert_allclose(left[1:] / left[:-1], 0.02**0.2)
    assert Rounds(0.98, every=30)(29) == Rounds(0.98, every=30)(0)


@pytest.mark.parametrize(("goal", "length"), [(0.4, 200), (0.3, 100), (0.9, 16)])
def test_asymptotic_is_the_papers_curve(goal, length):
    """a exp(-k t) + b, through (0, 0), (1/8 of the training, 3/4 of the goal) and the goal."""
    values = np.array([Asymptotic(0.0, goal, length)(t) for t in range(length + 1)])
    assert values[0] == 0 and values[-1] == goal
    if length % 8 == 0:
        assert values[length // 8] == pytest.approx(0.75 * goal)
    steps = np.diff(values)
    np.testing.assert_allclose(steps[1:] / steps[:-1], steps[1] / steps[0], rtol=1e-4)  # which only that curve has


def test_joined_schedules_count_from_their_own_beginnings():
    three = join(OneShot(0.2, at=1), Linear(0.2, 0.6, 2), Constant(0.9), at=(2, 5))
    assert [three(t) for t in range(7)] == pytest.approx([0, 0.2, 0.2, 0.4, 0.6, 0.9, 0.9])
    own = lambda epoch: 0.01 * epoch  # noqa: E731
    assert join(Constant(0.0), own, at=2)(5) == pytest.approx(0.03)


def test_warm_up_leads_to_the_first_value():
    schedule = warm_up(Ladder((0.8, 0.5), every=2), length=4, start=0.4)
    assert [schedule(t) for t in range(8)] == pytest.approx([0.4, 0.5, 0.6, 0.7, 0.8, 0.8, 0.5, 0.5])


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), True, "half", [], [0.5, 2], ["0.5"], None])
def test_what_is_no_fraction_is_refused(value):
    with pytest.raises(PlanError, match="threshold"):
        as_schedule(value, 1, "threshold")


def test_numbers_sequences_and_functions():
    assert as_schedule(0.5, 3, "ratio") == Constant(0.5)
    assert as_schedule([0.8, 0.6], 3, "ratio") == Ladder((0.8, 0.6), 3)
    own = lambda epoch: 0.1 * epoch  # noqa: E731
    assert as_schedule(own, 3, "ratio") is own


@pytest.mark.parametrize("name", schedules.NAMES)
@pytest.mark.parametrize("length", [1, 3, 20])
def test_named_schedules_reach_the_end(name, length):
    schedule = named(name, 0.6, length)
    assert schedule(length) == pytest.approx(0.6, abs=1e-15)
    assert all(0 <= schedule(epoch) <= 0.6 for epoch in range(length))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: named("polynomal", 0.5, 3), "no schedule 'polynomal'.*did you mean 'polynomial'"),
        (lambda: named("linear", 1.5, 3), "end=1.5"),
        (lambda: named("constant", 0.5, 0), "length=0"),
        (lambda: as_schedule("linear", 1, "ratio"), r"schedules.named\('linear'"),
        (lambda: Ladder(()), "at least one value"),
        (lambda: Ladder("0.5"), r"values\[0\]='0'"),
        (lambda: OneShot(0.5, at=-1), "at=-1"),
        (lambda: Polynomial(0, 1, 4, power=0), "power=0"),
        (lambda: Polynomial(0, 1, 4, power=math.inf), "power=inf"),
        (lambda: Exponential(0, 1, 4), "never reaches 1"),
        (lambda: Asymptotic(0.3, 0.4, 8), "start lower"),
        (lambda: Asymptotic(0.5, 0.0, 8), "start lower"),
        (lambda: Asymptotic(0, 0.4, 8, knee=0.8), "start lower"),
        (lambda: Asymptotic(0, 0.4, 8, knee=1), "knee=1"),
        (lambda: join(Constant(0.1), at=()) and join(at=()), "takes schedules"),
        (lambda: join(Constant(0.1), Constant(0.2), at=(1, 2)), "joined at 1 places"),
        (lambda: join(Constant(0.1), Constant(0.2), Constant(0.3), at=(2, 2)), "ascending"),
        (lambda: join(Constant(0.1), 0.5, at=2), "takes schedules"),
        (lambda: warm_up(0.5, 3), "takes a schedule"),
    ],
)
def test_mistakes_are_told(make, message):
    with pytest.raises(PlanError, match=message):
        make()
