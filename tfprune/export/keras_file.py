"""Keras' own format: one .keras file, and one with int8 weights (`model.quantize`)."""

from __future__ import annotations

import warnings
from pathlib import Path

import keras

from tfprune.errors import ExportError
from tfprune.export.device import keras_model
from tfprune.export.difference import Limits
from tfprune.export.names import functional
from tfprune.export.registry import Exporter, Options, Runner, register
from tfprune.keras_graph.expand import viewed
from tfprune.verify import run

#: The norm of the difference that int8 may make, of the outputs' norm.
INT8 = 0.1


def write(model: keras.Model, path: Path, options: Options) -> None:
    """Save the model with its architecture and weights."""
    viewed(model).save(path)


def load(path: Path, options: Options) -> Runner:
    """Load with `keras.models.load_model`; the file was written by this process, so its Lambda layers are trusted."""
    model = functional(keras.models.load_model(path, compile=False, safe_mode=False))
    return lambda arrays: run(model, arrays)


def write_int8(model: keras.Model, path: Path, options: Options) -> None:
    """Save a copy whose layers that Keras can quantize hold int8 weights and quantize what they are given.

    Raises:
        ExportError: there is no such layer; Keras knows Dense, EinsumDense and Embedding, and no convolutions.
    """
    copy = keras.models.clone_model(model)
    for new, old in zip(copy.variables, model.variables, strict=True):
        new.assign(old)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have a `quantize` method")
        copy.quantize("int8")
    if not any(getattr(layer, "quantization_mode", None) == "int8" for layer in copy._flatten_layers()):
        kinds = sorted({type(layer).__name__ for layer in model._flatten_layers() if layer.weights})
        raise ExportError(
            f"Keras quantizes Dense, EinsumDense and Embedding layers; {model.name!r} has none of them ({kinds}). "
            f"tflite_dynamic and tflite_int8 quantize convolutions too"
        )
    copy.save(path)


def limits_int8(model: keras.Model, options: Options) -> Limits:
    """Weights and activations rounded to one in 255: a tenth of the outputs' norm."""
    return Limits(noise=INT8)


register(Exporter("keras", ".keras", write, load, tensorflow_backend=False, device=keras_model, needs_code=True))
register(
    Exporter(
        "keras_int8",
        ".int8.keras",
        write_int8,
        load,
        tensorflow_backend=False,
        device=keras_model,
        needs_code=True,
        limits=limits_int8,
    )
)
