"""The honest control: the small model without what the large one has learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import keras

from tfprune.recipes.base import Train, rehearse
from tfprune.selection import select
from tfprune.strip import StripResult, strip


def scratch(
    model: keras.Model,
    train: Train,
    *,
    epochs: int,
    criterion: Any = "l2",
    callbacks: Sequence[Any] = (),
    **selection: Any,
) -> StripResult:
    """Strip first, give the small model new random weights, and train it for all epochs.

    Where it does as well as the other recipes, what they found is an architecture, and its weights are worth nothing.

    Args:
        model, train, epochs, criterion, callbacks, selection: see `tfprune.recipes.sfp`. The model is not changed.

    Raises:
        PlanError: no epoch, or `tfprune.select` does not take the selection; before anything is trained.

    Source: Liu et al., "Rethinking the Value of Network Pruning" (arXiv:1810.05270), Scratch-E.
    """
    rehearse(model, epochs, selection)
    result = strip(model, select(model, criterion, **selection), verify=False)
    fresh = keras.models.clone_model(result.model)
    train(fresh, epochs, stage="scratch", callbacks=[*callbacks])
    return replace(result, model=fresh)
