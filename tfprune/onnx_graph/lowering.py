"""What a rule for an ONNX operator is given, and how it says what the node looks like when it is narrower."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from tfprune.channels.labels import Shape
from tfprune.channels.lowering import Lowering as Base
from tfprune.channels.lowering import Refused
from tfprune.channels.ops import Contract, Map, Narrowing, Parameter, Source, WithArrays
from tfprune.onnx_graph.infer import Known
from tfprune.onnx_graph.model import Node, tensor_of

__all__ = ["Edit", "Lowering", "Refused", "Variable", "find_rule", "register_node"]

Rule = Callable[["Lowering"], "int | tuple[int, ...] | Refused"]
_RULES: dict[str, Rule] = {}


def register_node(*operators: str) -> Callable[[Rule], Rule]:
    """Say how the nodes of some of ONNX's operators are lowered to channel ops.

    The rule gets a `Lowering`, and returns the value that is the node's output (a tuple of several), or a `Refused`
    with the reason why nothing is known of this node. Axes count with the batch axis.
    """

    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(operators, rule))
        return rule

    return register


def find_rule(node: Node) -> Rule | None:
    """The rule for a node, or None."""
    return _RULES.get(node.op) if node.standard else None


class Variable:
    """A constant of the model where nodes use it as a weight.

    Attributes:
        name: the tensor.
        shape: the weight's shape.
        pattern: the tensor's own shape, with -1 along the axis of a vector that is flat here.
        label: what the weight is called: `kernel`, `bias`, ...
        moved: how the tensor becomes the weight and the weight the tensor, where they differ by more than a shape.
        uses: (node, number of the input) of each use.
    """

    def __init__(self, known: Known, name: str, label: str, shape: tuple[int, ...], pattern: tuple[int, ...] | None):
        self.known, self.name, self.label, self.shape, self.pattern = known, name, label, shape, pattern
        self.uses: list[tuple[Node, int]] = []
        self.moved: tuple[Callable[[NDArray], NDArray], Callable[[NDArray], NDArray]] | None = None

    @property
    def dtype(self) -> str:
        """Its type, as numpy calls it."""
        return str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(self.known.types[self.name])))

    def numpy(self) -> NDArray:
        """Its numbers, in the weight's shape, read-only."""
        array = self.known.array(self.name)
        array = (self.moved[0](array) if self.moved else array.reshape(self.shape)).view()
        array.flags.writeable = False
        return array

    def patterned(self, array: NDArray) -> NDArray:
        """An array in the shape that the nodes take."""
        if self.moved:
            return self.moved[1](array)
        return array if self.pattern is None else array.reshape(self.pattern)

    def assign(self, array: NDArray) -> None:
        """Change its numbers in the model. What other nodes read of the same tensor stays."""
        self.put(self.known.model, np.asarray(array))
        self.known.forget(self.name)

    def put(self, model: onnx.ModelProto, array: NDArray) -> None:
        """The same in a copy of the model."""
        graph, array = model.graph, self.patterned(array)
        mine = {(node.index, index) for node, index in self.uses}
        shared = any(
            name == self.name and (place, index) not in mine
            for place, node in enumerate(graph.node)
            for index, name in enumerate(node.input)
        )
        shared = shared or any(value.name == self.name for value in graph.output)
        shared = shared or any(self.name in node.captured for node in self.known.nodes)
        tensor = next((tensor for tensor in graph.initializer if tensor.name == self.name), None)
        if tensor is not None and not shared:
            tensor.CopyFrom(tensor_of(array, self.name, tensor.data_type))
            return
        # Others read the tensor, or it is computed from another: these nodes get one of their own.
        taken = {tensor.name for tensor in graph.initializer} | {n for node in graph.node for n in node.output}
        name = free(self.name, taken | {value.name for value in graph.input})
        graph.initializer.append(tensor_of(array, name, self.known.types[self.name]))
        if model.ir_version < 4:
            graph.input.append(onnx.helper.make_tensor_value_info(name, self.known.types[self.name], array.shape))
        for place, index in mine:
            graph.node[place].input[index] = name
        if model is self.known.model:
            self.known.initializers[name] = graph.initializer[-1]
            self.known.types[name] = self.known.types[self.name]
            self.known.constants.add(name)
            self.name = name


class Edit:
    """A node of the smaller model while it is being written.

    Attributes:
        node: the new node; its inputs have their new names already.
        before, after: nodes that are added around it.
        constants: new tensors by name.
        opset: of ONNX's own operators.
    """

    def __init__(self, node: onnx.NodeProto, name: Callable[[str], str], opset: int):
        self.opset = opset
        self.node, self.before, self.after = node, [], []  # type: ignore[var-annotated]
        self.constants: dict[str, NDArray] = {}
        self._name = name

    def name(self, hint: str) -> str:
        """A name that nothing has."""
        return self._name(f"{self.node.name or self.node.output[0]}/{hint}")

    def constant(self, array: NDArray, hint: str) -> str:
        """A new tensor; its name."""
        name = self.name(hint)
        self.constants[name] = np.asarray(array)
        return name

    def set(self, attribute: str, value: Any) -> None:
        """Change an attribute."""
        kept = [a for a in self.node.attribute if a.name != attribute]
        del self.node.attribute[:]
        self.node.attribute.extend([*kept, onnx.helper.make_attribute(attribute, value)])

    def put(self, index: int, array: NDArray, hint: str) -> None:
        """Give an input new numbers."""
        self.put_name(index, self.constant(array, hint))

    def put_name(self, index: int, name: str) -> None:
        """Give an input another tensor."""
        while len(self.node.input) <= index:
            self.node.input.append("")
        self.node.input[index] = name

    def instead(self, nodes: Sequence[onnx.NodeProto]) -> None:
        """Write these nodes in its place; the last makes the output."""
        self.before += nodes[:-1]
        self.node.CopyFrom(nodes[-1])

    def make(self, op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> onnx.NodeProto:
        """A new node with a name of its own."""
        return onnx.helper.make_node(op, list(inputs), list(outputs), name=self.name(op), **attributes)

    def appended(self, op: str, array: NDArray, hint: str) -> None:
        """Combine the only output with an array, by a node behind this one."""
        made = self.node.output[0]
        inner = self.name("before_" + hint)
        self.node.output[0] = inner
        self.after.append(self.make(op, [inner, self.constant(array, hint)], [made]))


class Lowering(Base):
    """One node on its way to channel ops."""

    def __init__(self, node: Node, tracer: Any, output_shapes: Sequence[Shape]):
        super().__init__(node.name, (), output_shapes, tracer.shapes, tracer.new_value, tracer.weight, node)
        self._tracer = tracer
        self.known: Known = tracer.known
        self.values: dict[int, int] = {}

    # -- what the node is given -----------------------------------------------------------------------------------

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute's value; text as `str`."""
        value = self.node.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def has(self, index: int) -> bool:
        """Whether there is such an input."""
        return index < len(self.node.inputs) and bool(self.node.inputs[index])

    def fixed(self, index: int) -> bool:
        """Whether an input is a constant."""
        return self.has(index) and self.known.is_constant(self.node.inputs[index])

    def array(self, index: int) -> NDArray:
        """A constant input."""
        return self.known.array(self.node.inputs[index])

    def constant_shape(self, index: int) -> tuple[int, ...]:
        """A constant input's shape; it is not read."""
        name = self.node.inputs[index]
        shape = self.known.sizes[0].get(name)
        return tuple(self.known.array(name).shape) if shape is None else shape

    def numbers(self, attribute: str, index: int) -> list[int | None] | None:
        """Whole numbers that older opsets have as an attribute and newer ones as an input; None if there are none.

        Raises:
            LookupError: they are computed.
        """
        value = self.attribute(attribute)
        if value is not None:
            return [int(v) for v in np.ravel(value)]
        if not self.has(index):
            return None
        found = self.known.numbers(self.node.inputs[index])
        if found is None:
            raise LookupError(f"its {attribute} is computed")
        return found

    def whole(self, attribute: str, index: int) -> list[int] | None:
        """The same where every one must be known."""
        found = self.numbers(attribute, index)
        if found is not None and None in found:
            raise LookupError(f"its {attribute} is computed")
        return found  # type: ignore[return-value]

    def value(self, index: int) -> int:
        """The value that an input is; a constant becomes one that nobody may narrow."""
        if index not in self.values:
            self.values[index] = self._tracer.value(self.node.inputs[index])
            if not self.fixed(index):
                self.inputs = (*self.inputs, self.values[index])
        return self.values[index]

    def used(self, output: int) -> bool:
        """Whether anybody reads an output."""
        outputs = self.node.outputs
        return output < len(outputs) and outputs[output] in self._tracer.read

    def positions(self, output: int = 0, without: Sequence[int] = ()) -> int:
        """How many positions an output has for one sample, some axes not counted."""
        return self.known.per_sample(self.node.outputs[output], [axis % len(self.output_shape) for axis in without])

    def read_positions(self, index: int, without: Sequence[int] = ()) -> int:
        """The same for an input."""
        return self.known.per_sample(self.node.inputs[index], without)

    def averages(self, index: int) -> bool:
        """Whether an input's numbers sum to 1 along the last axis: softmax is behind it."""
        return self.node.inputs[index] in self._tracer.softmaxed

    def note_average(self) -> None:
        """Say so of the output."""
        self._tracer.softmaxed.add(self.node.outputs[0])

    # -- weights --------------------------------------------------------------------------------------------------

    def kernel(self, index: int, label: str = "kernel") -> Variable:
        """A constant input whose uses all belong together: nodes that share it are one shared layer."""
        return self._tracer.variable((self.node.inputs[index],), self.node, index, label, self.constant_shape(index))

    def beside(self, index: int, kernel: int, label: str) -> Variable:
        """A vector that belongs to a kernel, and is shared where the kernel is."""
        names = self.node.inputs[index], self.node.inputs[kernel]
        size = int(np.prod(self.constant_shape(index)))
        return self._tracer.variable(names, self.node, index, label, (size,))

    def own(self, index: int, label: str, flat: bool = False) -> Variable:
        """A constant of this node alone: exporters write equal vectors once, and that ties nothing together.

        Args:
            flat: as a vector, whatever axes of size 1 it has.
        """
        shape = self.constant_shape(index)
        key = (self.node.inputs[index], self.node.index, index)
        if not flat:
            return self._tracer.variable(key, self.node, index, label, shape)
        pattern = tuple(-1 if size > 1 else 1 for size in shape)
        if -1 not in pattern:
            pattern = (*pattern[:-1], -1) if pattern else (-1,)
        return self._tracer.variable(key, self.node, index, label, (int(np.prod(shape)),), pattern)

    def moved(
        self,
        index: int,
        label: str,
        shape: tuple[int, ...],
        there: Callable[[NDArray], NDArray],
        back: Callable[[NDArray], NDArray],
    ) -> Variable:
        """A kernel that ONNX holds in another form than the op wants: `there` and `back` are views of arrays."""
        variable = self._tracer.variable((self.node.inputs[index], self.node.op, label), self.node, index, label, shape)
        variable.moved = there, back
        return variable

    # -- ops that Keras has no use for ----------------------------------------------------------------------------

    def identity(self, value: int) -> int:
        """The same once more."""
        out = self._new_value(self.shape(value))
        self.ops.append(Map(self.layer, (value,), (out,)))
        return out

    def with_arrays(
        self, value: int, operands: Sequence[tuple[Variable, str] | None], kind: str, function: Callable[..., NDArray]
    ) -> int:
        """A value and constants that broadcast with it; see `channels.ops.WithArrays`."""
        out = self._new_value(self.output_shape)
        weights = tuple(None if operand is None else (self.weight(operand[0]), operand[1]) for operand in operands)
        self.ops.append(WithArrays(self.layer, (value,), (out,), weights, kind, function))
        return out

    def parameter(self, variable: Variable, axes: Sequence[int], shape: Shape) -> int:
        """A constant that is a value with channels of its own along some axes; see `channels.ops.Parameter`."""
        out = self._new_value(shape)
        self.ops.append(Parameter(self.layer, (), (out,), tuple(axes), None, self.weight(variable)))
        return out

    def unknown(self, shape: Shape) -> int:
        """A value of which nothing is known and that stays."""
        out = self._new_value(shape)
        self.ops.append(Source(self.layer, (), (out,)))
        return out

    def is_shared(self, kernel: Variable) -> bool:
        """Whether other nodes, up to here, use the kernel too."""
        return len(kernel.uses) > 1

    @property
    def last(self) -> Contract:
        """The kernel that was written last."""
        return next(op for op in reversed(self.ops) if isinstance(op, Contract))


def free(name: str, taken: Container[str]) -> str:
    """A name like this one that nothing has."""
    number, found = 0, name
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    return found


def target_of(new: Narrowing, value: int, edit: Edit, index: int, old: Sequence[int | None] | None) -> None:
    """Write the input that holds a value's shape: known sizes as numbers, others as they were.

    Args:
        index: of the input.
        old: the numbers that are there now, None for those that are computed; None if all are.
    """
    shape = new.shape(value)
    unknown = [axis for axis, size in enumerate(shape) if size is None]
    keeps = [None if old is None or len(old) != len(shape) else old[axis] for axis in range(len(shape))]
    if all(keeps[axis] is not None and keeps[axis] <= 0 for axis in unknown):  # type: ignore[operator]
        sizes = [keeps[axis] if size is None else size for axis, size in enumerate(shape)]
        edit.put(index, np.array(sizes, np.int64), "shape")
        return
    if len(unknown) == 1 and edit.node.op_type == "Reshape":
        edit.put(index, np.array([-1 if size is None else size for size in shape], np.int64), "shape")
        return
    before, parts = edit.node.input[index], []
    for axis, size in enumerate(shape):
        if size is not None:
            parts.append(edit.constant(np.array([size], np.int64), f"size_{axis}"))
            continue
        parts.append(edit.name(f"size_{axis}"))
        where = edit.constant(np.array([axis], np.int64), f"axis_{axis}")
        edit.before.append(edit.make("Gather", [before, where], [parts[-1]], axis=0))
        count, left = new.labels[value].shape[axis], new.kept[value].shape[axis]
        if left != count:  # so many of each sample's are left
            for op, number in (("Mul", left), ("Div", count)):
                parts.append(edit.name(f"size_{axis}"))
                factor = edit.constant(np.array([number], np.int64), op.lower())
                edit.before.append(edit.make(op, [parts.pop(-2), factor], [parts[-1]]))
    joined = edit.name("shape")
    edit.before.append(edit.make("Concat", parts, [joined], axis=0))
    edit.put_name(index, joined)
