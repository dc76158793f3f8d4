"""Group sparsity over all coupled weights, as DepGraph has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from tfprune.recipes.base import Train, sparse_then_cut
from tfprune.schedules import Linear
from tfprune.sparse import GroupLasso
from tfprune.strip import StripResult


def group_sparsity(
    model: keras.Model,
    train: Train,
    *,
    epochs: int,
    strength: float = 5e-4,
    part: float = 0.5,
    criterion: Any = "l2",
    callbacks: Sequence[Any] = (),
    **selection: Any,
) -> StripResult:
    """Pull whole channels to 0, the weakest ones hardest and all harder from epoch to epoch; cut them, train on.

    Args:
        model, train, epochs, criterion, callbacks, selection: see `tfprune.recipes.sfp`; scope is `"global"` unless
            given. The model is trained, the one in the result trained further.
        strength: of the penalty in its last epoch, at most 1; it grows evenly. See `GroupLasso(power=2)`.
        part: which part of the epochs has the penalty, in (0, 1).

    Raises:
        PlanError: fewer than 2 epochs, or `tfprune.select` does not take the selection.

    Source: Fang et al., "DepGraph: Towards Any Structural Pruning" (arXiv:2301.12900).
    """
    selection = {"scope": "global", **selection}
    sparse = max(1, round(part * epochs))
    penalty = GroupLasso(Linear(strength / sparse, strength, max(1, sparse - 1)), power=2)
    return sparse_then_cut(
        model, train, penalty, criterion, epochs=epochs, part=part, callbacks=callbacks, selection=selection
    )
