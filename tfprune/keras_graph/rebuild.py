"""From what is left of a ChannelGraph back to a plain Keras model.

Every layer is built once, from its own configuration with the widths that follow, and gets its arrays instead of
running its initialisers.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras.src.saving import serialization_lib
from numpy.typing import NDArray

from tfprune.channels.graph import Boundary, Call, ChannelGraph
from tfprune.channels.ops import Facts, Narrowing
from tfprune.channels.simplify import Replacement
from tfprune.channels.take import bias_shifts, by_bias, slots_by_weight, take
from tfprune.errors import TfpruneError, TraceError
from tfprune.keras_graph.arrays import handed_over, numbers
from tfprune.keras_graph.expand import Body, alike, body_of, distinct, equal_settings, expand, ordered
from tfprune.keras_graph.lowering import again, has_mask


@dataclass(frozen=True)
class Rebuilt:
    """A smaller model, and where its variables come from.

    Attributes:
        model: the new model.
        origins: (new variable, old variable) of each weight that was there before.
        narrowed: what is left of an array that is laid out as an old variable is: an optimizer's slot, for example.
    """

    model: keras.Model
    origins: tuple[tuple[Any, Any], ...]
    narrowed: Callable[[Any, NDArray], NDArray]


def rebuild(
    graph: ChannelGraph, facts: Facts, new: Narrowing, replacements: dict[int, Replacement] | None = None
) -> Rebuilt:
    """Build the smaller model.

    Args:
        graph: what is left of the model after `simplify`.
        facts: its constants and its weights.
        new: where everything is in the smaller model.
        replacements: what sums and products became, by the `id` of their node.

    Returns:
        a new functional (or Sequential) model with the same names, inputs and outputs; the traced model is not touched.
    """
    builder = _Rebuilder(graph, facts, new, replacements or {})
    with _recursion(len(graph.calls)), _uncollected(), _policy(graph.model.dtype_policy):
        model = builder.model(graph.model, graph.body, None)
    return Rebuilt(model, builder.origins(), builder.narrowed)


class _Rebuilder:
    def __init__(self, graph: ChannelGraph, facts: Facts, new: Narrowing, replacements: dict[int, Replacement]):
        self.graph, self.facts, self.new, self.replacements = graph, facts, new, replacements
        self.calls: dict[int, Call] = {id(call.origin): call for call in reversed(graph.calls)}
        self.boundaries: dict[int, Boundary] = {id(b.origin): b for b in reversed(graph.boundaries)}
        self.slots = slots_by_weight(graph)
        self.weights = {id(variable): weight for weight, variable in graph.variables.items()}
        self.factors = {weight: factor for call in graph.calls for weight, factor in call.factors.items()}
        self.rebuilt: dict[Any, Any] = {}
        self.names: dict[int, str] = {}
        self.pairs: list[tuple[Any, Any]] = []
        # What biases gain; and what they become where a kernel has none.
        self.shifts, self.new_biases = by_bias(bias_shifts(graph, facts, new), new)
        self.composites = self._composites()

    def model(self, model: Any, body: Body, boundary: Boundary | None) -> Any:
        """Rebuild a model, or a composite layer as a model; `boundary` says where it is called inside another."""
        old_inputs = body.inputs
        shapes = [
            tuple(tensor.shape[1:]) if boundary is None else self.new.shape(value)
            for tensor, value in zip(old_inputs, boundary.inputs if boundary else old_inputs, strict=False)
        ]
        inputs = [
            keras.Input(batch_shape=(old.shape[0], *shape), dtype=old.dtype, name=old.name)
            for old, shape in zip(old_inputs, shapes, strict=True)
        ]
        name = self._name(model)
        if isinstance(model, keras.Sequential) and len(inputs) == 1:
            result = self._sequential(name, body, inputs[0])
        else:
            self.names.update(body.names)
            tensors = {id(old): new for old, new in zip(old_inputs, inputs, strict=True)}
            for node in body.nodes:
                self._node(node, tensors)
            outputs = _connected(inputs, [tensors[id(tensor)] for tensor in body.outputs], body, name)
            _distinguish(inputs, outputs)
            # A composite's tensors are passed one by one, whatever its `call` takes.
            struct = inputs if boundary is not None and body_of(model) is None else body.inputs_struct
            result = keras.Model(
                keras.tree.pack_sequence_as(struct, inputs),
                keras.tree.pack_sequence_as(body.outputs_struct, outputs),
                name=name,
            )
        if not model.trainable:  # setting it sets it for all layers inside
            result.trainable = False
        return result

    def _sequential(self, name: str, body: Body, tensor: Any) -> keras.Sequential:
        # Operations between the layers make masks, which are made anew.
        layers = [self._operation(node) for node in body.nodes if isinstance(node.operation, keras.layers.Layer)]
        result = keras.Sequential([tensor, *(layer for layer, _ in layers)], name=name)
        for _, finish in layers:
            finish()
        return result

    def _name(self, operation: Any) -> str:
        return self.names.get(id(operation), operation.name)

    def _node(self, node: Any, tensors: dict[int, Any]) -> None:
        """Call what a node became; nodes whose outputs nobody needs are passed over."""
        nested = id(node) in self.boundaries
        call = self.calls.get(id(node))
        if not nested and (call is None or all(self.new.empty(value) for value in call.outputs)):
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
        elif nested and body_of(node.operation) is None and not self._as_itself(node):
            result = self._call(node, lambda operation: operation(left))
        else:
            result = self._rewritten(node, call, left)
            if result is None:
                args, kwargs = node.arguments.fill_in(tensors)
                if call is not None and call.arrays:
                    args, kwargs = self._arrays(call, args, kwargs)
                result = self._call(node, lambda operation: operation(*args, **kwargs))
        for old, new in zip(node.outputs, keras.tree.flatten(result), strict=True):
            if new is not None:
                # An operation drops masks; what stands in its place must, too.
                tensors[id(old)] = keras.ops.copy(new) if has_mask(new) and not has_mask(old) else new

    def _rewritten(self, node: Any, call: Call | None, tensors: list[Any]) -> Any:
        """What a call is written as where it cannot stay as it is; None where it can."""
        if call is None or not self._is_rewritten(call):
            return None
        assert call.rewrite is not None
        return call.rewrite(self.new, node.operation, tensors)

    def _is_rewritten(self, call: Call) -> bool:
        return call.rewrite is not None and any(map(self.new.narrowed, (*call.inputs, *call.outputs)))

    def _call(self, node: Any, call: Callable[[Any], Any]) -> Any:
        operation, finish = self._operation(node)
        result = call(operation)
        finish()
        return result

    def _operation(self, node: Any) -> tuple[Any, Callable[[], None]]:
        """The new layer or operation, and what to do once it has been called."""
        operation, boundary = node.operation, self.boundaries.get(id(node))
        apart = boundary is not None and not self._as_itself(node)
        key = (id(operation), id(boundary.body)) if boundary and apart and body_of(operation) is None else id(operation)
        known = self.rebuilt.get(key)
        if known is not None:
            return known, lambda: None
        finish: Callable[[], None] = lambda: None  # noqa: E731
        if boundary is not None and apart:
            result = self.model(operation, boundary.body, boundary)
        elif isinstance(operation, keras.layers.Layer):
            result, finish = self._layer(operation, self._settings(node))
        else:
            result = again(operation)
            for name, value in {**self._settings(node), "name": self._name(operation)}.items():
                setattr(result, name, value)
        self.rebuilt[key] = result
        return result, finish

    def _settings(self, node: Any) -> dict[str, Any]:
        call = self.calls.get(id(node))
        return {} if call is None or call.configure is None else call.configure(self.new)

    # -- composite layers: as themselves where nothing in them has to be written differently, in parts elsewhere -----

    def _composites(self) -> dict[int, list[Boundary]]:
        """The calls of layers that have been expanded, if all their weights are used in them alone."""
        found: dict[int, list[Boundary]] = {}
        for boundary in self.graph.boundaries:
            if body_of(boundary.origin.operation) is None:
                found.setdefault(id(boundary.origin.operation), []).append(boundary)
        users: dict[int, set[int]] = {}
        if found and self.graph.body is not None:
            self._note_users(self.graph.body, frozenset(), users)
        return {
            number: calls
            for number, calls in found.items()
            if all(number in users.get(id(variable), {number}) for variable in calls[0].origin.operation.weights)
        }

    def _note_users(self, body: Body, around: frozenset[int], users: dict[int, set[int]]) -> None:
        """variable -> the operations that hold each of its uses."""
        for node in body.nodes:
            boundary, within = self.boundaries.get(id(node)), around | {id(node.operation)}
            if boundary is not None:
                self._note_users(boundary.body, within, users)
            elif isinstance(node.operation, keras.layers.Layer):
                for variable in node.operation.weights:
                    users.setdefault(id(variable), set(within)).intersection_update(within)

    def _as_itself(self, node: Any) -> bool:
        """Whether a composite layer can be made again from its own class and configuration."""
        operation = node.operation
        if body_of(operation) is not None or id(operation) not in self.composites:
            return False
        known = self.rebuilt.get(("as itself", id(operation)))
        if known is None:
            bodies = [boundary.body for boundary in self.composites[id(operation)]]
            known = all(map(self._stays, bodies)) and (
                any(body.training for body in bodies) or self._can_be_made(operation)
            )
            narrow = [b for b in self.composites[id(operation)] if known and self._narrowed(b)]
            known = known and all(self._follows(operation, boundary) for boundary in narrow)
            self.rebuilt["as itself", id(operation)] = known
        return known

    def _stays(self, body: Body) -> bool:
        """Whether every call in it is made, with the same settings and weights of the same shapes."""
        for node in body.nodes:
            boundary, call, operation = self.boundaries.get(id(node)), self.calls.get(id(node)), node.operation
            if boundary is not None:
                if not self._stays(boundary.body):
                    return False
                continue
            if call is None or id(node) in self.replacements or any(self.new.empty(value) for value in call.outputs):
                return False
            if self._is_rewritten(call):
                return False
            if isinstance(operation, keras.layers.Layer):
                if self._new_bias(operation) is not None or not all(map(self._same_shape, operation.weights)):
                    return False
                settings = self._settings(node)
                config = operation.get_config() if settings else {}
                if any(not equal_settings(_get(config, name, value), value) for name, value in settings.items()):
                    return False
        return True

    def _same_shape(self, variable: Any) -> bool:
        weight = self.weights.get(id(variable))
        slots = self.slots.get(weight, ()) if weight is not None else ()
        return all(self.new.indices[slot.weight, slot.role].size == slot.labels.size for slot in slots)

    def _can_be_made(self, layer: Any) -> bool:
        try:
            made(layer, configuration(layer))
        except TraceError:
            return False
        return True

    def _narrowed(self, boundary: Boundary) -> bool:
        """Whether anything that a composite computes with has become narrower."""
        values = [*boundary.inputs, *boundary.outputs]
        for node in boundary.body.nodes:
            call, inner = self.calls.get(id(node)), self.boundaries.get(id(node))
            values += (*call.inputs, *call.outputs) if call is not None else ()
            if inner is not None and self._narrowed(inner):
                return True
        return any(map(self.new.narrowed, values))

    def _follows(self, layer: Any, boundary: Boundary) -> bool:
        """Whether a layer's `call` does on narrower tensors what it has to: it could compute with their widths."""
        if layer.weights or any(id(node) in self.boundaries for node in boundary.body.nodes):
            return False
        node = boundary.origin
        shapes = iter([self.new.shape(value) for value in boundary.inputs])
        args, kwargs = keras.tree.map_structure(
            lambda x: (
                keras.KerasTensor((x.shape[0], *next(shapes)), x.dtype) if isinstance(x, keras.KerasTensor) else x
            ),
            (node.arguments.args, node.arguments.kwargs),
        )
        found = expand(made(layer, configuration(layer)), args, kwargs)
        return isinstance(found, Body) and alike(boundary.body, found, self._settings, self._arguments)

    def _arguments(self, node: Any) -> tuple[Any, Any]:
        call = self.calls[id(node)]
        args, kwargs = node.arguments.args, node.arguments.kwargs
        return self._arrays(call, args, kwargs) if call.arrays else (args, kwargs)

    # -- layers and their arrays ----------------------------------------------------------------------------------

    def _layer(self, layer: Any, settings: dict[str, Any]) -> tuple[Any, Callable[[], None]]:
        arrays = [self._array(variable) for variable in layer.weights]
        names = [variable.name for variable in layer.weights]
        named = dict(zip(names, arrays, strict=True))
        config = configuration(layer)
        bias = self._new_bias(layer)
        if bias is not None:
            config["use_bias"], named["bias"] = True, bias
        for name, value in {**settings, "name": self._name(layer)}.items():
            _set(config, name, value)
        with _policy(next(iter(layer._flatten_layers(include_self=False)), layer).dtype_policy):
            result = made(layer, config)
        result.name = self._name(layer)  # not every configuration has it
        _name_alike(layer, result)
        self._share(layer, result)
        self.pairs.append((layer, result))
        if not names:
            return result, lambda: None
        # Weights without names are numbered as they are made: another number each time.
        if max(Counter(names).values()) > 1 or any(re.fullmatch(r"variable(_\d+)?", name) for name in names):
            finish: Callable[[], None] = lambda: result.set_weights(arrays)  # noqa: E731
        else:
            finish = _give(result, named, layer)

        def finish_all() -> None:
            _build_alike(layer, result)
            _name_alike(layer, result)
            finish()
            _freeze_alike(layer, result)

        return result, finish_all

    def _share(self, old: Any, new: Any) -> None:
        """Hand a layer those of its layers that others use too, as far as they are there."""
        for name, value in list(vars(old).items()):
            if isinstance(value, keras.layers.Layer) and id(value) in self.rebuilt and hasattr(new, name):
                delattr(new, name)
                setattr(new, name, self.rebuilt[id(value)])

    def origins(self) -> tuple[tuple[Any, Any], ...]:
        """(new variable, old variable), for all that is left."""
        found: list[tuple[Any, Any]] = []
        for old, new in self.pairs:
            named = {variable.name: variable for variable in old.weights}
            if len(named) == len(old.weights):
                found += [(variable, named[variable.name]) for variable in new.weights if variable.name in named]
            else:
                found += zip(new.weights, old.weights, strict=True)
        return tuple(found)

    def narrowed(self, variable: Any, array: NDArray) -> NDArray:
        """What is left of an array that is laid out as one of the old variables is."""
        weight = self.weights.get(id(variable))
        slots = self.slots.get(weight) if weight is not None else None
        return array if slots is None else take(array, slots, self.new)

    def _array(self, variable: Any) -> NDArray:
        weight = self.weights.get(id(variable))
        if weight is None:
            return numbers(variable)
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
        # A lambda is written as its `value`, in bytes.
        is_function = isinstance(value, dict) and (value.get("class_name") == "function" or "value" in value)
        if is_function and callable(getattr(layer, name, None)):
            config[name] = getattr(layer, name)
    if config.get("vocabulary", "") is None and config.get("output_mode") != "tf_idf":
        # A vocabulary that was adapted to data is no setting, and no weight.
        config["vocabulary"] = layer.get_vocabulary(include_special_tokens=False) or None
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
    config = _unbuilt(config)
    try:
        # What is in memory already may hold Python code.
        with serialization_lib.SafeModeScope(False):
            try:
                return type(layer).from_config(config)
            except Exception:
                taken = _taken(type(layer))
                if config.keys() <= taken:
                    raise
                # Some layers write more into their configuration than they take.
                return type(layer).from_config({name: value for name, value in config.items() if name in taken})
    except Exception as error:
        raise TraceError(
            f"{layer.name}, a {type(layer).__name__}, cannot be made again from its get_config(), which the stripped "
            f"model needs: {error}"
        ) from error


def _taken(layer_class: Any) -> set[str]:
    """The names of all arguments that a class, or one it is made of, takes."""
    inits = [cls.__init__ for cls in layer_class.__mro__ if "__init__" in vars(cls) and cls is not object]
    return {name for init in inits for name in inspect.signature(init).parameters}


def _unbuilt(config: Any) -> Any:
    """A configuration in which the layers inside do not know what they were built for."""
    if isinstance(config, dict):
        nested = "class_name" in config and "config" in config
        return {key: _unbuilt(value) for key, value in config.items() if not (nested and key == "build_config")}
    return [_unbuilt(value) for value in config] if isinstance(config, list) else config


def _get(config: dict[str, Any], name: str, default: Any) -> Any:
    """A setting as `_set` names it; `default` for what is no setting."""
    outer, _, inner = name.partition("/")
    if inner and isinstance(config.get(outer), dict):
        return _get(config[outer]["config"], inner, default)
    return config.get(outer, default)


def _name_alike(old: Any, new: Any) -> None:
    """Call the layers inside as they are called in the old layer, where Keras has numbered them."""
    pairs = list(zip(old._flatten_layers(), new._flatten_layers(), strict=False))[1:]
    if all(type(before) is type(after) for before, after in pairs):
        for before, after in pairs:
            after.name = before.name


def _build_alike(old: Any, new: Any) -> None:
    """Build the layers inside that the symbolic call has not reached."""
    for before, after in zip(old._flatten_layers(), new._flatten_layers(), strict=False):
        if before.built and not after.built:
            after.build_from_config(before.get_build_config())


def _freeze_alike(old: Any, new: Any) -> None:
    """Freeze the layers inside that are frozen in the old layer: its own configuration does not say."""
    for before, after in zip(old._flatten_layers(), new._flatten_layers(), strict=False):
        if after.trainable and not before.trainable:
            after.trainable = False


@contextlib.contextmanager
def _policy(policy: Any) -> Iterator[None]:
    """Make layers that are not told otherwise, those inside of other layers, in the types of the old ones."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


@contextlib.contextmanager
def _recursion(calls: int) -> Iterator[None]:
    """Keras walks a functional graph by recursion: allow for a long one."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, 10_000, 20 * calls))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Building layers makes many objects that stay: looking through them again and again takes longer each time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _distinguish(inputs: list[Any], outputs: list[Any]) -> None:
    """Give operations that a call was written anew with names that no other has."""
    taken = {layer.name: layer for layer in (tensor._keras_history.operation for tensor in inputs)}
    operations = [node.operation for node in ordered(outputs, inputs)]
    for operation in sorted(operations, key=lambda one: not isinstance(one, keras.layers.Layer)):
        name = distinct(operation, taken)
        if not isinstance(operation, keras.layers.Layer):
            operation.name = name


def _connected(inputs: list[Any], outputs: list[Any], body: Body, model: str) -> list[Any]:
    """The outputs, none of them an input of which nothing is left but itself.

    Keras takes what a model returns for made by it, wherever it is called: an input returned as it is would come from
    itself. And Keras before 3.14 wants every input to be used by some layer.

    Raises:
        TfpruneError: such a Keras, and an input that nothing needs any more.
    """
    old_inputs, given = {id(tensor) for tensor in body.inputs}, {id(tensor) for tensor in inputs}
    through = [id(new) in given and id(old) not in old_inputs for old, new in zip(body.outputs, outputs, strict=True)]
    outputs = [keras.layers.Identity()(new) if alone else new for new, alone in zip(outputs, through, strict=True)]
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

        def initializer(shape, dtype=None, **_):
            # Keras would take an array of another shape.
            if tuple(shape) != array.shape:
                raise TfpruneError(
                    f"{old.name}/{kwargs['name']} is made with shape {tuple(shape)} in the smaller model, and "
                    f"{array.shape} is left of it: the rule for {type(old).__name__} does not set a width that follows"
                )
            return handed_over(array)

        return original(*args, **{**kwargs, "initializer": initializer})

    layer.__dict__["add_weight"] = add_weight

    def finish() -> None:
        layer.__dict__.pop("add_weight", None)
        for variable in layer.weights:
            if variable.name not in given:
                variable.assign(arrays[variable.name])
        arrays.clear()

    return finish
