"""An ONNX model and its nodes as the rest of this folder sees them; loading, saving, what is refused at the door."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, external_data_helper, numpy_helper

from tfprune.errors import TraceError
from tfprune.files import atomic_path

#: what a protobuf message can hold; more goes beside the file
LARGEST = 2_000_000_000
_MARGIN = 1 << 20
# Numbers of a tensor that stays in the model: shapes are inferred from such, and not from what is in another file.
_INSIDE = 64
#: bytes of a tensor that is not held a second time as an array
LARGE = 1 << 26
# Files of weights that `_read` has looked at; tensors that lie in them are read when somebody asks.
_MAPPED: set[str] = set()
_QUANTIZED = frozenset(
    "QuantizeLinear DequantizeLinear DynamicQuantizeLinear QLinearConv QLinearMatMul ConvInteger MatMulInteger".split()
)
DOMAINS = ("", "ai.onnx")
# Types that take whole bytes, one number after the other.
_WHOLE = (
    TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.INT32,
    TensorProto.INT64, TensorProto.INT16, TensorProto.INT8, TensorProto.UINT8,
)  # fmt: skip


class Node:
    """A node of the graph.

    Attributes:
        proto: the node itself, in the model that was traced.
        index: its place among the nodes.
        name: its name, or its first output's where it has none; unique.
        opset: of its domain.
    """

    def __init__(self, proto: onnx.NodeProto, index: int, name: str, opset: int):
        self.proto, self.index, self.name, self.opset = proto, index, name, opset
        self.op = proto.op_type
        self.inputs, self.outputs = tuple(proto.input), tuple(proto.output)

    @functools.cached_property
    def attributes(self) -> dict[str, Any]:
        """The attributes' values by name."""
        return {a.name: onnx.helper.get_attribute_value(a) for a in self.proto.attribute}

    @property
    def standard(self) -> bool:
        """Whether it is one of ONNX's own operators."""
        return self.proto.domain in DOMAINS

    @functools.cached_property
    def captured(self) -> tuple[str, ...]:
        """What the graphs inside (If, Loop, Scan) read from outside."""
        found: dict[str, None] = {}
        for graph in subgraphs(self.proto):
            found.update(dict.fromkeys(_captured(graph)))
        return tuple(found)

    def __repr__(self) -> str:
        return f"<{self.op} {self.name}>"


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs that are a node's attributes."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _captured(graph: onnx.GraphProto) -> Iterator[str]:
    own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        inner = [name for inside in subgraphs(node) for name in _captured(inside)]
        yield from (name for name in (*node.input, *inner) if name and name not in own)
        own.update(node.output)
    yield from (value.name for value in graph.output if value.name not in own)


def load(model: Any) -> onnx.ModelProto:
    """An ONNX model, read from a file or as it is, with all its weights.

    Of a file with more than 2 GB of weights the large ones stay where they are, and `array` reads one at a time.

    Raises:
        TraceError: the file is missing or damaged, its weights lie outside its folder or are missing, or it computes
            with quantized weights.
    """
    if isinstance(model, str | os.PathLike):
        model = _read(Path(model))
    if not isinstance(model, onnx.ModelProto):
        raise TraceError(
            f"an onnx.ModelProto or the path of an .onnx file is needed, and a {type(model).__name__} came"
        )
    if not model.graph.node and not model.graph.output:
        raise TraceError("the ONNX model has no graph: the file is empty or damaged")
    outside = [t.name for t in tensors(model.graph) if t.data_location == TensorProto.EXTERNAL and not _mapped(t)]
    if outside:
        raise TraceError(
            f"the weights of the ONNX model are still in another file ({outside[0]!r}); give the path of the file, "
            f"or load it with onnx.load(path)"
        )
    found = sorted({node.op_type for node in model.graph.node} & _QUANTIZED)
    if found:
        raise TraceError(
            f"the ONNX model is quantized ({', '.join(found)}), and its channels cannot be read; prune the float model "
            f"first and quantize the result"
        )
    return model


def _read(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        _refuse_tensorflow(path)
        raise TraceError(f"{str(path)!r} does not exist or is no file; give an .onnx file or a loaded keras.Model")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:
        _refuse_tensorflow(path)
        raise TraceError(f"{str(path)!r} is no ONNX model, or is damaged ({_first(error)})") from error
    if not model.graph.node:  # protobuf reads many a message as another
        _refuse_tensorflow(path)
    folder = path.resolve().parent
    beside = [tensor for tensor in tensors(model.graph) if tensor.data_location == TensorProto.EXTERNAL]
    places = [_check_place(tensor, folder, path) for tensor in beside]
    if weights_in_bytes(model) > LARGEST:
        for tensor, place in zip(beside, places, strict=True):
            _leave_outside(tensor, place)
    try:
        external_data_helper.load_external_data_for_model(model, str(folder))
    except Exception as error:
        raise TraceError(f"the weights beside {str(path)!r} cannot be read ({_first(error)})") from error
    return model


def _refuse_tensorflow(path: Path) -> None:
    """Raises: TraceError: it is a frozen graph or a SavedModel."""
    if path.is_dir() or (path.is_file() and path.suffix == ".pb"):
        raise TraceError(
            f"{str(path)!r} is no ONNX model; of a frozen graph or a SavedModel of TensorFlow, "
            f"tfprune.from_tensorflow(path) makes one"
        )


def _leave_outside(tensor: onnx.TensorProto, place: Path) -> None:
    """Have a tensor read when somebody asks, unless it is small or has numbers that are no whole bytes."""
    about = _about(tensor)
    start, size = int(about.get("offset", 0)), size_of(tensor) * _width(tensor.data_type)
    length = int(about.get("length", place.stat().st_size - start))
    if size < LARGEST // 2000 or length != size or tensor.data_type not in _WHOLE:
        return
    _MAPPED.add(str(place))
    del tensor.external_data[:]
    for key, value in (("location", str(place)), ("offset", start), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    tensor.data_location = TensorProto.DEFAULT  # onnx, which loads what is outside, must not see it


def _about(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _mapped(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor's numbers are in a file that `array` reads."""
    return bool(tensor.external_data) and _about(tensor).get("location") in _MAPPED


def loaded(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """A tensor with its numbers in it."""
    if not _mapped(tensor):
        return tensor
    result = tensor_of(array(tensor), tensor.name, tensor.data_type)
    result.doc_string = tensor.doc_string
    return result


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy; protobuf's own way fails with 2 GB."""
    result = without_weights(model)
    for tensor in model.graph.initializer:
        result.graph.initializer.append(tensor)
    return result


def _check_place(tensor: onnx.TensorProto, folder: Path, path: Path) -> Path:
    """The file that a tensor's numbers are in.

    Raises:
        TraceError: it is not beside the model, or has fewer numbers than the tensor says.
    """
    about = _about(tensor)
    place = (folder / about.get("location", "")).resolve()
    if not place.is_relative_to(folder):
        raise TraceError(
            f"{str(path)!r} puts the weight {tensor.name!r} into {about.get('location')!r}, outside of the model's "
            f"folder, which is not read"
        )
    if not place.is_file():
        raise TraceError(f"{str(path)!r} needs {about.get('location')!r} beside it, which is not there")
    try:
        start, length = int(about.get("offset", 0)), int(about.get("length", 0))
    except ValueError as error:
        raise TraceError(f"{str(path)!r}: where the weight {tensor.name!r} is, is not a number ({error})") from error
    if min(start, length) < 0 or start + length > place.stat().st_size:
        raise TraceError(f"{str(path)!r} needs more of {place.name!r} than there is; the file is cut off")
    return place


def tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor written into a graph, at any depth."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
        for inside in subgraphs(node):
            yield from tensors(inside)


def array(tensor: onnx.TensorProto) -> NDArray:
    """A tensor's numbers.

    Raises:
        TraceError: there are more or fewer of them than its shape says.
    """
    try:
        result = _from_file(tensor) if _mapped(tensor) else numpy_helper.to_array(tensor)
    except Exception as error:
        raise TraceError(f"the tensor {tensor.name!r} is damaged: {_first(error)}") from error
    if result.shape != tuple(tensor.dims):
        raise TraceError(f"the tensor {tensor.name!r} has shape {result.shape}, and says {tuple(tensor.dims)}")
    return result


def _from_file(tensor: onnx.TensorProto) -> NDArray:
    """A tensor's numbers, read-only; they take memory as long as somebody has them."""
    about, kind = _about(tensor), onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    start, shape = int(about["offset"]), tuple(tensor.dims)
    return np.memmap(about["location"], np.uint8, "r", start, int(about["length"])).view(kind).reshape(shape)


def tensor_of(values: NDArray, name: str, like: int | None = None) -> onnx.TensorProto:
    """An array as a tensor.

    Args:
        like: ONNX's number of the type, where numpy's says too little.
    """
    tensor = TensorProto(
        name=name, data_type=onnx.helper.np_dtype_to_tensor_dtype(values.dtype) if like is None else like
    )
    tensor.dims.extend(values.shape)
    tensor.raw_data = np.ascontiguousarray(values).tobytes()
    return tensor


def size_of(tensor: onnx.TensorProto) -> int:
    """How many numbers a tensor says it has."""
    return math.prod(tensor.dims)


def weights_in_bytes(model: onnx.ModelProto) -> int:
    """About how large the model is, without making its bytes."""
    return sum(size_of(t) * _width(t.data_type) for t in model.graph.initializer)


def _width(data_type: int) -> int:
    try:
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(data_type)).itemsize
    except (KeyError, TypeError):
        return 8


def save(model: onnx.ModelProto, path: str | os.PathLike) -> Path:
    """Write an ONNX model; one of more than 2 GB gets its weights in a file `<name>.data` beside it.

    The file appears whole or not at all.

    Raises:
        TfpruneError: it cannot be written.
    """
    path = Path(path)
    if weights_in_bytes(model) + _MARGIN < LARGEST:
        with atomic_path(path) as scratch:
            scratch.write_bytes(model.SerializeToString())
        return path
    data = path.name + ".data"
    with atomic_path(path.parent / data) as beside:
        with atomic_path(path) as scratch:
            write_large(model, scratch, data)
            os.replace(scratch.parent / data, beside)
    return path


def write_large(model: onnx.ModelProto, path: Path, data: str) -> None:
    """Write a model's weights to `data` beside `path`; the model itself is not changed."""
    light = without_weights(model)
    with open(path.parent / data, "wb") as file:
        for tensor in model.graph.initializer:
            if size_of(tensor) <= _INSIDE:
                light.graph.initializer.append(tensor)
                continue
            values = np.ascontiguousarray(array(tensor))
            file.write(b"\0" * (-file.tell() % 64))
            entry = light.graph.initializer.add()
            entry.name, entry.data_type, entry.doc_string = tensor.name, tensor.data_type, tensor.doc_string
            entry.dims.extend(tensor.dims)
            entry.data_location = TensorProto.EXTERNAL
            for key, value in (("location", data), ("offset", file.tell()), ("length", values.nbytes)):
                entry.external_data.add(key=key, value=str(value))
            file.write(values.data if values.nbytes else b"")
    path.write_bytes(light.SerializeToString())


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of all but the initializers."""
    result = onnx.ModelProto()
    for field, value in model.ListFields():
        if field.name == "graph":
            for inner, part in value.ListFields():
                if inner.name != "initializer":
                    _put(result.graph, inner, part)
        else:
            _put(result, field, value)
    return result


def _put(message: Any, field: Any, value: Any) -> None:
    if field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED:
        getattr(message, field.name).extend(value)
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(value)
    else:
        setattr(message, field.name, value)


def _first(error: Exception) -> str:
    """The first line of what an error says."""
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
