"""Axes as Keras counts them, with the batch axis in front, and as values count them, without."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfprune.keras_graph.lowering import Refused


def own_axis(axis: Any, rank: int) -> int | None:
    """One axis without the batch axis, or None where it is the batch axis or none.

    Args:
        axis: as Keras counts it.
        rank: of the value, the batch axis not counted.

    >>> own_axis(-1, rank=3), own_axis(1, rank=3), own_axis(0, rank=3)
    (2, 0, None)
    """
    if axis is None or isinstance(axis, tuple | list):
        return None
    axis = int(axis) % (rank + 1)
    return axis - 1 if axis else None


def own_axes(axis: Any, rank: int) -> tuple[int, ...] | Refused:
    """The axes that an operation is given, or why it cannot be followed."""
    if axis is None:
        return Refused("it works over everything, the batch axis included")
    axes = [own_axis(a, rank) for a in np.atleast_1d(axis).tolist()]
    if None in axes:
        return Refused("it works along the batch axis")
    return tuple(axes)  # type: ignore[arg-type]


def nothing_known(*constants: np.ndarray) -> np.ndarray:
    """For results of constants that are not worked out."""
    return np.full(np.broadcast_shapes(*(np.shape(constant) for constant in constants)), np.nan)


def zero_stays(constant: np.ndarray) -> np.ndarray:
    """0 stays 0; nothing is known of other constants."""
    return np.where(constant == 0, 0.0, np.nan)
