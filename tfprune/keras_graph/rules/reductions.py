"""Sums, means, maxima and what else works along axes: each channel by itself, or all channels together.

Which of the two is known only when it is known where the channels are; the ops `Reduce`, `Mix` and `Spatial` find out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops
from numpy.typing import NDArray

from tfprune.channels.ops import Narrowing, Reduce
from tfprune.keras_graph.lowering import Lowering, Refused, again, register_operation
from tfprune.keras_graph.rules.axes import nothing_known, own_axes, zero_stays


@dataclass(frozen=True)
class Fold:
    """A reduction that can be put together from parts, so that constant channels can be left out of it.

    Attributes:
        function: what becomes of a constant that comes so many times; None: it stays what it is.
        fold: what becomes of several such results.
        merge: the result of what is left, together with the folded constants, in the model; None: they change nothing.
        neutral: the result that need not be merged.
    """

    function: Callable[[NDArray, float], NDArray] | None
    fold: Callable[[NDArray], Any]
    merge: Callable[[Any, Any], Any] | None
    neutral: float | None = None


def _times(constant: NDArray, count: float) -> NDArray:
    return np.where(constant == 0, 0.0, constant * count)


def _root_of_squares(parts: NDArray) -> float:
    return float(np.sqrt((parts**2).sum()))


_FOLDS = {
    "Sum": Fold(_times, np.sum, ops.add, 0.0),
    "Mean": Fold(None, np.mean, ops.add, 0.0),
    "Max": Fold(None, np.max, ops.maximum),
    "Min": Fold(None, np.min, ops.minimum),
    "Prod": Fold(lambda constant, count: constant**count, np.prod, ops.multiply, 1.0),
    "Any": Fold(lambda constant, count: constant != 0, np.any, ops.logical_or, 0.0),
    "All": Fold(lambda constant, count: constant != 0, np.all, ops.logical_and, 1.0),
    "CountNonzero": Fold(lambda constant, count: _times(constant != 0, count), np.sum, ops.add, 0.0),
    "Logsumexp": Fold(
        lambda constant, count: constant + np.log(count), lambda parts: np.logaddexp.reduce(parts), ops.logaddexp
    ),
}
_FOLDS |= {"Amax": _FOLDS["Max"], "Amin": _FOLDS["Min"], "Average": _FOLDS["Mean"]}
# Sums of absolute values or their powers: only zeros can be left out.
_LENGTH = Fold(lambda constant, count: np.where(constant == 0, 0.0, np.nan), _root_of_squares, None)
# Read all of a line, and cannot be put together.
_WHOLE = (
    "Std Var Median Quantile Percentile Ptp Argmax Argmin Nanmax Nanmin Nanmean Nansum Nanprod Nanstd Nanvar "
    "Nanmedian Nanquantile Nanpercentile Nanargmax Nanargmin"
).split()


def _number(value: Any, dtype: str) -> Any:
    """A constant of a tensor's type: Python's own numbers would pass through float32."""
    if "int" in dtype:
        return int(value)
    return np.asarray(value, dtype) if dtype in ("float32", "float64", "bool") else float(value)


def _reduced(lower: Lowering, value: int, axis: Any, keepdims: bool, fold: Fold | None):
    """Reduce over some axes; with a `Fold`, channels that are constant may go."""
    axes = own_axes(axis, len(lower.shape(value)))
    if isinstance(axes, Refused):
        return axes
    if fold is None:
        return lower.reduce(value, axes, keepdims, lambda constant, count: nothing_known(constant))
    y = lower.reduce(value, axes, keepdims, fold.function, fold.fold)
    op = lower.ops[-1]
    assert isinstance(op, Reduce)

    def write(new: Narrowing, operation: Any, tensors: list[Any]) -> Any:
        if not op.over_channels(new.labels):
            return None
        size, left = new.labels[value].size, new.kept[value].size
        gone = np.setdiff1d(np.arange(size), new.kept[value])
        constants = op.contributions(new.constant[value].ravel()[gone], new.labels, new.shapes[value])
        # What is not known there is read by nobody.
        constants = constants[np.isfinite(constants)]
        is_mean = fold is _FOLDS["Mean"]
        merged = constants.size and fold.merge is not None
        if not gone.size or not (is_mean or merged):
            return None
        result = again(operation)(*tensors)
        # Some operations say that they return the default type, whatever they are given.
        dtype = tensors[0].dtype if "float" in tensors[0].dtype and "float" in result.dtype else result.dtype
        if is_mean:
            result = ops.multiply(result, _number(left / size, dtype))
            number = constants.sum() / size
        else:
            number = fold.fold(constants)
        if fold.merge is None or number == fold.neutral or not constants.size:
            return result
        return fold.merge(result, _number(number, dtype))

    lower.rewrite(write)
    return y


@register_operation(*_FOLDS)
def folded(operation, lower: Lowering):
    if len(lower.inputs) > 1 or lower.arguments().get("weights") is not None:
        return Refused("it is weighted")
    fold = _FOLDS[type(operation).__name__]
    if getattr(operation, "initial", None) is not None:
        fold = None  # type: ignore[assignment]
    return _reduced(lower, lower.inputs[0], operation.axis, bool(getattr(operation, "keepdims", False)), fold)


@register_operation(*_WHOLE)
def whole(operation, lower: Lowering):
    if len(lower.inputs) > 1 or np.ndim(lower.arguments().get("q", 0)) > 0:
        return Refused("it has several quantiles, or computed ones")
    return _reduced(lower, lower.inputs[0], operation.axis, bool(operation.keepdims), None)


@register_operation("Norm")
def norm(operation, lower: Lowering):
    axes = operation.axis
    simple = np.ndim(axes) == 0 or len(axes) == 1
    kind = operation.ord
    zeros_count_for_nothing = kind is None or kind == "fro" or (simple and isinstance(kind, int | float) and kind > 0)
    return _reduced(
        lower, lower.inputs[0], axes, bool(operation.keepdims), _LENGTH if zeros_count_for_nothing else None
    )


@register_operation("Moments")
def moments(operation, lower: Lowering):
    x, keepdims = lower.inputs[0], bool(operation.keepdims)
    results = [_reduced(lower, x, operation.axes, keepdims, None) for _ in range(2)]
    return next((result for result in results if isinstance(result, Refused)), tuple(results))


# ---------------------------------------------------------------------- along an axis that stays

_ALONG = {
    "Softmax": nothing_known,
    "LogSoftmax": nothing_known,
    "Sparsemax": nothing_known,
    "Cumsum": zero_stays,
    "Cumprod": zero_stays,
    "Nancumsum": zero_stays,
    "Nancumprod": zero_stays,
    "Sort": None,
    "Argsort": nothing_known,
}


@register_operation(*_ALONG)
def along(operation, lower: Lowering):
    axes = own_axes(operation.axis, len(lower.shape(lower.inputs[0])))
    if isinstance(axes, Refused):
        return axes
    function = _ALONG[type(operation).__name__]
    return lower.mix(lower.inputs[0], axes, function or (lambda constant: constant))


@register_operation("Normalize")
def normalize(operation, lower: Lowering):
    axes = own_axes(operation.axis, len(lower.shape(lower.inputs[0])))
    if isinstance(axes, Refused):
        return axes
    if not (isinstance(operation.order, int | float) and operation.order > 0):
        return lower.mix(lower.inputs[0], axes)
    # As UnitNormalization: zeros add nothing to a length.
    return lower.normalize(lower.inputs[0], axes, centred=False)


@register_operation("Diff", "Trapezoid")
def shorter(operation, lower: Lowering):
    axes = own_axes(operation.axis, len(lower.shape(lower.inputs[0])))
    if isinstance(axes, Refused) or len(lower.inputs) > 1:
        return Refused("it works along the batch axis, or on computed distances")
    if type(operation).__name__ == "Trapezoid":
        return _reduced(lower, lower.inputs[0], operation.axis, False, None)
    return lower.spatial(lower.inputs[0], lower.output_shape, axes=axes, function=zero_stays)


@register_operation("TopK")
def top_k(operation, lower: Lowering):
    x = lower.inputs[0]
    axes = (len(lower.shape(x)) - 1,)
    if axes[0] < 0:
        return Refused("it works along the batch axis")
    values, places = lower.output_shapes
    return (
        lower.spatial(x, values, axes=axes),
        lower.spatial(x, places, axes=axes, function=nothing_known),
    )


@register_operation("Tril", "Triu")
def triangle(operation, lower: Lowering):
    rank = len(lower.shape(lower.inputs[0]))
    if rank < 2:
        return Refused("it works along the batch axis")
    return lower.spatial(lower.inputs[0], lower.output_shape, axes=(rank - 2, rank - 1), pads=True)
