"""Walk the graph again without some of its channels.

requires: a labelled graph and which channels should stay.
does:     walks; where what is left does not fit together (uneven groups, a shared layer that would need two orders)
          the channels that make it fit come back, and the walk starts again. It ends: channels only come back.
ensures:  every value's and weight's positions in the smaller model; who came back and why.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tfprune.channels.graph import ChannelGraph
from tfprune.channels.ops import Narrowing, Violation


def narrow(
    graph: ChannelGraph, keep: NDArray[np.bool_], constant: dict[int, NDArray[np.float64]] | None = None
) -> tuple[Narrowing, dict[int, str]]:
    """Find the smaller model's positions.

    Args:
        keep: channel -> whether it should stay.
        constant: value -> the constants of its channels, for calls that are written anew without them.

    Returns:
        the positions, and channel -> reason for each that came back.
    """
    keep = keep.copy()
    returned: dict[int, str] = {}
    while True:
        stays = keep[graph.channel_of]
        new = Narrowing(graph.labels.of, graph.shapes, graph.labels.slots, stays, constant=constant or {})
        try:
            _walk(graph, new)
            return new, returned
        except Violation as violation:
            channels = np.unique(graph.channel_of[violation.labels])
            missing = channels[~keep[channels]]
            if not len(missing):
                raise AssertionError(f"{violation.reason}, although nothing near it was removed") from violation
            keep[missing] = True
            returned.update(dict.fromkeys(missing.tolist(), violation.reason))


def _walk(graph: ChannelGraph, new: Narrowing) -> None:
    for op in graph.ops:
        op.narrow(new)
        for value in op.outputs:
            if new.empty(value):
                new.kept[value] = np.zeros((0,) * graph.labels.of[value].ndim, np.intp)
    for boundary in graph.boundaries:
        for value in (*boundary.inputs, *boundary.outputs):
            if value in new.kept and new.empty(value):
                raise Violation(
                    graph.labels.of[value], f"nothing would be left of a tensor that {boundary.layer} passes on"
                )
