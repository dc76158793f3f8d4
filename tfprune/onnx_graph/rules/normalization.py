"""BatchNormalization scales each channel by itself; the others read some channels together."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfprune.onnx_graph.lowering import Lowering, Refused, register_node


@register_node("BatchNormalization")
def batch_normalization(lower: Lowering) -> Any:
    if lower.attribute("training_mode", 0) or any(map(lower.used, range(1, len(lower.node.outputs)))):
        return Refused("it is in training mode")
    if not all(map(lower.fixed, (1, 2, 3, 4))):
        return Refused("its statistics are computed")
    if any(lower.constant_shape(index) != (lower.shape(lower.value(0))[1],) for index in (1, 2, 3, 4)):
        return Refused("its statistics are not as many as its channels")
    epsilon = float(lower.attribute("epsilon", 1e-5))
    parameters = [
        (lower.own(index, label), role)
        for index, label, role in (
            (1, "gamma", "scale"),
            (2, "beta", "shift"),
            (3, "moving_mean", "statistic"),
            (4, "moving_variance", "statistic"),
        )
    ]

    def coefficients(gamma, beta, mean, variance):
        scale = gamma / np.sqrt(variance + epsilon)
        return scale, beta - mean * scale

    return lower.affine(lower.value(0), axis=1, parameters=parameters, coefficients=coefficients)


def _parameters(lower: Lowering, first: int, shape: tuple[int | None, ...]) -> list | Refused:
    """The scale and the shift that start at an input."""
    found = []
    for index, label, role in ((first, "gamma", "scale"), (first + 1, "beta", "shift")):
        if not lower.has(index):
            continue
        if not lower.fixed(index) or lower.constant_shape(index) != tuple(shape):
            return Refused("its scale is computed, or has another shape than what it normalizes")
        found.append((lower.own(index, label), role))
    return found


@register_node("LayerNormalization", "RMSNormalization")
def layer_normalization(lower: Lowering) -> Any:
    x = lower.value(0)
    shape = lower.shape(x)
    axes = range(int(lower.attribute("axis", -1)) % len(shape), len(shape))
    if any(map(lower.used, range(1, len(lower.node.outputs)))):
        return Refused("its mean is used elsewhere")
    parameters = _parameters(lower, 1, shape[axes.start :])
    if isinstance(parameters, Refused):
        return parameters
    # A mean of squares would change with the width; nothing here makes up for it.
    return lower.normalize(x, axes, centred=True, parameters=parameters, parameter_axes=axes)


@register_node("InstanceNormalization")
def instance_normalization(lower: Lowering) -> Any:
    x = lower.value(0)
    shape = lower.shape(x)
    parameters = _parameters(lower, 1, shape[1:2])
    if isinstance(parameters, Refused):
        return parameters
    return lower.normalize(x, range(2, len(shape)), centred=True, parameters=parameters, parameter_axes=[1])


@register_node("GroupNormalization")
def group_normalization(lower: Lowering) -> Any:
    x = lower.value(0)
    shape, groups = lower.shape(x), int(lower.attribute("num_groups"))
    parameters = _parameters(lower, 1, shape[1:2])
    if isinstance(parameters, Refused) or not shape[1]:
        return Refused("its scale is one for each group, as before opset 21") if shape[1] else parameters
    width = shape[1]
    lower.rewrite(lambda new, edit: edit.set("num_groups", (new.shape(x)[1] or width) * groups // width))
    return lower.normalize(
        x, range(1, len(shape)), centred=True, parameters=parameters, parameter_axes=[1], axis=1, groups=groups
    )


@register_node("LpNormalization")
def unit_normalization(lower: Lowering) -> int:
    x = lower.value(0)
    return lower.normalize(x, [int(lower.attribute("axis", -1)) % len(lower.shape(x))], centred=False)


@register_node("MeanVarianceNormalization")
def standardization(lower: Lowering) -> int:
    x = lower.value(0)
    rank = len(lower.shape(x))
    return lower.normalize(x, [axis % rank for axis in lower.attribute("axes", (0, 2, 3))], centred=True)


@register_node("LRN")
def local_response(lower: Lowering) -> int:
    return lower.mix(lower.value(0), (1,), lambda constant: np.where(constant == 0, 0.0, np.nan))
