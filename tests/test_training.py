"""Soft pruning inside `fit`, the convergence monitor, and what optimizer slots do to zeroed filters."""

import csv

import keras
import numpy as np
import pytest
from keras import layers

import tfprune
from tfprune.errors import PlanError, TfpruneError
from tfprune.monitor import ConvergenceMonitor, FailureReport, failures
from tfprune.schedules import Ladder


def network(optimizer=None, **compiled):
    """Conv-BN-ReLU twice and a depthwise one, compiled; 16 and 8 filters."""
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(16, 3, name="first", use_bias=False),
            layers.BatchNormalization(momentum=0.5),
            layers.ReLU(),
            layers.DepthwiseConv2D(3, padding="same", name="depthwise"),
            layers.Conv2D(8, 1, name="second", activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3, name="head"),
        ]
    )
    model.compile(optimizer or keras.optimizers.Adam(0.01), "mse", **compiled)
    return model


def data(samples=32):
    generator = np.random.default_rng(0)
    return generator.normal(size=(samples, 8, 8, 2)).astype("float32"), generator.normal(size=(samples, 3))


def fit(model, callback, epochs=2, **options):
    x, y = data()
    return model.fit(x, y, epochs=epochs, batch_size=8, verbose=0, callbacks=[callback], **options)


def zero_filters(model, name="first"):
    return int((np.abs(np.asarray(model.get_layer(name).kernel)).sum((0, 1, 2)) == 0).sum())


@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_training_ends_with_a_model_that_strips_to_the_planned_widths(mode):
    model = network()
    fit(model, tfprune.SoftPruning("l2", ratio=0.5, mode=mode))
    result = tfprune.strip(model)
    assert result.verification.equal and result.verification.spread > 1e-3
    assert (result.model.get_layer("first").filters, result.model.get_layer("second").filters) == (8, 4)


def test_soft_filters_come_back_with_momentum_and_are_counted():
    model = network(keras.optimizers.SGD(0.05, momentum=0.9))
    x, y = data()
    model.fit(x, y, epochs=2, batch_size=8, verbose=0)  # so that there is momentum
    pruning = tfprune.SoftPruning("l2", ratio=0.5, slots="keep")
    history = fit(model, pruning)
    assert history.history["failure_rate"][0] == 1.0


@pytest.mark.parametrize(
    "optimizer",
    [lambda: keras.optimizers.SGD(0.05, momentum=0.9), lambda: keras.optimizers.Adam(0.01, amsgrad=True)],
    ids=["momentum", "amsgrad"],
)
def test_reset_slots_do_not_bring_filters_back(optimizer):
    model = network(optimizer())
    x, y = data()
    model.fit(x, y, epochs=2, batch_size=8, verbose=0)
    history = fit(model, tfprune.SoftPruning("l2", ratio=0.5, slots="reset"))
    assert history.history["failure_rate"] == [0.0, 0.0]


def test_hard_filters_are_held_at_zero_by_every_step_and_constraints_are_given_back():
    model = network(keras.optimizers.SGD(0.05, momentum=0.9))
    x, y = data()
    model.get_layer("second").kernel.constraint = own = keras.constraints.MaxNorm(2.0)
    model.fit(x, y, epochs=1, batch_size=8, verbose=0)
    seen = []
    watch = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(zero_filters(model)))
    model.fit(
        x, y, epochs=2, batch_size=8, verbose=0, callbacks=[tfprune.SoftPruning("l2", ratio=0.5, mode="hard"), watch]
    )
    assert seen == [8] * 8
    assert model.get_layer("second").kernel.constraint is own
    assert model.get_layer("first").kernel.constraint is None
    model.fit(x, y, epochs=1, batch_size=8, verbose=0)
    assert zero_filters(model) == 0, "momentum moves them once nobody holds them"


def test_hard_plans_only_grow():
    model = network()
    plans = []
    pruning = tfprune.SoftPruning("l2", ratio=[0.75, 0.25], mode="hard")
    watch = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: plans.append(pruning.plan.pruned))
    fit(model, pruning, epochs=2)
    fit(model, pruning, epochs=2)
    x, y = data()
    model.fit(x, y, epochs=2, batch_size=8, verbose=0, callbacks=[pruning, watch])
    assert plans[0] == plans[1] == 12 + 4


def test_validation_and_checkpoints_see_the_zeroed_model():
    model = network(keras.optimizers.SGD(0.05, momentum=0.9))
    x, y = data()
    model.fit(x, y, epochs=1, batch_size=8, verbose=0)
    seen = []
    watch = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(zero_filters(model)))
    pruning = tfprune.SoftPruning("l2", ratio=0.5)

    class AtValidation(keras.callbacks.Callback):
        def on_test_begin(self, logs=None):
            seen.append(zero_filters(model))

    callbacks = [pruning, AtValidation(), watch]
    model.fit(x, y, epochs=2, batch_size=8, verbose=0, validation_data=(x, y), callbacks=callbacks)
    assert seen == [8, 8, 8, 8]


def test_a_sequence_is_spread_over_the_epochs():
    model = network()
    pruning = tfprune.SoftPruning("l2", thresholds=[0.9, 0.5, 0.3])
    fit(model, pruning, epochs=6)
    assert [report.threshold for report in pruning.monitor.history] == [0.9, 0.9, 0.5, 0.5, 0.3, 0.3]


def test_every_so_many_steps():
    model = network()
    pruning = tfprune.SoftPruning("l2", ratio=Ladder((0.0, 0.5), every=4), every=2)
    fit(model, pruning, epochs=2)  # 4 steps an epoch
    assert [r.threshold for r in pruning.monitor.history[:3]] == [0.0, 0.0, 0.5]
    assert pruning.plan.pruned == 8 + 4
    assert zero_filters(model) == 8


def test_begin_waits():
    model = network()
    seen = []
    pruning = tfprune.SoftPruning("l2", ratio=0.5, begin=2)
    watch = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(pruning.plan is None))
    x, y = data()
    model.fit(x, y, epochs=3, batch_size=8, verbose=0, callbacks=[pruning, watch])
    assert seen == [True, False, False]


def test_a_converged_ladder_stops_early():
    model = network(keras.optimizers.SGD(0.0))
    pruning = tfprune.SoftPruning("l2", thresholds=[0.9, 0.5], stop_when_converged=True)
    history = fit(model, pruning, epochs=10)
    assert len(history.history["loss"]) == 2, "one epoch a threshold, for nothing moves"
    assert [report.threshold for report in pruning.monitor.history] == [0.9, 0.5]


def test_budgets_follow_a_schedule_of_what_is_left():
    model = network()
    pruning = tfprune.SoftPruning("l2", params=[0.9, 0.5], macs=0.9, scope="global", round_to=1)
    fit(model, pruning, epochs=4, validation_data=data())
    seen = [record.threshold for record in pruning.monitor.history]
    assert seen[0] == 0.9 and seen[-1] == 0.5
    result = tfprune.strip(model)
    assert 0.45 < result.cost_after.parameters / result.cost_before.parameters <= 0.5
    assert result.verification.equal


def test_a_latency_budget_is_looked_up_in_one_table():
    def table(widths):
        return sum(width.read[0] * width.written[0] for width in widths)

    model = network()
    pruning = tfprune.SoftPruning("l2", latency=0.5, latency_table=table, round_to=1)
    fit(model, pruning)
    assert pruning.plan.forecast.costs[-1].after / pruning.plan.forecast.costs[-1].before <= 0.5


def test_ratio_zero_changes_nothing():
    one, other = network(), network()
    x, y = data()
    one.fit(x, y, epochs=2, batch_size=8, verbose=0, shuffle=False)
    other.fit(x, y, epochs=2, batch_size=8, verbose=0, shuffle=False, callbacks=[tfprune.SoftPruning("l2", ratio=0.0)])
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_seed_gives_the_same_result_twice():
    weights = []
    for _ in range(2):
        model = network()
        fit(model, tfprune.SoftPruning(ratio=0.5), shuffle=False)
        weights.append(model.get_weights())
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either threshold=, ratio="),
        ({"ratio": 0.5, "thresholds": 0.5}, "either threshold=, ratio="),
        ({"ratio": 0.5, "macs": 0.5}, "either threshold=, ratio="),
        ({"macs": [0.8, 0]}, "would leave nothing"),
        ({"params": 0.5, "scope": "nowhere"}, "scope"),
        ({"ratio": 1.2}, r"\[0, 1\]"),
        ({"ratio": [0.5, 1.0]}, "every channel"),
        ({"ratio": 0.5, "round_to": 0}, "round_to"),
        ({"thresholds": [0.5, float("nan")]}, r"\[0, 1\]"),
        ({"ratio": 0.5, "mode": "firm"}, "mode"),
        ({"ratio": 0.5, "slots": "lose"}, "slots"),
        ({"ratio": 0.5, "every": 0}, "every"),
        ({"ratio": 0.5, "begin": -1}, "begin"),
    ],
)
def test_bad_arguments_are_refused_at_once(options, message):
    with pytest.raises(PlanError, match=message):
        tfprune.SoftPruning(**options)


def test_a_schedule_that_leaves_the_range_is_refused_before_anything_is_zeroed():
    model = network()
    with pytest.raises(PlanError, match="ratio 1.5 at 0"):
        fit(model, tfprune.SoftPruning("l2", ratio=lambda epoch: 1.5))
    assert zero_filters(model) == 0


def test_failures_by_hand():
    model = network()
    plan = tfprune.select(model, "l2", ratio=0.5)
    tfprune.soft_prune(model, plan)
    assert failures(model, plan).rate == 0.0
    gone = plan.channels["first"]
    kernel = np.array(model.get_layer("first").kernel)
    kernel[0, 0, 0, gone[0]] = 2e-9
    kernel[0, 0, 0, gone[1]] = 5e-10  # below the tolerance
    model.get_layer("first").kernel.assign(kernel)
    depthwise = np.array(model.get_layer("depthwise").kernel)
    depthwise[1, 1, gone[2], 0] = -1.0
    model.get_layer("depthwise").kernel.assign(depthwise)
    report = failures(model, plan)
    # 8 filters of first, 8 channels of depthwise, 8 inputs and 4 filters of second, 4 inputs of head.
    assert report.by_layer == {"first": (8, 1), "depthwise": (8, 1), "second": (12, 0), "head": (4, 0)}
    assert (report.failed, report.pruned, report.rate) == (2, 32, 2 / 32)


def test_nothing_pruned_is_a_rate_of_zero_and_not_convergence():
    monitor = ConvergenceMonitor()
    assert monitor.rate == 0.0 and not monitor.converged
    assert FailureReport({}).rate == 0.0


def test_monitor_as_table_and_csv(tmp_path):
    monitor = ConvergenceMonitor(history=[FailureReport({"a": (4, 1), "b": (4, 0)}, epoch=0, threshold=0.8)])
    assert "12.5%" in str(monitor)
    rows = list(csv.DictReader(monitor.to_csv(tmp_path / "rates.csv").open()))
    assert [(r["layer"], r["pruned"], r["failed"], r["rate"]) for r in rows] == [
        ("a", "4", "1", "0.25"),
        ("b", "4", "0", "0.0"),
        ("total", "8", "1", "0.125"),
    ]


def test_monitor_in_tensorboard(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monitor = ConvergenceMonitor(history=[FailureReport({"a": (4, 1)}), FailureReport({"a": (4, 3)})])
    monitor.to_tensorboard(tmp_path)
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("failure_rate/total")] == [(0, 0.25), (1, 0.75)]


def test_tensorboard_missing_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorboard.compat.proto.event_pb2", None)
    with pytest.raises(TfpruneError, match="pip install"):
        ConvergenceMonitor().to_tensorboard(tmp_path)


def test_max_failure_rate_is_a_fraction():
    with pytest.raises(TfpruneError, match="max_failure_rate"):
        ConvergenceMonitor(1.5)
