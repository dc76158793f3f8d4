"""Network slimming."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from tfprune.recipes.base import Train, sparse_then_cut
from tfprune.sparse import Slimming
from tfprune.strip import StripResult


def slimming(
    model: keras.Model,
    train: Train,
    *,
    epochs: int,
    strength: Any = 1e-4,
    part: float = 0.5,
    callbacks: Sequence[Any] = (),
    **selection: Any,
) -> StripResult:
    """Train with an L1 penalty on BatchNormalization's scales, cut the smallest ones of the model, train what is left.

    Args:
        model, train, epochs, callbacks, selection: see `tfprune.recipes.sfp`; scope is `"global"` unless given. The
            model is trained, the one in the result trained further.
        strength: of the penalty, or a schedule of it; see `tfprune.sparse.Slimming`.
        part: which part of the epochs has the penalty, in (0, 1).

    Raises:
        PlanError: fewer than 2 epochs, no BatchNormalization, or `tfprune.select` does not take the selection.

    Source: Liu et al., "Learning Efficient Convolutional Networks through Network Slimming" (arXiv:1708.06519).
    """
    selection = {"scope": "global", **selection}
    penalty = Slimming(strength)
    return sparse_then_cut(
        model, train, penalty, "bn_scale", epochs=epochs, part=part, callbacks=callbacks, selection=selection
    )
