"""What a rule may say: the channel ops that it may lower a call to, whatever the model is written in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfprune.channels.labels import Shape
from tfprune.channels.ops import (
    Affine,
    AsOne,
    Combine,
    Concatenate,
    Contract,
    Depthwise,
    Gather,
    Map,
    Mix,
    Narrowing,
    Normalize,
    Op,
    Opaque,
    Pad,
    Permute,
    Product,
    Recurrent,
    Reduce,
    Reshape,
    Slope,
    Source,
    Spatial,
    Together,
    reshape_blocks,
)
from tfprune.channels.weights import Weight

Blocks = tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]


class Refused(str):
    """Why a rule cannot follow a call; the call is then opaque."""


class Lowering:
    """One call on its way to channel ops.

    Attributes:
        layer: the layer's name, `outer/inner` in nested models.
        inputs: the values it is called with, in the order of its tensors.
        output_shapes: the shapes it returns, without the batch axis.
        node: the node of the model.
        ops: what has been written so far.
        arrays: argument number -> value, for arrays written into the model that may be narrowed.
        configure: which settings follow the widths, see `settings`.
        rewriter: how the call is written anew, see `rewrite`.
        factors: weights that are multiplied when widths change, see `compensate`.
        is_within: whether another layer's rule asked for this one, see `within`.
        masked: whether Keras masks may hide positions here.
    """

    def __init__(
        self,
        layer: str,
        inputs: Sequence[int],
        output_shapes: Sequence[Shape],
        shapes: dict[int, Shape],
        new_value: Callable[[Shape], int],
        weight: Callable[[Any, str], Weight],
        node: Any,
    ):
        self.layer, self.inputs, self.output_shapes, self.node = layer, tuple(inputs), tuple(output_shapes), node
        self.shapes = shapes
        self.ops: list[Op] = []
        self.arrays: dict[int, int] = {}
        self.configure: Callable[[Narrowing], dict[str, Any]] | None = None
        self.rewriter: Callable[..., Any] | None = None
        self.factors: dict[Weight, Callable[[Narrowing], float]] = {}
        self.is_within = False
        self.masked = False
        self._new_value, self._weight = new_value, weight

    def shape(self, value: int) -> Shape:
        """A value's shape, without the batch axis."""
        return self.shapes[value]

    @property
    def output_shape(self) -> Shape:
        """The shape of the only output."""
        return self.output_shapes[0]

    def weight(self, variable: Any) -> Weight:
        """The weight that a variable of the layer is."""
        return self._weight(variable, self.layer)

    def settings(self, configure: Callable[[Narrowing], dict[str, Any]]) -> None:
        """Say which of the layer's settings follow its widths: a function from the smaller model's positions.

        A setting of a layer inside it is named with a slash: `layer/units`.
        """
        self.configure = configure

    def rewrite(self, write: Callable[..., Any]) -> None:
        """Say how the call is written in the smaller model where its settings are not enough.

        Args:
            write: from (positions in the smaller model, the new operation, its new tensors) to the new output; None
                where the call can stay as it is. Only used if something near the call has become narrower.
        """
        self.rewriter = write

    def compensate(self, variable: Any, factor: Callable[[Narrowing], float]) -> None:
        """Multiply a weight in the smaller model, where the layer's scale depends on a width."""
        self.factors[self.weight(variable)] = factor

    def contract(
        self,
        value: int,
        kernel: Any,
        *,
        read: Sequence[tuple[int, int]],
        write: Sequence[tuple[int, int]],
        shape: Shape,
        bias: Any = None,
        groups: int = 1,
        pads: bool = False,
        positions: int = 0,
        foldable: bool = True,
        along: Sequence[tuple[int, int, int]] = (),
        roles: tuple[str, str] = ("read", "write"),
    ) -> int:
        """A kernel that reads (value axis, kernel axis) pairs and writes others; see `channels.ops.Contract`."""
        out = self._new_value(shape)
        # Only a layer that is a call of its own can be given a bias.
        foldable = foldable and (bias is not None or not self.is_within)
        self.ops.append(
            Contract(
                self.layer,
                (value,),
                (out,),
                self.weight(kernel),
                tuple(read),
                tuple(write),
                None if bias is None else self.weight(bias),
                groups,
                pads,
                positions,
                foldable,
                along=tuple(along),
                roles=roles,
            )
        )
        return out

    def depthwise(
        self,
        value: int,
        kernel: Any,
        *,
        axis: int,
        split: Sequence[int],
        axes: tuple[int, int],
        shape: Shape,
        bias: Any = None,
        pads: bool = False,
        positions: int = 0,
    ) -> int:
        """A kernel with filters of its own for each channel; see `channels.ops.Depthwise`."""
        out = self._new_value(shape)
        bias = None if bias is None else self.weight(bias)
        self.ops.append(
            Depthwise(
                self.layer, (value,), (out,), self.weight(kernel), axis, tuple(split), axes, bias, pads, positions
            )
        )
        return out

    def recurrent(
        self,
        values: Sequence[int],
        shapes: Sequence[Shape],
        *,
        kernel: Any,
        recurrent: Any,
        bias: Any = None,
        **settings: Any,
    ) -> tuple[int, ...]:
        """A recurrent layer on a sequence, its initial states and masks; see `channels.ops.Recurrent`.

        Returns:
            a value for each of `shapes`: the sequence or its last step, and then states.
        """
        outputs = tuple(self._new_value(shape) for shape in shapes)
        weights = (self.weight(kernel), self.weight(recurrent), None if bias is None else self.weight(bias))
        self.ops.append(Recurrent(self.layer, tuple(values), outputs, *weights, **settings))
        return outputs

    def affine(
        self,
        value: int,
        *,
        axis: int,
        parameters: Sequence[tuple[Any, str]],
        coefficients: Callable[..., tuple[NDArray, NDArray]],
    ) -> int:
        """Scale and shift along one axis; `parameters` are (variable, role), roles `scale`, `shift`, `statistic`."""
        out = self._new_value(self.shape(value))
        weights = tuple((self.weight(variable), role) for variable, role in parameters)
        self.ops.append(Affine(self.layer, (value,), (out,), axis, weights, coefficients))
        return out

    def slope(self, value: int, variable: Any) -> int:
        """PReLU: a slope for each channel below 0."""
        out = self._new_value(self.shape(value))
        self.ops.append(Slope(self.layer, (value,), (out,), self.weight(variable)))
        return out

    def map(self, value: int, function: Callable[[NDArray], NDArray] | None = None) -> int:
        """Elementwise; `function` says what becomes of a constant (None: nothing)."""
        if function is None:
            return value
        out = self._new_value(self.shape(value))
        self.ops.append(Map(self.layer, (value,), (out,), function))
        return out

    def spatial(
        self,
        value: int,
        shape: Shape,
        *,
        axes: Sequence[int],
        pads: bool = False,
        fill: float = 0.0,
        function: Callable[[NDArray], NDArray] | None = None,
    ) -> int:
        """Positions along `axes` move or mix; `pads` if positions come in that hold `fill`.

        Args:
            function: what becomes of a constant; None where it stays what it is.
        """
        out = self._new_value(shape)
        self.ops.append(Spatial(self.layer, (value,), (out,), function, tuple(axes), pads, fill))
        return out

    def as_one(self, value: int, axes: Sequence[int]) -> int:
        """From here on channels along `axes` go or stay together."""
        out = self._new_value(self.shape(value))
        self.ops.append(AsOne(self.layer, (value,), (out,), None, tuple(axes)))
        return out

    def gather(
        self,
        value: int,
        axis: int,
        select: Callable[[int], NDArray],
        size: int | None = None,
        *,
        rewritable: bool = False,
    ) -> int:
        """Take positions along one axis; see `channels.ops.Gather`.

        Args:
            select: from the size of the axis to the indices.
            size: how many they are; needed where the size of the axis is not known.
        """
        shape = list(self.shape(value))
        old = shape[axis]
        shape[axis] = size if old is None else len(select(old))
        out = self._new_value(tuple(shape))
        self.ops.append(Gather(self.layer, (value,), (out,), axis, select, rewritable))
        return out

    def pad(self, value: int, axis: int, before: int, after: int, fill: float = 0.0) -> int:
        """Constants come in along one axis; see `channels.ops.Pad`."""
        shape = list(self.shape(value))
        size = shape[axis]
        shape[axis] = None if size is None else before + size + after
        out = self._new_value(tuple(shape))
        self.ops.append(Pad(self.layer, (value,), (out,), axis, before, after, fill))
        return out

    def reduce(
        self,
        value: int,
        axes: Sequence[int],
        keepdims: bool,
        function: Callable[[NDArray, float], NDArray] | None = None,
        fold: Callable[[NDArray], float] | None = None,
    ) -> int:
        """Mean, maximum, sum or the like over `axes`; see `channels.ops.Reduce`."""
        old = self.shape(value)
        shape = tuple(1 if i in axes else s for i, s in enumerate(old) if keepdims or i not in axes)
        out = self._new_value(shape)
        self.ops.append(Reduce(self.layer, (value,), (out,), tuple(axes), keepdims, function, fold))
        return out

    def combine(self, values: Sequence[int], kind: str, function: Callable[..., NDArray], shape: Shape) -> int:
        """Several values, channel by channel; `kind` is `add`, `subtract`, `multiply` or another word."""
        out = self._new_value(shape)
        self.ops.append(Combine(self.layer, tuple(values), (out,), kind, function))
        return out

    def concatenate(self, values: Sequence[int], axis: int, shape: Shape) -> int:
        """Concatenation along one axis, the batch axis not counted."""
        out = self._new_value(shape)
        self.ops.append(Concatenate(self.layer, tuple(values), (out,), axis))
        return out

    def product(self, a: int, b: int, letters: str, shape: Shape, averages: bool = False) -> int:
        """An einsum of two values, such as `qhd,khd->hqk`, the batch axis not counted; see `channels.ops.Product`."""
        out = self._new_value(shape)
        operands, _, result = letters.partition("->")
        first, _, second = operands.partition(",")
        self.ops.append(Product(self.layer, (a, b), (out,), (first, second, result), averages))
        return out

    def permute(self, value: int, axes: Sequence[int]) -> int:
        """Transpose, the batch axis not counted."""
        out = self._new_value(tuple(self.shape(value)[axis] for axis in axes))
        self.ops.append(Permute(self.layer, (value,), (out,), tuple(axes)))
        return out

    def reshape(self, value: int, shape: Shape, blocks: Blocks | None = None, tiles: bool = False) -> int:
        """Reshape, the batch axis not counted.

        Args:
            blocks: (input axes, output axes) that hold the same positions; by default found from the sizes.
            tiles: whether axes of unknown size may be merged with channels; see `channels.ops.Reshape`.
        """
        out = self._new_value(shape)
        if blocks is None:
            blocks = reshape_blocks(self.shape(value), shape)
        self.ops.append(Reshape(self.layer, (value,), (out,), blocks, tiles))
        return out

    def unsqueeze(self, value: int, size: int | None) -> int:
        """Repeat a value along a new first axis, behind the batch axis."""
        shape = self.shape(value)
        out = self._new_value((size, *shape))
        blocks = (((), (0,)), *(((axis,), (axis + 1,)) for axis in range(len(shape))))
        self.ops.append(Reshape(self.layer, (value,), (out,), blocks))
        return out

    def normalize(
        self,
        value: int,
        axes: Sequence[int],
        *,
        centred: bool,
        parameters: Sequence[tuple[Any, str]] = (),
        parameter_axes: Sequence[int] = (),
        axis: int = -1,
        groups: int = 1,
    ) -> int:
        """Normalization by the channels' own statistics; see `channels.ops.Normalize`."""
        out = self._new_value(self.shape(value))
        weights = tuple((self.weight(variable), role) for variable, role in parameters)
        self.ops.append(
            Normalize(self.layer, (value,), (out,), tuple(axes), centred, weights, tuple(parameter_axes), axis, groups)
        )
        return out

    def together(self, a: int, b: int) -> None:
        """Keep or remove the channels of two values as one, because one setting of the layer is the width of both."""
        self.ops.append(Together(self.layer, (a, b), ()))

    def mix(
        self,
        value: int,
        axes: Sequence[int] | None = None,
        function: Callable[[NDArray], NDArray] | None = None,
    ) -> int:
        """Every output depends on all that lies along `axes` (None: on every channel); see `channels.ops.Mix`."""
        out = self._new_value(self.shape(value))
        self.ops.append(Mix(self.layer, (value,), (out,), None if axes is None else tuple(axes), function))
        return out

    def constant(self, array: NDArray) -> int:
        """An array written into the model; it may lose positions along the last axis where it has more than one.

        A map of shape (H, W, 1) or (H, W, C) is no channels along H and W; a vector (C, 1, 1) is channels.
        """
        out = self._new_value(array.shape)
        wide = [axis for axis in range(array.ndim) if array.shape[axis] > 1]
        axes = tuple(wide[-1:]) if len(wide) == 1 or array.shape[-1] > 1 else ()
        self.ops.append(Source(self.layer, (), (out,), axes, np.asarray(array)))
        return out

    def opaque(self, reason: str) -> tuple[int, ...]:
        """Nothing is known of this call: what it touches stays."""
        outputs = tuple(self._new_value(shape) for shape in self.output_shapes)
        self.ops[:] = [Opaque(self.layer, self.inputs, outputs, reason)]
        self.configure, self.rewriter = None, None
        self.arrays.clear()
        self.factors.clear()
        return outputs
