"""What a model's inputs and outputs are called in an exported file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import keras

from tfprune.errors import ExportError, TraceError
from tfprune.keras_graph.expand import functional_view


def functional(model: keras.Model) -> keras.Model:
    """The model as a functional one: a `Sequential` or subclassed model is wrapped, others are returned as they are.

    Raises:
        ExportError: the model has no symbolic inputs and can get none.
    """
    try:
        return functional_view(model)
    except TraceError as error:
        raise ExportError(f"export needs a model with symbolic inputs: {error}") from error


def input_names(model: keras.Model, asked: Sequence[str] | None = None) -> tuple[str, ...]:
    """The names of the inputs: `asked`, or those of the `keras.Input`s, in the order of `model.inputs`.

    >>> image = keras.Input((4,), name="image")
    >>> input_names(keras.Model(image, keras.layers.Dense(2, name="scores")(image)))
    ('image',)

    Raises:
        ExportError: the number of names asked for is not the number of inputs, or one is taken or not valid.
    """
    if asked is None:
        return unique(tensor._keras_history.operation.name for tensor in model.inputs)
    return _checked(model, "inputs", len(model.inputs), asked, ())


def output_names(
    model: keras.Model, asked: Sequence[str] | None = None, inputs: Sequence[str] | None = None
) -> tuple[str, ...]:
    """The names of the outputs: `asked`, or the names of the layers that make them, unique among inputs and outputs.

    >>> image = keras.Input((4,), name="image")
    >>> output_names(keras.Model(image, [keras.layers.Dense(2, name="scores")(image), image]))
    ('scores', 'image_1')

    Raises:
        ExportError: the number of names asked for is not the number of outputs, or one is taken or not valid.
    """
    taken = input_names(model) if inputs is None else tuple(inputs)
    if asked is None:
        return unique((tensor._keras_history.operation.name for tensor in model.outputs), taken)
    return _checked(model, "outputs", len(model.outputs), asked, taken)


def _checked(model: keras.Model, what: str, count: int, asked: Sequence[str], taken: Sequence[str]) -> tuple[str, ...]:
    asked = (asked,) if isinstance(asked, str) else tuple(asked)
    argument = f"{what[:-1]}_nodes"
    if len(asked) != count:
        raise ExportError(f"{model.name!r} has {count} {what}, but {argument} names {len(asked)}: {asked}")
    if unique(asked, taken=taken) != asked:
        others = f" that no input has (inputs: {', '.join(taken)})" if taken else ""
        raise ExportError(
            f"{argument} must be different names of letters, digits, '_', '.', '-' and '/'{others}; got {asked}"
        )
    return asked


def unique(names: Iterable[str], taken: Iterable[str] = ()) -> tuple[str, ...]:
    """Valid names, made different from each other and from `taken` by appending _1, _2, ..."""
    used, result = set(taken), []
    for name in names:
        # TensorFlow's rule for node names; ONNX and SavedModel allow more.
        valid = re.sub(r"[^A-Za-z0-9_./-]", "_", name).lstrip("_/-") or "tensor"
        free, number = valid, 0
        while free in used:
            number += 1
            free = f"{valid}_{number}"
        used.add(free)
        result.append(free)
    return tuple(result)
