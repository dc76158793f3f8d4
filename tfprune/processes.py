"""Processes that train one model together: which is the first, what is spread over them, what they agree on.

Several processes train one model on Keras' JAX backend, through `keras.distribution`. Alone, or on another backend,
everything here is a matter of course.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from tfprune.errors import ProcessError


def is_first() -> bool:
    """Whether this process is alone, or number 0: the one that writes files."""
    jax = _several()
    return jax is None or jax.process_index() == 0


def whole(array: Any) -> NDArray:
    """All of an array, also where each process holds a part of it: then all have to ask, in the same order.

    Raises:
        ProcessError: another process has died.
    """
    if getattr(array, "is_fully_addressable", True):
        return np.asarray(array)
    with _together() as gather:
        return np.asarray(array) if array.is_fully_replicated else gather(array, tiled=True)


def agree(about: str, *parts: Any, hint: str) -> None:
    """Compare what the processes hold; 32 bytes from each go to all.

    Args:
        about: what is compared, for the message.
        parts: arrays, numbers and texts.
        hint: what to do when they differ.

    Raises:
        ProcessError: they differ. It is raised by every process, so that none waits for the others. Or another
            process has died.
    """
    if _several() is None:
        return
    own = np.frombuffer(_digest(parts), np.uint8)
    with _together() as gather:
        everyone = np.asarray(gather(own)).reshape(-1, own.size)
    others = np.flatnonzero((everyone != everyone[0]).any(axis=1))
    if others.size:
        shown = ", ".join(map(str, others[:8])) + (", ..." if others.size > 8 else "")
        raise ProcessError(f"{about} differ between process 0 and {shown} of {len(everyone)}; {hint}")


def _several() -> Any:
    """Jax, if this process is one of several."""
    if keras.backend.backend() != "jax":
        return None
    import jax

    return jax if jax.process_count() > 1 else None


@contextlib.contextmanager
def _together() -> Iterator[Any]:
    """Gives the function that gathers an array from all processes; says so when they cannot do it."""
    import jax
    from jax.experimental import multihost_utils

    try:
        yield multihost_utils.process_allgather
    except jax.errors.JaxRuntimeError as error:
        raise ProcessError(
            "what the processes compute together failed: most likely another one has died, or cannot be reached; its "
            f"own output says why. Start all of them again; training goes on from the last checkpoint. JAX: {error}"
        ) from error


def _digest(parts: Iterable[Any]) -> bytes:
    found = hashlib.sha256()
    for part in parts:
        array = np.ascontiguousarray(part)
        found.update(f"{array.dtype} {array.shape}".encode())
        found.update(array.tobytes())
    return found.digest()
