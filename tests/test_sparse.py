"""Penalties on channels inside `fit`: what they add to the loss, what becomes 0, and that nothing stays behind."""

from __future__ import annotations

import functools

import keras
import numpy as np
import pytest
from keras import layers
from models import assert_same, conv_bn, inverted_residual_net, mini_net, numbers, outputs, residual_net, shaken

import tfprune
from tfprune.errors import PlanError
from tfprune.schedules import Linear
from tfprune.sparse import GroupLasso, GrowingRegularization, Slimming

RATE = 0.01


def compiled(model, optimizer=None, **options):
    model.compile(optimizer or keras.optimizers.SGD(RATE), "mse", jit_compile=False, **options)
    return model


def data_for(model, samples=16):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(samples, *model.input_shape[1:])).astype("float32")
    return x, generator.normal(size=(samples, *model.output_shape[1:])).astype("float32")


def fit(model, *callbacks, epochs=1, **options):
    x, y = data_for(model)
    settings = {"batch_size": len(x), "shuffle": False, "verbose": 0, **options}
    return model.fit(x, y, epochs=epochs, callbacks=list(callbacks), **settings).history


@functools.cache
def one_step(make):
    """The weights after a step without a penalty, by name."""
    return after_a_step(make)


def after_a_step(make, *callbacks):
    model = compiled(shaken(make()))
    fit(model, *callbacks)
    return named_weights(model)


def moved_by(make, callback):
    """The gradient of a penalty: how much further one step takes each weight with it than without, over the rate."""
    return {name: (one_step(make)[name] - weight) / RATE for name, weight in after_a_step(make, callback).items()}


def named_weights(model):
    return {"/".join(v.path.split("/")[-2:]): numbers(v).astype("float64") for v in model.trainable_variables}


# ---------------------------------------------------------------------- the penalty, by hand


def channel_slices(weights, group):
    """channel -> {weight: index of the slice}, written down by hand for the groups that are tested."""
    return {
        "expand": lambda c: {
            "expand/kernel": np.s_[..., c],
            "expand_bn/gamma": np.s_[c],
            "depthwise/kernel": np.s_[:, :, c],
            "depthwise_bn/gamma": np.s_[c],
            "squeeze/kernel": np.s_[:, :, c],
            "excite/kernel": np.s_[..., c],
            "project/kernel": np.s_[:, :, c],
        },
        "stem": lambda c: {
            "stem/kernel": np.s_[..., c],
            "stem_bn/gamma": np.s_[c],
            "a1/kernel": np.s_[:, :, c],
            "a2/kernel": np.s_[..., c],
            "a2_bn/gamma": np.s_[c],
            "b1/kernel": np.s_[:, :, c],
            "b0/kernel": np.s_[:, :, c],
        },
        "third": lambda c: {"third/kernel": np.s_[..., c], "classes/kernel": np.s_[c::8]},
        "a": lambda c: {"a/kernel": np.s_[..., c::4], "grouped/kernel": np.s_[:, :, c]},
        "grouped": lambda c: {"grouped/kernel": np.s_[..., c::6], "hidden/kernel": np.s_[c::6]},
        "hidden": lambda c: {"hidden/kernel": np.s_[:, c], "head/kernel": np.s_[c]},
    }[group]


def grouped_net():
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 1, name="a")(inputs)
    x = layers.Conv2D(12, 3, groups=2, activation="relu", name="grouped")(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(10, activation="relu", name="hidden")(x)
    return keras.Model(inputs, layers.Dense(2, name="head")(x), name="grouped_net")


def by_hand(make, group, width, growth, power):
    """The penalty at strength 1, and its gradient, of one group."""
    weights = named_weights(shaken(make()))
    slices = [channel_slices(weights, group)(c) for c in range(width)]
    norm = np.array([np.sqrt(sum((weights[n][i] ** 2).sum() for n, i in s.items())) for s in slices])
    size = sum(weights[n][i].size for n, i in slices[0].items())
    gamma = 2 ** (growth * (norm.max() - norm) / (norm.max() - norm.min()))
    gradient = {name: np.zeros_like(weights[name]) for name in slices[0]}
    for channel, own in enumerate(slices):
        slope = gamma[channel] * (np.sqrt(size) / norm[channel] if power == 1 else 2)
        for name, index in own.items():
            gradient[name][index] += slope * weights[name][index]
    each = gamma * (np.sqrt(size) * norm if power == 1 else norm**2)
    return each.sum(), gradient


@pytest.mark.parametrize(
    ("make", "group", "width", "growth", "power"),
    [
        (inverted_residual_net, "expand", 24, 0, 1),
        (inverted_residual_net, "expand", 24, 4, 1),
        (inverted_residual_net, "expand", 24, 4, 2),
        (residual_net, "stem", 8, 4, 1),
        (mini_net, "third", 8, 4, 1),
        (grouped_net, "a", 4, 4, 1),
        (grouped_net, "grouped", 6, 4, 1),
        (grouped_net, "hidden", 10, 4, 1),
    ],
)
def test_group_lasso_by_hand(make, group, width, growth, power):
    others = [g.writers[0] for g in tfprune.trace(make()).groups if g.prunable and g.name != group]
    strength = 0.1
    expected, gradient = by_hand(make, group, width, growth, power)
    lasso = GroupLasso(strength, growth=growth, power=power, ignore=others)
    step = moved_by(make, lasso)
    for name, found in step.items():
        wanted = strength * gradient.get(name, np.zeros(()))
        np.testing.assert_allclose(found, np.broadcast_to(wanted, found.shape), rtol=2e-3, atol=2e-3, err_msg=name)
    history = fit(compiled(shaken(make()), keras.optimizers.SGD(0.0)), lasso)
    assert history["group_lasso"][0] == pytest.approx(strength * expected, rel=1e-5)


def test_the_printed_loss_has_the_penalty_in_it_and_a_models_own_regularizers():
    inputs = keras.Input((4,))
    x = layers.Dense(8, name="hidden", kernel_regularizer="l2", bias_regularizer="l1")(inputs)
    model = compiled(shaken(keras.Model(inputs, layers.Dense(2, name="head")(x))), keras.optimizers.SGD(0.0))
    own = [variable.regularizer for variable in model.trainable_variables]
    assert own[0] is not None
    before = fit(model)["loss"][0]
    lasso = GroupLasso(0.1)
    x, y = data_for(model)
    history = fit(model, lasso, epochs=2, validation_data=(x, y))
    assert history["group_lasso"][0] > 1
    assert history["loss"][1] == pytest.approx(before + history["group_lasso"][1], rel=1e-5)
    assert history["val_loss"][1] == pytest.approx(history["loss"][1], rel=1e-5)
    assert [variable.regularizer for variable in model.trainable_variables] == own
    assert model.evaluate(x, y, verbose=0) == pytest.approx(before, rel=1e-5)
    assert fit(model)["loss"][0] == pytest.approx(before, rel=1e-5)


def test_slimming_by_hand():
    model = compiled(shaken(residual_net()), keras.optimizers.SGD(0.0))
    gamma = {name: w for name, w in named_weights(model).items() if name.endswith(("gamma", "beta"))}
    alone = np.abs(gamma["a1_bn/gamma"]).sum() + np.abs(gamma["b1_bn/gamma"]).sum()
    pairs = (("stem_bn", "a2_bn"), ("b2_bn", "b0_bn"))
    coupled = sum(np.sqrt(2 * sum(gamma[f"{n}/gamma"] ** 2 for n in pair)).sum() for pair in pairs)
    assert fit(model, Slimming(0.1))["slimming"][0] == pytest.approx(0.1 * (alone + coupled), rel=1e-5)
    both = np.sqrt(2 * (gamma["a1_bn/gamma"] ** 2 + gamma["a1_bn/beta"] ** 2)).sum()
    found = fit(model, Slimming(0.1, shifts=True, only="a1"))["slimming"][0]
    assert found == pytest.approx(0.1 * both, rel=1e-5)
    step = moved_by(residual_net, Slimming(0.1, only="a1"))
    np.testing.assert_allclose(step["a1_bn/gamma"], 0.1 * np.sign(gamma["a1_bn/gamma"]), atol=2e-3)
    assert all(np.abs(moved).max() < 2e-3 for name, moved in step.items() if name != "a1_bn/gamma")


def test_growing_pulls_what_the_plan_zeroes_and_nothing_else():
    plan = tfprune.trace(shaken(inverted_residual_net())).plan("expand", [1, 5])
    step = moved_by(inverted_residual_net, GrowingRegularization(plan, step=0.5))
    weights = named_weights(shaken(inverted_residual_net()))
    zeroed = {slot.weight.key for slot, _ in plan.zeros()}
    assert zeroed == {name for name, moved in step.items() if np.abs(moved).max() > 2e-3} and "expand_bn/beta" in zeroed
    wanted = np.zeros_like(weights["project/kernel"])
    wanted[:, :, [1, 5]] = 0.5 * weights["project/kernel"][:, :, [1, 5]]
    np.testing.assert_allclose(step["project/kernel"], wanted, atol=2e-3)


# ---------------------------------------------------------------------- what becomes of the model


def learnable(model, samples=64):
    """Something that a few channels can learn."""
    x = np.random.default_rng(0).normal(size=(samples, *model.input_shape[1:])).astype("float32")
    return x, np.maximum(x, 0).mean(axis=tuple(range(1, x.ndim - 1)))[:, : model.output_shape[-1]] * 4


def group_norms(model, group):
    graph = tfprune.trace(model)
    found = graph.group(group)
    squares = np.zeros(found.width)
    for member in found.members:
        if member.role in ("write", "depthwise", "read"):
            rows = member.slot.rows(graph.weight(member.slot.weight))[member.positions]
            squares += np.bincount(member.channels, (rows**2).sum(1), found.width)
    return np.sqrt(squares)


def chained_net():
    """Convolutions without padding: what is constant can be folded away."""
    inputs = keras.Input((8, 8, 3))
    x = conv_bn(inputs, 16, name="first", padding="valid")
    x = conv_bn(x, 16, name="second", padding="valid")
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(x), name="chained_net")


@pytest.mark.parametrize(
    ("make", "callback", "group", "kept"),
    [
        (residual_net, lambda: GroupLasso(0.01, only="b1"), "b1", "a1"),
        (inverted_residual_net, lambda: GroupLasso(0.01, ignore=["stem", "squeeze", "last"]), "expand", "last"),
        (grouped_net, lambda: GroupLasso(0.01, only="hidden"), "hidden", "grouped"),
        (chained_net, lambda: Slimming(0.3, shifts=True, only="second"), "second", "first"),
        (
            inverted_residual_net,
            lambda: GrowingRegularization(ratio=0.5, only="last", ceiling=3, step=1),
            "last",
            "expand",
        ),
    ],
    ids=["lasso-residual", "lasso-depthwise", "lasso-dense", "slimming", "growing"],
)
def test_what_is_pulled_becomes_zero_and_goes_without_loss(make, callback, group, kept):
    keras.utils.set_random_seed(0)
    model = make()
    pulled, x_y = callback(), learnable(model)
    compiled(model, keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 160)))
    model.fit(*x_y, epochs=40, batch_size=16, verbose=0, callbacks=[pulled])
    if isinstance(pulled, GrowingRegularization):
        plan = pulled.plan
    else:
        criterion = "bn_scale" if isinstance(pulled, Slimming) else "l2"
        plan = tfprune.select(model, criterion, threshold=0.95, round_to=1, only=pulled.only, ignore=pulled.ignore)
    assert set(plan.channels) == {group} and plan.pruned >= 4
    result = tfprune.strip(model, plan)
    assert result.moved.relative < 1e-2
    assert group_norms(model, kept).min() > 0.1, "what nobody pulled is as it was"


def test_at_strength_zero_nothing_changes():
    def trained(*callbacks):
        keras.utils.set_random_seed(3)
        model = compiled(grouped_net(), keras.optimizers.Adam(0.01))
        fit(model, *callbacks, epochs=2, batch_size=4, shuffle=True)
        return model.get_weights()

    plain = trained()
    nothing = trained(GroupLasso(0), GrowingRegularization(ratio=0.0))
    assert all(np.array_equal(a, b) for a, b in zip(plain, nothing, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(plain, trained(GroupLasso(0.01)), strict=True))


def test_the_strength_follows_its_schedule_by_epochs_and_by_steps():
    model = compiled(shaken(grouped_net()))
    seen = {}
    epochs = GroupLasso(Linear(0.0, 0.3, length=3))
    steps = GrowingRegularization(ratio=0.5, step=0.1, ceiling=0.35, every=2)
    penalties = (("epochs", epochs), ("steps", steps))
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: [seen.setdefault(n, []).append(round(c.now, 6)) for n, c in penalties]
    )
    fit(model, epochs, steps, watch, epochs=5, batch_size=8)
    assert seen["epochs"] == [0.0, 0.0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.3, 0.3]
    assert seen["steps"] == [0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.35, 0.35, 0.35, 0.35]
    assert epochs.now == steps.now == 0, "after training nothing is added"


def test_several_at_once_leave_nothing_behind_even_when_training_is_interrupted(tmp_path):
    model = compiled(shaken(residual_net()))
    model.get_layer("stem").kernel.regularizer = own = keras.regularizers.L2(1e-3)
    checkpoint = keras.callbacks.ModelCheckpoint(str(tmp_path / "{epoch}.keras"))
    penalties = [GroupLasso(1e-3), Slimming(1e-3), GrowingRegularization(ratio=0.5)]
    history = fit(model, *penalties, checkpoint, tfprune.SoftPruning("l2", ratio=0.5), epochs=2)
    assert {"group_lasso", "slimming", "growing_regularization", "failure_rate"} <= set(history)

    def regularizers():
        return [variable.regularizer for variable in model.trainable_variables]

    plain = [own] + [None] * (len(regularizers()) - 1)
    assert regularizers() == plain
    model.save(tmp_path / "after.keras")
    for name in ("1", "after"):
        loaded = keras.saving.load_model(tmp_path / f"{name}.keras")
        assert not loaded.losses and all(variable.regularizer is None for variable in loaded.trainable_variables)
    assert_same(model, loaded)
    assert tfprune.strip(model).model.get_layer("stem").filters == 4

    def interrupt(batch, logs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(model, *penalties, keras.callbacks.LambdaCallback(on_train_batch_end=interrupt))
    fit(model, *penalties)
    assert regularizers() == plain


def test_mixed_precision():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = compiled(shaken(residual_net()))
    finally:
        keras.config.set_dtype_policy(before)
    history = fit(model, GroupLasso(0.01), Slimming(0.01), epochs=4)
    assert np.isfinite(history["loss"]).all()
    assert history["group_lasso"][-1] < history["group_lasso"][0] and history["slimming"][-1] < history["slimming"][0]
    assert all(np.isfinite(y).all() for y in outputs(model))


def test_with_soft_pruning_the_zeros_are_those_of_soft_pruning():
    keras.utils.set_random_seed(0)
    model = compiled(residual_net())
    fit(model, GroupLasso(1e-3), tfprune.SoftPruning("l2", ratio=0.5), epochs=3)
    result = tfprune.strip(model)
    assert result.verification.equal and result.model.get_layer("stem").filters == 4


def test_frozen_layers_are_left_alone():
    model = shaken(residual_net())
    model.get_layer("a1").trainable = False
    before = numbers(model.get_layer("a1").kernel)
    fit(compiled(model), GroupLasso(0.1), epochs=2)
    assert np.array_equal(before, numbers(model.get_layer("a1").kernel))
    model.trainable = False
    with pytest.raises(PlanError, match="is trained"):
        fit(compiled(model), GroupLasso(0.1))


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GroupLasso(-1.0), "strength is a number from 0 on"),
        (lambda: GroupLasso(float("nan")), "strength"),
        (lambda: GroupLasso("strong"), "strength"),
        (lambda: Slimming(True), "strength"),
        (lambda: Slimming(float("inf")), "strength"),
        (lambda: GroupLasso(0.1, growth=-1), "growth"),
        (lambda: GroupLasso(0.1, power=3), "power"),
        (lambda: GroupLasso(0.1, every=0), "every"),
        (lambda: GrowingRegularization(), "threshold|ratio"),
        (lambda: GrowingRegularization(ratio=1.5), "ratio"),
        (lambda: GrowingRegularization(ratoi=0.5), "no argument 'ratoi'; did you mean 'ratio'"),
        (lambda: GrowingRegularization(ratio=0.5, step=0), "step"),
        (lambda: GrowingRegularization(ratio=0.5, ceiling=-1), "ceiling"),
        (lambda: GrowingRegularization(tfprune.trace(mini_net()).plan("first", [0]), ratio=0.5), "ratio came as well"),
    ],
)
def test_mistakes_are_told_at_once(make, message):
    with pytest.raises(PlanError, match=message):
        make()


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (lambda: Slimming(0.1), "BatchNormalization.*GroupLasso"),
        (lambda: GroupLasso(0.1, only="thrid"), "'thrid' matches no layer.*did you mean 'third'"),
        (lambda: GroupLasso(0.1, only="classes"), "no channel group of .* may go and is meant"),
        (lambda: GroupLasso(lambda epoch: -0.5), "strength"),
        (lambda: GrowingRegularization(tfprune.trace(residual_net()).plan("stem", [0])), "another model"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(callback, message):
    model = compiled(shaken(mini_net()))
    before = model.get_weights()
    with pytest.raises(PlanError, match=message):
        fit(model, callback())
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert all(variable.regularizer is None for variable in model.trainable_variables)
