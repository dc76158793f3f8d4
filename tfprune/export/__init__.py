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
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import numpy as np

from tfprune.cost import cost
from tfprune.errors import ExportError, TfpruneError
from tfprune.export.device import process
from tfprune.export.difference import Difference, Limits, measure
from tfprune.export.names import functional, input_names, output_names
from tfprune.export.registry import Exporter, Options, Runner, find, known_formats, register
from tfprune.export.report import ExportReport, ExportRow
from tfprune.export.runtime import onnx_latency
from tfprune.export.variant import in_float32, with_shapes
from tfprune.files import atomic_path, output_directory, write_json
from tfprune.verify import random_inputs, run

__all__ = [
    "Difference",
    "ExportReport",
    "ExportRow",
    "Exporter",
    "Limits",
    "Options",
    "Runner",
    "export",
    "known_formats",
    "onnx_latency",
    "register",
]

#: How long each file's runs are timed.
SECONDS = 0.3
#: Of the representative data, how many samples are compared.
COMPARED = 16


def export(
    model: keras.Model,
    directory: str | os.PathLike,
    formats: Sequence[str] = ("keras", "saved_model", "pb", "onnx"),
    name: str | None = None,
    opset: int = 17,
    samples: int = 2,
    tolerance: float | None = None,
    output_nodes: Sequence[str] | None = None,
    *,
    input_nodes: Sequence[str] | None = None,
    shapes: Mapping[str, Sequence[int | None]] | None = None,
    layout: str = "NHWC",
    precision: str = "float32",
    representative: np.ndarray | Sequence[np.ndarray] | None = None,
    integer_io: bool = False,
    inputs: np.ndarray | Sequence[np.ndarray] | None = None,
    original: keras.Model | None = None,
) -> ExportReport:
    """Write `model` to `directory` in each of `formats`, all or none.

    Each file is written to a temporary place, loaded by its own runtime (Keras, `tf.saved_model`, a TensorFlow 1
    session, onnxruntime, LiteRT) in a process without tfprune, run on random inputs and on yours, and compared with the
    Keras model. The files appear under their final names only when all of them agree; what was found is printed by the
    report and written beside them, to `NAME_export.json`.

    Args:
        model: a functional or built `Sequential` model. It is not changed.
        directory: created if need be. An earlier export of the same name is replaced.
        formats: any of `known_formats()`.
        name: of the files, before the suffix; by default the model's.
        opset: the version of the ONNX operators, 13 to 18.
        samples: how many random inputs are compared.
        tolerance: the largest difference allowed, as a fraction of the largest output; by default by the model's
            dtype, 1e-5 for float32. For int8 files: of the norm of the difference, as a fraction of the outputs' norm.
        output_nodes: what the outputs are called in the files, in the order of `model.outputs`; by default after the
            layers that make them.
        input_nodes: likewise for the inputs; by default after the `keras.Input`s.
        shapes: other shapes for inputs, batch first, None for an unknown size, by the input's name:
            `{"image": (1, 224, 224, 3)}`. A .tflite file has batch 1 unless a shape says otherwise.
        layout: `NHWC`, or `NCHW` for ONNX files whose images (inputs of rank 4) have their channels first.
        precision: `float32`, or `float16` for ONNX files that compute and hold their weights in half precision. Models
            of mixed or low precision are written as what is said here.
        representative: real data that full int8 is calibrated with, one array (a list of arrays for several inputs),
            samples first. Full int8 is also compared on it.
        integer_io: whether full int8 files take and give integers; otherwise floats.
        inputs: arrays to compare besides the random ones, one array (a list for several inputs), samples first.
        original: the model before pruning, for what the ONNX file says about its origin.

    Returns:
        An `ExportReport` with one row a format; print it.

    Raises:
        ExportError: a format is unknown or needs a package that is missing, the model cannot be written in it, the
            file does not compute what the model computes, or something else is in its place.
        TfpruneError: `directory` cannot be written to.
    """
    formats = (formats,) if isinstance(formats, str) else tuple(dict.fromkeys(formats))
    exporters = [find(format) for format in formats]
    if not exporters:
        raise ExportError(f"formats is empty; give at least one of {', '.join(known_formats())}")
    whole = functional(model)
    stem = _file_stem(model.name if name is None else name)
    with keras.saving.custom_object_scope(_custom_objects(whole)):
        if shapes:
            whole = with_shapes(whole, shapes, input_names(whole, input_nodes))
        options = Options(
            input_names(whole, input_nodes),
            output_names(whole, output_nodes, input_names(whole, input_nodes)),
            opset,
            tuple(tuple(x.shape) for x in whole.inputs) if shapes else None,
            _one_of("precision", precision, ("float32", "float16")),
            _one_of("layout", layout, ("NHWC", "NCHW")),
            _samples(whole, "representative", representative),
            integer_io,
            _metadata(model, original),
        )
        given = _samples(whole, "inputs", inputs)
        root = output_directory(directory)
        targets = [root / (stem + exporter.suffix) for exporter in exporters]
        for exporter, target in zip(exporters, targets, strict=True):
            _refuse_other_content(exporter, target)
            if exporter.calibrated and options.representative is None:
                raise ExportError(
                    f"the {exporter.name} format needs real data: give `representative`, some 100 samples"
                )
        rows = []
        with contextlib.ExitStack() as moves:
            for exporter, target in zip(exporters, targets, strict=True):
                scratch = moves.enter_context(atomic_path(target))
                rows.append(_write_and_prove(exporter, whole, scratch, target, options, given, samples, tolerance))
    _write_report(root / f"{stem}_export.json", model, rows, options)
    return ExportReport(model.name, tuple(rows))


def _write_and_prove(
    exporter: Exporter,
    model: keras.Model,
    scratch: Path,
    target: Path,
    options: Options,
    given: Sequence[np.ndarray] | None,
    samples: int,
    tolerance: float | None,
) -> ExportRow:
    start = time.perf_counter()
    what = f"{exporter.name} export of {model.name!r}"
    host = process.prepare(exporter.device) if exporter.device else None  # it imports its runtime meanwhile
    with _explained(f"{what} could not be written"):
        if exporter.plain:
            model = in_float32(model)
        exporter.write(model, scratch, options)
    compared = [random_inputs(model, _batch(model, samples))]
    if exporter.calibrated and options.representative is not None:
        compared = [[array[:COMPARED] for array in options.representative]]
    if given is not None:
        compared.append(list(given))
    limits = exporter.limits(model, options).instead(tolerance)
    found, measured = zip(
        *(_prove(exporter, host, model, scratch, options, limits, arrays, what) for arrays in compared), strict=True
    )
    worst = max(found, key=lambda one: one.largest)
    return ExportRow(
        exporter.name,
        target,
        _size(scratch),
        worst.largest,
        time.perf_counter() - start,
        worst.noise,
        worst.agreement,
        sum(one.samples for one in found),
        1e3 * measured[0].load_seconds,
        measured[0].latency_ms,
        measured[0].where,
    )


def _prove(
    exporter: Exporter,
    host: process.Process | None,
    model: keras.Model,
    path: Path,
    options: Options,
    limits: Limits,
    arrays: Sequence[np.ndarray],
    what: str,
) -> tuple[Difference, process.Measured]:
    with _explained(f"{what} was written but does not load and run in its own runtime"):
        measured = _read_back(exporter, host, model, path, options, arrays)
    with _explained(f"{what} does not compute what the Keras model computes; nothing was kept"):
        found = measure(run(model, arrays), measured.outputs)
        limits.check(exporter.name, found)
    return found, measured


def _read_back(
    exporter: Exporter,
    host: process.Process | None,
    model: keras.Model,
    path: Path,
    options: Options,
    arrays: Sequence[np.ndarray],
) -> process.Measured:
    """What the file computes: in a process without tfprune, or here if it has Python code of the user's in it."""
    fed = exporter.feed(arrays, options)
    if exporter.device and host and process.can_run(fed) and not (exporter.needs_code and _custom_objects(model)):
        one = all(x.shape[:1] == (None,) for x in model.inputs)
        names = options.inputs, options.outputs
        return process.run_in(host, exporter.device, path, names, fed, SECONDS, one=one)
    start = time.perf_counter()
    runner = exporter.load(path, options)
    return process.Measured(runner(fed), time.perf_counter() - start)


def _metadata(model: keras.Model, original: keras.Model | None) -> dict[str, str]:
    """What an .onnx file says about the model: by whom, its cost, and what it was pruned from."""
    from tfprune import __version__

    known = {"tfprune": __version__, "keras": keras.__version__, "model": model.name}
    for prefix, one in (("", model), ("pruned_from_", original)):
        if one is None:
            continue
        if prefix:
            known["pruned_from"] = one.name
        known[f"{prefix}parameters"] = str(one.count_params())
        with contextlib.suppress(TfpruneError):
            known[f"{prefix}macs"] = str(cost(one).macs)
    return known


def _samples(model: keras.Model, what: str, given: np.ndarray | Sequence[np.ndarray] | None) -> tuple | None:
    """The user's arrays, one an input, checked against the shapes of the inputs."""
    if given is None:
        return None
    arrays = tuple(np.asarray(one) for one in ([given] if isinstance(given, np.ndarray) else given))
    shapes = [tuple(x.shape) for x in model.inputs]
    fits = len(arrays) == len(shapes) and len({one.shape[:1] for one in arrays}) == 1 and arrays[0].size
    for array, shape in zip(arrays, shapes, strict=False):
        fits = fits and array.ndim == len(shape)
        fits = fits and all(size in (None, got) for size, got in zip(shape[1:], array.shape[1:], strict=True))
    if not fits:
        raise ExportError(
            f"{what} must be arrays of shapes {shapes}, one for each input of {model.name!r} with as many samples in "
            f"each; got shapes {[one.shape for one in arrays]}"
        )
    return tuple(array.astype(x.dtype) for array, x in zip(arrays, model.inputs, strict=True))


def _one_of(what: str, given: str, choices: tuple[str, ...]) -> str:
    if given not in choices:
        raise ExportError(f"{what} must be {' or '.join(choices)}, got {given!r}")
    return given


def _refuse_other_content(exporter: Exporter, target: Path) -> None:
    """A directory is replaced only if it is an earlier export."""
    if not target.is_dir() or not any(target.iterdir()):
        return
    if exporter.marker is None or not (target / exporter.marker).exists():
        raise ExportError(
            f"{str(target)!r} is a directory with something else in it, which the {exporter.name} export would "
            f"replace; move it away, or give another name or directory"
        )


def _write_report(path: Path, model: keras.Model, rows: Sequence[ExportRow], options: Options) -> None:
    """The rows as JSON, with those of an earlier export whose files are still there."""
    earlier: list[dict] = []
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        formats = {row.format for row in rows}
        rest = [row for row in json.loads(path.read_text())["files"] if row["format"] not in formats]
        earlier = [row for row in rest if (path.parent / row["path"]).exists()]
    about = {"model": model.name, "inputs": list(options.inputs), "outputs": list(options.outputs)}
    write_json(path, {**about, **options.metadata, "files": [*earlier, *(row.json for row in rows)]})


@contextlib.contextmanager
def _explained(what: str):
    """Turn whatever a writer or runtime raises into an ExportError that says what was being done."""
    try:
        yield
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
    """The classes of layers that are not Keras' own: they load back in this process; elsewhere the user has them."""
    classes = {type(layer) for layer in model._flatten_layers()}
    return {cls.__name__: cls for cls in classes if not cls.__module__.startswith("keras.")}


def _file_stem(name: str) -> str:
    if not name or name in (".", "..") or os.sep in name or (os.altsep and os.altsep in name):
        raise ExportError(f"name must be a file name without a directory, got {name!r}; put the place in `directory`")
    return name


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file())
