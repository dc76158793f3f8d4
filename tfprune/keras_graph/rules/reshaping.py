"""Layers that only move channels. Their target shapes are found again from what is left."""

from __future__ import annotations

from keras import layers

from tfprune.channels.labels import Shape
from tfprune.keras_graph.lowering import Lowering, register_rule


def target(shape: Shape) -> tuple[int, ...]:
    """A shape as an argument: the unknown axis is -1."""
    return tuple(-1 if size is None else size for size in shape)


@register_rule(layers.Reshape)
def reshape(layer, lower: Lowering) -> int:
    y = lower.reshape(lower.inputs[0], lower.output_shape)
    lower.settings(lambda new: {"target_shape": target(new.shape(y))})
    return y


@register_rule(layers.Flatten)
def flatten(layer, lower: Lowering):
    x = lower.inputs[0]
    if layer.data_format == "channels_first" and len(lower.shape(x)) > 1:
        rank = len(lower.shape(x))
        x = lower.permute(x, (*range(1, rank), 0))
    return lower.reshape(x, lower.output_shape)


@register_rule(layers.Permute)
def permute(layer, lower: Lowering) -> int:
    return lower.permute(lower.inputs[0], tuple(axis - 1 for axis in layer.dims))
