"""From a file of TensorFlow to an ONNX model, by the road that export takes, proved equal before anyone gets it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfprune.errors import ExportError, TfpruneError, TraceError
from tfprune.export import onnx_passes, tf_to_onnx
from tfprune.export.onnx import OPSETS
from tfprune.export.registry import Options
from tfprune.export.trace import TracedGraph
from tfprune.from_tensorflow import frozen, saved
from tfprune.from_tensorflow.source import Shapes, Source, text
from tfprune.onnx_graph.model import load
from tfprune.verify import Verification, verify

_MARKER = "saved_model.pb"


@dataclass(frozen=True)
class Converted:
    """An ONNX model made of a file of TensorFlow.

    Attributes:
        model: the `onnx.ModelProto`.
        taken: which tensors became its inputs and outputs, and whether that was guessed.
        verification: how far it is from TensorFlow running the file.
    """

    model: Any
    taken: str
    verification: Verification


def from_tensorflow(
    path: str | os.PathLike,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    *,
    signature: str | None = None,
    shapes: Shapes = None,
    opset: int = 17,
    tolerance: float | None = None,
) -> Any:
    """Convert a frozen graph or a SavedModel to ONNX, to be traced, pruned and stripped.

    tf2onnx converts it, with the same passes before and after as in `tfprune.export`; then onnxruntime and TensorFlow
    run on the same random inputs.

    Args:
        path: a .pb file with a frozen GraphDef, or the directory of a SavedModel.
        inputs: names of tensors, such as `x:0`, or of a signature's arguments. None: a graph's placeholders (a guess),
            or all arguments.
        outputs: likewise. None: what no other node reads (a guess), or all results.
        signature: of a SavedModel; None: serving_default, or the only one.
        shapes: of inputs that have none in the file, or an open size, by name (or of the only one); None in it is a
            size that is open.
        opset: of the ONNX operators, 13 to 18.
        tolerance: the largest difference allowed, a fraction of the largest output; by default 1e-5 for float32.

    Returns:
        an `onnx.ModelProto`. Its inputs and outputs are called as the nodes are, `x` for `x:0`.

    Raises:
        TraceError: the file is missing, damaged, not frozen or has no such tensors; TensorFlow cannot run it, or
            tf2onnx not convert it.
        VerificationError: the two compute different things.

    >>> import pathlib, tempfile, tensorflow as tf, tfprune
    >>> with tf.Graph().as_default() as graph:
    ...     x = tf.compat.v1.placeholder(tf.float32, (None, 8, 8, 3), name="x")
    ...     y = tf.nn.relu(tf.nn.conv2d(x, tf.ones((3, 3, 3, 4)), 1, "SAME"), name="y")
    >>> path = pathlib.Path(tempfile.mkdtemp(), "graph.pb")
    >>> size = path.write_bytes(graph.as_graph_def().SerializeToString())
    >>> model = tfprune.from_tensorflow(path, ["x:0"], ["y:0"])
    >>> [value.name for value in (*model.graph.input, *model.graph.output)]
    ['x', 'y']
    """
    return convert(path, inputs, outputs, signature, shapes, opset, tolerance).model


def convert(
    path: str | os.PathLike,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    signature: str | None = None,
    shapes: Shapes = None,
    opset: int = 17,
    tolerance: float | None = None,
) -> Converted:
    """The same, with what was found on the way; see `from_tensorflow`."""
    if opset not in OPSETS:
        raise TraceError(f"opset must be {OPSETS[0]} to {OPSETS[-1]}, which is what tf2onnx can write; got {opset}")
    place = _place(Path(path))
    if place.is_dir():
        source = saved.read(place, signature, inputs, outputs, shapes)
    elif signature is not None:
        raise TraceError(f"{text(path)} is a frozen graph, which has no signatures; name inputs and outputs instead")
    else:
        source = frozen.read(place, inputs, outputs, shapes)
    model = load(_converted(source, opset, place))
    return Converted(model, source.taken, _proved(model, source, tolerance, place))


def _place(path: Path) -> Path:
    """The frozen graph, or the directory of the SavedModel.

    Raises:
        TraceError: it is neither.
    """
    if path.name == _MARKER:
        path = path.parent
    if path.is_dir() and not (path / _MARKER).is_file():
        raise TraceError(f"{text(path)} is no SavedModel: there is no {_MARKER} in it")
    if not path.exists():
        raise TraceError(f"{text(path)} does not exist; give a frozen .pb file or the directory of a SavedModel")
    return path


def _converted(source: Source, opset: int, path: Path) -> Any:
    options = Options(source.inputs, source.outputs, opset)
    try:
        model, _ = tf_to_onnx.convert(TracedGraph(source.graph_def, {}), options)
        constants = onnx_passes.take_constants(model)
        onnx_passes.fold_constants(model, constants)
        onnx_passes.simplify(model, constants)
        onnx_passes.finish(
            model,
            list(zip(source.inputs, source.shapes, strict=True)),
            list(zip(source.outputs, source.output_shapes, strict=True)),
            {},
        )
        onnx_passes.put_constants(model, constants)
        onnx_passes.check(model, opset, source.inputs, source.outputs, "name outputs in front of them")
    except ExportError as error:
        open_ = [name for name, shape in zip(source.inputs, source.shapes, strict=True) if None in (shape or ())]
        advice = f" (sizes of {', '.join(open_)} are open: shapes= may help)" if open_ else ""
        raise TraceError(f"{text(path)} cannot become an ONNX model: {error}{advice}") from error
    model.graph.name = path.stem
    return model


def _proved(model: Any, source: Source, tolerance: float | None, path: Path) -> Verification:
    def run(arrays: list) -> list:
        try:
            return source.run(arrays)
        except TfpruneError:
            raise
        except Exception as error:  # whatever TensorFlow says of the graph
            first = " ".join(str(error).split())[:300]
            raise TraceError(f"TensorFlow cannot run {text(path)} on random inputs: {first}") from error

    return verify(model, run, tolerance=tolerance).raise_if_different(f"{text(path)} converted to ONNX")
