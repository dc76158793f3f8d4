"""Data sets: what loads, and what bad files and functions say."""

import sys

import numpy as np
import pytest

from tfprune import data
from tfprune.errors import DataError


@pytest.fixture
def arrays():
    generator = np.random.default_rng(0)
    return {
        "x_train": generator.integers(0, 256, (6, 5, 4, 3)).astype(np.uint8),
        "y_train": np.array([0, 1, 2, 0, 1, 2], np.uint8),
        "x_test": generator.integers(0, 256, (3, 5, 4, 3)).astype(np.uint8),
        "y_test": np.array([2, 0, 1], np.uint8),
    }


def write(tmp_path, arrays, name="mine.npz"):
    np.savez(tmp_path / name, **arrays)
    return tmp_path / name


def test_digits_offline():
    digits = data.load("digits")
    assert digits.shape == (8, 8, 1) and digits.classes == 10
    assert len(digits.x_train) + len(digits.x_test) == 1797
    assert digits.x_train.min() == 0 and digits.x_train.max() == 1
    assert set(digits.y_test) == set(range(10))
    np.testing.assert_array_equal(digits.x_test, data.load("digits").x_test)


def test_npz_scales_whole_numbers(tmp_path, arrays):
    loaded = data.load(write(tmp_path, arrays))
    assert (loaded.name, loaded.classes, loaded.x_train.dtype, loaded.y_train.dtype) == ("mine", 3, "float32", "int64")
    np.testing.assert_allclose(loaded.x_test, arrays["x_test"].astype(np.float64) / 255, atol=1e-7)


def test_npz_keeps_floats_and_adds_a_channel(tmp_path, arrays):
    arrays["x_train"], arrays["x_test"] = (arrays[x][..., 0].astype(np.float64) for x in ("x_train", "x_test"))
    arrays["y_train"] = arrays["y_train"][:, None]
    loaded = data.load(write(tmp_path, arrays))
    assert loaded.shape == (5, 4, 1)
    np.testing.assert_allclose(loaded.x_train[..., 0], arrays["x_train"])
    np.testing.assert_array_equal(loaded.y_train, arrays["y_train"][:, 0])


def test_head(tmp_path, arrays):
    few = data.load(write(tmp_path, arrays)).head(4, 2)
    assert (len(few.x_train), len(few.y_train), len(few.x_test), len(few.y_test)) == (4, 4, 2, 2)
    with pytest.raises(DataError, match="at least 1"):
        few.head(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_train": None}, "has no y_train; it holds x_train, x_test, y_test"),
        ({"y_train": np.array([0, 1])}, "x_train has 6 samples and y_train 2"),
        ({"x_test": np.zeros((3, 5, 5, 3))}, r"\(5, 4, 3\).*\(5, 5, 3\)"),
        ({"y_test": np.array([0, 1, 3])}, "labels from 0 to 3, but there are 3 classes"),
        ({"y_test": np.array([0, -1, 2])}, "labels from -1 to 2"),
        ({"y_test": np.eye(3)}, "argmax"),
        ({"y_test": np.array([0, 0.5, 2])}, "whole class numbers"),
        ({"y_test": np.array(["a", "b", "c"])}, "whole class numbers"),
        ({"x_test": np.array(["a", "b", "c"])}, "must hold numbers"),
        ({"x_test": np.zeros((0, 5, 4, 3))}, "at least one sample"),
        ({"x_test": np.full((3, 5, 4, 3), np.nan)}, "NaN"),
        ({"x_test": np.array([{}, {}, {}])}, "cannot be read"),
    ],
)
def test_npz_that_does_not_fit(tmp_path, arrays, change, message):
    arrays.update(change)
    with pytest.raises(DataError, match=message):
        data.load(write(tmp_path, {key: value for key, value in arrays.items() if value is not None}))


def test_missing_and_damaged_files(tmp_path, arrays):
    with pytest.raises(DataError, match="does not exist"):
        data.load(tmp_path / "none.npz")
    path = write(tmp_path, arrays)
    content = path.read_bytes()
    for damaged in (b"", b"not a zip", content[: len(content) // 2], content[:60] + b"\xff" * 40 + content[100:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="mine.npz"):
            data.load(path)


def test_unknown_name_lists_the_known():
    with pytest.raises(DataError, match="'cifar11'.*digits, cifar10, fashion_mnist, mnist"):
        data.load("cifar11")


def test_failed_download_says_what_to_do(monkeypatch):
    import keras

    def fail():
        raise OSError("URL fetch failure")

    monkeypatch.setattr(keras.datasets.mnist, "load_data", fail)
    with pytest.raises(DataError, match=r"mnist could not be downloaded \(URL fetch failure\).*\.npz"):
        data.load("mnist")


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "user_data.py").write_text(
        "import numpy as np\n"
        "def good():\n"
        "    x, y = np.zeros((4, 2, 2, 1)), np.arange(4)\n"
        "    return (x, y), (x, y)\n"
        "def wrong(): return 3\n"
        "def fails(): raise RuntimeError('no disk')\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("user_data", None)


def test_function(module):
    assert data.from_function("user_data:good").classes == 4


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("user_data", "expected module:function"),
        ("user_data:none", "has no function 'none'"),
        ("user_data:number", "has no function 'number'"),
        ("no_such_module:load", "could not be imported"),
        ("user_data:wrong", "it returned a int"),
        ("user_data:fails", "RuntimeError: no disk"),
    ],
)
def test_function_that_does_not_work(module, spec, message):
    with pytest.raises(DataError, match=message):
        data.from_function(spec)


def test_model_that_does_not_fit(tmp_path, arrays):
    import keras

    loaded = data.load(write(tmp_path, arrays))

    def model(shape, classes):
        image = keras.Input(shape)
        return keras.Model(image, keras.layers.Dense(classes)(keras.layers.GlobalAveragePooling2D()(image)))

    loaded.check_model(model((5, 4, 3), 3))
    loaded.check_model(model((None, None, 3), 3))
    with pytest.raises(DataError, match="3 classes"):
        loaded.check_model(model((5, 4, 3), 10))
    with pytest.raises(DataError, match=r"\(5, 5, 3\)"):
        loaded.check_model(model((5, 5, 3), 3))
