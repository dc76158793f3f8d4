"""What the weights prove: which channels are constant, which are never read, and so which may go.

requires: a labelled graph, and its weights.
does:     one walk forward (constants), one backward (reads), one look at each value.
ensures:  a channel called removable is, in every tensor it lives in, 0, or not read, or a constant that its readers
          can take into their biases. Whatever is not called so has a reason.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tfprune.channels.graph import ChannelGraph
from tfprune.channels.ops import Facts
from tfprune.channels.weights import Weight

Bools = NDArray[np.bool_]


def prove(graph: ChannelGraph, weight: Callable[[Weight], NDArray], tables: dict | None = None) -> Facts:
    """Find the constants and the reads of every channel of every value.

    Args:
        weight: a weight's array.
        tables: the zero tables of an earlier proof with the same weights, which need not be read again.
    """
    facts = Facts(graph.labels.of, weight, tables={} if tables is None else tables)
    for op in graph.ops:
        op.forward(facts)
    for value, labels in graph.labels.of.items():
        facts.read[value] = np.zeros(labels.shape, bool)
    for value in graph.outputs:
        facts.read[value] = np.ones(graph.labels.of[value].shape, bool)
    for op in reversed(graph.ops):
        op.backward(facts)
    return facts


def removable(graph: ChannelGraph, facts: Facts) -> Bools:
    """channel -> whether it may go, by what is proved of it alone (the walk may still bring some back)."""
    result = np.ones(graph.channels, bool)
    result[list(graph.protected)] = False
    for value, needed in _needed(graph, facts).items():
        result[graph.channel_of[graph.labels.of[value][needed]]] = False
    return result


def _needed(graph: ChannelGraph, facts: Facts) -> dict[int, Bools]:
    """value -> which of its channels could not be left out there."""
    needed = {value: facts.read[value] & np.isnan(facts.constant[value]) for value in graph.labels.of}
    for op in graph.ops:
        for value, kept in op.unfoldable(facts).items():
            needed[value] = needed[value] | kept
    return needed


def reasons(graph: ChannelGraph, facts: Facts, channels: Bools) -> dict[int, str]:
    """channel -> why it stays, for those of `channels` that do; the first place that needs it names the reason."""
    found = {channel: reason for channel, reason in graph.protected.items() if channels[channel]}
    wanted = channels.copy()
    wanted[list(found)] = False
    for value, needed in _needed(graph, facts).items():
        labels = graph.labels.of[value]
        here = needed & wanted[graph.channel_of[labels]]
        for position in np.argwhere(here):
            channel = int(graph.channel_of[labels[tuple(position)]])
            if channel not in found:
                found[channel] = _reason(graph, facts, value, channel, facts.constant[value][tuple(position)])
        wanted[list(found)] = False
    return found


def _reason(graph: ChannelGraph, facts: Facts, value: int, channel: int, constant: float) -> str:
    writer = graph.producer[value].layer
    if np.isnan(constant):
        op = graph.producer[value]
        if getattr(op, "pads", False):
            source = op.inputs[0]
            before = facts.constant[source][graph.channel_of[graph.labels.of[source]] == channel]
            known = before[np.isfinite(before)]
            if known.size:
                return f"{known[0]:.3g} after {graph.producer[source].layer} crosses the padded {writer}"
        return op.why_unknown()
    for op in graph.ops:
        kept = op.unfoldable(facts).get(value) if value in op.inputs else None
        if kept is not None and (kept & (graph.channel_of[graph.labels.of[value]] == channel)).any():
            return op.why_unfoldable(constant, writer)
    return f"{constant:.3g} after {writer} is read"
