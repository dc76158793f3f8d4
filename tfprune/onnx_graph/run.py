"""An ONNX model run in onnxruntime, to be compared with another."""

from __future__ import annotations

import functools
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from tfprune.errors import TfpruneError, TraceError
from tfprune.onnx_graph.infer import Known, declared_shape
from tfprune.onnx_graph.lowering import Variable
from tfprune.onnx_graph.model import LARGEST, copied, load, weights_in_bytes, write_large
from tfprune.onnx_graph.trace import nodes_of

_LARGEST = 1 << 30  # numbers of one input
_TOLERANCE = {onnx.TensorProto.DOUBLE: 1e-12, onnx.TensorProto.FLOAT16: 5e-3, onnx.TensorProto.BFLOAT16: 5e-2}


def random_inputs(model: Any, samples: int = 2, seed: int = 0) -> list[NDArray]:
    """Random arrays for the inputs, in their order; whole numbers are rows of the tables that they look up.

    Args:
        samples: the size of an axis of unknown size that comes first, and of others of the same name.
    """
    model = load(model)
    fixed = {tensor.name for tensor in model.graph.initializer}
    values = [value for value in model.graph.input if value.name not in fixed]
    batch = {dim.dim_param for value in values for dim in value.type.tensor_type.shape.dim[:1]} - {""}
    known = functools.cache(lambda: Known(model, nodes_of(model)))
    generator = np.random.default_rng(seed)
    arrays = []
    for value in values:
        shape = declared_shape(value.type)
        if shape is None:
            raise TraceError(f"the input {value.name!r} has no shape; give it one, with names for unknown sizes")
        names = [dim.dim_param for dim in value.type.tensor_type.shape.dim]
        sizes: Any = [samples if size is None and (not axis or names[axis] in batch) else size
                      for axis, size in enumerate(shape)]  # fmt: skip
        sizes = tuple(known().sizes[0][value.name][axis] if size is None else size for axis, size in enumerate(sizes))
        if math.prod(sizes) > _LARGEST:
            raise TraceError(f"the input {value.name!r} has shape {sizes}, too large to be run")
        kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        if kind.kind in "iu":
            arrays.append(generator.integers(0, _rows(known(), value.name), sizes).astype(kind))
        elif kind.kind == "b":
            arrays.append(generator.integers(0, 2, sizes).astype(kind))
        else:
            arrays.append(generator.standard_normal(sizes).astype(kind))
    return arrays


def _rows(known: Known, name: str) -> int:
    """How many different numbers an input may hold."""
    names, rows = {name}, []
    for node in known.nodes:
        if node.op in ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze") and node.inputs[0] in names:
            names.add(node.outputs[0])
        if node.op == "Gather" and node.inputs[1] in names and node.inputs[0] in known.sizes[0]:
            rows.append(known.sizes[0][node.inputs[0]][node.attributes.get("axis", 0)])
    return max(1, min(rows, default=2))


def run(model: Any, inputs: Sequence[NDArray], weights: Sequence[tuple[Variable, NDArray]] = ()) -> list[NDArray]:
    """The outputs of a model in onnxruntime on the CPU.

    Args:
        inputs: in the order of the model's inputs.
        weights: (variable, array): what it computes with instead of what it holds; it is not changed.
    """
    model = load(model)
    if weights:
        copy = copied(model)
        for variable, array in weights:
            variable.put(copy, array)
        model = copy
    fixed = {tensor.name for tensor in model.graph.initializer}
    names = [value.name for value in model.graph.input if value.name not in fixed]
    started = session(model)
    try:
        results = started.run(None, dict(zip(names, inputs, strict=True)))
    except Exception as error:
        raise _failed(error) from error
    return [np.asarray(result) for result in results]


def session(model: onnx.ModelProto) -> Any:
    """An onnxruntime session that computes node after node, as the model says.

    Raises:
        TfpruneError: onnxruntime is missing or cannot run the model.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise TfpruneError("running an ONNX model needs onnxruntime; run `pip install onnxruntime`") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Its optimisations are not all exact (microsoft/onnxruntime#18136).
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")  # a second copy of each weight
    try:
        if weights_in_bytes(model) + (1 << 20) < LARGEST:
            return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            write_large(model, path, "weights")
            return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise _failed(error) from error


def _failed(error: Exception) -> TfpruneError:
    return TfpruneError(f"onnxruntime cannot run the model: {' '.join(str(error).split())[:400]}")


def tolerance_of(model: Any) -> float:
    """The tolerance of the coarsest type of the model's weights and outputs."""
    graph = load(model).graph
    kinds = [tensor.data_type for tensor in graph.initializer if tensor.dims]
    kinds += [value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)]
    floats = [_TOLERANCE.get(kind, 1e-5) for kind in kinds if kind in (1, *_TOLERANCE)]
    return max(floats, default=1e-5)
