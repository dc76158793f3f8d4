"""Elementwise activations, as layers and as arguments of other layers; softmax reads all channels together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from tfprune.keras_graph.expand import calls_of
from tfprune.keras_graph.lowering import Lowering, Refused, register_rule
from tfprune.keras_graph.rules.axes import nothing_known, own_axes

ELEMENTWISE = frozenset(
    function
    for name in (
        "celu elu exponential gelu hard_shrink hard_sigmoid hard_silu hard_swish hard_tanh leaky_relu log_sigmoid mish "
        "relu relu6 selu sigmoid silu soft_shrink softplus softsign sparse_plus sparse_sigmoid squareplus swish tanh "
        "tanh_shrink threshold"
    ).split()
    if (function := getattr(keras.activations, name, None)) is not None
)
_IDENTITY = (None, keras.activations.linear)
_OVER_CHANNELS = frozenset(
    function
    for name in ("softmax", "log_softmax", "sparsemax")
    if (function := getattr(keras.activations, name, None)) is not None
)


def on_constants(function: Callable[[Any], Any]) -> Callable[[np.ndarray], np.ndarray]:
    """The numpy function that a Keras function is on constants."""

    def evaluate(constants: np.ndarray) -> np.ndarray:
        tensor = keras.ops.convert_to_tensor(constants, dtype="float64")
        # A scalar in the expression may have been an array of shape (1, 1, 1).
        return np.asarray(keras.ops.convert_to_numpy(function(tensor))).reshape(constants.shape)

    return evaluate


def activated(layer: Any, lower: Lowering, value: int) -> Any:
    """Append the layer's `activation` argument."""
    return _apply(layer.activation, lower, value)


def _apply(function: Any, lower: Lowering, value: int) -> Any:
    if function in _OVER_CHANNELS:
        return lower.mix(value, (len(lower.shape(value)) - 1,))
    known = elementwise(function)
    return known if isinstance(known, Refused) else lower.map(value, known)


def elementwise(function: Any) -> Callable[[np.ndarray], np.ndarray] | Refused | None:
    """What an activation does to constants; None where it changes nothing."""
    if function in _IDENTITY:
        return None
    if isinstance(function, _LAYERS):
        return on_constants(function.call)
    if function in ELEMENTWISE or (callable(function) and _is_made_elementwise(function)):
        return on_constants(function)
    name = getattr(function, "__name__", type(function).__name__)
    return Refused(f"its activation {name} is not known to be elementwise")


def _is_made_elementwise(function: Any) -> bool:
    """Whether a Python function is operations that work element by element, with numbers."""
    from tfprune.keras_graph.rules.operations import BY_ELEMENT

    calls = calls_of(function)
    return calls is not None and all(
        type(node.operation).__name__ in BY_ELEMENT
        and node.outputs[0].shape == (None, 5, 7)
        and all(
            isinstance(one, keras.KerasTensor | bool | int | float | str | None)
            for one in keras.tree.flatten((node.arguments.args, node.arguments.kwargs))
        )
        for node in calls
    )


_LAYERS = (layers.ReLU, layers.LeakyReLU, layers.ELU)


@register_rule(*_LAYERS)
def activation_layer(layer, lower: Lowering) -> int:
    return lower.map(lower.inputs[0], on_constants(layer.call))


@register_rule(layers.Activation)
def activation(layer, lower: Lowering):
    return _apply(layer.activation, lower, lower.inputs[0])


@register_rule(layers.PReLU)
def prelu(layer, lower: Lowering) -> int:
    return lower.slope(lower.inputs[0], layer.alpha)


@register_rule(layers.Softmax)
def softmax(layer, lower: Lowering):
    x = lower.inputs[0]
    axes = own_axes(layer.axis, len(lower.shape(x)))
    if isinstance(axes, Refused):
        return axes
    if len(lower.inputs) > 1:
        if any(len(lower.shape(value)) != len(lower.output_shape) for value in lower.inputs):
            return Refused("its mask has another rank than what it masks")
        x = lower.combine(lower.inputs, "mask", nothing_known, lower.output_shape)
    return lower.mix(x, axes)
