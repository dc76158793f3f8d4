"""Trackers: records say what strip leaves and arrive where they are looked at; one that is down stops nothing."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import keras
import numpy as np
import pytest
from keras import layers
from models import numbers, residual_net

import tfprune
from tfprune.__main__ import main
from tfprune.errors import PlanError, TfpruneError
from tfprune.report import pictures
from tfprune.trackers import CSV, MLflow, Record, TensorBoard, Tracker, Tracking, base, named, names, send


def network(filters=8, optimizer="adam", **metrics):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.Conv2D(filters, 3, activation="relu", name="first"),
            layers.Conv2D(8, 3, activation="relu", name="second"),
            layers.Flatten(),
            layers.Dense(3, name="scores"),
        ]
    )
    model.compile(optimizer, "mse", jit_compile=False, **metrics)
    return model


def fit(model, *callbacks, epochs=2, **options):
    generator = np.random.default_rng(0)
    x, y = generator.random((12, 6, 6, 1)), generator.random((12, 3))
    model.fit(x, y, 6, epochs, verbose=0, callbacks=list(callbacks), **options)


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def logged(directory):
    """What TensorBoard itself reads."""
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    return module.EventAccumulator(str(directory)).Reload()


def record(step, **metrics):
    return Record(step, 1000.0 + step, metrics or {"loss": 1 / (1 + step)})


@dataclass
class Memory(Tracker):
    """A tracker of the tests' own, that can be down."""

    label: str = "memory"
    directory: str = "."

    name: ClassVar[str] = "memory"

    def __post_init__(self):
        super().__post_init__()
        self.records, self.down, self.opened = [], None, []

    target = property(lambda self: f"{self.label!r}")
    beside = property(lambda self: Path(self.directory) / self.label)

    def check(self, names, model):
        self.opened.append(list(names))

    def write(self, record):
        if self.down is not None:
            raise self.down
        self.records.append(record)


del base._KINDS["memory"]


@pytest.fixture(autouse=True)
def known_here(monkeypatch):
    """The tests' own tracker is known to the tests here alone."""
    monkeypatch.setitem(base._KINDS, "memory", Memory)


# ---------------------------------------------------------------------------------------------------- what is recorded


@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_cost_and_widths_are_those_that_strip_leaves(mode):
    model = residual_net()
    model.compile("sgd", "mse", jit_compile=False)
    pruning, memory = tfprune.SoftPruning("l2", ratio=[0.1, 0.25, 0.5], round_to=1, mode=mode), Memory()
    x = np.random.default_rng(0).random((8, *model.input_shape[1:]))
    y = np.zeros((8, *model.output_shape[1:]))
    seen = []
    strip = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(tfprune.strip(model)))
    model.fit(x, y, 4, 3, verbose=0, callbacks=[pruning, Tracking(memory, pruning=pruning), strip])
    for found, result in zip(memory.records, seen, strict=True):
        params, macs = result.cost_after.parameters, result.cost_after.macs
        left = {"params_left": params / result.cost_before.parameters, "macs_left": macs / result.cost_before.macs}
        assert found.cost == {"params": params, "macs": macs, **left}
        groups = {group.name: group.width for group in tfprune.trace(result.model).groups if group.prunable}
        assert groups and found.widths == groups
    assert memory.records[0].cost["macs"] > memory.records[-1].cost["macs"]
    assert memory.records[0].widths != memory.records[-1].widths


def test_sparsity_is_counted_by_hand():
    model, memory = network(), Memory()
    pruning = tfprune.SoftPruning("l2", ratio=0.5)
    fit(model, pruning, Tracking(memory, pruning=pruning), epochs=1)
    found = memory.records[0]
    zeros = sum(int((numbers(weight) == 0).sum()) for weight in model.trainable_weights)
    unpruned_zeros = 3 + 4 + 4  # biases that nobody has trained away from 0 would count as well
    assert zeros - unpruned_zeros <= found.sparsity["weights"] * model.count_params() <= zeros
    assert found.sparsity["channels"] == (4 + 4) / (8 + 8 + 3)
    # 9 x 4 + 4 of the first, 72 x 8 - 36 x 4 + 4 of the second, 4 positions x 4 channels x 3 of the scores
    assert found.sparsity["weights"] == ((36 + 4) + (576 - 144 + 4) + 48) / model.count_params()
    assert found.amounts == {"ratio": 0.5}


def test_failure_rates_are_the_monitors_by_layer_and_named_alike_in_every_epoch():
    model, memory = network(optimizer=keras.optimizers.SGD(0.1, momentum=0.9)), Memory()
    fit(model)
    pruning = tfprune.SoftPruning("l2", ratio=0.5, begin=1)
    fit(model, pruning, Tracking(memory, pruning=pruning), epochs=3)
    first, second, _ = memory.records
    report = pruning.monitor.history[0]
    assert report.rate > 0 and second.failure_rates["total"] == report.rate
    for layer, (pruned, failed) in report.by_layer.items():
        assert second.failure_rates[layer] == failed / pruned
    assert set(first.scalars()) | {"schedule/ratio"} == set(second.scalars())
    assert set(first.failure_rates.values()) == {0.0}


def test_the_order_of_callbacks_does_not_matter():
    found = []
    for turn in (1, -1):
        model, memory = network(optimizer=keras.optimizers.SGD(0.1, momentum=0.9)), Memory()
        fit(model)
        pruning = tfprune.SoftPruning("l2", ratio=[0.25, 0.5])
        fit(model, *[pruning, Tracking(memory, pruning=pruning)][::turn])
        found.append([record.scalars() for record in memory.records])
    assert found[0] == found[1] and found[0][1]["failure_rate/total"] > 0


def test_a_training_without_pruning_has_losses_and_cost():
    model, memory = network(metrics=["mae"]), Memory()
    fit(model, Tracking(memory, suffix="-pruned_model"), epochs=1)
    cost = tfprune.cost(model)
    scalars = memory.records[0].scalars()
    assert set(scalars) == {f"{n}-pruned_model" for n in ("loss", "mae", "cost/params", "cost/macs")}
    assert scalars["cost/macs-pruned_model"] == cost.macs and scalars["cost/params-pruned_model"] == cost.parameters


def test_a_model_that_cannot_be_traced_is_followed_all_the_same():
    class Mixed(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(3)

        def call(self, x):
            return self.dense(keras.ops.reshape(x, (-1, 36)))

    model, memory = Mixed(), Memory()
    model.compile("sgd", "mse", jit_compile=False)
    fit(model, Tracking(memory), epochs=1)
    assert "loss" in memory.records[0].metrics


def test_several_fits_are_one_curve():
    model, memory = network(), Memory()
    tracking = Tracking(memory)
    fit(model, tracking)
    fit(model, tracking)
    fit(model, tracking, epochs=6, initial_epoch=5)
    assert [record.step for record in memory.records] == [0, 1, 2, 3, 5]


def test_only_the_first_process_writes(monkeypatch, tmp_path):
    monkeypatch.setattr(base, "is_first", lambda: False)
    memory = Memory(directory=str(tmp_path))
    memory.down = OSError("it must not be asked")
    fit(network(), Tracking(memory), epochs=1)
    assert not memory.opened and not memory.records and not list(tmp_path.iterdir())


def test_tracking_needs_trackers():
    with pytest.raises(TfpruneError, match="none came"):
        Tracking()
    with pytest.raises(TfpruneError, match="SoftPruning came"):
        Tracking(tfprune.SoftPruning(ratio=0.5))


def test_trackers_by_name(tmp_path):
    assert {"csv", "tensorboard", "mlflow"} <= set(names())
    assert named("csv", tmp_path).path == str(tmp_path / "track.csv")
    with pytest.raises(TfpruneError, match="did you mean 'tensorboard'"):
        named("tensorbord", tmp_path)


def test_a_tracker_is_one_file(tmp_path, monkeypatch):
    """A module that nobody names is found, because it lies in the folder."""
    (tmp_path / "another.py").write_text(
        "from dataclasses import dataclass\nfrom typing import ClassVar\nfrom tfprune.trackers.base import Tracker\n"
        "@dataclass\nclass Another(Tracker):\n    name: ClassVar[str] = 'another'\n"
    )
    monkeypatch.setattr(tfprune.trackers, "__path__", [str(tmp_path)])
    try:
        tfprune.trackers._find()
        assert "another" in names()
    finally:
        base._KINDS.pop("another", None)
        sys.modules.pop("tfprune.trackers.another", None)


# ---------------------------------------------------------------------------------------------------------------- CSV


def test_csv_has_a_row_an_epoch(tmp_path):
    model, pruning = network(metrics=["mae"]), tfprune.SoftPruning("l2", ratio=0.5)
    fit(model, pruning, Tracking(CSV(tmp_path / "run.csv"), pruning=pruning), epochs=3)
    rows = table(tmp_path / "run.csv")
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert rows[2]["width/first"] == "4" and float(rows[2]["failure_rate/total"]) == pruning.monitor.rate
    assert float(rows[0]["loss"]) > 0 and float(rows[0]["mae"]) > 0
    assert pictures.tracking(tmp_path / "run.csv", tmp_path / "run.png").stat().st_size > 10_000


def test_csv_appends_on_resume_and_writes_anew_what_comes_again(tmp_path):
    pruning = tfprune.SoftPruning("l2", ratio=0.5)
    fit(network(), pruning, Tracking(CSV(tmp_path / "run.csv"), pruning=pruning), epochs=4)
    before = table(tmp_path / "run.csv")
    again = tfprune.SoftPruning("l2", ratio=0.5)
    fit(network(), again, Tracking(CSV(tmp_path / "run.csv"), pruning=again), epochs=4, initial_epoch=2)
    after = table(tmp_path / "run.csv")
    assert [row["epoch"] for row in after] == ["0", "1", "2", "3"] and after[:2] == before[:2]
    assert after[2]["loss"] != before[2]["loss"]


def test_csv_of_another_model_is_refused_before_training(tmp_path):
    tracker, pruning = CSV(tmp_path / "run.csv"), tfprune.SoftPruning("l2", ratio=0.5)
    fit(network(), pruning, Tracking(tracker, pruning=pruning), epochs=1)
    other = residual_net()
    other.compile("sgd", "mse", jit_compile=False)
    before = [numbers(weight) for weight in other.weights]
    x, y = np.zeros((2, *other.input_shape[1:])), np.zeros((2, *other.output_shape[1:]))
    pruning = tfprune.SoftPruning("l2", ratio=0.5)
    with pytest.raises(TfpruneError, match="another model.*width/first"):
        other.fit(x, y, verbose=0, callbacks=[Tracking(CSV(tmp_path / "run.csv"), pruning=pruning), pruning])
    assert all(np.array_equal(a, numbers(b)) for a, b in zip(before, other.weights, strict=True))
    (tmp_path / "mine.csv").write_text("name,age\nme,7\n")
    with pytest.raises(TfpruneError, match="no table of this tracker"):
        fit(network(), Tracking(CSV(tmp_path / "mine.csv")))
    assert (tmp_path / "mine.csv").read_text() == "name,age\nme,7\n"


def test_csv_takes_a_metric_that_comes_later(tmp_path):
    tracker = CSV(tmp_path / "run.csv")
    tracker.log(record(0))
    tracker.log(record(1, loss=0.25, val_loss=0.5))
    assert [(row["loss"], row["val_loss"]) for row in table(tracker.path)] == [("1.0", ""), ("0.25", "0.5")]


def test_a_table_without_epochs_is_not_drawn(tmp_path):
    (tmp_path / "rates.csv").write_text("a,b\n")
    with pytest.raises(PlanError, match=r"trackers\.CSV"):
        pictures.tracking(tmp_path / "rates.csv", tmp_path / "rates.png")


# -------------------------------------------------------------------------------------------------------- TensorBoard


def test_tensorboard_is_written_as_training_goes(tmp_path):
    model, pruning = network(metrics=["mae"]), tfprune.SoftPruning("l2", ratio=[0.25, 0.5])
    seen = []
    look = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append((logs["loss"], logged(tmp_path).Scalars("loss")))
    )
    memory = Memory()
    tracking = Tracking(TensorBoard(tmp_path, histograms=["sec*", "scores"]), memory, pruning=pruning)
    fit(model, pruning, tracking, look)
    for epoch, (loss, events) in enumerate(seen):
        assert events[-1].step == epoch and events[-1].value == pytest.approx(loss, rel=1e-6)
    events = logged(tmp_path)
    assert set(events.Tags()["scalars"]) == set(memory.records[-1].scalars())
    for number, own in enumerate(memory.records):
        for tag, value in own.scalars().items():
            event = events.Scalars(tag)[number]
            assert (event.step, event.wall_time) == (own.step, own.time) and event.value == pytest.approx(value)
    assert [event.value for event in events.Scalars("width/second")] == [4.0, 4.0]  # round_to=4


def test_histograms_of_chosen_layers(tmp_path):
    model, pruning = network(), tfprune.SoftPruning("l2", ratio=0.5)
    tracking = Tracking(TensorBoard(tmp_path, histograms="sec"), pruning=pruning)
    fit(model, pruning, tracking)
    events = logged(tmp_path)
    assert events.Tags()["tensors"] == ["weights/second/kernel", "weights/second/bias"]
    from tensorboard.util.tensor_util import make_ndarray

    buckets = make_ndarray(events.Tensors("weights/second/kernel")[-1].tensor_proto)
    kernel = numbers(model.get_layer("second").kernel)
    assert buckets[:, 2].sum() == kernel.size
    assert (buckets[0, 0], buckets[-1, 1]) == pytest.approx((kernel.min(), kernel.max()), rel=1e-6)
    zeros = (kernel == 0).sum()
    holding = buckets[(buckets[:, 0] <= 0) & (buckets[:, 1] > 0)]
    assert zeros > kernel.size / 2 and holding[0, 2] >= zeros


def test_histograms_of_no_layer_are_refused(tmp_path):
    pytest.importorskip("tensorboard")
    with pytest.raises(PlanError, match="histograms='thrid'"):
        fit(network(), Tracking(TensorBoard(tmp_path, histograms=["thrid"])))


def test_tensorboard_forgets_what_a_resumed_run_writes_anew(tmp_path):
    pytest.importorskip("tensorboard")
    killed = TensorBoard(tmp_path)
    for step in range(4):
        killed.log(record(step))
    resumed = TensorBoard(tmp_path)
    for step in range(2, 6):
        resumed.log(record(step, loss=float(10 * step)))
    events = logged(tmp_path).Scalars("loss")
    assert [(event.step, event.value) for event in events] == [(0, 1), (1, 0.5), (2, 20), (3, 30), (4, 40), (5, 50)]


def test_a_missing_package_is_named_at_once(monkeypatch):
    monkeypatch.setattr(base.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TfpruneError, match=r"pip install 'tfprune\[tensorboard\]'"):
        TensorBoard("logs")
    with pytest.raises(TfpruneError, match=r"pip install 'tfprune\[mlflow\]'"):
        MLflow()


# ------------------------------------------------------------------------------------------------------------ faults


@contextlib.contextmanager
def outage(path):
    """A file stands where the tracker would write."""
    kept = path.with_name("kept")
    if path.exists():
        path.rename(kept)
    path.mkdir() if path.suffix else path.write_text("")
    yield
    path.rmdir() if path.suffix else path.unlink()
    if kept.exists():
        kept.rename(path)


@pytest.mark.parametrize(("tracker", "place"), [(CSV, "run.csv"), (TensorBoard, "logs")], ids=["csv", "tensorboard"])
def test_a_tracker_that_is_down_is_warned_of_once_and_gets_everything_later(tracker, place, tmp_path):
    tracker = tracker(tmp_path / place)
    waiting = tmp_path / f"{place}.unsent.jsonl"
    tracker.log(record(0))
    tracker.close()
    with outage(tmp_path / place), pytest.warns(RuntimeWarning, match=place) as caught:
        tracker.log(record(1))
        tracker.log(record(2))
        entries = [json.loads(line) for line in waiting.read_text().splitlines()]
        assert [entry["record"]["step"] for entry in entries[1:]] == [1, 2]
    assert len(caught) == 1 and str(waiting) in str(caught[0].message) and "Error" in str(caught[0].message)
    tracker.log(record(3))
    assert not waiting.exists()
    if place == "run.csv":
        found = [(int(row["epoch"]), float(row["loss"])) for row in table(tmp_path / place)]
    else:
        found = [(event.step, event.value) for event in logged(tmp_path / place).Scalars("loss")]
    assert found == [(step, pytest.approx(1 / (1 + step))) for step in range(4)]


def test_training_goes_on_without_its_trackers(tmp_path):
    broken, works = Memory("broken", str(tmp_path)), Memory("works", str(tmp_path))
    broken.down = ValueError("any mistake at all")
    model, pruning = network(), tfprune.SoftPruning("l2", ratio=0.5)
    with pytest.warns(RuntimeWarning, match="'broken' cannot be written .ValueError: any mistake at all") as caught:
        fit(model, pruning, Tracking(broken, works, pruning=pruning), epochs=3)
    assert len(caught) == 1 and [own.step for own in works.records] == [0, 1, 2]
    assert tfprune.strip(model).model.get_layer("first").filters == 4


def test_the_next_process_sends_what_the_last_one_could_not(tmp_path):
    first, again = Memory(directory=str(tmp_path)), Memory(directory=str(tmp_path))
    first.down = OSError("down")
    with pytest.warns(RuntimeWarning):
        first.log(record(0))
    again.log(record(1))
    assert again.records == [record(0), record(1)] and not again.unsent.exists()


def test_what_was_kept_for_another_target_is_not_mixed_in(tmp_path):
    first = Memory(directory=str(tmp_path))
    first.down = OSError("down")
    with pytest.warns(RuntimeWarning):
        first.log(record(0))
    text = first.unsent.read_text()
    first.unsent.write_text(text.replace('"target": "\'memory\'"', '"target": "another place"'))
    with pytest.raises(TfpruneError, match="could not be sent to another place"):
        fit(network(), Tracking(Memory(directory=str(tmp_path))))


def test_a_full_disk_takes_nothing_and_loses_nothing(tmp_path):
    """No file may grow beyond a few bytes more: half an event is written, and no table."""
    pytest.importorskip("tensorboard")
    trackers = [TensorBoard(tmp_path / "logs"), CSV(tmp_path / "run.csv")]
    for tracker in trackers:
        tracker.log(record(0))
    limit, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    size = max(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 9, limit[1]))
            for step in (1, 2, 3):
                for tracker in trackers:
                    tracker.log(Record(step, 1000.0 + step, {f"metric_{n}": float(step) for n in range(50)}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert ["memory, for" in str(warning.message) for warning in caught] == [True, True]
    assert [row["epoch"] for row in table(tmp_path / "run.csv")] == ["0"]
    for tracker in trackers:
        tracker.log(Record(4, 1004.0, {f"metric_{n}": 4.0 for n in range(50)}))
    assert [row["epoch"] for row in table(tmp_path / "run.csv")] == ["0", "1", "2", "3", "4"]
    events = logged(tmp_path / "logs")
    assert [event.value for event in events.Scalars("metric_49")] == [1.0, 2.0, 3.0, 4.0]
    assert [event.step for event in events.Scalars("loss")] == [0]
    assert not list(tmp_path.glob("*.jsonl"))


def test_kept_records_are_sent_by_a_command(tmp_path, capsys):
    tracker = CSV(tmp_path / "run.csv")
    with outage(tmp_path / "run.csv"), pytest.warns(RuntimeWarning):
        tracker.log(record(0))
        tracker.log(record(1))
        assert main(["track", f"--send={tracker.unsent}"]) == 1
        assert "still cannot be written" in capsys.readouterr().err and tracker.unsent.exists()
    assert main(["track", f"--send={tracker.unsent}"]) == 0
    assert "2 entries sent" in capsys.readouterr().out
    assert [row["epoch"] for row in table(tmp_path / "run.csv")] == ["0", "1"] and not tracker.unsent.exists()
    assert main(["track", f"--draw={tmp_path / 'run.csv'}", f"--output={tmp_path / 'run.png'}"]) == 0
    assert (tmp_path / "run.png").exists()
    assert main(["track"]) == 2 and main(["track", "--draw=run.csv"]) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "could be sent"),
        ("not JSON\n", "could be sent"),
        ('{"a": 1}\n', "which tracker"),
        ('{"tracker": "fax", "settings": {}}\n', "no tracker 'fax'"),
        ('{"tracker": "csv", "settings": {"colour": 1}}\n', "which tracker"),
        ('{"tracker": "csv", "settings": {"path": "elsewhere.csv"}}\n', "was moved"),
    ],
)
def test_send_says_what_is_wrong_with_a_file(text, message, tmp_path):
    path = tmp_path / "run.csv.unsent.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(TfpruneError, match=message):
        send(path)


def test_prune_with_trackers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tfprune, "export", lambda *arguments, **settings: [])
    generator = np.random.default_rng(0)
    x = generator.random((30, 6, 6, 1)).astype("float32")
    np.savez("mine.npz", x_train=x, y_train=np.arange(30) % 3, x_test=x[:9], y_test=np.arange(9) % 3)
    network().save("net.keras")
    run = ["prune", "--model=net.keras", "--dataset=mine.npz", "--train_epochs=0", "--formats=keras", "--epochs=2"]
    assert main([*run, "--ratio=0.5", "--output_dir=ratio", "--track=csv"]) == 0
    rows = table("ratio/track.csv")
    assert [row["width/first"] for row in rows] == ["4", "4"]
    assert main([*run, "--thresholds=0.5,0.4", "--max_retries=0", "--output_dir=ladder", "--track=csv"]) == 0
    rows = table("ladder/track.csv")
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3"] and "failure_rate/total" in rows[0]
    assert main([*run, "--ratio=0.5", "--output_dir=no", "--track=fax"]) == 1
    assert not Path("no/before.keras").exists(), "found out before training"


# ------------------------------------------------------------------------------------------------------------- MLflow


@pytest.fixture(scope="module")
def mlflow():
    module = pytest.importorskip("mlflow", reason="pip install 'tfprune[mlflow]' to test MLflow")
    before = module.get_tracking_uri()
    yield module
    module.set_tracking_uri(before)


@pytest.fixture(scope="module")
def database(mlflow, tmp_path_factory):
    """A store without a server; making its tables takes seconds."""
    directory = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{directory}/mlflow.db"
    mlflow.MlflowClient(uri).create_experiment("tests", artifact_location=(directory / "artifacts").as_uri())
    return uri


def history(mlflow, tracker, metric):
    found = mlflow.MlflowClient(tracker.uri).get_metric_history(tracker.run_id, metric)
    return [(point.step, point.value) for point in sorted(found, key=lambda point: point.step)]


def test_mlflow_has_params_metrics_summaries_and_both_models(mlflow, database, tmp_path):
    params = {"epochs": 2, "learning_rate": 1e-3, "batch_size": 6, "optimizer": "adam"}
    run = MLflow("tests", "both", database, params, tmp_path)
    model, memory, after = network(metrics=["mae"]), Memory(), Memory()
    fit(model, Tracking(run, memory), validation_split=0.5)
    run.log_summary(model, "model_summary.txt")
    run.log_model(model, "model")
    pruned = tfprune.strip(model, tfprune.select(model, "l2", ratio=0.5)).model
    pruned.compile("adam", "mse", metrics=["mae"], jit_compile=False)
    fit(pruned, Tracking(run, after, suffix="-pruned_model"), validation_split=0.5)
    run.log_summary(pruned, "pruned_model_summary.txt")
    run.log_model(pruned, "model_pruned")

    found = mlflow.MlflowClient(database).get_run(run.run_id)
    assert found.data.params == {key: str(value) for key, value in params.items()}
    assert found.info.status == "FINISHED" and found.info.run_name == "both"
    own = {"train_loss", "train_mae", "val_loss", "val_mae", "cost/params", "cost/macs"}
    assert set(found.data.metrics) == own | {f"{name}-pruned_model" for name in own}
    for metric, of in (("train_loss", "loss"), ("val_mae", "val_mae")):
        assert history(mlflow, run, metric) == [(r.step, r.metrics[of]) for r in memory.records]
        assert history(mlflow, run, f"{metric}-pruned_model") == [(r.step, r.metrics[of]) for r in after.records]
    x = np.random.default_rng(0).random((3, 6, 6, 1))
    mlflow.set_tracking_uri(database)
    for name, expected in (("model", model), ("model_pruned", pruned)):
        text = mlflow.artifacts.load_text(
            f"runs:/{run.run_id}/{name.replace('model_pruned', 'pruned_model')}_summary.txt"
        )
        assert f"Total params: {expected.count_params() * 3 + 2:,}" in text or f"{expected.count_params():,}" in text
        loaded = mlflow.keras.load_model(f"runs:/{run.run_id}/{name}")
        np.testing.assert_array_equal(loaded.predict(x, verbose=0), expected.predict(x, verbose=0))
        signature = mlflow.models.get_model_info(f"runs:/{run.run_id}/{name}").signature
        assert signature.inputs.inputs[0].shape == (-1, 6, 6, 1)
    assert not list(tmp_path.iterdir())


def test_mlflow_goes_on_with_the_run_of_a_name_if_its_params_are_the_same(mlflow, database, tmp_path):
    first = MLflow("tests", "again", database, {"rate": 0.1}, tmp_path)
    fit(network(), Tracking(first), epochs=1)
    second = MLflow("tests", "again", database, {"rate": 0.1, "more": 1}, tmp_path)
    fit(network(), Tracking(second), epochs=3, initial_epoch=1)
    assert second.run_id == first.run_id
    assert mlflow.MlflowClient(database).get_run(first.run_id).info.status == "FINISHED"
    assert [step for step, _ in history(mlflow, second, "train_loss")] == [0, 1, 2]
    model = network()
    with pytest.raises(TfpruneError, match=r"rate was 0\.1 and is 0\.2"):
        fit(model, Tracking(MLflow("tests", "again", database, {"rate": 0.2}, tmp_path)))
    assert MLflow("tests", None, database).run != MLflow("tests", "again", database).run
    with pytest.raises(TfpruneError, match="apostrophe"):
        MLflow("tests", "it's", database)


def test_mlflow_takes_every_name(mlflow, database, tmp_path):
    run = MLflow("tests", "names", database, directory=tmp_path)
    metrics = {f"layer_{number}#2": float(number) for number in range(1200)}
    run.log(Record(0, 1000.0, {"loss": 0.5}, widths=metrics))
    found = mlflow.MlflowClient(database).get_run(run.run_id).data.metrics
    assert found["train_loss"] == 0.5 and found["width/layer_1199.2"] == 1199 and len(found) == 1201


def test_mlflow_that_is_back_gets_everything(mlflow, database, tmp_path, monkeypatch):
    run = MLflow("tests", "outage", database, {"rate": 0.1}, tmp_path)
    model, memory = network(), Memory()

    def down(self):
        raise ConnectionError("no route")

    with monkeypatch.context() as patch, pytest.warns(RuntimeWarning, match="no route") as caught:
        patch.setattr(MLflow, "_connect", down)
        fit(model, Tracking(run, memory))
        run.log_summary(model, "model_summary.txt")
        run.log_model(model, "model")
    assert len([warning for warning in caught if "no route" in str(warning.message)]) == 1
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".jsonl", ".keras"]
    assert send(run.unsent) == 6  # params, two records, the end, a summary, a model
    assert not list(tmp_path.iterdir())
    assert history(mlflow, run, "train_loss") == [(r.step, r.metrics["loss"]) for r in memory.records]
    found = mlflow.MlflowClient(database).get_run(run.run_id)
    assert found.data.params == {"rate": "0.1"} and found.info.status == "FINISHED"
    mlflow.set_tracking_uri(database)
    loaded = mlflow.keras.load_model(f"runs:/{run.run_id}/model")
    np.testing.assert_array_equal(numbers(loaded.get_layer("first").kernel), numbers(model.get_layer("first").kernel))


def test_a_server_that_does_not_answer_is_asked_once_an_epoch(mlflow, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        asked = []

        def accept():
            with contextlib.suppress(OSError):
                while True:
                    asked.append(listening.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        uri = f"http://127.0.0.1:{listening.getsockname()[1]}"
        run = MLflow("tests", "silent", uri, directory=tmp_path, timeout=1)
        before = dict(os.environ)
        with pytest.warns(RuntimeWarning, match="ReadTimeout") as caught:
            fit(network(), Tracking(run))
        assert len([w for w in caught if "mlflow-tests-silent.unsent.jsonl" in str(w.message)]) == 1
        assert len(asked) == 4  # when training begins, after two epochs, and at its end: no retries
        assert dict(os.environ) == before
        for connection in asked:
            connection.close()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


@contextlib.contextmanager
def server(directory, port):
    """MLflow's tracking server, as its documentation starts it."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    log = (directory / "server.log").open("ab")
    process = subprocess.Popen(
        [*command, "--backend-store-uri", "sqlite:///mlflow.db", "--workers", "1"],
        cwd=directory, stdout=log, stderr=log, start_new_session=True,
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
    )  # fmt: skip
    try:
        for _ in range(300):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            assert process.poll() is None, (directory / "server.log").read_text()
            time.sleep(1)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()


@pytest.mark.slow
def test_cnn_pruning_on_a_real_server_that_fails_meanwhile(mlflow, tmp_path):
    """The examples against `mlflow server`; then a training during which the server is killed and started again."""
    port, examples = free_port(), Path(__file__).parents[1] / "examples"
    uri, environment = f"http://127.0.0.1:{port}", {**os.environ, "PYTHONPATH": str(examples.parent)}
    small = ["--dataset=digits", "--train_samples=64", "--test_samples=32", "--epochs=2"]

    def example(name, *flags):
        command = [sys.executable, str(examples / name), f"--uri={uri}", *flags]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=True).stdout

    with contextlib.ExitStack() as running:
        running.enter_context(server(tmp_path, port))
        assert "63,122 -> 23,617" in example("mlflow_train.py", *small, "--output_dir=out")
        predicted = example("predict.py", *small[:3])
        assert "23,617 parameters" in predicted and "accuracy on 32 images" in predicted
        client = mlflow.MlflowClient(uri)
        (run,) = client.search_runs([client.get_experiment_by_name("cnn-pruning").experiment_id])
        assert run.data.params == {"epochs": "2", "learning_rate": "0.001", "batch_size": "64", "optimizer": "Adam"}
        for name in ("train_loss", "val_loss", "val_accuracy"):
            for suffix in ("", "-pruned_model"):
                assert len(client.get_metric_history(run.info.run_id, name + suffix)) == 2
        texts = {file.path for file in client.list_artifacts(run.info.run_id)}
        assert texts == {"model_summary.txt", "pruned_model_summary.txt"}
        assert sorted(output.name for output in client.search_logged_models([run.info.experiment_id])) == [
            "model",
            "model_pruned",
        ]

        follow, memory = MLflow("tests", "outage", uri, {"rate": 0.1}, tmp_path), Memory()

        def fail(epoch, logs):
            if epoch == 1:
                running.close()
            if epoch == 3:
                running.enter_context(server(tmp_path, port))

        model, switch = network(), keras.callbacks.LambdaCallback(on_epoch_begin=fail)
        with pytest.warns(RuntimeWarning, match="training goes on") as caught:
            fit(model, switch, Tracking(follow, memory), epochs=5)
        assert len([warning for warning in caught if "training goes on" in str(warning.message)]) == 1
        assert history(mlflow, follow, "train_loss") == [(r.step, r.metrics["loss"]) for r in memory.records]
        assert len(memory.records) == 5 and not follow.unsent.exists()
