"""The same model in another precision or with other input shapes: a clone with the same weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from tfprune.errors import ExportError

_COARSE = ("float16", "bfloat16")


def in_float32(model: keras.Model) -> keras.Model:
    """A model that computes in float32 throughout: itself, if it does, or a clone with the weights of `model`."""
    if not any(_coarse(layer) for layer in model._flatten_layers()):
        return model
    return _clone(model, [(x.shape, "float32" if str(x.dtype) in _COARSE else x.dtype) for x in model.inputs], _widened)


def with_shapes(model: keras.Model, shapes: Mapping[str, Sequence[int | None]], names: Sequence[str]) -> keras.Model:
    """A model that takes other shapes, by the names of its inputs: itself, if none differs.

    Raises:
        ExportError: a name is unknown, a rank differs, or the layers do not take the shape.
    """
    unknown = sorted(set(shapes) - set(names))
    if unknown:
        raise ExportError(f"shapes names {', '.join(unknown)}, but the inputs of {model.name!r} are {', '.join(names)}")
    wanted = [tuple(shapes.get(name, x.shape)) for name, x in zip(names, model.inputs, strict=True)]
    for name, shape, x in zip(names, wanted, model.inputs, strict=True):
        good = all(size is None or (isinstance(size, int) and size > 0) for size in shape)
        if len(shape) != len(x.shape) or not good:
            raise ExportError(
                f"shapes[{name!r}] must have {len(x.shape)} axes with the batch, each a number or None for unknown, "
                f"like {tuple(x.shape)}; got {shape}"
            )
    if wanted == [tuple(x.shape) for x in model.inputs]:
        return model
    try:
        return _clone(model, [(shape, x.dtype) for shape, x in zip(wanted, model.inputs, strict=True)])
    except ExportError:
        raise
    except Exception as error:
        told = ", ".join(f"{name} {shape}" for name, shape in zip(names, wanted, strict=True))
        reason = str(error).strip().splitlines()
        raise ExportError(
            f"{model.name!r} does not take inputs of the shapes asked for ({told}): {reason[0] if reason else error}"
        ) from error


def _clone(model: keras.Model, specs: list[tuple[Any, Any]], changed: Any = lambda config: config) -> keras.Model:
    def again(layer: keras.layers.Layer) -> keras.layers.Layer:
        return type(layer).from_config(changed(layer.get_config()))

    names = [x._keras_history.operation.name for x in model.inputs]
    fresh = [
        keras.Input(batch_shape=shape, dtype=dtype, name=name)
        for (shape, dtype), name in zip(specs, names, strict=True)
    ]
    packed = keras.tree.pack_sequence_as(model._inputs_struct, fresh)
    clone = keras.models.clone_model(model, input_tensors=packed, clone_function=again)
    if len(clone.variables) != len(model.variables):
        raise ExportError(
            f"{model.name!r}: a layer does not make the same weights again from its get_config; "
            f"{len(model.variables)} weights became {len(clone.variables)}"
        )
    for new, old in zip(clone.variables, model.variables, strict=True):
        new.assign(keras.ops.cast(old, new.dtype))
    return clone


def _coarse(layer: keras.layers.Layer) -> bool:
    return _low(layer.dtype_policy)


def _widened(config: Any) -> Any:
    """A layer's config with float32 wherever it says how to compute, at any depth."""
    if isinstance(config, keras.DTypePolicy):
        return "float32" if _low(config) else config
    if isinstance(config, dict):
        if config.get("class_name") == "DTypePolicy":
            policy = keras.saving.deserialize_keras_object(config)
            return keras.saving.serialize_keras_object(keras.DTypePolicy("float32")) if _low(policy) else config
        return {
            key: "float32" if key == "dtype" and isinstance(value, str) and value.endswith(_COARSE) else _widened(value)
            for key, value in config.items()
        }
    if isinstance(config, list | tuple):
        return type(config)(_widened(value) for value in config)
    return config


def _low(policy: Any) -> bool:
    return str(policy.compute_dtype) in _COARSE or str(policy.variable_dtype) in _COARSE
