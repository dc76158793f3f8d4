"""A training that goes on where it was: the same plan and the same weights to the bit, and what stands in its way."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

import tfprune
from tfprune.errors import CheckpointError, DataError, DivergedError, PlanError
from tfprune.runs.checkpoints import Checkpoints, lock, unlock
from tfprune.runs.packing import packed, unpacked
from tfprune.runs.randomness import random_state, seed_epoch, set_random_state
from tfprune.runs.settings import described, differences

ROOT = Path(__file__).parent.parent
on_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="needs tf.data")


class Killed(Exception):
    """Stands for a kill: nothing is called any more."""


class KillAfter(keras.callbacks.Callback):
    def __init__(self, steps):
        super().__init__()
        self.left = steps

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if not self.left:
            raise Killed


def network(optimizer=None, width=8, seed=3):
    """Convolutions, statistics, a seed of its own; layers without names, which Keras numbers on in one process."""
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(width, 3, use_bias=False),
            layers.BatchNormalization(momentum=0.5),
            layers.ReLU(),
            layers.Conv2D(4, 1, activation="relu"),
            layers.Dropout(0.3),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3),
        ]
    )
    # Compiling takes longer than these few steps; benchmarks/kills.py kills compiled ones.
    eager = keras.backend.backend() == "tensorflow"
    optimizer = optimizer or keras.optimizers.Adam(0.01, use_ema=True)
    model.compile(optimizer, "mse", metrics=["mae"], jit_compile=False, run_eagerly=eager)
    return model


def samples(count=32):
    generator = np.random.default_rng(0)
    return generator.normal(size=(count, 6, 6, 2)).astype("float32"), generator.normal(size=(count, 3))


def soft(**options):
    return tfprune.SoftPruning("l2", ratio=[0.25, 0.5], round_to=1, **options)


def train(directory, pruning=None, kill=None, epochs=4, model=None, given=None, also=(), log=None, **options):
    """One start of a training; the model, the callback and the history, or None where it was killed."""
    model, pruning = model or network(), pruning or soft()
    resume = tfprune.Resume(directory, [pruning, *also], log=log, **options)
    callbacks = [pruning, *also, resume] + ([KillAfter(kill)] if kill else [])
    x, y = samples()
    given = given or {"x": x, "y": y, "batch_size": 8, "validation_data": (x, y)}
    try:
        return model, pruning, model.fit(**given, epochs=epochs, verbose=0, callbacks=callbacks).history
    except Killed:
        return None


def assert_alike(one, other):
    for a, b in zip(one[0].weights, other[0].weights, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b))
    for a, b in zip(one[0].optimizer.variables, other[0].optimizer.variables, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b))
    assert list(one[1].plan.channels.values()) == list(other[1].plan.channels.values()) and one[1].plan.pruned
    assert [row[1:] for row in one[1].monitor.rows()] == [row[1:] for row in other[1].monitor.rows()]
    assert one[2] == other[2]


# What SoftPruning takes, what Resume takes, and after how many steps each start is killed.
RUNS = {
    "epochs": ({}, {}, (6, 3, 7)),
    "steps": ({"every": 3, "mode": "hard"}, {"every": 3}, (6, 3, 5)),
    "slots": ({"every": 2, "slots": "reset"}, {"every": 1}, (5, 2, 6)),
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_killed_run_ends_as_it_would_have(kind, tmp_path):
    options, resume, kills = RUNS[kind]
    whole = train(tmp_path / "whole", soft(**options), **resume)
    for kill in kills:
        assert train(tmp_path / "killed", soft(**options), kill, **resume) is None
    again = train(tmp_path / "killed", soft(**options), **resume)
    assert_alike(whole, again)
    assert len(again[2]["loss"]) == 4, "what fit returns has all epochs in it"


def test_a_ladder_that_is_left_early_goes_on_and_stays_stopped(tmp_path):
    def start(name, **options):
        pruning = tfprune.SoftPruning(
            "l2", ratio=[0.25, 0.5, 0.75], round_to=1, stop_when_converged=True, max_failure_rate=1.0
        )
        return train(tmp_path / name, pruning, epochs=9, **options)

    whole, said = start("whole"), []
    assert start("killed", kill=6) is None
    assert_alike(whole, start("killed"))
    assert len(whole[2]["loss"]) == 3
    assert_alike(whole, start("killed", log=said.append))
    assert "had ended" in said[0]


class Loader(keras.utils.PyDataset):
    """A new order every epoch, known from its number."""

    def __init__(self):
        super().__init__()
        self.x, self.y = samples()
        self.set_epoch(0)

    def __len__(self):
        return 4

    def set_epoch(self, epoch):
        self.order = np.random.default_rng(epoch).permutation(len(self.x))

    def __getitem__(self, index):
        rows = self.order[8 * index : 8 * index + 8]
        return self.x[rows], self.y[rows]


def shuffled_rows():
    import tensorflow as tf

    keras.utils.set_random_seed(1)  # as a script does at its start: TensorFlow's seed is part of a shuffle
    epoch = tf.Variable(0, dtype=tf.int64)
    rows = tf.data.Dataset.from_tensor_slices(samples())
    data = tf.data.Dataset.range(1).flat_map(lambda _: rows.shuffle(32, epoch, reshuffle_each_iteration=False))
    return epoch.assign, {"x": data.batch(8)}


def stream():
    generator = np.random.default_rng(7)
    while True:
        yield generator.normal(size=(8, 6, 6, 2)).astype("float32"), generator.normal(size=(8, 3))


def loader():
    found = Loader()
    return found, {"x": found}


@pytest.mark.parametrize(
    "source",
    [
        loader,
        pytest.param(shuffled_rows, marks=on_tensorflow),
        pytest.param(lambda: ("stream", {"x": stream(), "steps_per_epoch": 4}), marks=on_tensorflow),
    ],
    ids=["PyDataset", "tf.data", "generator"],
)
def test_data_goes_on_in_the_middle_of_an_epoch(source, tmp_path):
    def start(name, kill=None):
        data, given = source()
        return train(tmp_path / name, kill=kill, epochs=3, every=3, data=data, given=given)

    whole = start("whole")
    assert start("killed", 8) is None and start("killed", 4) is None
    assert_alike(whole, start("killed"))


def test_keras_callbacks_have_a_state_too(tmp_path):
    def start(name, kill=None):
        also = [
            keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=10.0),
            keras.callbacks.EarlyStopping("loss", patience=4, min_delta=10.0, restore_best_weights=True),
        ]
        return train(tmp_path / name, kill=kill, epochs=8, also=also)

    whole = start("whole")
    assert start("killed", 14) is None and start("killed", 5) is None
    again = start("killed")
    assert_alike(whole, again)
    assert len(whole[2]["loss"]) == 5 and float(whole[0].optimizer.learning_rate) < 0.005


# ---------------------------------------------------------------------- loops of one's own


def own_loop(directory, kill=None, epochs=3, every=2):
    model, pruning = network(keras.optimizers.SGD(0.05, momentum=0.9)), soft(every=2)
    x, y = samples()
    pruning.start(model, epochs=epochs, steps=4)
    resume = tfprune.Resume(directory, pruning, every=every, log=None)
    seen = []
    for epoch in range(resume.start(model, steps=4), epochs):
        order = np.random.permutation(len(x))  # seeded for this epoch
        for step in range(resume.batch, 4):
            rows = order[8 * step : 8 * step + 8]
            loss = model.train_on_batch(x[rows], y[rows])[0]
            seen.append((epoch, step))
            pruning.after_step()
            resume.after_step(loss)
            if len(seen) == kill:
                return None
        pruning.after_epoch()
        resume.after_epoch({"loss": loss}, last=epoch == epochs - 1)
    pruning.finish()
    resume.finish()
    return model, pruning, resume.logs[-1]


def test_a_loop_of_ones_own(tmp_path):
    whole = own_loop(tmp_path / "whole")
    assert own_loop(tmp_path / "killed", 7) is None and own_loop(tmp_path / "killed", 1) is None
    assert_alike(whole, own_loop(tmp_path / "killed"))


class ForeignOptimizer:
    """What PyTorch's have."""

    def __init__(self):
        self.state = {0: {"step": 0, "momentum": np.zeros(3, np.float32)}}

    def state_dict(self):
        return {"state": self.state, "groups": [{"rate": 0.1, "params": [0]}]}

    def load_state_dict(self, state):
        self.state = state["state"]


def test_an_optimizer_with_a_state_dict_and_things_of_ones_own(tmp_path):
    resume, optimizer = tfprune.Resume(tmp_path, log=None), ForeignOptimizer()
    assert resume.start(network(), optimizer=optimizer) == 0
    optimizer.state[0]["step"], optimizer.state[0]["momentum"] = 5, np.arange(3, dtype=np.float32)
    resume.save({"best": 0.5, "center": np.float64([1.5, np.pi])})
    random = np.random.random()
    other, again = ForeignOptimizer(), tfprune.Resume(tmp_path, log=None)
    again.start(network(), optimizer=other)
    assert other.state[0]["step"] == 5 and other.state[0]["momentum"].tolist() == [0, 1, 2]
    assert again.extra["best"] == 0.5 and again.extra["center"].tolist() == [1.5, np.pi]
    again.restore_random()
    assert np.random.random() == random


def test_values_with_arrays_come_back_as_they_were():
    import ml_dtypes

    value = {"a": [1, (2.5, float("inf"))], 3: np.arange(4, dtype=ml_dtypes.bfloat16), "none": None}
    arrays = {}
    found = unpacked(json.loads(json.dumps(packed(value, arrays))), arrays)
    assert found["a"] == value["a"] and isinstance(found["a"][1], tuple) and found["none"] is None
    assert found[3].dtype == ml_dtypes.bfloat16 and found[3].tolist() == [0, 1, 2, 3]
    with pytest.raises(TypeError, match="set"):
        packed({1}, {})


def test_random_states_come_back():
    import random

    seed_epoch(0, 3)
    state = json.loads(json.dumps(random_state()))
    drawn = [random.random(), np.random.random(), float(keras.random.uniform(()))]
    set_random_state(state)
    assert drawn == [random.random(), np.random.random(), float(keras.random.uniform(()))]
    seed_epoch(0, 3)
    assert drawn == [random.random(), np.random.random(), float(keras.random.uniform(()))]
    seed_epoch(0, 4)
    assert drawn[1] != np.random.random()


# ---------------------------------------------------------------------- what stands in its way


@pytest.fixture(scope="module")
def two_epochs(tmp_path_factory):
    """A run after two of four epochs, to be copied."""
    directory = tmp_path_factory.mktemp("run")
    assert train(directory, kill=9, settings={"width": 8, "name": "a"}) is None
    return directory


@pytest.fixture
def run(two_epochs, tmp_path):
    return Path(shutil.copytree(two_epochs, tmp_path / "run"))


def go_on(directory, **options):
    return train(directory, **{"settings": {"width": 8, "name": "a"}, **options})


@pytest.mark.parametrize("file", ["model.weights.h5", "state.json", "SHA256SUMS"])
@pytest.mark.parametrize("how", ["cut", "changed", "gone"])
def test_a_damaged_checkpoint_is_passed_over(file, how, run):
    newest, said = run / "checkpoint-000002", []
    content = (newest / file).read_bytes()
    if how == "cut":
        (newest / file).write_bytes(content[: len(content) // 2])
    elif how == "changed":
        middle = len(content) // 2
        (newest / file).write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    else:
        (newest / file).unlink()
    checkpoints = Checkpoints(run, log=said.append)
    place, state = checkpoints.read()
    assert place.name == "checkpoint-000001" and state["epoch"] == 1
    assert "checkpoint-000002 is damaged" in said[0] and "going on from checkpoint-000001" in said[0]
    assert (run / "damaged-000002").is_dir() and not newest.exists()


def test_a_run_goes_on_from_the_one_before_the_damaged(run, tmp_path):
    (run / "checkpoint-000002" / "model.weights.h5").write_bytes(b"no")
    said = []
    assert_alike(go_on(tmp_path / "whole"), go_on(run, log=said.append))
    assert "damaged" in said[0] and "epoch 1" in said[1]


def test_with_all_damaged_nothing_is_begun_anew_in_silence(run):
    for name in ("checkpoint-000001", "checkpoint-000002"):
        (run / name / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"no checkpoint .*000002 is damaged .*000001 is damaged"):
        go_on(run)


def test_a_format_of_later_is_not_guessed(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write({"version": 99})
    with pytest.raises(CheckpointError, match="another version"):
        checkpoints.read()


def test_only_the_newest_are_kept_and_what_kills_left_is_removed(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for number in range(5):
        checkpoints.write({"number": number})
    (tmp_path / ".checkpoint-000006-xyz").mkdir()
    checkpoints.clean()
    assert sorted(os.listdir(tmp_path)) == [f"checkpoint-00000{n}" for n in (3, 4, 5)]
    assert checkpoints.read()[1]["number"] == 4


@pytest.fixture
def full_disk():
    """No file may grow beyond a few bytes: what a full disk does to a save, in its middle."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(size=2000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield fill
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


class Fill(keras.callbacks.Callback):
    def __init__(self, fill):
        super().__init__()
        self.fill = fill

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            self.fill()


def test_a_disk_that_fills_does_not_end_the_training(tmp_path, full_disk):
    whole = train(tmp_path / "whole")
    with pytest.warns(UserWarning, match=r"could not be written.*training goes on, checkpoint-000002 stays"):
        found = train(tmp_path / "full", also=[Fill(full_disk)])
    np.testing.assert_array_equal(found[0].get_weights()[0], whole[0].get_weights()[0])
    assert sorted(os.listdir(tmp_path / "full")) == ["checkpoint-000001", "checkpoint-000002", "lock"]
    assert Checkpoints(tmp_path / "full").read()[1]["epoch"] == 2


def test_without_any_checkpoint_a_full_disk_is_an_error(tmp_path, full_disk):
    resume = tfprune.Resume(tmp_path, log=None)
    resume.start(network())
    full_disk()
    with pytest.raises(CheckpointError, match="could not be written"):
        resume.save()


def test_a_checkpoint_that_cannot_fit_is_not_begun(tmp_path):
    with pytest.raises(CheckpointError, match="bytes free"):
        Checkpoints(tmp_path).write({}, size=2**60)


def test_two_runs_in_one_directory_are_refused(tmp_path):
    code = (
        f"import time, tfprune.runs.checkpoints as c; c.lock({str(tmp_path)!r}); "
        "print('locked', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        resume = tfprune.Resume(tmp_path, log=None)
        with pytest.raises(CheckpointError, match=f"in use by process {other.pid} "):
            resume.start(network())
        other.kill()  # -9: the lock goes with the process
        other.wait()
        assert resume.start(network()) == 0
    lock(tmp_path)  # a cell that is run again in one process
    unlock(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"settings": {"width": 16, "extra": 1}},
            r"width: was 8, is 16\n.*name: was 'a', is not there\n.*extra: was not",
        ),
        ({"model": lambda: network(keras.optimizers.Adam(0.5, use_ema=True))}, r"optimizer.learning_rate: was 0.00?9"),
        ({"model": lambda: network(keras.optimizers.SGD(0.01))}, r"optimizer variables: were \d+, are 2"),
        (
            {"model": lambda: network(width=6)},
            r"weight .*conv2d.*kernel: was float32 \(3, 3, 2, 8\), is .*\(3, 3, 2, 6\)",
        ),
        ({"pruning": lambda: soft(mode="hard")}, "mode: was 'soft', is 'hard'"),
        ({"epochs": 8}, r"ratio.every: was 2, is 4"),
        ({"seed": 1}, "seed: was 0, is 1"),
        ({"given": {"x": samples()[0][:24], "y": samples()[1][:24], "batch_size": 8}}, "batches an epoch: was 4, is 3"),
    ],
)
def test_another_start_is_refused_and_the_differences_are_listed(options, message, run):
    options = {name: value() if callable(value) else value for name, value in options.items()}
    with pytest.raises(CheckpointError, match=rf"(?s)started otherwise:\n.*{message}"):
        go_on(run, **options)
    assert Checkpoints(run).read()[1]["epoch"] == 2, "nothing was written"


def test_other_settings_on_purpose(run):
    said = []
    model = network(keras.optimizers.Adam(0.5, use_ema=True))
    go_on(run, model=model, changes="accept", log=said.append)
    assert "learning_rate" in said[0] and float(model.optimizer.learning_rate) == 0.5
    with pytest.raises(CheckpointError, match="was float32"):
        go_on(run, model=network(width=6), changes="accept")


def test_data_that_ends_before_the_place_is_noticed(tmp_path):
    def start(count, kill=None):
        rows = [(x[None], y[None]) for x, y in zip(*samples(), strict=True)][:count]
        return train(tmp_path, kill=kill, every=6, epochs=2, given={"x": (row for row in rows)}, pruning=soft())

    assert start(12, kill=8) is None
    with pytest.raises(CheckpointError, match="data set has shrunk"), pytest.warns(UserWarning, match="ran out"):
        start(4)


def test_nan_is_noticed_and_nothing_is_written_over(run):
    model = network()

    class Poison(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            model.layers[3].kernel.assign(np.full(model.layers[3].kernel.shape, np.nan))

    # Its gradient has spread by the end of the step.
    first = model.layers[0].name
    with pytest.raises(DivergedError, match=rf"(?s)loss is nan in epoch 2.*first layer .*{first}.*000002"):
        poisoned(run, model, Poison())
    assert sorted(os.listdir(run)) == ["checkpoint-000001", "checkpoint-000002", "lock"]


def poisoned(directory, model, poison):
    pruning = soft()
    resume = tfprune.Resume(directory, pruning, settings={"width": 8, "name": "a"}, log=None)
    x, y = samples()
    model.fit(x, y, batch_size=8, epochs=4, verbose=0, validation_data=(x, y), callbacks=[pruning, resume, poison])


def test_nan_weights_behind_a_finite_loss_are_noticed(run):
    model = network()

    class Poison(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 3:
                model.layers[1].moving_mean.assign(np.full(8, np.inf))

    with pytest.raises(DivergedError, match=r"weights are not finite; .*moving_mean: 8 of 8 .*000002"):
        poisoned(run, model, Poison())


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"every": 0}, PlanError),
        ({"keep": 1}, CheckpointError),
        ({"seed": -1}, PlanError),
        ({"changes": "ignore"}, PlanError),
        ({"data": 3}, DataError),
    ],
)
def test_bad_arguments(options, error, tmp_path):
    with pytest.raises(error):
        tfprune.Resume(tmp_path, **options)


def test_resume_comes_last(tmp_path):
    pruning, (x, y) = soft(), samples()
    with pytest.raises(PlanError, match="put Resume behind SoftPruning"):
        network().fit(x, y, verbose=0, callbacks=[tfprune.Resume(tmp_path, pruning), pruning])


def test_settings_are_told_alike_in_every_process():
    schedule = tfprune.schedules.Cosine(0.0, 0.5, 8)
    assert described({"s": schedule, "f": np.sum, "x": np.zeros((2, 3)), "p": Path("a")}) == {
        "s": {"kind": "Cosine", "start": 0.0, "end": 0.5, "length": 8},
        "f": "numpy.sum",
        "x": "array (2, 3) float64",
        "p": "a",
    }
    assert differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2}) == ["a.b: was 1, is 3"]


# ---------------------------------------------------------------------- the state of a callback


@pytest.mark.parametrize("options", [{"ratio": 0.5, "layers": True, "scope": "global"}, {"ratio": 0.5, "heads": True}])
def test_a_plan_survives_as_json(options):
    def build():
        inputs = keras.Input((5, 8))
        x = layers.Dense(8)(inputs)
        x = layers.Add()([x, layers.MultiHeadAttention(4, 4)(x, x)])
        x = layers.Add()([x, layers.Dense(8)(layers.Dense(16, activation="relu")(x))])
        return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))

    one, other = (tfprune.SoftPruning("l2", round_to=1, **options) for _ in range(2))
    one.start(build())
    other.start(build())
    state = json.loads(json.dumps(one.get_state()))
    other.plan = None
    other.set_state(state)
    np.testing.assert_array_equal(one.plan.gone, other.plan.gone)
    assert one.plan.gone.any() and len(one.plan.layers) == len(other.plan.layers)


def test_a_measured_latency_table_is_part_of_the_state():
    from tfprune.latency import LatencyTable, Times

    table = LatencyTable("here", {"conv": Times((2, 4), (2,), ((0.25,), (0.5,)))}, 1.5)
    assert LatencyTable.from_json(table.to_json()) == table
    pruning = tfprune.SoftPruning("l2", ratio=0.5)
    with pytest.raises(PlanError, match="before training"):
        pruning.get_state()
    pruning.start(network())
    other = tfprune.SoftPruning("l2", ratio=0.5)
    other.start(network())
    other.set_state({**pruning.get_state(), "latency_table": table.to_json()})
    assert other.latency_table == table


# ---------------------------------------------------------------------- the ladder of `Pruning`


def ladder(directory, calls, kill=None, thresholds=(0.6, 0.5), rate=0.05, **options):
    """The ladder, with a training of two epochs that keeps its optimizer; killed in one of its trainings."""
    model = network(keras.optimizers.SGD(rate, momentum=0.9))
    pruning = tfprune.Pruning(model, output_dir=directory, slots="keep", round_to=1, log=calls.append)
    x, y = samples()

    def training(network, where):
        calls.append(where.name)
        network.fit(x[np.random.permutation(len(x))], y, batch_size=8, verbose=0)
        if where.name == kill:
            raise Killed

    try:
        pruning.run(training, thresholds=thresholds, max_failure_rate=0.1, max_retries=1, **options)
    except Killed:
        return None
    return pruning


def trained(calls):
    return [call for call in calls if call.startswith("TH") and ":" not in call]


def test_a_killed_ladder_goes_on_behind_the_last_training(tmp_path):
    whole = ladder(tmp_path / "whole", calls := [])
    names = trained(calls)
    assert len(names) > 2 and "TH0.5_Repruned1" in names
    for kill in names[1:]:
        assert ladder(tmp_path / "killed", [], kill) is None
    again = ladder(tmp_path / "killed", calls := [])
    assert trained(calls) == names[-1:]
    assert whole.plan.pruned and [*again.plan.channels.values()] == [*whole.plan.channels.values()]
    for a, b in zip(whole.model.get_weights(), again.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [row[1:] for row in again.monitor.rows()] == [row[1:] for row in whole.monitor.rows()]

    third = ladder(tmp_path / "killed", calls := [])
    assert not trained(calls), "it had ended"
    assert [*third.plan.channels.values()] == [*whole.plan.channels.values()]

    (tmp_path / "killed" / names[-1] / "retrained.keras").write_bytes(b"no")
    fourth = ladder(tmp_path / "killed", calls := [])
    assert trained(calls) == names[-1:] and "damaged" in calls[0]
    np.testing.assert_array_equal(fourth.model.get_weights()[0], whole.model.get_weights()[0])

    with pytest.raises(CheckpointError, match=r"thresholds: was \[0.6, 0.5\], is \[0.6, 0.4\]"):
        ladder(tmp_path / "killed", [], thresholds=(0.6, 0.4))
    ladder(tmp_path / "killed", calls := [], thresholds=(0.6,), resume=False)
    assert trained(calls)[0] == "TH0.6"


def test_a_ladder_whose_training_diverges(tmp_path):
    with pytest.raises(DivergedError, match="TH0.6.*NaN or infinite weights, first in"):
        ladder(tmp_path, [], rate=1e30)
    assert not (tmp_path / "TH0.6" / "retrained.keras").exists()


# ---------------------------------------------------------------------- real kills


@pytest.mark.slow
def test_kills(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "kills.py"), "--kills=4", "--each=2", "--seed=3"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "same weights" in found.stdout
