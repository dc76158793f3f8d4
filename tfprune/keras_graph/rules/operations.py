"""`keras.ops` in functional graphs that work element by element, and those that only move channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from tfprune.keras_graph.lowering import Lowering, Refused, register_operation
from tfprune.keras_graph.rules.axes import nothing_known, own_axis
from tfprune.keras_graph.rules.reshaping import target

_UNARY = (
    "Absolute Fabs Angle Arccos Arccosh Arcsin Arcsinh Arctan Arctanh BitwiseInvert BitwiseNot Cast Cbrt Ceil Celu "
    "Clip Conjugate ConvertToTensor Copy Cos Cosh Deg2rad Digitize Elu EmptyLike Erf Erfc Erfinv Exp Exp2 Expm1 "
    "Floor FullLike Gelu HardShrink HardSigmoid HardSilu HardTanh I0 Imag Isfinite Isinf Isnan Isneginf Isposinf "
    "Isreal LeakyRelu Log Log10 Log1p Log2 LogSigmoid LogicalNot NanToNum Negative OnesLike Rad2deg Real Reciprocal "
    "Relu Relu6 Round Rsqrt SaturateCast Selu Sigmoid Sign Signbit Silu Sin Sinc Sinh SoftShrink Softplus "
    "Softsign SparsePlus SparseSigmoid Sqrt Square Squareplus StopGradient Tan Tanh TanhShrink Threshold Trunc "
    "ZerosLike"
).split()
# Sums and products have kinds that simplify; the others are what Keras says they are.
_KINDS: dict[str, tuple[str, Callable[..., NDArray]]] = {
    "Add": ("add", np.add),
    "Subtract": ("subtract", np.subtract),
    "Multiply": ("multiply", np.multiply),
    "Divide": ("divide", np.divide),
    "TrueDivide": ("divide", np.divide),
    "Maximum": ("maximum", np.maximum),
    "Minimum": ("minimum", np.minimum),
    "Power": ("power", np.power),
}
_SEVERAL = (
    "Arctan2 BitwiseAnd BitwiseLeftShift BitwiseOr BitwiseRightShift BitwiseXor DivideNoNan Equal FloorDivide Fmax "
    "Fmin Fmod Gcd Greater GreaterEqual Heaviside Hypot Isclose Lcm Ldexp LeftShift Less LessEqual LogicalAnd "
    "LogicalOr LogicalXor Logaddexp Logaddexp2 Mod Nextafter NotEqual Polar RightShift Select Where"
).split()
BY_ELEMENT = frozenset((*_UNARY, *_KINDS, *_SEVERAL))
# A constant is computed in the model's own type and may be off by a rounding: next to a step that is another number.
_STEPPED = frozenset(
    "BitwiseInvert BitwiseNot Cast Ceil Digitize Floor HardShrink Round SaturateCast Sign Signbit Threshold Trunc "
    "Isnan Equal FloorDivide Fmod Gcd Greater GreaterEqual Heaviside Isclose Less LessEqual Mod Nextafter NotEqual "
    "Select Where".split()
)
_NUDGE = 1e-6


def _on_constants(operation: Any, lower: Lowering) -> Callable[..., NDArray]:
    """The operation on constants, one array for each of its tensors; its other arguments stay as they are."""
    node = lower.node

    def call(*tensors: Any) -> Any:
        known = {id(tensor): given for tensor, given in zip(node.input_tensors, tensors, strict=False)}
        args, kwargs = node.arguments.fill_in(known)
        return operation.call(*args, **kwargs)

    def evaluate(*constants: NDArray) -> NDArray:
        constants = tuple(np.broadcast_arrays(*constants))
        tensors = [
            keras.ops.convert_to_tensor(constant, dtype="float64" if "float" in given.dtype else given.dtype)
            for constant, given in zip(constants, node.input_tensors, strict=False)
        ]
        try:
            result = np.asarray(keras.ops.convert_to_numpy(call(*tensors)))
        except Exception:  # a backend that has no such kernel for these types: then nothing is known
            return nothing_known(*constants)
        known = result.dtype.kind != "c" and result.size == constants[0].size
        return result.astype(np.float64).reshape(constants[0].shape) if known else nothing_known(*constants)

    if type(operation).__name__ not in _STEPPED:
        return evaluate

    def steady(*constants: NDArray) -> NDArray:
        here = evaluate(*constants)
        beside = [
            evaluate(*(c * (1 + sign * _NUDGE) if i == index else c for i, c in enumerate(constants)))
            for index in range(len(constants))
            for sign in (-1, 1)
        ]
        same = np.logical_and.reduce([np.abs(other - here) <= 10 * _NUDGE * np.abs(here) for other in beside])
        return np.where(same, here, np.nan)

    return steady


@register_operation(*_UNARY)
def unary(operation, lower: Lowering):
    if len(lower.inputs) != 1:
        return Refused("it has several tensors")
    if type(operation).__name__ in ("Digitize", "FullLike") and lower.shape(lower.inputs[0]) != lower.output_shape:
        return Refused("its tensor is not the one whose shape it has")
    return lower.map(lower.inputs[0], _on_constants(operation, lower))


@register_operation(*_KINDS, *_SEVERAL)
def several(operation, lower: Lowering):
    """Tensors, numbers and arrays, element by element."""
    name = type(operation).__name__
    node = lower.node
    rank = len(lower.output_shape)
    if name == "Where" and len(keras.tree.flatten([*node.arguments.args, *node.arguments.kwargs.values()])) < 3:
        return Refused("it returns places, not values")
    if any(len(lower.shape(value)) != rank for value in lower.inputs):
        return Refused("its operands have different ranks, so that one's batch axis meets another's channels")
    kind, function = _KINDS.get(name, (name.lower(), _on_constants(operation, lower)))
    operands = [*node.arguments.args, *node.arguments.kwargs.values()]
    arrays: dict[int, int] = {}
    for number, operand in enumerate(operands):
        if any(isinstance(part, keras.KerasTensor) for part in keras.tree.flatten(operand)) or np.size(operand) == 1:
            continue
        array = np.asarray(keras.ops.convert_to_numpy(operand))
        if array.ndim == rank + 1 and array.shape[0] == 1:
            array = array[0]
        if array.ndim > rank:
            return Refused("an array in it has more axes than its tensor")
        arrays[number] = lower.constant(array)
    lower.arrays.update(arrays)
    if len(lower.inputs) + len(arrays) == 1:
        return lower.map(lower.inputs[0], _on_constants(operation, lower))
    if not arrays:
        function = function if len(operands) == len(lower.inputs) else _on_constants(operation, lower)
        return lower.combine(lower.inputs, kind, function, lower.output_shape)
    if len(operands) != 2:
        return Refused("it has an array beside other operands")
    values = [arrays.get(number, lower.inputs[0]) for number in range(2)]
    if name not in _KINDS:
        function = nothing_known
    return lower.combine(values, kind, function, lower.output_shape)


# ---------------------------------------------------------------------- moving


@register_operation("Reshape")
def reshape(operation, lower: Lowering):
    tensor, result = lower.node.input_tensors[0], lower.node.outputs[0]
    if tensor.shape[0] is not result.shape[0] and tensor.shape[0] != result.shape[0]:
        return Refused("it reshapes the batch axis")
    if len(lower.node.input_tensors) > 1:
        return Refused("its target shape is computed")
    y = lower.reshape(lower.inputs[0], lower.output_shape)
    batch = result.shape[0]
    lower.settings(lambda new: {"newshape": (-1 if batch is None else batch, *target(new.shape(y)))})
    return y


@register_operation("ExpandDims", "Squeeze")
def same_positions(operation, lower: Lowering):
    axes = getattr(operation, "axis", None)
    rank = max(len(lower.output_shape), len(lower.shape(lower.inputs[0])))
    if axes is None or None in (own_axis(axis, rank) for axis in np.atleast_1d(axes)):
        return Refused("it may touch the batch axis")
    return lower.reshape(lower.inputs[0], lower.output_shape)


def _permuted(lower: Lowering, axes: list[int]):
    """Transpose; `axes` count the batch axis."""
    if axes[0] != 0:
        return Refused("it moves the batch axis")
    return lower.permute(lower.inputs[0], tuple(axis - 1 for axis in axes[1:]))


@register_operation("Transpose")
def transpose(operation, lower: Lowering):
    rank = len(lower.shape(lower.inputs[0])) + 1
    axes = range(rank)[::-1] if operation.axes is None else operation.axes
    return _permuted(lower, [axis % rank for axis in axes])


@register_operation("Swapaxes")
def swap_axes(operation, lower: Lowering):
    axes = np.arange(len(lower.shape(lower.inputs[0])) + 1)
    axes[[operation.axis1, operation.axis2]] = axes[[operation.axis2, operation.axis1]]
    return _permuted(lower, axes.tolist())


@register_operation("Moveaxis")
def move_axis(operation, lower: Lowering):
    rank = len(lower.shape(lower.inputs[0])) + 1
    numbers = np.zeros(tuple(range(rank)), bool)
    return _permuted(lower, list(np.moveaxis(numbers, operation.source, operation.destination).shape))


def _stacked(lower: Lowering, axis: int | None):
    """A new axis, along which the values lie behind each other."""
    if axis is None:
        return Refused("it stacks along the batch axis")
    shapes = [lower.shape(value) for value in lower.inputs]
    if any(len(shape) + 1 != len(lower.output_shape) for shape in shapes):
        return Refused("its inputs have different ranks")
    values = [
        lower.reshape(value, (*shape[:axis], 1, *shape[axis:]))
        for value, shape in zip(lower.inputs, shapes, strict=True)
    ]
    return lower.concatenate(values, axis, lower.output_shape)


@register_operation("Stack")
def stack(operation, lower: Lowering):
    return _stacked(lower, own_axis(operation.axis, len(lower.output_shape)))


@register_operation("Hstack", "Dstack", "Append")
def behind_each_other(operation, lower: Lowering):
    name, rank = type(operation).__name__, len(lower.output_shape)
    if name == "Dstack" and len(lower.shape(lower.inputs[0])) == 1:
        return _stacked(lower, 1)
    axis = own_axis({"Hstack": 1, "Dstack": 2}.get(name, getattr(operation, "axis", None)), rank)
    if axis is None or rank != len(lower.shape(lower.inputs[0])):
        return Refused("it works along the batch axis")
    return lower.concatenate(lower.inputs, axis, lower.output_shape)
