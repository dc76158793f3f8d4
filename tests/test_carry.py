"""strip(..., carry_optimizer=True): training goes on where it was."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers
from models import floats, inverted_residual_net, numbers, residual_net, shaken

import tfprune
from tfprune.soft import Zeroing

OPTIMIZERS = {
    "SGD": lambda **k: keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True, **k),
    "Adam": lambda **k: keras.optimizers.Adam(0.01, amsgrad=True, **k),
    "AdamW": lambda **k: keras.optimizers.AdamW(0.01, **k),
    "RMSprop": lambda **k: keras.optimizers.RMSprop(0.01, momentum=0.5, centered=True, **k),
    "Lion": lambda **k: keras.optimizers.Lion(0.001, **k),
    "Nadam": lambda **k: keras.optimizers.Nadam(0.01, **k),
    "Adagrad": lambda **k: keras.optimizers.Adagrad(0.01, **k),
    "Ftrl": lambda **k: keras.optimizers.Ftrl(0.01, **k),
    "LossScale": lambda **k: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01, **k)),
    "average": lambda **k: keras.optimizers.SGD(0.01, momentum=0.9, use_ema=True, ema_momentum=0.5, **k),
    "accumulated": lambda **k: keras.optimizers.Adam(0.01, gradient_accumulation_steps=3, **k),
    "scheduled": lambda **k: keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 50), 0.9, **k),
}


@pytest.fixture(autouse=True)
def float64():
    with floats("float64"):
        yield


def trained(build, optimizer, steps=3, **settings):
    """A model that has been trained a little, and its data."""
    model = shaken(build())
    # A step in Python takes less time than compiling one.
    model.compile(optimizer, "mse", **{"jit_compile": False, "run_eagerly": True, **settings})
    generator = np.random.default_rng(0)
    x = generator.standard_normal((8, *model.input_shape[1:]))
    y = generator.standard_normal((8, *model.output_shape[1:]))
    for _ in range(steps):
        model.train_on_batch(x, y)
    return model, x, y


def stripped_after(model, ratio=0.5):
    """The model soft-pruned, with the optimizer's slots zeroed where it is; and the stripped one, which goes on."""
    plan = tfprune.select(model, "l1", ratio=ratio, round_to=1)
    tfprune.soft_prune(model, plan, slots="reset")
    return plan, tfprune.strip(model, plan, carry_optimizer=True)


def survivors(model, plan, slim):
    """(a weight of the pruned model without what the plan takes, the same weight of the stripped model)."""
    graph = plan.graph
    for weight, after in zip(graph.variables, tfprune.trace(slim).variables.values(), strict=True):
        array = numbers(graph.variables[weight])
        for slot in (slot for slot in graph.labels.slots.values() if slot.weight is weight):
            gone = plan.gone[graph.channel_of[slot.labels.ravel()]]
            assert slot.split == weight.shape and len(slot.axes) == 1
            array = np.compress(~gone, array, axis=slot.axes[0])
        yield array, numbers(after)


def loss_of(net, x, y) -> float:
    """Of one step; older versions of Keras go on averaging over the steps before."""
    net.reset_metrics()
    return net.train_on_batch(x, y)


@pytest.mark.parametrize(
    ("build", "name"),
    [*((residual_net, name) for name in OPTIMIZERS), (inverted_residual_net, "SGD"), (inverted_residual_net, "Adam")],
)
def test_steps_of_the_stripped_model_are_steps_of_the_pruned_one(build, name):
    model, x, y = trained(build, OPTIMIZERS[name]())
    plan, result = stripped_after(model)
    assert plan.pruned > 5 and not result.notes
    slim, hold = result.model, Zeroing(model, plan)
    assert int(slim.optimizer.iterations) == int(model.optimizer.iterations) > 0
    for _ in range(3):
        losses = [loss_of(net, x, y) for net in (model, slim)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-9)
        hold.apply()  # what an optimizer moves without a gradient
        for expected, got in survivors(model, plan, slim):
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


def test_without_the_slots_the_steps_differ():
    """The test above would notice: a fresh optimizer goes another way."""
    model, x, y = trained(residual_net, OPTIMIZERS["Adam"]())
    plan, result = stripped_after(model)
    fresh = result.model
    fresh.compile(OPTIMIZERS["Adam"](), "mse", run_eagerly=True)
    for net in (model, fresh):
        net.train_on_batch(x, y)
    assert any(np.abs(a - b).max() > 1e-4 for a, b in survivors(model, plan, fresh))


def test_every_slot_is_what_is_left_of_it():
    """Slots hold the numbers of the variable's own entries: compare them entry by entry."""
    model, *_ = trained(residual_net, keras.optimizers.Adam(0.01))
    before = {variable.path: variable for variable in model.trainable_variables}
    for variable, slot in zip(model.trainable_variables, model.optimizer._velocities, strict=True):
        slot.assign(numbers(variable) * 2 + 1)
    result = tfprune.strip(model, tfprune.select(model, "l1", ratio=0.5, round_to=1), carry_optimizer=True)
    slots = result.model.optimizer._velocities
    assert len(slots) == len(before)
    for variable, slot in zip(result.model.trainable_variables, slots, strict=True):
        kept = numbers(variable)
        np.testing.assert_allclose(numbers(slot)[kept != 0], (kept * 2 + 1)[kept != 0], rtol=1e-12)
        assert numbers(slot).shape == kept.shape
    assert sum(variable.shape != before[variable.path].shape for variable in result.model.trainable_variables) > 5


def test_compile_settings_go_over():
    settings = {
        "loss_weights": [2.0],
        "metrics": ["mae", keras.metrics.MeanSquaredError(name="squared")],
        "weighted_metrics": [keras.metrics.MeanAbsoluteError(name="weighted")],
        "steps_per_execution": 2,
        "run_eagerly": False,
    }
    model, x, y = trained(residual_net, keras.optimizers.SGD(0.05), steps=0, **settings)
    model.fit(x, y, batch_size=2, verbose=0)
    model.optimizer.learning_rate = 0.002
    slim = stripped_after(model)[1].model
    assert slim.steps_per_execution == 2 and slim.jit_compile is False
    assert float(slim.optimizer.learning_rate) == pytest.approx(0.002)
    one, other = (net.evaluate(x, y, verbose=0, return_dict=True) for net in (model, slim))
    assert one.keys() == other.keys() and {"mae", "squared", "weighted"} <= one.keys()
    assert all(one[name] == pytest.approx(other[name], rel=1e-9) for name in one)
    assert slim.optimizer is not model.optimizer
    squared = [metric for metric in slim.metrics if metric.name == "squared"]
    assert all(metric is not settings["metrics"][1] for metric in squared)


def test_nothing_is_compiled_unasked():
    model, *_ = trained(residual_net, "adam", steps=1)
    assert not tfprune.strip(model).model.compiled
    result = tfprune.strip(shaken(residual_net()), carry_optimizer=True)
    assert not result.model.compiled and "not compiled" in result.notes[0] and result.notes[0] in str(result)


def test_what_starts_anew_is_said():
    """Adafactor keeps sums over rows and columns: which of them belong to what is left is not known."""
    model, x, y = trained(residual_net, keras.optimizers.Adafactor(0.01))
    result = stripped_after(model)[1]
    assert any("r of " in note and "starts anew" in note for note in result.notes)
    result.model.train_on_batch(x, y)


def test_a_bias_that_constants_make_has_no_slot_yet_and_an_average_from_the_start():
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 1, activation="sigmoid", name="a")(inputs)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(5, 1, use_bias=False, name="b")(x))
    net = keras.Model(inputs, layers.Dense(2)(x))
    model, x, y = trained(lambda: net, keras.optimizers.SGD(0.01, 0.9, use_ema=True, ema_momentum=0.5))
    kernel, bias = numbers(model.get_layer("a").kernel), numbers(model.get_layer("a").bias)
    kernel[..., :3], bias[:3] = 0, 0
    model.get_layer("a").set_weights([kernel, bias])
    result = tfprune.strip(model, carry_optimizer=True)
    new = result.model.get_layer("b").bias
    assert any("momentums of" in note and "is new" in note for note in result.notes)
    place = next(i for i, v in enumerate(result.model.trainable_variables) if v is new)
    average = result.model.optimizer._model_variables_moving_average[place]
    np.testing.assert_allclose(numbers(average), numbers(new))
    assert numbers(new).any()
    result.model.train_on_batch(x, y)


def test_muon():
    if tuple(map(int, keras.__version__.split(".")[:2])) < (3, 13):
        pytest.skip("Muon looks its state up by a path that TensorFlow's variables do not have")
    model, x, y = trained(residual_net, keras.optimizers.Muon(0.01))
    result = stripped_after(model)[1]
    assert not result.notes
    slots = [slot for slot in result.model.optimizer.momentums if slot is not None]
    assert slots and any(numbers(slot).any() for slot in slots)
    result.model.train_on_batch(x, y)


def test_frozen_layers_have_no_slots():
    def build():
        net = residual_net()
        net.get_layer("a1").trainable = False
        return net

    model, x, y = trained(build, keras.optimizers.Adam(0.01))
    result = stripped_after(model)[1]
    assert not result.notes and not result.model.get_layer("a1").trainable
    assert result.model.get_layer("a1").filters == 4
    before = numbers(result.model.get_layer("a1").kernel)
    result.model.train_on_batch(x, y)
    assert np.array_equal(before, numbers(result.model.get_layer("a1").kernel))


class Odd(keras.metrics.MeanMetricWrapper):
    """Its settings do not make it again."""

    def __init__(self, needed):
        super().__init__(keras.losses.mean_squared_error, name="odd")


@pytest.mark.parametrize("metrics", [[Odd(3)], ["mae", Odd(3)], {"head": [Odd(3), "mae"]}, {"head": Odd(3)}])
def test_a_metric_that_cannot_be_made_again_is_named_and_training_goes_on(metrics):
    model, x, y = trained(residual_net, "sgd", metrics=metrics)
    result = stripped_after(model)[1]
    assert any("metric odd" in note for note in result.notes)
    logs = result.model.train_on_batch(x, y, return_dict=True)
    assert "odd" not in logs and ("mae" in logs) == ("mae" in str(metrics))


def test_metrics_of_several_outputs_keep_their_places():
    def build():
        image = keras.Input((4,))
        x = layers.Dense(8, activation="relu", name="inner")(image)
        return keras.Model(image, [layers.Dense(2, name=name)(x) for name in ("first", "second")])

    model = shaken(build())
    model.compile("sgd", ["mse", "mse"], metrics=[Odd(3), "mae"], jit_compile=False, run_eagerly=True)
    x, y = np.ones((4, 4)), [np.zeros((4, 2)), np.zeros((4, 2))]
    model.train_on_batch(x, y)
    result = stripped_after(model)[1]
    logs = result.model.train_on_batch(x, y, return_dict=True)
    assert "second_mae" in logs and not any("odd" in name or name == "first_mae" for name in logs)
