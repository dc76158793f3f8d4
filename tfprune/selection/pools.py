"""What is ranked together: each group by itself, all groups of one structure, or all groups.

Source: groups of one structure as in Fang et al., "Isomorphic Pruning for Vision Models" (arXiv:2407.04616):
sub-structures with the same operations in the same roles are compared with each other, and with nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfprune.channels.graph import ChannelGraph, ChannelGroup
from tfprune.channels.labels import Indices
from tfprune.criteria.base import Criterion
from tfprune.criteria.scoring import Scores
from tfprune.errors import PlanError
from tfprune.selection.amounts import Request
from tfprune.selection.patterns import checked, matches

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Pool:
    """Groups that are ranked together.

    Attributes:
        groups: their numbers among all groups that are chosen from.
        amount: the threshold, ratio or count for these groups; None under a budget.
        values: each group's scores, so that they compare.
        redundancies: each group's, in [0, 1]: 1 - score / the largest score of the pool.
    """

    groups: tuple[int, ...]
    amount: Any
    values: tuple[Floats, ...]
    redundancies: tuple[Floats, ...]

    @property
    def width(self) -> int:
        """How many channels are ranked."""
        return sum(map(len, self.values))

    def order(self) -> tuple[Indices, Indices, Floats]:
        """(group, index in it, value) of all channels, the most redundant first, and the first of equal ones first."""
        owner = np.repeat(np.asarray(self.groups, np.intp), [len(values) for values in self.values])
        index = np.concatenate([np.arange(len(values)) for values in self.values])
        order = np.argsort(-np.concatenate(self.redundancies), kind="stable")
        return owner[order], index[order], np.concatenate(self.values)[order]

    def wanted(self, kind: str) -> dict[int, int]:
        """group -> how many of its channels were to go, before limits."""
        if kind == "threshold":
            return {
                group: int((redundancy > self.amount).sum())
                for group, redundancy in zip(self.groups, self.redundancies, strict=True)
            }
        number = int(self.amount if kind == "count" else self.amount * self.width + 1e-9)
        gone = np.bincount(self.order()[0][:number], minlength=max(self.groups) + 1)
        return {group: int(gone[group]) for group in self.groups}


def pools_of(
    graph: ChannelGraph, groups: Sequence[ChannelGroup], scores: Scores, request: Request, already: bool
) -> list[Pool]:
    """The pools that a request's scope makes of some groups, in the order of their first groups.

    Args:
        already: whether scores of different groups compare as they are.

    Raises:
        PlanError: a pattern of the request matches no layer, or none of these groups; a count leaves nothing.
    """
    amounts = _amounts(graph, groups, request)
    structure = structures(graph)
    members: dict[Any, list[int]] = {}
    for number, group in enumerate(groups):
        if number in amounts:
            own: Any = number if request.scope == "local" else 0
            own = structure(group) if request.scope == "isomorphic" else own
            members.setdefault((own, amounts[number][0]), []).append(number)
    return [
        _pool(numbers, [groups[number] for number in numbers], amounts[numbers[0]][1], scores, request, already)
        for numbers in members.values()
    ]


def structures(graph: ChannelGraph) -> Callable[[ChannelGroup], tuple]:
    """A function from a group to what it looks like: the classes of its layers, and its parts of their weights."""
    kinds = {call.layer: call.kind for call in graph.calls}

    def structure(group: ChannelGroup) -> tuple:
        return tuple((kinds.get(member.layer, ""), member.slot.weight.name, member.role) for member in group.members)

    return structure


def compares(criterion: Criterion, scores: Scores) -> bool:
    """Whether a criterion's scores mean the same in every group, or it normalises them itself."""
    own = getattr(criterion, "normalize", "none") != "none"
    return scores.absolute or own or bool(getattr(criterion, "comparable", False))


def comparable(values: Floats, already: bool) -> Floats:
    """A group's scores, so that they compare with another group's: divided by their mean, unless they do already.

    Where scores are negative the lowest stands for 0.

    Source: Torch-Pruning's `GroupMagnitudeImportance` with `normalizer="mean"`.

    >>> comparable(np.array([1.0, 3.0]), already=False).tolist()
    [0.5, 1.5]
    """
    if already:
        return values
    values = values - values.min(initial=0)
    mean = values.mean()
    return values / mean if mean > 0 else values


def _pool(
    numbers: Sequence[int], groups: Sequence[ChannelGroup], amount: Any, scores: Scores, request: Request, already: bool
) -> Pool:
    width = sum(group.width for group in groups)
    if request.kind == "count" and amount >= width:
        where = f"group {groups[0].name!r} has" if len(groups) == 1 else f"{len(groups)} groups together have"
        raise PlanError(f"count={amount} would leave nothing: {where} {width} channels; give less than that")
    if request.scope == "local":
        values = tuple(scores[group.name] for group in groups)
        redundancies = tuple(scores.redundancy(group.name) for group in groups)
    else:
        values = tuple(comparable(scores[group.name], already) for group in groups)
        lowest, largest = min(v.min(initial=0) for v in values), max(v.max(initial=0) for v in values)
        span = largest - lowest
        redundancies = tuple(
            1 - v if scores.absolute else 1 - (v - lowest) / span if span > 0 else np.ones_like(v) for v in values
        )
    return Pool(tuple(numbers), amount, values, redundancies)


def _amounts(graph: ChannelGraph, groups: Sequence[ChannelGroup], request: Request) -> dict[int, tuple[int, Any]]:
    """group -> (number of the pattern that names it, the amount); what no pattern names is left out."""
    if not isinstance(request.amount, Mapping):
        return dict.fromkeys(range(len(groups)), (0, request.amount))
    names = {group.name for group in graph.groups}
    places = {key: place for place, key in enumerate(request.amount)}
    patterns = checked(graph, [key for key in places if key not in names], request.kind)
    found: dict[int, tuple[int, Any]] = {}
    for key in [*(key for key in places if key in names), *patterns]:
        named = [number for number, group in enumerate(groups) if _means(key, group, exactly=key in names)]
        if not named:
            raise PlanError(f"{request.kind}={key!r} names no group that can go; see print(tfprune.trace(model))")
        for number in named:
            found.setdefault(number, (places[key], request.amount[key]))
    return found


def _means(key: str, group: ChannelGroup, exactly: bool) -> bool:
    return group.name == key if exactly else all(matches(layer, key) for layer in group.writers)
