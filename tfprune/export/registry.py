"""The formats a model can be exported to: one value a format, registered by the module that defines it.

To add a format, put a module beside this one that calls `register(Exporter(...))`; nothing else changes.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import keras
import numpy as np

from tfprune.errors import ExportError
from tfprune.export.difference import Limits

#: What `Exporter.load` returns: input arrays in the order of `model.inputs` to outputs in the order of `model.outputs`.
Runner = Callable[[Sequence[np.ndarray]], list[np.ndarray]]


@dataclass(frozen=True)
class Options:
    """What a writer may want to know besides the model.

    Attributes:
        inputs: the name of each input, in the order of `model.inputs`.
        outputs: the name of each output, in the order of `model.outputs`.
        opset: the version of the ONNX operators to write.
        shapes: the shape of each input, None where it is to stay unknown; by default the model's.
        precision: `float32` or `float16`, what an ONNX file computes in.
        layout: `NHWC`, or `NCHW` for images with the channels first.
        representative: samples of real data, an array an input, that full int8 is calibrated with.
        integer_io: whether a full int8 file takes and gives integers.
        metadata: what a format that has room for it says about the model.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opset: int = 17
    shapes: tuple[tuple[int | None, ...], ...] | None = None
    precision: str = "float32"
    layout: str = "NHWC"
    representative: tuple[np.ndarray, ...] | None = None
    integer_io: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)


def _as_they_are(arrays: Sequence[np.ndarray], options: Options) -> list[np.ndarray]:
    return list(arrays)


def _exact(model: keras.Model, options: Options) -> Limits:
    return Limits.of(model)


@dataclass(frozen=True)
class Exporter:
    """One format.

    Attributes:
        name: what the user calls it, such as `onnx`.
        suffix: of the file or directory written, such as `.onnx`.
        write: write(model, path, options) leaves a file or a directory at `path`.
        load: load(path, options) reads it back in the format's own runtime and returns a `Runner`.
        requires: import name to pip name of what `write` and `load` need.
        tensorflow_backend: whether Keras must be running on TensorFlow.
        device: a module of `tfprune.export.device` that reads the file in a process without tfprune; without one, the
            file is read by `load` in this process.
        limits: limits(model, options), how far the file may be from the Keras model; by default by its dtype.
        feed: feed(arrays, options), the inputs as the file takes them.
        plain: whether a model of mixed or low precision is written, and compared, as one that computes in float32.
        calibrated: whether it needs `Options.representative`, and is compared on that instead of on random inputs.
        needs_code: whether the file needs the Python code of layers of the user's; it is then read in this process.
        marker: for a directory, a file that is in it if it was written by this exporter.
    """

    name: str
    suffix: str
    write: Callable[[keras.Model, Path, Options], None]
    load: Callable[[Path, Options], Runner]
    requires: Mapping[str, str] = field(default_factory=dict)
    tensorflow_backend: bool = True
    device: ModuleType | None = None
    limits: Callable[[keras.Model, Options], Limits] = _exact
    feed: Callable[[Sequence[np.ndarray], Options], list[np.ndarray]] = _as_they_are
    plain: bool = False
    calibrated: bool = False
    needs_code: bool = False
    marker: str | None = None


def on(device: ModuleType) -> Callable[[Path, Options], Runner]:
    """The `load` of an exporter whose files a device module reads."""
    return lambda path, options: device.load(str(path), options.inputs, options.outputs)


_REGISTERED: dict[str, Exporter] = {}


def register(exporter: Exporter) -> Exporter:
    """Make a format known to `tfprune.export`; a name registered again replaces the earlier one."""
    _REGISTERED[exporter.name] = exporter
    return exporter


def known_formats() -> tuple[str, ...]:
    """The names of all formats, sorted.

    >>> known_formats()
    ('keras', 'keras_int8', 'onnx', 'pb', 'saved_model', 'tflite', 'tflite_dynamic', 'tflite_float16', 'tflite_int8')
    """
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")
    return tuple(sorted(_REGISTERED))


def find(name: str) -> Exporter:
    """The exporter called `name`, after checking that what it needs is here.

    Raises:
        ExportError: no such format, a package is missing, or Keras runs on another backend.
    """
    known = known_formats()
    if name not in _REGISTERED:
        raise ExportError(f"unknown export format {name!r}; the known ones are {', '.join(known)}")
    exporter = _REGISTERED[name]
    missing = [pip for module, pip in exporter.requires.items() if not _installed(module)]
    if missing:
        raise ExportError(
            f"the {name} format needs {' and '.join(missing)}, not installed; run `pip install {' '.join(missing)}`"
        )
    if exporter.tensorflow_backend and keras.backend.backend() != "tensorflow":
        raise ExportError(
            f"the {name} format needs Keras on TensorFlow, but it runs on {keras.backend.backend()}; save the model as "
            f".keras, set KERAS_BACKEND=tensorflow and export it from there"
        )
    return exporter


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
