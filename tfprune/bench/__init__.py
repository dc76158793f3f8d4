"""Models timed side by side in the runtimes of devices.

print(tfprune.bench.bench(["before.keras", "after.keras"], runtimes=("onnxruntime", "litert"), threads=2))
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import numpy as np

from tfprune.bench.report import BenchReport, BenchRow
from tfprune.cost import cost
from tfprune.errors import ExportError, TfpruneError
from tfprune.export.device import lite_rt, onnx_runtime, process, tf_saved_model
from tfprune.export.names import functional, input_names, output_names
from tfprune.export.registry import Options, find
from tfprune.export.variant import in_float32

__all__ = ["RUNTIMES", "BenchReport", "BenchRow", "bench"]


@dataclass(frozen=True)
class Runtime:
    """A runtime to time files in.

    Attributes:
        device: the module that loads its files.
        format: what a Keras model is written as for it.
        suffixes: of files that it takes as they are; `""` is a directory.
    """

    device: ModuleType
    format: str
    suffixes: tuple[str, ...]


RUNTIMES = {
    "onnxruntime": Runtime(onnx_runtime, "onnx", (".onnx",)),
    "litert": Runtime(lite_rt, "tflite", (".tflite",)),
    "tensorflow": Runtime(tf_saved_model, "saved_model", ("",)),
}


@dataclass(frozen=True)
class _File:
    """A file to time: what to call it, its names, its inputs, and its multiply-adds if they are known."""

    name: str
    path: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    arrays: list[np.ndarray]
    macs: int | None


def bench(
    models: Sequence[keras.Model | str | os.PathLike],
    runtimes: Sequence[str] = ("onnxruntime",),
    threads: int = 2,
    batch: int = 1,
    turns: int = 50,
    size: int = 224,
) -> BenchReport:
    """Time models in turns: A, B, A, B, ..., so that what else the machine does falls on all alike.

    Each runtime has a process of its own without tfprune, and each file one more for its memory. Compared is with the
    first model: `speed-up` is the median of the ratios of neighbouring runs, with their quartiles.

    Args:
        models: Keras models, .keras files, or files of a runtime asked for (.onnx, .tflite, a SavedModel's directory).
            The first is what the others are compared with.
        runtimes: of onnxruntime, litert and tensorflow.
        threads: how many threads one operator may use.
        batch: samples a run.
        turns: how often each model is run and timed, after 5 runs that are not.
        size: entries of input axes of unknown size.

    Raises:
        ExportError: a runtime is unknown or missing, or a model cannot be written for it, loaded or run.
    """
    if not models or min(threads, batch, turns, size) < 1:
        raise ExportError(f"bench needs models, and threads, batch, turns and size of at least 1; got {len(models)} "
                          f"models, {threads=}, {batch=}, {turns=}, {size=}")  # fmt: skip
    unknown = sorted(set(runtimes) - set(RUNTIMES))
    if unknown or not runtimes:
        raise ExportError(f"unknown runtime {', '.join(unknown) or '(none given)'}; known are {', '.join(RUNTIMES)}")
    rows: list[BenchRow] = []
    with tempfile.TemporaryDirectory(prefix="tfprune-") as folder:
        for name in runtimes:
            runtime = RUNTIMES[name]
            exporter = find(runtime.format)
            files = [_file(model, runtime, exporter, Path(folder, f"{name}_{place}"), batch, size)
                     for place, model in enumerate(models)]  # fmt: skip
            rows += _rows(name, runtime, files, threads, turns)
    return BenchReport(tuple(rows), threads, batch, turns)


def _rows(name: str, runtime: Runtime, files: Sequence[_File], threads: int, turns: int) -> Iterator[BenchRow]:
    with _own_process() as host:
        asked = [(file.path, file.inputs, file.outputs, file.arrays) for file in files]
        seconds = process.run_in_turns(host, runtime.device, asked, turns, warm=5, threads=threads)
    for file, taken in zip(files, seconds, strict=True):
        with _own_process() as host:
            names = (file.inputs, file.outputs)
            alone = process.run_in(host, runtime.device, file.path, names, file.arrays, threads=threads)
        low, median, high = np.percentile(1e3 * taken, (25, 50, 75))
        ratios = np.percentile(seconds[0] / taken, (25, 50, 75))
        first = files[0].macs
        yield BenchRow(
            file.name,
            name,
            float(median),
            (float(low), float(high)),
            float(ratios[1]),
            (float(ratios[0]), float(ratios[2])),
            file.macs,
            first / file.macs if first and file.macs else None,
            1e3 * alone.load_seconds,
            alone.memory,
            _bytes(file.path),
        )


@contextlib.contextmanager
def _own_process() -> Iterator[process.Process]:
    host = process.Process()
    try:
        yield host
    finally:
        host.close()


def _file(model: Any, runtime: Runtime, exporter: Any, folder: Path, batch: int, size: int) -> _File:
    """The model as a file of the runtime, and arrays for it."""
    if isinstance(model, str | os.PathLike):
        path = Path(model)
        if path.suffix == ".keras":
            return replace(_file(_loaded(path), runtime, exporter, folder, batch, size), name=path.stem)
        if path.suffix not in runtime.suffixes or not path.exists():
            kinds = " or ".join(suffix or "a SavedModel's directory" for suffix in (".keras", *runtime.suffixes))
            raise ExportError(f"{str(path)!r} is no {kinds}, which this runtime takes; or it does not exist")
        return _READ[runtime.format](path, batch, size)
    whole = functional(in_float32(model))
    shapes = tuple((batch, *(size if axis is None else axis for axis in x.shape[1:])) for x in whole.inputs)
    options = Options(input_names(whole), output_names(whole), shapes=shapes)
    path = folder.with_name(folder.name + exporter.suffix)
    exporter.write(whole, path, options)
    arrays = [_random(shape, str(x.dtype)) for shape, x in zip(shapes, whole.inputs, strict=True)]
    return _File(model.name, path, options.inputs, options.outputs, arrays, _macs(whole))


def _loaded(path: Path) -> keras.Model:
    try:
        return keras.models.load_model(path, compile=False)
    except Exception as error:
        raise ExportError(f"{str(path)!r} could not be loaded as a Keras model: {error}") from error


def _macs(model: Any) -> int | None:
    try:
        return cost(model).macs or None
    except TfpruneError:
        return None


def _from_onnx(path: Path, batch: int, size: int) -> _File:
    from tfprune.export.runtime import onnx_session

    session = onnx_session(path)
    arrays = []
    for x in session.get_inputs():
        shape = [axis if isinstance(axis, int) else batch if place == 0 else size for place, axis in enumerate(x.shape)]
        kind = x.type[len("tensor(") : -1]
        arrays.append(_random(shape, {"float": "float32", "double": "float64"}.get(kind, kind)))
    said = session.get_modelmeta().custom_metadata_map.get("macs")
    names = tuple(x.name for x in session.get_inputs()), tuple(y.name for y in session.get_outputs())
    return _File(path.stem, path, *names, arrays, int(said) if said else _macs(path))


def _from_tflite(path: Path, batch: int, size: int) -> _File:
    interpreter = lite_rt.runtime()(str(path))
    runner = interpreter.get_signature_runner(next(iter(interpreter.get_signature_list())))
    takes, gives = runner.get_input_details(), runner.get_output_details()
    arrays = []
    for details in takes.values():
        real = "float32" if details["quantization"][0] else np.dtype(details["dtype"]).name
        arrays.append(_random([max(1, int(axis)) for axis in details["shape"]], real))
    return _File(path.stem, path, tuple(takes), tuple(gives), arrays, None)


def _from_saved_model(path: Path, batch: int, size: int) -> _File:
    import tensorflow as tf

    signature = tf.saved_model.load(str(path)).signatures[tf_saved_model.SIGNATURE]
    takes = signature.structured_input_signature[1]
    arrays = []
    for spec in takes.values():
        shape = [n if n else batch if place == 0 else size for place, n in enumerate(spec.shape.as_list())]
        arrays.append(_random(shape, spec.dtype.name))
    return _File(path.stem, path, tuple(takes), tuple(signature.structured_outputs), arrays, None)


_READ = {"onnx": _from_onnx, "tflite": _from_tflite, "saved_model": _from_saved_model}


def _random(shape: Sequence[int], dtype: str) -> np.ndarray:
    generator = np.random.default_rng(0)
    if dtype.startswith(("int", "uint", "bool")):
        return generator.integers(0, 2, shape).astype(dtype)
    return generator.standard_normal(shape).astype(dtype)


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file())
