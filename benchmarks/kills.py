"""Trainings that are killed (`kill -9`) at random moments and started again, against the same ones left alone.

    python benchmarks/kills.py --kills=100

A small network is trained with soft pruning and `tfprune.Resume`; the process is killed, started again, and killed
again, until a start comes through. Its plan and weights must be those of the run that nobody disturbed, to the bit.
Half of the kills are aimed at the moments in which a checkpoint is being written.

Every start is a process of its own: a fork of one that has imported the libraries and done nothing else, so that a
start takes a second or two instead of ten. With --commands each is a new `python benchmarks/kills.py --train=...`.
"""

import hashlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "examples"))

import keras
import numpy as np
from absl import app, flags
from augment import Augmented

import tfprune
import tfprune.resume
import tfprune.soft_pruning
from tfprune.tables import table

FLAGS = flags.FLAGS
flags.DEFINE_integer("kills", 100, "How many kills.", lower_bound=1)
flags.DEFINE_integer("each", 6, "At most so many in one training.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Of the moments.")
flags.DEFINE_bool("commands", False, "Start each process as a command instead of forking it.")
flags.DEFINE_string("train", None, "Train in this directory; what the others start.")
flags.DEFINE_integer("kind", 0, "Which training, with --train.", lower_bound=0, upper_bound=3)
flags.DEFINE_list("kinds", ["0", "1", "2", "3"], "Which trainings are killed.")

EPOCHS, BATCH = 4, 8
KINDS = (
    "soft, every epoch",
    "hard, every 3 steps, saved every 2",
    "PyDataset, slots reset, ladder, saved every 3",
    "layers, saved every step",
)


def network():
    """A little of everything that has a state: statistics, seeds, averages."""
    layers = keras.layers
    image = keras.Input((8, 8, 2))
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(layers.Conv2D(16, 3, use_bias=False, name="one")(image)))
    y = layers.Conv2D(16, 3, padding="same", activation="relu", name="branch")(x)
    x = layers.Dropout(0.2)(layers.Add(name="sum")([x, y]))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 1, activation="relu", name="two")(x))
    model = keras.Model(image, layers.Dense(3, name="head")(x))
    optimizer = keras.optimizers.Adam(0.01, use_ema=True)
    model.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=False)
    return model


def pruning_of(kind):
    """The callback, and when Resume saves."""
    if kind == 0:
        return tfprune.SoftPruning("l2", ratio=tfprune.schedules.Cosine(0.0, 0.6, EPOCHS)), "epoch"
    if kind == 1:
        return tfprune.SoftPruning("l2", ratio=[0.25, 0.5], every=3, mode="hard"), 2
    if kind == 2:
        ladder = [0.5, 0.45, 0.4]
        return tfprune.SoftPruning(thresholds=ladder, slots="reset", stop_when_converged=True, max_failure_rate=0.3), 3
    return tfprune.SoftPruning("fpgm", macs=[0.8, 0.6], scope="global", layers=True, round_to=2), 1


def train(directory, kind):
    """One training, to its end; what it ended with is written to `result.json`."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    keras.utils.set_random_seed(kind)
    generator = np.random.default_rng(kind)
    x = generator.normal(size=(64, 8, 8, 2)).astype("float32")
    y = generator.integers(0, 3, 64)
    model = network()
    pruning, every = pruning_of(kind)
    data = Augmented(x, y, BATCH, seed=kind) if kind == 2 else None
    resume = tfprune.Resume(directory, pruning, every=every, data=data, log=None)
    samples = {"x": data} if data is not None else {"x": x, "y": y, "batch_size": BATCH}
    model.fit(**samples, epochs=EPOCHS, verbose=0, validation_data=(x[:16], y[:16]), callbacks=[pruning, resume])
    found = hashlib.sha256()
    for variable in (*model.weights, *model.optimizer.variables):
        found.update(np.ascontiguousarray(keras.ops.convert_to_numpy(variable)).tobytes())
    result = {"plan": json.loads(pruning.plan.to_json()), "weights": found.hexdigest(), "pruned": pruning.plan.pruned}
    tfprune.files.write_json(pathlib.Path(directory) / "result.json", {**result, "rows": pruning.monitor.rows()})


def start(directory, kind):
    """A process that trains; its number."""
    if FLAGS.commands:
        command = [sys.executable, __file__, f"--train={directory}", f"--kind={kind}"]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid
    process = os.fork()
    if process == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        errors = os.open(pathlib.Path(directory) / "errors.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(errors, 2)
        try:
            train(directory, kind)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return process


def ended(process):
    """Its exit status, or None while it runs."""
    done, status = os.waitpid(process, os.WNOHANG)
    return None if done == 0 else os.waitstatus_to_exitcode(status)


def half_written(directory):
    """Whether a checkpoint is being written, or was when its process was killed."""
    return any(name.startswith(".checkpoint-") for name in os.listdir(directory))


def until(process, directory, seconds, aimed):
    """Kill a process after so many seconds, or, aimed, at the next checkpoint that it begins to write behind them.

    Returns:
        its exit status: -9 if it was killed.
    """
    begun = time.perf_counter()
    while (status := ended(process)) is None:
        if time.perf_counter() - begun >= seconds and not (aimed and not half_written(directory)):
            time.sleep(random.uniform(0, 0.004) if aimed else 0)
            os.kill(process, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        time.sleep(0.0005 if aimed else 0.01)
    return status


def whole(directory, kind):
    """A training that nobody disturbs: what it ended with, and its seconds."""
    begun = time.perf_counter()
    status = until(start(directory, kind), directory, float("inf"), False)
    if status:
        raise SystemExit(f"kind {kind} failed:\n{(pathlib.Path(directory) / 'errors.txt').read_text()}")
    return json.loads((pathlib.Path(directory) / "result.json").read_text()), time.perf_counter() - begun


def disturbed(directory, kind, seconds, kills):
    """A training that is killed up to so many times: what it ended with, its kills, those amid saving, its seconds."""
    done = amid = 0
    while True:
        begun = time.perf_counter()
        aimed = random.random() < 0.5
        moment = random.uniform(0, seconds) if done < kills else float("inf")
        status = until(start(directory, kind), directory, moment, aimed)
        if status == -signal.SIGKILL:
            done, amid = done + 1, amid + half_written(directory)
        elif status == 0:
            return (
                json.loads((pathlib.Path(directory) / "result.json").read_text()),
                done,
                amid,
                time.perf_counter() - begun,
            )
        else:
            raise SystemExit(f"kind {kind} failed:\n{(pathlib.Path(directory) / 'errors.txt').read_text()}")


def main(_):
    """Run it."""
    if FLAGS.train:
        train(FLAGS.train, FLAGS.kind)
        return
    random.seed(FLAGS.seed)
    counts = {kind: [0, 0, 0, 0, 0] for kind in map(int, FLAGS.kinds)}  # trainings, kills, amid saves, plans, weights
    known, total = {}, 0
    while total < FLAGS.kills:
        kind = min(counts, key=lambda kind: counts[kind][1])
        if kind not in known:
            with tempfile.TemporaryDirectory() as directory:
                known[kind] = whole(directory, kind)
        expected, seconds = known[kind]
        with tempfile.TemporaryDirectory() as directory:
            result, kills, amid, last = disturbed(directory, kind, seconds, min(FLAGS.each, FLAGS.kills - total))
        known[kind] = expected, min(seconds, last)  # how busy the machine is changes
        total += kills
        same = [result["plan"] == expected["plan"] and result["rows"] == expected["rows"]]
        same.append(result["weights"] == expected["weights"])
        counts[kind] = [a + b for a, b in zip(counts[kind], (1, kills, amid, *same), strict=True)]
        print(f"{total} kills; {KINDS[kind]}: plan {same[0]}, weights {same[1]}", file=sys.stderr, flush=True)
    rows = [(KINDS[kind], *count) for kind, count in counts.items() if count[0]]
    rows.append(("all", *(sum(column) for column in list(zip(*rows, strict=True))[1:])))
    header = ("training", "trainings", "kills", "while saving", "same plan", "same weights")
    print(table(f"{keras.backend.backend()}: killed and started again, against undisturbed", header, rows))
    if not rows[-1][1] == rows[-1][4] == rows[-1][5]:
        raise SystemExit("not all ended alike")


if __name__ == "__main__":
    app.run(main)
