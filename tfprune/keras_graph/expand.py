"""What a model or a layer computes, as calls between symbolic tensors.

A functional model has such a graph. A layer or a model with Python code of its own is *expanded*: its `call` is run
once on fresh symbolic tensors, and nothing of that stays on it.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
from keras.src.backend.common import global_state

from tfprune.errors import TraceError
from tfprune.keras_graph.lowering import Refused, find_rule


@dataclass(frozen=True, eq=False)
class Body:
    """Calls between symbolic tensors.

    Attributes:
        nodes: the calls, in an order in which they can run.
        inputs_struct, outputs_struct: the tensors as they are passed and returned: alone, or in lists and dictionaries.
        training: whether Python code in it asks if this is training; the calls are those of inference.
    """

    nodes: tuple[Any, ...]
    inputs_struct: Any
    outputs_struct: Any
    training: bool = False

    @functools.cached_property
    def names(self) -> dict[int, str]:
        """id of an operation -> its name here; Python code may use layers of the same name, a model may not."""
        taken: dict[str, Any] = {}
        return {id(node.operation): distinct(node.operation, taken) for node in self.nodes}

    @property
    def inputs(self) -> list[Any]:
        return [one for one in keras.tree.flatten(self.inputs_struct) if isinstance(one, keras.KerasTensor)]

    @property
    def outputs(self) -> list[Any]:
        return keras.tree.flatten(self.outputs_struct)


def distinct(operation: Any, taken: dict[str, Any]) -> str:
    """The operation's name, with a number if another operation has it; noted in `taken`."""
    name, number = operation.name, 0
    while taken.setdefault(name, operation) is not operation:
        number += 1
        name = f"{operation.name}_{number}"
    return name


#: Stands for the batch size where Python code wants a number: a prime that is no width.
BATCH = 1009


# ---------------------------------------------------------------------- graphs that are there


def body_of(model: Any) -> Body | None:
    """The graph of a Functional or built Sequential model; None for a layer, or a model with its own `call`."""
    functional = None
    if isinstance(model, keras.Sequential):
        if type(model).call is keras.Sequential.call:
            functional = getattr(model, "_functional", None)
    elif isinstance(model, keras.Model) and hasattr(model, "_nodes_by_depth") and _keeps_functional_call(type(model)):
        functional = model
    if functional is None:
        return None
    by_depth = functional._nodes_by_depth
    nodes = [
        node
        for depth in sorted(by_depth, reverse=True)
        for node in by_depth[depth]
        if node.operation and not node.is_input
    ]
    return Body(tuple(nodes), functional._inputs_struct, functional._outputs_struct)


def _keeps_functional_call(cls: Any) -> bool:
    """Whether a model class still runs its graph: Keras' Functional has no public name."""
    bases = [base for base in cls.__mro__ if base.__name__ == "Functional" and base.__module__.startswith("keras.")]
    return bool(bases) and cls.call is bases[0].call


# ---------------------------------------------------------------------- any model


def whole(model: Any, inputs: Any = None) -> Body:
    """The graph of any model.

    Args:
        model: a built Sequential or Functional model, or one with a `call` of its own.
        inputs: see `input_structure`.

    Raises:
        TraceError: it is not a Keras model, is not built, or its `call` does not work on symbolic tensors.
    """
    if not isinstance(model, keras.Model):
        raise TraceError(f"a keras.Model is needed, and a {type(model).__name__} came")
    body = body_of(model)
    if body is not None:
        return body
    if isinstance(model, keras.Sequential) and type(model).call is keras.Sequential.call:
        raise TraceError(
            f"the Sequential model {model.name!r} is not built, so its shapes are unknown; "
            f"start it with keras.Input(shape) or call model.build(input_shape)"
        )
    structure = input_structure(model, inputs)
    if not model.built:
        with _left_alone(model), _explained(model):
            model(_fresh_inputs(structure))
    found = expand(model, (structure,), {}, inside=False)
    if isinstance(found, Refused):
        raise TraceError(_no_graph(model, found))
    (argument,), _ = found.inputs_struct
    return replace(found, inputs_struct=argument)


#: What models with a `call` of their own are called with, where the user has said so.
_inputs_of: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def input_structure(model: Any, inputs: Any = None) -> Any:
    """The symbolic tensors that a model is called with, alone or in the lists and dictionaries it takes.

    Args:
        model: any model.
        inputs: for a model with a `call` of its own: `keras.Input`s, or shapes without the batch axis, in the structure
            it takes; remembered for the model. None: what was said before, or the shapes of its first call, of which
            Keras keeps no types: what only embeddings read counts as int32, all else as float.

    Raises:
        TraceError: they are not known.
    """
    body = body_of(model)
    if body is not None:
        return body.inputs_struct
    needed = [
        parameter.name
        for parameter in inspect.signature(model.call).parameters.values()
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
    ]
    if len(needed) != 1:
        raise TraceError(
            f"{type(model).__name__} {model.name!r} is called with {len(needed)} arguments ({', '.join(needed)}), and "
            f"tfprune follows models that take one; have it take a list or dictionary, as fit and predict need it"
        )
    if inputs is not None:
        _inputs_of[model] = _specifications(inputs, lambda shape: (None, *shape), model)
    if model in _inputs_of:
        return _inputs_of[model]
    shapes = getattr(model, "_build_shapes_dict", None) or {}
    if not shapes:
        raise TraceError(
            f"{type(model).__name__} {model.name!r} has a `call` of its own and is not built, so its inputs are "
            f"unknown; call it once on data, or say what it is called with: "
            f"tfprune.trace(model, inputs=keras.Input(shape))"
        )
    structure = _specifications(next(iter(shapes.values())), lambda shape: (None, *shape[1:]), model)
    found = expand(model, (structure,), {}, inside=False)
    if not isinstance(found, Refused):
        flat = [
            keras.KerasTensor(tensor.shape, "int32" if _is_looked_up(found, fresh) else tensor.dtype, name=tensor.name)
            for tensor, fresh in zip(keras.tree.flatten(structure), found.inputs, strict=True)
        ]
        structure = keras.tree.pack_sequence_as(structure, flat)
    return structure


def _specifications(
    inputs: Any, with_batch: Callable[[Any], Any], model: Any, name: str = "inputs", key: bool = False
) -> Any:
    """The same structure with a symbolic tensor that belongs to no graph for each tensor or shape."""
    if isinstance(inputs, dict):
        return {word: _specifications(value, with_batch, model, str(word), True) for word, value in inputs.items()}
    if isinstance(inputs, keras.KerasTensor):
        # Keras wants tensors in a dictionary to be named as their keys.
        return keras.KerasTensor(inputs.shape, inputs.dtype, name=name if key else inputs.name)
    if isinstance(inputs, list | tuple) and all(size is None or isinstance(size, int) for size in inputs):
        return keras.KerasTensor(with_batch(inputs), model.variable_dtype, name=name)
    if isinstance(inputs, list | tuple):
        values = [_specifications(one, with_batch, model, f"{name}_{index}") for index, one in enumerate(inputs)]
        return values if isinstance(inputs, list) else tuple(values)
    raise TraceError(f"inputs are keras.Inputs or shapes, in lists and dictionaries, and {inputs!r} came")


def _fresh_inputs(structure: Any) -> Any:
    return keras.tree.map_structure(
        lambda tensor: keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=tensor.name), structure
    )


def functional_view(model: Any) -> Any:
    """A functional model that computes what `model` computes, with its weights: the model itself if it is one.

    Raises:
        TraceError: its inputs are not known, or it does not work on symbolic tensors.
    """
    if isinstance(model, keras.Sequential) and body_of(model) is not None:
        return keras.Model(model.inputs, model.outputs, name=model.name)
    if body_of(model) is not None:
        return model
    whole(model)
    inputs = _fresh_inputs(input_structure(model))
    with _left_alone(model, names=False), _explained(model):
        view = keras.Model(inputs, model(inputs), name=model.name)
    _models[view] = model
    return view


#: view -> the model with a `call` of its own that it shows.
_models: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def viewed(view: Any) -> Any:
    """The model that a functional view shows: one with a `call` of its own is saved as itself."""
    return _models.get(view, view)


def _no_graph(model: Any, why: str) -> str:
    return (
        f"{type(model).__name__} {model.name!r} has a `call` of its own that cannot be followed: {why}; "
        f"build it with the functional API (keras.Model(inputs, outputs)) or of layers that each can be"
    )


@contextlib.contextmanager
def _explained(model: Any) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise TraceError(_no_graph(model, _in_short(error))) from error


def readers(body: Body, tensor: Any) -> Iterator[Any]:
    """The operations that read an input of a graph; nested models and composite layers are looked into."""
    for node in body.nodes:
        for index, given in enumerate(node.input_tensors):
            if given is tensor:
                inner = inside(node)
                if isinstance(inner, Body):
                    yield from readers(inner, inner.inputs[index])
                else:
                    yield node.operation


def _is_looked_up(body: Body, tensor: Any) -> bool:
    found = list(readers(body, tensor))
    return bool(found) and all(isinstance(operation, keras.layers.Embedding) for operation in found)


# ---------------------------------------------------------------------- layers and models with Python code


def inside(node: Any, look: Callable[[Any, Any, Any], Body | Refused] | None = None) -> Body | Refused | None:
    """What a call consists of: a nested model's graph, an expanded layer's; None where a rule knows the operation.

    A `Refused` says why a layer without a rule cannot be looked into. `look` is `expand`, or one that remembers.
    """
    operation = node.operation
    body = body_of(operation)
    if body is not None:
        return body
    if find_rule(operation) is not None or not isinstance(operation, keras.layers.Layer):
        return None
    return (look or expand)(operation, node.arguments.args, node.arguments.kwargs)


def expand(layer: Any, args: Any, kwargs: Any, *, inside: bool = True) -> Body | Refused:
    """Run a layer's `call` on symbolic tensors of the shapes and types that it is called with.

    Args:
        layer: built; it is not changed.
        args, kwargs: the call's arguments, with symbolic tensors among them.
        inside: whether it is part of a model. Then it must do in training what its layers do in training, for it may
            have to be put together again from them.

    Returns:
        its graph at inference, with `(args, kwargs)` as the structure of the inputs; or why there is none.
    """
    parameters = inspect.signature(layer.call).parameters
    if _gets_masks(parameters, args, kwargs):
        return Refused("Keras hands it a mask of its own accord")
    asks = "training" in parameters and len(args) <= list(parameters).index("training")
    found = _run(layer, args, {**kwargs, "training": kwargs.get("training")} if asks else kwargs)
    if isinstance(found, Refused) or not asks or kwargs.get("training"):
        return found
    trained = _run(layer, args, {**kwargs, "training": True})
    own = isinstance(trained, Refused) or not alike(found, trained)
    if own and inside and layer.weights:
        return Refused("its own `call` does other things in training than at inference")
    return replace(found, training=own)


def calls_of(function: Callable[[Any], Any]) -> tuple[Any, ...] | None:
    """The calls that a function of one tensor (an activation) makes, of shape (batch, 5, 7); None if it hides them."""
    layer = keras.layers.Layer()
    layer.call = function
    found = _run_once(layer, (keras.KerasTensor((None, 5, 7)),), {})
    return found.nodes if isinstance(found, Body) else None


def _gets_masks(parameters: Any, args: Any, kwargs: Any) -> bool:
    """Whether Keras fills in masks that go with the tensors."""
    names = [name for name in parameters if name == "mask" or name.endswith("_mask")]
    given = dict(zip(parameters, args, strict=False)) | kwargs
    return any(given.get(name) is None for name in names) and any(
        getattr(tensor, "_keras_mask", None) is not None for tensor in keras.tree.flatten((args, kwargs))
    )


def _run(layer: Any, args: Any, kwargs: Any) -> Body | Refused:
    """The graph with an unknown batch size; with `BATCH` where the code computes with it."""
    found = _run_once(layer, args, kwargs)
    if isinstance(found, Body) and not any(map(_unsettled, found.nodes)):
        return found
    tensors = [one for one in keras.tree.flatten((args, kwargs)) if isinstance(one, keras.KerasTensor)]
    if any(tensor.shape[:1] != (None,) for tensor in tensors):
        return found
    again = _run_once(layer, args, kwargs, BATCH)
    return found if isinstance(again, Refused) else again


def _run_once(layer: Any, args: Any, kwargs: Any, batch: int | None = None) -> Body | Refused:
    inputs: list[Any] = []

    def fresh(argument: Any) -> Any:
        if not isinstance(argument, keras.KerasTensor):
            return argument
        specified = not hasattr(argument, "_keras_history")
        result = keras.Input(
            batch_shape=argument.shape if batch is None else (batch, *argument.shape[1:]),
            dtype=argument.dtype if specified else _type_inside(layer, argument.dtype),
            name=argument.name if specified else None,
        )
        if getattr(argument, "_keras_mask", None) is not None:
            result._keras_mask = keras.KerasTensor(argument._keras_mask.shape, "bool")
        inputs.append(result)
        return result

    watch = _Watch()
    with _left_alone(layer):
        try:
            args, kwargs = keras.tree.map_structure(fresh, (tuple(args), dict(kwargs)))
            with watch:
                outputs = layer.call(*args, **kwargs)
            nodes = ordered(outputs, inputs)
        except _NoGraph as error:
            return Refused(str(error))
        except Exception as error:  # whatever the user's code does
            failed = Refused(f"its `call` does not work on symbolic tensors ({_in_short(error)})")
            return _direct(watch.read) if watch.read else failed
    passed = [
        argument for node in nodes for argument in keras.tree.flatten((node.arguments.args, node.arguments.kwargs))
    ]
    direct = [*watch.read, *(argument for argument in passed if isinstance(argument, keras.Variable))]
    if direct:
        return _direct(direct)
    for node in nodes:
        _settle(node, batch)
    if batch is not None and any(map(_counts, nodes)):
        return Refused("its own `call` computes with the batch size")
    for tensor in (*inputs, *(one for node in nodes for one in node.outputs)):
        if batch is not None and tensor.shape and tensor.shape[0] % batch == 0:
            tensor._shape = (None, *tensor.shape[1:])
    return Body(nodes, (args, kwargs), outputs)


def _direct(variables: list[Any]) -> Refused:
    names = ", ".join(dict.fromkeys(str(variable.path) for variable in variables))
    return Refused(f"its own `call` computes with weights: {names}")


def _unsettled(node: Any) -> bool:
    """Whether a shape is asked for in which the batch size, being unknown, is None."""
    return None in (getattr(node.operation, "newshape", None) or ())


def _settle(node: Any, batch: int | None) -> None:
    """Write the batch in a Reshape as -1, and what Keras has found out for another -1."""
    operation, shape = node.operation, node.outputs[0].shape
    if type(operation).__name__ != "Reshape" or not hasattr(operation, "newshape") or None in shape[1:]:
        return
    if shape[0] is None or (batch and shape[0] % batch == 0):
        operation.newshape = (-1, *shape[1:])


def _counts(node: Any) -> bool:
    """Whether `BATCH` is in the settings of an operation, or in an array that it is given."""
    settings = () if isinstance(node.operation, keras.layers.Layer) else tuple(_public(node.operation).values())
    given = keras.tree.flatten((settings, node.arguments.args, node.arguments.kwargs))
    sizes = [
        size
        for one in given
        if not isinstance(one, keras.KerasTensor)
        for size in ([one] if isinstance(one, int) else tuple(getattr(one, "shape", ())))
    ]
    return any(isinstance(size, int) and size and size % BATCH == 0 for size in sizes)


def _type_inside(layer: Any, dtype: str) -> str:
    """The type in which `call` gets a tensor: Keras casts floats to the layer's."""
    policy, wanted = layer.dtype_policy, layer.input_dtype
    casts = layer._convert_input_args and policy._should_cast(keras.KerasTensor((), dtype), layer.autocast, wanted)
    return wanted if casts else dtype


class _NoGraph(Exception):
    """The outputs are no graph of the inputs."""


def ordered(outputs: Any, inputs: list[Any]) -> tuple[Any, ...]:
    """The calls that lead from inputs to outputs, in an order in which they can run; no recursion, for long models."""
    known = {id(tensor) for tensor in inputs}
    ordered: dict[int, Any] = {}
    for output in keras.tree.flatten(outputs):
        if not isinstance(output, keras.KerasTensor):
            raise _NoGraph(f"its `call` returns {type(output).__name__}, which is no tensor made of its inputs")
        waiting = [output]
        while waiting:
            tensor = waiting[-1]
            operation, index, _ = tensor._keras_history
            node = None if operation is None else operation._inbound_nodes[index]
            if id(tensor) in known or id(node) in ordered:
                waiting.pop()
                continue
            if node is None or node.is_input:
                raise _NoGraph("its `call` uses tensors of another model")
            missing = [t for t in node.input_tensors if id(t) not in known and id(_maker(t)) not in ordered]
            if missing:
                waiting.extend(reversed(missing))
            else:
                ordered[id(node)] = node
                waiting.pop()
    return tuple(ordered.values())


def _maker(tensor: Any) -> Any:
    operation, index, _ = tensor._keras_history
    return None if operation is None else operation._inbound_nodes[index]


class _Watch(keras.StatelessScope):
    """Notes which variables are read. What layers read while they are called symbolically is not seen here.

    Nothing that is assigned inside reaches a variable.
    """

    def __init__(self) -> None:
        super().__init__()
        self.read: list[Any] = []

    def get_current_value(self, variable: Any) -> Any:
        self.read.append(variable)
        return super().get_current_value(variable)


@contextlib.contextmanager
def _left_alone(layer: Any, names: bool = True) -> Iterator[None]:
    """Take back what symbolic calls inside leave on a layer and its layers.

    With `names`, operations made inside are numbered from the start and nothing outside counts them: the same call has
    the same names each time.
    """
    before = [(one, len(one._inbound_nodes), len(one._outbound_nodes)) for one in layer._flatten_layers()]
    counts = global_state.get_global_attribute("object_name_uids")
    if names:
        global_state.set_global_attribute("object_name_uids", defaultdict(int))
    try:
        yield
    finally:
        if names:
            global_state.set_global_attribute("object_name_uids", counts)
        for one, inbound, outbound in before:
            del one._inbound_nodes[inbound:]
            del one._outbound_nodes[outbound:]


def _in_short(error: BaseException) -> str:
    sentence = str(error).strip().partition("\n")[0].partition(". ")[0].rstrip(".: ")
    return f"{type(error).__name__}: {sentence}" if sentence else type(error).__name__


# ---------------------------------------------------------------------- two graphs compared


def alike(
    first: Body,
    second: Body,
    settings: Callable[[Any], dict[str, Any]] = lambda node: {},
    arguments: Callable[[Any], Any] = lambda node: (node.arguments.args, node.arguments.kwargs),
) -> bool:
    """Whether two graphs make the same calls.

    Layers count as the same if they have the same class; `training=None` is as good as `training=True`.

    Args:
        settings: for a call of the first, which settings of its operation are to be different in the second.
        arguments: the call's arguments, as they are to be in the second.
    """
    if len(first.nodes) != len(second.nodes) or len(first.inputs) != len(second.inputs):
        return False
    places = {id(a): id(b) for a, b in zip(first.inputs, second.inputs, strict=True)}
    for a, b in zip(first.nodes, second.nodes, strict=True):
        if type(a.operation) is not type(b.operation) or len(a.outputs) != len(b.outputs):
            return False
        if not isinstance(a.operation, keras.layers.Layer):
            expected = {**_public(a.operation), **settings(a)}
            if not equal_settings(expected, _public(b.operation)):
                return False
        if not _same_arguments(arguments(a), (b.arguments.args, b.arguments.kwargs), places):
            return False
        places.update({id(x): id(y) for x, y in zip(a.outputs, b.outputs, strict=True)})
    ends = zip(first.outputs, second.outputs, strict=False)
    return len(first.outputs) == len(second.outputs) and all(places[id(a)] == id(b) for a, b in ends)


def _same_arguments(first: Any, second: Any, places: dict[int, int]) -> bool:
    (args_a, kwargs_a), (args_b, kwargs_b) = first, second
    if (kwargs_a.get("training"), kwargs_b.get("training")) not in ((None, None), (None, True), (True, True)):
        return False
    a, b = (
        keras.tree.flatten((args, {name: value for name, value in kwargs.items() if name != "training"}))
        for args, kwargs in ((args_a, kwargs_a), (args_b, kwargs_b))
    )
    return len(a) == len(b) and all(
        places.get(id(x)) == id(y) if isinstance(x, keras.KerasTensor) else equal_settings(x, y)
        for x, y in zip(a, b, strict=True)
    )


def _public(operation: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(operation).items() if name[0] != "_" and name != "name"}


def equal_settings(a: Any, b: Any) -> bool:
    """Whether two settings are the same; lists and tuples count as equal."""
    if a is b:
        return True
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal_settings(a[name], b[name]) for name in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(equal_settings(x, y) for x, y in zip(a, b, strict=True))
    try:
        if hasattr(a, "shape") or hasattr(b, "shape"):
            return np.array_equal(keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b))
        return bool(a == b)
    except Exception:  # whatever cannot be compared is different
        return False
