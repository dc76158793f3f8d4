"""The channel ops that every layer is lowered to, each defined once."""

from tfprune.channels.ops.base import Facts, Narrowing, Op, Violation
from tfprune.channels.ops.contract import Contract, Depthwise
from tfprune.channels.ops.elementwise import Affine, Combine, Map, Mix, Opaque, Reduce, Slope, Source, Spatial
from tfprune.channels.ops.movement import Concatenate, Permute, Reshape, Stack, reshape_blocks

__all__ = [
    "Affine",
    "Combine",
    "Concatenate",
    "Contract",
    "Depthwise",
    "Facts",
    "Map",
    "Mix",
    "Narrowing",
    "Op",
    "Opaque",
    "Permute",
    "Reduce",
    "Reshape",
    "Slope",
    "Source",
    "Spatial",
    "Stack",
    "Violation",
    "reshape_blocks",
]
