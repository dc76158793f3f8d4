"""`select`: scores and an amount, or budgets, become a PruningPlan."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfprune.channels.forecast import CostModel
from tfprune.channels.graph import ChannelGraph, ChannelGroup
from tfprune.channels.plan import PruningPlan
from tfprune.criteria import Criterion, Scorer
from tfprune.errors import PlanError, Refusal
from tfprune.frontend import trace
from tfprune.selection.amounts import Request, Scope
from tfprune.selection.budgets import Budget, within_budgets
from tfprune.selection.costs import costs_of
from tfprune.selection.patterns import Patterns, holding_all, holding_any
from tfprune.selection.pools import compares, pools_of
from tfprune.selection.ranking import Choice, Ranking
from tfprune.selection.whole_layers import Candidates


def select(
    model: Any,
    criterion: str | Criterion = "redundancy",
    *,
    threshold: float | Mapping[str, float] | None = None,
    ratio: float | Mapping[str, float] | None = None,
    count: int | Mapping[str, int] | None = None,
    params: float | None = None,
    macs: float | None = None,
    latency: float | None = None,
    file_bytes: Mapping[str, float] | None = None,
    scope: Scope = "local",
    round_to: int | None = None,
    min_width: int = 1,
    max_ratio: float | None = None,
    only: Patterns | None = None,
    ignore: Patterns | None = None,
    layers: bool = False,
    heads: bool = False,
    latency_table: Any = None,
    data: Any = None,
    loss: Any = None,
) -> PruningPlan:
    """Choose which channels go, and change nothing.

    How much goes is said by one of `threshold`, `ratio` and `count`, or by budgets. A ratio is what GOES; a budget is
    what is LEFT of the whole unpruned model: `macs=0.5` leaves half of its MACs. Several budgets are all met.

    Args:
        model: a model, Keras or ONNX, or its graph from `tfprune.trace` (which saves tracing it again).
        criterion: a name, or a function of a `GroupView`; see docs/criteria.md.
        threshold: a fraction in [0, 1]: channels more redundant than this go. Redundancy is 1 - score for criteria
            whose scores are fractions, and 1 - score / the largest score ranked beside it for others.
        ratio: a fraction in [0, 1): so much of the width goes, the lowest scores first.
        count: so many channels go.
        params, macs, latency: fractions in (0, 1] of the unpruned model's parameters, multiply-adds and predicted
            latency that are left.
        file_bytes: file format -> the fraction in (0, 1] of its bytes that is left: `{"onnx": 0.5}`. The model is
            exported to see, which takes seconds.
        scope: what is ranked together, and what threshold, ratio and count are about: `"local"` each group by itself;
            `"global"` all groups, their scores divided by each group's mean; `"isomorphic"` all groups of the same
            structure, so that each such class loses the same fraction.
        round_to: the number that goes of a group is rounded to the nearest multiple (half a multiple up), and down
            again where it would empty the group. By default 4, and 1 with `count`.
        min_width: so many channels of a group stay at least.
        max_ratio: a fraction in [0, 1] of a group's width that goes at most.
        only: layer-name prefixes or patterns (`block_3_`, `SE*`, `backbone/*`); a group is pruned only if one of them
            holds all layers that write it. Naming each block of a network prunes inside the blocks, and the residual
            stream between them stays. None: every group.
        ignore: the same for layers that are left alone: a group stays if one of them holds one layer that writes it.
        layers: also take whole convolutions that the model can live without (those of a residual branch, an SE
            gate) and what fed only them: by threshold those whose filters' mean redundancy exceeds it; by ratio that
            fraction of them; under a budget they compete with channels, see docs/selection.md.
        heads: take whole attention heads instead of widths inside of them.
        latency_table: with `latency`: a `tfprune.latency.LatencyTable`, or a function from a list of `LayerWidths` to
            milliseconds.
        data, loss: a sample and a loss for criteria that need them.

    `threshold`, `ratio` and `count` may be dictionaries from group names or layer patterns to numbers. Groups that none
    of them names stay. A group's own name goes before patterns, and the first pattern that holds it counts; with
    `scope="global"` the groups of one pattern are ranked together.

    Returns:
        a `PruningPlan`; print it before applying it. Under a budget its `forecast` says what stripping will leave.

    Raises:
        PlanError: amounts or budgets contradict each other or are out of their range, a pattern matches no layer, a
            budget cannot be met even if everything goes that may.

    >>> import keras, tfprune
    >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(8, 3), keras.layers.Flatten(),
    ...                           keras.layers.Dense(2)])
    >>> tfprune.select(model, "l1", ratio=0.5).pruned
    4
    >>> print(tfprune.select(model, "l1", params=0.5).forecast)
    expected parameters: 802 -> 402 (50.12% left, budget 50.00%)
    expected MACs: 8,352 -> 4,176 (50.00% left)
    """
    request = Request.checked(
        threshold=threshold, ratio=ratio, count=count, params=params, macs=macs, latency=latency,
        file_bytes=file_bytes, scope=scope, round_to=round_to, min_width=min_width, max_ratio=max_ratio,
    )  # fmt: skip
    if layers and (request.kind == "count" or isinstance(request.amount, Mapping)):
        raise PlanError("layers=True goes with one threshold, one ratio or budgets, and not with count= or patterns")
    graph = model if isinstance(model, ChannelGraph) else trace(model)
    inside = _inside(graph, only, ignore)
    scorer = Scorer(graph, criterion, data=data, loss=loss)
    named = f"{scorer.name}, {request}{_where(only, ignore)}"
    groups, refusals = _candidates(graph, inside, heads)
    scores = scorer(groups)
    refusals += [_stays(group, scores.refused[group.name]) for group in groups if group.name in scores.refused]
    groups = [group for group in groups if group.name in scores]
    pools = pools_of(graph, groups, scores, request, compares(scorer.criterion, scores))
    ranking = Ranking(graph, groups, pools, request.limits)
    redundancies = {groups[n].name: r for pool in pools for n, r in zip(pool.groups, pool.redundancies, strict=True)}
    whole = Candidates(graph, scorer, inside) if layers else None

    def plan_of(choice: Choice) -> PruningPlan:
        return PruningPlan(graph, ranking.gone(choice.counts), choice.layers, tuple(refusals), named, redundancies)

    if request.kind == "budget":
        costs = CostModel(graph)
        budgets = [Budget(cost, request.budgets[cost.name]) for cost in costs_of(costs, request.budgets, latency_table)]
        among = whole.among(ranking, [budget.cost for budget in budgets], scope) if whole else []
        return within_budgets(ranking, costs, budgets, plan_of, among, refusals)
    wanted = np.zeros(len(groups), np.intp)
    for pool in pools:
        for number, amount in pool.wanted(request.kind).items():
            wanted[number] = amount
    counts = ranking.counts(wanted)
    refusals += _kept(groups, wanted, counts, request)
    return plan_of(Choice(counts, whole.by_amount(request) if whole else ()))


def _inside(graph: ChannelGraph, only: Patterns | None, ignore: Patterns | None) -> Callable[[Iterable[str]], bool]:
    """Whether a group with these writers is to be pruned."""
    held, ignored = holding_all(graph, only, "only"), holding_any(graph, ignore, "ignore")
    return lambda layers: held(layers) and not ignored(layers)


def _where(only: Patterns | None, ignore: Patterns | None) -> str:
    """What was left out on purpose, in words."""
    parts = []
    for name, patterns in (("only", only), ("ignoring", ignore)):
        listed = [patterns] if isinstance(patterns, str) else list(patterns or ())
        parts.append(f", {name} {', '.join(listed)}" if any(listed) else "")
    return "".join(parts)


def _candidates(
    graph: ChannelGraph, inside: Callable[[Iterable[str]], bool], heads: bool
) -> tuple[list[ChannelGroup], list[Refusal]]:
    """The groups to choose from, and those that are in scope and stay."""
    held = {name for group in graph.groups for name in group.holds}
    groups = [g for g in graph.groups if inside(g.writers) and not (g.name in held if heads else g.holds)]
    stay = [_stays(group, group.reason) for group in groups if not group.prunable]
    return [group for group in groups if group.prunable], stay


def _stays(group: ChannelGroup, reason: str) -> Refusal:
    return Refusal(group.name, tuple(range(group.width)), reason)


def _kept(groups: list[ChannelGroup], wanted: NDArray, counts: NDArray, request: Request) -> list[Refusal]:
    """The groups of which something was to go, and nothing does."""
    return [
        _stays(group, request.limits.why_not(int(wanted[number]), group.width))
        for number, group in enumerate(groups)
        if wanted[number] and not counts[number]
    ]
