"""What soft pruning costs in `fit`: time and memory against the same `fit` without it.

    python benchmarks/callback.py --samples=10000 --epochs=3 --rounds=3

Fits of both kinds take turns on models that have been compiled before; the medians are compared. As a shared machine
makes two fits differ by more than a callback costs, the seconds inside of the callback are counted as well: they grow
with the model and not with the data, so their share of an epoch of CIFAR-10's 50,000 images is printed. Memory is the
highest that a process of its own has taken; such processes take turns, too.
"""

import os
import pathlib
import statistics
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "examples"))

import keras
import numpy as np
from absl import app, flags
from common import MB, progress, resident
from models.mobilenet_v2 import mobilenet_v2
from models.resnet import resnet20

import tfprune
from tfprune.tables import table

FLAGS = flags.FLAGS
flags.DEFINE_integer("samples", 10000, "Random 32x32 images an epoch.", lower_bound=64)
flags.DEFINE_integer("epochs", 3, "Of a fit.", lower_bound=1)
flags.DEFINE_integer("rounds", 3, "Fits of each kind that are compared, and processes for memory.", lower_bound=1)
flags.DEFINE_integer("batch_size", 64, "Images a step.", lower_bound=1)
flags.DEFINE_list("models", ["resnet20", "mobilenet_v2"], "Which.")
flags.DEFINE_list("criteria", ["l2"], "Of the callback.")
flags.DEFINE_bool("memory", True, "Measure memory, in processes of its own.")
flags.DEFINE_string("child", None, "Train once, print the highest memory: `plain`, or a criterion.")

BUILD = {"resnet20": lambda: resnet20((32, 32, 3), 10), "mobilenet_v2": lambda: mobilenet_v2((32, 32, 3), 10)}


class Timed(tfprune.SoftPruning):
    """Adds up the seconds that its own methods take between the first epoch's begin and the end."""

    seconds = 0.0

    def __getattribute__(self, name):
        value = super().__getattribute__(name)
        if not name.startswith("on_") or name == "on_train_begin" or not callable(value):
            return value

        def timed(*args, **kwargs):
            start = time.perf_counter()
            try:
                return value(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


def compiled(name):
    """A model, ready to train."""
    keras.utils.set_random_seed(0)
    model = BUILD[name]()
    jit = False if keras.backend.backend() == "tensorflow" else "auto"
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=jit)
    return model


def images(count):
    """Random ones, with labels."""
    generator = np.random.default_rng(0)
    return generator.random((count, 32, 32, 3), "float32"), generator.integers(0, 10, count)


def fit(model, callbacks, epochs):
    """Seconds of a fit."""
    x, y = images(FLAGS.samples)
    start = time.perf_counter()
    model.fit(x, y, FLAGS.batch_size, epochs, verbose=0, callbacks=callbacks)
    return time.perf_counter() - start


def times(name, criterion):
    """(seconds an epoch of plain fits, of those with soft pruning, seconds an epoch inside the callback), medians."""
    plain, soft = compiled(name), compiled(name)
    fit(plain, [], 1)
    fit(soft, [tfprune.SoftPruning(criterion, ratio=0.5)], 1)
    found = []
    for number in range(FLAGS.rounds):
        callback = Timed(criterion, ratio=0.5)
        first = fit(plain, [], FLAGS.epochs)
        found.append(
            [second / FLAGS.epochs for second in (first, fit(soft, [callback], FLAGS.epochs), callback.seconds)]
        )
        progress(f"{name}, {criterion}, round {number}: {found[-1]}")
    return [statistics.median(column) for column in zip(*found, strict=True)]


def memory(name, criterion):
    """(MB at the highest of plain fits, of those with soft pruning), medians over processes that take turns."""
    kinds = {"plain": [], criterion: []}
    for _ in range(FLAGS.rounds):
        for kind, seen in kinds.items():
            command = [sys.executable, __file__, f"--child={kind}", f"--models={name}", f"--samples={FLAGS.samples}"]
            command += [f"--batch_size={FLAGS.batch_size}"]
            seen.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]))
            progress(f"{name}, {kind}: {seen[-1]:.1f} MB")
    return [statistics.median(seen) for seen in kinds.values()]


def main(_):
    """Run it."""
    if FLAGS.child:
        callbacks = [] if FLAGS.child == "plain" else [tfprune.SoftPruning(FLAGS.child, ratio=0.5)]
        fit(compiled(FLAGS.models[0]), callbacks, 2)
        print(resident("VmHWM") / MB)
        return
    rows = []
    for name in FLAGS.models:
        for criterion in FLAGS.criteria:
            plain, soft, inside = times(name, criterion)
            share = inside / (plain / FLAGS.samples * 50_000)
            row = [name, criterion, plain, soft, f"{soft / plain - 1:+.1%}", inside, f"{share:.2%}"]
            if FLAGS.memory:
                before, after = memory(name, criterion)
                row += [f"{before:.0f}", f"{after:.0f}", f"{after / before - 1:+.2%}"]
            rows.append(row)
    header = ["model", "criterion", "plain s", "soft s", "more", "inside s", "of 50,000"]
    header += ["plain MB", "soft MB", "more"] if FLAGS.memory else []
    print(table(f"{keras.backend.backend()}: an epoch of {FLAGS.samples:,} images", header, rows))


if __name__ == "__main__":
    app.run(main)
