"""Conv and ConvTranspose."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import layers, ops

from tfprune.from_onnx.builder import Builder, LayerError, Value, builds, channels_last
from tfprune.from_onnx.layers.windows import CROPPINGS, padded, window_of
from tfprune.onnx_graph.model import Node

_CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
_DEPTHWISE: tuple[Any, ...] = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
_TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)


@builds("Conv")
def convolution(builder: Builder, node: Node) -> Value:
    value = builder.value(node)
    kernel, bias = builder.array(node, 1), builder.array(node, 2)
    window = window_of(builder, node, kernel.shape[2:])
    groups, filters, spatial = node.attributes.get("group", 1), kernel.shape[0], range(2, kernel.ndim)
    tensor = builder.channels_last(value)
    same = window.is_padded and window.is_same
    if not same:
        tensor = padded(builder, node, tensor, window)
    # Keras does not stride over dilated kernels: all positions are computed and some taken.
    skipped = window.strides if max(window.strides) > 1 and max(window.dilations) > 1 else None
    if skipped and same:
        raise LayerError("strides and dilations together with pads that depend on the strides")
    strides = (1,) * window.dimensions if skipped else window.strides
    settings: dict[str, Any] = {
        "strides": strides,
        "padding": "same" if same else "valid",
        "dilation_rate": window.dilations,
        "use_bias": bias is not None,
        "data_format": "channels_last",
    }
    weights = [] if bias is None else [bias]
    shared = tuple(node.inputs[1:])
    count = window.dimensions
    own: dict[str, Any]
    if groups > 1 and kernel.shape[1] == 1 and count < 3 and len(set(strides)) == 1:
        kind, each = _DEPTHWISE[count - 1], kernel.reshape(groups, filters // groups, *kernel.shape[2:])
        array, own = each.transpose(*spatial, 0, 1), {"depth_multiplier": filters // groups}
    else:
        kind, array = _CONVOLUTIONS[count - 1], kernel.transpose(*spatial, 1, 0)
        own = {"filters": filters, "groups": groups}
    made = builder.layer(node, kind, tensor, [array, *weights], shared, kernel_size=window.kernel, **own, **settings)
    if skipped:
        made = made[(slice(None), *(slice(None, None, stride) for stride in skipped), slice(None))]
    return Value(made, channels_last(value.rank))


@builds("ConvTranspose")
def transposed(builder: Builder, node: Node) -> Value:
    value = builder.value(node)
    kernel, bias = builder.array(node, 1), builder.array(node, 2)
    groups, count = node.attributes.get("group", 1), kernel.ndim - 2
    strides = tuple(node.attributes.get("strides", (1,) * count))
    dilations = tuple(node.attributes.get("dilations", (1,) * count))
    if max(strides) > 1 and max(dilations) > 1:
        raise LayerError("Keras has no transposed convolution with both strides and dilations")
    reach = [(size - 1) * dilation + 1 for size, dilation in zip(kernel.shape[2:], dilations, strict=True)]
    pads, more = _cut(builder, node, reach, strides)
    # Keras makes max(reach, stride) positions of the last one, ONNX reach + output_padding, less the pads.
    crops = [(b, max(r, s) - r - m + a) for (b, a), r, s, m in zip(pads, reach, strides, more, strict=True)]
    if any(min(pair) < 0 for pair in crops):
        raise LayerError(f"an output padding of {more} beyond what the kernel reaches")
    settings = {"strides": strides, "dilation_rate": dilations, "padding": "valid", "data_format": "channels_last"}
    tensor = builder.channels_last(value)
    parts = ops.split(tensor, groups, axis=-1) if groups > 1 else [tensor]
    made = []
    for number, (part, own) in enumerate(zip(parts, np.split(kernel, groups), strict=True)):
        biases = [] if bias is None else [np.split(bias, groups)[number]]
        made.append(
            builder.layer(
                node,
                _TRANSPOSED[count - 1],
                part,
                [own.transpose(*range(2, kernel.ndim), 1, 0), *biases],
                (*node.inputs[1:], number),
                filters=kernel.shape[1],
                kernel_size=kernel.shape[2:],
                use_bias=bias is not None,
                **settings,
            )
        )
    result = made[0] if groups == 1 else builder.layer(node, layers.Concatenate, made)
    if any(map(any, crops)):
        cut = crops[0] if count == 1 else tuple(crops)
        result = CROPPINGS[count - 1](cut, name=builder.free_name(f"{node.name}_crop"), dtype=str(result.dtype))(result)
    return Value(result, channels_last(value.rank))


def _cut(builder: Builder, node: Node, reach: list[int], strides: tuple[int, ...]) -> tuple[list, list[int]]:
    """What is cut off before and after each axis, and output_padding."""
    count = len(reach)
    more = list(node.attributes.get("output_padding", [0] * count))
    auto = node.attributes.get("auto_pad", b"NOTSET").decode()
    if "output_shape" not in node.attributes and not auto.startswith("SAME"):
        flat = [0] * 2 * count if auto == "VALID" else list(node.attributes.get("pads", [0] * 2 * count))
        return list(zip(flat[:count], flat[count:], strict=True)), more
    sizes, wanted = builder.shape(node.inputs[0])[2:], builder.shape(node.outputs[0])[2:]
    pads = []
    for size, out, length, stride, extra in zip(sizes, wanted, reach, strides, more, strict=True):
        if auto.startswith("SAME") and "output_shape" not in node.attributes:
            total = length + extra - stride
        elif size is None or out is None:
            raise LayerError("an output_shape with axes of unknown size")
        else:
            total = (size - 1) * stride + length + extra - out
        half = total // 2
        pads.append((half, total - half) if auto == "SAME_UPPER" else (total - half, half))
    return pads, more
