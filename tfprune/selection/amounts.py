"""What a user asks for, checked: a threshold, a ratio, a count or budgets; and the limits on each group."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tfprune.errors import PlanError

Scope = Literal["local", "global", "isomorphic"]
SCOPES = ("local", "global", "isomorphic")
#: What is left may be so much less than a budget, as a fraction of it, and counts as meeting it.
TOLERANCE = 0.01


@dataclass(frozen=True)
class Limits:
    """How many channels of a group may go at most, and in which steps.

    Attributes:
        round_to: the number that goes is a multiple of this.
        min_width: so many channels stay at least.
        max_ratio: at most this fraction of a group's width goes.
    """

    round_to: int = 4
    min_width: int = 1
    max_ratio: float | None = None

    def most(self, width: int) -> int:
        """How many of a group's channels may go."""
        free = width - self.min_width
        if self.max_ratio is not None:
            free = min(free, int(self.max_ratio * width + 1e-9))
        return max(0, free // self.round_to * self.round_to)

    def rounded(self, wanted: int, width: int) -> int:
        """How many go when so many were to go: the nearest multiple, half a multiple up.

        >>> [Limits(4).rounded(wanted, width=12) for wanted in (1, 2, 5, 6, 12)]
        [0, 4, 4, 8, 8]
        """
        return min((wanted + self.round_to // 2) // self.round_to * self.round_to, self.most(width))

    def why_not(self, wanted: int, width: int) -> str:
        """Why not one of a group's channels goes, when so many were to go."""
        if self.most(width) > 0:
            return f"{wanted} of {width} were to go, which is 0 with round_to={self.round_to}"
        if width > self.min_width and self.max_ratio is None:
            return f"with round_to={self.round_to} nothing can go without emptying it (width {width})"
        return f"{self} let nothing go (width {width})"

    def __str__(self) -> str:
        limits = [] if self.max_ratio is None else [f"max_ratio={self.max_ratio:g}"]
        return " and ".join([f"round_to={self.round_to}", f"min_width={self.min_width}", *limits])


@dataclass(frozen=True)
class Request:
    """What goes: one amount, or budgets.

    Attributes:
        kind: `threshold`, `ratio`, `count` or `budget`.
        amount: a number, or layer pattern -> number; None for budgets.
        budgets: name -> the fraction of the unpruned model's cost that is left.
        scope: what is ranked together, and what an amount is a fraction of: `local` each group by itself,
            `isomorphic` all groups of one structure, `global` all groups.
        limits: on each group.
    """

    kind: str
    amount: Any
    budgets: Mapping[str, float]
    scope: Scope
    limits: Limits

    @classmethod
    def checked(
        cls,
        *,
        threshold: Any = None,
        ratio: Any = None,
        count: Any = None,
        params: Any = None,
        macs: Any = None,
        latency: Any = None,
        file_bytes: Any = None,
        scope: Scope = "local",
        round_to: int | None = None,
        min_width: int = 1,
        max_ratio: float | None = None,
    ) -> Request:
        """The request that these arguments of `select` make.

        Raises:
            PlanError: they contradict each other, or one is no number of its range.
        """
        amounts = _given(threshold=threshold, ratio=ratio, count=count)
        budgets = _given(params=params, macs=macs, latency=latency, **_files(file_bytes))
        kind = _one_kind(amounts, budgets)
        for name, value in budgets.items():
            _check_budget(name, value)
        if kind != "budget":
            _check_amount(kind, amounts[kind])
        if scope not in SCOPES:
            raise PlanError(f"scope is one of {', '.join(map(repr, SCOPES))}, and {scope!r} came")
        steps = (1 if kind == "count" else 4) if round_to is None else whole("round_to", round_to)
        if max_ratio is not None:
            fraction("max_ratio", max_ratio)
        limits = Limits(steps, whole("min_width", min_width), max_ratio)
        return cls(kind, amounts.get(kind), budgets, scope, limits)

    def __str__(self) -> str:
        if self.kind == "budget":
            text = " and ".join(f"{left:.4g} of {spoken(name)} left" for name, left in self.budgets.items())
        elif isinstance(self.amount, Mapping):
            text = f"{self.kind} " + ", ".join(f"{pattern}: {value:g}" for pattern, value in self.amount.items())
        else:
            text = f"{self.kind} {self.amount:g}"
        text += "" if self.scope == "local" else f", {self.scope}"
        return text + (f", rounded to {self.limits.round_to}" if self.limits.round_to > 1 else "")


def spoken(budget: str) -> str:
    """A budget's name in a sentence.

    >>> spoken("macs"), spoken("onnx")
    ('the MACs', "the .onnx file's bytes")
    """
    words = {"params": "the parameters", "macs": "the MACs", "latency": "the latency"}
    return words.get(budget, f"the .{budget} file's bytes")


def fraction(name: str, value: Any) -> float:
    """A number in [0, 1].

    Raises:
        PlanError: it is none.
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.number) or math.isnan(float(value)):
        raise PlanError(f"{name} must be a number in [0, 1], and {value!r} came")
    if not 0 <= value <= 1:
        raise PlanError(f"{name} must be in [0, 1], and {value} came; 0.5 is half")
    return float(value)


def whole(name: str, value: Any, least: int = 1) -> int:
    """A whole number of at least `least`.

    Raises:
        PlanError: it is none.
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer) or value < least:
        raise PlanError(f"{name} must be a whole number of at least {least}, and {value!r} came")
    return int(value)


def _given(**arguments: Any) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}


def _files(file_bytes: Any) -> dict[str, Any]:
    if file_bytes is not None and (not isinstance(file_bytes, Mapping) or not file_bytes):
        raise PlanError(f"file_bytes takes formats and fractions, as in {{'onnx': 0.5}}, and {file_bytes!r} came")
    return dict(file_bytes or {})


def _one_kind(amounts: dict[str, Any], budgets: dict[str, Any]) -> str:
    if len(amounts) + bool(budgets) != 1:
        given = ", ".join(f"{name}={value!r}" for name, value in {**amounts, **budgets}.items()) or "none"
        raise PlanError(
            "give either threshold=, ratio= or count=, or budgets (params=, macs=, latency=, file_bytes=; several at "
            f"once are all met), and {given} came"
        )
    return "budget" if budgets else next(iter(amounts))


def _check_budget(name: str, value: Any) -> None:
    if isinstance(value, Mapping):
        raise PlanError(f"{name} is a budget of the whole model, a number in (0, 1], and {value!r} came")
    if fraction(name, value) == 0:
        raise PlanError(f"{name}=0 would leave nothing of {spoken(name)}; 0.5 leaves half of it")


def _check_amount(kind: str, amount: Any) -> None:
    if isinstance(amount, Mapping) and not amount:
        raise PlanError(f"{kind} names no group: give layer patterns and numbers, as in {{'block_*': 0.3}}")
    for value in amount.values() if isinstance(amount, Mapping) else (amount,):
        if kind == "count":
            whole("count", value, least=0)
        elif fraction(kind, value) == 1 and kind == "ratio":
            raise PlanError("ratio 1 would remove every channel of every group; give less than 1")
