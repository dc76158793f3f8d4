"""Sums, means, maxima over axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras import ops

from tfprune.from_onnx.builder import Builder, LayerError, Value, builds
from tfprune.from_onnx.layers.moving import without_axes
from tfprune.from_onnx.layers.pooling import GLOBAL
from tfprune.onnx_graph.model import Node

_REDUCTIONS: dict[str, Callable[..., Any]] = {
    "ReduceMax": ops.max,
    "ReduceMean": ops.mean,
    "ReduceMin": ops.min,
    "ReduceProd": ops.prod,
    "ReduceSum": ops.sum,
}
_POOLS = {"ReduceMean": "GlobalAveragePool", "ReduceMax": "GlobalMaxPool"}


@builds(*_REDUCTIONS, "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp")
def reduced(builder: Builder, node: Node) -> Value:
    value = builder.in_order(builder.value(node))
    given = builder.ints(node, 1, "axes")
    if not given and node.attributes.get("noop_with_empty_axes"):
        return value
    axes = tuple(sorted(axis % value.rank for axis in (given or range(value.rank))))
    keep = bool(node.attributes.get("keepdims", 1))
    places = tuple(sorted(value.at(axis) for axis in axes))
    tensor = value.tensor
    if node.op in _POOLS and 3 <= value.rank <= 5 and places == tuple(range(1, value.rank - 1)):
        kind = GLOBAL[_POOLS[node.op]][value.rank - 3]
        made = builder.layer(node, kind, tensor, keepdims=keep, data_format="channels_last")
    elif node.op in _REDUCTIONS:
        made = _REDUCTIONS[node.op](tensor, axis=places, keepdims=keep)
    elif node.op == "ReduceL1":
        made = ops.sum(ops.absolute(tensor), axis=places, keepdims=keep)
    elif node.op == "ReduceLogSumExp":
        made = ops.logsumexp(tensor, axis=places, keepdims=keep)
    else:
        made = ops.sum(ops.square(tensor), axis=places, keepdims=keep)
        made = ops.sqrt(made) if node.op == "ReduceL2" else made
    return Value(made, value.axes if keep else without_axes(value.axes, axes))


@builds("ArgMax", "ArgMin")
def argument(builder: Builder, node: Node) -> Value:
    value = builder.in_order(builder.value(node))
    if node.attributes.get("select_last_index"):
        raise LayerError("the last of equal entries is asked for")
    axis, keep = node.attributes.get("axis", 0) % value.rank, bool(node.attributes.get("keepdims", 1))
    function = ops.argmax if node.op == "ArgMax" else ops.argmin
    made = ops.cast(function(value.tensor, axis=value.at(axis), keepdims=keep), builder.dtype(node.outputs[0]))
    return Value(made, value.axes if keep else without_axes(value.axes, (axis,)))
