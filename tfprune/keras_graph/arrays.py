"""Weights as numpy arrays, into and out of a backend's variables without needless copies."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from tfprune.channels.take import aligned
from tfprune.processes import whole


def numbers(variable: Any) -> NDArray:
    """What a variable or tensor holds, read-only; where the backend allows it, a view of its own memory.

    This is the one place where a model's weights are read: they may be spread over devices and processes.
    """
    if keras.backend.backend() == "torch":
        array = np.asarray(keras.ops.convert_to_numpy(variable))
    else:
        # Asking the variable itself makes a copy on TensorFlow.
        array = whole(keras.ops.stop_gradient(variable))
    array = array.view()
    array.flags.writeable = False
    return array


def handed_over(array: NDArray) -> Any:
    """An array as a new variable's initial value; its memory may become the variable's.

    What is a view of another variable is copied first: two models must not share their weights.
    """
    if not array.flags.writeable or array.ctypes.data % 64:
        copy = aligned(array.shape, array.dtype)
        copy[...] = array
        array = copy
    return _Handed(array) if keras.backend.backend() == "tensorflow" else array


class _Handed:
    """TensorFlow copies a numpy array before it takes it over, and only asks others for theirs."""

    def __init__(self, array: NDArray):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray:
        return self.array if dtype is None else self.array.astype(dtype, copy=False)
