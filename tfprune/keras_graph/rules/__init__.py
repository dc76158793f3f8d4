"""One file a family of layers. Importing this package registers them all."""

from tfprune.keras_graph.rules import (
    activations,
    convolutions,
    dense,
    merging,
    normalization,
    operations,
    pooling,
    recurrent,
    regularization,
    reshaping,
    wrappers,
)

__all__ = [
    "activations",
    "convolutions",
    "dense",
    "merging",
    "normalization",
    "operations",
    "pooling",
    "recurrent",
    "regularization",
    "reshaping",
    "wrappers",
]
