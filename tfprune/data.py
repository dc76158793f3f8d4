"""Image data sets by name, from a file, or from a function of the user's own.

>>> digits = load("digits")
>>> print(digits)
digits: 1437 training and 360 test samples of shape (8, 8, 1), 10 classes
"""

from __future__ import annotations

import importlib
import os
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tfprune.errors import DataError

_ARRAYS = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True)
class Dataset:
    """Samples and their labels, checked when made.

    Attributes:
        x_train: (samples, ...) float32; images are (samples, height, width, channels) with values in [0, 1].
        y_train: (samples,) int64, in [0, classes).
        x_test: as `x_train`.
        y_test: as `y_train`.
        classes: how many classes there are.
        name: what the data set is called in tables and messages.

    Raises:
        DataError: shapes do not fit together, labels are not whole numbers in [0, classes), or a value is not finite.

    >>> images, labels = np.zeros((2, 4, 4, 3), np.uint8), np.array([0, 1])
    >>> Dataset.of(images, labels, images, labels, name="mine").classes
    2
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: int
    name: str

    @classmethod
    def of(cls, x_train: Any, y_train: Any, x_test: Any, y_test: Any, name: str, classes: int | None = None) -> Dataset:
        """A data set from raw arrays: whole numbers are scaled from [0, 255] to [0, 1], grey images get a channel axis.

        Labels may be (samples,) or (samples, 1). `classes` is the largest training label plus 1 unless given.
        """
        images = [_images(array, what, name) for array, what in ((x_train, "x_train"), (x_test, "x_test"))]
        labels = [_labels(array, what, name) for array, what in ((y_train, "y_train"), (y_test, "y_test"))]
        return cls(images[0], labels[0], images[1], labels[1], classes or int(labels[0].max()) + 1, name)

    def __post_init__(self) -> None:
        for split in ("train", "test"):
            x, y = getattr(self, f"x_{split}"), getattr(self, f"y_{split}")
            if len(x) != len(y):
                raise DataError(
                    f"{self.name}: x_{split} has {len(x)} samples and y_{split} {len(y)} labels; each sample needs one"
                )
            low, high = int(y.min()), int(y.max())
            if low < 0 or high >= self.classes:
                raise DataError(
                    f"{self.name}: y_{split} holds labels from {low} to {high}, but there are {self.classes} classes; "
                    f"labels must be in 0..{self.classes - 1}"
                )
        if self.x_train.shape[1:] != self.x_test.shape[1:]:
            raise DataError(
                f"{self.name}: training samples have shape {self.x_train.shape[1:]}, test samples "
                f"{self.x_test.shape[1:]}; both must have the same"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return self.x_train.shape[1:]

    def head(self, train: int | None = None, test: int | None = None) -> Dataset:
        """The first `train` training and the first `test` test samples; None keeps all.

        Raises:
            DataError: a count is below 1.
        """
        for count in (train, test):
            if count is not None and count < 1:
                raise DataError(f"{self.name}: at least 1 sample must be kept, got {train=}, {test=}")
        return replace(
            self,
            x_train=self.x_train[:train],
            y_train=self.y_train[:train],
            x_test=self.x_test[:test],
            y_test=self.y_test[:test],
        )

    def check_model(self, model: Any) -> None:
        """Check that `model` (Keras) takes these samples and gives one score a class.

        Raises:
            DataError: it does not; the message has both shapes.
        """
        if len(model.inputs) != 1 or len(model.outputs) != 1:
            raise DataError(
                f"model {model.name!r} has {len(model.inputs)} inputs and {len(model.outputs)} outputs; training on "
                f"{self.name} needs one of each"
            )
        takes, gives = tuple(model.inputs[0].shape[1:]), tuple(model.outputs[0].shape[1:])
        fits = len(takes) == len(self.shape) and all(a in (None, b) for a, b in zip(takes, self.shape, strict=True))
        if not fits:
            raise DataError(
                f"model {model.name!r} takes samples of shape {takes}, but {self.name} has {self.shape}; give a model "
                f"built for that shape"
            )
        if gives != (self.classes,):
            raise DataError(
                f"model {model.name!r} gives outputs of shape {gives}, but {self.name} has {self.classes} classes; its "
                f"output must have shape ({self.classes},)"
            )

    def __str__(self) -> str:
        return (
            f"{self.name}: {len(self.x_train)} training and {len(self.x_test)} test samples of shape {self.shape}, "
            f"{self.classes} classes"
        )


def load(name_or_path: str | os.PathLike) -> Dataset:
    """Load a data set by name, or from an .npz file.

    Args:
        name_or_path: `digits` (8x8 grey handwritten digits that scikit-learn carries, offline), `cifar10`,
            `fashion_mnist` or `mnist` (downloaded by Keras once), or the path of an .npz file with the arrays
            x_train, y_train, x_test and y_test.

    Raises:
        DataError: the name is unknown, a download failed, the file is missing or damaged, or its arrays do not fit.
    """
    name = os.fspath(name_or_path)
    if name in _NAMED:
        return _NAMED[name](name)
    if name.endswith(".npz"):
        return _npz(Path(name))
    raise DataError(
        f"unknown data set {name!r}; the known ones are {', '.join(_NAMED)}, or give the path of an .npz file"
    )


def from_function(spec: str) -> Dataset:
    """The data set that `module:function` returns when called without arguments.

    The function returns a `Dataset`, or `(x_train, y_train), (x_test, y_test)` as `keras.datasets` do.

    Raises:
        DataError: there is no such function, it fails, or it returns something else.
    """
    function = import_function(spec, DataError)
    try:
        result = function()
    except Exception as error:
        raise DataError(f"{spec} failed: {type(error).__name__}: {error}") from error
    if isinstance(result, Dataset):
        return result
    try:
        (x_train, y_train), (x_test, y_test) = result
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{spec} must return a tfprune.data.Dataset or (x_train, y_train), (x_test, y_test); it returned a "
            f"{type(result).__name__}"
        ) from error
    return Dataset.of(x_train, y_train, x_test, y_test, name=spec)


def import_function(spec: str, error: type[Exception]) -> Callable[..., Any]:
    """The function that `module:function` names; modules in the current directory are found too.

    Raises:
        error: there is no such module or function, or importing it fails.
    """
    module_name, _, function_name = spec.partition(":")
    if not module_name or not function_name:
        raise error(f"expected module:function, such as my_package.models:build, got {spec!r}")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as cause:
        raise error(f"{spec}: module {module_name!r} could not be imported: {type(cause).__name__}: {cause}") from cause
    function = getattr(module, function_name, None)
    if not callable(function):
        raise error(f"{spec}: module {module_name!r} has no function {function_name!r}")
    return function


def _digits(name: str) -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("the digits data set needs scikit-learn; run `pip install scikit-learn`") from error
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    images, labels = (x[order] / 16).astype(np.float32).reshape(-1, 8, 8, 1), y[order]
    cut = len(x) * 4 // 5
    return Dataset.of(images[:cut], labels[:cut], images[cut:], labels[cut:], name=name)


def _keras(name: str) -> Dataset:
    import keras

    try:
        (x_train, y_train), (x_test, y_test) = getattr(keras.datasets, name).load_data()
    except Exception as error:
        raise DataError(
            f"{name} could not be downloaded ({error}); check the connection, or give the path of an .npz file with "
            f"the arrays {', '.join(_ARRAYS)}"
        ) from error
    return Dataset.of(x_train, y_train, x_test, y_test, name=name)


_NAMED: dict[str, Callable[[str], Dataset]] = {
    "digits": _digits,
    "cifar10": _keras,
    "fashion_mnist": _keras,
    "mnist": _keras,
}


def names() -> tuple[str, ...]:
    """The names that `load` knows."""
    return tuple(_NAMED)


def _npz(path: Path) -> Dataset:
    if not path.is_file():
        raise DataError(f"{str(path)!r} does not exist or is no file; give the path of an .npz file")
    try:
        # Never unpickled: an array of objects raises ValueError.
        with np.load(path, allow_pickle=False) as archive:
            missing = [array for array in _ARRAYS if array not in archive]
            if missing:
                raise DataError(
                    f"{str(path)!r} has no {' and no '.join(missing)}; it holds {', '.join(archive) or 'nothing'}, but "
                    f"{', '.join(_ARRAYS)} are needed"
                )
            x_train, y_train, x_test, y_test = (archive[array] for array in _ARRAYS)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zipfile.LargeZipFile) as error:
        raise DataError(
            f"{str(path)!r} cannot be read as an .npz file ({error}); write it again with numpy.savez"
        ) from error
    except Exception as error:  # zlib.error and the like, from a damaged member
        if isinstance(error, DataError):
            raise
        raise DataError(f"{str(path)!r} is damaged ({type(error).__name__}: {error}); write it again") from error
    return Dataset.of(x_train, y_train, x_test, y_test, name=path.stem)


def _images(array: Any, what: str, name: str) -> np.ndarray:
    array = np.asarray(array)
    if array.dtype.kind not in "uifb":
        raise DataError(f"{name}: {what} must hold numbers, got dtype {array.dtype}")
    if array.ndim < 2 or 0 in array.shape:
        raise DataError(f"{name}: {what} must be (samples, ...) with at least one sample, got shape {array.shape}")
    scale = 255 if array.dtype.kind in "ui" else 1
    array = array.astype(np.float32)
    if scale != 1:
        array /= scale
    if not np.isfinite(array.sum(dtype=np.float64)):
        raise DataError(f"{name}: {what} holds NaN or infinite values; remove those samples")
    return array[..., None] if array.ndim == 3 else array


def _labels(array: Any, what: str, name: str) -> np.ndarray:
    array = np.asarray(array)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or array.size == 0:
        raise DataError(
            f"{name}: {what} must be (samples,) class numbers, got shape {array.shape}; turn one-hot rows into numbers "
            f"with argmax(axis=1)"
        )
    if array.dtype.kind not in "uifb" or not np.array_equal(array, np.trunc(array)):
        raise DataError(f"{name}: {what} must hold whole class numbers, got dtype {array.dtype}")
    return array.astype(np.int64)
