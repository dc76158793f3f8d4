"""Parameters, multiply-adds and bytes, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfprune.channels.graph import ChannelGraph
from tfprune.channels.weights import Weight
from tfprune.frontend import trace
from tfprune.tables import table


@dataclass(frozen=True)
class LayerCost:
    """One layer: its parameters (all weights, trainable or not), MACs for one sample over all its calls, bytes."""

    layer: str
    kind: str
    shape: tuple[int | None, ...]
    parameters: int
    macs: int
    bytes: int


@dataclass(frozen=True)
class Cost:
    """What a model costs.

    Attributes:
        name: the model's name.
        parameters: numbers in all weights, trainable or not.
        macs: multiply-adds of convolutions and matrix products for one sample; biases, normalization and activations
            are not counted. 0 for layers whose spatial size is unknown.
        bytes: of the weights in the types they are stored in.
        layers: a row a layer.
    """

    name: str
    parameters: int
    macs: int
    bytes: int
    layers: tuple[LayerCost, ...]

    def __str__(self) -> str:
        rows = [
            (row.layer, row.kind, "x".join("?" if s is None else str(s) for s in row.shape), row.parameters, row.macs)
            for row in self.layers
        ]
        rows.append(("total", "", "", self.parameters, self.macs))
        title = f"{self.name}: {self.parameters:,} parameters, {self.macs:,} MACs, {self.bytes:,} bytes"
        return table(title, ("layer", "kind", "output", "parameters", "MACs"), rows)

    def compared(self, after: Cost) -> str:
        """A before/after table, layer by layer where the cost differs."""
        return compare_table(self, after)


def cost(model: Any) -> Cost:
    """Count a model's parameters, MACs and bytes.

    Args:
        model: a built Keras model, an ONNX model (a `ModelProto` or the path of a file), or the graph of one.

    Raises:
        TraceError: the model cannot be read as a graph.

    >>> import keras
    >>> model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Conv2D(2, 3, padding="same")])
    >>> count = cost(model)
    >>> count.parameters, count.macs
    (20, 288)
    """
    graph = model if isinstance(model, ChannelGraph) else trace(model)
    parameters: dict[str, int] = {}
    sizes: dict[str, int] = {}
    called = {call.layer for call in graph.calls}
    for weight, variable in graph.variables.items():
        layer = weight.layer
        while layer and layer not in called:  # the weights of a layer inside are the outer one's
            layer = layer.rpartition("/")[0]
        parameters[layer] = parameters.get(layer, 0) + weight.size
        sizes[layer] = sizes.get(layer, 0) + weight.size * dtype_bytes(variable)
    rows: dict[str, LayerCost] = {}
    for call in graph.calls:
        macs = sum(op.macs(_size) for op in call.ops)
        before = rows.get(call.layer)
        rows[call.layer] = LayerCost(
            call.layer,
            call.kind,
            graph.shapes[call.outputs[0]],
            parameters.get(call.layer, 0),
            macs + (before.macs if before else 0),
            sizes.get(call.layer, 0),
        )
    layers = tuple(rows.values())
    return Cost(
        graph.name,
        sum(parameters.values()),
        sum(row.macs for row in layers),
        sum(sizes.values()),
        layers,
    )


_size: Callable[[Weight], int] = lambda weight: weight.size  # noqa: E731


def dtype_bytes(variable: Any) -> int:
    """How many bytes one number of a variable takes."""
    name = str(variable.dtype)
    return np.dtype("float16" if name == "bfloat16" else name).itemsize


def compare_table(before: Cost, after: Cost) -> str:
    """Before and after, for every layer whose cost changed, and in total."""
    later = {row.layer: row for row in after.layers}
    rows = []
    for row in before.layers:
        new = later.get(row.layer)
        if new is None and row.parameters + row.macs:
            rows.append((row.layer, row.parameters, 0, row.macs, 0, "removed"))
        elif new is not None and (new.parameters, new.macs) != (row.parameters, row.macs):
            rows.append((row.layer, row.parameters, new.parameters, row.macs, new.macs, ""))
    rows.append(("total", before.parameters, after.parameters, before.macs, after.macs, ""))
    title = (
        f"{before.name}: {_change(before.parameters, after.parameters)} parameters, "
        f"{_change(before.macs, after.macs)} MACs, {_change(before.bytes, after.bytes)} bytes"
    )
    return table(title, ("layer", "parameters", "after", "MACs", "after", ""), rows)


def _change(before: int, after: int) -> str:
    times = f" ({before / after:.2f}x fewer)" if after and before != after else ""
    return f"{before:,} -> {after:,}{times}"
