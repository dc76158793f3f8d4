"""What a run measured: a row for the model before, after soft pruning and after strip."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfprune.cost import cost
from tfprune.files import write_json
from tfprune.tables import table


@dataclass(frozen=True)
class Stage:
    """One row.

    Attributes:
        name: `before`, `soft-pruned`, `stripped`, ...
        accuracy: fraction of test samples whose highest score is the right class.
        parameters: numbers in all weights.
        macs: multiply-adds for one sample.
        onnx_bytes: size of the .onnx file; None if none was written.
        latency_ms: median time of one sample in onnxruntime on the CPU, in milliseconds.
    """

    name: str
    accuracy: float
    parameters: int
    macs: int
    onnx_bytes: int | None = None
    latency_ms: float | None = None


def accuracy(model: keras.Model, x: np.ndarray, y: np.ndarray, batch_size: int = 256) -> float:
    """The fraction of samples whose highest score is that of their class.

    Args:
        model: gives (samples, classes) scores.
        x: (samples, ...).
        y: (samples,) class numbers.
        batch_size: samples at a time.
    """
    scores = model.predict(x, batch_size=batch_size, verbose=0)
    return float(np.mean(np.argmax(scores, axis=-1) == y))


def measure(
    name: str, model: keras.Model, x: np.ndarray, y: np.ndarray, onnx: str | os.PathLike | None = None, threads: int = 2
) -> Stage:
    """Measure a model; with `onnx` also that file's size and latency (batch 1, `threads` threads)."""
    count = cost(model)
    size, latency = None, None
    if onnx is not None:
        from tfprune.export import onnx_latency

        size, latency = Path(onnx).stat().st_size, onnx_latency(onnx, threads=threads, repeats=100, warmup=20)
    return Stage(name, accuracy(model, x, y), count.parameters, count.macs, size, latency)


@dataclass(frozen=True)
class RunReport:
    """All stages of a run, and how it was asked for; printed as a table, written as JSON.

    >>> print(RunReport("net on digits", (Stage("before", 0.98, 1000, 2000), Stage("stripped", 0.975, 500, 900))))
    net on digits
    <BLANKLINE>
     stage      accuracy   parameters    MACs   .onnx KB   latency ms
     ───...
     before       98.00%        1,000   2,000
     stripped     97.50%          500     900
    """

    title: str
    stages: tuple[Stage, ...]
    settings: dict[str, Any] | None = None
    files: Sequence[str] = ()

    def __str__(self) -> str:
        rows = [
            (
                stage.name,
                f"{stage.accuracy:.2%}",
                f"{stage.parameters:,}",
                f"{stage.macs:,}",
                "" if stage.onnx_bytes is None else f"{stage.onnx_bytes / 1e3:,.0f}",
                "" if stage.latency_ms is None else f"{stage.latency_ms:.3f}",
            )
            for stage in self.stages
        ]
        return table(self.title, ("stage", "accuracy", "parameters", "MACs", ".onnx KB", "latency ms"), rows)

    def to_json(self, path: str | os.PathLike) -> Path:
        """Write everything to `path`."""
        return write_json(
            path,
            {
                "title": self.title,
                "stages": [asdict(stage) for stage in self.stages],
                "settings": self.settings or {},
                "files": list(self.files),
            },
        )
