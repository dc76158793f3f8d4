"""Filter pruning via geometric median, a small part of it by norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from tfprune.criteria import Criterion, GroupView, criterion_named
from tfprune.errors import PlanError
from tfprune.recipes.base import Train
from tfprune.recipes.sfp import sfp
from tfprune.strip import StripResult


def fpgm(
    model: keras.Model,
    train: Train,
    *,
    epochs: int,
    by_norm: float = 0.25,
    stop_early: bool = False,
    callbacks: Sequence[Any] = (),
    **selection: Any,
) -> StripResult:
    """Zero the filters that others can stand in for after each epoch, those near the geometric median of their layer.

    Args:
        model, train, epochs, stop_early, callbacks, selection: see `tfprune.recipes.sfp`.
        by_norm: which part of what goes is chosen by L2 norm instead, in [0, 1]; 10 of 40 % in the paper's mixed
            setting.

    Raises:
        PlanError: `by_norm` out of range, no epoch, or `tfprune.select` does not take the selection.

    Source: He et al., "Filter Pruning via Geometric Median" (arXiv:1811.00250).
    """
    mixed = mixture({"l2": by_norm, "fpgm": 1 - by_norm})
    return sfp(model, train, epochs=epochs, criterion=mixed, stop_early=stop_early, callbacks=callbacks, **selection)


def mixture(parts: dict[str, float]) -> Criterion:
    """A criterion that takes from the beginnings of several orders: of what goes, each chooses its part.

    >>> mixture({"l2": 0.25, "fpgm": 0.75}).__name__
    '25% l2, 75% fpgm'

    Raises:
        PlanError: parts that are not in [0, 1].
    """
    if not all(0 <= part <= 1 for part in parts.values()):
        raise PlanError(f"each part is a fraction in [0, 1], and {parts} came")

    def scores(view: GroupView) -> NDArray:
        # Rank r of an order that chooses the part p comes up when about r / p channels have gone.
        turns = [_rank(criterion_named(name)(view)) / part for name, part in parts.items() if part]
        return np.min(turns, axis=0)

    scores.__name__ = ", ".join(f"{part:.0%} {name}" for name, part in parts.items())
    return scores


def _rank(scores: NDArray) -> NDArray:
    """1 for the lowest score."""
    return np.argsort(np.argsort(scores, kind="stable"), kind="stable") + 1.0
