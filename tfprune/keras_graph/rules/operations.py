"""`keras.ops` in functional graphs, operators such as `x + y` among them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tfprune.keras_graph.lowering import Lowering, Refused, register_operation
from tfprune.keras_graph.rules.activations import on_constants
from tfprune.keras_graph.rules.reshaping import target

_UNARY = (
    "Absolute Arctan Arcsinh Cbrt Ceil Clip Copy Cos Cosh Exp Exp2 Expm1 Floor Log1p NanToNum Negative Reciprocal "
    "Rint Round Rsqrt Sign Sin Sinh Sqrt Square Tan Tanh Trunc Relu Relu6 Sigmoid SparseSigmoid Softplus Softsign "
    "SoftShrink SparsePlus Silu Squareplus LogSigmoid LeakyRelu HardSigmoid HardSilu Elu Selu Gelu Celu TanhShrink "
    "HardTanh HardShrink Threshold Log Log2 Log10 Erf Cast"
).split()
_BINARY = {
    "Add": ("add", np.add),
    "Subtract": ("subtract", np.subtract),
    "Multiply": ("multiply", np.multiply),
    "Divide": ("divide", np.divide),
    "TrueDivide": ("divide", np.divide),
    "Maximum": ("maximum", np.maximum),
    "Minimum": ("minimum", np.minimum),
    "Power": ("power", np.power),
    "Mod": ("mod", np.mod),
    "FloorDivide": ("floor_divide", np.floor_divide),
}


def _on_constants(operation: Any, lower: Lowering):
    """The operation on constants: its node's other arguments stay as they are."""
    tensor = lower.node.input_tensors[0]

    def call(constants):
        args, kwargs = lower.node.arguments.fill_in({id(tensor): constants})
        return operation.call(*args, **kwargs)

    return on_constants(call)


@register_operation(*_UNARY)
def unary(operation, lower: Lowering):
    if len(lower.inputs) != 1:
        return Refused("it has several tensors")
    return lower.map(lower.inputs[0], _on_constants(operation, lower))


@register_operation(*_BINARY)
def binary(operation, lower: Lowering):
    kind, function = _BINARY[type(operation).__name__]
    operands = [*lower.node.arguments.args, *lower.node.arguments.kwargs.values()]
    tensors = [isinstance(operand, keras.KerasTensor) for operand in operands]
    if len(operands) != 2:
        return Refused("it has not two operands")
    if all(tensors):
        left, right = (operand for operand in operands)
        if len(left.shape) != len(right.shape):
            return Refused("its operands have different ranks, so that one's batch axis meets another's channels")
        values = lower.inputs if len(lower.inputs) == 2 else lower.inputs * 2
        return lower.combine(values, kind, function, lower.output_shape)
    other = np.asarray(keras.ops.convert_to_numpy(operands[tensors.index(False)]))
    if other.size == 1:
        return lower.map(lower.inputs[0], _on_constants(operation, lower))
    rank = len(lower.output_shape)
    if other.ndim == rank + 1 and other.shape[0] == 1:
        other = other[0]
    if other.ndim > rank or len(lower.shape(lower.inputs[0])) != rank:
        return Refused("an array in it has more axes than its tensor")
    array = lower.constant(other)
    lower.arrays[tensors.index(False)] = array
    values = (lower.inputs[0], array) if tensors[0] else (array, lower.inputs[0])
    return lower.combine(values, kind, function, lower.output_shape)


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
    if axes is None or 0 in np.atleast_1d(axes):
        return Refused("it may touch the batch axis")
    return lower.reshape(lower.inputs[0], lower.output_shape)


@register_operation("Transpose")
def transpose(operation, lower: Lowering):
    axes = operation.axes
    if axes is None or axes[0] != 0:
        return Refused("it moves the batch axis")
    rank = len(axes)
    return lower.permute(lower.inputs[0], tuple(axis % rank - 1 for axis in axes[1:]))


@register_operation("Mean", "Max", "Min", "Amax", "Amin")
def reduce(operation, lower: Lowering):
    axis = operation.axis
    rank = len(lower.shape(lower.inputs[0]))
    if axis is None:
        return Refused("it reduces over everything")
    axes = [int(a) % (rank + 1) for a in np.atleast_1d(axis)]
    if 0 in axes:
        return Refused("it reduces over the batch axis")
    return lower.reduce(lower.inputs[0], [a - 1 for a in axes], bool(operation.keepdims))


@register_operation("Softmax", "LogSoftmax")
def over_channels(operation, lower: Lowering) -> int:
    return lower.mix(lower.inputs[0])
