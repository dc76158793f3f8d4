"""From an ONNX model to its ChannelGraph. Weights are looked at by shape alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

import tfprune.onnx_graph.rules  # noqa: F401  (registers the rules)
from tfprune.channels.graph import Call, ChannelGraph
from tfprune.channels.labels import Shape
from tfprune.channels.ops import Op, Source
from tfprune.channels.weights import Weight
from tfprune.errors import TfpruneError, TraceError
from tfprune.onnx_graph.infer import Known
from tfprune.onnx_graph.lowering import Lowering, Refused, Variable, find_rule
from tfprune.onnx_graph.model import DOMAINS, Node, load, without_weights


@dataclass
class Body:
    """What the rebuild needs beside the graph.

    Attributes:
        nodes: all nodes of the model.
        known: shapes and constants.
        values: tensor's name -> value.
        lowered: node -> its call's inputs by number, for nodes that became calls.
    """

    nodes: list[Node]
    known: Known
    values: dict[str, int]
    lowered: dict[int, dict[int, int]] = field(default_factory=dict)


def trace(model: Any) -> ChannelGraph:
    """Read an ONNX model as a graph of channels.

    Axes are counted with the batch axis, which is an axis without channels like any other: a node that moves or mixes
    it needs no case of its own.

    Args:
        model: an `onnx.ModelProto`, or the path of a file.

    Raises:
        TraceError: it is missing, damaged or quantized, or its graph is not one that ONNX allows.
    """
    try:
        proto = load(model)
        check(proto)
        return _traced(proto)
    except TfpruneError:
        raise
    except Exception as error:  # damaged attributes and sizes come out as whatever reads them first
        raise TraceError(f"the ONNX model cannot be followed: {type(error).__name__}: {error}") from error


def _traced(proto: onnx.ModelProto) -> ChannelGraph:
    nodes = nodes_of(proto)
    known = Known(proto, nodes)
    tracer = _Tracer(proto, nodes, known)
    inputs = [tracer.input(value) for value in proto.graph.input if value.name not in known.initializers]
    for node in nodes:
        tracer.lower(node)
    outputs = [tracer.value(value.name) for value in proto.graph.output]
    tracer.count_the_rest()
    return ChannelGraph(
        proto.graph.name or "model",
        tracer.calls,
        tracer.shapes,
        inputs,
        outputs,
        (),
        proto,
        dict(tracer.variables),
        Body(nodes, known, tracer.values, tracer.lowered),
        lambda variable: variable.numpy(),
        vectors_anywhere=True,
    )


def check(model: onnx.ModelProto) -> None:
    """Have ONNX's own checker look at everything but the weights.

    Raises:
        TraceError: the graph has a cycle, is not sorted, names an operator that does not exist, or the like.
    """
    try:
        onnx.checker.check_model(as_inputs(model))
    except Exception as error:
        text = " ".join(str(error).split())
        raise TraceError(f"the ONNX model is not valid: {text[:400]}") from error


def as_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without its weights, as if they were inputs."""
    light = without_weights(model)
    given = {value.name for value in light.graph.input}
    for tensor in model.graph.initializer:
        if tensor.name not in given:
            given.add(tensor.name)
            light.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    for value in light.graph.output:  # the checker wants a shape, runtimes do not
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
            value.type.tensor_type.shape.SetInParent()
    return light


def nodes_of(model: onnx.ModelProto) -> list[Node]:
    """The nodes of a model, with unique names."""
    opsets = {opset.domain: opset.version for opset in model.opset_import}
    for domain in DOMAINS:
        opsets.setdefault(domain, next((opsets[d] for d in DOMAINS if d in opsets), 1))
    taken: set[str] = set()
    nodes = []
    for index, proto in enumerate(model.graph.node):
        base = proto.name or next((name for name in proto.output if name), "") or f"{proto.op_type}_{index}"
        base = base.strip("/") or f"{proto.op_type}_{index}"
        name, number = base, 1
        while name in taken:
            number += 1
            name = f"{base}#{number}"
        taken.add(name)
        nodes.append(Node(proto, index, name, opsets.get(proto.domain, 1)))
    return nodes


class _Tracer:
    def __init__(self, model: onnx.ModelProto, nodes: list[Node], known: Known):
        self.known = known
        self.calls: list[Call] = []
        self.shapes: dict[int, Shape] = {}
        self.values: dict[str, int] = {}
        self.variables: dict[Weight, Variable] = {}
        self.lowered: dict[int, dict[int, int]] = {}
        self.softmaxed: set[str] = set()
        self._found: dict[tuple, Variable] = {}
        self._weights: dict[int, Weight] = {}
        self._keys: dict[str, int] = {}
        self.read = {name for node in nodes for name in (*node.inputs, *node.captured)}
        self.read |= {value.name for value in model.graph.output}

    def new_value(self, shape: Shape) -> int:
        value = len(self.shapes)
        self.shapes[value] = shape
        return value

    def input(self, info: onnx.ValueInfoProto) -> int:
        return self._source(info.name, info.name, "Input", None)

    def _source(self, name: str, layer: str, kind: str, array: Any, origin: Any = None) -> int:
        value = self.values[name] = self.new_value(self.known.shapes.get(name) or ())
        op: Op = Source(layer, (), (value,), (), array)
        self.calls.append(Call(layer, kind, (), (value,), (op,), origin))
        return value

    def value(self, name: str) -> int:
        """The value that a tensor is."""
        if name in self.values:
            return self.values[name]
        if self.known.is_constant(name):
            array = self.known.array(name)
            known = array if array.dtype.kind in "fiub" else None
            return self._source(name, name, "Constant", known, ("constant", name))
        if name in self.known.data:  # put together from shapes
            return self._source(name, name, "Shape", None, ("shape", name))
        raise TraceError(f"{name!r} is read, and nothing makes it")

    def variable(
        self, key: tuple, node: Node, index: int, label: str, shape: tuple[int, ...], pattern: Any = None
    ) -> Variable:
        """The weight that a constant is for a node; nodes with the same key share it."""
        found = self._found.get(key)
        if found is None or found.shape != shape:
            found = self._found[key] = Variable(self.known, node.inputs[index], label, shape, pattern)
        if (node, index) not in found.uses:
            found.uses.append((node, index))
        return found

    def weight(self, variable: Variable, layer: str) -> Weight:
        known = self._weights.get(id(variable))
        if known is None:
            key = f"{layer}/{variable.label}"
            count = self._keys[key] = self._keys.get(key, 0) + 1
            known = Weight(key if count == 1 else f"{key}#{count}", variable.shape)
            self._weights[id(variable)], self.variables[known] = known, variable
        return known

    def lower(self, node: Node) -> None:
        outputs = [name for name in node.outputs if name]
        if all(map(self.known.is_constant, outputs)) or (
            all(name in self.known.data for name in outputs) and self._follows_inputs(node)
        ):
            return
        shapes = [self.known.shapes.get(name) for name in outputs]
        given = [name for name in node.inputs if name]
        lowering = Lowering(node, self, [shape or () for shape in shapes])
        rule = find_rule(node)
        unranked = [name for name in (*given, *outputs) if self.known.shapes.get(name) is None]
        if rule is None:
            result: Any = Refused(f"{node.name} is a {_kind(node)}, which is not followed")
        elif unranked:
            result = Refused(f"{node.name} is not followed: the rank of {unranked[0]!r} is not known")
        else:
            try:
                result = rule(lowering)
            except LookupError as error:
                result = Refused(str(error))
            if isinstance(result, Refused):
                result = Refused(f"{node.name} is not followed: {result}")
        if isinstance(result, Refused):
            lowering.ops.clear()
            read = dict.fromkeys(name for name in (*given, *node.captured) if not self.known.is_constant(name))
            lowering.inputs = tuple(self.value(name) for name in read)
            result = lowering.opaque(str(result))
        values = result if isinstance(result, tuple) else (result,)
        values = (*values, *(lowering.unknown(shape or ()) for shape in shapes[len(values) :]))
        self.values.update(zip(outputs, values, strict=True))
        inputs = tuple(dict.fromkeys(lowering.inputs))
        self.lowered[node.index] = dict(lowering.values)
        self.calls.append(
            Call(node.name, node.op, inputs, values, tuple(lowering.ops), node, rewrite=lowering.rewriter)
        )

    def _follows_inputs(self, node: Node) -> bool:
        """Whether the unknown sizes that a Shape gives are sizes of the model's inputs, which can be asked there."""
        if node.op not in ("Shape", "Size"):
            return True
        first, second = (np.ravel(part) for part in self.known.data[node.outputs[0]])
        if node.op == "Size":
            return False
        return all(a == b or self.known.input_of(int(a), int(b)) for a, b in zip(first, second, strict=True))

    def count_the_rest(self) -> None:
        """Constants of floats that no rule has called a weight still count as parameters."""
        named = {variable.name for variable in self.variables.values()}
        readers: dict[str, Node] = {}
        for node in self.known.nodes:
            for name in (*node.inputs, *node.captured):
                readers.setdefault(name, node)
        behind = {
            name for node in self.known.nodes if all(map(self.known.is_constant, node.outputs)) for name in node.inputs
        }
        for name, node in readers.items():
            if name in named or name in behind or not self.known.is_constant(name):
                continue
            if self.known.types.get(name) not in _FLOATS or name not in self.known.sizes[0]:
                continue
            variable = Variable(self.known, name, "constant", self.known.sizes[0][name], None)
            if np.prod(variable.shape) > 1:
                self.weight(variable, node.name)


_FLOATS = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
)


def _kind(node: Node) -> str:
    return node.op if node.standard else f"{node.proto.domain}.{node.op}"
