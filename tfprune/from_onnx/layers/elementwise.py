"""Activations, arithmetic and comparison."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from keras import layers, ops

from tfprune.from_onnx.builder import Builder, LayerError, Value, builds
from tfprune.onnx_graph.model import Node

_ACTIVATIONS = {
    "Relu": "relu",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Softplus": "softplus",
    "Softsign": "softsign",
    "HardSwish": "hard_swish",
    "Mish": "mish",
    "Exp": "exponential",
}
_UNARY: dict[str, Callable[[Any], Any]] = {
    "Abs": ops.absolute,
    "Ceil": ops.ceil,
    "Cos": ops.cos,
    "Erf": ops.erf,
    "Floor": ops.floor,
    "IsInf": ops.isinf,
    "IsNaN": ops.isnan,
    "Log": ops.log,
    "Neg": ops.negative,
    "Not": ops.logical_not,
    "Reciprocal": ops.reciprocal,
    "Round": ops.round,
    "Sign": ops.sign,
    "Sin": ops.sin,
    "Sqrt": ops.sqrt,
    "Tan": ops.tan,
}
_SEVERAL: dict[str, Callable[..., Any]] = {
    "Add": ops.add,
    "And": ops.logical_and,
    "Div": ops.divide,
    "Equal": ops.equal,
    "Greater": ops.greater,
    "GreaterOrEqual": ops.greater_equal,
    "Less": ops.less,
    "LessOrEqual": ops.less_equal,
    "Max": ops.maximum,
    "Min": ops.minimum,
    "Mul": ops.multiply,
    "Or": ops.logical_or,
    "Pow": ops.power,
    "Sub": ops.subtract,
    "Sum": ops.add,
    "Where": ops.where,
    "Xor": ops.logical_xor,
}
_LAYERS = {"Add": layers.Add, "Sum": layers.Add, "Mul": layers.Multiply, "Max": layers.Maximum, "Min": layers.Minimum}


def _like(value: Value, tensor: Any) -> Value:
    return Value(tensor, value.axes, value.order)


@builds(*_ACTIVATIONS)
def activation(builder: Builder, node: Node) -> Value:
    value = builder.value(node)
    return _like(value, builder.layer(node, layers.Activation, value.tensor, activation=_ACTIVATIONS[node.op]))


@builds(*_UNARY)
def unary(builder: Builder, node: Node) -> Value:
    value = builder.value(node)
    return _like(value, _UNARY[node.op](value.tensor))


@builds("Identity")
def identity(builder: Builder, node: Node) -> Value:
    value = builder.value(node)
    return _like(value, value.tensor)


@builds("Dropout")
def dropout(builder: Builder, node: Node) -> Value:
    value = builder.value(node)
    if any(node.outputs[1:]):
        raise LayerError("its mask is asked for")
    rate = float(builder.array(node, 1, node.attributes.get("ratio", 0.5)))
    return _like(value, builder.layer(node, layers.Dropout, value.tensor, rate=rate))


@builds("LeakyRelu")
def leaky(builder: Builder, node: Node) -> Value:
    value = builder.value(node)
    slope = node.attributes.get("alpha", 0.01)
    return _like(value, builder.layer(node, layers.LeakyReLU, value.tensor, negative_slope=slope))


@builds("Elu")
def elu(builder: Builder, node: Node) -> Value:
    value = builder.value(node)
    return _like(value, builder.layer(node, layers.ELU, value.tensor, alpha=node.attributes.get("alpha", 1.0)))


@builds("Selu")
def selu(builder: Builder, node: Node) -> Value:
    value = builder.value(node)
    alpha, gamma = node.attributes.get("alpha", 1.6732632), node.attributes.get("gamma", 1.0507010)
    if math.isclose(alpha, 1.6732632, rel_tol=1e-6) and math.isclose(gamma, 1.0507010, rel_tol=1e-6):
        return _like(value, builder.layer(node, layers.Activation, value.tensor, activation="selu"))
    return _like(value, ops.multiply(builder.layer(node, layers.ELU, value.tensor, alpha=alpha), gamma))


@builds("Gelu")
def gelu(builder: Builder, node: Node) -> Value:
    value = builder.value(node)
    return _like(value, ops.gelu(value.tensor, approximate=node.attributes.get("approximate", b"none") == b"tanh"))


@builds("HardSigmoid")
def hard_sigmoid(builder: Builder, node: Node) -> Value:
    value = builder.value(node)
    alpha, beta = node.attributes.get("alpha", 0.2), node.attributes.get("beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return _like(value, builder.layer(node, layers.Activation, value.tensor, activation="hard_sigmoid"))
    return _like(value, ops.clip(ops.add(ops.multiply(value.tensor, alpha), beta), 0.0, 1.0))


@builds("ThresholdedRelu")
def thresholded(builder: Builder, node: Node) -> Value:
    value = builder.value(node)
    above = ops.greater(value.tensor, node.attributes.get("alpha", 1.0))
    return _like(value, ops.where(above, value.tensor, ops.zeros_like(value.tensor)))


@builds("PRelu")
def prelu(builder: Builder, node: Node) -> Value:
    value = builder.in_order(builder.value(node))
    slope = builder.array(node, 1)
    slope = slope.reshape((1,) * (value.rank - slope.ndim) + slope.shape).transpose(value.axes)[0]
    sizes = [builder.shape(node.inputs[0])[axis] for axis in value.axes[1:]]
    shared = [axis for axis, size in enumerate(slope.shape, 1) if size == 1 and sizes[axis - 1] != 1]
    return _like(value, builder.layer(node, layers.PReLU, value.tensor, [slope], shared_axes=shared or None))


@builds("Clip")
def clip(builder: Builder, node: Node) -> Value:
    value = builder.value(node)
    low = builder.array(node, 1, node.attributes.get("min"))
    high = builder.array(node, 2, node.attributes.get("max"))
    low, high = (None if limit is None else float(limit) for limit in (low, high))
    if low == 0:
        return _like(value, builder.layer(node, layers.ReLU, value.tensor, max_value=high))
    tensor = value.tensor if low is None else ops.maximum(value.tensor, low)
    return _like(value, tensor if high is None else ops.minimum(tensor, high))


@builds("Softmax", "LogSoftmax")
def softmax(builder: Builder, node: Node) -> Value:
    value = builder.in_order(builder.value(node))
    old = node.opset < 13  # then all axes from this one on are one
    axis = node.attributes.get("axis", 1 if old else -1) % value.rank
    axes = [value.at(one) for one in (range(axis, value.rank) if old else [axis])]
    if node.op == "LogSoftmax":
        if len(axes) > 1:
            raise LayerError("a softmax over several axes")
        return _like(value, ops.log_softmax(value.tensor, axis=axes[0]))
    where = axes[0] if len(axes) == 1 else axes
    return _like(value, builder.layer(node, layers.Softmax, value.tensor, axis=where))


@builds("Cast")
def cast(builder: Builder, node: Node) -> Value:
    value, kind = builder.value(node), builder.dtype(node.outputs[0])
    if kind == str(value.tensor.dtype):
        return _like(value, value.tensor)
    return _like(value, ops.cast(value.tensor, kind))


@builds(*_SEVERAL)
def several(builder: Builder, node: Node) -> Value:
    tensors, axes = builder.aligned(node)
    if len(tensors) == 1:
        return Value(tensors[0], axes)
    kind = _LAYERS.get(node.op)
    shapes = {tuple(t.shape) if not isinstance(t, np.ndarray) else None for t in tensors}
    if kind is not None and len(shapes) == 1 and None not in shapes:
        return Value(builder.layer(node, kind, tensors), axes)
    function = _SEVERAL[node.op]
    if node.op == "Div" and "int" in builder.dtype(node.outputs[0]):
        function = _divided
    if node.op == "Where":
        return Value(ops.where(*tensors), axes)
    return Value(functools.reduce(function, [_number(t) for t in tensors]), axes)


def _number(tensor: Any) -> Any:
    """A single number as Python has it, which is short in the saved model and takes the other operand's type."""
    return tensor.item() if isinstance(tensor, np.ndarray) and not tensor.ndim else tensor


def _divided(a: Any, b: Any) -> Any:
    """Whole numbers, rounded towards zero."""
    return ops.cast(ops.trunc(ops.divide(a, b)), getattr(a, "dtype", None) or b.dtype)


@builds("Mean")
def mean(builder: Builder, node: Node) -> Value:
    tensors, axes = builder.aligned(node)
    return Value(ops.divide(functools.reduce(ops.add, tensors), float(len(tensors))), axes)


@builds("Mod")
def modulo(builder: Builder, node: Node) -> Value:
    tensors, axes = builder.aligned(node)
    if node.attributes.get("fmod"):
        raise LayerError("a remainder with the sign of what is divided")
    return Value(ops.mod(*tensors), axes)
