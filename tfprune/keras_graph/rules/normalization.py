"""BatchNormalization scales each channel by itself; the others read channels together."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

from tfprune.keras_graph.lowering import Lowering, register_rule
from tfprune.keras_graph.rules.activations import on_constants


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
    if np.ndim(layer.scale) == np.ndim(layer.offset) == 0:
        return lower.map(x, on_constants(layer.call))
    last = len(lower.shape(x)) - 1

    def coefficients():
        # As the layer casts them: lists pass through float32.
        parts = (keras.ops.cast(part, layer.compute_dtype) for part in (layer.scale, layer.offset))
        return tuple(np.asarray(keras.ops.convert_to_numpy(part), np.float64) for part in parts)

    y = lower.affine(x, axis=last, parameters=(), coefficients=coefficients)

    def settings(new):
        left = new.positions(x, (last,))
        return {name: _narrowed(getattr(layer, name), left) for name in ("scale", "offset")}

    lower.settings(settings)
    return y


def _narrowed(vector: Any, left: NDArray) -> Any:
    """What is left of a setting, in the form it has in a configuration: a list stays a list."""
    array = np.asarray(vector)
    if not array.ndim:
        return vector
    return keras.saving.serialize_keras_object(array[left] if isinstance(vector, np.ndarray) else array[left].tolist())
