"""Automated gradual pruning, of filters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from tfprune.recipes.base import Train, along, rehearse
from tfprune.soft_pruning import SoftPruning
from tfprune.strip import StripResult, strip


def agp(
    model: keras.Model,
    train: Train,
    *,
    epochs: int,
    criterion: Any = "l1",
    until: float = 0.5,
    callbacks: Sequence[Any] = (),
    **selection: Any,
) -> StripResult:
    """Zero filters for good, more of them after each epoch along a cubic: many first, few last.

    Args:
        model, train, epochs, criterion, callbacks, selection: see `tfprune.recipes.sfp`.
        until: after which part of the epochs the whole amount is zero, in (0, 1]; the others train what is left.

    Raises:
        PlanError: no epoch, or `tfprune.select` does not take the selection; before anything is trained.

    Source: Zhu & Gupta, "To prune, or not to prune" (arXiv:1710.01878), for single weights.
    """
    rehearse(model, epochs, selection)
    growing = along("polynomial", round(until * (epochs - 1)), selection)
    pruning = SoftPruning(criterion, mode="hard", **growing)
    train(model, epochs, stage="gradual", callbacks=[pruning, *callbacks])
    return strip(model)
