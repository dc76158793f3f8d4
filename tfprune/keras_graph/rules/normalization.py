"""BatchNormalization scales each channel by itself; the others read channels together."""

from __future__ import annotations

import numpy as np
from keras import layers

from tfprune.keras_graph.lowering import Lowering, register_rule


@register_rule(layers.BatchNormalization)
def batch_normalization(layer, lower: Lowering) -> int:
    x = lower.inputs[0]
    axis = (layer.axis % (len(lower.shape(x)) + 1)) - 1
    parameters = [(layer.moving_mean, "statistic"), (layer.moving_variance, "statistic")]
    if layer.scale:
        parameters.append((layer.gamma, "scale"))
    if layer.center:
        parameters.append((layer.beta, "shift"))
    scaled, centred, epsilon = layer.scale, layer.center, layer.epsilon

    def coefficients(mean, variance, *rest):
        scale = (rest[0] if scaled else 1.0) / np.sqrt(variance + epsilon)
        return scale, (rest[-1] if centred else 0.0) - mean * scale

    return lower.affine(x, axis=axis, parameters=parameters, coefficients=coefficients)


_TOGETHER = tuple(
    getattr(layers, name)
    for name in (
        "LayerNormalization",
        "GroupNormalization",
        "RMSNormalization",
        "UnitNormalization",
        # Its statistics are settings of the layer, not weights that can be narrowed.
        "Normalization",
    )
    if hasattr(layers, name)
)


@register_rule(*_TOGETHER)
def together(layer, lower: Lowering) -> int:
    return lower.mix(lower.inputs[0])


@register_rule(layers.Rescaling)
def rescaling(layer, lower: Lowering) -> int:
    x = lower.inputs[0]
    scale, offset = np.asarray(layer.scale, np.float64), np.asarray(layer.offset, np.float64)
    if scale.ndim == offset.ndim == 0:
        return lower.map(x, lambda constant: constant * scale + offset)
    last = len(lower.shape(x)) - 1
    y = lower.affine(x, axis=last, parameters=(), coefficients=lambda: (scale, offset))

    def settings(new):
        left = new.positions(x, (last,))
        return {
            name: (vector[left] if vector.ndim else vector).tolist()
            for name, vector in (("scale", scale), ("offset", offset))
        }

    lower.settings(settings)
    return y
