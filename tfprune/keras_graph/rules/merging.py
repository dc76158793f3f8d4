"""Layers with several inputs."""

from __future__ import annotations

from functools import reduce

import numpy as np
from keras import layers

from tfprune.keras_graph.lowering import Lowering, Refused, register_operation, register_rule


def folded(function):
    """A function of two arrays as one of any number."""
    return lambda *arrays: reduce(function, arrays)


_KINDS = {
    layers.Add: ("add", folded(np.add)),
    layers.Subtract: ("subtract", np.subtract),
    layers.Multiply: ("multiply", folded(np.multiply)),
    layers.Average: ("average", lambda *arrays: sum(arrays) / len(arrays)),
    layers.Maximum: ("maximum", folded(np.maximum)),
    layers.Minimum: ("minimum", folded(np.minimum)),
}


@register_rule(*_KINDS)
def merge(layer, lower: Lowering) -> int:
    kind, function = next(_KINDS[cls] for cls in type(layer).__mro__ if cls in _KINDS)
    return lower.combine(lower.inputs, kind, function, lower.output_shape)


@register_operation("Concatenate")
@register_rule(layers.Concatenate)
def concatenate(layer, lower: Lowering):
    rank = len(lower.output_shape)
    axis = layer.axis % (rank + 1)
    if axis == 0:
        return Refused("it concatenates along the batch axis")
    return lower.concatenate(lower.inputs, axis - 1, lower.output_shape)
