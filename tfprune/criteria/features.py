"""Which tensor holds a group's feature maps, and what is measured of them.

A layer's feature map is what the layer gives out (`at="output"`, a convolution's own activation included), or what
becomes of it in BatchNormalization, activation and other elementwise layers behind it (`at="activation"`), as long as
nobody else reads what is in between. A group has one feature map for each layer that writes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from tfprune.channels.graph import Call, ChannelGraph
from tfprune.channels.labels import Indices
from tfprune.channels.ops import Affine, Map, Op, Recurrent, Slope
from tfprune.channels.weights import Weight
from tfprune.errors import PlanError
from tfprune.keras_graph.expand import body_of

At = Literal["output", "activation"]


@dataclass(frozen=True)
class Feature:
    """Something measured of feature maps, averaged over samples: one number a channel.

    Attributes:
        of: (z, g, mean) -> one number a sample and channel. `z` is the feature map with the batch in front, `g` the
            gradient of each sample's loss with respect to it (None without `gradient`), and `mean` averages such an
            array over positions. Only `keras.ops` may be used.
        at: which tensor is the feature map: the layer's `output`, or the `activation` behind it.
        gradient: whether `of` needs `g`, and so a loss and labels.
    """

    of: Callable[[Any, Any, Callable[[Any], Any]], Any]
    at: At = "output"
    gradient: bool = False

    def __post_init__(self) -> None:
        if self.at not in ("output", "activation"):
            raise PlanError(f"a feature map is taken at 'output' or 'activation', and {self.at!r} came")


@dataclass(frozen=True)
class Gradient:
    """The loss's gradient with respect to the weights.

    Attributes:
        power: 1 for the mean gradient of the samples; 2 for their mean square, the diagonal of the empirical Fisher
            matrix.
    """

    power: Literal[1, 2] = 1


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """A tensor of the running model.

    Attributes:
        operation: the layer or operation that gives it out.
        index: which of its outputs it is.
        labels: the value's label array, without the batch axis.
    """

    operation: Any
    index: int
    labels: Indices

    @property
    def key(self) -> tuple[int, int]:
        """What the calls of a shared layer have in common."""
        return id(self.operation), self.index

    def mean(self, array: Any) -> Any:
        """Average over positions: (samples, ...) to (samples, labels)."""
        axes = tuple(axis + 1 for axis, size in enumerate(self.labels.shape) if size == 1)
        if axes:
            array = ops.mean(array, axis=axes)
        return ops.reshape(array, (-1, self.labels.size))


def feature_maps(graph: ChannelGraph, at: At) -> dict[Weight, list[FeatureMap]]:
    """Weight -> the feature maps of what it writes. Left out are those that are no tensor of the running model."""
    slots = [slot for slot in graph.labels.slots.values() if slot.kind == "write"]
    written = {slot.weight: graph.channel_of[slot.labels.ravel()] for slot in slots}
    unreal = _unreal(graph)
    readers: dict[int, list[Call]] = {}
    for call in graph.calls:
        for value in call.inputs:
            readers.setdefault(value, []).append(call)
    found: dict[Weight, dict[tuple[int, int], FeatureMap]] = {}
    for call in graph.calls:
        if call.origin is None or id(call.origin) in unreal:
            continue
        for op in call.ops:
            for weight in written.keys() & set(op.weights()):
                for value in _given_out(graph, call, written[weight]):
                    last, value = _last(graph, call, value, readers, unreal) if at == "activation" else (call, value)
                    index = last.outputs.index(value)
                    one = FeatureMap(last.origin.operation, index, graph.labels.of[value])
                    found.setdefault(weight, {}).setdefault(one.key, one)
                if weight not in found:
                    found[weight] = {one.key: one for one in _inside(graph, call, op, weight)}
    return {weight: list(maps.values()) for weight, maps in found.items() if maps}


def _given_out(graph: ChannelGraph, call: Call, channels: Indices) -> list[int]:
    """The outputs of a call that hold some of the channels."""
    found = [value for value in call.outputs if np.isin(graph.channel_of[graph.labels.of[value]], channels).any()]
    # A recurrent layer's last states would count its units twice.
    return found[:1]


def _inside(graph: ChannelGraph, call: Call, op: Op, weight: Weight) -> list[FeatureMap]:
    """What a layer inside of the call's layer gives out: the projections of attention.

    Not the cells of a recurrent layer, nor what is called once a step: these run inside of a loop.
    """
    layer = call.origin.operation
    if isinstance(op, Recurrent) or isinstance(layer, keras.layers.RNN | keras.layers.Wrapper):
        return []
    if not isinstance(layer, keras.layers.Layer):
        return []
    for inner in layer._flatten_layers(include_self=False):
        own = (*inner._trainable_variables, *inner._non_trainable_variables)
        if any(variable is graph.variables[weight] for variable in own):
            return [FeatureMap(inner, 0, graph.labels.of[op.outputs[0]])]
    return []


def _last(
    graph: ChannelGraph, call: Call, value: int, readers: dict[int, list[Call]], unreal: set[int]
) -> tuple[Call, int]:
    """Go through elementwise layers, as long as one alone reads the value and it is no output."""
    while True:
        following = readers.get(value, [])
        if len(following) != 1 or value in graph.outputs or len(following[0].outputs) != 1:
            return call, value
        (then,) = following
        elementwise = then.ops and all(isinstance(op, Affine | Map | Slope) for op in then.ops)
        if not elementwise or then.inputs != (value,) or id(then.origin) in unreal:
            return call, value
        call, value = then, then.outputs[0]


def _unreal(graph: ChannelGraph) -> set[int]:
    """The operations of layers with Python code of their own: when that code runs, others are made."""
    bodies = [boundary.body for boundary in graph.boundaries if body_of(boundary.origin.operation) is None]
    if graph.model is not None and body_of(graph.model) is None:
        bodies.append(graph.body)
    return {id(node) for body in bodies for node in body.nodes if not isinstance(node.operation, keras.layers.Layer)}
