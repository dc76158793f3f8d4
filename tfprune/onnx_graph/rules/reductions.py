"""Sums, means and maxima over axes: of positions, or of channels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfprune.onnx_graph.lowering import Lowering, register_node


def _zero_stays(constant: NDArray, count: float) -> NDArray:
    return np.where(constant == 0, 0.0, np.nan)


def _nothing(constant: NDArray, count: float) -> NDArray:
    return np.full(constant.shape, np.nan)


# operator -> what becomes of a constant over positions; None: it stays what it is
_OVER_POSITIONS: dict[str, Any] = {
    "ReduceMean": None,
    "ReduceMax": None,
    "ReduceMin": None,
    "ReduceSum": lambda constant, count: constant * count,
    "ReduceL1": lambda constant, count: np.abs(constant) * count,
    "ReduceL2": lambda constant, count: np.abs(constant) * np.sqrt(count),
    "ReduceSumSquare": lambda constant, count: constant**2 * count,
    "ReduceProd": _zero_stays,
    "ReduceLogSum": _nothing,
    "ReduceLogSumExp": _nothing,
    "ArgMax": _nothing,
    "ArgMin": _nothing,
}
# Of these, channels that are 0 may go: a sum is the same without them.
_SUMS = ("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare")


@register_node(*_OVER_POSITIONS)
def reduce(lower: Lowering) -> Any:
    x, op = lower.value(0), lower.node.op
    rank = len(lower.shape(x))
    if op in ("ArgMax", "ArgMin"):
        axes = [int(lower.attribute("axis", 0))]
    else:
        given = lower.whole("axes", 1)
        if not given and lower.attribute("noop_with_empty_axes", 0):
            return lower.identity(x)
        axes = given or list(range(rank))
    axes = [axis % rank for axis in axes] if rank else []
    function = _OVER_POSITIONS[op]
    fold = None
    if op in _SUMS:
        known = function

        def function(constant: NDArray, count: float) -> NDArray:
            return known(constant, count)

        fold = _of_zeros
    return lower.reduce(x, axes, bool(lower.attribute("keepdims", 1)), function, fold)


def _of_zeros(contributions: NDArray) -> float:
    return 0.0 if not contributions.any() else float("nan")
