"""From a Keras model to its ChannelGraph. No weight is read: structure alone."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import keras

import tfprune.keras_graph.rules  # noqa: F401  (registers the rules)
from tfprune.channels.graph import Boundary, Call, ChannelGraph
from tfprune.channels.labels import Shape
from tfprune.channels.ops import Source
from tfprune.channels.weights import Weight
from tfprune.errors import TraceError
from tfprune.keras_graph.lowering import Lowering, Refused, find_rule


def functional_of(model: Any) -> Any:
    """The graph of a Functional or Sequential model, or None for a layer or a model with its own `call`."""
    if isinstance(model, keras.Sequential):
        return getattr(model, "_functional", None) if type(model).call is keras.Sequential.call else None
    if isinstance(model, keras.Model) and hasattr(model, "_nodes_by_depth"):
        return model if _keeps_functional_call(type(model)) else None
    return None


def _keeps_functional_call(cls: Any) -> bool:
    """Whether a model class still runs its graph: Keras' Functional has no public name."""
    bases = [base for base in cls.__mro__ if base.__name__ == "Functional" and base.__module__.startswith("keras.")]
    return bool(bases) and cls.call is bases[0].call


def nodes_of(functional: Any) -> list[Any]:
    """The nodes of a functional graph in an order in which they can run, without its inputs."""
    by_depth = functional._nodes_by_depth
    return [
        node
        for depth in sorted(by_depth, reverse=True)
        for node in by_depth[depth]
        if node.operation and not node.is_input
    ]


def trace(model: keras.Model) -> ChannelGraph:
    """Read a model as a graph of channels.

    Args:
        model: a built Sequential or Functional model; nested models and shared layers included.

    Returns:
        a `ChannelGraph`; print it to see the channel groups, who writes and reads each, and whether it is prunable.

    Raises:
        TraceError: it is not a Keras model, is not built, or has a `call` of its own.

    >>> import keras, tfprune
    >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3), keras.layers.Flatten(),
    ...                           keras.layers.Dense(2)])
    >>> tfprune.trace(model).groups[0].width
    4
    """
    functional = _checked(model)
    tracer = _Tracer()
    inputs = [tracer.source(tensor) for tensor in functional.inputs]
    outputs = tracer.follow(functional, inputs, "")
    variables = dict(tracer.variables)
    return ChannelGraph(model.name, tracer.calls, tracer.shapes, inputs, outputs, tracer.boundaries, model, variables)


def _checked(model: Any) -> Any:
    if not isinstance(model, keras.Model):
        raise TraceError(f"a keras.Model is needed, and a {type(model).__name__} came")
    functional = functional_of(model)
    if functional is not None:
        return functional
    kind = type(model).__name__
    if isinstance(model, keras.Sequential):
        raise TraceError(
            f"the Sequential model {model.name!r} is not built, so its shapes are unknown; "
            f"start it with keras.Input(shape) or call model.build(input_shape)"
        )
    raise TraceError(
        f"{kind} {model.name!r} has a `call` of its own, which is Python code and no graph; "
        f"build it with the functional API (keras.Model(inputs, outputs)), "
        f"for example by calling its layers on keras.Input"
    )


class _Tracer:
    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.shapes: dict[int, Shape] = {}
        self.boundaries: list[Boundary] = []
        self.variables: dict[Weight, Any] = {}
        self._weights: dict[int, Weight] = {}
        self._keys: dict[str, int] = {}

    def new_value(self, shape: Shape) -> int:
        value = len(self.shapes)
        self.shapes[value] = shape
        return value

    def source(self, tensor: Any) -> int:
        value = self.new_value(tuple(tensor.shape[1:]))
        name = tensor.name
        self.calls.append(Call(name, "Input", (), (value,), (Source(name, (), (value,)),)))
        return value

    def weight(self, variable: Any, layer: str) -> Weight:
        known = self._weights.get(id(variable))
        if known is None:
            # Inside the layer: `kernel`, or `query/kernel` of a layer that has layers.
            parts = str(variable.path or variable.name).split("/")
            own = layer.rpartition("/")[2]
            key = "/".join([layer, *parts[parts.index(own) + 1 :]]) if own in parts[:-1] else f"{layer}/{variable.name}"
            count = self._keys[key] = self._keys.get(key, 0) + 1
            known = Weight(key if count == 1 else f"{key}#{count}", tuple(variable.shape))
            self._weights[id(variable)], self.variables[known] = known, variable
        return known

    def follow(self, functional: Any, inputs: Sequence[int], path: str) -> list[int]:
        """Lower every node of a functional graph that is called on `inputs`; return its output values."""
        values = {id(tensor): value for tensor, value in zip(functional.inputs, inputs, strict=True)}
        for node in nodes_of(functional):
            operation = node.operation
            given = [values[id(tensor)] for tensor in node.input_tensors]
            nested = functional_of(operation)
            name = path + operation.name
            if nested is not None:
                result = tuple(self.follow(nested, given, name + "/"))
                self.boundaries.append(Boundary(name, tuple(given), result, node))
            else:
                result = self.lower(node, name, given)
            for tensor, value in zip(node.outputs, result, strict=True):
                values[id(tensor)] = value
        return [values[id(tensor)] for tensor in functional.outputs]

    def lower(self, node: Any, name: str, inputs: Sequence[int]) -> tuple[int, ...]:
        operation = node.operation
        shapes = [tuple(tensor.shape[1:]) for tensor in node.outputs]
        lowering = Lowering(name, inputs, shapes, self.shapes, self.new_value, self.weight, node)
        rule = find_rule(operation)
        if rule is None:
            result: Any = Refused(unknown(operation))
        else:
            result = rule(operation, lowering)
        if isinstance(result, Refused):
            reason = str(result) if rule is None else f"{name} is not followed: {result}"
            result = lowering.opaque(reason)
        outputs = result if isinstance(result, tuple) else (result,)
        # What the rule did not mention still counts as parameters.
        for variable in getattr(operation, "weights", ()):
            self.weight(variable, name)
        self.calls.append(
            Call(
                name,
                type(operation).__name__,
                tuple(inputs),
                outputs,
                tuple(lowering.ops),
                node,
                lowering.configure,
                lowering.arrays,
                lowering.rewriter,
                lowering.factors,
            )
        )
        return outputs


def unknown(operation: Any) -> str:
    """Why an operation has no rule, and what to do."""
    kind = type(operation).__name__
    if isinstance(operation, keras.layers.Layer) and not type(operation).__module__.startswith("keras."):
        return f"{operation.name} is a {kind}, which tfprune does not know; tfprune.register_rule({kind}) can tell it"
    return f"{operation.name} is a {kind}, which is not followed"


def nearest(name: str, known: Sequence[str]) -> str:
    """`; did you mean ...?`, or nothing."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {', '.join(map(repr, close))}?" if close else ""
