"""Soft filter pruning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from tfprune.recipes.base import Train, rehearse
from tfprune.soft_pruning import SoftPruning
from tfprune.strip import StripResult, strip


def sfp(
    model: keras.Model,
    train: Train,
    *,
    epochs: int,
    criterion: Any = "l2",
    stop_early: bool = False,
    callbacks: Sequence[Any] = (),
    **selection: Any,
) -> StripResult:
    """Zero the weakest filters after each epoch, the whole amount from the first epoch on; they may come back.

    The optimizer's slots are kept, which is what brings them back.

    Args:
        model: a Keras model, trained or not. It is trained in place, and soft-pruned in the end.
        train: see `tfprune.recipes.base.Train`.
        epochs: in all.
        criterion, selection: what `tfprune.select` takes: `macs=0.5` (left) or `ratio=0.3` (gone), `round_to=8`, ...
        stop_early: stop once few enough of the filters come back.
        callbacks: for every stage of training.

    Raises:
        PlanError: no epoch, or `tfprune.select` does not take the selection; before anything is trained.

    Source: He et al., "Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks" (arXiv:1808.06866).
    """
    rehearse(model, epochs, selection)
    pruning = SoftPruning(criterion, slots="keep", stop_when_converged=stop_early, **selection)
    train(model, epochs, stage="soft", callbacks=[pruning, *callbacks])
    return strip(model)
