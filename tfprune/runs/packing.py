"""Nested values with arrays among them as JSON and a flat dictionary of arrays, and back. Nothing is pickled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfprune.keras_graph.arrays import numbers


def packed(value: Any, arrays: dict[str, NDArray]) -> Any:
    """A value as JSON; its arrays and tensors go into `arrays`.

    Raises:
        TypeError: something in it is neither number, text, array nor a dictionary, list or tuple of these.

    >>> arrays = {}
    >>> kept = packed({"wait": 3, "best": np.arange(2)}, arrays)
    >>> unpacked(kept, arrays)
    {'wait': 3, 'best': array([0, 1])}
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, np.generic):
        return packed(value.item(), arrays)
    if isinstance(value, Mapping):
        return {"dict": [[packed(key, arrays), packed(one, arrays)] for key, one in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__ if type(value) is list else "tuple": [packed(one, arrays) for one in value]}
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        kind = "tensor" if type(value).__module__.startswith("torch") else "array"
        array = value.detach().cpu().numpy() if kind == "tensor" else value
        array = np.array(array if isinstance(array, np.ndarray) else numbers(array))
        name = f"array_{len(arrays)}"
        # An .npz file knows numpy's own types alone.
        known = array.dtype.kind in "biufc"
        arrays[name] = array if known else array.view(f"u{array.dtype.itemsize}")
        return {kind: name, "dtype": array.dtype.name}
    raise TypeError(f"a {type(value).__name__} cannot be kept as JSON and arrays")


def unpacked(value: Any, arrays: Mapping[str, NDArray]) -> Any:
    """What `packed` was given."""
    if not isinstance(value, dict):
        return value
    kind, inner = next(iter(value.items()))
    if kind == "float":
        return float(inner)
    if kind == "dict":
        return {unpacked(key, arrays): unpacked(one, arrays) for key, one in inner}
    if kind in ("list", "tuple"):
        found = [unpacked(one, arrays) for one in inner]
        return found if kind == "list" else tuple(found)
    array = arrays[inner]
    array = array if array.dtype.name == value["dtype"] else array.view(np.dtype(value["dtype"]))
    if kind == "tensor":
        import torch

        return torch.from_numpy(array.copy())
    return array


def write_arrays(path: Path, arrays: Mapping[str, NDArray]) -> None:
    """An .npz file."""
    np.savez(path, **arrays)  # type: ignore[arg-type]


def read_arrays(path: Path) -> dict[str, NDArray]:
    """What `write_arrays` wrote; nothing where there is no file."""
    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive}
