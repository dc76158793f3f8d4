"""Which multiple to round widths to, and how narrow is of use, read from the time of a kernel at each width."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import keras
import numpy as np

from tfprune.bench import RUNTIMES, _file, _own_process
from tfprune.errors import ExportError
from tfprune.export.device import process
from tfprune.export.registry import find
from tfprune.tables import table

#: Rounding widths up is free if it costs at most this part of what it would if time went as the width does.
FREE = 0.15
#: Halving a width is of use if it takes this much of the time away.
USE = 0.1
MULTIPLES = (32, 16, 8, 4, 2)
_FINE, _COARSE = tuple(range(33, 65)), (2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Curve:
    """The milliseconds of one kind of kernel by how many filters it has.

    >>> steps = Curve("1x1", {width: float(-(-width // 8)) for width in range(1, 65)})
    >>> steps.round_to
    8
    >>> Curve("1x1", {width: max(8.0, width) for width in range(1, 65)}).least
    8

    Attributes:
        kernel: what was measured.
        ms: width -> milliseconds.
    """

    kernel: str
    ms: dict[int, float] = field(default_factory=dict)

    @property
    def round_to(self) -> int:
        """The largest multiple that widths can be rounded up to at no cost: at that many more channels for nothing."""
        for multiple in MULTIPLES:
            pairs = [(width, -(-width // multiple) * multiple) for width in self.ms if width > 32]
            known = [(width, up) for width, up in pairs if up in self.ms]
            wider = np.mean([up / width - 1 for width, up in known]) if known else 0.0
            if wider and np.mean([self.ms[up] / self.ms[width] - 1 for width, up in known]) <= FREE * wider:
                return multiple
        return 1

    @property
    def least(self) -> int:
        """The width below which halving no longer takes a tenth of the time away."""
        widths = [width for width in _COARSE if width in self.ms and 2 * width in self.ms]
        for width in sorted(widths, reverse=True):
            if self.ms[width] > (1 - USE) * self.ms[2 * width]:
                return 2 * width
        return min(self.ms)


@dataclass(frozen=True)
class Advice:
    """Curves of one runtime; `print` it.

    Attributes:
        runtime: where they were measured.
        threads: how many threads one operator had.
        curves: one a kind of kernel.
    """

    runtime: str
    threads: int
    curves: tuple[Curve, ...]

    @property
    def round_to(self) -> int:
        """For `tfprune.select(..., round_to=)`: what most curves say, the smaller where they are even."""
        return int(np.percentile([curve.round_to for curve in self.curves], 50, method="lower"))

    def __str__(self) -> str:
        shown = (8, 16, 32, 40, 48, 56, 64)
        rows = [
            (curve.kernel, curve.round_to, curve.least, *(f"{curve.ms[w]:.4f}" if w in curve.ms else "" for w in shown))
            for curve in self.curves
        ]
        title = f"{self.runtime}, {self.threads} threads: round widths to {self.round_to}"
        header = ("kernel", "round_to", "least width", *(f"ms at {width}" for width in shown))
        return table(title, header, rows)


def advise(
    runtime: str = "onnxruntime", threads: int = 1, read: int = 64, sizes: Sequence[int] = (14, 28), turns: int = 60
) -> Advice:
    """Measure 1x1, 3x3 and depthwise convolutions at widths up to 64, and say what to round to.

    All widths of a kind are run in turns in one process, and the least of each one's times is taken: what else a
    machine does only adds.

    Args:
        runtime: one of those that `bench` knows.
        threads: how many threads one operator may use.
        read: how many channels the convolutions read.
        sizes: heights (and widths) of the feature maps.
        turns: how often each is run.

    Raises:
        ExportError: the runtime is unknown or missing.
    """
    if runtime not in RUNTIMES:
        raise ExportError(f"unknown runtime {runtime!r}; known are {', '.join(RUNTIMES)}")
    curves = []
    for size in sizes:
        for kernel, layer in (
            ("1x1", lambda width: keras.layers.Conv2D(width, 1)),
            ("3x3", lambda width: keras.layers.Conv2D(width, 3, padding="same")),
            ("depthwise 3x3", None),
        ):
            name = f"{kernel}, {size}x{size}" + (f", reads {read}" if layer else "")
            curves.append(Curve(name, _measured(runtime, threads, size, read, layer, turns)))
    return Advice(runtime, threads, tuple(curves))


def _measured(runtime: str, threads: int, size: int, read: int, layer, turns: int) -> dict[int, float]:
    """Width -> milliseconds; without a layer, of a depthwise convolution that is as wide as what it reads."""
    widths = sorted({*_FINE, *_COARSE})
    known, exporter = RUNTIMES[runtime], find(RUNTIMES[runtime].format)
    with tempfile.TemporaryDirectory(prefix="tfprune-") as folder, _own_process() as host:
        files = []
        for width in widths:
            inputs = keras.Input((size, size, read if layer else width), name="x")
            made = layer(width) if layer else keras.layers.DepthwiseConv2D(3, padding="same")
            model = keras.Model(inputs, made(inputs), name=f"width_{width}")
            file = _file(model, known, exporter, Path(folder, str(width)), 1, size)
            files.append((file.path, file.inputs, file.outputs, file.arrays))
        taken = process.run_in_turns(host, known.device, files, turns, threads=threads)
    return {width: 1e3 * float(ms.min()) for width, ms in zip(widths, taken, strict=True)}
