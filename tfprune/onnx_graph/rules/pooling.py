"""Pooling and resizing: positions move, channels do not."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfprune.channels.ops import Narrowing
from tfprune.onnx_graph.lowering import Edit, Lowering, Refused, register_node, target_of


def _spatial(lower: Lowering, x: int) -> tuple[int, ...]:
    return tuple(range(2, len(lower.shape(x))))


def _unknown(constant: np.ndarray) -> np.ndarray:
    return np.where(constant == 0, 0.0, np.nan)


@register_node("MaxPool", "AveragePool", "LpPool")
def pool(lower: Lowering) -> Any:
    if any(map(lower.used, range(1, len(lower.node.outputs)))):
        return Refused("its indices are used")
    x = lower.value(0)
    counted = bool(lower.attribute("count_include_pad", 0))
    # Padded positions are left out of maxima, and of averages unless they are counted.
    pads = lower.node.op == "LpPool" or (counted and any(lower.attribute("pads", ())))
    ceil = counted and bool(lower.attribute("ceil_mode", 0))
    function = _unknown if lower.node.op == "LpPool" else None
    return lower.spatial(x, lower.output_shape, axes=_spatial(lower, x), pads=pads or ceil, function=function)


@register_node("GlobalAveragePool", "GlobalMaxPool")
def pooled_globally(lower: Lowering) -> int:
    x = lower.value(0)
    return lower.reduce(x, _spatial(lower, x), True)


@register_node("GlobalLpPool")
def length(lower: Lowering) -> int:
    x = lower.value(0)
    return lower.reduce(x, _spatial(lower, x), True, lambda constant, count: _unknown(constant))


@register_node("Resize", "Upsample")
def resize(lower: Lowering) -> Any:
    x, shape = lower.value(0), lower.output_shape
    old = lower.shape(x)
    moved = [axis for axis, (a, b) in enumerate(zip(old, shape, strict=True)) if a != b or a is None]
    axes = [axis for axis in moved if axis > 0] or list(_spatial(lower, x))
    crops = lower.attribute("coordinate_transformation_mode", "") == "tf_crop_and_resize"
    y = lower.spatial(x, shape, axes=axes, pads=crops, fill=float(lower.attribute("extrapolation_value", 0.0)))
    if lower.node.op == "Resize" and lower.has(3):
        own = list(lower.attribute("axes", range(len(shape))))
        sizes = lower.known.numbers(lower.node.inputs[3])

        def write(new: Narrowing, edit: Edit) -> None:
            if len(own) == len(shape):
                target_of(new, y, edit, 3, sizes)

        lower.rewrite(write)
    return y


@register_node("GridSample")
def sampled(lower: Lowering) -> Any:
    x = lower.value(0)
    return lower.spatial(x, lower.output_shape, axes=_spatial(lower, x), pads=True)
