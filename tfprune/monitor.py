"""The convergence monitor: how many of the zeroed filters did training bring back?"""

from __future__ import annotations

import csv
import io
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfprune.channels.plan import PruningPlan
from tfprune.errors import TfpruneError
from tfprune.events import EventFile
from tfprune.files import write_text
from tfprune.soft import variables_of
from tfprune.tables import table

#: A filter came back when its weights' absolute sum is at least this, as in Tensorflow_Model_Pruning.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class FailureReport:
    """The zeroed filters of one moment, and how many of them are not 0 any more.

    Attributes:
        by_layer: layer -> (filters pruned, filters that came back). A convolution counts its filters, a depthwise one
            its channels, and a reader its input slices.
        epoch: when; epochs count from 0, -1 is before training.
        threshold: at which threshold or ratio, if known.
    """

    by_layer: dict[str, tuple[int, int]]
    epoch: int = -1
    threshold: float | None = None

    @property
    def pruned(self) -> int:
        """Filters pruned over all layers."""
        return sum(pruned for pruned, _ in self.by_layer.values())

    @property
    def failed(self) -> int:
        """Filters that came back over all layers."""
        return sum(failed for _, failed in self.by_layer.values())

    @property
    def rate(self) -> float:
        """failed / pruned, a fraction in [0, 1]; 0 when nothing was pruned."""
        return self.failed / self.pruned if self.pruned else 0.0

    def __str__(self) -> str:
        rows = [
            (layer, pruned, failed, f"{failed / pruned if pruned else 0:.1%}")
            for layer, (pruned, failed) in self.by_layer.items()
        ]
        rows.append(("total", self.pruned, self.failed, f"{self.rate:.1%}"))
        return table("failure rates", ("layer", "pruned", "came back", "rate"), rows)


def failures(
    model: keras.Model,
    plan: PruningPlan,
    *,
    epoch: int = -1,
    threshold: float | None = None,
    tolerance: float = TOLERANCE,
) -> FailureReport:
    """Look at the plan's filters in the model's weights now.

    Args:
        model: the model that was soft-pruned with `plan` and trained on.
        plan: what was zeroed.
        epoch, threshold: noted in the report.
        tolerance: a filter came back when sum |w| of its slice is at least this.

    Raises:
        PlanError: the plan was made for another model.
    """
    variables = variables_of(model, plan)
    by_layer: dict[str, tuple[int, int]] = {}
    for weight, slots in plan.zeros_of.items():
        for slot, gone in slots:
            if slot.kind not in ("write", "depthwise", "read"):
                continue
            sums = np.abs(slot.rows(plan.graph.read(variables[weight])))[gone].sum(axis=1, dtype=np.float64)
            _, filters = np.unique(plan.graph.channel_of[slot.labels.ravel()[gone]], return_inverse=True)
            back = np.bincount(filters, weights=sums) >= tolerance
            pruned, failed = by_layer.get(weight.layer, (0, 0))
            by_layer[weight.layer] = (pruned + len(back), failed + int(back.sum()))
    return FailureReport(by_layer, epoch, threshold)


@dataclass
class ConvergenceMonitor:
    """Failure rates over epochs and thresholds.

    Attributes:
        max_failure_rate: a threshold has converged when its failure rate is at most this.
        history: every report so far, oldest first.
    """

    max_failure_rate: float = 0.1
    history: list[FailureReport] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not 0 <= self.max_failure_rate <= 1:
            raise TfpruneError(f"max_failure_rate is a fraction in [0, 1], and {self.max_failure_rate} came")

    def measure(
        self, model: keras.Model, plan: PruningPlan, *, epoch: int = -1, threshold: float | None = None
    ) -> FailureReport:
        """Measure now, and remember it; see `failures`."""
        report = failures(model, plan, epoch=epoch, threshold=threshold)
        self.history.append(report)
        return report

    @property
    def rate(self) -> float:
        """The last failure rate; 0 before anything was measured."""
        return self.history[-1].rate if self.history else 0.0

    @property
    def converged(self) -> bool:
        """Whether the last failure rate is low enough; nothing measured is nothing converged."""
        return bool(self.history) and self.rate <= self.max_failure_rate

    def get_state(self) -> dict[str, Any]:
        """The history as JSON, for `set_state`."""
        return {"history": [[r.epoch, r.threshold, {k: list(v) for k, v in r.by_layer.items()}] for r in self.history]}

    def set_state(self, state: dict[str, Any]) -> None:
        """Take a history over from `get_state`, in place of the own one.

        >>> monitor = ConvergenceMonitor(history=[FailureReport({"conv": (4, 1)}, epoch=0, threshold=0.8)])
        >>> other = ConvergenceMonitor()
        >>> other.set_state(monitor.get_state())
        >>> other == monitor
        True
        """
        self.history[:] = [
            FailureReport({layer: (pruned, failed) for layer, (pruned, failed) in by_layer.items()}, epoch, threshold)
            for epoch, threshold, by_layer in state["history"]
        ]

    def rows(self) -> list[tuple[int, float | None, int, int, float]]:
        """(epoch, threshold, pruned, came back, rate) of every report."""
        return [(r.epoch, r.threshold, r.pruned, r.failed, r.rate) for r in self.history]

    def __str__(self) -> str:
        rows = [
            (epoch, "" if threshold is None else f"{threshold:g}", pruned, failed, f"{rate:.1%}")
            for epoch, threshold, pruned, failed, rate in self.rows()
        ]
        return table("convergence", ("epoch", "threshold", "pruned", "came back", "failure rate"), rows)

    def to_csv(self, path: str | os.PathLike) -> Path:
        """Write a row a report and layer: epoch, threshold, layer, pruned, failed, rate. Layer `total` is all."""
        out = io.StringIO()
        writer = csv.writer(out)
        writer.writerow(("epoch", "threshold", "layer", "pruned", "failed", "rate"))
        for r in self.history:
            layers = {**r.by_layer, "total": (r.pruned, r.failed)}
            for layer, (pruned, failed) in layers.items():
                threshold = "" if r.threshold is None else r.threshold
                writer.writerow((r.epoch, threshold, layer, pruned, failed, failed / pruned if pruned else 0.0))
        return write_text(path, out.getvalue())

    def to_tensorboard(self, directory: str | os.PathLike) -> None:
        """Write the rates as scalars `failure_rate/<layer>` and `failure_rate/total`, a step a report.

        Raises:
            TfpruneError: tensorboard is not installed.
        """
        events = EventFile(directory)
        for step, report in enumerate(self.history):
            rates = {layer: failed / pruned if pruned else 0.0 for layer, (pruned, failed) in report.by_layer.items()}
            rates["total"] = report.rate
            events.write(step, {f"failure_rate/{layer}": rate for layer, rate in rates.items()})
        events.close()
