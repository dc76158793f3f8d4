"""Soft pruning in every training loop: `fit` on whatever it takes, and loops of one's own.

These tests ask for no backend; tests/test_backends.py runs them again on the others.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from models import assert_same, numbers

import tfprune
from tfprune.errors import PlanError

BACKEND = keras.backend.backend()
JIT = BACKEND == "jax"  # TensorFlow's XLA takes long on CPUs; JAX has nothing else
EXAMPLES = Path(__file__).parent.parent / "examples"


def network(build=keras.Model, synchronized=False):
    """Conv-BN-ReLU, depthwise, conv, dense: 16 and 8 filters."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((8, 8, 2))
    x = layers.Conv2D(16, 3, name="first", use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.5, synchronized=synchronized)(x))
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.Conv2D(8, 1, name="second", activation="relu")(x)
    return build(inputs, layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(x)))


def momentum(**options):
    return keras.optimizers.SGD(0.05, momentum=0.9, **options)


def compiled(model, optimizer=None, epochs=1, **options):
    """Compiled, and trained for an epoch, so that there is momentum."""
    model.compile(optimizer or momentum(), "mse", **{"jit_compile": JIT, **options})
    model.fit(*data(), batch_size=8, epochs=epochs, verbose=0)
    return model


def data(samples=32):
    generator = np.random.default_rng(0)
    return generator.normal(size=(samples, 8, 8, 2)).astype("float32"), generator.normal(size=(samples, 3))


def fit(model, *callbacks, epochs=2):
    return model.fit(*data(), epochs=epochs, batch_size=8, verbose=0, callbacks=list(callbacks))


def zeros(model, name="first"):
    """How many filters of a layer are 0."""
    kernel = numbers(model.get_layer(name).kernel)
    return int((np.abs(kernel).reshape(-1, kernel.shape[-1]).sum(0) == 0).sum())


def assert_stripped(model, tolerance=None):
    """Half of the filters go, and what is left computes the same."""
    result = tfprune.strip(model, tolerance=tolerance)
    widths = [result.model.get_layer(name).filters for name in ("first", "second")]
    assert widths == [8, 4] and result.verification.equal
    assert result.verification.spread > 1e-3
    return result.model


# ---------------------------------------------------------------------- the way from a model to a smaller one


@pytest.mark.parametrize("criterion", ["redundancy", "fpgm", "taylor"])
def test_tracing_criteria_and_strip(criterion):
    model = network()
    model.compile("sgd", "mse", jit_compile=JIT)
    plan = tfprune.select(model, criterion, ratio=0.5, data=data() if criterion == "taylor" else None)
    tfprune.soft_prune(model, plan)
    assert_same(model, assert_stripped(model))


# ---------------------------------------------------------------------- fit


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return tuple(array[8 * index : 8 * index + 8] for array in data())


def batches():
    while True:
        yield from (Batches()[index] for index in range(4))


def tf_data():
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices(data()).batch(8)


@pytest.mark.parametrize(
    ("given", "options"),
    [(tf_data, {}), (Batches, {}), (batches, {"steps_per_epoch": 4})],
    ids=["tf.data", "PyDataset", "generator"],
)
def test_fit_on_whatever_it_takes(given, options):
    model = network()
    model.compile("adam", "mse", jit_compile=JIT)
    pruning = tfprune.SoftPruning("l2", ratio=[0.25, 0.5], every=2)
    model.fit(given(), epochs=2, verbose=0, callbacks=[pruning], **options)
    assert [report.threshold for report in pruning.monitor.history] == [0.25] * 2 + [0.5] * 4
    assert_stripped(model)


def test_several_inputs_and_losses():
    keras.utils.set_random_seed(3)
    image, size = keras.Input((8, 8, 2), name="image"), keras.Input((4,), name="size")
    x = layers.Conv2D(16, 3, name="first", activation="relu")(image)
    x = layers.Conv2D(8, 1, name="second", activation="relu")(x)
    y = layers.Dense(8, name="of_size", activation="relu")(size)
    x = layers.Concatenate()([layers.GlobalAveragePooling2D()(x), y])
    outputs = {"what": layers.Dense(3, name="what")(x), "where": layers.Dense(2, name="where")(x)}
    model = keras.Model({"image": image, "size": size}, outputs)
    model.compile(
        momentum(), {"what": "mse", "where": "mae"}, loss_weights={"what": 1.0, "where": 0.5}, jit_compile=JIT
    )
    given = {"image": data()[0], "size": np.random.default_rng(1).normal(size=(32, 4)).astype("float32")}
    wanted = {"what": data()[1], "where": data()[1][:, :2]}
    pruning = tfprune.SoftPruning("l2", ratio=0.5)
    model.fit(given, wanted, epochs=2, batch_size=8, verbose=0, callbacks=[pruning])
    assert assert_stripped(model).get_layer("of_size").units == 4


@pytest.mark.skipif(BACKEND != "tensorflow", reason="JAX compiles everything by XLA, and PyTorch nothing")
def test_compiled_by_xla():
    model = compiled(network(), jit_compile=True)
    fit(model, tfprune.SoftPruning("l2", ratio=0.5, mode="hard"))
    assert_stripped(model)


def test_frozen_layers():
    model = network()
    model.get_layer("first").trainable = False
    fit(compiled(model), tfprune.SoftPruning("l2", ratio=0.5, mode="hard", slots="reset"))
    assert_stripped(model)


# ---------------------------------------------------------------------- a model with its own step


class Own(keras.Model):
    """The step as Keras' guides write it for each backend."""

    steps = 0

    def train_step(self, *given):
        Own.steps += 1  # once for each compilation, or each step where nothing is compiled
        return getattr(self, f"_on_{BACKEND}")(*given)

    def _on_tensorflow(self, batch):
        import tensorflow as tf

        x, y = batch
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"loss": loss}

    def _on_jax(self, state, batch):
        import jax

        weights, others, slots, metrics = state
        x, y = batch

        def loss_of(weights, others):
            predicted, others = self.stateless_call(weights, others, x, training=True)
            return self.compute_loss(x, y, predicted), others

        (loss, others), gradients = jax.value_and_grad(loss_of, has_aux=True)(weights, others)
        weights, slots = self.optimizer.stateless_apply(slots, gradients, weights)
        return {"loss": loss}, (weights, others, slots, metrics)

    def _on_torch(self, batch):
        x, y = batch
        self.zero_grad()
        loss = self.compute_loss(x, y, self(x, training=True))
        loss.backward()
        self.optimizer.apply([v.value.grad for v in self.trainable_variables], self.trainable_variables)
        return {"loss": loss}


@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_a_train_step_of_ones_own(mode):
    Own.steps = 0
    model = compiled(network(Own))
    history = fit(model, tfprune.SoftPruning("l2", ratio=0.5, mode=mode)).history
    assert Own.steps and history["failure_rate"] == [{"soft": 1.0, "hard": 0.0}[mode]] * 2
    assert_stripped(model)


# ---------------------------------------------------------------------- what optimizers do


def averaging(wrap=lambda optimizer: optimizer, **options):
    """A model whose optimizer averages; it has not been trained, for on JAX Keras does so but once with averages."""
    return compiled(network(), wrap(momentum(use_ema=True, ema_momentum=0.9, **options)), epochs=0)


def averages(model):
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    kernel = model.get_layer("first").kernel
    place = [id(variable) for variable in model.trainable_variables].index(id(kernel))
    return numbers(optimizer._model_variables_moving_average[place])


def assert_zero_in_averages(model):
    assert (np.abs(averages(model)).sum((0, 1, 2)) == 0).sum() == 8


@pytest.mark.parametrize(("mode", "often"), [("soft", None), ("hard", 3)])
def test_averaged_weights(mode, often):
    """Keras puts the averages into the model's place when training ends, or every so many steps."""
    model = averaging(ema_overwrite_frequency=often)
    fit(model, tfprune.SoftPruning("l2", ratio=0.5, mode=mode, begin=1))
    assert_zero_in_averages(model)
    assert_stripped(model)


class Seen(keras.callbacks.Callback):
    """How many filters are 0 when it is validated, and at the end of epochs."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_test_begin(self, logs=None):
        self.seen.append(zeros(self.model))

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(zeros(self.model))


@pytest.mark.parametrize(("first", "on_epoch"), [(True, True), (False, True), (True, False)])
def test_averages_that_a_callback_swaps_in(first, on_epoch):
    model = averaging()
    swap, seen = keras.callbacks.SwapEMAWeights(swap_on_epoch=on_epoch), Seen()
    pruning = tfprune.SoftPruning("l2", ratio=0.5, begin=1)
    order = [swap, pruning] if first else [pruning, swap]
    model.fit(*data(), epochs=2, batch_size=8, verbose=0, validation_data=data(), callbacks=[*order, seen])
    assert seen.seen == [8] * 4
    assert_zero_in_averages(model)
    assert_stripped(model)


def test_averages_are_zeroed_by_soft_prune():
    model = averaging()
    fit(model)
    tfprune.soft_prune(model, tfprune.select(model, "l2", ratio=0.5))
    assert_zero_in_averages(model)


@pytest.mark.parametrize("slots", ["keep", "reset"])
def test_accumulated_gradients_are_slots(slots):
    """Zeroed in the middle of an accumulation, a filter's gradients so far would bring it back."""
    model = network()
    model.compile(keras.optimizers.SGD(0.05, gradient_accumulation_steps=4), "mse", jit_compile=JIT)
    x, y = data(64)
    model.fit(x[:16], y[:16], batch_size=8, verbose=0, shuffle=False)  # two of four steps
    pruning = tfprune.SoftPruning("l2", ratio=0.5, slots=slots)
    history = model.fit(x[16:], y[16:], batch_size=8, verbose=0, shuffle=False, callbacks=[pruning]).history
    assert history["failure_rate"] == [{"keep": 1.0, "reset": 0.0}[slots]]
    assert_stripped(model)


@pytest.mark.skipif(BACKEND == "torch", reason="PyTorch computes float16 convolutions on CPUs slowly")
def test_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = compiled(network())
        assert type(model.optimizer).__name__ == "LossScaleOptimizer"
        history = fit(model, tfprune.SoftPruning("l2", ratio=0.5, mode="hard", slots="reset")).history
    finally:
        keras.config.set_dtype_policy("float32")
    assert history["failure_rate"] == [0.0, 0.0]
    assert_stripped(model, tolerance=1e-2)


def test_averages_inside_of_loss_scaling():
    model = averaging(lambda optimizer: keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=8.0))
    fit(model, tfprune.SoftPruning("l2", ratio=0.5, begin=1))
    assert_zero_in_averages(model)
    assert_stripped(model)


# ---------------------------------------------------------------------- loops of one's own


@pytest.fixture
def example(monkeypatch):
    """The example of a loop on this backend, imported."""
    name = {"tensorflow": "gradient_tape", "jax": "jax_loop", "torch": "torch_loop"}[BACKEND]
    monkeypatch.syspath_prepend(str(EXAMPLES / "loops"))
    yield importlib.import_module(name)
    for module in (name, "setting"):
        sys.modules.pop(module, None)


def batches_of_this_backend():
    if BACKEND == "tensorflow":
        return tf_data()
    import torch

    return [tuple(map(torch.from_numpy, (x, y.astype("float32")))) for x, y in map(Batches().__getitem__, range(4))]


def optimizer_of_this_backend(model):
    if BACKEND != "torch":
        return momentum()
    import torch

    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def test_the_example(example, capsys):
    example.main()
    printed = capsys.readouterr().out
    assert "stripped against soft-pruned: equal" in printed
    accuracies = [float(line.split()[-1].rstrip("%")) for line in printed.splitlines() if "accuracy" in line]
    assert len(accuracies) == 2 and accuracies[0] == accuracies[1] > 50


@pytest.mark.parametrize("mode", ["soft", "hard"])
@pytest.mark.parametrize("every", ["epoch", 3])
def test_a_loop_of_ones_own(example, mode, every):
    model, optimizer = network(), None
    optimizer = optimizer_of_this_backend(model)
    loss = (lambda a, b: ((a - b) ** 2).mean()) if BACKEND == "torch" else keras.losses.MeanSquaredError()
    batches = [Batches()[index] for index in range(4)] if BACKEND == "jax" else batches_of_this_backend()
    # Nothing is zeroed in the first three steps, so that there is momentum.
    pruning = tfprune.SoftPruning("l2", ratio=0.5, mode=mode, every=every, begin={"epoch": 1, 3: 3}[every])
    example.train(model, optimizer, loss, batches, 3, pruning)
    rates = [report.rate for report in pruning.monitor.history]
    assert len(rates) == {"epoch": 2, 3: 6}[every]
    assert (max(rates) > 0.9) if mode == "soft" else (max(rates) == 0)
    assert all(variable.constraint is None for variable in model.trainable_variables)
    assert_stripped(model)


@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_train_on_batch(mode):
    model = compiled(network())
    pruning = tfprune.SoftPruning("l2", ratio=[0.25, 0.5], mode=mode)
    pruning.start(model, epochs=2)
    seen = []
    for _ in range(2):
        for index in range(4):
            model.train_on_batch(*Batches()[index])
            pruning.after_step()
            seen.append(zeros(model))
        assert pruning.after_epoch()
    pruning.finish()
    assert seen == ([0] * 8 if mode == "soft" else [4] * 4 + [8] * 4)
    assert [report.threshold for report in pruning.monitor.history] == [0.25, 0.5]
    assert_stripped(model)


def test_a_loop_that_cannot_begin():
    model = network()
    with pytest.raises(PlanError, match="start"):
        tfprune.SoftPruning("l2", ratio=0.5).after_step()
    with pytest.raises(PlanError, match="epochs="):
        tfprune.SoftPruning("l2", ratio=[0.2, 0.5]).start(model)
    with pytest.raises(PlanError, match="steps to start"):
        tfprune.SoftPruning("l2", ratio=[0.2, 0.5], every=2).start(model, epochs=2)
    with pytest.raises(PlanError, match="none came"):
        tfprune.SoftPruning("l2", ratio=0.5, slots="reset").start(model)
    with pytest.raises(PlanError, match="object came"):
        tfprune.SoftPruning("l2", ratio=0.5, slots="reset").start(model, optimizer=object())
    assert zeros(model) == 0


def test_fit_after_a_loop_that_did_not_finish():
    model = compiled(network())
    pruning = tfprune.SoftPruning("l2", ratio=0.5, mode="hard")
    pruning.start(model, optimizer=object(), epochs=1)
    history = fit(model, pruning).history
    assert history["failure_rate"] == [0.0, 0.0]
