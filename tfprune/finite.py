"""NaN and infinite weights: where they are, by name."""

from __future__ import annotations

import keras
import numpy as np

from tfprune.keras_graph.arrays import numbers


def not_finite(model: keras.Model) -> str:
    """The first layer, in the model's order, that holds NaN or infinite weights, and how many; "" if none does.

    Sums are taken on the device the weights are on; one flag a weight is read.

    >>> import keras
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="first")])
    >>> model.layers[0].bias.assign([0.0, float("nan"), 1.0])
    <...
    >>> not_finite(model)
    "'first' (bias: 1 of 3 are NaN or infinite)"
    """
    weights = [variable for variable in model.weights if "float" in keras.backend.standardize_dtype(variable.dtype)]
    if not weights:
        return ""
    flags = keras.ops.stack([keras.ops.all(keras.ops.isfinite(variable.value)) for variable in weights])
    wrong = np.flatnonzero(~np.asarray(keras.ops.convert_to_numpy(flags)))
    if not len(wrong):
        return ""
    variable = weights[wrong[0]]
    layer, _, name = variable.path.removeprefix(f"{model.name}/").rpartition("/")
    array = numbers(variable)
    count = int((~np.isfinite(array.astype(np.float64))).sum())
    return f"{(layer or model.name)!r} ({name}: {count:,} of {array.size:,} are NaN or infinite)"


__all__ = ["not_finite"]
