"""What a run was started with, as JSON, and how two starts differ: a resumed run must go on as it began."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import PurePath
from typing import Any


def described(value: Any) -> Any:
    """A setting as JSON that is the same in another process: numbers and texts as they are, arrays by their shape.

    Functions are named, Keras objects told by their settings, and schedules and criteria printed.

    >>> described({"ratio": (0.5, 0.75), "loss": len})
    {'ratio': [0.5, 0.75], 'loss': 'builtins.len'}
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): described(one) for key, one in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        return [described(one) for one in (sorted(value, key=repr) if isinstance(value, set | frozenset) else value)]
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"array {tuple(value.shape)} {value.dtype}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: described(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **fields}
    if hasattr(value, "get_config"):
        config = {key: one for key, one in value.get_config().items() if key != "name"}  # Keras numbers them
        return {"kind": type(value).__name__, **described(config)}
    name = getattr(value, "__qualname__", None)
    return f"{value.__module__}.{name}" if name else type(value).__name__


def differences(was: Any, now: Any, name: str = "") -> list[str]:
    """A line for each setting that differs between two starts.

    >>> differences({"rate": 0.1, "loss": "mse"}, {"rate": 0.2, "loss": "mse"})
    ['rate: was 0.1, is 0.2']
    >>> differences({"rates": [{"to": 1}, {"to": 2}]}, {"rates": [{"to": 1}, {"to": 3}]})
    ['rates[1].to: was 2, is 3']
    """
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        inner = f"{name}." if name else ""
        keys = dict.fromkeys([*was, *now])
        return [line for key in keys for line in differences(was.get(key, _NONE), now.get(key, _NONE), f"{inner}{key}")]
    lists = isinstance(was, list) and isinstance(now, list) and len(was) == len(now)
    if lists and all(isinstance(one, Mapping) for one in (*was, *now)):
        pairs = enumerate(zip(was, now, strict=True))
        return [line for index, pair in pairs for line in differences(*pair, f"{name}[{index}]")]
    return [] if was == now else [f"{name}: was {_shown(was)}, is {_shown(now)}"]


class _NotThere:
    def __repr__(self) -> str:
        return "not there"


_NONE = _NotThere()


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."
