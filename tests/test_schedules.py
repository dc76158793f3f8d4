"""Schedules are functions from an epoch to a number, with their ends where the docstring says."""

import pytest

from tfprune.errors import PlanError
from tfprune.schedules import Constant, Ladder, Polynomial, as_schedule


def test_ladder_stays_on_each_value_and_then_on_the_last():
    assert [Ladder((0.8, 0.7, 0.5), every=2)(epoch) for epoch in (-1, 0, 1, 2, 3, 4, 5, 99)] == [
        0.8, 0.8, 0.8, 0.7, 0.7, 0.5, 0.5, 0.5,
    ]  # fmt: skip


def test_polynomial_is_zhu_and_gupta():
    # s_t = s_f + (s_i - s_f)(1 - t/n)^3, by hand for s_i = 0, s_f = 0.8, n = 4.
    by_hand = [0.0, 0.8 - 0.8 * 27 / 64, 0.8 - 0.8 / 8, 0.8 - 0.8 / 64, 0.8, 0.8]
    assert [Polynomial(0.0, 0.8, 4)(t) for t in range(6)] == pytest.approx(by_hand)


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), True, "half", [], [0.5, 2], ["0.5"], None])
def test_what_is_no_fraction_is_refused(value):
    with pytest.raises(PlanError, match="threshold"):
        as_schedule(value, 1, "threshold")


def test_numbers_sequences_and_functions():
    assert as_schedule(0.5, 3, "ratio") == Constant(0.5)
    assert as_schedule([0.8, 0.6], 3, "ratio") == Ladder((0.8, 0.6), 3)
    own = lambda epoch: 0.1 * epoch  # noqa: E731
    assert as_schedule(own, 3, "ratio") is own


@pytest.mark.parametrize("make", [lambda: Ladder(()), lambda: Ladder((0.5,), every=0), lambda: Polynomial(0, 1, 0)])
def test_schedules_check_themselves(make):
    with pytest.raises(PlanError):
        make()
