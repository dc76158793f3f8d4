"""Asymptotic soft filter pruning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from tfprune.recipes.base import Train, along, rehearse
from tfprune.soft_pruning import SoftPruning
from tfprune.strip import StripResult, strip


def asfp(
    model: keras.Model,
    train: Train,
    *,
    epochs: int,
    criterion: Any = "l2",
    until: float = 1.0,
    callbacks: Sequence[Any] = (),
    **selection: Any,
) -> StripResult:
    """Soft filter pruning in which the amount grows: three quarters of it after an eighth of the way, then slowly.

    Args:
        model, train, epochs, criterion, callbacks, selection: see `tfprune.recipes.sfp`.
        until: which part of the epochs is the way, in (0, 1].

    Raises:
        PlanError: no epoch, or `tfprune.select` does not take the selection; before anything is trained.

    Source: He et al., "Asymptotic Soft Filter Pruning for Deep Convolutional Neural Networks" (arXiv:1808.07471).
    """
    rehearse(model, epochs, selection)
    growing = along("asymptotic", round(until * (epochs - 1)), selection)
    pruning = SoftPruning(criterion, slots="keep", **growing)
    train(model, epochs, stage="soft", callbacks=[pruning, *callbacks])
    return strip(model)
