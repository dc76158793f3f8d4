"""What is known of every tensor before the model runs: its shape, and its numbers where they are constants or shapes.

Each node's outputs are inferred by ONNX itself, one node after the other, with every axis of unknown size set to a
number; what constants and shapes give is computed by ONNX's reference implementation and handed on to the next node.
This is done twice with different numbers: what comes out the same both times does not depend on them, and what comes
out differently is unknown. So a Reshape whose target is put together from a Shape, a Gather and a Concat needs no
symbols and no evaluator of our own.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TypeProto, defs, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from tfprune.channels.labels import Shape
from tfprune.errors import TraceError
from tfprune.onnx_graph.model import LARGE, Node, array, size_of

# What the batch axis and the other axes of unknown size are set to, first and second time.
_BATCH = (2, 3)
_OTHERS = ((224, 256), (64, 96), (16, 24), (8, 10))
_SMALL = 1 << 16  # numbers; constants of more are computed when somebody asks
_LARGEST = 1 << 27
_SCALES = 8  # the most axes that anything is resized along
_RANDOM = frozenset("RandomNormal RandomUniform RandomNormalLike RandomUniformLike Bernoulli Multinomial".split())


class Known:
    """What is known of a model's tensors, by name.

    Attributes:
        nodes: the nodes of the graph.
        types: name -> ONNX's number of the element type, where it is a tensor.
        shapes: name -> shape, where the rank is known; None for axes of unknown size.
        data: name -> the numbers in each of the two runs, for small constants and what is computed from shapes.
        constants: names of what does not depend on the inputs.
        zeros: names of small tensors that are 0, whatever their size is.
    """

    def __init__(self, model: onnx.ModelProto, nodes: Sequence[Node]):
        self.model, self.nodes = model, nodes
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.makers = {name: node for node in nodes for name in node.outputs if name}
        self.opsets = {opset.domain: opset.version for opset in model.opset_import}
        self._arrays: dict[str, NDArray] = {}
        self.constants: set[str] = set(self.initializers)
        self._evaluators: dict[int, Any] = {}
        runs = self._runs()
        self.sizes = tuple(run.shapes for run in runs)
        self.types = {name: t.tensor_type.elem_type for name, t in runs[0].types.items() if t.HasField("tensor_type")}
        self.shapes = {name: merged(shape, runs[-1].shapes.get(name)) for name, shape in runs[0].shapes.items()}
        pairs = {name: (d, runs[-1].data[name]) for name, d in runs[0].data.items() if name in runs[-1].data}
        self.zeros = {name for name, pair in pairs.items() if not any(np.any(part) for part in pair)}
        # Floats that come in another number each time are no shape, but a constant that is repeated.
        self.data = {name: pair for name, pair in pairs.items() if pair[0].dtype.kind in "iub" or _alike(*pair)}
        for name, (first, second) in self.data.items():
            if name not in self.constants and np.array_equal(first, second):
                self.constants.add(name)
                self._arrays.setdefault(name, first)
        for node in self.nodes:
            if self.is_pure(node) and all(name in self.constants for name in node.inputs if name):
                self.constants.update(name for name in node.outputs if name)
        self.batch = self._batch()

    def _runs(self) -> tuple[_Run, _Run]:
        fixed = _Fixed(self)
        if all(size is not None for shape in fixed.inputs.values() for size in shape or ()):
            first = _Run(self, fixed, _BATCH[0], 0)
            return first, first
        for small, large in _OTHERS:
            pair = _Run(self, fixed, _BATCH[0], small), _Run(self, fixed, _BATCH[1], large)
            if not any(run.failed for run in pair):
                break
        return pair

    @staticmethod
    def is_pure(node: Node) -> bool:
        """Whether a node computes the same from the same inputs, and has any."""
        inside = any(attribute.HasField("g") for attribute in node.proto.attribute)
        return node.standard and node.op not in _RANDOM and not inside and any(node.inputs)

    def _batch(self) -> tuple[int, int]:
        for value in self.model.graph.input:
            pair = [sizes.get(value.name) for sizes in self.sizes]
            if value.name not in self.initializers and all(pair):
                return pair[0][0], pair[1][0]  # type: ignore[index]
        return 1, 1

    def is_constant(self, name: str) -> bool:
        """Whether a tensor is the same whatever the model is given."""
        return name in self.constants

    def array(self, name: str) -> NDArray:
        """A constant's numbers.

        Raises:
            TraceError: it is damaged, or too large to be computed.
        """
        found = self._arrays.get(name)
        if found is None:
            if name in self.initializers:
                found = array(self.initializers[name])
                if found.nbytes > LARGE:
                    return found
            else:
                node = self.makers[name]
                made = self.evaluate(node, [self._given(given) for given in node.inputs])
                for other, value in zip(node.outputs, made, strict=False):
                    self._arrays[other] = value
                found = self._arrays[name]
            self._arrays[name] = found
        return found

    def forget(self, name: str) -> None:
        """Ask anew for a constant that has been changed."""
        self._arrays.pop(name, None)

    def _given(self, name: str) -> NDArray | None:
        return self.array(name) if name else None

    def numbers(self, name: str) -> list[int | None] | None:
        """The numbers of a small tensor of whole numbers, None for those that are not known; None if it is no such."""
        if name in self.data:
            first, second = (np.ravel(part) for part in self.data[name])
            if first.shape != second.shape or first.dtype.kind not in "iub":
                return None
            return [int(a) if a == b else None for a, b in zip(first, second, strict=True)]
        if name in self.constants:
            values = self.array(name)
            return [int(value) for value in values.ravel()] if values.size <= _SMALL else None
        return None

    def input_of(self, first: int, second: int) -> tuple[str, int, int] | None:
        """The input and its axis that have these sizes in the two runs, and how many times; None if none has."""
        found = None
        for value in self.model.graph.input:
            if value.name in self.initializers:
                continue
            pairs = zip(*(sizes.get(value.name, ()) for sizes in self.sizes), strict=True)
            for axis, (a, b) in enumerate(pairs):
                if a != b and first % a == 0 and first * b == second * a and (found is None or first // a < found[2]):
                    found = value.name, axis, first // a
        return found

    def per_sample(self, name: str, without: Sequence[int] = ()) -> int:
        """How many positions a tensor has for one sample, some axes not counted; 0 if unknown."""
        counts = []
        for sizes, batch in zip(self.sizes, self.batch, strict=True):
            shape = sizes.get(name)
            if shape is None:
                return 0
            counts.append(math.prod(size for axis, size in enumerate(shape) if axis not in without) / max(1, batch))
        return round(counts[0]) if counts[0] == counts[1] else 0

    def evaluate(self, node: Node, inputs: Sequence[NDArray | None]) -> list[NDArray]:
        """What a node makes of these arrays, by ONNX's reference implementation."""
        if node.op == "Constant":
            return [constant_of(node)]
        key = node.index
        if key not in self._evaluators:
            names = [name or "" for name in node.inputs]
            graph = onnx.helper.make_graph(
                [node.proto],
                "one",
                [onnx.helper.make_value_info(name, TypeProto()) for name in dict.fromkeys(names) if name],
                [onnx.helper.make_value_info(name, TypeProto()) for name in node.outputs if name],
            )
            opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in self.opsets.items()]
            self._evaluators[key] = ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=opsets))
        given = {name: value for name, value in zip(node.inputs, inputs, strict=True) if name}
        with np.errstate(all="ignore"):
            made = iter(self._evaluators[key].run(None, given))
        return [np.asarray(next(made)) if name else np.zeros(0) for name in node.outputs]


def _alike(first: NDArray, second: NDArray) -> bool:
    return first.shape == second.shape


def merged(first: tuple[int, ...], second: tuple[int, ...] | None) -> Shape | None:
    """The shape of both runs; None where the ranks differ."""
    if second is None or len(first) != len(second):
        return None
    return tuple(a if a == b else None for a, b in zip(first, second, strict=True))


def constant_of(node: Node) -> NDArray:
    """What a Constant node holds."""
    name, value = next(iter(node.attributes.items()))
    if name == "value":
        return array(value)
    if name.startswith("value_float"):
        return np.asarray(value, np.float32)
    if name.startswith("value_int"):
        return np.asarray(value, np.int64)
    if name.startswith("value_string"):
        return np.asarray(value, object)
    raise TraceError(f"{node.name} is a Constant with {name}, which is not read")


class _Fixed:
    """What is the same in every run: the initializers.

    Attributes:
        types, shapes, data: of the initializers, by name; the numbers of small ones alone.
        inputs: name -> shape of each input, None for a size that is open.
    """

    def __init__(self, known: Known):
        self.types: dict[str, TypeProto] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.data: dict[str, NDArray] = {}
        for tensor in known.initializers.values():
            shape = tuple(tensor.dims)
            self.types[tensor.name] = onnx.helper.make_tensor_type_proto(tensor.data_type, shape)
            self.shapes[tensor.name] = shape
            if size_of(tensor) <= _SMALL // 16:
                self.data[tensor.name] = known.array(tensor.name)
        values = [value for value in known.model.graph.input if value.name not in known.initializers]
        self.inputs = {value.name: declared_shape(value.type) for value in values}


def declared_shape(kind: TypeProto) -> Shape | None:
    """The shape that a type says, None for a size that is open; None if there is none."""
    if not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return None
    return tuple(dim.dim_value if dim.dim_value > 0 else None for dim in kind.tensor_type.shape.dim)


class _Run:
    """One walk over the nodes with every size known."""

    def __init__(self, known: Known, fixed: _Fixed, batch: int, others: int):
        self.known, self.batch, self.others = known, batch, others
        self.types, self.shapes, self.data = dict(fixed.types), dict(fixed.shapes), dict(fixed.data)
        self.failed = False
        self._named: dict[str, int] = {}
        for value in known.model.graph.input:
            if value.name in fixed.inputs:
                self._put(value.name, self._closed(value.type))
        self.declared = {v.name: v.type for v in (*known.model.graph.value_info, *known.model.graph.output)}
        self.walk()

    def _closed(self, kind: TypeProto) -> TypeProto:
        """A type with a number for every axis of unknown size."""
        shape = declared_shape(kind)
        if shape is None or None not in shape:
            return kind
        sizes = []
        for axis, (size, dim) in enumerate(zip(shape, kind.tensor_type.shape.dim, strict=True)):
            if size is None:
                size = self.batch if axis == 0 else self.others
                size = self._named.setdefault(dim.dim_param, size) if dim.dim_param else size
            sizes.append(size)
        return onnx.helper.make_tensor_type_proto(kind.tensor_type.elem_type, sizes)

    def _put(self, name: str, kind: TypeProto) -> None:
        self.types[name] = kind
        if kind.HasField("tensor_type") and kind.tensor_type.HasField("shape"):
            shape = []
            for dim in kind.tensor_type.shape.dim:
                if not dim.HasField("dim_value"):
                    return
                shape.append(dim.dim_value)
            self.shapes[name] = tuple(shape)

    def walk(self) -> None:
        for node in self.known.nodes:
            self._infer(node)
            self._compute(node)

    def _infer(self, node: Node) -> None:
        if node.op == "Constant":
            value = self.known.array(node.outputs[0]) if node.outputs[0] in self.known.constants else constant_of(node)
            self.known.constants.add(node.outputs[0])
            if value.dtype != object:
                kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
                self._put(node.outputs[0], onnx.helper.make_tensor_type_proto(kind, value.shape))
            return
        needed = [name for name in (*node.inputs, *node.captured) if name]
        missing = [name for name in needed if name not in self.types]
        found: dict[str, TypeProto] = {}
        if not missing and node.standard:
            try:
                found = shape_inference.infer_node_outputs(
                    _schema(node.op, node.opset),
                    node.proto,
                    {name: self.types[name] for name in needed},
                    {name: numpy_helper.from_array(self.data[name]) for name in node.inputs if self._helps(name)},
                    opset_imports=self.known.model.opset_import,
                    ir_version=self.known.model.ir_version,
                )
            except Exception:  # what it raises depends on the node; the sizes do not fit, or the node is wrong
                self.failed = True
        for name in node.outputs:
            if not name:
                continue
            if name in found:
                self._put(name, found[name])
            if name not in self.shapes and name in self.declared:
                self._put(name, self._closed(self.declared[name]))

    def _helps(self, name: str) -> bool:
        """Whether a shape may depend on a tensor's numbers: whole numbers, and what Resize multiplies sizes by."""
        data = self.data.get(name)
        return data is not None and (data.dtype.kind in "iub" or (data.dtype.kind == "f" and data.size <= _SCALES))

    def _compute(self, node: Node) -> None:
        """The numbers of what comes from constants and shapes alone."""
        outputs = [name for name in node.outputs if name]
        if node.op == "Constant":
            value = self.known.array(outputs[0])
            if value.size <= _SMALL // 16:
                self.data[outputs[0]] = value
            return
        if not self.known.is_pure(node):
            return
        given = [name for name in node.inputs if name]
        if node.op in ("Shape", "Size") and given[0] in self.shapes:
            shape = self.shapes[given[0]]
            start, end = node.attributes.get("start", 0), node.attributes.get("end")
            self.data[outputs[0]] = (
                np.array(shape[slice(start, end)], np.int64) if node.op == "Shape" else np.array(math.prod(shape))
            )
            return
        sizes = [math.prod(self.shapes[name]) for name in outputs if name in self.shapes]
        if given and all(name in self.known.constants for name in given):
            self.known.constants.update(outputs)
            if len(sizes) < len(outputs) or max(sizes) > _SMALL // 16:
                return
            if sum(math.prod(self.shapes.get(name, (_LARGEST,))) for name in given) > _SMALL:
                return
            for name in outputs:
                self.data[name] = self.known.array(name)
        elif given and all(name in self.data for name in given) and (not sizes or max(sizes) <= _SMALL // 16):
            try:
                made = self.known.evaluate(node, [self.data[name] if name else None for name in node.inputs])
            except Exception:  # the reference implementation does not know everything
                return
            for name, value in zip(node.outputs, made, strict=True):
                if name:
                    self.data[name] = value
                    if name not in self.shapes:
                        kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
                        self._put(name, onnx.helper.make_tensor_type_proto(kind, value.shape))


@functools.cache
def _schema(op: str, version: int) -> Any:
    return defs.get_schema(op, version, "")
