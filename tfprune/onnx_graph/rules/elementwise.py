"""Several operands, element by element: values with each other, and values with constants."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfprune.onnx_graph.lowering import Lowering, Refused, register_node


def _folded(function: Callable[..., NDArray]) -> Callable[..., NDArray]:
    """A function of two arrays as one of any number."""
    return lambda *arrays: functools.reduce(function, arrays)


def _unknown(*arrays: NDArray) -> NDArray:
    return np.full(np.broadcast_shapes(*(np.shape(array) for array in arrays)), np.nan)


def _where(condition: NDArray, a: NDArray, b: NDArray) -> NDArray:
    return np.where(condition != 0, a, b)


# operator -> what it is to `Combine`, and what it does to constants
_KINDS: dict[str, tuple[str, Callable[..., NDArray]]] = {
    "Add": ("add", np.add),
    "Sub": ("subtract", np.subtract),
    "Mul": ("multiply", np.multiply),
    "Div": ("divide", np.divide),
    "Sum": ("add", _folded(np.add)),
    "Mean": ("average", lambda *arrays: functools.reduce(np.add, arrays) / len(arrays)),
    "Max": ("maximum", _folded(np.maximum)),
    "Min": ("minimum", _folded(np.minimum)),
    "Pow": ("power", np.power),
    "Equal": ("compare", np.equal),
    "Greater": ("compare", np.greater),
    "GreaterOrEqual": ("compare", np.greater_equal),
    "Less": ("compare", np.less),
    "LessOrEqual": ("compare", np.less_equal),
    "And": ("logic", np.logical_and),
    "Or": ("logic", np.logical_or),
    "Xor": ("logic", np.logical_xor),
    "Where": ("where", _where),
    "PRelu": ("slope", lambda x, slope: np.where(x >= 0, x, x * slope)),
    "Mod": ("modulo", _unknown),
    "BitShift": ("bits", _unknown),
    "BitwiseAnd": ("bits", _unknown),
    "BitwiseOr": ("bits", _unknown),
    "BitwiseXor": ("bits", _unknown),
}
_ROLES = {"add": "shift", "subtract": "shift", "multiply": "scale"}


@register_node(*_KINDS)
def elementwise(lower: Lowering) -> Any:
    kind, function = _KINDS[lower.node.op]
    count = len(lower.node.inputs)
    values = [index for index in range(count) if not lower.fixed(index)]
    arrays = [index for index in range(count) if lower.fixed(index) and np.prod(lower.constant_shape(index)) != 1]
    numbers = {index: float(lower.array(index).ravel()[0]) for index in range(count) if index not in values + arrays}
    if kind == "slope":
        numbers, arrays = {}, [1] if lower.fixed(1) else []
    operands = [index for index in range(count) if index not in numbers]

    def bound(*given: NDArray) -> NDArray:
        found = dict(zip(operands, given, strict=True))
        return function(*(numbers[i] if i in numbers else found[i] for i in range(count)))

    if len(values) > 1:
        result = lower.combine(
            [lower.value(index) for index in operands], "other" if numbers else kind, bound, lower.output_shape
        )
        return result
    x = lower.value(values[0])
    if not arrays:
        y = lower.map(x, bound)
        rank = len(lower.output_shape)
        return y if rank == len(lower.shape(x)) else _led(lower, y)
    vector = _vector(lower, x, values[0], arrays, numbers, kind)
    if vector is not None:
        return vector
    operands_of = {index: (lower.own(index, _label(kind)), _ROLES.get(kind, "statistic")) for index in arrays}
    return lower.with_arrays(x, [operands_of.get(index) for index in operands], "other" if numbers else kind, bound)


def _label(kind: str) -> str:
    return {"add": "bias", "subtract": "bias", "multiply": "scale", "slope": "alpha"}.get(kind, "constant")


def _led(lower: Lowering, value: int) -> int:
    """The value with axes of size 1 in front."""
    return lower.reshape(value, lower.output_shape)


def _vector(lower: Lowering, x: int, place: int, arrays: list[int], numbers: dict, kind: str) -> int | None:
    """A constant vector along one axis of the value is a scale or a shift; None where it is more than that."""
    if len(arrays) > 1 or numbers or kind not in ("add", "subtract", "multiply", "divide"):
        return None
    shape, own = lower.shape(x), lower.constant_shape(arrays[0])
    wide = [axis - len(own) + len(shape) for axis, size in enumerate(own) if size > 1]
    if len(own) > len(shape) or len(wide) != 1 or shape[wide[0]] != own[wide[0] - len(shape)]:
        return None
    first = place == 0
    if kind == "divide" and not first:
        return None
    one = np.ones(1)
    coefficients: dict[str, Callable[..., tuple[NDArray, NDArray]]] = {
        "add": lambda b: (one, b),
        "subtract": (lambda b: (one, -b)) if first else (lambda b: (-one, b)),
        "multiply": lambda g: (g, np.zeros(1)),
        "divide": lambda g: (1 / g, np.zeros(1)),
    }
    variable = lower.own(arrays[0], _label(kind), flat=True)
    role = _ROLES.get(kind, "statistic")
    return lower.affine(x, axis=wide[0], parameters=[(variable, role)], coefficients=coefficients[kind])


@register_node("Trilu")
def triangle(lower: Lowering) -> int:
    x = lower.value(0)
    rank = len(lower.shape(x))
    return lower.spatial(x, lower.output_shape, axes=(rank - 2, rank - 1), pads=True)


@register_node("CumSum")
def cumulated(lower: Lowering) -> Any:
    if not lower.fixed(1):
        return Refused("its axis is computed")
    x = lower.value(0)
    axis = int(lower.array(1).ravel()[0]) % len(lower.shape(x))
    return lower.mix(x, (axis,), lambda constant: np.where(constant == 0, 0.0, np.nan))
