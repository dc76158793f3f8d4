"""From what is left of a ChannelGraph back to a plain Keras model.

Every layer is built once, from its own configuration with the widths that follow, and gets its arrays instead of
running its initialisers.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras.src.saving import serialization_lib
from numpy.typing import NDArray

from tfprune.channels.graph import Boundary, Call, ChannelGraph
from tfprune.channels.ops import Facts, Narrowing
from tfprune.channels.simplify import Replacement
from tfprune.channels.take import bias_shifts, slots_by_weight, take
from tfprune.channels.weights import Weight
from tfprune.errors import TfpruneError, TraceError
from tfprune.keras_graph.trace import functional_of, nodes_of


def rebuild(
    graph: ChannelGraph, facts: Facts, new: Narrowing, replacements: dict[int, Replacement] | None = None
) -> keras.Model:
    """Build the smaller model.

    Args:
        graph: what is left of the model after `simplify`.
        facts: its constants and its weights.
        new: where everything is in the smaller model.
        replacements: what sums and products became, by the `id` of their node.

    Returns:
        a new model with the same names, inputs and outputs; the traced model is not touched.
    """
    return _Rebuilder(graph, facts, new, replacements or {}).function(graph.model, None)


class _Rebuilder:
    def __init__(self, graph: ChannelGraph, facts: Facts, new: Narrowing, replacements: dict[int, Replacement]):
        self.graph, self.facts, self.new, self.replacements = graph, facts, new, replacements
        self.calls: dict[int, Call] = {id(call.origin): call for call in reversed(graph.calls)}
        self.boundaries: dict[int, Boundary] = {id(b.origin): b for b in reversed(graph.boundaries)}
        self.slots = slots_by_weight(graph)
        self.weights = {id(variable): weight for weight, variable in graph.variables.items()}
        self.factors = {weight: factor for call in graph.calls for weight, factor in call.factors.items()}
        self.rebuilt: dict[int, Any] = {}
        # What biases gain; and what they become where a kernel has none.
        self.shifts: dict[Weight, NDArray] = {}
        self.new_biases: dict[Weight, NDArray] = {}
        for op, shift in bias_shifts(graph, facts, new).items():
            kernel, bias = op.weights()[0], getattr(op, "bias", None)
            if bias is not None:
                self.shifts[bias] = shift
            else:
                self.new_biases[kernel] = shift[new.indices[kernel, "write"].ravel()]

    def function(self, model: Any, boundary: Boundary | None) -> Any:
        """Rebuild a Functional or Sequential model; `boundary` says where a nested one is called."""
        functional = functional_of(model)
        old_inputs = functional.inputs
        shapes = [
            tuple(tensor.shape[1:]) if boundary is None else self.new.shape(value)
            for tensor, value in zip(old_inputs, boundary.inputs if boundary else old_inputs, strict=True)
        ]
        inputs = [
            keras.Input(batch_shape=(old.shape[0], *shape), dtype=old.dtype, name=old.name)
            for old, shape in zip(old_inputs, shapes, strict=True)
        ]
        if isinstance(model, keras.Sequential) and len(inputs) == 1:
            result = self._sequential(model, inputs[0])
        else:
            tensors = {id(old): new for old, new in zip(old_inputs, inputs, strict=True)}
            for node in nodes_of(functional):
                self._node(node, tensors)
            outputs = [tensors[id(tensor)] for tensor in functional.outputs]
            result = keras.Model(
                keras.tree.pack_sequence_as(functional._inputs_struct, inputs),
                keras.tree.pack_sequence_as(functional._outputs_struct, _connected(inputs, outputs, model.name)),
                name=model.name,
            )
        result.trainable = model.trainable if not model.trainable else result.trainable
        return result

    def _sequential(self, model: keras.Sequential, tensor: Any) -> keras.Sequential:
        nodes = nodes_of(functional_of(model))
        layers = [self._operation(node) for node in nodes]
        result = keras.Sequential([tensor, *(layer for layer, _ in layers)], name=model.name)
        for _, finish in layers:
            finish()
        return result

    def _node(self, node: Any, tensors: dict[int, Any]) -> None:
        """Call what a node became; nodes whose outputs nobody needs are passed over."""
        nested = id(node) in self.boundaries
        call = self.calls.get(id(node))
        if not nested and (call is None or any(self.new.empty(value) for value in call.outputs)):
            return
        replacement = self.replacements.get(id(node))
        given = [tensors.get(id(tensor)) for tensor in node.input_tensors]
        if replacement is not None:
            given = [given[index] for index in replacement.operands]
        left = [tensor for tensor in given if tensor is not None]
        if len(left) < len(node.input_tensors):
            result = left[0] if len(left) == 1 else self._call(node, lambda operation: operation(left))
            if replacement is not None and (replacement.scale is not None or replacement.shift is not None):
                result = self._vector(node, replacement, call)(result)
        else:
            result = self._rewritten(node, call, left)
            if result is None:
                args, kwargs = node.arguments.fill_in(tensors)
                if call is not None and call.arrays:
                    args, kwargs = self._arrays(call, args, kwargs)
                result = self._call(node, lambda operation: operation(*args, **kwargs))
        for old, new in zip(node.outputs, keras.tree.flatten(result), strict=True):
            tensors[id(old)] = new

    def _rewritten(self, node: Any, call: Call | None, tensors: list[Any]) -> Any:
        """What a call is written as where it cannot stay as it is; None where it can."""
        if call is None or call.rewrite is None:
            return None
        if not any(self.new.narrowed(value) for value in (*call.inputs, *call.outputs)):
            return None
        return call.rewrite(self.new, node.operation, tensors)

    def _call(self, node: Any, call: Callable[[Any], Any]) -> Any:
        operation, finish = self._operation(node)
        result = call(operation)
        finish()
        return result

    def _operation(self, node: Any) -> tuple[Any, Callable[[], None]]:
        """The new layer or operation, and what to do once it has been called."""
        operation = node.operation
        known = self.rebuilt.get(id(operation))
        if known is not None:
            return known, lambda: None
        finish: Callable[[], None] = lambda: None  # noqa: E731
        call = self.calls.get(id(node))
        settings = {} if call is None or call.configure is None else call.configure(self.new)
        if functional_of(operation) is not None:
            result = self.function(operation, self.boundaries[id(node)])
        elif isinstance(operation, keras.layers.Layer):
            result, finish = self._layer(operation, settings)
        else:
            result = copy.copy(operation)
            result._inbound_nodes, result._outbound_nodes = [], []
            for name, value in settings.items():
                setattr(result, name, value)
        self.rebuilt[id(operation)] = result
        return result, finish

    def _layer(self, layer: Any, settings: dict[str, Any]) -> tuple[Any, Callable[[], None]]:
        arrays = [self._array(variable) for variable in layer.weights]
        names = [variable.name for variable in layer.weights]
        named = dict(zip(names, arrays, strict=True))
        config = configuration(layer)
        bias = self._new_bias(layer)
        if bias is not None:
            config["use_bias"], named["bias"] = True, bias
        for name, value in settings.items():
            _set(config, name, value)
        result = made(layer, config)
        if not names:
            return result, lambda: None
        if max(Counter(names).values()) > 1:
            return result, lambda: result.set_weights(arrays)
        return result, _give(result, named, layer)

    def _array(self, variable: Any) -> NDArray:
        weight = self.weights.get(id(variable))
        if weight is None:
            return keras.ops.convert_to_numpy(variable)
        array = self.facts.weight(weight)
        slots = self.slots.get(weight)
        if weight in self.shifts:
            array = (array + self.shifts[weight].reshape(array.shape)).astype(array.dtype)
        if slots is not None:
            array = take(array, slots, self.new)
        factor = self.factors[weight](self.new) if weight in self.factors else 1.0
        return array if factor == 1 else (array * factor).astype(array.dtype)

    def _new_bias(self, layer: Any) -> NDArray | None:
        """The bias that a layer without one needs from now on."""
        for variable in layer.weights if self.new_biases else ():
            kernel = self.weights.get(id(variable))
            if kernel in self.new_biases:
                return self.new_biases[kernel]
        return None

    def _arrays(self, call: Call, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Narrow the arrays that are written into the model."""
        args, names = list(args), list(kwargs)
        for number, value in call.arrays.items():
            holder, key = (args, number) if number < len(args) else (kwargs, names[number - len(args)])
            array = np.asarray(keras.ops.convert_to_numpy(holder[key]))
            labels = self.graph.labels.of[value].shape
            grid = np.unravel_index(self.new.kept[value], labels)
            lead = array.ndim - len(labels)
            for axis, index in enumerate(grid):
                if labels[axis] > 1:
                    array = np.take(array, np.unique(index), axis=axis + lead)
            holder[key] = array
        return args, kwargs

    def _vector(self, node: Any, replacement: Replacement, call: Call | None) -> Any:
        """A plain layer that scales and shifts each channel."""
        assert call is not None
        left = self.new.positions(call.outputs[0], (replacement.axis,))
        operation = node.operation
        dtype = getattr(operation, "dtype_policy", None) or node.outputs[0].dtype
        return keras.layers.Rescaling(
            # Lists would pass through float32.
            scale=1.0 if replacement.scale is None else replacement.scale[left],
            offset=0.0 if replacement.shift is None else replacement.shift[left],
            name=operation.name,
            dtype=dtype,
        )


def configuration(layer: keras.layers.Layer) -> dict[str, Any]:
    """The layer's configuration; Python functions in it are the functions themselves, which need not be registered."""
    config = layer.get_config()
    for name, value in config.items():
        if isinstance(value, dict) and value.get("class_name") == "function" and callable(getattr(layer, name, None)):
            config[name] = getattr(layer, name)
    return config


def _set(config: dict[str, Any], name: str, value: Any) -> None:
    """Change a setting; `layer/units` is a setting of the layer inside. What is not a setting is passed over."""
    outer, _, inner = name.partition("/")
    if inner and isinstance(config.get(outer), dict):
        config[outer] = {**config[outer], "config": dict(config[outer]["config"])}
        _set(config[outer]["config"], inner, value)
    elif outer in config:
        config[outer] = value


def made(layer: keras.layers.Layer, config: dict[str, Any]) -> Any:
    """A new layer of the same class.

    Raises:
        TraceError: it cannot be made from its configuration.
    """
    try:
        # What is in memory already may hold Python code.
        with serialization_lib.SafeModeScope(False):
            return type(layer).from_config(config)
    except Exception as error:
        raise TraceError(
            f"{layer.name}, a {type(layer).__name__}, cannot be made again from its get_config(), which the stripped "
            f"model needs: {error}"
        ) from error


def copied(model: keras.Model) -> keras.Model:
    """A model with layers and weights of its own."""
    result = keras.models.clone_model(
        model, clone_function=lambda layer: made(layer, configuration(layer)), recursive=_has_models(model)
    )
    result.set_weights(model.get_weights())
    return result


def _has_models(model: keras.Model) -> bool:
    return any(isinstance(layer, keras.Model) for layer in model.layers)


def _connected(inputs: list[Any], outputs: list[Any], model: str) -> list[Any]:
    """The outputs; Keras before 3.14 wants every input to be used by some layer, so pass what goes straight through.

    Raises:
        TfpruneError: such a Keras, and an input that nothing needs any more.
    """
    if tuple(map(int, keras.__version__.split(".")[:2])) >= (3, 14):
        return outputs
    unused = [tensor for tensor in inputs if not tensor._keras_history.operation._outbound_nodes]
    passed = {id(tensor): keras.layers.Identity()(tensor) for tensor in unused if any(tensor is o for o in outputs)}
    if len(passed) < len(unused):
        name = next(tensor.name for tensor in unused if id(tensor) not in passed)
        raise TfpruneError(
            f"nothing in {model} needs its input {name!r} any more, and Keras {keras.__version__} cannot build a model "
            f"with an unused input; upgrade to Keras 3.14 or later (Python 3.11 or later)"
        )
    return [passed.get(id(tensor), tensor) for tensor in outputs]


def _give(layer: Any, arrays: dict[str, NDArray], old: Any) -> Callable[[], None]:
    """Have a layer take these arrays for its weights when it is built; the returned function checks that it did."""
    original, given = layer.add_weight, set()

    def add_weight(*args, **kwargs):
        array = arrays.get(kwargs.get("name"))
        if array is None:
            return original(*args, **kwargs)
        given.add(kwargs["name"])
        return original(*args, **{**kwargs, "initializer": lambda shape, dtype=None, **_: array})

    layer.__dict__["add_weight"] = add_weight

    def finish() -> None:
        layer.__dict__.pop("add_weight", None)
        for variable in layer.weights:
            if variable.name not in given:
                variable.assign(arrays[variable.name])

    return finish
