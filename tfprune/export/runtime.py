"""onnxruntime: running and timing .onnx files."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tfprune.errors import ExportError


def onnx_session(path: str | bytes | os.PathLike, threads: int | None = None) -> Any:
    """An onnxruntime session on the CPU, with its usual optimisations.

    Args:
        path: an .onnx file, or its bytes.
        threads: how many threads one operator may use; None leaves it to onnxruntime.

    Raises:
        ExportError: onnxruntime is missing, or cannot read the file.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ExportError("running an .onnx file needs onnxruntime; run `pip install onnxruntime`") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # its warnings about constants it folded are no news
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        what = "the model" if isinstance(path, bytes) else repr(os.fspath(path))
        raise ExportError(f"onnxruntime cannot load {what}: {error}") from error


def onnx_latency(
    path: str | bytes | os.PathLike,
    threads: int = 2,
    batch: int = 1,
    repeats: int = 30,
    warmup: int = 5,
    sizes: Mapping[str, int] | None = None,
    summary: Callable[[list[float]], float] = np.median,
) -> float:
    """The median time of one run of an .onnx file in onnxruntime on the CPU, in milliseconds.

    Args:
        path: an .onnx file, or its bytes.
        threads: how many threads one operator may use.
        batch: entries along the axis called `batch`.
        repeats: how many runs are timed.
        warmup: how many runs before those are not.
        sizes: entries along other axes of unknown size, by the axis' name in the file.
        summary: what becomes of the times; `min` is the least disturbed on a shared machine.

    Raises:
        ExportError: onnxruntime is missing or cannot read the file, or an axis has no size.
    """
    if min(threads, batch, repeats) < 1 or warmup < 0:
        raise ExportError(f"threads, batch and repeats must be at least 1: got {threads=}, {batch=}, {repeats=}")
    session = onnx_session(path, threads)
    known = {"batch": batch, **(sizes or {})}
    feed = {x.name: _random(x.name, x.shape, x.type, known) for x in session.get_inputs()}
    for _ in range(warmup):
        session.run(None, feed)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        session.run(None, feed)
        times.append(time.perf_counter() - start)
    return 1e3 * float(summary(times))


def _random(name: str, shape: list, kind: str, known: Mapping[str, int]) -> np.ndarray:
    unknown = [axis for axis in shape if not isinstance(axis, int) and axis not in known]
    if unknown:
        raise ExportError(f"input {name!r} has axes of unknown size {unknown}; give them as sizes={{name: entries}}")
    extent = [axis if isinstance(axis, int) else known[axis] for axis in shape]
    dtype = {"float": "float32", "double": "float64"}.get(inner := kind[len("tensor(") : -1], inner)
    generator = np.random.default_rng(0)
    if dtype.startswith(("int", "uint", "bool")):
        return generator.integers(0, 2, extent).astype(dtype)
    return generator.standard_normal(extent).astype(dtype)
