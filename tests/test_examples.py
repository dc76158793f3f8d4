"""The examples: their networks are those that they name, and the roads that they show end where they say."""

from __future__ import annotations

import importlib
import json
import sys
import types
from pathlib import Path

import keras
import numpy as np
import pytest
from absl import flags
from models import assert_same, numbers, shaken

import tfprune
from tfprune.criteria import score
from tfprune.data import Dataset

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def example(monkeypatch):
    """A function that imports an example, with flags if it is to be run; its flags are forgotten afterwards.

    The examples' own `models` folder takes the place of the tests' `models` module meanwhile.
    """
    kept = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "models"}
    monkeypatch.syspath_prepend(str(EXAMPLES))
    sys.modules["models"] = types.ModuleType("models")
    sys.modules["models"].__path__ = [str(EXAMPLES / "models")]
    loaded = []

    def load(name, *arguments):
        before = set(flags.FLAGS)
        module = importlib.import_module(name)
        loaded.append((name, set(flags.FLAGS) - before))
        if arguments:
            flags.FLAGS([name, *arguments])
        return module

    yield load
    for name, defined in loaded:
        sys.modules.pop(name, None)
        for flag in defined:
            delattr(flags.FLAGS, flag)
    for name in [name for name in sys.modules if name.partition(".")[0] == "models"]:
        del sys.modules[name]
    sys.modules.update(kept)


def trained(model):
    """How many numbers are trained."""
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


@pytest.mark.parametrize(
    ("module", "function", "parameters"),
    [
        ("cnn28", "cnn28", 63_122),  # cnn-pruning's README
        ("vgg", "vgg16_bn", 14_728_266),  # 14,714,688 of VGG16's convolutions, 2 x 4,224 and 512 x 10 + 10
        ("mobilenet_v2", "mobilenet_v2", 2_236_682),  # torchvision's, with 10 classes
    ],
)
def test_networks(example, module, function, parameters):
    assert trained(getattr(example(f"models.{module}"), function)()) == parameters


@pytest.mark.parametrize(
    ("module", "function", "settings"),
    [("vgg", "vgg16_bn", {"width": 0.125}), ("mobilenet_v2", "mobilenet_v2", {"width": 0.2})],
)
def test_networks_are_pruned_exactly(example, module, function, settings):
    model = shaken(getattr(example(f"models.{module}"), function)(**settings))
    tfprune.soft_prune(model, tfprune.select(model, "l1", ratio=0.5))
    result = tfprune.strip(model)
    assert not result.refusals and result.cost_after.macs < 0.5 * result.cost_before.macs
    assert_same(model, result.model)


@pytest.mark.parametrize("ratio", [0.1, 0.5])
def test_one_layer_step_by_step_and_in_one_line(example, ratio):
    one_layer = example("one_layer")
    model = shaken(sys.modules["models.vgg"].vgg16_bn(width=0.25))
    shown = []
    by_hand = one_layer.step_by_step(model, ratio, show=lambda text: shown.append(str(text))).model
    at_once = one_layer.in_one_line(model, ratio).model
    assert_same(by_hand, at_once)
    for one, other in zip(by_hand.weights, at_once.weights, strict=True):
        np.testing.assert_array_equal(numbers(one), numbers(other))

    # Against numpy: the filters with the smallest L1 norm, their channels, and the slices that read them.
    kernel = numbers(model.get_layer("conv1_1").kernel)
    gone = np.sort(np.argsort(np.abs(kernel).sum((0, 1, 2)))[: int(ratio * 16)])
    assert len(gone) == {0.1: 1, 0.5: 8}[ratio]
    expected = {weight.path: numbers(weight) for weight in model.weights}
    expected["conv1_1/kernel"] = np.delete(kernel, gone, axis=3)
    expected["conv1_1/bias"] = np.delete(expected["conv1_1/bias"], gone)
    for name in ("gamma", "beta", "moving_mean", "moving_variance"):
        expected[f"conv1_1_BN/{name}"] = np.delete(expected[f"conv1_1_BN/{name}"], gone)
    expected["conv1_2/kernel"] = np.delete(expected["conv1_2/kernel"], gone, axis=2)
    assert sorted(expected) == sorted(weight.path for weight in at_once.weights)
    for weight in at_once.weights:
        np.testing.assert_array_equal(numbers(weight), expected[weight.path], weight.path)
    left = 16 - len(gone)
    assert f"  left: kernel 3x3x3x{left}, bias {left}" in shown and f"  left: kernel 3x3x{left}x16" in shown


def images(size, channels, count=20):
    generator = np.random.default_rng(0)
    x = generator.random((count, size, size, channels)).astype(np.float32)
    y = np.arange(count) % 10
    return Dataset.of(x, y, x[:10], y[:10], name="noise")


def test_cnn_pruning(example):
    """63,122 parameters become 23,617, by so many filters a layer, or by the lowest scores of all."""
    fashion = example("fashion_mnist")
    data = fashion.at_28_pixels(images(8, 1))
    assert data.shape == (28, 28, 1)
    model = shaken(sys.modules["models.cnn28"].cnn28())
    model.compile(loss="sparse_categorical_crossentropy", jit_compile=False)
    plan = fashion.plan(model, data)
    stripped = tfprune.strip(model, plan).model
    assert (model.count_params(), stripped.count_params()) == (63_122, 23_617)
    assert [stripped.get_layer(f"conv{number}").filters for number in (1, 2, 3)] == [1, 2, 3]
    assert [layer.count_params() for layer in stripped.layers if layer.weights] == [10, 20, 57, 23_530]

    scores = score(tfprune.trace(model), "taylor", data=(data.x_train, data.y_train))
    lowest = {name: np.argsort(values, kind="stable") for name, values in scores.items()}
    for name, count in (("conv1", 1), ("conv2", 2), ("conv3", 5)):
        assert plan.channels[name] == tuple(sorted(lowest[name][:count].tolist()))
    every = sorted((value, name, index) for name, values in scores.items() for index, value in enumerate(values))
    chosen = {(name, index) for _, name, index in every[:3]}
    found = fashion.plan(model, data, globally=3).channels
    assert {(name, index) for name, indices in found.items() for index in indices} == chosen


def test_cnn_pruning_from_end_to_end(example, tmp_path, capsys):
    run = ["--dataset=digits", "--train_samples=64", "--test_samples=32", "--epochs=1", f"--output_dir={tmp_path}"]
    example("fashion_mnist", *run).main([])
    before, after = ((tmp_path / f"{name}model_summary.txt").read_text() for name in ("", "pruned_"))
    printed = capsys.readouterr().out
    assert "Total params: 63,122" in before and before in printed
    assert "Total params: 23,617" in after and after in printed
    stages = json.loads((tmp_path / "results.json").read_text())["stages"]
    assert [(stage["name"], stage["parameters"]) for stage in stages] == [
        ("before", 63_122), ("pruned", 23_617), ("fine-tuned", 23_617),
    ]  # fmt: skip
    assert keras.saving.load_model(tmp_path / "model_pruned.keras").count_params() == 23_617


@pytest.mark.slow
def test_retrain(example, tmp_path):
    data = images(32, 3)
    np.savez(
        tmp_path / "noise.npz", **{name: getattr(data, name) for name in ("x_train", "y_train", "x_test", "y_test")}
    )
    run = ["--epochs=1", "--retrain_epochs=1", "--batch_size=10", f"--dataset={tmp_path / 'noise.npz'}"]
    retrain = example("retrain", *run, f"--output_dir={tmp_path}", "--width=0.125", "--ratio=0.5", "--mixup=0.2")
    retrain.main([])
    report = json.loads((tmp_path / "results.json").read_text())
    before, pruned, distilled = report["stages"]
    assert [stage["name"] for stage in report["stages"]] == ["before", "pruned", "distilled"]
    assert before["parameters"] > 2 * pruned["parameters"] and pruned["parameters"] == distilled["parameters"]
    teacher, student = (keras.saving.load_model(tmp_path / f"{name}.keras") for name in ("before", "pruned"))
    assert student.count_params() == pruned["parameters"]
    assert student.get_layer("conv3_1").filters * 2 == teacher.get_layer("conv3_1").filters == 32
