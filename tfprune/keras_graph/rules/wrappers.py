"""Layers around other layers: their rules are those of the layers inside."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from keras import layers
from numpy.typing import NDArray

from tfprune.keras_graph.lowering import Lowering, Refused, find_rule, register_rule
from tfprune.keras_graph.rules.convolutions import channel_axis
from tfprune.keras_graph.rules.recurrent import Run, arguments, recurrent, units_of

_MERGES: dict[str, tuple[str, Callable[..., NDArray]]] = {
    "sum": ("add", np.add),
    "mul": ("multiply", np.multiply),
    "ave": ("average", lambda a, b: (a + b) / 2),
}


@register_rule(layers.Bidirectional)
def bidirectional(layer, lower: Lowering):
    both = (layer.forward_layer, layer.backward_layer)
    for inner in both:
        if find_rule(inner) is not recurrent:
            return Refused(f"{inner.name}, a {type(inner).__name__}, in it is not followed")
    given = arguments(lower)
    if isinstance(given, Refused):
        return given
    value, states, masks = given
    half = len(states) // 2
    forward = Run(both[0], lower, value, states[:half], masks)
    backward = Run(both[1], lower, value, states[half:], masks)
    if [*map(units_of, forward.cells)] != [*map(units_of, backward.cells)]:
        return Refused("its two directions have different widths")
    ahead = forward.outputs()
    back = ahead if isinstance(ahead, Refused) else backward.outputs(forward)
    if isinstance(ahead, Refused) or isinstance(back, Refused):
        return back
    lower.settings(
        lambda new: {
            f"{name}/{setting}": value
            for name, run in (("layer", forward), ("backward_layer", backward))
            for setting, value in run.settings(new).items()
        }
    )
    merged: tuple[int, ...] = (ahead[0], back[0])
    if layer.merge_mode == "concat":
        merged = (lower.concatenate(merged, len(lower.output_shape) - 1, lower.output_shape),)
    elif layer.merge_mode is not None:
        merged = (lower.combine(merged, *_MERGES[layer.merge_mode], lower.output_shape),)
    return (*merged, *ahead[1:], *back[1:])


@register_rule(layers.TimeDistributed)
def time_distributed(layer, lower: Lowering):
    value = lower.inputs[0]
    steps = lower.shape(value)[0]
    inner = layer.layer
    if len(lower.inputs) > 1 and inner._call_has_mask_arg and not isinstance(inner, layers.BatchNormalization):
        return Refused(f"a mask reaches {inner.name} in it")
    before = len(lower.ops)
    one = lower.reduce(value, (0,), keepdims=False)
    outputs = lower.within(inner, [one], [shape[1:] for shape in lower.output_shapes])
    if isinstance(outputs, Refused):
        return outputs
    for op in lower.ops[before:]:
        if hasattr(op, "positions"):
            op.positions *= steps or 0
    _inside(lower, "layer")
    return tuple(lower.unsqueeze(output, steps) for output in outputs)


def _inside(lower: Lowering, name: str) -> None:
    """The settings are those of the layer inside."""
    configure = lower.configure
    if configure is not None:
        lower.settings(lambda new: {f"{name}/{setting}": value for setting, value in configure(new).items()})


#: where a kernel's last axis is: on the layer's output (0), on its input (1), or nowhere that may be narrowed (2)
_LAST_AXIS = {
    layers.Dense: 0,
    layers.Conv1D: 0,
    layers.Conv2D: 0,
    layers.Conv3D: 0,
    layers.Embedding: 0,
    layers.Conv1DTranspose: 1,
    layers.Conv2DTranspose: 1,
    layers.Conv3DTranspose: 1,
    layers.DepthwiseConv1D: 2,
    layers.DepthwiseConv2D: 2,
}


@register_rule(layers.SpectralNormalization)
def spectral_normalization(layer, lower: Lowering):
    """At inference the layer inside, as it is; its kernel is divided in training, with a vector that is kept."""
    inner = layer.layer
    place = next((where for cls, where in _LAST_AXIS.items() if type(inner).call is cls.call), None)
    if place is None:
        return Refused(f"{inner.name}, a {type(inner).__name__}, in it is not followed")

    def with_vector(value: int) -> int:
        shape = lower.shape(value)
        axis = channel_axis(inner, shape) if hasattr(inner, "data_format") else len(shape) - 1
        vector = [(layer.vector_u, "statistic")]
        return lower.affine(value, axis=axis, parameters=vector, coefficients=lambda _: (np.ones(1), np.zeros(1)))

    value = with_vector(lower.inputs[0]) if place == 1 else lower.inputs[0]
    outputs = lower.within(inner, [value], lower.output_shapes)
    if isinstance(outputs, Refused):
        return outputs
    _inside(lower, "layer")
    return with_vector(outputs[0]) if place == 0 else outputs
