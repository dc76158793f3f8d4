"""BatchNormalization and those that look at one sample."""

from __future__ import annotations

import numpy as np
from keras import layers, ops

from tfprune.from_onnx.builder import Builder, LayerError, Value, builds
from tfprune.onnx_graph.model import Node


@builds("BatchNormalization")
def batch(builder: Builder, node: Node) -> Value:
    value = builder.value(node)
    weights = [builder.array(node, index) for index in (1, 2, 3, 4)]
    if value.order is not None:
        weights = [weight[value.order] for weight in weights]
    made = builder.layer(
        node,
        layers.BatchNormalization,
        value.tensor,
        weights,
        axis=value.at(1),
        epsilon=node.attributes.get("epsilon", 1e-5),
        momentum=node.attributes.get("momentum", 0.9),
    )
    return Value(made, value.axes, value.order)


@builds("LayerNormalization")
def layer(builder: Builder, node: Node) -> Value:
    if any(node.outputs[1:]):
        raise LayerError("the mean and deviation are asked for")
    value = builder.value(node)
    axis = node.attributes.get("axis", -1) % value.rank
    axes = list(range(axis, value.rank))
    shape = tuple(size or 0 for size in builder.shape(node.inputs[0])[axis:])
    if 0 in shape:
        raise LayerError("axes of unknown size; export with fixed sizes")
    gamma, beta = (builder.array(node, index) for index in (1, 2))
    weights = [np.broadcast_to(array, shape) for array in (gamma, beta) if array is not None]
    tensor = value.tensor if len(axes) == 1 and value.order is None else builder.plain(value)
    lying = value.axes if tensor is value.tensor else tuple(range(value.rank))
    made = builder.layer(
        node,
        layers.LayerNormalization,
        tensor,
        weights,
        axis=lying.index(axis) if len(axes) == 1 else axes,
        epsilon=node.attributes.get("epsilon", 1e-5),
        center=beta is not None,
    )
    return Value(made, lying)


@builds("InstanceNormalization", "GroupNormalization")
def groups(builder: Builder, node: Node) -> Value:
    value = builder.value(node)
    scale, shift = (builder.array(node, index) for index in (1, 2))
    channels = builder.shape(node.inputs[0])[1]
    if channels is None:
        raise LayerError("the number of channels is not known")
    count = node.attributes.get("num_groups", channels)
    if scale.size != channels:  # before opset 21 one number a group
        scale, shift = (np.repeat(array, channels // count) for array in (scale, shift))
    made = builder.layer(
        node,
        layers.GroupNormalization,
        builder.in_order(value).tensor,
        [scale, shift],
        groups=count,
        axis=value.at(1),
        epsilon=node.attributes.get("epsilon", 1e-5),
    )
    return Value(made, value.axes)


@builds("LpNormalization")
def unit(builder: Builder, node: Node) -> Value:
    value = builder.in_order(builder.value(node))
    order = node.attributes.get("p", 2)
    if order not in (1, 2):
        raise LayerError(f"a norm of order {order}")
    size = ops.norm(value.tensor, ord=order, axis=value.at(node.attributes.get("axis", -1)), keepdims=True)
    return Value(ops.divide(value.tensor, size), value.axes)
