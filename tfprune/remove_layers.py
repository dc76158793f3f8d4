"""Whole convolutions taken out of a model, and every neighbour mended: smaller, and to be trained again.

Unlike strip this is no proof that the model computes the same: it does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfprune.channels.graph import ChannelGraph, ChannelGroup, Member
from tfprune.channels.ops import Contract, Depthwise, Pad
from tfprune.channels.plan import PruningPlan
from tfprune.cost import Cost, compare_table, cost
from tfprune.criteria import Criterion, Scorer
from tfprune.errors import PlanError
from tfprune.frontend import layers_of, rebuild, trace
from tfprune.soft import zeros_in
from tfprune.strip import outcome
from tfprune.verify import verify


@dataclass(frozen=True)
class RemovalResult:
    """A model without some of its convolutions.

    Attributes:
        model: an `onnx.ModelProto` that passes ONNX's checker and runs, or a Keras model.
        removed: the names of the convolutions that are gone, in the order in which they went.
        cost_before, cost_after: of the model given and of this one.
        walk: the new model layer by layer: type and shape.
    """

    model: Any
    removed: tuple[str, ...]
    cost_before: Cost
    cost_after: Cost
    walk: str

    def __str__(self) -> str:
        what = f"removed: {', '.join(self.removed)}" if self.removed else "nothing was removed"
        return f"{self.walk}\n{compare_table(self.cost_before, self.cost_after)}\n{what}"


def remove_layers(
    model: Any,
    percent: float | None = None,
    *,
    seed: int = 0,
    criterion: str | Criterion | None = None,
    names: Sequence[str] | None = None,
) -> RemovalResult:
    """Take convolutions out of a model, so that what is left is valid and can be trained.

    The layers are chosen first and removed one by one. Where one stood, its input goes on: averaged over the same
    windows where the convolution changed the spatial size, with some of its channels where it had fewer, filled up
    with zeros where it had more. The zeros are then taken out of the neighbours' weights, and of BatchNormalization's
    and depthwise kernels between them, as far as nothing else is added to them.

    Args:
        model: an `onnx.ModelProto`, the path of a file, or a Keras model. It is not changed.
        percent: how many of the convolutions go, in [0, 100]; rounded down to a whole number of layers.
        seed: of the random choice; the same seed chooses the same layers.
        criterion: the layers with the lowest mean score go, instead of random ones.
        names: exactly these go, in this order, instead of a percentage.

    Returns:
        a `RemovalResult`; print it for the walk over the layers.

    Raises:
        PlanError: not exactly one of percent and names, one that is out of range or is no Conv, or more than can go.
        TraceError: the model cannot be read.

    Source: deeplite-pruning removes random convolutions of a sequential VGG19.
    """
    graph = trace(model)
    layers = layers_of(graph.model)
    chosen = _chosen(graph, layers, percent, seed, criterion, names)
    before = cost(graph)
    if not chosen:
        return RemovalResult(graph.model, (), before, before, layers.walk(graph))
    edited, pads = layers.without(graph, chosen)
    whole = trace(edited)
    left = trace(layers.tidied(_stripped(whole, _zeros(whole, pads))))
    # What nobody reads any more goes too, but no convolution beside those that were chosen.
    bare = trace(_stripped(left))
    if len(layers.convolutions(bare)) == len(layers.convolutions(left)):
        left = bare
    result = left.model
    layers.check(result)
    return RemovalResult(result, tuple(chosen), before, cost(left), layers.walk(left))


def _stripped(graph: ChannelGraph, plan: PruningPlan | None = None) -> Any:
    """What `strip` makes of a model, compared as there, without what it tells of the two."""
    left = outcome(graph, plan)
    model = rebuild(left.graph, left.facts, left.new, left.replacements).model
    zeros = () if plan is None else zeros_in(graph.model, plan)
    verify(graph.model, model, weights=zeros).raise_if_different(f"stripping {graph.name}")
    return model


def _chosen(
    graph: ChannelGraph,
    layers: Any,
    percent: float | None,
    seed: int,
    criterion: str | Criterion | None,
    names: Sequence[str] | None,
) -> list[str]:
    every, possible = layers.convolutions(graph), layers.replaceable(graph)
    # One stays: a model without any has nothing to train.
    most = min(len(possible), len(every) - 1)
    if (percent is None) == (names is None):
        raise PlanError(f"give either percent or names=, and {percent=}, {names=} came")
    if names is not None:
        unknown = [name for name in names if name not in possible]
        if unknown:
            raise PlanError(f"{graph.name} has no convolution {unknown[0]!r} that can be removed; there are {possible}")
        if len(set(names)) > most:
            raise PlanError(f"at most {most} of the {len(every)} convolutions can be removed, and {len(names)} came")
        return list(dict.fromkeys(names))
    if isinstance(percent, bool) or not isinstance(percent, int | float | np.number) or not 0 <= percent <= 100:
        raise PlanError(f"percent must be a number in [0, 100], and {percent!r} came")
    count = int(percent * len(every) / 100 + 1e-9)
    if count > most:
        raise PlanError(
            f"{percent:g} % of {len(every)} convolutions are {count}, and at most {most} can be removed "
            f"({100 * max(0, most) / max(1, len(every)):.4g} %): the model would have none left"
        )
    if criterion is not None:
        scores = _scores(graph, criterion, possible)
        return sorted(possible, key=scores.__getitem__)[:count]
    order = np.random.default_rng(seed).permutation(len(possible))
    return [possible[index] for index in order[:count]]


def _scores(graph: ChannelGraph, criterion: str | Criterion, names: Sequence[str]) -> dict[str, float]:
    """The mean score of each convolution's filters."""
    scorer = Scorer(graph, criterion)
    scores = {}
    for op in graph.ops:
        if op.layer in names and isinstance(op, Contract | Depthwise):
            role = "write" if isinstance(op, Contract) else "depthwise"
            slot = graph.labels.slots[op.kernel, role]
            positions = np.arange(slot.labels.size)
            group = ChannelGroup(op.layer, positions, "", [Member(slot, positions, positions)])
            scores[op.layer] = float(np.mean(scorer([group])[op.layer]))
    return scores


def _zeros(graph: ChannelGraph, pads: Sequence[str]) -> PruningPlan:
    """A plan that takes the channels that pads have added, and that nobody else writes."""
    added = np.zeros(graph.channels, bool)
    for op in graph.ops:
        if isinstance(op, Pad) and op.layer in pads:
            labels = graph.labels.of[op.output].ravel()
            added[graph.channel_of[labels[op.before + graph.labels.of[op.inputs[0]].size :]]] = True
    for slot in graph.labels.slots.values():
        if slot.role == "write":
            added[graph.channel_of[slot.labels.ravel()]] = False
    added[list(graph.protected)] = False
    return PruningPlan(graph, added, request="channels of zeros")
