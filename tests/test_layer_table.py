"""docs/layers.md against the rules: every layer is in the table, and it says what the rules do."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import keras
import pytest
from models import floats
from test_conformance import ELSEWHERE, OPERATIONS, ROWS, built, class_name

import tfprune
import tfprune.keras_graph.rules
from tfprune.keras_graph import lowering

PAGE = Path(__file__).parent.parent / "docs" / "layers.md"
WORDS = {"reads", "writes", "carries", "passes", "ties", "moves", "mixes", "opaque"}
# Classes that no rule is for, because they are no calls in a graph.
NO_CALLS = {"inside", "input", "base"}
# What the ops of a rule say, where it is told from structure alone.
OPS = {
    "reads": {"Contract", "Recurrent"},
    "mixes": {"Mix", "Normalize"},
}


def table(title: str) -> dict[str, set[str]]:
    """name -> words, from the rows below a title."""
    section = PAGE.read_text().partition(f"## {title}\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    found: dict[str, set[str]] = {}
    for names, words, *_ in rows:
        for name in re.findall(r"`(\w+)`", names):
            assert name not in found, f"{name} is in the table twice"
            found[name] = {word.strip(" |") for word in words.split(",")}
    return found


LAYERS, OPERATION_WORDS = table("Layers"), table("Operations")


def public_layers() -> dict[type, set[str]]:
    """Each layer class of keras.layers, with its public names."""
    found: dict[type, set[str]] = {}
    for name in dir(keras.layers):
        cls = getattr(keras.layers, name)
        if inspect.isclass(cls) and (issubclass(cls, keras.layers.Layer) or "Cell" in name):
            found.setdefault(cls, set()).add(name)
    return found


def test_every_layer_is_in_the_table():
    missing = [names for names in public_layers().values() if not names & set(LAYERS)]
    assert not missing, f"not in docs/layers.md: {missing}"


def test_every_name_in_the_table_is_a_layer():
    # Some are not in every Keras.
    newest = tuple(map(int, keras.__version__.split(".")[:2])) >= (3, 15)
    unknown = [name for name in LAYERS if not hasattr(keras.layers, name)]
    assert not unknown or not newest, f"no layers of Keras: {unknown}"


def test_opaque_is_what_has_no_rule():
    for cls, names in public_layers().items():
        words = next(LAYERS[name] for name in names if name in LAYERS)
        assert words <= WORDS or words <= NO_CALLS, words
        assert (cls in lowering._RULES) == (not words & ({"opaque"} | NO_CALLS)), f"{names}: {words}"


def test_the_operations_are_those_with_a_rule():
    documented = {class_name(name) for name in OPERATION_WORDS}
    assert documented == set(lowering._OPERATION_RULES)
    assert all(words <= WORDS for words in OPERATION_WORDS.values())


@pytest.mark.parametrize("title", ["Layers", "Operations"])
def test_the_words_are_what_the_rules_are_lowered_to(title):
    """Layers with a kernel read; what reads channels together mixes."""
    known = LAYERS if title == "Layers" else OPERATION_WORDS
    rows = {**ROWS, **ELSEWHERE} if title == "Layers" else OPERATIONS
    wrong = []
    for name, row in rows.items():
        if name not in known or not hasattr(keras.layers if title == "Layers" else keras.ops, name):
            continue  # no public name, or another Keras
        with floats("float32"):
            try:
                model = built(row)
            except Exception:  # some operations cannot be built in older versions
                if tuple(map(int, keras.__version__.split(".")[:2])) >= (3, 15):
                    raise
                continue
            graph = tfprune.trace(model)
        kind = name if title == "Layers" else class_name(name)
        calls = {id(op) for call in graph.calls if call.kind == kind for op in call.ops}
        calls |= {id(op) for op in graph.ops if any(op.layer == c.layer for c in graph.calls if c.kind == kind)}
        names = {type(op).__name__ for op in graph.ops if id(op) in calls}
        for word, classes in OPS.items():
            if bool(names & classes) != (word in known[name]):
                wrong.append((name, sorted(names), sorted(known[name])))
    assert not wrong
