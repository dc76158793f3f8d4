"""Gemm, MatMul and Einsum."""

from __future__ import annotations

import numpy as np
from keras import layers, ops

from tfprune.from_onnx.builder import Builder, LayerError, Value, builds
from tfprune.onnx_graph.model import Node


@builds("Gemm")
def gemm(builder: Builder, node: Node) -> Value:
    value, kernel, bias = builder.value(node), builder.array(node, 1), builder.array(node, 2)
    if node.attributes.get("transA"):
        raise LayerError("a product with its first input transposed mixes the samples")
    kernel = node.attributes.get("alpha", 1.0) * (kernel.T if node.attributes.get("transB") else kernel)
    if bias is not None:
        bias = node.attributes.get("beta", 1.0) * bias
        if bias.size != kernel.shape[1] and bias.size != 1:
            raise LayerError(f"what it adds has shape {bias.shape}, which is another for each sample")
        bias = np.broadcast_to(bias.ravel(), (kernel.shape[1],))
    return dense(builder, node, value, kernel, bias, tuple(node.inputs[1:]))


@builds("MatMul")
def product(builder: Builder, node: Node) -> Value:
    first, second = builder.operand(node, 0), builder.operand(node, 1)
    if isinstance(first, Value) and isinstance(second, np.ndarray) and second.ndim == 2:
        bias, added = _bias(builder, node, second.shape[1])
        result = dense(builder, node, first, second, bias, (node.inputs[1], added and added.name))
        if added is not None:
            builder.values[added.outputs[0]] = result
        return result
    tensors = [builder.plain(one) if isinstance(one, Value) else one for one in (first, second)]
    return Value(ops.matmul(*tensors), tuple(range(len(builder.shape(node.outputs[0])))))


def _bias(builder: Builder, node: Node, units: int) -> tuple[np.ndarray | None, Node | None]:
    """What is added to each unit right behind, and the node that does it."""
    reader = builder.only_reader(node.outputs[0])
    if reader is None or reader.op != "Add" or not reader.standard:
        return None, None
    other = [name for name in reader.inputs if name != node.outputs[0]]
    if len(other) != 1 or not builder.known.is_constant(other[0]):
        return None, None
    bias = builder.known.array(other[0])
    if bias.size != units or not bias.ndim or bias.shape[-1] != units:
        return None, None
    if bias.ndim > len(builder.shape(node.outputs[0])):
        return None, None
    return bias.ravel(), reader


def dense(builder: Builder, node: Node, value: Value, kernel, bias, shared) -> Value:
    """A Dense layer over the last axis."""
    if value.axes[-1] != value.rank - 1:
        value = Value(builder.plain(value), tuple(range(value.rank)))
    if value.order is not None:
        kernel = kernel[value.order]
        shared = None
    weights = [kernel] if bias is None else [kernel, bias]
    made = builder.layer(
        node, layers.Dense, value.tensor, weights, shared, units=kernel.shape[1], use_bias=bias is not None
    )
    return Value(made, value.axes)


@builds("Einsum")
def einsum(builder: Builder, node: Node) -> Value:
    found = [builder.operand(node, index) for index in range(len(node.inputs))]
    tensors = [builder.plain(one) if isinstance(one, Value) else one for one in found]
    equation = node.attributes["equation"].decode().replace(" ", "")
    return Value(ops.einsum(equation, *tensors), tuple(range(len(builder.shape(node.outputs[0])))))
