"""Layers that prepare inputs: fixed statistics, categories, masks, pipelines."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers

from tfprune.channels.ops import Narrowing
from tfprune.keras_graph.lowering import Lowering, Refused, find_rule, register_rule
from tfprune.keras_graph.rules.axes import nothing_known


@register_rule(layers.Normalization)
def normalization(layer, lower: Lowering) -> int:
    """Means and variances that were given or adapted: numbers written into the model."""
    x = lower.inputs[0]

    def numbers(tensor: Any) -> np.ndarray:
        return np.asarray(keras.ops.convert_to_numpy(tensor), np.float64)[0]

    statistics = [lower.constant(numbers(tensor)) for tensor in (layer.mean, layer.variance)]

    def normalized(values: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
        scale = np.maximum(np.sqrt(variance), keras.config.epsilon())
        return mean + values * scale if layer.invert else (values - mean) / scale

    y = lower.combine((x, *statistics), "normalize", normalized, lower.output_shape)
    mean = statistics[0]

    def settings(new: Narrowing) -> dict[str, Any]:
        if layer.input_mean is None and not new.narrowed(mean):
            return {}
        # Arrays, because lists would pass through float32.
        return {name: _narrowed(numbers(getattr(layer, name)), layer, new, mean) for name in ("mean", "variance")}

    lower.settings(settings)
    return y


def _narrowed(array: np.ndarray, layer: Any, new: Narrowing, value: int) -> np.ndarray:
    """What is left of an array, shaped as the layer is given it."""
    grid = np.unravel_index(new.kept[value], new.labels[value].shape)
    for axis, index in enumerate(grid):
        if new.labels[value].shape[axis] > 1:
            array = np.take(array, np.unique(index), axis=axis)
    axes = [axis % (array.ndim + 1) - 1 for axis in layer.axis]
    return array.reshape([size for axis, size in enumerate(array.shape) if axis in axes])


@register_rule(*(getattr(layers, name) for name in ("Discretization", "Hashing", "IntegerLookup", "StringLookup")))
def looked_up(layer, lower: Lowering):
    shape = lower.shape(lower.inputs[0])
    if getattr(layer, "output_mode", "int") != "int" or lower.output_shape != shape:
        return Refused("its output has an axis of categories, which are no channels")
    return lower.map(lower.inputs[0], nothing_known)


@register_rule(layers.Masking)
def masking(layer, lower: Lowering):
    # A step counts if any of its channels is not the mask's value: none may go.
    return lower.mix(lower.inputs[0])


@register_rule(*(getattr(layers, name) for name in ("Pipeline",) if hasattr(layers, name)))
def pipeline(layer, lower: Lowering):
    values = lower.inputs
    for inner in layer.layers:
        if len(values) > 1:
            return Refused("it is given more than one tensor")
        if find_rule(inner) is None:
            return Refused(f"{inner.name}, a {type(inner).__name__}, in it is not followed")
        shape = tuple(inner.compute_output_shape((None, *lower.shape(values[0])))[1:])
        result = lower.within(inner, values, (shape,))
        if isinstance(result, Refused):
            return result
        if lower.configure is not None:
            return Refused(f"{inner.name} in it would have to change")
        values = result
    return values
