"""Budgets: what a plan promises is what the stripped model measures; scopes, limits, and what is refused."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import layers
from models import conv_bn, inverted_residual_net, residual_net, shaken
from random_models import Builder

import tfprune
from tfprune.channels.forecast import CostModel
from tfprune.errors import PlanError
from tfprune.latency import LatencyTable
from tfprune.selection.amounts import Limits
from tfprune.selection.pools import structures

FEW = settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


def wide_net(width=64):
    """Three convolutions, two of which can go; steps of one channel are under 1 % of its cost."""
    inputs = keras.Input((8, 8, 3))
    x = conv_bn(inputs, width, name="a")
    x = conv_bn(x, 2 * width, name="b")
    x = layers.GlobalAveragePooling2D()(conv_bn(x, width, 1, name="c"))
    return shaken(keras.Model(inputs, layers.Dense(5, name="head")(x), name="wide"))


def left(result):
    before, after = result.cost_before, result.cost_after
    return {"params": after.parameters / before.parameters, "macs": after.macs / before.macs}


# ---------------------------------------------------------------------- what is promised is measured


@FEW
@given(st.data())
def test_the_stripped_model_meets_any_budget_or_the_plan_says_why(data):
    builder = Builder(lambda n: data.draw(st.integers(0, n - 1)))
    model = builder.model(4)
    asked = {builder.pick("params", "macs"): builder.pick(0.5, 0.3, 0.7, 0.9)}
    if builder.pick(False, True):
        asked = {"params": 0.6, "macs": 0.6}
    graph = tfprune.trace(model)
    try:
        plan = tfprune.select(
            graph,
            "l2",
            scope=builder.pick("local", "global", "isomorphic"),
            round_to=builder.pick(1, 4),
            layers=builder.pick(False, True),
            **asked,
        )
    except PlanError as error:
        assert "can go" in str(error) and "limits" in str(error)
        return
    result = tfprune.strip(model, plan, verify=False)
    expected = {cost.what: cost.after for cost in plan.forecast.costs}
    assert expected == {"parameters": result.cost_after.parameters, "MACs": result.cost_after.macs}
    worst = max(left(result)[name] / fraction for name, fraction in asked.items())
    assert 0.99 <= worst <= 1.01 or plan.forecast.notes
    assert worst <= 1.01 or "came back" in str(plan) or plan.forecast.notes


@pytest.mark.parametrize("number", range(10))
def test_costs_are_counted_as_strip_leaves_them(number):
    """Deeper models, any ratio: each weight and each kernel's multiply-adds, without a look at the weights."""
    generator = np.random.default_rng(100 + number)
    builder = Builder(lambda n: int(generator.integers(n)))
    model = builder.model(8)
    graph = tfprune.trace(model)
    plan = tfprune.select(graph, "l1", ratio=builder.pick(0.3, 0.6), layers=builder.pick(True, False))
    costs, result = CostModel(graph), tfprune.strip(model, plan, verify=False)
    assert costs.before == (result.cost_before.parameters, result.cost_before.macs)
    if any(refusal.reason for refusal in result.refusals):
        return  # what comes back is strip's to find
    keep = ~plan.gone
    found = costs.parameters(keep, plan.layers), costs.macs(keep, plan.layers)
    assert found == (result.cost_after.parameters, result.cost_after.macs)


def test_a_branch_that_is_concatenated_goes_with_what_fed_it():
    inputs = keras.Input((6, 6, 3))
    x = conv_bn(inputs, 8, name="stem")
    branches = [conv_bn(conv_bn(x, 8, name=f"{name}_1"), 8, name=f"{name}_2") for name in ("left", "right")]
    x = layers.GlobalAveragePooling2D()(layers.Concatenate()(branches))
    model = shaken(keras.Model(inputs, layers.Dense(2, name="head")(x)))
    graph = tfprune.trace(model)
    plan = tfprune.PruningPlan(graph, np.zeros(graph.channels, bool), ("left_2",))
    result = tfprune.strip(model, plan)
    costs = CostModel(graph)
    assert {"left_1", "left_2"} <= set(result.removed_layers)
    assert costs.parameters(~plan.gone, plan.layers) == result.cost_after.parameters
    assert costs.macs(~plan.gone, plan.layers) == result.cost_after.macs


def test_what_has_to_stay_is_made_up_for_elsewhere():
    """softplus(0) is not 0 and is read by the normalization: those channels stay, and others go in their place."""
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(32, 3, name="a")(inputs)
    x = layers.RMSNormalization()(layers.Conv2D(32, 1, activation="softplus", name="b")(x))
    model = shaken(keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x))))
    plan = tfprune.select(model, "l2", macs=0.7, round_to=1)
    result = tfprune.strip(model, plan, verify=False)
    assert result.refusals and result.model.get_layer("b").filters == 32
    assert plan.forecast.costs[1].after == result.cost_after.macs
    assert 0.99 <= left(result)["macs"] / 0.7 <= 1.01


@pytest.mark.parametrize("scope", ["local", "global", "isomorphic"])
@pytest.mark.parametrize("asked", [{"params": 0.4}, {"macs": 0.25}, {"params": 0.9, "macs": 0.5}])
def test_within_one_percent(scope, asked):
    model = wide_net()
    plan = tfprune.select(model, "l2", scope=scope, round_to=1, **asked)
    found = left(tfprune.strip(model, plan, verify=False))
    assert all(found[name] <= fraction for name, fraction in asked.items())
    assert max(found[name] / fraction for name, fraction in asked.items()) >= 0.99
    assert not plan.forecast.notes and "expected parameters: " in str(plan) and "budget" in str(plan)


def test_a_grouped_convolution_and_heads_are_counted():
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(32, 3, padding="same", name="stem")(inputs)
    x = layers.Conv2D(32, 3, padding="same", groups=4, name="grouped")(x)
    x = layers.Reshape((36, 32))(x)
    x = layers.MultiHeadAttention(4, 8, name="mha")(x, x)
    model = shaken(keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling1D()(x))))
    for heads in (False, True):
        plan = tfprune.select(model, "l2", params=0.7, round_to=1, heads=heads)
        result = tfprune.strip(model, plan, verify=False)
        assert plan.forecast.costs[0].after == result.cost_after.parameters
        assert plan.forecast.costs[1].after == result.cost_after.macs
        assert CostModel(plan.graph).macs(~plan.gone) == result.cost_after.macs


def test_coarse_steps_are_named():
    plan = tfprune.select(wide_net(16), "l2", params=0.7, round_to=8)
    assert "round_to=8" in plan.forecast.notes[0] and "less than the 70.00%" in plan.forecast.notes[0]
    assert not tfprune.select(wide_net(16), "l2", params=0.7, round_to=1).forecast.notes


def test_the_same_model_gives_the_same_plan():
    plans = [tfprune.select(wide_net(), "l2", macs=0.4, scope="global", layers=True) for _ in range(2)]
    assert plans[0].channels == plans[1].channels and plans[0].layers == plans[1].layers


def test_a_budget_of_all_changes_nothing():
    plan = tfprune.select(wide_net(), "l2", params=1.0, macs=1)
    assert not plan and plan.forecast.costs[0].after == plan.forecast.costs[0].before


@pytest.mark.parametrize("scope", ["local", "global"])
def test_whole_layers_compete_under_a_budget(scope):
    model = shaken(residual_net())
    plan = tfprune.select(model, "l2", params=0.3, scope=scope, layers=True, round_to=1)
    result = tfprune.strip(model, plan, verify=False)
    assert plan.layers and set(plan.layers) <= set(result.removed_layers)
    assert plan.forecast.costs[0].after == result.cost_after.parameters
    assert left(result)["params"] <= 0.3 * 1.01


def test_a_layer_that_is_too_much_stays():
    model = shaken(residual_net())
    plan = tfprune.select(model, "l2", params=0.95, scope="global", layers=True, round_to=1)
    result = tfprune.strip(model, plan, verify=False)
    # One block is 40 % of the model, and the one that goes for what it saves would go first.
    assert not plan.layers and 0.9 < left(result)["params"] <= 0.95


def test_the_layer_that_is_worth_least_for_what_it_saves_goes_first():
    """Two equal branches; one of them has weights that are close to 0."""
    inputs = keras.Input((8, 8, 3))
    x = conv_bn(inputs, 16, name="stem")
    for name in ("first", "second"):
        y = conv_bn(conv_bn(x, 16, name=f"{name}_1"), 16, activation=None, name=f"{name}_2")
        x = layers.Add()([x, y])
    model = shaken(keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x))))
    for weak in ("first", "second"):
        before = model.get_weights()
        kernel = model.get_layer(f"{weak}_2").kernel
        kernel.assign(0.01 * np.asarray(kernel))
        plan = tfprune.select(model, "l2", params=0.4, scope="global", layers=True, round_to=1)
        assert plan.layers == (f"{weak}_2",)
        model.set_weights(before)


# ---------------------------------------------------------------------- scopes


def scores_of(**by_group):
    def criterion(view):
        return np.asarray(by_group[view.group.name], float)

    criterion.comparable = True
    return criterion


def two_groups():
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, name="a")(inputs)
    x = layers.Conv2D(4, 1, name="b")(x)
    return shaken(keras.Model(inputs, layers.Conv2D(2, 1, name="c")(x)))


def test_global_ranks_all_groups_together():
    criterion = scores_of(a=[1, 2, 3, 4], b=[10, 20, 30, 2.5])
    plan = tfprune.select(two_groups(), criterion, ratio=0.5, scope="global", round_to=1)
    assert plan.channels == {"a": (0, 1, 2), "b": (3,)}
    plan = tfprune.select(two_groups(), criterion, count=3, scope="global")
    assert plan.channels == {"a": (0, 1), "b": (3,)}
    # 1 - score / the largest of all, 30
    plan = tfprune.select(two_groups(), criterion, threshold=0.6, scope="global", round_to=1)
    assert plan.channels == {"a": (0, 1, 2), "b": (0, 3)}


def test_global_divides_by_each_groups_mean():
    """A function's scores are made comparable; ten times the scores is the same ranking."""

    def criterion(view):
        return np.array([1.0, 2, 3, 4]) * (10 if view.group.name == "b" else 1)

    plan = tfprune.select(two_groups(), criterion, ratio=0.5, scope="global", round_to=1)
    assert plan.channels == {"a": (0, 1), "b": (0, 1)}


def test_never_empty_and_never_below_the_minimum():
    criterion = scores_of(a=[1, 2, 3, 4], b=[10, 20, 30, 40])
    arguments = {"ratio": 0.5, "scope": "global", "round_to": 1}
    assert tfprune.select(two_groups(), criterion, **arguments).channels == {"a": (0, 1, 2)}
    assert tfprune.select(two_groups(), criterion, min_width=3, **arguments).channels == {"a": (0,)}
    assert tfprune.select(two_groups(), criterion, max_ratio=0.5, **arguments).channels == {"a": (0, 1)}
    plan = tfprune.select(two_groups(), criterion, min_width=4, **arguments)
    assert not plan and "min_width=4 let nothing go (width 4)" in str(plan)


def test_isomorphic_takes_the_same_fraction_of_every_class():
    model = shaken(residual_net())
    graph = tfprune.trace(model)
    plan = tfprune.select(graph, "l2", ratio=0.5, scope="isomorphic", round_to=1)
    structure = structures(graph)
    classes = {}
    for group in graph.groups:
        if group.prunable:
            gone, width = classes.get(structure(group), (0, 0))
            classes[structure(group)] = gone + len(plan.channels.get(group.name, ())), width + group.width
    assert all(abs(gone - width / 2) <= 0.5 for gone, width in classes.values())
    # The first convolutions of both branches look alike; the streams have more layers.
    assert structure(graph.group("a1")) == structure(graph.group("b1")) != structure(graph.group("stem"))


@pytest.mark.parametrize(
    ("amount", "gone"),
    [({"ratio": {"a": 0.5}}, {"a": (0, 1)}), ({"count": {"a": 1, "b": 3}}, {"a": (0,), "b": (0, 1, 2)}),
     ({"count": 2}, {"a": (0, 1), "b": (0, 1)}), ({"threshold": {"b": 0.5}}, {"b": (0,)}),
     ({"ratio": {"*": 0.25, "b": 0.75}}, {"a": (0,), "b": (0, 1, 2)})],
)  # fmt: skip
def test_dictionaries_name_groups(amount, gone):
    criterion = scores_of(a=[1, 2, 3, 4], b=[1, 2, 3, 4])
    assert tfprune.select(two_groups(), criterion, round_to=1, **amount).channels == gone


def test_a_groups_own_name_is_not_a_prefix():
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 1, name="conv")(inputs)
    x = layers.Conv2D(4, 1, name="conv_1")(x)
    model = shaken(keras.Model(inputs, layers.Conv2D(2, 1, name="head")(x)))
    assert set(tfprune.select(model, "l1", count={"conv": 1}).channels) == {"conv"}
    assert set(tfprune.select(model, "l1", count={"conv*": 1}).channels) == {"conv", "conv_1"}


def test_ignored_layers_stay():
    model = shaken(residual_net())
    assert "a1" not in tfprune.select(model, "l1", ratio=0.5, ignore="a").channels
    plan = tfprune.select(model, "l1", ratio=0.5, ignore=["a2"])
    assert "stem" not in plan.channels and "ignoring a2" in str(plan)  # it writes the stream too
    with pytest.raises(PlanError, match=r"ignore='steam' matches no layer .*did you mean 'stem'"):
        tfprune.select(model, "l1", ratio=0.5, ignore="steam")


def test_counts_are_rounded_and_limited():
    assert [Limits(4, min_width=5).most(width) for width in (4, 5, 9, 12)] == [0, 0, 4, 4]
    assert Limits(1, max_ratio=0.3).most(10) == 3
    assert tfprune.select(two_groups(), "l1", count=3).pruned == 6  # steps of 1 by default


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("amount", "said"),
    [
        ({"ratio": 0.5, "params": 0.5}, "either threshold=, ratio= or count=, or budgets"),
        ({"count": 2, "threshold": 0.5}, "either"),
        ({}, "none came"),
        ({"params": 0}, "would leave nothing"),
        ({"macs": True}, "number in"),
        ({"latency": float("nan")}, "number in"),
        ({"params": 1.5}, "must be in"),
        ({"params": {"a": 0.5}}, "whole model"),
        ({"file_bytes": 0.5}, "formats and fractions"),
        ({"file_bytes": {"docx": 0.5}}, "docx"),
        ({"count": 4}, "count=4 would leave nothing: group 'a' has 4 channels"),
        ({"count": 8, "scope": "global"}, "2 groups together have 8 channels"),
        ({"count": 1.5}, "whole number"),
        ({"count": True}, "whole number"),
        ({"count": -1}, "whole number"),
        ({"ratio": {}}, "names no group"),
        ({"ratio": {"a": 1.0}}, "ratio 1"),
        ({"ratio": {"x": 0.5}}, "'x' matches no layer"),
        ({"ratio": {"c": 0.5}}, "'c' names no group that can go"),
        ({"ratio": 0.5, "scope": "galactic"}, "'local', 'global', 'isomorphic'"),
        ({"ratio": 0.5, "min_width": 0}, "min_width"),
        ({"ratio": 0.5, "max_ratio": 1.5}, "max_ratio"),
        ({"count": 1, "layers": True}, "layers=True"),
        ({"latency": 0.5, "latency_table": 3}, "latency_table is"),
        ({"latency": 0.5, "latency_table": lambda widths: float("nan")}, "milliseconds"),
    ],
)
def test_what_is_no_amount(amount, said):
    with pytest.raises(tfprune.TfpruneError, match=said):
        tfprune.select(two_groups(), "l1", **amount)


def test_a_budget_out_of_reach_says_how_far_it_goes():
    with pytest.raises(
        PlanError, match=r"at most \d+\.\d+% of the parameters can go.*max_ratio=0.25.*head .it is an o"
    ):
        tfprune.select(wide_net(), "l2", params=0.1, max_ratio=0.25)


# ---------------------------------------------------------------------- latency and files


def by_widths(widths):
    """A device that takes 1 ms for a million multiply-adds, and 0.1 ms a kernel."""
    return sum(0.1 + w.positions * np.prod(w.kernel) / 1e6 * w.read[0] / w.read[1] * w.written[0] / w.written[1]
               for w in widths)  # fmt: skip


def test_latency_of_a_users_function():
    graph = tfprune.trace(wide_net())
    everything = np.ones(graph.channels, bool)
    before = by_widths(CostModel(graph).widths(everything))
    plan = tfprune.select(graph, "l2", latency=0.5, latency_table=by_widths, round_to=1)
    again = tfprune.trace(tfprune.strip(graph.model, plan, verify=False).model)
    after = by_widths(CostModel(again).widths(np.ones(again.channels, bool)))
    assert 0.99 * 0.5 <= after / before <= 0.5
    assert [cost.what for cost in plan.forecast.costs] == ["parameters", "MACs", "latency"]


def test_a_table_of_a_clock_is_linear_between_what_was_measured(tmp_path):
    model = shaken(inverted_residual_net())
    graph = tfprune.trace(model)
    seen = []

    def clock(width):
        seen.append(width)
        return by_widths([width])

    table = LatencyTable.measure(graph, clock=clock, name="device")
    costs = CostModel(graph)
    for ratio in (0.0, 0.25, 0.5, 0.75):
        plan = tfprune.select(graph, "l1", ratio=ratio, round_to=1)
        widths = costs.widths(~plan.gone)
        # Linear in each width: between the widths that were measured it is exact.
        assert table(widths) == pytest.approx(by_widths(widths), rel=1e-9)
    assert LatencyTable.load(table.save(tmp_path / "table.json")) == table
    assert len({(w.layer, w.read, w.written) for w in seen}) == len(seen)
    with pytest.raises(PlanError, match="measure one for this model"):
        table(CostModel(tfprune.trace(wide_net())).widths(np.ones(tfprune.trace(wide_net()).channels, bool)))


@pytest.mark.parametrize("text", ["", "{}", "[]", json.dumps({"name": "x", "scale": 1, "times": {"k": {"read": [1]}}})])
def test_damaged_tables(text, tmp_path):
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(PlanError, match="not a latency table"):
        LatencyTable.load(path)


def test_a_table_measured_here():
    pytest.importorskip("onnxruntime")
    table = LatencyTable.measure(shaken(inverted_residual_net()), fractions=(0.5,))
    assert all(ms >= 0 for times in table.times.values() for row in times.ms for ms in row)
    assert table.scale > 0 and "DepthwiseConv2D" in str(table)


def test_bytes_of_a_file(tmp_path):
    pytest.importorskip("onnx")
    model = wide_net()
    plan = tfprune.select(model, "l2", file_bytes={"onnx": 0.5}, round_to=1)
    sizes = []
    for number, one in enumerate((model, tfprune.strip(model, plan, verify=False).model)):
        path = tfprune.export(one, tmp_path / str(number), ["onnx"])["onnx"].path
        sizes.append(path.stat().st_size)
    assert sizes[1] / sizes[0] == pytest.approx(0.5, rel=0.01)
    assert plan.forecast.costs[-1].what == ".onnx bytes"
