"""What only moves numbers: Reshape, Flatten, Squeeze, Transpose, Expand, DepthToSpace."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfprune.channels.lowering import Blocks
from tfprune.channels.ops import Narrowing, reshape_blocks
from tfprune.onnx_graph.lowering import Edit, Lowering, Refused, register_node, target_of


@register_node("Reshape")
def reshape(lower: Lowering) -> int:
    y = _reshaped(lower)
    old = [int(size) for size in lower.attribute("shape")] if lower.attribute("shape") else None
    if old is None:
        old = lower.known.numbers(lower.node.inputs[1])  # type: ignore[assignment]

    def write(new: Narrowing, edit: Edit) -> None:
        target_of(new, y, edit, 1, old)

    lower.rewrite(write)
    return y


@register_node("Flatten", "Squeeze", "Unsqueeze")
def flatten(lower: Lowering) -> int:
    return _reshaped(lower)


def _reshaped(lower: Lowering) -> int:
    """What is one block and what another is seen best where every size is a number, as it was in the two runs."""
    found = [
        reshape_blocks(sizes[lower.node.inputs[0]], sizes[lower.node.outputs[0]])
        for sizes in lower.known.sizes
        if lower.node.inputs[0] in sizes and lower.node.outputs[0] in sizes
    ]
    same = len(found) == 2 and found[0] == found[1]
    return lower.reshape(lower.value(0), lower.output_shape, found[0] if same else None, tiles=True)


@register_node("Transpose")
def transpose(lower: Lowering) -> int:
    x = lower.value(0)
    return lower.permute(x, lower.attribute("perm") or tuple(range(len(lower.shape(x))))[::-1])


@register_node("Expand")
def expand(lower: Lowering) -> Any:
    shape = lower.output_shape
    if lower.fixed(0):
        variable = lower.own(0, "token")
        lead = len(shape) - len(variable.shape)
        wide = [lead + axis for axis, size in enumerate(variable.shape) if size > 1]
        y = lower.parameter(variable, wide[-1:], shape)
    else:
        y = lower.value(0)
        own = lower.shape(y)
        lead = len(shape) - len(own)
        if lead:
            blocks: Blocks = tuple(((), (axis,)) for axis in range(lead))
            blocks += tuple(((axis,), (axis + lead,)) for axis in range(len(own)))
            y = lower.reshape(y, (*(1,) * lead, *own), blocks)
        stretched = [axis for axis in range(len(shape)) if axis < lead or own[axis - lead] != shape[axis]]
        y = lower.spatial(y, shape, axes=stretched)
    old = lower.known.numbers(lower.node.inputs[1])

    def write(new: Narrowing, edit: Edit) -> None:
        if old is not None and len(old) == len(shape):
            # Sizes of 1 leave an axis as it is.
            target_of(new, y, edit, 1, [None if size == -1 else size for size in old])

    lower.rewrite(write)
    return y


def _blocks_of_image(lower: Lowering, x: int) -> tuple[int, Any] | Refused:
    """The block size and the channels; an image of four axes is needed."""
    shape = lower.shape(x)
    if len(shape) != 4 or not shape[1]:
        return Refused("it needs an image of four axes with a known number of channels")
    return int(lower.attribute("blocksize")), shape


@register_node("DepthToSpace")
def depth_to_space(lower: Lowering) -> Any:
    x = lower.value(0)
    found = _blocks_of_image(lower, x)
    if isinstance(found, Refused):
        return found
    b, (n, c, h, w) = found
    c //= b * b
    if lower.attribute("mode", "DCR") == "CRD":
        order, inner = (0, 1, 4, 2, 5, 3), (n, c, b, b, h, w)
        block = (1, 2, 3)
        ties = (2, 3)
    else:
        order, inner = (0, 3, 4, 1, 5, 2), (n, b, b, c, h, w)
        block = (1, 2, 3)
        ties = (1, 2)
    y = lower.reshape(x, inner, (((0,), (0,)), ((1,), block), ((2,), (4,)), ((3,), (5,))))
    # An output channel is made of all that lies behind each other in a block.
    y = lower.permute(lower.as_one(y, ties), order)
    return lower.reshape(y, lower.output_shape, (((0,), (0,)), ((1,), (1,)), ((2, 3), (2,)), ((4, 5), (3,))))


@register_node("SpaceToDepth")
def space_to_depth(lower: Lowering) -> Any:
    x = lower.value(0)
    found = _blocks_of_image(lower, x)
    if isinstance(found, Refused):
        return found
    b, (n, c, h, w) = found
    h, w = (None if size is None else size // b for size in (h, w))
    y = lower.reshape(x, (n, c, h, b, w, b), (((0,), (0,)), ((1,), (1,)), ((2,), (2, 3)), ((3,), (4, 5))))
    y = lower.permute(y, (0, 3, 5, 1, 2, 4))
    return lower.reshape(y, lower.output_shape, (((0,), (0,)), ((1, 2, 3), (1,)), ((4,), (2,)), ((5,), (3,))))


@register_node("ConstantOfShape", "Range", "RandomNormal", "RandomUniform")
def made(lower: Lowering) -> Any:
    # Its size is computed; what it holds is nobody's channel.
    out = lower.unknown(lower.output_shape)
    value = lower.attribute("value")
    if lower.node.op == "ConstantOfShape":
        number = 0.0 if value is None else float(np.ravel(_numbers(value))[0])
        lower.ops[-1].array = np.full((1,) * len(lower.output_shape), number)  # type: ignore[attr-defined]
    return out


def _numbers(tensor: Any) -> np.ndarray:
    from tfprune.onnx_graph.model import array

    return array(tensor)
