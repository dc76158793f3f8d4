"""Scores and budgets, against loops written out, and everything that is refused."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
from keras import layers
from models import conv_bn, inverted_residual_net, mini_net, residual_net, shaken

import tfprune
from tfprune.criteria import GroupView, base
from tfprune.criteria.redundancy import Redundancy
from tfprune.errors import PlanError


def one_group(width=12, kernel=3):
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(width, kernel, name="a")(inputs)
    return shaken(keras.Model(inputs, layers.Conv2D(5, 3, name="b")(x)))


def scores(model, criterion, group):
    graph = tfprune.trace(model)
    return criterion(GroupView(graph.group(group), graph.weight))


def naive_redundancy(kernel, legacy):
    """Tensorflow_Model_Pruning: the fraction of a filter's weights with |w| < mean |W|, one weight at a time."""
    height, width, inputs, outputs = kernel.shape
    positions = [(0, 0)] if legacy else [(i, j) for i in range(height) for j in range(width)]
    every = [abs(kernel[i, j, c, f]) for i, j in positions for c in range(inputs) for f in range(outputs)]
    mean = sum(every) / len(every)
    return [
        sum(abs(kernel[i, j, c, f]) < mean for i, j in positions for c in range(inputs)) / (len(positions) * inputs)
        for f in range(outputs)
    ]


# ---------------------------------------------------------------------- criteria


@pytest.mark.parametrize("mode", ["full", "legacy"])
@pytest.mark.parametrize("kernel", [1, 3])
def test_redundancy_against_a_loop(mode, kernel):
    model = one_group(kernel=kernel)
    expected = naive_redundancy(np.asarray(model.get_layer("a").kernel), mode == "legacy")
    np.testing.assert_allclose(1 - scores(model, Redundancy(mode), "a"), expected, atol=1e-12)
    assert len(set(expected)) > 2


def test_redundancy_of_coupled_layers():
    model = shaken(residual_net())
    each = {name: naive_redundancy(np.asarray(model.get_layer(name).kernel), False) for name in ("stem", "a2")}
    np.testing.assert_allclose(
        1 - scores(model, Redundancy(), "stem"), np.mean(list(each.values()), axis=0), atol=1e-12
    )
    first = tfprune.trace(model).group("stem").writers[0]
    np.testing.assert_allclose(1 - scores(model, Redundancy(members="first"), "stem"), each[first], atol=1e-12)


@pytest.mark.parametrize("name", ["l1", "l2"])
def test_norms_against_a_loop(name):
    """Every kernel slice of the channel, written and read; depthwise slices beside them."""
    model = shaken(inverted_residual_net())
    kernels = {
        n: np.asarray(model.get_layer(n).kernel, np.float64)
        for n in ("expand", "depthwise", "squeeze", "excite", "project")
    }
    expected = []
    for channel in range(24):
        slices = [
            kernels["expand"][..., channel],
            kernels["depthwise"][:, :, channel],
            kernels["squeeze"][:, :, channel],
        ]
        slices += [kernels["excite"][..., channel], kernels["project"][:, :, channel]]
        flat = np.concatenate([s.ravel() for s in slices])
        expected.append(np.abs(flat).sum() if name == "l1" else np.sqrt((flat**2).sum()))
    np.testing.assert_allclose(scores(model, base.criterion_named(name), "expand"), expected, rtol=1e-6)


def test_norms_behind_flatten_and_concatenation():
    model = shaken(mini_net())
    dense, third = (np.asarray(model.get_layer(n).kernel, np.float64) for n in ("classes", "third"))
    expected = np.abs(third).sum((0, 1, 2)) + np.abs(dense.reshape(28 * 28, 8, 10)).sum((0, 2))
    np.testing.assert_allclose(scores(model, base.criterion_named("l1"), "third"), expected, rtol=1e-6)
    inputs = keras.Input((4, 4, 3))
    a, b = layers.Conv2D(4, 1, name="a")(inputs), layers.Conv2D(6, 1, name="b")(inputs)
    model = shaken(keras.Model(inputs, layers.Conv2D(5, 1, name="c")(layers.Concatenate()([a, b, a]))))
    a, c = (np.asarray(model.get_layer(n).kernel, np.float64) for n in ("a", "c"))
    expected = np.abs(a).sum((0, 1, 2)) + np.abs(c[:, :, :4]).sum((0, 1, 3)) + np.abs(c[:, :, 10:]).sum((0, 1, 3))
    np.testing.assert_allclose(scores(model, base.criterion_named("l1"), "a"), expected, rtol=1e-6)


def test_a_function_is_a_criterion():
    plan = tfprune.select(one_group(), lambda weights: np.arange(weights.width, dtype=float), ratio=0.5, round_to=1)
    assert plan.channels == {"a": (0, 1, 2, 3, 4, 5)}


@pytest.mark.parametrize("wrong", [lambda w: np.zeros(3), lambda w: np.zeros((w.width, 1)), lambda w: 1.0])
def test_a_criterion_with_the_wrong_shape(wrong):
    with pytest.raises(PlanError, match=r"12 scores for group 'a'; .*shape \("):
        tfprune.select(one_group(), wrong, ratio=0.5)


def test_a_criterion_that_is_not_finite():
    with pytest.raises(PlanError, match="not finite"):
        tfprune.select(one_group(), lambda w: np.full(w.width, np.nan), ratio=0.5)
    with pytest.raises(PlanError, match="no criterion 'l3'.*l1, l2"):
        tfprune.select(one_group(), "l3", ratio=0.5)
    with pytest.raises(PlanError, match="mode"):
        Redundancy("half")


# ---------------------------------------------------------------------- budgets


@pytest.mark.parametrize(
    ("wanted", "width", "gone"),
    # remainder 1 down, 2 and 3 up; never all of them
    [(0, 12, 0), (1, 12, 0), (2, 12, 4), (3, 12, 4), (4, 12, 4), (5, 12, 4), (6, 12, 8), (7, 12, 8), (8, 12, 8),
     (9, 12, 8), (10, 12, 8), (11, 12, 8), (12, 12, 8), (3, 4, 0), (4, 4, 0), (5, 5, 4), (2, 3, 0)],
)  # fmt: skip
def test_counts_are_rounded_to_four(wanted, width, gone):
    def criterion(weights):
        return np.where(np.arange(weights.width) < wanted, 0.1, 1.0)

    criterion.absolute = True
    plan = tfprune.select(one_group(width), criterion, threshold=0.5)
    assert plan.channels == ({"a": tuple(range(gone))} if gone else {})
    refusals = [refusal.reason for refusal in plan.refusals if refusal.layer == "a"]
    if gone or not wanted:
        assert not refusals
    elif width < 5:
        assert refusals == [f"with round_to=4 nothing can go without emptying it (width {width})"]
    else:
        assert refusals == [f"{wanted} of {width} were to go, which is 0 with round_to=4"]


def test_the_most_redundant_go_first_and_the_first_of_equals():
    def criterion(weights):
        return np.array([0.5, 0.1, 0.5, 0.3, 0.2, 0.5, 1, 1, 1, 1, 1, 1])

    assert tfprune.select(one_group(), criterion, ratio=0.34, round_to=1).channels == {"a": (0, 1, 3, 4)}


def test_a_threshold_is_strict():
    def criterion(weights):
        return 1 - np.array([0.5, 0.5, 0.75, 0.75] * 3)

    criterion.absolute = True
    assert tfprune.select(one_group(), criterion, threshold=0.5, round_to=1).channels["a"] == (2, 3, 6, 7, 10, 11)
    assert not tfprune.select(one_group(), criterion, threshold=0.75, round_to=1)


def test_never_empty():
    for amount in ({"ratio": 0.99}, {"threshold": 0.0}):
        plan = tfprune.select(shaken(residual_net()), "l1", round_to=1, **amount)
        graph = plan.graph
        assert all(len(indices) < graph.group(name).width for name, indices in plan.channels.items())
        assert tfprune.strip(graph.model, plan).verification.equal


def test_ratio_zero_changes_nothing():
    model = shaken(residual_net())
    before = model.get_weights()
    plan = tfprune.select(model, "l1", ratio=0)
    assert not plan and plan.pruned == 0 and "nothing is pruned" in str(plan)
    tfprune.soft_prune(model, plan)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert not tfprune.strip(model).plan


@pytest.mark.parametrize(
    "amount",
    [{}, {"ratio": 0.5, "threshold": 0.5}, {"ratio": 1}, {"ratio": 1.0}, {"ratio": -0.1}, {"ratio": 1.5},
     {"threshold": 2}, {"ratio": float("nan")}, {"threshold": np.nan},
     {"threshold": True}, {"ratio": False}, {"ratio": "0.5"},
     {"threshold": [0.5]}, {"ratio": 0.5, "round_to": 0}, {"ratio": 0.5, "round_to": 2.5},
     {"ratio": 0.5, "round_to": True}],
)  # fmt: skip
def test_budgets_that_are_none(amount):
    with pytest.raises(PlanError):
        tfprune.select(one_group(), "l1", **amount)


def test_threshold_one_is_allowed_and_takes_nothing():
    assert not tfprune.select(one_group(), "redundancy", threshold=1)


def test_the_same_model_gives_the_same_plan():
    plans = [tfprune.select(shaken(inverted_residual_net()), "l2", ratio=0.5, layers=True) for _ in range(2)]
    assert plans[0].channels == plans[1].channels and plans[0].layers == plans[1].layers


# ---------------------------------------------------------------------- which groups


def nested():
    inner_input = keras.Input((6, 6, 8))
    inner = keras.Model(
        inner_input, layers.Conv2D(8, 1, name="c")(layers.Conv2D(8, 1, name="b")(inner_input)), name="backbone"
    )
    inputs = keras.Input((6, 6, 3))
    x = inner(layers.Conv2D(8, 1, name="stem")(inputs))
    return shaken(keras.Model(inputs, layers.Conv2D(2, 1, name="head")(x), name="whole"))


@pytest.mark.parametrize(
    ("only", "groups"),
    [(None, {"stem", "backbone/b", "backbone/c"}), ("backbone", {"backbone/b", "backbone/c"}), ("*/b", {"backbone/b"}),
     (["stem", "*/c"], {"stem", "backbone/c"}), ("backbone/[bc]", {"backbone/b", "backbone/c"}), ("s?em", {"stem"})],
)  # fmt: skip
def test_only(only, groups):
    assert set(tfprune.select(nested(), "l1", ratio=0.5, only=only).channels) == groups


def test_a_pattern_that_matches_nothing_names_what_is_near():
    with pytest.raises(PlanError, match=r"only='sten' matches no layer of whole; did you mean 'stem'"):
        tfprune.select(nested(), "l1", ratio=0.5, only="sten")
    with pytest.raises(PlanError, match="matches no layer"):
        tfprune.select(nested(), "l1", ratio=0.5, only=["stem", "x*"])
    with pytest.raises(PlanError, match="only takes layer names"):
        tfprune.select(nested(), "l1", ratio=0.5, only=[3])


def test_one_pattern_must_hold_all_writers_of_a_group():
    """Naming the blocks one by one prunes inside them; the stream that they all write stays."""
    model = shaken(residual_net())
    for only in ("a", ["a", "stem", "b"]):
        chosen = set(tfprune.select(model, "l1", ratio=0.5, only=only).channels)
        assert "a1" in chosen and "stem" not in chosen
    assert "stem" in tfprune.select(model, "l1", ratio=0.5, only="*").channels


# ---------------------------------------------------------------------- whole layers


def test_whole_layers_of_a_residual_net():
    """Ratio 0.99 asks for all; what is left still depends on its input. Only branches may go."""
    graph = tfprune.trace(shaken(residual_net()))
    plan = tfprune.select(graph, "l1", ratio=0.99, round_to=1, layers=True)
    assert plan.layers and not {"stem", "a1", "b1", "head"} & set(plan.layers)
    # b0 is the other way round b1 and b2: one of the two has to stay.
    assert not {"b0", "b2"} <= set(plan.layers)
    # Without the branches, and all else as it was.
    result = tfprune.strip(graph.model, tfprune.PruningPlan(graph, np.zeros(graph.channels, bool), plan.layers))
    assert set(plan.layers) <= set(result.removed_layers) and result.verification.spread > 1e-4


def test_gate_and_branch_together_cannot_kill_the_model():
    model = shaken(inverted_residual_net())
    whole = tfprune.select(model, "l1", threshold=0.0, layers=True).layers
    result = tfprune.strip(model, tfprune.select(model, "l1", threshold=0.0, layers=True))
    assert "project" in whole and result.verification.spread > 1e-4
    assert not {"stem", "last", "head"} & set(whole)


def test_whole_layers_follow_the_threshold():
    model = shaken(residual_net())
    kernel = np.asarray(model.get_layer("a2").kernel).copy()
    kernel[np.abs(kernel) < np.quantile(np.abs(kernel), 0.97)] *= 1e-3  # most of its weights are far below the mean
    model.get_layer("a2").kernel.assign(kernel)
    assert tfprune.select(model, threshold=0.9, layers=True).layers == ("a2",)
    assert tfprune.select(model, threshold=0.9).layers == ()
    assert tfprune.select(model, threshold=0.9, layers=True, only="b").layers == ()


def test_a_plain_chain_loses_no_layer():
    model = shaken(mini_net())
    assert tfprune.select(model, "l1", ratio=0.9, layers=True).layers == ()


# ---------------------------------------------------------------------- plans on paper


def test_json_round_trip():
    model = shaken(inverted_residual_net())
    plan = tfprune.select(model, "l2", ratio=0.5, layers=True)
    text = plan.to_json()
    again = tfprune.PruningPlan.from_json(text, tfprune.trace(model))
    assert again.channels == plan.channels and again.layers == plan.layers and again.request == plan.request
    assert again.to_json() == text and json.loads(text)["widths"]["expand"] == 24
    assert tfprune.strip(model, again).cost_after == tfprune.strip(model, plan).cost_after


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", '{"groups": 3, "layers": []}', '{"groups": {"nobody": [0]}, "layers": []}']
)
def test_damaged_plans(text):
    with pytest.raises(PlanError):
        tfprune.PruningPlan.from_json(text, tfprune.trace(one_group()))


def test_a_plan_of_another_model_on_paper():
    text = tfprune.select(one_group(12), "l1", ratio=0.5).to_json()
    with pytest.raises(PlanError, match="had width 12, here 8"):
        tfprune.PruningPlan.from_json(text, tfprune.trace(one_group(8)))
    graph = tfprune.trace(one_group(8))
    with pytest.raises(PlanError, match="channels 0 to 7"):
        tfprune.PruningPlan.from_groups(graph, {"a": [8]})
    with pytest.raises(PlanError, match="output of the model"):
        tfprune.PruningPlan.from_groups(graph, {"b": [0]})


def test_a_plan_prints_what_goes_and_what_stays():
    inputs = keras.Input((6, 6, 3))
    x = layers.LayerNormalization(name="norm")(conv_bn(inputs, 8, name="a"))
    model = shaken(keras.Model(inputs, layers.Conv2D(3, 1, name="c")(conv_bn(x, 8, name="b"))))
    plan = tfprune.select(model, "l1", ratio=0.5)
    text = str(plan)
    assert plan.pruned == 4 and "4 channels go (l1, ratio 0.5, rounded to 4)" in text
    assert "norm reads all channels together" in text
