"""What the documents say to type works, and the layer that they describe is pruned exactly."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from models import difference, floats, parameters, shaken

import tfprune
from tfprune import criteria

DOCS = Path(__file__).parent.parent / "docs"


def blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(), flags=re.DOTALL)


@pytest.fixture(scope="module")
def own_layers() -> dict:
    """What is left in scope by the page's code."""
    scope: dict = {}
    for block in blocks("your_own_layers.md"):
        exec(compile(block, "your_own_layers.md", "exec"), scope)
    return scope


def test_a_rule_of_ones_own(own_layers):
    with floats("float64"):
        inputs = keras.Input((6, 5))
        x = own_layers["GatedDense"](8, name="first")(inputs)
        x = own_layers["GatedDense"](12, name="second")(layers.Activation("sigmoid")(x))
        model = shaken(keras.Model(inputs, layers.Dense(3)(x)))
        assert not tfprune.trace(model).opaque
        plan = tfprune.select(model, "l2", ratio=0.5, round_to=1)
        direct = tfprune.strip(model, plan, verify=False)
        tfprune.soft_prune(model, plan)
        result = tfprune.strip(model, verify=False)
        for stripped in (direct.model, result.model):
            assert difference(model, stripped) <= 1e-12
            assert parameters(stripped) < parameters(model)
            assert (stripped.get_layer("first").units, stripped.get_layer("second").units) == (4, 6)


def test_the_rule_is_about_ten_lines():
    rule = blocks("your_own_layers.md")[0].partition("@tfprune.register_rule")[2]
    assert len(rule.strip().splitlines()) <= 12


def test_selection_as_the_page_has_it(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(DOCS.parent))
    scope: dict = {}
    for block in blocks("selection.md"):
        exec(compile(block, "selection.md", "exec"), scope)
    said = re.search(r"# (at most .*), \.\.\.", (DOCS / "selection.md").read_text())
    assert said and said.group(1) in capsys.readouterr().out


def test_plans_as_the_page_has_them(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(DOCS.parent))
    scope: dict = {}
    for block in blocks("plans.md"):
        exec(compile(block, "plans.md", "exec"), scope)
    shown = re.findall(r"```text\n(.*?)```", (DOCS / "plans.md").read_text(), flags=re.DOTALL)
    printed = capsys.readouterr().out
    for text in shown:
        assert text in printed
    assert scope["smaller"].shape == (3, 3, 128, 126)
    assert scope["plan"].channels == {"layer2_1_conv1": (0, 7)}


def test_schedules_as_the_page_has_them():
    scope: dict = {}
    for block in blocks("schedules.md"):
        exec(compile(block, "schedules.md", "exec"), scope)
    assert {name for name in tfprune.schedules.NAMES if f"`{name}`" not in (DOCS / "schedules.md").read_text()} == set()


def test_criteria_as_the_page_has_them():
    scope: dict = {"__name__": "criteria_page"}
    for block in blocks("criteria.md"):
        exec(compile(block, "criteria.md", "exec"), scope)
    assert all(plan.pruned for plan in [*scope["plans"], scope["plan"]]) and scope["pruning"].plan.pruned


def test_the_page_has_all_criteria():
    rows = re.findall(r"^\| `(\w+)` \| `(.+?)` \|", (DOCS / "criteria.md").read_text(), flags=re.MULTILINE)
    for name, value in rows:
        assert criteria.criterion_named(name) == eval(value, vars(criteria))
    own = {n for n in criteria.criterion_names() if criteria.criterion_named(n).__module__.startswith("tfprune.")}
    assert own == {name for name, _ in rows}


def test_sensitivity(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = keras.Input((6, 6, 1))
    x = layers.Flatten()(layers.Conv2D(8, 3, activation="relu", name="conv")(image))
    model = shaken(keras.Model(image, layers.Dense(3, activation="softmax")(x)))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    x = np.random.default_rng(0).standard_normal((12, 6, 6, 1))
    scope = {"model": model, "x_validation": x, "y_validation": np.arange(12) % 3}
    for block in blocks("sensitivity.md"):
        exec(compile(block, "sensitivity.md", "exec"), scope)
    assert set(scope["ratios"]) == {"conv"} and scope["plan"].graph.model is model
    assert (tmp_path / "sensitivity.png").exists()


def test_sparse_training_as_the_page_has_it():
    scope: dict = {}
    for block in blocks("sparse_training.md"):
        exec(compile(block, "sparse_training.md", "exec"), scope)
    assert scope["result"].model.get_layer("second").filters == 8
    assert scope["result"].moved.relative < 1e-2


def test_distillation():
    images = np.random.default_rng(0).random((8, 6, 6, 1))
    image = keras.Input((6, 6, 1))
    x = layers.Flatten()(layers.Conv2D(8, 3, activation="relu", name="conv")(image))
    model = shaken(keras.Model(image, layers.Dense(3, activation="softmax")(x)))
    scope = {"model": model, "x": images, "y": np.arange(8) % 3}
    for block in blocks("examples.md"):
        exec(compile(block, "examples.md", "exec"), scope)
    assert scope["student"].get_layer("conv").filters == 4 and scope["student"] is scope["distiller"].student


def test_tracking_as_the_page_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with_mlflow = importlib.util.find_spec("mlflow") is not None
    scope: dict = {"__name__": "tracking_page"}
    try:
        for block in blocks("tracking.md"):
            if with_mlflow or not block.startswith("# mlflow"):
                exec(compile(block, "tracking.md", "exec", dont_inherit=True), scope)
    finally:
        tfprune.trackers.base._KINDS.pop("lines", None)
    assert scope["tracking"].last.widths == {"conv": 4}
    assert len((tmp_path / "run.csv").read_text().splitlines()) == 1 + 3
    assert len((tmp_path / "lines.txt").read_text().splitlines()) == 2
    assert not list(tmp_path.glob("*.jsonl"))


@pytest.mark.slow
def test_resume_as_the_page_has_it(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow")
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    for block in blocks("resume.md"):
        exec(compile(block, "resume.md", "exec"), scope)
    assert [len(list((tmp_path / "runs" / name).glob("checkpoint-*"))) for name in ("first", "second", "third")] == [
        2
    ] * 3
    assert scope["resume"].epoch == 3 and scope["pruning"].plan.pruned
