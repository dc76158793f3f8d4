"""The threshold ladder with retries of Tensorflow_Model_Pruning."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from tfprune.channels.forecast import CostModel
from tfprune.errors import PlanError
from tfprune.frontend import trace
from tfprune.pruning import Pruning
from tfprune.recipes.base import Train, rehearse
from tfprune.selection import select
from tfprune.selection.costs import what_strip_leaves
from tfprune.strip import StripResult


def ladder(
    model: keras.Model,
    train: Train,
    *,
    epochs: int,
    rungs: int = 4,
    max_failure_rate: float = 0.1,
    max_retries: int = 1,
    criterion: Any = "redundancy",
    output_dir: str | os.PathLike | None = None,
    callbacks: Sequence[Any] = (),
    **selection: Any,
) -> StripResult:
    """Zero what exceeds a threshold, train, zero the same again while too much of it came back; then the next one.

    The thresholds follow from the amount: each rung takes the same part of it, at the weights as they are then. What
    is left of the epochs trains the stripped model.

    Args:
        model, train, epochs, criterion, callbacks, selection: see `tfprune.recipes.sfp`; `macs=` or `params=` says how
            much is left. The model is soft-pruned in the end, the one in the result trained further.
        rungs: how many thresholds.
        max_failure_rate: go on to the next when at most this fraction of the filters came back.
        max_retries: how often the same filters are zeroed again.
        output_dir: where `tfprune.Pruning` writes its files; None for nowhere.

    Raises:
        PlanError: too few epochs for all rungs and retries, another amount than a budget of MACs or parameters.

    Source: Tensorflow_Model_Pruning, whose thresholds are 0.8, 0.7, 0.6, 0.55 and 0.5.
    """
    budget: dict[str, Any] = {name: selection.pop(name) for name in ("macs", "params") if name in selection}
    if len(budget) != 1 or set(selection) & {"ratio", "threshold", "count", "latency"}:
        raise PlanError("the ladder finds its thresholds for one budget, macs= or params=, such as macs=0.5")
    trainings = rungs * (max_retries + 1)
    rehearse(model, epochs, {**selection, **budget}, stages=trainings + 1)
    each, done = epochs // (trainings + 1), 0
    with tempfile.TemporaryDirectory() as nowhere:
        only = selection.pop("only", None)
        pruning = Pruning(
            model, only or "", output_dir or nowhere, criterion=criterion, slots="keep", log=None, **selection
        )
        what, goal = next(iter(budget.items()))

        def retrain(model: keras.Model, directory: Path) -> None:
            nonlocal done
            train(model, each, stage=f"{rung}-{directory.name}", callbacks=[*callbacks])
            done += each

        for rung in range(1, rungs + 1):
            left = 1 - (1 - goal) * rung / rungs
            threshold = _threshold(pruning.model, criterion, what, left, only=only, **selection)
            # A killed training is `train`'s to go on with; the threshold comes from weights that it gives back.
            pruning.run(retrain, [threshold], max_failure_rate, max_retries, seed=None, resume=False)
        result = pruning.strip()
    train(result.model, epochs - done, stage="fine-tune", callbacks=[*callbacks])
    return result


def _threshold(model: keras.Model, criterion: Any, what: str, left: float, **selection: Any) -> float:
    """The highest threshold at which the stripped model costs at most the fraction `left`, to 1e-4."""
    graph = trace(model)
    costs = CostModel(graph)

    def cost(costs: CostModel, keep: NDArray, cut: Collection[str] = ()) -> float:
        return costs.macs(keep, cut) if what == "macs" else costs.parameters(keep, cut)

    def fraction(threshold: float) -> float:
        plan = select(graph, criterion, threshold=threshold, **selection)
        own, keep, cut, _ = what_strip_leaves(plan, costs)
        return cost(own, keep, cut) / cost(costs, np.ones(graph.channels, bool))

    low, high = 0.0, 1.0
    if fraction(low) > left:
        raise PlanError(f"no threshold leaves {left:.1%} of the {what}: at 0 there are still {fraction(low):.1%} left")
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if fraction(middle) <= left else (low, middle)
    return low
