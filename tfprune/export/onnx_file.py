"""An ONNX model written to a file array by array, so that no weight is held a second time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tfprune.errors import ExportError
from tfprune.export.onnx_passes import Constants, read_names

#: What a protobuf message may have at most.
LIMIT = 2**31 - 1
#: Of a protobuf field whose content has a length.
_WITH_LENGTH = 2


def write_model(model: Any, constants: Constants, path: Path) -> None:
    """Write the model, with those of the arrays that are read as its initializers; both are empty afterwards.

    protobuf's own way puts the arrays into the model, and the model into bytes whose buffer doubles as it grows: four
    times the weights. Here the bytes around each array are protobuf's, and the array goes to the file as it is.

    Raises:
        ExportError: the file would have 2 GiB or more, which no protobuf message can.
    """
    from onnx import GraphProto, ModelProto, TensorProto

    read = read_names(model)
    for name in [name for name in constants if name not in read]:
        del constants[name]
    heads = {name: _head(name, value) + _opening(TensorProto, "raw_data", value.nbytes)
             for name, value in constants.items()}  # fmt: skip
    heads = {
        name: _opening(GraphProto, "initializer", len(head) + constants[name].nbytes) + head
        for name, head in heads.items()
    }
    graph = model.graph.SerializeToString()
    model.ClearField("graph")
    size = len(graph) + sum(map(len, heads.values())) + sum(value.nbytes for value in constants.values())
    start = model.SerializeToString() + _opening(ModelProto, "graph", size)
    if len(start) + size > LIMIT:
        raise ExportError(
            f"the .onnx file would have {(len(start) + size) / 2**30:.2f} GiB, and can have less than 2; export it as "
            f"saved_model or keras"
        )
    with path.open("wb") as file:
        file.write(start + graph)
        for name, head in heads.items():
            file.write(head)
            file.write(np.ascontiguousarray(constants.pop(name)).reshape(-1).view(np.uint8).data)


def _head(name: str, value: np.ndarray) -> bytes:
    """A tensor without its numbers."""
    from onnx import TensorProto, helper

    tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(value.dtype), dims=value.shape)
    return tensor.SerializeToString()


def _opening(message: Any, field: str, length: int) -> bytes:
    """What stands before so many bytes of a field: its number and their count."""
    return _varint(message.DESCRIPTOR.fields_by_name[field].number << 3 | _WITH_LENGTH) + _varint(length)


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    digits = bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes([*digits, number])
