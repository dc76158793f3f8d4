"""From a Keras model to its ChannelGraph. No weight is read: structure alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

import tfprune.keras_graph.rules  # noqa: F401  (registers the rules)
from tfprune.channels.graph import Boundary, Call, ChannelGraph
from tfprune.channels.labels import Shape
from tfprune.channels.ops import Source
from tfprune.channels.weights import Weight
from tfprune.keras_graph.arrays import numbers
from tfprune.keras_graph.expand import Body, expand, inside, whole
from tfprune.keras_graph.lowering import Lowering, Refused, find_rule, has_mask


def trace(model: keras.Model, inputs: Any = None) -> ChannelGraph:
    """Read a model as a graph of channels.

    Nested models and shared layers are followed. So is a layer or model with Python code of its own, if its `call`
    works on symbolic tensors: it is run on some once, and left as it was.

    Args:
        model: a built Sequential or Functional model, or one with a `call` of its own that has been called on data.
        inputs: for a model with a `call` of its own that has not been called yet: `keras.Input`s, or shapes without the
            batch axis, in the structure it takes. They are remembered for the model, and build it if it is not built.

    Returns:
        a `ChannelGraph`; print it to see the channel groups, who writes and reads each, and whether it is prunable.

    Raises:
        TraceError: it is not a Keras model, is not built, or has a `call` of its own that cannot be followed.

    >>> import keras, tfprune
    >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3), keras.layers.Flatten(),
    ...                           keras.layers.Dense(2)])
    >>> tfprune.trace(model).groups[0].width
    4
    """
    body = whole(model, inputs)
    tracer = _Tracer()
    values = [tracer.source(tensor) for tensor in body.inputs]
    outputs = tracer.follow(body, values, "")
    for variable in model.weights:  # what no call uses still counts as parameters
        tracer.weight(variable, str(variable.path).rpartition("/")[0])
    variables = dict(tracer.variables)
    return ChannelGraph(
        model.name, tracer.calls, tracer.shapes, values, outputs, tracer.boundaries, model, variables, body, numbers
    )


class _Tracer:
    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.shapes: dict[int, Shape] = {}
        self.boundaries: list[Boundary] = []
        self.variables: dict[Weight, Any] = {}
        self._weights: dict[int, Weight] = {}
        self._keys: dict[str, int] = {}
        self._masked = False
        self._paths: dict[int, str] = {}
        self._bodies: dict[Any, Body | Refused] = {}

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
            key = f"{layer}/{self._paths.get(id(variable), variable.name)}"
            count = self._keys[key] = self._keys.get(key, 0) + 1
            known = Weight(key if count == 1 else f"{key}#{count}", tuple(variable.shape))
            self._weights[id(variable)], self.variables[known] = known, variable
        return known

    def follow(self, body: Body, inputs: Sequence[int], path: str) -> list[int]:
        """Lower every call of a graph that is called on `inputs`; return its output values."""
        # Behind the inputs may come masks, which the layers inside find by themselves.
        values = {id(tensor): value for tensor, value in zip(body.inputs, inputs, strict=False)}
        for node in body.nodes:
            operation = node.operation
            given = [values[id(tensor)] for tensor in node.input_tensors]
            name = path + body.names[id(operation)]
            inner = inside(node, self.look)
            if isinstance(inner, Body):
                before, self._masked = self._masked, self._masked or any(map(has_mask, node.input_tensors))
                result = tuple(self.follow(inner, given, name + "/"))
                self._masked = before
                self.boundaries.append(Boundary(name, tuple(given), result, node, inner))
            else:
                result = self.lower(node, name, given, inner)
            for tensor, value in zip(node.outputs, result, strict=True):
                values[id(tensor)] = value
        return [values[id(tensor)] for tensor in body.outputs]

    def look(self, layer: Any, args: Any, kwargs: Any) -> Body | Refused:
        """Expand a layer; a shared one once for each way of calling it."""
        key = (id(layer), *map(_form, keras.tree.flatten((args, kwargs))), len(args), *sorted(kwargs))
        if key not in self._bodies:
            self._bodies[key] = expand(layer, args, kwargs)
        return self._bodies[key]

    def lower(self, node: Any, name: str, inputs: Sequence[int], refused: Refused | None) -> tuple[int, ...]:
        operation = node.operation
        shapes = [tuple(tensor.shape[1:]) for tensor in node.outputs]
        lowering = Lowering(name, inputs, shapes, self.shapes, self.new_value, self.weight, node)
        lowering.masked = self._masked or any(map(has_mask, node.input_tensors))
        rule = find_rule(operation)
        self._paths.update(_paths(operation))
        if rule is None:
            result: Any = Refused(unknown(operation, refused))
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
                # Inside of a model that is called with masks they are found when it runs.
                self._masked or any(has_mask(tensor) for tensor in node.outputs),
            )
        )
        return outputs


def _form(argument: Any) -> Any:
    """What of an argument makes for another way of calling."""
    if isinstance(argument, keras.KerasTensor):
        return tuple(argument.shape), argument.dtype, getattr(argument, "_keras_mask", None) is not None
    return argument if isinstance(argument, str | int | float | bool | None) else id(argument)


def _paths(layer: Any) -> dict[int, str]:
    """id of a variable -> where it is in a layer: `kernel`, or `query/kernel` of a layer that has layers.

    A variable's own path does not say so: it depends on who built the layer inside, and when.
    """
    found: dict[int, str] = {}
    for inner in getattr(layer, "_layers", ()):
        found.update((key, f"{inner.name}/{path}") for key, path in _paths(inner).items() if key not in found)
    own = (*getattr(layer, "_trainable_variables", ()), *getattr(layer, "_non_trainable_variables", ()))
    found.update((id(variable), variable.name) for variable in own if id(variable) not in found)
    return found


def unknown(operation: Any, refused: Refused | None) -> str:
    """Why an operation has no rule and is not looked into, and what to do."""
    kind = type(operation).__name__
    if not isinstance(operation, keras.layers.Layer):
        return f"{operation.name} is a {kind}, which is not followed"
    own = not type(operation).__module__.startswith("keras.")
    what = f"{operation.name} is a {kind}, which tfprune does not know, and {refused}"
    return f"{what}; tfprune.register_rule({kind}) can tell it" if own else what
