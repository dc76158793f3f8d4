"""Keras' LayerNormalization, found in the TensorFlow operations it is made of and written as the one ONNX operator.

Keras computes, over the last axis and with m = gamma / sqrt(variance + epsilon), x * m + (beta - mean * m). tf2onnx
looks for the form of Keras 2, finds none, and leaves eleven nodes a layer, which no runtime puts together again.
Where there is no such operator, or the channels come first, it becomes seven.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

KIND = "LayerNormalization"
#: LayerNormalization is an operator of its own from here on.
FIRST_OPSET = 17
_ADD = ("Add", "AddV2")


@dataclass(frozen=True)
class _LayerNorm:
    x: str
    gamma: np.ndarray | None
    beta: np.ndarray | None
    epsilon: float


def fuse(graph: Any, operations: list[Any]) -> list[Any]:
    """A rewriter for tf2onnx: replace every layer normalisation over the last axis, while all is still TensorFlow's."""
    from tf2onnx import utils

    for node in list(operations):
        found = _match(graph, node)
        if found is None:
            continue
        output = node.output[0]
        shape, dtype = graph.get_shape(output), graph.get_dtype(output)
        width = graph.get_shape(found.x)[-1]
        kind = utils.map_onnx_to_numpy_type(dtype)
        gamma, beta = (
            graph.make_const(utils.make_name("layer_norm"), np.full(width, other, kind) if value is None else value)
            for value, other in ((found.gamma, 1), (found.beta, 0))
        )
        graph.remove_node(node.name)
        graph.make_node(
            KIND,
            [found.x, gamma.output[0], beta.output[0]],
            attr={"axis": -1, "epsilon": found.epsilon},
            name=node.name,
            outputs=[output],
            shapes=[shape],
            dtypes=[dtype],
            skip_conversion=True,
        )
    return graph.get_nodes()


def lower_for(graph: Any) -> None:
    """Below opset 17, write what `fuse` has made with the operators that there are, in place."""
    if graph.opset >= FIRST_OPSET:
        return
    for node in [node for node in graph.get_nodes() if node.type == KIND]:
        output = node.output[0]
        shape, dtype = graph.get_shape(output), graph.get_dtype(output)
        result = lowered(graph, node, node.input[0], shape, axis=len(shape) - 1)
        graph.remove_node(node.name)
        graph.make_node("Identity", [result], name=node.name, outputs=[output], shapes=[shape], dtypes=[dtype])
    graph.topological_sort(graph.get_nodes())


def lowered(graph: Any, node: Any, x: str, shape: list[int], axis: int) -> str:
    """Write a layer normalisation of `x` over `axis` out: d gamma / sqrt(mean(d d) + epsilon) + beta, d = x - mean(x).

    Args:
        graph: tf2onnx's.
        node: the LayerNormalization, for its gamma, beta and epsilon; it stays.
        x: the name of what is normalised.
        shape: of `x`.
        axis: of `x`, not counted from its end.
    """
    from tf2onnx import utils
    from tf2onnx.graph_builder import GraphBuilder

    dtype = graph.get_dtype(node.output[0])
    real = utils.map_onnx_to_numpy_type(dtype)
    width = shape[axis]
    one = [1 if place == axis else size for place, size in enumerate(shape)]
    along = [width if place == axis else 1 for place in range(len(shape))]

    def make(op: str, *names: str, of: list[int] = shape) -> str:
        return graph.make_node(op, list(names), shapes=[of], dtypes=[dtype]).output[0]

    def constant(value: np.ndarray) -> str:
        return graph.make_const(utils.make_name("layer_norm"), value.astype(real)).output[0]

    gamma, beta = (node.inputs[place].get_tensor_value(as_list=False).astype(np.float64) for place in (1, 2))
    builder, reduce = GraphBuilder(graph), {"axes": [axis], "keepdims": 1}
    mean = builder.make_reduce_mean({"data": x, **reduce}, shapes=[one], dtypes=[dtype])
    apart = make("Sub", x, mean)
    squares = builder.make_reduce_sum_square({"data": apart, **reduce}, shapes=[one], dtypes=[dtype])
    # With the sum for the mean, sqrt(width) goes into gamma: one pass less over the data.
    epsilon = np.full(1, width * node.get_attr_value("epsilon"))
    scale = make("Reciprocal", make("Sqrt", make("Add", squares, constant(epsilon), of=one), of=one), of=one)
    result = make("Mul", make("Mul", apart, scale), constant((gamma * np.sqrt(width)).reshape(along)))
    return make("Add", result, constant(beta.reshape(along))) if beta.any() else result


def _match(graph: Any, last: Any) -> _LayerNorm | None:
    """Read `last` as x * m + ((-mean) * m + beta), or None."""
    if last.type not in _ADD:
        return None
    for scaled, shifted in _both_orders(last):
        beta, product = _with_constant(shifted, _ADD)
        if scaled.type != "Mul" or product.type != "Mul":
            continue
        for negative, factor in _both_orders(product):
            shared = [(i, name) for i, name in enumerate(scaled.input) if name == factor.output[0]]
            if negative.type != "Neg" or len(shared) != 1:
                continue
            x = scaled.input[1 - shared[0][0]]
            gamma, root = _with_constant(factor, ("Mul",))
            epsilon = _epsilon(graph, root, x, negative.inputs[0])
            width = (graph.get_shape(x) or [-1])[-1]
            wrong = [value for value in (gamma, beta) if value is not None and value.size != width]
            if epsilon is None or width < 1 or wrong:
                continue
            return _LayerNorm(x, _flat(gamma), _flat(beta), epsilon)
    return None


def _epsilon(graph: Any, root: Any, x: str, mean: Any) -> float | None:
    """The epsilon, if `root` is 1 / sqrt(variance of x + epsilon) and `mean` the mean of x, both over the last axis."""
    if root.type != "Rsqrt" or not _is_mean_of(graph, mean, x):
        return None
    epsilon, variance = _with_constant(root.inputs[0], _ADD)
    if epsilon is None or epsilon.size != 1 or variance.type != "Mean":
        return None
    squared = variance.inputs[0]
    if squared.type != "SquaredDifference" or not _is_mean_of(graph, variance, squared.output[0]):
        return None
    for name, other in zip(squared.input, squared.inputs[::-1], strict=True):
        while other.type in ("StopGradient", "Identity"):
            other = other.inputs[0]
        if name == x and other.output[0] == mean.output[0]:
            return float(epsilon.item())
    return None


def _is_mean_of(graph: Any, node: Any, x: str) -> bool:
    shape = graph.get_shape(x)
    if node.type != "Mean" or node.input[0] != x or not shape or not node.inputs[1].is_const():
        return False
    axes = np.atleast_1d(node.inputs[1].get_tensor_value(as_list=False)) % len(shape)
    return bool(node.get_attr_value("keep_dims")) and axes.tolist() == [len(shape) - 1]


def _with_constant(node: Any, kinds: tuple[str, ...]) -> tuple[np.ndarray | None, Any]:
    """The constant operand of `node`, if it is one of `kinds`, and the other operand; else None and `node` itself."""
    if node.type in kinds:
        for constant, other in _both_orders(node):
            if constant.is_const():
                return constant.get_tensor_value(as_list=False), other
    return None, node


def _both_orders(node: Any) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    first, second = node.inputs
    return (first, second), (second, first)


def _flat(value: np.ndarray | None) -> np.ndarray | None:
    return None if value is None else value.reshape(-1)
