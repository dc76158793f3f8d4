"""Layer-name patterns: which groups a user means."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Sequence

from tfprune.channels.graph import ChannelGraph
from tfprune.errors import PlanError, nearest

Patterns = str | Sequence[str]


def matches(layer: str, pattern: str) -> bool:
    """Whether a pattern means a layer: it is a prefix of its name, or matches it with * ? [].

    >>> matches("block_3_expand", "block_3_"), matches("block_3_expand", "*_expand"), matches("stem", "block_")
    (True, True, False)
    """
    return layer.startswith(pattern) or fnmatch.fnmatchcase(layer, pattern)


def checked(graph: ChannelGraph, patterns: Patterns, argument: str) -> list[str]:
    """The patterns as a list.

    Raises:
        PlanError: one is no text, or matches no layer of the model.
    """
    known = list(dict.fromkeys(call.layer for call in graph.calls))
    listed = [patterns] if isinstance(patterns, str) else list(patterns)
    for pattern in listed:
        if not isinstance(pattern, str):
            raise PlanError(f"{argument} takes layer names, prefixes or patterns, and {pattern!r} came")
        if not any(matches(name, pattern) for name in known):
            raise PlanError(f"{argument}={pattern!r} matches no layer of {graph.name}{nearest(pattern, known)}")
    return listed


def holding_all(graph: ChannelGraph, patterns: Patterns | None, argument: str) -> Callable[[Iterable[str]], bool]:
    """Whether one of the patterns holds all of some layers; None holds everything."""
    if patterns is None:
        return lambda layers: True
    listed = checked(graph, patterns, argument)
    return lambda layers: any(all(matches(name, pattern) for name in layers) for pattern in listed)


def holding_any(graph: ChannelGraph, patterns: Patterns | None, argument: str) -> Callable[[Iterable[str]], bool]:
    """Whether one of the patterns holds one of some layers; None holds nothing."""
    if patterns is None:
        return lambda layers: False
    listed = checked(graph, patterns, argument)
    return lambda layers: any(matches(name, pattern) for name in layers for pattern in listed)
