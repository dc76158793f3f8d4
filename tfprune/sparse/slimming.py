"""Network slimming: BatchNormalization's scales are pulled to 0."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from tfprune.channels.graph import ChannelGraph
from tfprune.errors import PlanError
from tfprune.schedules import Schedule
from tfprune.selection.patterns import Patterns
from tfprune.sparse.base import Penalty, SparseTraining, chosen_groups, coupled
from tfprune.sparse.group_lasso import norms


class Slimming(SparseTraining):
    """Pull BatchNormalization's scales (gamma) to 0, so that whole channels are switched off.

    strength * sum over channels of sqrt(m) * the norm of the m scales of a channel: |gamma| where one
    BatchNormalization scales it, as in the paper, and group lasso over all of them where a residual stream couples
    several. Layers without BatchNormalization (or with `scale=False`) are left alone.

    Args:
        strength: a number from 0 on, or a schedule of them; 1e-5 to 1e-2.
        shifts: pull the shifts (beta) with the scales, so that a channel becomes 0 and not a constant. A constant other
            than 0 that crosses a padded convolution cannot be removed without loss.
        every, only, ignore: see `SparseTraining`.

    Raises:
        PlanError: a value out of range; when training begins, no group has a BatchNormalization whose scale is trained.

    >>> import keras, numpy as np, tfprune
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.BatchNormalization(),
    ...                           keras.layers.ReLU(), keras.layers.Dense(1)])
    >>> model.compile(keras.optimizers.SGD(0.05), "mse")
    >>> x = np.random.default_rng(0).normal(size=(64, 4))
    >>> history = model.fit(x, x[:, :1], epochs=10, verbose=0, callbacks=[tfprune.sparse.Slimming(0.05)])
    >>> history.history["slimming"][-1] < history.history["slimming"][0]
    True

    Source: Liu et al., "Learning Efficient Convolutional Networks through Network Slimming" (arXiv:1708.06519).
    """

    name = "slimming"

    def __init__(
        self,
        strength: float | Schedule = 1e-4,
        *,
        shifts: bool = False,
        every: int | Literal["epoch"] = "epoch",
        only: Patterns | None = None,
        ignore: Patterns | None = None,
    ):
        super().__init__(strength, every=every, only=only, ignore=ignore)
        self.shifts = shifts

    def penalty(self, graph: ChannelGraph) -> Penalty:
        kinds = {call.layer: call.kind for call in graph.calls}
        roles = ("scale", "shift") if self.shifts else ("scale",)
        groups = []
        for group in chosen_groups(graph, self.only, self.ignore):
            normalized = [m for m in group.members if kinds.get(m.layer) == "BatchNormalization"]
            if any(member.role == "scale" for member in normalized):
                groups.append(replace(group, members=normalized))
        squares, group_of = coupled(graph, groups, roles)
        if not squares.count:
            raise PlanError(
                f"no channel group of {graph.name} that may go and is meant has a BatchNormalization with a scale that "
                f"is trained; use tfprune.sparse.GroupLasso, which needs none"
            )
        return lambda: norms(squares, group_of, growth=0.0, power=1)
