"""Recipes: each leaves the MACs it was told to leave, proved equal when it was cut, and the same for the same seed."""

from __future__ import annotations

import csv
import importlib
import inspect
import json
import re
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from models import difference, numbers

import tfprune
from tfprune import recipes
from tfprune.__main__ import main
from tfprune.data import load
from tfprune.distillation import Distiller
from tfprune.errors import PlanError
from tfprune.recipes.base import along, taught
from tfprune.recipes.fpgm import mixture

ROOT = Path(__file__).parent.parent
EPOCHS = 5
OPTIONS = {"ladder": {"rungs": 2}}


def net() -> keras.Model:
    """A residual block and a head, on 8x8 digits."""
    image = keras.Input((8, 8, 1))
    x = stem = _conv(image, 8, "stem")
    x = layers.BatchNormalization(name="out_bn")(layers.Conv2D(8, 3, padding="same", name="out")(_conv(x, 12, "in")))
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.Add()([stem, x])))
    return keras.Model(image, layers.Dense(10, name="head")(x), name="net")


def _conv(x, filters, name):
    x = layers.Conv2D(filters, 3, 2 if name == "stem" else 1, padding="same", use_bias=False, name=name)(x)
    return layers.ReLU()(layers.BatchNormalization(name=f"{name}_bn")(x))


class Training:
    """A `train` on a few digits, which remembers how it was called."""

    def __init__(self, momentum=0.9):
        self.momentum, self.stages, self.cut, self.models = momentum, [], None, []
        digits = load("digits").head(128)
        self.x, self.y = digits.x_train, digits.y_train

    def __call__(self, model, epochs, *, stage, callbacks):
        if stage == "fine-tune":
            self.cut = model.get_weights()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.1, self.momentum), loss, jit_compile=False)
        done = model.fit(self.x, self.y, 64, epochs, verbose=0, callbacks=callbacks)
        self.stages.append((stage, epochs, len(done.epoch)))
        self.models.append(model)


def run(name, **more):
    keras.utils.set_random_seed(3)
    model, train = net(), Training()
    options = {"epochs": EPOCHS, "macs": 0.5, "round_to": 1, **OPTIONS.get(name, {}), **more}
    return recipes.named(name)(model, train, **options), model, train


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe(name):
    result, model, train = run(name)
    again = run(name)[0].model
    assert [w.shape for w in again.weights] == [w.shape for w in result.model.weights]
    for one, other in zip(again.weights, result.model.weights, strict=True):
        np.testing.assert_array_equal(numbers(one), numbers(other))
    assert sum(epochs for _, epochs, _ in train.stages) == EPOCHS
    assert train.models[-1] is result.model or train.models[-1] is model

    before = 4 * 4 * 9 * (1 * 8 + 8 * 12 + 12 * 8) + 80  # by hand: a padded map of 4x4, 3x3 kernels, and the head
    left = tfprune.cost(result.model).macs
    assert result.cost_before.macs == before
    # Thresholds take channels that score alike together, budgets take them one by one.
    assert (0.25 if name == "ladder" else 0.4) * before <= left <= 0.5 * before

    # Cut, and before it was trained on: what the large model computes with the same channels zeroed.
    if name != "scratch":
        if train.cut is not None:
            result.model.set_weights(train.cut)
        tfprune.soft_prune(model, result.plan)
        assert difference(model, result.model) <= 1e-5


@pytest.mark.parametrize("name", recipes.names())
def test_what_all_recipes_have_in_common(name):
    """They are called alike, name their source, and do not train before they have found a mistake."""
    recipe = recipes.named(name)
    takes = inspect.signature(recipe).parameters
    assert list(takes)[:2] == ["model", "train"] and {"epochs", "callbacks", "selection"} <= set(takes)
    assert "Source: " in recipe.__doc__ and recipe.__name__ == name

    def train(*_, **__):
        raise AssertionError("trained")

    for wrong, message in (
        ({"epochs": 0, "macs": 0.5}, "epochs=0"),
        ({"epochs": 9}, "macs"),
        ({"epochs": 9, "macs": 1.5}, "1.5"),
        ({"epochs": 9, "macs": 0.5, "only": "nowhere"}, "nowhere"),
        ({"epochs": 9, "macs": 0.001, "max_ratio": 0.1}, "left|threshold"),
    ):
        with pytest.raises(PlanError, match=message):
            recipe(net(), train, **wrong)


def test_the_page_has_all_recipes():
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/recipes.md").read_text(), flags=re.MULTILINE)
    assert sorted(rows) == sorted(recipes.names())


def test_the_page_does_what_it_says():
    scope: dict = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs/recipes.md").read_text(), flags=re.DOTALL):
        exec(compile(block, "recipes.md", "exec"), scope)
    assert scope["result"].cost_after.macs <= 0.5 * scope["result"].cost_before.macs
    assert scope["my_recipe"].__name__ == "my_recipe"


def test_a_recipe_is_found_by_its_file(monkeypatch, tmp_path):
    (tmp_path / "mine.py").write_text("def mine(model, train, *, epochs): return 'mine'\n")
    monkeypatch.setattr(recipes, "__path__", [*recipes.__path__, str(tmp_path)])
    assert "mine" in recipes.names() and recipes.named("mine")(None, None, epochs=1) == "mine"
    sys.modules.pop("tfprune.recipes.mine", None)
    with pytest.raises(PlanError, match="did you mean 'sfp'"):
        recipes.named("sfpp")


def test_wrong_numbers():
    for name, wrong, message in (
        ("slimming", {"part": 1.0}, "between 0 and 1"),
        ("group_sparsity", {"epochs": 1}, "2 stage"),
        ("fpgm", {"by_norm": 1.2}, "fraction"),
        ("ladder", {"epochs": 4}, "5 stage"),
        ("ladder", {"params": 0.5}, "one budget"),
    ):
        with pytest.raises(PlanError, match=message):
            run(name, **wrong)
    with pytest.raises(PlanError, match="ladder finds its thresholds"):
        recipes.named("ladder")(net(), Training(), epochs=9, ratio=0.5)
    plain = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(8, 3), layers.Flatten(), layers.Dense(10)])
    with pytest.raises(PlanError, match="BatchNormalization"):
        recipes.named("slimming")(plain, Training(), epochs=2, macs=0.5)


def test_sfp_zeroes_all_from_the_beginning_and_agp_little_by_little():
    pruned = {}
    for name in ("sfp", "agp", "asfp"):
        seen = []
        watch = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(logs["pruned_channels"]))  # noqa: B023
        run(name, macs=0.3, callbacks=[watch], **({} if name == "sfp" else {"until": 1.0}))
        pruned[name] = seen
    assert len(set(pruned["sfp"])) == 1
    for name in ("agp", "asfp"):
        assert 0 < pruned[name][0] < pruned[name][-1] >= pruned["sfp"][-1]


def test_stopping_early():
    """Without momentum nothing comes back, which is known after one epoch."""
    for early, epochs in ((True, 1), (False, EPOCHS)):
        train = Training(momentum=0.0)
        recipes.named("sfp")(net(), train, epochs=EPOCHS, macs=0.5, round_to=1, stop_early=early)
        assert train.stages == [("soft", EPOCHS, epochs)]


def test_with_a_teacher():
    keras.utils.set_random_seed(0)
    model, teacher, train = net(), net(), Training()
    kept = teacher.get_weights()
    result = recipes.named("slimming")(
        model, taught(train, teacher, temperature=2.0, alpha=0.7), epochs=2, macs=0.5, round_to=1
    )
    assert [type(one) for one in train.models] == [Distiller, Distiller]
    assert [one.student for one in train.models] == [model, result.model]
    assert all((one.temperature, one.alpha, one.from_logits) == (2.0, 0.7, True) for one in train.models)
    for before, after in zip(kept, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_an_amount_along_a_schedule():
    assert along("linear", 0, {"macs": 0.5}) == {"macs": 0.5}
    scheduled = along("polynomial", 10, {"ratio": 0.4, "params": 0.5, "ignore": "stem"})
    assert (scheduled["ratio"](0), scheduled["ratio"](10), scheduled["ignore"]) == (0.0, 0.4, "stem")
    assert (scheduled["params"](0), scheduled["params"](10)) == (1.0, 0.5)
    assert scheduled["params"](5) == 1 - 0.5 * (1 - 0.5**3)  # by hand: the cubic after half of the way


def test_a_mixture_takes_its_parts(monkeypatch):
    """Of 4 that go, one is chosen by the first order and three by the second, where these differ."""
    monkeypatch.setattr("tfprune.recipes.fpgm.criterion_named", lambda name: lambda view: view[name])
    view = {"a": np.arange(8.0), "b": np.array([5.0, 6, 7, 4, 3, 2, 1, 0])}
    scores = mixture({"a": 0.25, "b": 0.75})(view)
    assert set(np.argsort(scores, kind="stable")[:4]) == {7, 6, 5, 0}
    assert set(np.argsort(mixture({"a": 0.0, "b": 1.0})(view))[:3]) == {7, 6, 5}


# -- the command ------------------------------------------------------------------------------------------------------

_MODULE = """
import sys
sys.path.insert(0, {tests!r})
from test_recipes import net

def mine(model, train, *, epochs, callbacks=(), share=0.5, **selection):
    from tfprune.recipes.sfp import sfp
    assert share == 0.25
    return sfp(model, train, epochs=epochs, callbacks=callbacks, **selection)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "own_recipes.py").write_text(_MODULE.format(tests=str(Path(__file__).parent)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    sys.modules.pop("own_recipes", None)


def command(*more, recipe="slimming"):
    return [
        "train", f"--recipe={recipe}", "--model=own_recipes:net", "--dataset=digits", "--train_samples=160",
        "--test_samples=50", "--epochs=3", "--macs=0.5", "--round_to=1", "--output_dir=out", *more,
    ]  # fmt: skip


def test_the_command_and_again(here, capsys):
    assert main(command("--train_epochs=1", "--teacher=self")) == 0
    written = json.loads((here / "out/results.json").read_text())
    before, stripped = written["stages"]
    assert (before["name"], stripped["name"]) == ("before", "stripped")
    model = keras.saving.load_model(here / "out/model.keras")
    assert tfprune.cost(model).macs == stripped["macs"] <= 0.5 * before["macs"]
    with open(here / "out/curve.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["stage"] for row in rows] == ["first", "sparse", "sparse", "fine-tune"]
    assert all(0 <= float(row["val_accuracy"]) <= 1 for row in rows)

    # The same command finds everything trained, and writes the same again; another one is refused.
    capsys.readouterr()
    assert main(command("--train_epochs=1", "--teacher=self")) == 0
    assert json.loads((here / "out/results.json").read_text()) == written
    again = keras.saving.load_model(here / "out/model.keras")
    for one, other in zip(model.weights, again.weights, strict=True):
        np.testing.assert_array_equal(numbers(one), numbers(other))
    assert main(command("--train_epochs=1", "--teacher=self", "--learning_rate=0.01")) == 1
    assert "learning_rate" in capsys.readouterr().err


def test_a_killed_command_goes_on_in_its_second_stage(here, monkeypatch):
    assert main(command("--output_dir=whole")) == 0

    class Killed(BaseException):
        pass

    from tfprune.resume import Resume

    kept, calls = Resume.on_epoch_end, []

    def killing(self, epoch, logs=None):
        kept(self, epoch, logs)
        calls.append(epoch)
        if len(calls) == 2:
            self.on_train_end()  # what a killed process leaves to the system: the lock
            raise Killed

    monkeypatch.setattr(Resume, "on_epoch_end", killing)
    with pytest.raises(Killed):
        main(command())
    monkeypatch.setattr(Resume, "on_epoch_end", kept)
    assert main(command()) == 0
    whole, resumed = (keras.saving.load_model(here / place / "model.keras") for place in ("whole", "out"))
    for one, other in zip(whole.weights, resumed.weights, strict=True):
        np.testing.assert_array_equal(numbers(one), numbers(other))


def test_a_recipe_of_ones_own(here):
    assert main(command("--options=share=0.25", recipe="own_recipes:mine")) == 0
    assert (here / "out/model.keras").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (command(recipe="slimmming"), 2, "did you mean 'slimming'"),
        (command("--ratio=0.5"), 2, "not both"),
        ([one for one in command() if "macs" not in one], 2, "say how much"),
        (command("--options=strength"), 2, "name=value"),
        (command("--options=strenght=1"), 1, "did you mean 'strength'"),
        (command("--criterion=l1"), 1, "has no criterion"),
        (command("--teacher=none.keras"), 1, "does not exist"),
        (command(recipe="own_recipes:none"), 1, "no function"),
    ],
)
def test_wrong_commands(here, capsys, arguments, status, message):
    assert main(arguments) == status
    assert message in capsys.readouterr().err


# -- the benchmark ----------------------------------------------------------------------------------------------------


@pytest.fixture
def accuracy_folder(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks/accuracy"))
    yield
    for name in ("images", "training"):
        sys.modules.pop(name, None)


def test_batches_of_the_benchmark(accuracy_folder, tmp_path):
    """Cut out, mirrored, and the same whenever they are asked for."""
    images = importlib.import_module("images")
    generator = np.random.default_rng(0)
    arrays = {f"x_{s}": generator.integers(0, 256, (20, 6, 6, 3), np.uint8) for s in ("train", "test")}
    np.savez(tmp_path / "a.npz", **arrays, y_train=np.arange(20), y_test=np.arange(20))
    found = images.Images(tmp_path / "a.npz", batch_size=8, seed=1)
    assert found.steps == 2 and abs(found.x.mean()) < 1e-5 and abs(found.x.std((0, 1, 2)) - 1).max() < 1e-5
    x, y = found.batch(3, 1)
    assert x.shape == (8, 6, 6, 3) and len(set(y)) == 8
    moves = set()
    for image, label in zip(x, y, strict=True):
        padded = np.pad(found.x[label], ((4, 4), (4, 4), (0, 0)))
        places = [
            (down, right, flip)
            for down in range(9)
            for right in range(9)
            for flip in (1, -1)
            if np.array_equal(image, padded[down : down + 6, right : right + 6][:, ::flip])
        ]
        assert places
        moves.add(places[0])
    assert len(moves) > 2
    np.testing.assert_array_equal(images.Images(tmp_path / "a.npz", batch_size=8, seed=1).batch(3, 1)[0], x)
    both = [set(found.batch(3, step)[1]) for step in range(2)]
    assert not both[0] & both[1]
    assert not np.array_equal(found.batch(4, 1)[1], y)
