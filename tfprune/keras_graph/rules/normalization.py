"""BatchNormalization scales each channel by itself; the others read some channels together."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import layers
from keras.src.applications.convnext import LayerScale  # has no public name
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


def _axes(layer: Any, lower: Lowering) -> list[int]:
    """The axes that are normalized over, the batch axis not counted."""
    rank = len(lower.shape(lower.inputs[0])) + 1
    return [int(axis) % rank - 1 for axis in np.atleast_1d(layer.axis)]


def _parameters(layer: Any) -> list[tuple[Any, str]]:
    found = [(getattr(layer, "gamma", None), "scale"), (getattr(layer, "beta", None), "shift")]
    return [(variable, role) for variable, role in found if variable is not None]


@register_rule(layers.LayerNormalization)
def layer_normalization(layer, lower: Lowering) -> int:
    axes = _axes(layer, lower)
    parameters = _parameters(layer)
    return lower.normalize(lower.inputs[0], axes, centred=True, parameters=parameters, parameter_axes=axes)


@register_rule(layers.GroupNormalization)
def group_normalization(layer, lower: Lowering) -> int:
    x = lower.inputs[0]
    axis, rank = _axes(layer, lower)[0], len(lower.shape(x))
    width = lower.shape(x)[axis] or 1
    groups = width if layer.groups == -1 else layer.groups
    lower.settings(lambda new: {"groups": (new.shape(x)[axis] or width) * groups // width})
    return lower.normalize(
        x,
        range(rank),
        centred=True,
        parameters=_parameters(layer),
        parameter_axes=[axis],
        axis=axis,
        groups=groups,
    )


@register_rule(layers.RMSNormalization)
def rms_normalization(layer, lower: Lowering) -> int:
    x = lower.inputs[0]
    axes = _axes(layer, lower)

    def left(new: Any) -> float:
        """The fraction of the channels that is left, by which the mean of the squares changes."""
        sizes = [(new.shape(x)[axis], lower.shape(x)[axis]) for axis in axes]
        return math.prod(now / old for now, old in sizes if now and old)

    lower.compensate(layer.scale, lambda new: left(new) ** -0.5)
    lower.settings(lambda new: {"epsilon": layer.epsilon / left(new)})
    return lower.normalize(x, axes, centred=False, parameters=[(layer.scale, "scale")], parameter_axes=axes)


@register_rule(layers.UnitNormalization)
def unit_normalization(layer, lower: Lowering) -> int:
    return lower.normalize(lower.inputs[0], _axes(layer, lower), centred=False)


def _scale_alone(gamma: NDArray) -> tuple[NDArray, NDArray]:
    return gamma, np.zeros(1)


@register_rule(LayerScale)
def layer_scale(layer, lower: Lowering) -> int:
    x = lower.inputs[0]
    last = len(lower.shape(x)) - 1
    lower.settings(lambda new: {"projection_dim": new.shape(x)[last]})
    return lower.affine(x, axis=last, parameters=[(layer.gamma, "scale")], coefficients=_scale_alone)


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
