"""Convolutions of any rank: plain, grouped, dilated, depthwise, separable, transposed."""

from __future__ import annotations

import math
from typing import Any

from keras import layers

from tfprune.channels.labels import Shape
from tfprune.keras_graph.lowering import Lowering, register_rule
from tfprune.keras_graph.rules.activations import activated


def variable(layer: Any, name: str) -> Any:
    """A kernel's variable itself; `layer.kernel` may be a product with a low-rank update."""
    found = getattr(layer, f"_{name}", None)
    return getattr(layer, name) if found is None else found


def channel_axis(layer: Any, shape: Shape) -> int:
    """The channel axis, the batch axis not counted."""
    return 0 if layer.data_format == "channels_first" else len(shape) - 1


def positions(shape: Shape, axis: int) -> int:
    """How many positions a value has beside its channels; 0 if an axis is unknown."""
    sizes = [size for index, size in enumerate(shape) if index != axis]
    return 0 if None in sizes else math.prod(sizes)  # type: ignore[arg-type]


def pads(layer: Any, kernel: tuple[int, ...]) -> bool:
    """Whether zeros from outside may enter the sum."""
    return layer.padding != "valid" and any(size > 1 for size in kernel)


@register_rule(layers.Conv1D, layers.Conv2D, layers.Conv3D)
def conv(layer, lower: Lowering) -> int:
    x = lower.inputs[0]
    axis, rank = channel_axis(layer, lower.shape(x)), layer.rank
    kernel = variable(layer, "kernel")
    inputs = lower.shape(x)[axis]
    bias = layer.bias if layer.use_bias else None
    common: dict[str, Any] = {
        "shape": lower.output_shape,
        "bias": bias,
        "pads": pads(layer, layer.kernel_size),
        "positions": positions(lower.output_shape, axis),
    }
    if layer.groups > 1 and layer.groups == inputs:
        split = (*layer.kernel_size, 1, inputs, layer.filters // inputs)
        y = lower.depthwise(x, kernel, axis=axis, split=split, axes=(rank + 1, rank + 2), **common)
        lower.settings(lambda new: {"filters": new.shape(y)[axis], "groups": new.shape(x)[axis]})
        return activated(layer, lower, y)
    y = lower.contract(x, kernel, read=[(axis, rank)], write=[(axis, rank + 1)], groups=layer.groups, **common)
    weight = lower.weight(kernel)
    lower.settings(
        lambda new: (
            {"filters": new.shape(y)[axis], "groups": new.groups.get(weight, layer.groups)}
            if layer.groups > 1
            else {"filters": new.shape(y)[axis]}
        )
    )
    return activated(layer, lower, y)


@register_rule(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
def conv_transpose(layer, lower: Lowering) -> int:
    x = lower.inputs[0]
    axis, rank = channel_axis(layer, lower.shape(x)), layer.rank
    y = lower.contract(
        x,
        variable(layer, "kernel"),
        read=[(axis, rank + 1)],
        write=[(axis, rank)],
        shape=lower.output_shape,
        bias=layer.bias if layer.use_bias else None,
        # How many kernel entries meet at an output differs from one position to the next.
        pads=any(size > 1 for size in (*layer.kernel_size, *layer.strides)),
        positions=positions(lower.shape(x), axis),
    )
    lower.settings(lambda new: {"filters": new.shape(y)[axis]})
    return activated(layer, lower, y)


@register_rule(layers.DepthwiseConv1D, layers.DepthwiseConv2D)
def depthwise_conv(layer, lower: Lowering) -> int:
    x = lower.inputs[0]
    axis, rank = channel_axis(layer, lower.shape(x)), layer.rank
    y = lower.depthwise(
        x,
        layer.kernel,
        axis=axis,
        split=tuple(layer.kernel.shape),
        axes=(rank, rank + 1),
        shape=lower.output_shape,
        bias=layer.bias if layer.use_bias else None,
        pads=pads(layer, layer.kernel_size),
        positions=positions(lower.output_shape, axis),
    )
    return activated(layer, lower, y)


@register_rule(layers.SeparableConv1D, layers.SeparableConv2D)
def separable_conv(layer, lower: Lowering) -> int:
    x = lower.inputs[0]
    axis, rank = channel_axis(layer, lower.shape(x)), layer.rank
    middle = list(lower.output_shape)
    middle[axis] = lower.shape(x)[axis] * layer.depth_multiplier
    between = lower.depthwise(
        x,
        layer.depthwise_kernel,
        axis=axis,
        split=tuple(layer.depthwise_kernel.shape),
        axes=(rank, rank + 1),
        shape=tuple(middle),
        pads=pads(layer, layer.kernel_size),
        positions=positions(lower.output_shape, axis),
    )
    y = lower.contract(
        between,
        layer.pointwise_kernel,
        read=[(axis, rank)],
        write=[(axis, rank + 1)],
        shape=lower.output_shape,
        bias=layer.bias if layer.use_bias else None,
        positions=positions(lower.output_shape, axis),
    )
    lower.settings(lambda new: {"filters": new.shape(y)[axis]})
    return activated(layer, lower, y)
