"""Convolutions taken out of a Keras model; what stands in their place keeps every shape behind them.

As in `onnx_graph.remove_layers`: an average over the same windows, some of the channels, or channels of zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from tfprune.channels.graph import Call, ChannelGraph
from tfprune.channels.ops import Pad
from tfprune.errors import TraceError

_KINDS = (layers.Conv1D, layers.Conv2D, layers.Conv3D, layers.DepthwiseConv1D, layers.DepthwiseConv2D)
_POOLS = {1: layers.AveragePooling1D, 2: layers.AveragePooling2D, 3: layers.AveragePooling3D}


def _calls(graph: ChannelGraph) -> dict[str, list[Call]]:
    found: dict[str, list[Call]] = {}
    for call in graph.calls:
        operation = getattr(call.origin, "operation", None)
        if isinstance(operation, _KINDS) and not isinstance(operation, layers.Conv1DTranspose | layers.Conv2DTranspose):
            found.setdefault(call.layer, []).append(call)
    return found


def convolutions(graph: ChannelGraph) -> list[str]:
    """The convolutions by name, in the order of the model."""
    return list(_calls(graph))


def replaceable(graph: ChannelGraph) -> list[str]:
    """Those that something can stand in the place of: called once, not inside of another model, without dilation."""
    return [
        name
        for name, calls in _calls(graph).items()
        if len(calls) == 1 and "/" not in name and max(calls[0].origin.operation.dilation_rate) == 1
    ]


def without(graph: ChannelGraph, names: Sequence[str]) -> tuple[Any, list[str]]:
    """The model without some convolutions, and the operations that add channels of zeros.

    Raises:
        TraceError: the model has Python code of its own, or cannot be cloned.
    """
    model = graph.model
    if not isinstance(model, keras.Sequential) and not hasattr(model, "_operations"):
        raise TraceError(
            f"{model.name} has a call of its own; layers are removed from Sequential and Functional models"
        )
    chosen = set(names)

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        return _in_its_place(layer, args[0]) if layer.name in chosen else layer(*args, **kwargs)

    functional = model if not isinstance(model, keras.Sequential) else keras.Model(model.inputs, model.outputs)
    edited = keras.models.clone_model(functional, call_function=call)
    for layer in edited.layers:
        old = model if layer.name == model.name else next((o for o in functional.layers if o.name == layer.name), None)
        if old is not None and layer.name not in chosen:
            layer.set_weights(old.get_weights())
    from tfprune.keras_graph.trace import trace

    known = {c.layer for c in graph.calls}
    pads = [op.layer for op in trace(edited).ops if isinstance(op, Pad) and op.layer not in known]
    return edited, pads


def _in_its_place(layer: Any, x: Any) -> Any:
    first = layer.data_format == "channels_first"
    axis = 1 if first else len(x.shape) - 1
    shape = layer.compute_output_shape(x.shape)
    rank = len(x.shape) - 2
    spatial = [i for i in range(1, rank + 2) if i != axis]
    padding = "valid" if layer.padding == "valid" else "same"
    changes = any(x.shape[i] != shape[i] for i in spatial) or max(layer.strides) > 1
    if changes:
        pool = _POOLS[rank](layer.kernel_size, layer.strides, padding, data_format=layer.data_format)
        x = pool(x)
    channels, filters = x.shape[axis], shape[axis]
    if channels > filters:
        x = keras.ops.take(x, np.linspace(0, channels - 1, filters).round().astype(int).tolist(), axis=axis)
    elif channels < filters:
        widths = [(0, filters - channels) if i == axis else (0, 0) for i in range(len(x.shape))]
        x = keras.ops.pad(x, widths)
    return x


def tidied(model: Any) -> Any:
    """The model as it is."""
    return model


def check(model: keras.Model) -> None:
    """Keras has checked every shape when it built the model."""


def walk(graph: ChannelGraph) -> str:
    """The model layer by layer: each layer's class and the shape of what it makes, without the batch axis."""
    lines: list[str] = []
    for call in graph.calls:
        if call.kind != "Input":
            shape = ["?" if size is None else size for size in graph.shapes[call.outputs[0]]]
            lines.append(f"After Layer {len(lines):3}: layer type: {call.kind}, shape is: {shape}")
    return "\n".join(lines)
