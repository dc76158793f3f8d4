"""Scores and a budget become a PruningPlan."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfprune.channels.graph import ChannelGraph, ChannelGroup, Member
from tfprune.channels.ops import Contract
from tfprune.channels.plan import PruningPlan
from tfprune.channels.removal import can_drop, droppable
from tfprune.criteria import Criterion, Scorer
from tfprune.errors import PlanError, Refusal
from tfprune.frontend import trace
from tfprune.selection.patterns import Patterns, holding_all, holding_any


def select(
    model: Any,
    criterion: str | Criterion = "redundancy",
    *,
    threshold: float | None = None,
    ratio: float | None = None,
    round_to: int = 4,
    only: Patterns | None = None,
    ignore: Patterns | None = None,
    layers: bool = False,
    heads: bool = False,
) -> PruningPlan:
    """Choose which channels go, and change nothing.

    Args:
        model: a model, Keras or ONNX, or its graph from `tfprune.trace` (which saves tracing it again).
        criterion: `redundancy`, `redundancy_legacy`, `l1`, `l2`, or a function of a `GroupView`.
        threshold: a fraction in [0, 1]: channels more redundant than this go. Redundancy is 1 - score for criteria
            whose scores are fractions, and 1 - score / the group's largest score for norms.
        ratio: a fraction in [0, 1): so much of each group's width goes, the lowest scores first.
        round_to: the number that goes is rounded to the nearest multiple (half a multiple up), and down again where it
            would empty the group.
        only: layer-name prefixes or patterns (`block_3_`, `SE*`, `backbone/*`); a group is pruned only if one of them
            holds all layers that write it. Naming each block of a network prunes inside the blocks, and the residual
            stream between them stays. None: every group.
        ignore: the same for layers that are left alone: a group stays if one of them holds one layer that writes it.
        layers: also take whole convolutions that the model can live without (those of a residual branch, an SE
            gate): by threshold those whose filters' mean redundancy exceeds it; by ratio that fraction of them, the
            most redundant first.
        heads: take whole attention heads instead of widths inside of them.

    Returns:
        a `PruningPlan`; print it before applying it.

    Raises:
        PlanError: not exactly one of threshold and ratio, one out of its range, a pattern that matches no layer.

    >>> import keras, tfprune
    >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(8, 3), keras.layers.Flatten(),
    ...                           keras.layers.Dense(2)])
    >>> tfprune.select(model, "l1", ratio=0.5).pruned
    4
    """
    amount = Amount.checked(threshold, ratio, round_to)
    graph = model if isinstance(model, ChannelGraph) else trace(model)
    scorer = Scorer(graph, criterion)
    inside = _inside(graph, only, ignore)
    chosen, refusals, redundancies = [], [], {}
    held = {name for group in graph.groups for name in group.holds}
    groups = [g for g in graph.groups if inside(g.writers) and not (g.name in held if heads else g.holds)]
    scores = scorer(group for group in groups if group.prunable)
    for group in groups:
        reason = group.reason or scores.refused.get(group.name)
        if reason:
            refusals.append(Refusal(group.name, tuple(range(group.width)), reason))
            continue
        redundancy = redundancies[group.name] = scores.redundancy(group.name)
        indices = amount.take(redundancy)
        if len(indices):
            chosen.append(group.units[indices])
        elif amount.wanted(redundancy):
            reason = f"with round_to={round_to} nothing can go without emptying it (width {group.width})"
            if group.width > round_to:
                wanted = amount.wanted(redundancy)
                reason = f"{wanted} of {group.width} were to go, which is 0 with round_to={round_to}"
            refusals.append(Refusal(group.name, tuple(range(group.width)), reason))
    gone = graph.channels_of(np.concatenate(chosen)) if chosen else np.zeros(graph.channels, bool)
    whole = _whole_layers(graph, amount, scorer, inside) if layers else ()
    return PruningPlan(graph, gone, whole, tuple(refusals), f"{scorer.name}, {amount}", redundancies)


@dataclass(frozen=True)
class Amount:
    """How much goes: a threshold or a ratio, and the rounding of counts."""

    threshold: float | None
    ratio: float | None
    round_to: int

    @classmethod
    def checked(cls, threshold: float | None, ratio: float | None, round_to: int) -> Amount:
        if (threshold is None) == (ratio is None):
            raise PlanError(f"give either threshold= or ratio=, and {threshold=}, {ratio=} came")
        name, value = ("ratio", ratio) if threshold is None else ("threshold", threshold)
        if isinstance(value, bool) or not isinstance(value, int | float | np.number) or math.isnan(float(value)):
            raise PlanError(f"{name} must be a number in [0, 1], and {value!r} came")
        if not 0 <= value <= 1:
            raise PlanError(f"{name} must be in [0, 1], and {value} came; 0.5 is half")
        if ratio is not None and ratio == 1:
            raise PlanError("ratio 1 would remove every channel of every group; give less than 1")
        if isinstance(round_to, bool) or not isinstance(round_to, int | np.integer) or round_to < 1:
            raise PlanError(f"round_to must be a whole number of at least 1, and {round_to!r} came")
        return cls(threshold, ratio, int(round_to))

    def wanted(self, redundancy: NDArray) -> int:
        """How many would go, before rounding."""
        if self.threshold is not None:
            return int((redundancy > self.threshold).sum())
        assert self.ratio is not None
        return int(self.ratio * len(redundancy) + 1e-9)

    def take(self, redundancy: NDArray) -> NDArray:
        """The indices that go, ascending: the most redundant first, the first of equal ones first."""
        rounded = (self.wanted(redundancy) + self.round_to // 2) // self.round_to * self.round_to
        most = (len(redundancy) - 1) // self.round_to * self.round_to
        order = np.argsort(-redundancy, kind="stable")
        return np.sort(order[: min(rounded, most)])

    def __str__(self) -> str:
        amount = f"ratio {self.ratio:g}" if self.threshold is None else f"threshold {self.threshold:g}"
        return amount + (f", rounded to {self.round_to}" if self.round_to > 1 else "")


def _inside(graph: ChannelGraph, only: Patterns | None, ignore: Patterns | None) -> Callable[[Iterable[str]], bool]:
    """Whether a group with these writers is to be pruned."""
    held, ignored = holding_all(graph, only, "only"), holding_any(graph, ignore, "ignore")
    return lambda layers: held(layers) and not ignored(layers)


def _whole_layers(
    graph: ChannelGraph,
    amount: Amount,
    scorer: Scorer,
    inside: Callable[[Iterable[str]], bool],
) -> tuple[str, ...]:
    """The convolutions that go whole, the most redundant first, as long as the model can live without them."""
    candidates = [layer for layer in droppable(graph) if inside([layer])]
    # What is dropped is what the layer's last kernel writes.
    kernels = {op.layer: op.kernel for op in graph.ops if isinstance(op, Contract) and op.write}
    filters = []
    for layer in candidates:
        slot = graph.labels.slots[kernels[layer], "write"]
        positions = np.arange(slot.labels.size)
        filters.append(ChannelGroup(layer, positions, "", [Member(slot, positions, positions)]))
    scores = scorer(filters)
    candidates = [layer for layer in candidates if layer in scores]
    redundancy = {layer: float(scores.redundancy(layer).mean()) for layer in candidates}
    most = len(candidates) if amount.ratio is None else int(amount.ratio * len(candidates) + 1e-9)
    taken: list[str] = []
    for layer in sorted(candidates, key=lambda layer: -redundancy[layer]):
        if len(taken) == most or (amount.threshold is not None and redundancy[layer] <= amount.threshold):
            break
        if can_drop(graph, {*taken, layer}):
            taken.append(layer)
    return tuple(taken)
