"""Layers that do nothing at inference."""

from __future__ import annotations

from keras import layers

from tfprune.keras_graph.lowering import Lowering, register_rule

_IDENTITIES = tuple(
    getattr(layers, name)
    for name in (
        "Dropout",
        "SpatialDropout1D",
        "SpatialDropout2D",
        "SpatialDropout3D",
        "AlphaDropout",
        "GaussianDropout",
        "GaussianNoise",
        "ActivityRegularization",
        "Identity",
    )
    if hasattr(layers, name)
)


@register_rule(*_IDENTITIES)
def identity(layer, lower: Lowering) -> int:
    return lower.inputs[0]
