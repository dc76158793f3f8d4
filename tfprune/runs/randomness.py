"""Random numbers that can be drawn again: generators seeded for an epoch, and their states as JSON."""

from __future__ import annotations

import random
import sys
from typing import Any

import keras
import numpy as np
from keras.src.random.seed_generator import global_seed_generator  # has no public name

from tfprune.keras_graph.arrays import numbers


def seed_epoch(seed: int, epoch: int) -> None:
    """Seed the global generators of Python, NumPy, Keras and its backend for an epoch, the same in every process.

    Seeds that layers hold for themselves (those of `Dropout`) are not touched: they are part of a model's state.
    """
    number = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
    # Keras draws from Python's generator to make its own, where there is none yet: so that comes first.
    generator = global_seed_generator()
    random.seed(number)
    np.random.seed(number)
    # In place: what has been compiled with this generator goes on with it.
    generator.state.assign(np.array([number % 2**31, 0], generator.state.dtype))
    if "tensorflow" in sys.modules:
        sys.modules["tensorflow"].random.set_seed(number)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(number)


def layer_seeds(model: keras.Model) -> list[list[int]]:
    """The seeds that layers such as Dropout hold; Keras' files leave them out."""
    return [numbers(variable).tolist() for variable in _seeds(model)]


def set_layer_seeds(model: keras.Model, seeds: list[list[int]]) -> None:
    """Put them back."""
    for variable, seed in zip(_seeds(model), seeds, strict=True):
        variable.assign(np.array(seed, variable.dtype))


def _seeds(model: keras.Model) -> list[Any]:
    return [variable for variable in model.non_trainable_variables if variable.path.endswith("seed_generator_state")]


def random_state() -> dict[str, Any]:
    """Where the global generators of Python, NumPy, Keras and PyTorch are, as JSON. TensorFlow does not tell."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    found: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), int(position), int(has_gauss), float(gauss)],
        "keras": numbers(global_seed_generator().state).tolist(),
    }
    if "torch" in sys.modules:
        found["torch"] = bytes(sys.modules["torch"].get_rng_state().tolist()).hex()
    return found


def set_random_state(state: dict[str, Any]) -> None:
    """Put the generators to where `random_state` found them."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, np.uint32), *rest))
    generator = global_seed_generator()
    generator.state.assign(np.array(state["keras"], generator.state.dtype))
    if "torch" in state and "torch" in sys.modules:
        torch = sys.modules["torch"]
        torch.set_rng_state(torch.tensor(list(bytes.fromhex(state["torch"])), dtype=torch.uint8))
