"""Resize and Upsample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import layers, ops

from tfprune.from_onnx.builder import Builder, LayerError, Value, builds, channels_last
from tfprune.onnx_graph.model import Node


@builds("Resize", "Upsample")
def resize(builder: Builder, node: Node) -> Value:
    value = builder.value(node)
    before, after = builder.shape(node.inputs[0]), builder.shape(node.outputs[0])
    if value.rank != 4 or before[:2] != after[:2]:
        raise LayerError("other axes than two spatial ones are resized")
    height, width, new_height, new_width = (size or 0 for size in (*before[2:], *after[2:]))
    if not all((height, width, new_height, new_width)):
        raise LayerError("axes of unknown size; export with fixed sizes")
    tensor = builder.channels_last(value)
    mode = node.attributes.get("mode", b"nearest").decode()
    how = node.attributes.get("coordinate_transformation_mode", b"half_pixel").decode()
    if node.op == "Upsample":
        how = "asymmetric"
    if mode == "nearest":
        made = _nearest(builder, node, tensor, (height, width), (new_height, new_width), how)
    elif mode == "linear" and (how in ("half_pixel", "pytorch_half_pixel") and min(new_height, new_width) > 1):
        if node.attributes.get("antialias"):
            raise LayerError("antialiasing")
        factors = new_height / height, new_width / width
        if all(factor == int(factor) for factor in factors):
            made = builder.layer(
                node,
                layers.UpSampling2D,
                tensor,
                size=tuple(map(int, factors)),
                interpolation="bilinear",
                data_format="channels_last",
            )
        else:
            made = ops.image.resize(tensor, (new_height, new_width), data_format="channels_last")
    elif mode == "linear":
        made = _linear(tensor, (height, width), (new_height, new_width), how)
    else:
        raise LayerError(f"interpolation {mode!r} with {how!r}")
    return Value(made, channels_last(4))


def _nearest(builder: Builder, node: Node, tensor: Any, before: tuple, after: tuple, how: str) -> Any:
    rounding = node.attributes.get("nearest_mode", b"round_prefer_floor").decode()
    if node.op == "Upsample":
        rounding = "floor"
    rounded: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "round_prefer_floor": lambda x: np.ceil(x - 0.5),
        "round_prefer_ceil": lambda x: np.floor(x + 0.5),
        "floor": np.floor,
        "ceil": np.ceil,
    }
    chosen = []
    for size, new in zip(before, after, strict=True):
        chosen.append(np.clip(rounded[rounding](_places(size, new, how)), 0, size - 1).astype(int))
    repeats = [new // size for size, new in zip(before, after, strict=True)]
    if all(np.array_equal(c, np.repeat(np.arange(s), r)) for c, s, r in zip(chosen, before, repeats, strict=True)):
        return builder.layer(node, layers.UpSampling2D, tensor, size=tuple(repeats), data_format="channels_last")
    return ops.take(ops.take(tensor, chosen[0], axis=1), chosen[1], axis=2)


def _places(size: int, new: int, how: str) -> np.ndarray:
    """Where on the input each position of the output lies."""
    positions = np.arange(new)
    if how in ("half_pixel", "pytorch_half_pixel"):
        return (positions + 0.5) * size / new - 0.5 if how == "half_pixel" or new > 1 else positions * 0.0
    if how == "asymmetric":
        return positions * size / new
    if how == "align_corners":
        return positions * (size - 1) / max(1, new - 1)
    raise LayerError(f"coordinates by {how!r}")


def _linear(tensor: Any, before: tuple, after: tuple, how: str) -> Any:
    """Each axis times a matrix of shares."""
    for equation, size, new in zip(("bhwc,nh->bnwc", "bhwc,nw->bhnc"), before, after, strict=True):
        place = np.clip(_places(size, new, how), 0, size - 1)
        low = np.minimum(np.floor(place).astype(int), size - 1)
        shares = np.zeros((new, size))
        np.add.at(shares, (np.arange(new), low), 1 - (place - low))
        np.add.at(shares, (np.arange(new), np.minimum(low + 1, size - 1)), place - low)
        tensor = ops.einsum(equation, tensor, shares.astype(str(tensor.dtype)))
    return tensor
