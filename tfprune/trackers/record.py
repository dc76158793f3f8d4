"""What is known of an epoch, in one small record that every tracker gets."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tfprune.channels.forecast import CostModel
from tfprune.channels.graph import ChannelGraph
from tfprune.channels.plan import PruningPlan
from tfprune.errors import TraceError
from tfprune.frontend import trace
from tfprune.selection.costs import what_strip_leaves

# SoftPruning puts these into Keras' logs for those who read nothing else; the record has them under names of its own.
_ALREADY = ("failure_rate", "pruned_channels")


@dataclass(frozen=True)
class Record:
    """One epoch.

    Attributes:
        step: the epoch, counted from 0 and on over several calls of `fit`.
        time: when it ended, in seconds since 1970.
        metrics: what Keras logged: `loss`, `val_loss` and the like.
        failure_rates: layer -> the fraction of its zeroed filters that this epoch brought back; `total` is over all.
        widths: channel group -> channels that are not zeroed at its end, as its validation saw the model.
        sparsity: `channels` and `weights`, the fractions of the model's that are zeroed, or go with what is.
        cost: `params` and `macs` (multiply-adds for one sample) of what `tfprune.strip` would leave then; `params_left`
            and `macs_left` are fractions of the unpruned model's.
        amounts: what the schedule asked for then: `{"ratio": 0.5}`.
        histograms: name of a weight -> (left edge, right edge, count) of each bucket, for trackers that want them.
        suffix: what each name ends with.

    >>> record = Record(0, 0.0, {"loss": 0.5}, failure_rates={"total": 0.25}, suffix="-pruned_model")
    >>> record.scalars()
    {'loss-pruned_model': 0.5, 'failure_rate/total-pruned_model': 0.25}
    """

    step: int
    time: float
    metrics: dict[str, float]
    failure_rates: dict[str, float] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)
    sparsity: dict[str, float] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    amounts: dict[str, float] = field(default_factory=dict)
    histograms: dict[str, list[list[float]]] = field(default_factory=dict)
    suffix: str = ""

    def scalars(self) -> dict[str, float]:
        """name -> number: `loss`, `sparsity/channels`, `cost/macs`, `width/<group>`, `failure_rate/<layer>`."""
        parts: dict[str, Mapping[str, float]] = {
            "": self.metrics,
            "schedule/": self.amounts,
            "sparsity/": self.sparsity,
            "cost/": self.cost,
            "width/": self.widths,
            "failure_rate/": self.failure_rates,
        }
        return {f"{prefix}{name}{self.suffix}": value for prefix, own in parts.items() for name, value in own.items()}


class Recorder:
    """Makes the records of one training.

    Nothing is read from the weights but what `strip` would have to look at: a plan's widths and cost are counted on the
    graph of channels, and counted again only when the plan has changed.

    Args:
        model: what is trained.
        pruning: the `SoftPruning` that trains it, if one does.
    """

    def __init__(self, model: Any, pruning: Any = None, suffix: str = ""):
        self.pruning, self.suffix = pruning, suffix
        self._graph: ChannelGraph | None = _traced(model, required=pruning is not None)
        self._costs = None if self._graph is None else CostModel(self._graph)
        self._plan: PruningPlan | None = None
        self._counted = self._count(None)

    def record(self, step: int, logs: Mapping[str, Any] | None = None) -> Record:
        """Put an epoch's record together.

        Args:
            step: the epoch.
            logs: Keras' logs; what is no number is left out.
        """
        plan = self.pruning.plan if self.pruning is not None else None
        if plan is not self._plan:
            self._plan, self._counted = plan, self._count(plan)
        reports = self.pruning.monitor.history if self.pruning is not None else []
        return Record(
            step,
            time.time(),
            metrics={name: value for name, value in _numbers(logs or {}).items() if not self._known(name)},
            failure_rates=self._failure_rates(reports),
            amounts=self.pruning.amount if self.pruning is not None else {},
            suffix=self.suffix,
            **self._counted,
        )

    def _known(self, name: str) -> bool:
        return self.pruning is not None and name in _ALREADY

    def _count(self, plan: PruningPlan | None) -> dict[str, Any]:
        """`widths`, `sparsity` and `cost` of a plan."""
        if self._graph is None or self._costs is None:
            return {}
        if self.pruning is None:
            params, macs = self._costs.before
            return {"cost": {"params": params, "macs": macs}}
        if plan is None:
            plan = PruningPlan.from_groups(self._graph, {})
        if plan.graph is not self._graph:  # the same model, traced by SoftPruning
            self._graph, self._costs = plan.graph, CostModel(plan.graph)
        gone = {name: len(indices) for name, indices in plan.channels.items()}
        channels = sum(group.width for group in plan.graph.groups)
        weights = sum(weight.size for weight, own in plan.graph.variables.items() if own.trainable)
        costs, keep, cut, _ = what_strip_leaves(plan, self._costs)
        params, macs = costs.parameters(keep, cut), costs.macs(keep, cut)
        before = self._costs.before
        return {
            "widths": {g.name: g.width - gone.get(g.name, 0) for g in plan.graph.groups if g.prunable},
            "sparsity": {"channels": plan.pruned / max(1, channels), "weights": plan.parameters / max(1, weights)},
            "cost": {
                "params": params,
                "macs": macs,
                "params_left": params / max(1.0, before[0]),
                "macs_left": macs / max(1.0, before[1]),
            },
        }

    def _failure_rates(self, reports: Any) -> dict[str, float]:
        """Layer -> rate, for every layer that a plan could touch: the names are the same in every epoch."""
        if self.pruning is None or self._graph is None:
            return {}
        kinds = ("write", "depthwise", "read")
        groups = [group for group in self._graph.groups if group.prunable]
        rates = dict.fromkeys((m.layer for group in groups for m in group.members if m.role in kinds), 0.0)
        if reports:
            by_layer = reports[-1].by_layer.items()
            rates.update({layer: failed / pruned if pruned else 0.0 for layer, (pruned, failed) in by_layer})
        return {**rates, "total": reports[-1].rate if reports else 0.0}


def _traced(model: Any, required: bool) -> ChannelGraph | None:
    try:
        return trace(model)
    except TraceError:
        if required:
            raise
        return None  # its losses can be followed all the same


def _numbers(logs: Mapping[str, Any]) -> dict[str, float]:
    found = {}
    for name, value in logs.items():
        try:
            found[name] = float(value)
        except (TypeError, ValueError):
            continue
    return found
