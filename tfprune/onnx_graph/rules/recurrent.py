"""LSTM, GRU and RNN in one direction: a unit goes with its gates and its states."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfprune.channels.ops import Narrowing
from tfprune.onnx_graph.lowering import Edit, Lowering, Refused, Variable, register_node

#: operator -> how many gates it has, which of them is the candidate, and where its activations are in the list
_KINDS = {"LSTM": (4, 3, (1, 2)), "GRU": (3, 2, (1,)), "RNN": (1, 0, (0,))}
_KERNEL, _RECURRENT, _BIAS, _LENGTHS, _STATES, _PEEPHOLES = 1, 2, 3, 4, (5, 6), 7
_ACTIVATIONS = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "softsign": lambda x: x / (1 + np.abs(x)),
}


@register_node(*_KINDS)
def recurrent(lower: Lowering) -> Any:
    refused = _refused(lower)
    if refused is not None:
        return refused
    gates, candidate, places = _KINDS[lower.node.op]
    x = lower.value(0)
    # A state of zeros is what it starts from anyway: where units go, it is left out.
    given = [index for index in _STATES if lower.has(index)]
    zeros = [index for index in given if _is_zero(lower, index)]
    states = [_state(lower, index) for index in given if index not in zeros]
    # Until it is: what computes it stays, as do the lengths.
    needed = [lower.value(index) for index in (_LENGTHS, *zeros) if lower.has(index) and not lower.fixed(index)]
    kernel = _kernel(lower, _KERNEL, "kernel")
    outputs = lower.recurrent(
        (x, *states, *needed),
        lower.output_shapes,
        kernel=kernel,
        recurrent=_kernel(lower, _RECURRENT, "recurrent_kernel"),
        bias=_bias(lower) if lower.has(_BIAS) else None,
        gates=gates,
        candidate=candidate,
        activation=_ACTIVATIONS[_names(lower)[places[0]]],
        carries=lower.node.op == "LSTM",
        rank=len(lower.shape(x)),
        axis=len(lower.shape(x)) - 1,
        states=len(states),
        positions=lower.read_positions(0, without=(len(lower.shape(x)) - 1,)),
        shared=lower.is_shared(kernel),
    )

    def write(new: Narrowing, edit: Edit) -> None:
        edit.set("hidden_size", new.shape(outputs[0])[-1])
        for index in zeros:
            edit.node.input[index] = ""

    lower.rewrite(write)
    return outputs


def _refused(lower: Lowering) -> Refused | None:
    for index, what in ((_KERNEL, "kernel"), (_RECURRENT, "recurrent kernel"), (_BIAS, "bias")):
        if lower.has(index) and not lower.fixed(index):
            return Refused(f"its {what} is computed")
    if lower.constant_shape(_KERNEL)[0] != 1:
        return Refused("it runs in both directions")
    if lower.has(_PEEPHOLES):
        return Refused("its gates look at its state (peepholes)")
    names = _names(lower)
    unknown = [name for name in names if name not in _ACTIVATIONS]
    if unknown:
        return Refused(f"its activation {unknown[0]} is not followed")
    if len({names[place] for place in _KINDS[lower.node.op][2]}) > 1:
        return Refused("its state and its output have different activations")
    units = lower.constant_shape(_RECURRENT)[-1]
    if any(shape[-1] not in (None, units) for shape in lower.output_shapes):
        return Refused(f"its kernels have {units} units, and its output another number")
    return None


def _names(lower: Lowering) -> list[str]:
    """The activations, in lower case."""
    default = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}[lower.node.op]
    names = lower.attribute("activations") or default
    return [(name.decode() if isinstance(name, bytes) else name).lower() for name in names]


def _kernel(lower: Lowering, index: int, label: str) -> Variable:
    """(1, gates * units, inputs) as (inputs, gates * units)."""
    _, columns, rows = lower.constant_shape(index)
    return lower.moved(index, label, (rows, columns), lambda array: array[0].T, lambda array: array.T[None])


def _bias(lower: Lowering) -> Variable:
    """(1, 2 * gates * units) as (2, gates * units): of the input, and of the recurrent part."""

    def there(array: NDArray) -> NDArray:
        return array.reshape(2, -1)

    size = lower.constant_shape(_BIAS)[-1]
    return lower.moved(_BIAS, "bias", (2, size // 2), there, lambda array: array.reshape(1, -1))


def _is_zero(lower: Lowering, index: int) -> bool:
    """Whether an initial state is 0, for any batch."""
    return lower.node.inputs[index] in lower.known.zeros or (lower.fixed(index) and not lower.array(index).any())


def _state(lower: Lowering, index: int) -> int:
    if not lower.fixed(index):
        return lower.value(index)
    shape = lower.constant_shape(index)
    return lower.parameter(lower.own(index, f"state_{index}"), (len(shape) - 1,), shape)
