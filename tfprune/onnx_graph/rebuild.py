"""From what is left of a ChannelGraph back to an ONNX model: the same nodes with smaller weights, in the same order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from tfprune.channels.graph import Call, ChannelGraph
from tfprune.channels.ops import Contract, Facts, Narrowing
from tfprune.channels.simplify import Replacement
from tfprune.channels.take import bias_shifts, by_bias, slots_by_weight, take
from tfprune.errors import TfpruneError
from tfprune.onnx_graph.lowering import Edit, Variable, free
from tfprune.onnx_graph.model import LARGE, Node, loaded, subgraphs, tensor_of, without_weights
from tfprune.onnx_graph.trace import Body


@dataclass(frozen=True)
class Rebuilt:
    """A smaller model."""

    model: onnx.ModelProto


def rebuild(
    graph: ChannelGraph, facts: Facts, new: Narrowing, replacements: dict[int, Replacement] | None = None
) -> Rebuilt:
    """Write the smaller model.

    Args:
        graph: what is left of the model after `simplify`.
        facts: its constants and its weights.
        new: where everything is in the smaller model.
        replacements: what sums and products became, by the `id` of their node.

    Returns:
        a model with the same names, inputs, outputs, opset and metadata; the traced model is not touched.
    """
    return Rebuilt(_Rebuilder(graph, facts, new, replacements or {}).model())


class _Rebuilder:
    def __init__(self, graph: ChannelGraph, facts: Facts, new: Narrowing, replacements: dict[int, Replacement]):
        self.graph, self.facts, self.new, self.replacements = graph, facts, new, replacements
        body: Body = graph.body
        self.body, self.known, self.old = body, body.known, graph.model
        self.opset = next((v for d, v in self.known.opsets.items() if d in ("", "ai.onnx")), 1)
        self.calls: dict[int, Call] = {call.origin.index: call for call in graph.calls if isinstance(call.origin, Node)}
        self.slots = slots_by_weight(graph)
        self.shifts, self.new_biases = by_bias(bias_shifts(graph, facts, new), new)
        self.taken = {tensor.name for tensor in self.old.graph.initializer}
        self.taken |= {name for node in body.nodes for name in (*node.inputs, *node.outputs)}
        self.constants: dict[str, onnx.TensorProto] = {}
        self.changed: dict[tuple[int, int], str] = {}
        self.wanted: dict[str, str] = {}
        self.alias: dict[str, str] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.made = set(self.known.initializers) | {value.name for value in self.old.graph.input}
        self.outputs = {value.name for value in self.old.graph.output}

    def model(self) -> onnx.ModelProto:
        self._weights()
        for node in self.body.nodes:
            self._node(node)
        self._drop_what_nobody_reads()
        self._name_as_before()
        result = without_weights(self.old)
        graph = result.graph
        del graph.node[:]
        graph.node.extend(self.nodes)
        read = _read(self.nodes) | self.outputs
        for tensor in self.old.graph.initializer:
            if tensor.name in read and tensor.name not in self.constants:
                graph.initializer.append(loaded(tensor))
        graph.initializer.extend(tensor for name, tensor in self.constants.items() if name in read)
        self._declare(result)
        return result

    # -- weights --------------------------------------------------------------------------------------------------

    def _weights(self) -> None:
        """What is left of each weight, where it is not what it was."""
        same: dict[tuple[str, bytes], str] = {}
        for weight, variable in self.graph.variables.items():
            slots = self.slots.get(weight, [])
            if any(not self.new.indices[slot.weight, slot.role].size for slot in slots):
                continue  # nothing is left of the node
            array = self.facts.weight(weight)
            moved = array.size > 0 and not _same(array, variable.numpy())
            if weight in self.shifts:
                array = (array + self.shifts[weight].reshape(array.shape)).astype(array.dtype)
                moved = True
            left = take(array, slots, self.new) if slots else array
            if left is array and not moved:
                continue
            left = variable.patterned(left)
            key = (variable.name, left.tobytes()) if left.size < 1 << 16 else (variable.name, weight.key.encode())
            name = same.get(key)
            if name is None:
                name = same[key] = self._constant(left, variable.name, self.known.types[variable.name])
                self.wanted.setdefault(variable.name, name)
            self.changed.update(((node.index, index), name) for node, index in variable.uses)

    def _constant(self, array: NDArray, hint: str, kind: int | None = None) -> str:
        name = self._free(hint)
        self.constants[name] = tensor_of(np.asarray(array), name, kind)
        return name

    def _free(self, hint: str) -> str:
        name = free(hint, self.taken)
        self.taken.add(name)
        return name

    # -- nodes ----------------------------------------------------------------------------------------------------

    def _node(self, node: Node) -> None:
        call = self.calls.get(node.index)
        if node.index not in self.body.lowered:
            if node.op in ("Shape", "Size") and not self._is_as_it_was(node.inputs[0]):
                self._shape(node)
            elif all(name in self.made or not name for name in self._named(node.inputs)):
                self._emit(_copy(node, self._named(node.inputs)))
            return
        if call is None or all(self.new.empty(value) for value in call.outputs):
            return
        copy = _copy(node, self._named(node.inputs))
        for index in range(len(copy.input)):
            if (node.index, index) in self.changed:
                copy.input[index] = self.changed[node.index, index]
        replacement = self.replacements.get(id(node))
        edit = Edit(copy, self._free, self.opset)
        if replacement is not None:
            if not self._replaced(edit, call, replacement):
                return
        else:
            for number, value in enumerate(call.outputs[: len(copy.output)]):
                if self.new.empty(value) and node.op != "Split":
                    copy.output[number] = ""
            if call.rewrite is not None and any(map(self.new.narrowed, (*call.inputs, *call.outputs))):
                call.rewrite(self.new, edit)
            self._add_bias(edit, call)
        self._finish(edit, node)

    def _finish(self, edit: Edit, node: Node) -> None:
        for name, array in edit.constants.items():
            self.constants[name] = tensor_of(array, name)
            self.made.add(name)
        nodes = [*edit.before, edit.node, *edit.after]
        for made in nodes:
            if made is edit.node and not made.name:
                made.name = node.proto.name
            missing = [name for name in made.input if name and name not in self.made and name not in self.constants]
            if missing:
                raise TfpruneError(f"{node.name} reads {missing[0]!r}, which is gone; please report this model")
            self._emit(made)

    def _emit(self, node: onnx.NodeProto) -> None:
        self.nodes.append(node)
        self.made.update(node.output)

    def _named(self, names: Iterable[str]) -> list[str]:
        return [self.alias.get(name, name) for name in names]

    def _add_bias(self, edit: Edit, call: Call) -> None:
        for op in call.ops:
            if not isinstance(op, Contract) or op.kernel not in self.new_biases:
                continue
            bias = self.new_biases[op.kernel]
            dtype = self.graph.variables[op.kernel].numpy().dtype
            if edit.node.op_type == "MatMul":
                edit.appended("Add", bias.astype(dtype), "bias")
            else:
                edit.put(2, bias.astype(dtype), "bias")

    def _replaced(self, edit: Edit, call: Call, replacement: Replacement) -> bool:
        """Write what a sum or product became; false where its operand just takes its place."""
        left = [edit.node.input[index] for index in replacement.operands]
        out = edit.node.output[0]
        if len(left) > 1:
            edit.instead([edit.make(edit.node.op_type, left, [out])])
            return True
        vectors = [(op, v) for op, v in (("Mul", replacement.scale), ("Add", replacement.shift)) if v is not None]
        if not vectors and out not in self.outputs:
            self.alias[out] = left[0]
            return False
        if not vectors:
            edit.instead([edit.make("Identity", left, [out])])
            return True
        value = call.outputs[0]
        kept = self.new.positions(value, (replacement.axis,))
        shape = [-1] + [1] * (len(self.graph.shapes[value]) - 1 - replacement.axis)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(self.known.types[call.origin.outputs[0]])
        nodes, source = [], left[0]
        for number, (op, vector) in enumerate(vectors):
            made = out if number == len(vectors) - 1 else edit.name("scaled")
            array = edit.constant(vector[kept].astype(dtype).reshape(shape), op.lower())
            nodes.append(edit.make(op, [source, array], [made]))
            source = made
        edit.instead(nodes)
        return True

    def _is_as_it_was(self, name: str) -> bool:
        value = self.body.values.get(name)
        there = self.alias.get(name, name) in self.made
        return there and (value is None or value not in self.new.kept or not self.new.narrowed(value))

    def _shape(self, node: Node) -> None:
        """A shape that the model asks for stays what it was: who needs another is written anew."""
        out = node.outputs[0]
        numbers = self.known.numbers(out)
        assert numbers is not None
        array = np.array(
            numbers if node.op == "Shape" else numbers[0], dtype=np.float64 if None in numbers else np.int64
        )
        if None not in numbers:
            self.constants[out] = tensor_of(array, out)
            self.made.add(out)
            return
        edit = Edit(_copy(node, node.inputs), self._free, self.opset)
        first, second = (np.ravel(part) for part in self.known.data[out])
        parts = []
        for number, a, b in zip(numbers, first.tolist(), second.tolist(), strict=True):
            if number is not None:
                parts.append(edit.constant(np.array([number], np.int64), "size"))
                continue
            found = self.known.input_of(a, b)
            assert found is not None, "the tracer lets only such shapes pass"
            source, axis, times = found
            asked, once, size = edit.name("asked"), edit.name("once"), edit.name("size")
            where = edit.constant(np.array([axis], np.int64), "axis")
            factor = edit.constant(np.array([times], np.int64), "times")
            edit.before.append(edit.make("Shape", [source], [asked]))
            edit.before.append(edit.make("Gather", [asked, where], [once], axis=0))
            edit.before.append(edit.make("Mul", [once, factor], [size]))
            parts.append(size)
        edit.instead([edit.make("Concat", parts, [out], axis=0)])
        self._finish(edit, node)

    # -- the rest -------------------------------------------------------------------------------------------------

    def _drop_what_nobody_reads(self) -> None:
        needed, kept = set(self.outputs), []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                kept.append(node)
                needed |= _read([node])
        self.nodes = kept[::-1]

    def _name_as_before(self) -> None:
        """A narrowed tensor takes the old one's name, if nobody reads the old one any more."""
        read = _read(self.nodes) | self.outputs
        names = {new: old for old, new in self.wanted.items() if old not in read and old in self.known.initializers}
        for node in self.nodes:
            for index, name in enumerate(node.input):
                if name in names:
                    node.input[index] = names[name]
        for new, old in names.items():
            tensor = self.constants.pop(new)
            tensor.name = old
            tensor.doc_string = self.known.initializers[old].doc_string
            self.constants[old] = tensor

    def _declare(self, model: onnx.ModelProto) -> None:
        """Inputs, and the shapes in between, as they are now."""
        graph = model.graph
        there = {name for node in self.nodes for name in node.output}
        tensors = {tensor.name: tensor for tensor in graph.initializer}
        for infos, stays in ((graph.value_info, there | set(tensors)), (graph.input, None)):
            kept = []
            for info in infos:
                if stays is None and info.name in self.known.initializers and info.name not in tensors:
                    continue
                if stays is not None and info.name not in stays:
                    continue
                kept.append(self._sized(info, tensors))
            del infos[:]
            infos.extend(kept)
        if model.ir_version < 4:
            known = {info.name for info in graph.input}
            graph.input.extend(
                onnx.helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims))
                for name, tensor in tensors.items()
                if name not in known
            )
        kept = [note for note in graph.quantization_annotation if note.tensor_name in there | set(tensors)]
        del graph.quantization_annotation[:]
        graph.quantization_annotation.extend(kept)

    def _sized(self, info: onnx.ValueInfoProto, tensors: dict[str, Any]) -> onnx.ValueInfoProto:
        result = onnx.ValueInfoProto()
        result.CopyFrom(info)
        value = self.body.values.get(info.name)
        if info.name in tensors:
            shape: Any = tuple(tensors[info.name].dims)
        elif value is None or value not in self.new.kept or self.new.empty(value):
            return result
        else:
            shape = self.new.shape(value)
        dims = result.type.tensor_type.shape.dim
        if len(dims) == len(shape):
            for dim, size in zip(dims, shape, strict=True):
                if size is not None and dim.HasField("dim_value"):
                    dim.dim_value = size
        return result


def _same(array: NDArray, held: NDArray) -> bool:
    """Whether an array is what the model holds; large ones are read anew each time."""
    return np.may_share_memory(array, held) or (array.nbytes > LARGE and np.array_equal(array, held))


def _copy(node: Node, inputs: Iterable[str]) -> onnx.NodeProto:
    result = onnx.NodeProto()
    result.CopyFrom(node.proto)
    for index, name in enumerate(inputs):
        result.input[index] = name
    return result


def _read(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """The names that nodes read, those that graphs inside of them take from outside included."""
    found: set[str] = set()
    for node in nodes:
        found.update(node.input)
        for inside in subgraphs(node):
            found |= _read(inside.node) | {value.name for value in inside.output}
    return found - {""}


__all__ = ["Rebuilt", "Variable", "rebuild"]
