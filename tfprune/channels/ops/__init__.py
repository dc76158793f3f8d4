"""The channel ops that every layer is lowered to, each defined once."""

from tfprune.channels.ops.arrays import Parameter, WithArrays
from tfprune.channels.ops.base import Facts, Narrowing, Op, Violation
from tfprune.channels.ops.contract import Contract, Depthwise
from tfprune.channels.ops.elementwise import (
    Affine,
    AsOne,
    Combine,
    Map,
    Mix,
    Opaque,
    Reduce,
    Slope,
    Source,
    Spatial,
)
from tfprune.channels.ops.movement import (
    Concatenate,
    Gather,
    Pad,
    Permute,
    Reshape,
    Stack,
    is_natural,
    reshape_blocks,
    taken_from,
)
from tfprune.channels.ops.normalize import Normalize
from tfprune.channels.ops.product import Product
from tfprune.channels.ops.recurrent import Recurrent
from tfprune.channels.ops.together import Together

__all__ = [
    "Affine",
    "AsOne",
    "Combine",
    "Concatenate",
    "Contract",
    "Depthwise",
    "Facts",
    "Gather",
    "Map",
    "Mix",
    "Narrowing",
    "Normalize",
    "Op",
    "Opaque",
    "Pad",
    "Parameter",
    "Permute",
    "Product",
    "Recurrent",
    "Reduce",
    "Reshape",
    "Slope",
    "Source",
    "Spatial",
    "Stack",
    "Together",
    "Violation",
    "WithArrays",
    "is_natural",
    "reshape_blocks",
    "taken_from",
]
