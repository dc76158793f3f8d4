"""The walk over the nodes, and what an operator's builder may ask.

Tensors carry the order of their axes. A Transpose changes that order and moves no number; a convolution asks for its
input channels last, and gets it as it is if it lies so already. So a channels-last model that tf2onnx wrapped in
Transposes loses them, and a channels-first one is permuted once, at its input.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import keras
import numpy as np
import onnx
from keras import layers, ops
from numpy.typing import NDArray

from tfprune.errors import TfpruneError, TraceError
from tfprune.onnx_graph.infer import Known
from tfprune.onnx_graph.model import Node


class LayerError(TraceError):
    """A node that cannot be built."""


@dataclasses.dataclass(eq=False)
class Value:
    """A tensor of the Keras model, and how it lies.

    Attributes:
        tensor: the Keras tensor.
        axes: `axes[i]` is the ONNX axis that lies at Keras' axis i.
        order: where the last axis is shuffled: its entry i is ONNX's entry `order[i]`.
    """

    tensor: Any
    axes: tuple[int, ...]
    order: NDArray | None = None

    def at(self, axis: int) -> int:
        """Where an ONNX axis lies."""
        return self.axes.index(axis % len(self.axes))

    @property
    def rank(self) -> int:
        return len(self.axes)


Operand = Value | NDArray
Build = Callable[["Builder", Node], Any]
_BUILDS: dict[str, Build] = {}


def builds(*ops_: str) -> Callable[[Build], Build]:
    """Register a builder for operators: a function of the Builder and the node that returns what the node makes."""

    def register(function: Build) -> Build:
        _BUILDS.update(dict.fromkeys(ops_, function))
        return function

    return register


def channels_last(rank: int) -> tuple[int, ...]:
    """The axes of a channels-first tensor as Keras' convolutions want them."""
    return (0, *range(2, rank), 1)


class Builder:
    """One ONNX model becoming a Keras model.

    Args:
        free_batch: whether the first axis of the inputs gets any size, also where the ONNX model fixes it.
    """

    def __init__(self, model: onnx.ModelProto, known: Known, free_batch: bool):
        self.model, self.known, self.free_batch = model, known, free_batch
        self.values: dict[str, Operand] = {}
        self.readers: dict[str, list[Node]] = {}
        for node in known.nodes:
            for name in (*node.inputs, *node.captured):
                self.readers.setdefault(name, []).append(node)
        self.results = [value.name for value in model.graph.output]
        given = [value.name for value in model.graph.input if value.name not in known.initializers]
        self._names: set[str] = set()
        self._ports = {name: self.free_name(name) for name in dict.fromkeys((*given, *self.results))}
        self._arranged: dict[tuple[int, tuple[int, ...]], Any] = {}
        self._layers: dict[Hashable, keras.layers.Layer] = {}
        self.inputs = {name: self._input(name) for name in given}

    def build(self) -> keras.Model:
        """The Keras model.

        Raises:
            LayerError: a node cannot be built.
        """
        self.values.update(self.inputs)
        for node in self.known.nodes:
            if any(name not in self.values for name in node.outputs if name) and not self._is_known(node):
                self._add(node)
        outputs = [self._output(name) for name in self.results]
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", self.model.graph.name).strip("._-") or "model"
        return keras.Model([value.tensor for value in self.inputs.values()], outputs, name=name)

    def _input(self, name: str) -> Value:
        shape = self.known.shapes.get(name)
        if not shape:
            raise LayerError(f"the input {name!r} has no batch axis, which a Keras model needs; give it one")
        batch = None if self.free_batch else shape[0]
        tensor = keras.Input(batch_shape=(batch, *shape[1:]), dtype=self.dtype(name), name=self._ports[name])
        return Value(tensor, tuple(range(len(shape))))

    def _output(self, name: str) -> Any:
        if name not in self.values:
            raise LayerError(f"the output {name!r} does not depend on the inputs")
        value = self.values[name]
        if not isinstance(value, Value):
            raise LayerError(f"the output {name!r} does not depend on the inputs' numbers")
        if name in self.inputs:
            return value.tensor
        return layers.Identity(name=self._ports[name], dtype=str(value.tensor.dtype))(self.plain(value))

    def _is_known(self, node: Node) -> bool:
        return all(self.known.is_constant(name) or name in self.known.data for name in node.outputs if name)

    def _add(self, node: Node) -> None:
        build = _BUILDS.get(node.op) if node.standard else None
        if build is None:
            kind = node.op if node.standard else f"{node.proto.domain}.{node.op}"
            raise LayerError(
                f"{node.name} is a {kind}, of which no Keras layer is made; leave it out of what is exported, or "
                f"register a builder with tfprune.from_onnx.builder.builds({node.op!r})"
            )
        try:
            made = build(self, node)
        except LayerError as error:
            raise LayerError(f"{node.name} ({node.op}) cannot become a Keras layer: {error}") from error
        except TfpruneError:
            raise
        except Exception as error:  # what Keras says of shapes and settings
            text = " ".join(str(error).split())[:300]
            raise LayerError(
                f"{node.name} ({node.op}) cannot become a Keras layer: {type(error).__name__}: {text}"
            ) from error
        made = made if isinstance(made, list | tuple) else [made]
        self.values.update((name, value) for name, value in zip(node.outputs, made, strict=False) if name)

    # ------------------------------------------------------------------ what a node reads

    def has(self, node: Node, index: int) -> bool:
        """Whether an optional input is given."""
        return len(node.inputs) > index and bool(node.inputs[index])

    def operand(self, node: Node, index: int) -> Operand:
        """An input: a Value, or the array it is."""
        name = node.inputs[index]
        if name in self.values:
            return self.values[name]
        if self.known.is_constant(name):
            return self.known.array(name)
        if name in self.known.data:
            first, second = self.known.data[name]
            if np.array_equal(first, second):
                return first
            raise LayerError(
                f"it computes with the size of an axis that has no fixed size ({name!r}); export with fixed sizes"
            )
        raise LayerError(f"{name!r} is read, and nothing makes it")

    def value(self, node: Node, index: int = 0) -> Value:
        """An input that is not constant."""
        found = self.operand(node, index)
        if not isinstance(found, Value):
            raise LayerError(f"its input {node.inputs[index]!r} is constant, and only other inputs are expected to be")
        return found

    def array(self, node: Node, index: int, default: Any = None) -> Any:
        """An input that has to be constant, or the default where it is not given."""
        if not self.has(node, index):
            return default
        found = self.operand(node, index)
        if isinstance(found, Value):
            raise LayerError(
                f"its input {node.inputs[index]!r} has to be constant, and is computed from the model's inputs"
            )
        return found

    def ints(self, node: Node, index: int, attribute: str, default: Any = None) -> Any:
        """Whole numbers that older opsets have as an attribute, and newer ones as an input."""
        if attribute in node.attributes:
            found = node.attributes[attribute]
            return list(found) if isinstance(found, Sequence) else found
        found = self.array(node, index)
        return default if found is None else found.ravel().tolist()

    def shape(self, name: str) -> tuple[int | None, ...]:
        """A tensor's shape in ONNX."""
        found = self.known.shapes.get(name)
        if found is None:
            raise LayerError(f"the rank of {name!r} is not known")
        return found

    def dtype(self, name: str) -> str:
        """A tensor's type as Keras calls it."""
        kind = self.known.types.get(name)
        if kind is None:
            raise LayerError(f"the type of {name!r} is not known")
        if kind == onnx.TensorProto.BFLOAT16:
            return "bfloat16"
        return str(onnx.helper.tensor_dtype_to_np_dtype(kind))

    def only_reader(self, name: str) -> Node | None:
        """The node that alone reads a tensor; None if there are several, or it is an output."""
        readers = self.readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.results else None

    # ------------------------------------------------------------------ how tensors lie

    def arranged(self, value: Value, axes: Sequence[int]) -> Any:
        """A value's Keras tensor with its axes in another order."""
        value, axes = self.in_order(value), tuple(axes)
        if axes == value.axes:
            return value.tensor
        key = (id(value), axes)
        if key not in self._arranged:
            moved = [value.axes.index(axis) for axis in axes]
            if moved[0] == 0:
                made = layers.Permute(moved[1:], name=self.free_name("permute"), dtype=str(value.tensor.dtype))(
                    value.tensor
                )
            else:
                made = ops.transpose(value.tensor, moved)
            self._arranged[key] = made, value  # the value is kept, so that its id stays its own
        return self._arranged[key][0]

    def plain(self, value: Value) -> Any:
        """A value's tensor as ONNX has it."""
        return self.arranged(value, range(value.rank))

    def channels_last(self, value: Value) -> Any:
        """A value's tensor as Keras' convolutions want it."""
        return self.arranged(value, channels_last(value.rank))

    def in_order(self, value: Value) -> Value:
        """The value without a shuffled last axis."""
        if value.order is None:
            return value
        key = (id(value), (-1,))
        if key not in self._arranged:
            back = np.argsort(value.order)
            self._arranged[key] = Value(ops.take(value.tensor, back, axis=-1), value.axes), value
        return self._arranged[key][0]

    def aligned(self, node: Node, indices: Sequence[int] | None = None) -> tuple[list[Any], tuple[int, ...]]:
        """Operands that broadcast against each other, as Keras tensors and arrays, and the axes they lie in."""
        found = [self.operand(node, index) for index in (range(len(node.inputs)) if indices is None else indices)]
        rank = max(one.rank if isinstance(one, Value) else one.ndim for one in found)
        leading = [one for one in found if isinstance(one, Value) and one.rank == rank]
        axes = next((one.axes for one in leading), tuple(range(rank)))
        return [self._aligned(one, axes) for one in found], axes

    def _aligned(self, one: Operand, axes: tuple[int, ...]) -> Any:
        rank = len(axes)
        if isinstance(one, Value):
            if one.rank == rank:
                return self.arranged(one, axes)
            tensor = self.plain(one)
            missing = rank - one.rank
            tensor = ops.expand_dims(tensor, tuple(range(missing)))
            return self.arranged(Value(tensor, tuple(range(rank))), axes)
        return self.laid(one, axes)

    def laid(self, array: NDArray, axes: tuple[int, ...]) -> Any:
        """An array to be broadcast against a tensor with these axes; a number where it is one."""
        array = array.reshape((1,) * (len(axes) - array.ndim) + array.shape)
        if self.free_batch and array.shape[0] > 1 and (array == array[:1]).all():
            array = array[:1]
        array = array.transpose(axes)
        if array.size == 1:
            return array.reshape(())
        while array.ndim and array.shape[0] == 1:
            array = array[0]
        return np.ascontiguousarray(array)

    # ------------------------------------------------------------------ layers

    def free_name(self, hint: str) -> str:
        """A name for a layer that no other has."""
        base = re.sub(r"[^A-Za-z0-9_.-]+", "_", hint).strip("_.-") or "layer"
        name, number = base, 1
        while name.lower() in self._names:
            number += 1
            name = f"{base}_{number}"
        self._names.add(name.lower())
        return name

    def layer(
        self,
        node: Node,
        kind: Callable[..., keras.layers.Layer],
        tensor: Any,
        weights: Sequence[NDArray] = (),
        shared: Hashable = None,
        **settings: Any,
    ) -> Any:
        """A new layer called on a tensor, with these weights.

        Args:
            shared: nodes that give the same key are calls of one layer.
        """
        key = None if shared is None else (kind, shared, repr(sorted(settings.items())))
        made = self._layers.get(key) if key is not None else None
        if made is None:
            name = node.name if node.name not in self._ports else f"{node.name}_{node.op.lower()}"
            settings = {"dtype": self.dtype(node.outputs[0]), **settings}
            made = kind(name=self.free_name(name), **settings)
            result = made(tensor)
            if weights:
                made.set_weights([np.asarray(weight) for weight in weights])
            if key is not None:
                self._layers[key] = made
            return result
        return made(tensor)
