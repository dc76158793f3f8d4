"""How long a model takes, from a small table: each kernel's time at a few widths, measured here and interpolated.

    table = LatencyTable.measure(model)          # about 10 s for a ResNet50; needs onnx and onnxruntime
    table.save("laptop.json")
    plan = tfprune.select(model, "l2", latency=0.6, scope="global", latency_table=LatencyTable.load("laptop.json"))

Source: latency tables as in Yang et al., "NetAdapt" (arXiv:1804.03230).
"""

from __future__ import annotations

import functools
import json
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RegularGridInterpolator

from tfprune.channels.forecast import CostModel, LayerWidths
from tfprune.channels.graph import ChannelGraph
from tfprune.errors import ExportError, PlanError
from tfprune.files import write_text
from tfprune.frontend import trace
from tfprune.tables import table

Clock = Callable[[LayerWidths], float]
_FRACTIONS = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Times:
    """The milliseconds of one kind of kernel at some widths.

    Attributes:
        read, written: widths, ascending.
        ms: shape (read widths, written widths).
    """

    read: tuple[int, ...]
    written: tuple[int, ...]
    ms: tuple[tuple[float, ...], ...]

    def __call__(self, read: float, written: float) -> float:
        """The time at other widths, linear between those measured and beyond them."""
        return max(0.0, float(self._interpolated((read, written))))

    @functools.cached_property
    def _interpolated(self) -> Callable[[tuple[float, float]], NDArray]:
        axes, values = [], np.asarray(self.ms)
        for axis, widths in enumerate((self.read, self.written)):
            if len(widths) == 1:  # it takes two to interpolate: nothing at all takes no time
                values = np.concatenate([np.zeros_like(values), values], axis=axis)
                widths = (0, *widths)
            axes.append(np.asarray(widths, float))
        return RegularGridInterpolator(axes, values, bounds_error=False, fill_value=None)


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds by kernel and widths; called with the kernels of a model, it says what the model takes.

    Attributes:
        name: where it was measured.
        times: kind of kernel -> its times.
        scale: the whole model's time over the sum of its kernels': what is fused makes it less, what is no kernel
            (activations, pooling, sums) and weights that come from memory make it more.
    """

    name: str
    times: dict[str, Times]
    scale: float = 1.0

    def __call__(self, widths: Sequence[LayerWidths]) -> float:
        """Milliseconds of a model with these kernels, for one sample.

        Raises:
            PlanError: the table was measured for another model.
        """
        return self.scale * sum(self._kernel(width) for width in widths)

    def _kernel(self, width: LayerWidths) -> float:
        times = self.times.get(kind_of(width))
        if times is None:
            raise PlanError(
                f"the latency table {self.name!r} has no kernel like that of {width.layer} ({kind_of(width)}); measure "
                f"one for this model: tfprune.latency.LatencyTable.measure(model)"
            )
        read = 1 if width.depthwise else width.read[0]
        return times(read, width.written[0]) * width.scale

    @classmethod
    def measure(
        cls,
        model: Any,
        *,
        clock: Clock | None = None,
        total: float | None = None,
        fractions: Sequence[float] = _FRACTIONS,
        threads: int = 1,
        name: str = "onnxruntime",
    ) -> LatencyTable:
        """Measure each kind of kernel of a model, once for each pair of widths.

        Args:
            model: a Keras model, or its graph.
            clock: a function from a `LayerWidths` (look at `read[0]` and `written[0]`) to milliseconds, for a device of
                yours. By default onnxruntime on this machine's CPU.
            total: the whole model's milliseconds, to which the sum is scaled. By default measured in onnxruntime where
                that is the clock, and not known otherwise.
            fractions: of each width, at which it is measured.
            threads: of onnxruntime; more than one measures what else runs on a shared machine, too.
            name: what to remember the table by.

        Raises:
            ExportError: onnx or onnxruntime is missing, or the model cannot be written as .onnx.
            PlanError: a fraction is not in (0, 1].
        """
        wrong = [one for one in fractions if isinstance(one, bool) or not 0 < one <= 1]
        if wrong or not fractions:
            raise PlanError(f"fractions are of widths, in (0, 1], and {list(fractions)} came")
        graph = model if isinstance(model, ChannelGraph) else trace(model)
        costs = CostModel(graph)
        widths = costs.widths(np.ones(graph.channels, bool))
        here = clock is None
        clock = OnnxClock(threads) if clock is None else clock
        times: dict[str, Times] = {}
        for width in widths:
            if kind_of(width) not in times:
                times[kind_of(width)] = _measured(width, clock, sorted({*fractions, 1.0}))
        found = cls(name, times)
        if total is None and here and isinstance(graph.model, keras.Model):
            total = _total(graph, threads)
        if total is None:
            return found
        kernels = found(widths)
        return replace(found, scale=total / kernels) if kernels else found

    def to_json(self) -> str:
        """The table as JSON, for `from_json`."""
        data = {"name": self.name, "scale": self.scale}
        kinds = {kind: {"read": t.read, "written": t.written, "ms": t.ms} for kind, t in self.times.items()}
        return json.dumps({**data, "times": kinds}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> LatencyTable:
        """Read what `to_json` gave.

        Raises:
            PlanError: it is something else.
        """
        try:
            data = json.loads(text)
            times = {
                kind: Times(tuple(t["read"]), tuple(t["written"]), tuple(tuple(map(float, row)) for row in t["ms"]))
                for kind, t in data["times"].items()
            }
            if any(np.shape(t.ms) != (len(t.read), len(t.written)) for t in times.values()):
                raise ValueError("a kernel's times do not fit its widths")
            return cls(str(data["name"]), times, float(data["scale"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PlanError(f"this is not a latency table that tfprune wrote: {error}") from error

    def save(self, path: str | os.PathLike) -> Path:
        """Write it as JSON."""
        return write_text(Path(path), self.to_json() + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike) -> LatencyTable:
        """Read what `save` wrote.

        Raises:
            PlanError: it is no such file.
        """
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, PlanError) as error:
            raise PlanError(f"{os.fspath(path)} is not a latency table that tfprune wrote: {error}") from error

    def __str__(self) -> str:
        rows = [
            (
                kind,
                f"{t.read[0]}-{t.read[-1]}",
                f"{t.written[0]}-{t.written[-1]}",
                f"{t.ms[0][0]:.4f}-{t.ms[-1][-1]:.4f}",
            )
            for kind, t in self.times.items()
        ]
        title = f"{self.name}: the whole over the sum of its kernels {self.scale:.2f}"
        return table(title, ("kernel", "read", "written", "ms"), rows)


def kind_of(width: LayerWidths) -> str:
    """What two kernels have in common that take the same time at the same widths."""
    shapes = ("x".join("?" if size is None else str(size) for size in shape) for shape in (width.inputs, width.outputs))
    kernel = "x".join(map(str, width.kernel))
    return f"{width.kind} {kernel} {' to '.join(shapes)}" + (
        f" groups {width.groups[1]}" if width.groups[1] > 1 else ""
    )


def _measured(width: LayerWidths, clock: Clock, fractions: Sequence[float]) -> Times:
    groups = width.groups[1]
    read = [width.read[1]] if width.depthwise else _steps(width.read[1], fractions, groups)
    written = _steps(width.written[1], fractions, groups)
    ms = tuple(
        tuple(
            clock(replace(width, read=(w if width.depthwise else r, width.read[1]), written=(w, width.written[1])))
            for w in written
        )
        for r in read
    )
    return Times((1,) if width.depthwise else tuple(read), tuple(written), ms)


def _steps(width: int, fractions: Sequence[float], groups: int) -> list[int]:
    """Widths at fractions of one, multiples of the groups; one that is small stays."""
    if width <= 4:
        return [width]
    return sorted({max(1, round(width * fraction / groups)) * groups for fraction in fractions})


def _total(graph: ChannelGraph, threads: int) -> float:
    """Milliseconds of the whole model in onnxruntime."""
    from tfprune.export import onnx_latency
    from tfprune.export.size import written

    with tempfile.TemporaryDirectory(prefix="tfprune-") as folder:
        return onnx_latency(written(graph.model, "onnx", Path(folder)), threads, summary=min)


class OnnxClock:
    """Milliseconds of one kernel in onnxruntime on this machine, less those of a model that does nothing.

    Args:
        threads: how many one operator may use.
        repeats: of which the least is taken: what else runs on a machine only adds.
    """

    def __init__(self, threads: int = 1, repeats: int = 15):
        self.threads, self.repeats = threads, repeats
        self._nothing = 0.0
        self._nothing = self._run([("Identity", {})], (1, 1), {})

    def __call__(self, width: LayerWidths) -> float:
        if width.window and "Conv" in width.kind and not width.kind.endswith("LSTM"):
            return self._convolution(width)
        # All else is a product of matrices.
        rows = max(1, round(width.positions * width.scale))
        sides = [max(1, width.read[0]), max(1, width.written[0])]
        kernel = math.prod(width.kernel)
        sides[1] = max(1, round(sides[1] * kernel / max(1, width.read[1] * width.written[1])))
        return self._run([("MatMul", {})], (rows, sides[0]), {"W": (sides[0], sides[1])})

    def _convolution(self, width: LayerWidths) -> float:
        kernel = list(width.window)
        inputs, outputs = ([size or 1 for size in sizes[-len(kernel) :]] for sizes in (width.inputs, width.outputs))
        groups = width.written[0] if width.depthwise else width.groups[0]
        read = width.written[0] if width.depthwise else width.read[0]
        each = 1 if width.depthwise else max(1, read // groups)
        times = (
            max(1, math.prod(width.kernel) // max(1, math.prod(kernel) * width.written[1])) if width.depthwise else 1
        )
        if width.kind.endswith("Transpose"):
            strides = [max(1, round(o / i)) for i, o in zip(inputs, outputs, strict=True)]
            sizes = {"W": (read, width.written[0], *kernel)}
            return self._run([("ConvTranspose", {"strides": strides})], (1, read, *inputs), sizes)
        strides = [max(1, round(i / o)) for i, o in zip(inputs, outputs, strict=True)]
        pads = [max(0, (o - 1) * s + k - i) for i, o, s, k in zip(inputs, outputs, strides, kernel, strict=True)]
        settings = {"strides": strides, "pads": [p // 2 for p in pads] + [p - p // 2 for p in pads], "group": groups}
        written = width.written[0] * times
        return self._run([("Conv", settings)], (1, read, *inputs), {"W": (written, each, *kernel)})

    def _run(
        self, nodes: Sequence[tuple[str, dict]], shape: tuple[int, ...], sizes: dict[str, tuple[int, ...]]
    ) -> float:
        from tfprune.export.runtime import onnx_latency

        least = onnx_latency(_onnx(nodes, shape, sizes), self.threads, repeats=self.repeats, warmup=2, summary=min)
        return max(0.0, least - self._nothing)


def _onnx(nodes: Sequence[tuple[str, dict]], shape: tuple[int, ...], sizes: dict[str, tuple[int, ...]]) -> bytes:
    """A model of one node with random weights."""
    try:
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as error:
        raise ExportError(
            "measuring latencies needs onnx and onnxruntime; run `pip install onnx onnxruntime`"
        ) from error
    generator = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(generator.standard_normal(size, np.float32), name) for name, size in sizes.items()
    ]
    (kind, settings), *_ = nodes
    node = helper.make_node(kind, ["x", *sizes], ["y"], **settings)
    value = functools.partial(helper.make_tensor_value_info, elem_type=TensorProto.FLOAT)
    graph = helper.make_graph([node], "kernel", [value("x", shape=shape)], [value("y", shape=None)], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


__all__ = ["LatencyTable", "LayerWidths", "OnnxClock", "Times"]
