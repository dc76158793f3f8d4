"""What the benchmarks of keras.applications share: models whose outputs depend on their inputs, and clocks."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent.parent))

import keras
import numpy as np

MB = 2**20


def application(name: str, size: int | None = None) -> keras.Model:
    """A `lively` model of keras.applications with its classifier and without its softmax.

    Args:
        size: of the images; by default what the architecture was published with.
    """
    build = getattr(keras.applications, name)
    shape = None if size is None else (size, size, 3)
    return lively(build(weights=None, input_shape=shape, classifier_activation=None))


def lively(model: keras.Model, seed: int = 0) -> keras.Model:
    """Random weights in place, such that the outputs depend on the inputs; kernels keep the scale of what passes.

    The shift of a BatchNormalization is twice its scale. With shifts near 0 every ReLU cuts through the middle of what
    comes, and a deep network makes 1 out of a rounding error.
    """
    generator = np.random.default_rng(seed)
    kinds: dict[str, set[str]] = {}
    for where, _, kind in (variable.path.rpartition("/") for variable in model.weights):
        kinds.setdefault(where, set()).add(kind)
    for variable in model.weights:
        (where, _, kind), shape = variable.path.rpartition("/"), tuple(variable.shape)
        batch = "moving_mean" in kinds[where]
        if kind == "gamma" or kind.startswith("variable"):  # ConvNeXt's LayerScale does not name its own
            variable.assign(generator.uniform(0.5, 1.5, shape) * (0.5 if batch else 1))
        elif kind in ("beta", "bias"):
            variable.assign(generator.normal(0, (1 if "gamma" in kinds[where] else 2) if batch else 0.1, shape))
        elif kind.endswith("kernel"):
            inputs = np.prod(shape[:2] if "depthwise" in kind else shape[:-1])
            variable.assign(generator.standard_normal(shape, np.float32) * np.float32((2 / inputs) ** 0.5))
    return calibrated(model, seed)


def calibrated(model: keras.Model, seed: int = 0) -> keras.Model:
    """Moving statistics in place: layer by layer those of two images, moved at random by about a fifth of a deviation.

    With statistics that are random alone a deep network's signal dies out: MobileNet's outputs for two images then
    agree to 1e-8, and a comparison of two models shows nothing. With those of one image they are far off for another,
    and EfficientNetB7 makes 1 out of a rounding error. Soft pruning weakens the signal, so this is done again after
    it. A zeroed channel gets random statistics: those of a trained model would be stale ones.
    """
    generator = np.random.default_rng(seed)
    plain = keras.layers.BatchNormalization.call

    def call(layer, inputs, training=None, mask=None):
        momentum, layer.momentum = layer.momentum, 0.0
        plain(layer, inputs, training=True)
        layer.momentum = momentum
        mean, variance = np.array(layer.moving_mean), np.array(layer.moving_variance)
        variance = np.where(variance > 0, variance, 1)
        layer.moving_mean.assign(mean + generator.normal(0, 0.2, mean.shape) * np.sqrt(variance))
        layer.moving_variance.assign(variance * generator.uniform(0.8, 1.25, variance.shape))
        return plain(layer, inputs, training=False)

    keras.layers.BatchNormalization.call = call
    try:
        model(images(model, seed=99, samples=2), training=False)
    finally:
        keras.layers.BatchNormalization.call = plain
    return model


def images(model: keras.Model, seed: int, samples: int = 1) -> list[np.ndarray]:
    """Random images for a model with one input, in the range that it takes: patches, most of them common, and noise."""
    generator = np.random.default_rng(seed)
    tensor = model.inputs[0]
    height, width, channels = (size or 224 for size in tensor.shape[1:])  # MobileNetV3 takes any size
    common = np.random.default_rng(0).standard_normal((1, 4, 4, channels))
    patches = common + 0.4 * generator.standard_normal((samples, 4, 4, channels))
    patches = patches.repeat(-(-height // 4), axis=1).repeat(-(-width // 4), axis=2)[:, :height, :width]
    image = patches + 0.6 * generator.standard_normal((samples, height, width, channels))
    own = (keras.layers.Rescaling, keras.layers.Normalization)  # it takes 0 to 255 and scales them itself
    if any(isinstance(layer, own) for layer in model.layers):
        image = 127.5 + 50 * image
    return [image.astype(tensor.dtype)]


def cloned(model: keras.Model) -> keras.Model:
    """What a rebuild is measured against: clone_model with its weights copied."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


def timed(act: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what came out."""
    start = time.perf_counter()
    result = act()
    return time.perf_counter() - start, result


def median(times: int, act: Callable[[], Any]) -> float:
    """The median of the seconds of several runs."""
    return statistics.median(timed(act)[0] for _ in range(times))


def resident(which: str = "VmRSS") -> int:
    """The process' resident memory in bytes; with `VmHWM` the highest it has been. 0 where there is no /proc."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return int(status.split(which + ":")[1].split()[0]) * 1024


def peak_growth(act: Callable[[], Any]) -> tuple[float, Any]:
    """By how many MB the resident memory rises at its highest, and what came out."""
    before = resident()
    if before:
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    result = act()
    return (resident("VmHWM") - before) / MB, result


def change(before: float, after: float, unit: float = 1) -> str:
    """`before -> after` in a unit."""
    return f"{before / unit:.3f} -> {after / unit:.3f}"


def progress(text: str) -> None:
    """A line on standard error."""
    print(text, file=sys.stderr, flush=True)
