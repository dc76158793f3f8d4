"""Growing regularization: the channels that are to go are pulled to 0 harder and harder."""

from __future__ import annotations

import inspect
from typing import Any, Literal

import keras
import numpy as np

from tfprune.channels.graph import ChannelGraph
from tfprune.channels.plan import PruningPlan
from tfprune.criteria import Criterion
from tfprune.errors import PlanError, nearest
from tfprune.selection import Request, select
from tfprune.soft import variables_of
from tfprune.sparse.base import Penalty, SparseTraining, Squares


class GrowingRegularization(SparseTraining):
    """Pull the channels of a plan to 0, harder from epoch to epoch: the model has time to do without them.

    strength / 2 * the sum of squares of every weight that `tfprune.soft_prune` would zero for the plan (filters and
    biases, BatchNormalization's scale and shift, depthwise slices, the kernel slices that read the channels), with the
    strength min(step * (t + 1), ceiling) after t times of growing. All other weights are left alone. At the end of
    training `plan` is nearly zero: hand it to `tfprune.strip(model, plan)`.

    Args:
        plan: which channels; from `tfprune.select` or `graph.plan`. None: they are chosen when training begins, by what
            follows.
        criterion, selection: what `tfprune.select` takes: `ratio=0.5`, `macs=0.5`, `only=...` and so on.
        step: by how much the strength grows each time; above 0.
        ceiling: the strength at which it stops growing.
        every: when it grows: `"epoch"`, or every so many steps. On the JAX backend each time compiles the step again.

    Attributes:
        plan: the plan whose channels are pulled.

    Raises:
        PlanError: a value out of range, both or neither of a plan and an amount; when training begins, a plan of
            another model.

    >>> import keras, numpy as np, tfprune
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, activation="relu"), keras.layers.Dense(1)])
    >>> model.compile(keras.optimizers.SGD(0.1), "mse")
    >>> growing = tfprune.sparse.GrowingRegularization(ratio=0.5, step=0.5, ceiling=3.0)
    >>> x = np.random.default_rng(0).normal(size=(64, 4))
    >>> _ = model.fit(x, x[:, :1], epochs=20, verbose=0, callbacks=[growing])
    >>> result = tfprune.strip(model, growing.plan)
    >>> result.model.layers[0].units, result.moved.relative < 1e-3
    (4, True)

    Source: Wang et al., "Neural Pruning via Growing Regularization" (arXiv:2012.09243), GReg-1: there step is 1e-4
    every 10 steps, ceiling is 1, filters are chosen by L1, and the kernels alone are pulled.
    """

    name = "growing_regularization"

    def __init__(
        self,
        plan: PruningPlan | None = None,
        *,
        criterion: str | Criterion = "l1",
        step: float = 0.01,
        ceiling: float = 1.0,
        every: int | Literal["epoch"] = "epoch",
        **selection: Any,
    ):
        for name, value in (("step", step), ("ceiling", ceiling)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < np.inf:
                raise PlanError(f"{name} is a number above 0, and {value!r} came")
        super().__init__(self._grown, every=every)
        if plan is None:
            _check(selection)
        elif selection:
            raise PlanError(
                f"give either a plan or what to choose one by, not both; {', '.join(selection)} came as well"
            )
        self.plan, self._given = plan, plan
        self.step, self.ceiling = float(step), float(ceiling)
        self._selection = {"criterion": criterion, **selection}

    def _grown(self, progress: int) -> float:
        times = progress if self.every == "epoch" else progress // int(self.every)
        return min(self.step * (times + 1), self.ceiling)

    def penalty(self, graph: ChannelGraph) -> Penalty | None:
        self.plan = plan = select(graph, **self._selection) if self._given is None else self._given
        variables = variables_of(self.model, plan)
        zeros = [(slot, gone) for slot, gone in plan.zeros() if variables[slot.weight].trainable]
        members = [(slot, np.where(gone, 0, -1)) for slot, gone in zeros]
        squares = Squares(variables, members, 1)
        return (lambda: 0.5 * keras.ops.sum(squares())) if members else None


def _check(selection: dict[str, Any]) -> None:
    """Find mistakes when the callback is made, not when training begins."""
    known = inspect.signature(select).parameters
    for name in selection:
        if name not in known:
            raise PlanError(f"tfprune.select has no argument {name!r}{nearest(name, known)}")
    amounts = inspect.signature(Request.checked).parameters
    Request.checked(**{name: value for name, value in selection.items() if name in amounts})
