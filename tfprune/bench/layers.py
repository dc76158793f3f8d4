"""An .onnx file's time node by node, measured by onnxruntime's profiler: where fewer multiply-adds save no time."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from tfprune.errors import ExportError
from tfprune.tables import table


@dataclass(frozen=True)
class NodeTime:
    """One node of the graph as onnxruntime runs it, which has put some together.

    Attributes:
        node: its name, which begins with the layer's.
        op: its operator.
        ms: the median of its runs.
        macs: its multiply-adds in a run as onnxruntime computes it, which pads filters to whole blocks (of 8 or 16, by
            processor); 0 for what is no convolution and no matrix product.
        shapes: of its inputs and of its first output, as text.
    """

    node: str
    op: str
    ms: float
    macs: int
    shapes: str

    @property
    def rate(self) -> float | None:
        """Billions of multiply-adds a second."""
        return self.macs / self.ms / 1e6 if self.macs and self.ms else None


@dataclass(frozen=True)
class LayerTimes:
    """The nodes of one file, slowest first; `print` it. `compared(after)` puts two files side by side."""

    name: str
    nodes: tuple[NodeTime, ...]

    def __str__(self) -> str:
        total = sum(node.ms for node in self.nodes) or 1.0
        rows = [
            (
                node.node,
                node.op,
                f"{node.ms:.3f}",
                f"{node.ms / total:.1%}",
                f"{node.macs / 1e6:.2f}",
                _rate(node),
                node.shapes,
            )
            for node in self.nodes
        ]
        title = f"{self.name}: {total:.3f} ms in {len(self.nodes)} nodes"
        return table(title, ("node", "op", "ms", "share", "MACs M", "GMAC/s", "shapes"), rows, width=200)

    def compared(self, after: LayerTimes, most: int = 30) -> str:
        """Node by node against another file whose nodes have the same names; the slowest `most` of the other's.

        `kept` is the speed-up over the ratio of multiply-adds: a node far below 1 got narrower and not faster.
        """
        before = {node.node: node for node in self.nodes}
        rows = []
        for node in after.nodes[:most]:
            old = before.get(node.node)
            if old is None or not node.ms:
                rows.append((node.node, node.op, "", f"{node.ms:.3f}", "", "", "", node.shapes))
                continue
            faster = old.ms / node.ms
            fewer = old.macs / node.macs if old.macs and node.macs else None
            rows.append(
                (
                    node.node,
                    node.op,
                    f"{old.ms:.3f}",
                    f"{node.ms:.3f}",
                    f"{faster:.2f}",
                    "" if fewer is None else f"{fewer:.2f}",
                    "" if fewer is None else f"{faster / fewer:.2f}",
                    node.shapes,
                )
            )
        header = ("node", "op", "ms before", "ms", "speed-up", "fewer MACs", "kept", "shapes")
        return table(f"{self.name} -> {after.name}", header, rows, width=200)


def layer_times(
    path: str | os.PathLike, threads: int = 1, runs: int = 20, batch: int = 1, size: int = 224
) -> LayerTimes:
    """Run an .onnx file under onnxruntime's profiler.

    Args:
        path: the file.
        threads: how many threads one operator may use.
        runs: how often; the first two do not count.
        batch: entries of a first axis of unknown size.
        size: entries of other axes of unknown size.

    Raises:
        ExportError: onnxruntime is missing or cannot run the file.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ExportError("times by layer need onnxruntime; run `pip install onnxruntime`") from error
    from tfprune.bench import _from_onnx

    file = _from_onnx(Path(path), batch, size)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads, options.enable_profiling = 3, threads, True
    with tempfile.TemporaryDirectory(prefix="tfprune-") as folder:
        options.profile_file_prefix = str(Path(folder, "profile"))
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for _ in range(runs + 2):
            session.run(None, dict(zip(file.inputs, file.arrays, strict=True)))
        events = json.loads(Path(session.end_profiling()).read_text())
    return LayerTimes(Path(path).stem, _nodes(events))


def _nodes(events: Sequence[dict[str, Any]]) -> tuple[NodeTime, ...]:
    times: dict[str, list[float]] = defaultdict(list)
    about: dict[str, dict[str, Any]] = {}
    for event in events:
        name = event.get("name", "")
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            name = name[: -len("_kernel_time")]
            times[name].append(event["dur"] / 1e3)
            about[name] = event["args"]
    nodes = [
        NodeTime(_layer(name), about[name]["op_name"], statistics.median(taken[2:] or taken), *_work(about[name]))
        for name, taken in times.items()
    ]
    return tuple(sorted(nodes, key=lambda node: -node.ms))


def _layer(name: str) -> str:
    """The node's name without the model's, which is another in a stripped model, and without what was done to it."""
    rest = name.partition("/")[2]
    return (rest if "/" in rest else name).removesuffix("_nchwc")


def _work(args: dict[str, Any]) -> tuple[int, str]:
    """Multiply-adds and shapes of a node."""
    takes = [next(iter(shape.values())) for shape in args.get("input_type_shape", [])]
    gives = [next(iter(shape.values())) for shape in args.get("output_type_shape", [])]
    text = " ".join("x".join(map(str, shape)) for shape in takes[:2]) + (
        " -> " + "x".join(map(str, gives[0])) if gives else ""
    )
    op = args.get("op_name", "")
    if not takes or not gives:
        return 0, text
    if "MatMul" in op or "Gemm" in op:  # whose weights are packed and no longer listed
        return int(prod(gives[0]) * (takes[0][-1] if takes[0] else 1)), text
    if "Conv" in op and len(takes) > 1:
        per_number = takes[0] if "Transpose" in op else gives[0]
        return int(prod(per_number) * prod(takes[1][1:])), text
    return 0, text


def _rate(node: NodeTime) -> str:
    return "" if node.rate is None else f"{node.rate:.1f}"


__all__ = ["LayerTimes", "NodeTime", "layer_times"]
