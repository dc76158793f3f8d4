"""Pools over windows, and over everything."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers, ops

from tfprune.from_onnx.builder import Builder, LayerError, Value, builds, channels_last
from tfprune.from_onnx.layers.windows import Window, padded, window_of
from tfprune.onnx_graph.model import Node

_MAXIMA = (layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D)
_AVERAGES = (layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D)
#: operator -> its layer for 1, 2 and 3 spatial axes
GLOBAL = {
    "GlobalAveragePool": (layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D, layers.GlobalAveragePooling3D),
    "GlobalMaxPool": (layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D, layers.GlobalMaxPooling3D),
}


@builds("MaxPool")
def maximum(builder: Builder, node: Node) -> Value:
    if len([name for name in node.outputs if name]) > 1:
        raise LayerError("the places of the maxima are asked for")
    window = _window(builder, node)
    value = builder.value(node)
    tensor = builder.channels_last(value)
    same = window.is_same
    if not same:
        tensor = padded(builder, node, tensor, window, float(np.finfo("float16").min if "16" in str(tensor.dtype) else
                                                             np.finfo("float32").min))  # fmt: skip
    return _pooled(builder, node, _MAXIMA, tensor, window, same, value)


@builds("AveragePool")
def average(builder: Builder, node: Node) -> Value:
    window = _window(builder, node)
    value = builder.value(node)
    tensor = builder.channels_last(value)
    counted = bool(node.attributes.get("count_include_pad", 0))
    # On PyTorch, Keras' "same" counts the border.
    plain = keras.backend.backend() != "torch" and not counted and not node.attributes.get("ceil_mode")
    if window.is_padded and window.is_same and plain:
        return _pooled(builder, node, _AVERAGES, tensor, window, True, value)
    result = _pooled(builder, node, _AVERAGES, padded(builder, node, tensor, window), window, False, value)
    if window.is_padded:
        own = window_of(builder, node, window.kernel).pads if counted else ((0, 0),) * window.dimensions
        share = _share(window, own)
        if not np.all(share == 1):
            result.tensor = ops.multiply(result.tensor, (1 / share)[..., None].astype(str(result.tensor.dtype)))
    return result


def _window(builder: Builder, node: Node) -> Window:
    window = window_of(builder, node, node.attributes["kernel_shape"], lengthen=True)
    if max(window.dilations) > 1:
        raise LayerError("Keras has no pools with dilations")
    return window


def _pooled(builder: Builder, node: Node, kinds, tensor, window: Window, same: bool, value: Value) -> Value:
    made = builder.layer(
        node,
        kinds[window.dimensions - 1],
        tensor,
        pool_size=window.kernel,
        strides=window.strides,
        padding="same" if same else "valid",
        data_format="channels_last",
    )
    return Value(made, channels_last(value.rank))


def _share(window: Window, counted: tuple[tuple[int, int], ...]) -> np.ndarray:
    """What part of each window is counted: the input itself, and as much around it as is told."""
    result = np.ones(())
    for size, kernel, stride, pads, own in zip(
        window.sizes, window.kernel, window.strides, window.pads, counted, strict=True
    ):
        if size is None:
            raise LayerError("an average that leaves out pads, over an axis of unknown size; export with fixed sizes")
        inside = np.zeros(size + sum(pads))
        inside[pads[0] - own[0] : pads[0] + size + own[1]] = 1
        starts = np.arange(0, inside.size - kernel + 1, stride)
        result = result[..., None] * np.array([inside[start : start + kernel].mean() for start in starts])
    return result


@builds("GlobalAveragePool", "GlobalMaxPool")
def everywhere(builder: Builder, node: Node) -> Value:
    value = builder.value(node)
    kinds = GLOBAL[node.op]
    if not 3 <= value.rank <= 5:
        raise LayerError(f"{value.rank - 2} spatial axes; Keras has layers for 1 to 3")
    tensor = builder.channels_last(value)
    made = builder.layer(node, kinds[value.rank - 3], tensor, keepdims=True, data_format="channels_last")
    return Value(made, channels_last(value.rank))
