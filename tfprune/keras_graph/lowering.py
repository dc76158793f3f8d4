"""What a rule is given: the call it lowers, and the channel ops it may lower it to."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import keras

from tfprune.channels.labels import Shape
from tfprune.channels.lowering import Lowering as Base
from tfprune.channels.lowering import Refused

__all__ = ["Lowering", "Refused", "again", "find_rule", "has_mask", "register_operation", "register_rule"]

Rule = Callable[[Any, "Lowering"], "int | tuple[int, ...] | None"]
_RULES: dict[type, Rule] = {}
_OPERATION_RULES: dict[str, Rule] = {}


def register_rule(*layer_classes: type) -> Callable[[Rule], Rule]:
    """Say how the calls of a layer class are lowered to channel ops.

    The rule gets the layer and a `Lowering`; it returns the value that is the layer's output (a tuple of several), or
    a `Refused` with the reason why nothing is known of this call. A subclass that has its own `call` does not inherit
    the rule.

    >>> import keras
    >>> class Doubled(keras.layers.Layer):
    ...     def call(self, x):
    ...         return 2 * x
    >>> @register_rule(Doubled)
    ... def doubled(layer, lower):
    ...     return lower.map(lower.inputs[0], lambda constant: 2 * constant)
    """

    def register(rule: Rule) -> Rule:
        for layer_class in layer_classes:
            _RULES[layer_class] = rule
        return rule

    return register


def register_operation(*names: str) -> Callable[[Rule], Rule]:
    """The same for operations of `keras.ops`, by class name: they have no public classes."""

    def register(rule: Rule) -> Rule:
        _OPERATION_RULES.update(dict.fromkeys(names, rule))
        return rule

    return register


def find_rule(operation: Any) -> Rule | None:
    """The rule for a layer or operation, or None. A parent's rule counts only if its `call` is still in force."""
    cls: Any = type(operation)
    rule = _RULES.get(cls)
    if rule is not None:
        return rule
    if cls.__module__.startswith("keras.src.ops"):
        return _OPERATION_RULES.get(cls.__name__)
    for parent in cls.__mro__[1:]:
        if parent in _RULES:
            return _RULES[parent] if cls.call is parent.call else None
    return None


def again(operation: Any) -> Any:
    """An operation like this one that is called nowhere yet. (`copy.copy` would send it through a file.)"""
    result = object.__new__(type(operation))
    result.__dict__.update(operation.__dict__)
    result._inbound_nodes, result._outbound_nodes = [], []
    return result


def has_mask(tensor: Any) -> bool:
    """Whether a tensor carries a Keras mask."""
    return getattr(tensor, "_keras_mask", None) is not None


class Lowering(Base):
    """One call of a Keras layer or operation on its way to channel ops."""

    def arguments(self) -> dict[str, Any]:
        """What the layer's `call` is called with, by name; tensors are value numbers."""
        numbers = {id(tensor): value for tensor, value in zip(self.node.input_tensors, self.inputs, strict=True)}
        bound = inspect.signature(self.node.operation.call).bind(
            *self.node.arguments.args, **self.node.arguments.kwargs
        )
        return {
            name: keras.tree.map_structure(lambda given: numbers.get(id(given), given), argument)
            for name, argument in bound.arguments.items()
        }

    def within(self, layer: Any, inputs: Sequence[int], output_shapes: Sequence[Shape]) -> tuple[int, ...] | Refused:
        """Lower a layer that this one uses by that layer's own rule.

        Returns:
            its outputs; this call's `settings` are then that layer's. Or why that layer is not followed.
        """
        rule = find_rule(layer)
        if rule is None:
            return Refused(f"{layer.name}, a {type(layer).__name__}, in it is not followed")
        inner = copy.copy(self)
        inner.inputs, inner.output_shapes = tuple(inputs), tuple(output_shapes)
        inner.configure, inner.is_within = None, True
        result: Any = rule(layer, inner)
        if isinstance(result, Refused):
            return result
        self.configure = inner.configure
        return result if isinstance(result, tuple) else (result,)
