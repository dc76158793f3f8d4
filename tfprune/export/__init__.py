"""Write a model in other formats, read each file back in its own runtime, and prove that it computes the same.

>>> import keras, tempfile
>>> image = keras.Input((8, 8, 3), name="image")
>>> x = keras.layers.Conv2D(4, 3, activation="relu")(image)
>>> model = keras.Model(image, keras.layers.Dense(2, name="scores")(keras.layers.Flatten()(x)), name="net")
>>> with tempfile.TemporaryDirectory() as directory:
...     report = export(model, directory, formats=("keras",))
>>> report["keras"].path.name
'net.keras'
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

import keras

from tfprune.errors import ExportError, TfpruneError
from tfprune.export.names import functional, input_names, output_names
from tfprune.export.registry import Exporter, Options, Runner, find, known_formats, register
from tfprune.export.report import ExportReport, ExportRow
from tfprune.export.runtime import onnx_latency
from tfprune.files import atomic_path, output_directory
from tfprune.verify import compare, random_inputs, run, tolerance_of

__all__ = [
    "ExportReport",
    "ExportRow",
    "Exporter",
    "Options",
    "Runner",
    "export",
    "known_formats",
    "onnx_latency",
    "register",
]


def export(
    model: keras.Model,
    directory: str | os.PathLike,
    formats: Sequence[str] = ("keras", "saved_model", "pb", "onnx"),
    name: str | None = None,
    opset: int = 17,
    samples: int = 2,
    tolerance: float | None = None,
    output_nodes: Sequence[str] | None = None,
) -> ExportReport:
    """Write `model` to `directory` in each of `formats`, all or none.

    Each file is written to a temporary place, loaded by its own runtime (Keras, `tf.saved_model`, a TensorFlow 1
    session, onnxruntime), run on random inputs and compared with the Keras model. The files appear under their final
    names only when all of them agree.

    Args:
        model: a functional or built `Sequential` model. It is not changed.
        directory: created if need be. An earlier export of the same name is replaced.
        formats: any of `known_formats()`.
        name: of the files, before the suffix; by default the model's.
        opset: the version of the ONNX operators, 13 to 18.
        samples: how many random inputs are compared.
        tolerance: the largest difference allowed, as a fraction of the largest output; by default by the model's
            dtype, 1e-5 for float32.
        output_nodes: what the outputs are called in the files, in the order of `model.outputs`; by default after the
            layers that make them. Inputs keep the names of the `keras.Input`s.

    Returns:
        An `ExportReport` with one row a format; print it.

    Raises:
        ExportError: a format is unknown or needs a package that is missing, the model cannot be written in it, or
            the file does not compute what the model computes.
        TfpruneError: `directory` cannot be written to.
    """
    formats = (formats,) if isinstance(formats, str) else tuple(dict.fromkeys(formats))
    exporters = [find(format) for format in formats]
    if not exporters:
        raise ExportError(f"formats is empty; give at least one of {', '.join(known_formats())}")
    whole = functional(model)
    options = Options(input_names(whole), output_names(whole, output_nodes), opset)
    root = output_directory(directory)
    stem = _file_stem(model.name if name is None else name)
    rows = []
    with contextlib.ExitStack() as moves:
        for exporter in exporters:
            target = root / (stem + exporter.suffix)
            scratch = moves.enter_context(atomic_path(target))
            rows.append(_write_and_prove(exporter, whole, scratch, target, options, samples, tolerance))
    return ExportReport(model.name, tuple(rows))


def _write_and_prove(
    exporter: Exporter,
    model: keras.Model,
    scratch: Path,
    target: Path,
    options: Options,
    samples: int,
    tolerance: float | None,
) -> ExportRow:
    start = time.perf_counter()
    what = f"{exporter.name} export of {model.name!r}"
    # Layers of the user's own, registered or not, load back in this process; elsewhere the user provides them.
    with keras.saving.custom_object_scope(_custom_objects(model)):
        with _explained(f"{what} could not be written"):
            exporter.write(model, scratch, options)
        inputs = random_inputs(model, _batch(model, samples))
        with _explained(f"{what} was written but does not load and run in its own runtime"):
            got = exporter.load(scratch, options)(inputs)
    limit = tolerance_of(model) if tolerance is None else tolerance
    with _explained(f"{what} does not compute what the Keras model computes; nothing was kept"):
        found = compare(run(model, inputs), got, limit, samples=len(inputs[0]))
        found.raise_if_different(exporter.name)
    return ExportRow(exporter.name, target, _size(scratch), found.relative, time.perf_counter() - start)


@contextlib.contextmanager
def _explained(what: str):
    """Turn whatever a writer or runtime raises into an ExportError that says what was being done."""
    try:
        yield
    except ExportError:
        raise
    except TfpruneError as error:
        raise ExportError(f"{what}: {error}") from error
    except Exception as error:
        raise ExportError(f"{what} ({type(error).__name__}: {error})") from error


def _batch(model: keras.Model, samples: int) -> int:
    """A model with a fixed batch takes that many samples and no other number."""
    if samples < 1:
        raise ExportError(f"samples must be at least 1, got {samples}")
    fixed = {tensor.shape[0] for tensor in model.inputs} - {None}
    return fixed.pop() if fixed else samples


def _custom_objects(model: keras.Model) -> dict[str, type]:
    classes = {type(layer) for layer in model._flatten_layers()}
    return {cls.__name__: cls for cls in classes if not cls.__module__.startswith("keras.")}


def _file_stem(name: str) -> str:
    if not name or name in (".", "..") or os.sep in name or (os.altsep and os.altsep in name):
        raise ExportError(f"name must be a file name without a directory, got {name!r}; put the place in `directory`")
    return name


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file())
