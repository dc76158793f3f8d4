"""Recurrent layers, and recurrent cells in `RNN`; the same with convolutions inside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from tfprune.channels.labels import Shape
from tfprune.channels.ops import Narrowing
from tfprune.keras_graph.lowering import Lowering, Refused, register_rule
from tfprune.keras_graph.rules.activations import elementwise
from tfprune.keras_graph.rules.convolutions import channel_axis, pads, positions

#: class of a cell (not all are public) -> how many gates it has, which of them is the candidate, how many states
_CELLS = {"LSTMCell": (4, 2, 2), "ConvLSTMCell": (4, 2, 2), "GRUCell": (3, 2, 1), "SimpleRNNCell": (1, 0, 1)}

_TENSORS = ("initial_state", "mask")


@register_rule(
    layers.RNN, layers.LSTM, layers.GRU, layers.SimpleRNN, layers.ConvLSTM1D, layers.ConvLSTM2D, layers.ConvLSTM3D
)
def recurrent(layer, lower: Lowering):
    given = arguments(lower)
    if isinstance(given, Refused):
        return given
    run = Run(layer, lower, *given)
    outputs = run.outputs()
    lower.settings(run.settings)
    return outputs


def arguments(lower: Lowering) -> tuple[int, list[int], list[int]] | Refused:
    """The sequence, the initial states and the masks that a layer is called with."""
    value = lower.inputs[0]
    if lower.is_within:  # a layer around it calls it, with a sequence alone
        return value, [], []
    given = lower.arguments()
    states, masks = ([leaf for leaf in keras.tree.flatten(given.get(name)) if leaf is not None] for name in _TENSORS)
    if not all(isinstance(leaf, int) for leaf in (*states, *masks)):
        return Refused("its initial state is an array")
    return value, states, masks


class Run:
    """A recurrent layer, to be lowered cell by cell.

    Attributes:
        widths: for each cell, (value, axis) of what is as wide as the cell.
    """

    def __init__(self, layer: Any, lower: Lowering, value: int, states: Sequence[int], masks: Sequence[int]):
        self.layer, self.lower = layer, lower
        self.value, self.states, self.masks = value, list(states), list(masks)
        self.widths: list[tuple[int, int]] = []

    @property
    def cells(self) -> list[Any]:
        cell = self.layer.cell
        return list(cell.cells) if isinstance(cell, layers.StackedRNNCells) else [cell]

    def outputs(self, other: Run | None = None) -> tuple[int, ...] | Refused:
        """The values that the layer returns, or why it is not followed.

        Args:
            other: the layer that runs the other way and must stay as wide.
        """
        value, states = self.value, self.states
        returned: list[int] = []
        for index, cell in enumerate(self.cells):
            settings = _settings(cell, self.lower.shape(value))
            if isinstance(settings, Refused):
                return settings
            gates, candidate, count = _CELLS[_class_of(cell)]
            given, states = states[:count], states[count:]
            last = index == len(self.cells) - 1
            sequence = _sequence(cell, self.lower.shape(value))
            axis = settings["axis"]
            shapes = [sequence if self.layer.return_sequences or not last else sequence[1:]]
            shapes += [sequence[1:]] * (count if self.layer.return_state else 0)
            outputs = self.lower.recurrent(
                (value, *given, *self.masks),
                shapes,
                kernel=cell.kernel,
                recurrent=cell.recurrent_kernel,
                bias=cell.bias if cell.use_bias else None,
                gates=gates,
                candidate=candidate,
                carries=count > 1,
                states=len(given),
                positions=positions(sequence, axis),
                stacked=index > 0,
                pair=None if other is None else other.widths[index][0],
                name=self.lower.layer if len(self.cells) == 1 else f"{self.lower.layer}/{cell.name}",
                **settings,
            )
            value = outputs[0]
            returned += outputs[1:]
            self.widths.append((value, axis - (len(sequence) - len(shapes[0]))))
        return (value, *returned)

    def settings(self, new: Narrowing) -> dict[str, Any]:
        """What changes in the layer's configuration."""
        config = self.layer.get_config()
        widths = [new.shape(value)[axis] for value, axis in self.widths]
        if isinstance(self.layer.cell, layers.StackedRNNCells):
            cells = config["cell"]["config"]["cells"]
            narrowed = zip(cells, widths, strict=True)
            return {"cell/cells": [{**cell, "config": {**cell["config"], "units": units}} for cell, units in narrowed]}
        name = "cell/units" if "cell" in config else "filters" if "filters" in config else "units"
        return {name: widths[0]}


def units_of(cell: Any) -> int | None:
    """How many units or filters a cell has."""
    return getattr(cell, "units", None) or getattr(cell, "filters", None)


def _class_of(cell: Any) -> str:
    """The Keras class whose `call` a cell runs; empty if there is none."""
    own: Any = type(cell)
    for cls in own.__mro__:
        if cls.__name__ in _CELLS and cls.__module__.startswith("keras."):
            return cls.__name__ if own.call is cls.call else ""
    return ""


def _settings(cell: Any, shape: Shape) -> dict[str, Any] | Refused:
    """How a cell looks at a sequence of this shape."""
    if not _class_of(cell):
        return Refused(f"{cell.name}, a {type(cell).__name__}, in it is not followed")
    activation = elementwise(cell.activation)
    for known in (activation, elementwise(getattr(cell, "recurrent_activation", None))):
        if isinstance(known, Refused):
            return known
    convolves = hasattr(cell, "kernel_size")
    return {
        "activation": activation,
        "rank": len(shape),
        "axis": 1 + channel_axis(cell, shape[1:]) if convolves else len(shape) - 1,
        "pads": convolves and pads(cell, cell.kernel_size),
    }


def _sequence(cell: Any, shape: Shape) -> Shape:
    """The shape of a cell's output at all steps."""
    if not hasattr(cell, "kernel_size"):
        return (shape[0], cell.units)
    return (shape[0], *cell.compute_output_shape((None, *shape[1:]))[0][1:])
