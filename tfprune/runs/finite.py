"""NaN and infinite numbers: where they are by name, and what is said of them."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np

from tfprune.errors import DivergedError
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
    wrong = np.flatnonzero(~numbers(flags))
    if not len(wrong):
        return ""
    variable = weights[wrong[0]]
    layer, _, name = variable.path.removeprefix(f"{model.name}/").rpartition("/")
    array = numbers(variable)
    count = int((~np.isfinite(array.astype(np.float64))).sum())
    return f"{(layer or model.name)!r} ({name}: {count:,} of {array.size:,} are NaN or infinite)"


def refuse_diverged(model: keras.Model, said: str = "", newest: Path | None = None) -> None:
    """Raise if a weight is not finite, or if something else says so already.

    Args:
        said: what else is not finite, such as a loss, and when; "" for nothing.
        newest: the last checkpoint, which is good.

    Raises:
        DivergedError: it names the first layer with such weights, and the checkpoint.
    """
    where = not_finite(model)
    if not (where or said):
        return
    layer = f"the first layer with NaN or infinite weights is {where}" if where else "all weights are finite"
    good = f"{str(newest)!r} is from before that, and good" if newest is not None else "there is no checkpoint"
    raise DivergedError(
        f"training has diverged: {said or 'weights are not finite'}; {layer}. Nothing of it was saved: {good}. A lower "
        f"learning rate (Resume(changes='accept') goes on with another), clipped gradients (clipnorm=) or checked data "
        f"may help"
    )


__all__ = ["not_finite", "refuse_diverged"]
