"""ONNX models for the tests, written node by node."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Net:
    """A graph that grows: `add` appends a node, `weight` makes a random initializer."""

    def __init__(self, opset: int = 17, seed: int = 0, dtype=np.float32):
        self.opset, self.dtype, self.generator = opset, dtype, np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.count = 0

    def name(self, hint: str) -> str:
        self.count += 1
        return f"{hint}_{self.count}"

    def constant(self, array, hint: str = "c") -> str:
        name = self.name(hint)
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def ints(self, *numbers: int) -> str:
        return self.constant(np.array(numbers, np.int64), "ints")

    def weight(self, *shape: int) -> str:
        scale = (2 / max(1, np.prod(shape[1:]))) ** 0.5 if len(shape) > 1 else 0.4
        return self.constant(self.generator.normal(0, scale, shape).astype(self.dtype), "w")

    def positive(self, *shape: int) -> str:
        return self.constant(self.generator.uniform(0.5, 1.5, shape).astype(self.dtype), "p")

    def add(self, op: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes):
        names = [self.name(op) for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=names[0], domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    def conv(self, x: str, inputs: int, filters: int, kernel: int = 3, bias: bool = True, group: int = 1, **attributes):
        w = self.weight(filters, inputs // group, kernel, kernel)
        given = [x, w] + ([self.weight(filters)] if bias else [])
        pad = kernel // 2
        settings = {"pads": [pad] * 4, "group": group, **attributes}
        return self.add("Conv", *given, **settings)

    def norm(self, x: str, width: int) -> str:
        parameters = [self.positive(width), self.weight(width), self.weight(width), self.positive(width)]
        return self.add("BatchNormalization", x, *parameters)

    def dense(self, x: str, inputs: int, units: int, bias: bool = True) -> str:
        y = self.add("MatMul", x, self.weight(inputs, units))
        return self.add("Add", y, self.weight(units)) if bias else y

    def model(self, inputs: dict, outputs: list[str], **settings) -> onnx.ModelProto:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))

        def info(name, shape):
            if isinstance(shape, tuple) and shape and isinstance(shape[0], type):
                return helper.make_tensor_value_info(
                    name, helper.np_dtype_to_tensor_dtype(np.dtype(shape[0])), shape[1]
                )
            return helper.make_tensor_value_info(name, kind, shape)

        graph = helper.make_graph(
            self.nodes,
            "net",
            [info(name, shape) for name, shape in inputs.items()],
            [helper.make_tensor_value_info(name, kind, None) for name in outputs],
            self.initializers,
        )
        domains = sorted({node.domain for node in self.nodes} - {""})
        opsets = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(d, 1) for d in domains)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=settings.pop("ir_version", 8), **settings)
        return with_shapes(model)


def with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The outputs' types as inferred, as exporters write them."""
    inferred = onnx.shape_inference.infer_shapes(model)
    types = {value.name: value.type for value in inferred.graph.output}
    for value in model.graph.output:
        if types[value.name].tensor_type.HasField("shape"):
            value.type.CopyFrom(types[value.name])
        else:
            value.type.CopyFrom(
                helper.make_tensor_type_proto(value.type.tensor_type.elem_type or TensorProto.FLOAT, None)
            )
    return model


def numbers(model: onnx.ModelProto) -> int:
    """How many floats the file's weights have."""
    floats = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
    return sum(int(np.prod(t.dims)) for t in model.graph.initializer if t.data_type in floats)
