"""One order in which channels go, whatever the scope: a budget takes as long a part of its beginning as it needs.

Under `scope="global"` the order is that of the scores; otherwise a channel's place is the fraction of its pool that
goes before it, so that any beginning of the order takes the same fraction of every pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tfprune.channels.graph import ChannelGraph, ChannelGroup
from tfprune.channels.labels import Indices
from tfprune.selection.amounts import Limits
from tfprune.selection.pools import Pool


@dataclass(frozen=True)
class Choice:
    """How many channels of each group go, and which whole layers."""

    counts: NDArray[np.intp]
    layers: tuple[str, ...] = ()


class Ranking:
    """The channels of some groups, the first to go first; and whole layers among them.

    Args:
        graph: the traced model.
        groups: what is chosen from.
        pools: what of it is ranked together.
        limits: on each group.
    """

    def __init__(self, graph: ChannelGraph, groups: Sequence[ChannelGroup], pools: Sequence[Pool], limits: Limits):
        self.graph, self.groups, self.limits = graph, list(groups), limits
        ordered = [pool.order() for pool in pools]
        nothing = np.zeros(0, np.intp)
        owner, index = (np.concatenate([nothing, *(order[i] for order in ordered)]).astype(np.intp) for i in (0, 1))
        keys = np.concatenate([np.zeros(0), *((np.arange(pool.width) + 1) / pool.width for pool in pools)])
        merged = np.argsort(keys, kind="stable")
        self.owner, self.keys = owner[merged], keys[merged]
        self.values = np.concatenate([np.zeros(0), *(order[2] for order in ordered)])[merged]
        starts = np.concatenate([[0], np.cumsum([group.width for group in self.groups])]).astype(np.intp)
        units = np.concatenate([nothing, *(group.units for group in self.groups)])
        self.units = units[(starts[owner] + index)[merged]]
        #: how many channels of the same group go before each
        self.before = _occurrence(self.owner)
        self.most = np.array([limits.most(group.width) for group in self.groups], np.intp)
        self._channel_units = np.zeros(graph.channels, np.intp)
        self._channel_units[graph.channel_of] = graph.unit_of

    @property
    def length(self) -> int:
        """How many channels are ranked."""
        return len(self.owner)

    def wanted(self, length: int) -> NDArray[np.intp]:
        """group -> how many of its channels are among the first so many."""
        return np.bincount(self.owner[:length], minlength=len(self.groups))

    def counts(self, wanted: NDArray[np.intp]) -> NDArray[np.intp]:
        """group -> how many go when so many were to go."""
        step = self.limits.round_to
        return np.minimum((wanted + step // 2) // step * step, self.most)

    def gone(self, counts: NDArray[np.intp]) -> NDArray[np.bool_]:
        """channel -> whether it goes, when so many of each group do."""
        chosen = np.zeros(self.graph.units, bool)
        chosen[self.units[self.before < counts[self.owner]]] = True
        return self.graph.with_contents(chosen[self._channel_units])

    def place_of(self, group: int, number: int) -> int:
        """Where the order takes a group's channel that goes after `number` others of it."""
        return int(np.flatnonzero((self.owner == group) & (self.before == number))[0])


def _occurrence(owner: Indices) -> Indices:
    """How often each entry stood before.

    >>> _occurrence(np.array([1, 0, 1, 1])).tolist()
    [0, 0, 1, 2]
    """
    order = np.argsort(owner, kind="stable")
    sizes = np.bincount(owner)
    starts = np.cumsum(sizes) - sizes
    result = np.empty_like(owner)
    result[order] = np.arange(len(owner)) - np.repeat(starts, sizes)
    return result
