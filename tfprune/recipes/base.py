"""What recipes share: how they ask for training, an amount as a schedule, a teacher, sparse training and then a cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import keras

from tfprune.distillation import Distiller
from tfprune.errors import PlanError
from tfprune.schedules import Schedule, named
from tfprune.selection import select
from tfprune.sparse import SparseTraining
from tfprune.strip import StripResult, strip

_LEFT = ("params", "macs", "latency")


class Train(Protocol):
    """Your training, as recipes call it: compile the model and fit it in place, for so many epochs.

    A recipe has one or more stages, each with a name of its own in that recipe, in the same order every time: a good
    name for a directory. A `train` that finds its stage finished there, loads the weights and returns, makes a killed
    recipe go on. Each stage should have a learning rate that begins and ends anew.
    """

    def __call__(self, model: keras.Model, epochs: int, *, stage: str, callbacks: Sequence[Any]) -> Any:
        """Train."""


def taught(
    train: Train, teacher: keras.Model, *, temperature: float = 4.0, alpha: float = 0.5, from_logits: bool = True
) -> Train:
    """A `train` whose model also learns from a teacher, such as a copy of the model before pruning.

    Args:
        train: the training.
        teacher: a model with the same inputs and outputs; it is not changed.
        temperature, alpha, from_logits: see `tfprune.distillation.Distiller`, which is what is handed to `train`.

    Raises:
        PlanError: when training begins, see `Distiller`.
    """

    def trained(model: keras.Model, epochs: int, *, stage: str, callbacks: Sequence[Any]) -> Any:
        learner = Distiller(model, teacher, temperature=temperature, alpha=alpha, from_logits=from_logits)
        return train(learner, epochs, stage=stage, callbacks=callbacks)

    return trained


def rehearse(model: Any, epochs: int, selection: dict[str, Any], stages: int = 1) -> None:
    """Find mistakes before the training, not after it.

    Raises:
        PlanError: fewer epochs than stages, or `tfprune.select` does not take the selection.
    """
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < stages:
        raise PlanError(f"this recipe trains in {stages} stage(s) of at least 1 epoch each, and {epochs=!r} came")
    select(model, "random", **{name: value for name, value in selection.items() if name not in ("data", "loss")})


def along(name: str, epochs: int, selection: dict[str, Any]) -> dict[str, Any]:
    """A selection whose amounts are reached along a schedule, for `tfprune.SoftPruning`.

    Args:
        name: of the schedule (`tfprune.schedules.NAMES`), from nothing to all that goes.
        epochs: when it is there; the amount holds from the beginning if that is below 1.
        selection: what `tfprune.select` takes: a ratio of what goes, or budgets of what is left.

    >>> left = along("linear", 4, {"macs": 0.5, "scope": "global"})
    >>> [left["macs"](epoch) for epoch in (0, 2, 4)], left["scope"]
    ([1.0, 0.75, 0.5], 'global')
    """
    if epochs < 1:
        return selection
    scheduled: dict[str, Any] = {}
    for amount in set(selection) & {"ratio", *_LEFT}:
        if amount in _LEFT:
            scheduled[amount] = Left(named(name, 1 - selection[amount], epochs))
        else:
            scheduled[amount] = named(name, selection[amount], epochs)
    return {**selection, **scheduled}


@dataclass(frozen=True)
class Left:
    """What is left when so much is gone."""

    gone: Schedule

    def __call__(self, progress: int) -> float:
        return 1 - self.gone(progress)


def sparse_then_cut(
    model: keras.Model,
    train: Train,
    penalty: SparseTraining,
    criterion: Any,
    *,
    epochs: int,
    part: float,
    callbacks: Sequence[Any],
    selection: dict[str, Any],
) -> StripResult:
    """Train with a penalty for a part of the epochs, cut, and train what is left for the others.

    Args:
        part: which part of the epochs has the penalty, in (0, 1); at least one epoch each.

    Raises:
        PlanError: `part` out of range, fewer than 2 epochs, or `tfprune.select` does not take the selection.
    """
    if not 0 < part < 1:
        raise PlanError(f"the sparse part of the training is a fraction between 0 and 1, and {part!r} came")
    rehearse(model, epochs, selection, stages=2)
    sparse = min(max(1, round(part * epochs)), epochs - 1)
    train(model, sparse, stage="sparse", callbacks=[penalty, *callbacks])
    result = strip(model, select(model, criterion, **selection))
    train(result.model, epochs - sparse, stage="fine-tune", callbacks=[*callbacks])
    return result
