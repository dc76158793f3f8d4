"""Whole convolutions as candidates: those of branches that a model can live without. What fed only them goes along.

Source: layers as candidates as in Elkerdawy et al., "To Filter Prune, or to Layer Prune, That Is The Question"
(arXiv:2007.05667), a layer's score being the mean of its filters'; a score for what it saves as in Shen et al., "HALP:
Hardware-Aware Latency Pruning" (arXiv:2110.10811).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from tfprune.channels.graph import ChannelGraph, ChannelGroup, Member
from tfprune.channels.ops import Contract
from tfprune.channels.removal import can_drop, droppable
from tfprune.criteria import Scorer
from tfprune.selection.amounts import Request
from tfprune.selection.costs import Cost
from tfprune.selection.pools import comparable, compares
from tfprune.selection.ranking import Ranking


class Candidates:
    """The whole convolutions that may go, with scores.

    Args:
        graph: the traced model.
        scorer: the criterion.
        inside: whether layers may be touched.
    """

    def __init__(self, graph: ChannelGraph, scorer: Scorer, inside: Callable[[Iterable[str]], bool]):
        self.graph = graph
        # What is dropped is what the layer's last kernel writes.
        kernels = {op.layer: op.kernel for op in graph.ops if isinstance(op, Contract) and op.write}
        groups = []
        for layer in (layer for layer in droppable(graph) if inside([layer])):
            slot = graph.labels.slots[kernels[layer], "write"]
            positions = np.arange(slot.labels.size)
            groups.append(ChannelGroup(layer, positions, "", [Member(slot, positions, positions)]))
        self.criterion, self.scores = scorer.criterion, scorer(groups)

    def by_amount(self, request: Request) -> tuple[str, ...]:
        """By threshold, those whose filters' mean redundancy exceeds it; by ratio that fraction of them."""
        redundancy = {layer: float(self.scores.redundancy(layer).mean()) for layer in self.scores}
        ordered = sorted(redundancy, key=lambda layer: -redundancy[layer])
        if request.kind == "threshold":
            return tuple(self._possible(layer for layer in ordered if redundancy[layer] > request.amount))
        return tuple(self._possible(ordered, int(request.amount * len(ordered) + 1e-9)))

    def among(self, ranking: Ranking, costs: Sequence[Cost], scope: str) -> list[tuple[int, str]]:
        """(after how many channels of the ranking it goes, layer).

        Under `scope="global"` a layer goes as soon as channels go whose scores are as low as its own for what it saves:
        its score (the mean of its filters', over the mean of all such layers) times its filters, over how many average
        channels save as much. Otherwise the fraction of layers that goes is that of the channels.
        """
        if scope != "global":
            redundancy = {layer: float(self.scores.redundancy(layer).mean()) for layer in self.scores}
            ordered = list(self._possible(sorted(redundancy, key=lambda layer: -redundancy[layer])))
            return [
                (int(np.searchsorted(ranking.keys, (number + 1) / len(redundancy))), layer)
                for number, layer in enumerate(ordered)
            ]
        keys = self._scores_for_what_they_save(ranking, costs)
        ordered = list(self._possible(sorted(keys, key=lambda layer: keys[layer])))
        highest = np.maximum.accumulate(ranking.values)
        return [(int(np.searchsorted(highest, keys[layer])), layer) for layer in ordered]

    def _scores_for_what_they_save(self, ranking: Ranking, costs: Sequence[Cost]) -> dict[str, float]:
        if not self.scores:
            return {}
        everything = np.ones(self.graph.channels, bool)
        most = ~ranking.gone(ranking.most)
        each = sum((1 - cost.predict(most, ()) / cost.before) / max(1, ranking.length) for cost in costs)
        means = {layer: float(scores.mean()) for layer, scores in self.scores.items()}
        relative = comparable(np.array(list(means.values())), compares(self.criterion, self.scores))
        result = {}
        for layer, score in zip(means, relative.tolist(), strict=True):
            saved = sum(1 - cost.predict(everything, {layer}) / cost.before for cost in costs)
            channels = saved / each if each > 0 else 0.0
            result[layer] = score * len(self.scores[layer]) / channels if channels > 0 else float("inf")
        return result

    def _possible(self, ordered: Iterable[str], most: int | None = None) -> Iterable[str]:
        """As many as can go together, in that order."""
        taken: list[str] = []
        for layer in ordered:
            if len(taken) == most:
                break
            if can_drop(self.graph, {*taken, layer}):
                taken.append(layer)
        return taken
