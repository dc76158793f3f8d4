"""A sample of data, whatever it comes in, as batches of arrays."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np

from tfprune.errors import DataError, PlanError


class Batch(NamedTuple):
    """Inputs, labels (or None) and weights of samples (or None): arrays, alone or in lists and dictionaries."""

    x: Any
    y: Any
    sample_weight: Any

    @property
    def samples(self) -> int:
        """How many there are."""
        return len(keras.tree.flatten(self.x)[0])


@dataclass(frozen=True)
class Sample:
    """What data-driven criteria look at: a few hundred samples of what the model is trained on.

    Attributes:
        data: arrays `x`, `(x, y)` or `(x, y, sample_weight)`; or batches of these: a `tf.data.Dataset`, a
            `keras.utils.PyDataset`, a torch `DataLoader`, a generator, any iterable. Several inputs or outputs are
            lists or dictionaries, as `fit` takes them: a tuple is always (x, y), a list of arrays several inputs.
        batch_size: into how many samples arrays are cut.
        steps: stop after so many batches; needed for data without end.
        training: run the model as in training, with Dropout and the batch's own statistics in BatchNormalization. By
            default it runs as in inference. Either way nothing of the model changes.

    Raises:
        PlanError: `batch_size` or `steps` is no whole number of at least 1.

    >>> [batch.samples for batch in Sample(np.zeros((70, 8, 8, 3))).batches()]
    [32, 32, 6]
    """

    data: Any
    batch_size: int = 32
    steps: int | None = None
    training: bool = False

    def __post_init__(self) -> None:
        for name, value in (("batch_size", self.batch_size), ("steps", 1 if self.steps is None else self.steps)):
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                raise PlanError(f"{name} must be a whole number of at least 1, and {value!r} came")

    @classmethod
    def of(cls, data: Any) -> Sample:
        """`data`, which may be a sample already."""
        return data if isinstance(data, cls) else cls(data)

    def check_again(self) -> None:
        """Check that the data can be read more than once.

        Raises:
            DataError: it is an iterator, which ends.
        """
        if hasattr(self.data, "__next__"):
            raise DataError("data= is read again and again, and an iterator came; give arrays or a data set")

    def batches(self) -> Iterator[Batch]:
        """Every batch in turn.

        Raises:
            DataError: what came is no data, arrays differ in length, or a batch holds no samples.
        """
        for batch in itertools.islice(self._batches(), self.steps):
            lengths = _lengths(batch)
            if len(lengths) > 1:
                raise DataError(f"the arrays of a batch hold {' and '.join(map(str, sorted(lengths)))} samples")
            if lengths != {0}:
                yield batch

    def _batches(self) -> Iterator[Batch]:
        if _are_arrays(self.data):
            whole = _batch(self.data)
            for start in range(0, max(_lengths(whole)), self.batch_size):
                yield _cut(whole, start, start + self.batch_size)
        else:
            yield from map(_batch, _iterated(self.data))


def _cut(batch: Batch, start: int, stop: int) -> Batch:
    return Batch(*(keras.tree.map_structure(lambda a: None if a is None else a[start:stop], one) for one in batch))


def _lengths(batch: Batch) -> set[int]:
    return {len(array) for part in batch for array in keras.tree.flatten(part) if array is not None}


def _are_arrays(data: Any) -> bool:
    if isinstance(data, list) and any(isinstance(one, tuple) for one in data):
        return False
    leaves = keras.tree.flatten(data)
    return bool(leaves) and all(one is None or (hasattr(one, "shape") and hasattr(one, "dtype")) for one in leaves)


def _iterated(data: Any) -> Iterable[Any]:
    if isinstance(data, keras.utils.PyDataset):
        length = data.num_batches
        return (data[index] for index in (itertools.count() if length is None else range(length)))
    if callable(data) and not hasattr(data, "__iter__"):
        data = data()
    if not hasattr(data, "__iter__") or isinstance(data, str | bytes | dict):
        raise DataError(
            f"data= must be arrays, (x, y), or batches of these (tf.data, PyDataset, an iterable), and "
            f"{type(data).__name__} came"
        )
    return data


def _batch(one: Any) -> Batch:
    parts = one if isinstance(one, tuple) else (one,)
    if not 1 <= len(parts) <= 3:
        raise DataError(f"a batch is x, (x, y) or (x, y, sample_weight), and a tuple of {len(parts)} came")
    return Batch(*(keras.tree.map_structure(_array, part) for part in (*parts, None, None)[:3]))


def _array(one: Any) -> Any:
    """A numpy array of what another framework holds."""
    if one is None:
        return None
    if hasattr(one, "detach"):
        one = one.detach().cpu()
    array = np.asarray(one)
    if array.ndim == 0:
        raise DataError("a batch must hold arrays with the samples along their first axis, and a single number came")
    return array
