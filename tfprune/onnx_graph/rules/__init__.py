"""One file a family of operators. Importing this package registers them all."""

from tfprune.onnx_graph.rules import (
    activations,
    convolutions,
    elementwise,
    matrices,
    normalization,
    pooling,
    recurrent,
    reductions,
    reshaping,
    slicing,
)

__all__ = [
    "activations",
    "convolutions",
    "elementwise",
    "matrices",
    "normalization",
    "pooling",
    "recurrent",
    "reductions",
    "reshaping",
    "slicing",
]
