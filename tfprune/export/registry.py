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

import keras
import numpy as np

from tfprune.errors import ExportError

#: What `Exporter.load` returns: input arrays in the order of `model.inputs` to outputs in the order of `model.outputs`.
Runner = Callable[[Sequence[np.ndarray]], list[np.ndarray]]


@dataclass(frozen=True)
class Options:
    """What a writer may want to know besides the model.

    Attributes:
        inputs: the name of each input, in the order of `model.inputs`.
        outputs: the name of each output, in the order of `model.outputs`.
        opset: the version of the ONNX operators to write.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opset: int = 17


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
    """

    name: str
    suffix: str
    write: Callable[[keras.Model, Path, Options], None]
    load: Callable[[Path, Options], Runner]
    requires: Mapping[str, str] = field(default_factory=dict)
    tensorflow_backend: bool = True


_REGISTERED: dict[str, Exporter] = {}


def register(exporter: Exporter) -> Exporter:
    """Make a format known to `tfprune.export`; a name registered again replaces the earlier one."""
    _REGISTERED[exporter.name] = exporter
    return exporter


def known_formats() -> tuple[str, ...]:
    """The names of all formats, sorted.

    >>> known_formats()
    ('keras', 'onnx', 'pb', 'saved_model')
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
