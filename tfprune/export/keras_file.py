"""Keras' own format: one .keras file."""

from __future__ import annotations

from pathlib import Path

import keras

from tfprune.export.names import functional
from tfprune.export.registry import Exporter, Options, Runner, register
from tfprune.keras_graph.expand import viewed
from tfprune.verify import run


def write(model: keras.Model, path: Path, options: Options) -> None:
    """Save the model with its architecture and weights."""
    viewed(model).save(path)


def load(path: Path, options: Options) -> Runner:
    """Load with `keras.models.load_model`; the file was written by this process, so its Lambda layers are trusted."""
    model = functional(keras.models.load_model(path, compile=False, safe_mode=False))
    return lambda arrays: run(model, arrays)


register(Exporter("keras", ".keras", write, load, tensorflow_backend=False))
