"""What works on each number by itself: activations, Clip, Cast, Dropout at inference; softmax, which does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfprune.onnx_graph.lowering import Lowering, Refused, register_node

_UNARY = (
    "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid HardSwish "
    "IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign "
    "Sqrt Swish Tan Tanh ThresholdedRelu"
).split()


def on_constants(lower: Lowering) -> Callable[[NDArray], NDArray]:
    """What the node does to constants, by ONNX's reference implementation; inputs behind the first are constants."""
    known, node = lower.known, lower.node

    def evaluate(constants: NDArray) -> NDArray:
        others = [known.array(name).astype(np.float64) if name else None for name in node.inputs[1:]]
        try:
            return np.asarray(known.evaluate(node, [constants.astype(np.float64), *others])[0], np.float64)
        except Exception:  # not every operator has one for every type
            return np.full(constants.shape, np.nan)

    return evaluate


@register_node(*_UNARY)
def unary(lower: Lowering) -> int:
    return lower.map(lower.value(0), on_constants(lower))


@register_node("Clip")
def clip(lower: Lowering) -> Any:
    if any(lower.has(i) and not lower.fixed(i) for i in (1, 2)):
        return Refused("its bounds are computed")
    return lower.map(lower.value(0), on_constants(lower))


@register_node("Cast", "CastLike")
def cast(lower: Lowering) -> int:
    x = lower.value(0)
    _keep_softmax(lower)
    kind = lower.known.types.get(lower.node.outputs[0])
    if kind in (1, 10, 11, 16):  # floats
        return lower.identity(x)
    return lower.map(x, (lambda c: (c != 0).astype(np.float64)) if kind == 9 else np.trunc)


@register_node("Identity")
def identity(lower: Lowering) -> int:
    _keep_softmax(lower)
    return lower.identity(lower.value(0))


@register_node("Dropout")
def dropout(lower: Lowering) -> Any:
    if lower.has(2) and not (lower.fixed(2) and not lower.array(2).any()):
        return Refused("it drops numbers at inference")
    _keep_softmax(lower)
    return lower.identity(lower.value(0))


def _keep_softmax(lower: Lowering) -> None:
    if lower.averages(0):
        lower.note_average()


@register_node("Softmax", "LogSoftmax", "Hardmax")
def softmax(lower: Lowering) -> int:
    x = lower.value(0)
    rank = len(lower.shape(x))
    old = lower.node.opset < 13
    axis = int(lower.attribute("axis", 1 if old else -1)) % max(rank, 1)
    # Before opset 13 everything from the axis on was one axis.
    axes = range(axis, rank) if old else (axis,)
    if lower.node.op == "Softmax" and tuple(axes) == (rank - 1,):
        lower.note_average()
    return lower.mix(x, axes)
