"""Pooling, padding, cropping, upsampling: positions move, channels do not."""

from __future__ import annotations

from typing import Any

from keras import layers

from tfprune.keras_graph.lowering import Lowering, register_rule
from tfprune.keras_graph.rules.convolutions import channel_axis


def spatial_axes(layer: Any, lower: Lowering) -> tuple[int, ...]:
    shape = lower.shape(lower.inputs[0])
    channel = channel_axis(layer, shape) if hasattr(layer, "data_format") else len(shape) - 1
    return tuple(axis for axis in range(len(shape)) if axis != channel)


@register_rule(
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.MaxPooling3D,
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.AveragePooling3D,
    layers.Cropping1D,
    layers.Cropping2D,
    layers.Cropping3D,
    layers.UpSampling1D,
    layers.UpSampling2D,
    layers.UpSampling3D,
    *(
        getattr(layers, f"Adaptive{kind}Pooling{rank}D")
        for kind in ("Average", "Max")
        for rank in (1, 2, 3)
        if hasattr(layers, f"Adaptive{kind}Pooling{rank}D")
    ),
)
def moved(layer, lower: Lowering) -> int:
    # Keras leaves padded positions out of maxima and averages, so a constant stays what it is.
    return lower.spatial(lower.inputs[0], lower.output_shape, axes=spatial_axes(layer, lower))


@register_rule(layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D)
def padded(layer, lower: Lowering) -> int:
    return lower.spatial(lower.inputs[0], lower.output_shape, axes=spatial_axes(layer, lower), pads=True)


@register_rule(
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalAveragePooling3D,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.GlobalMaxPooling3D,
)
def pooled_globally(layer, lower: Lowering) -> int:
    return lower.reduce(lower.inputs[0], spatial_axes(layer, lower), bool(layer.keepdims))
