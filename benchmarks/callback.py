"""What the SoftPruning callback costs inside `fit`: the seconds spent in it over the seconds of the epoch.

    python benchmarks/callback.py --samples=10000 --epochs=3

The time is taken inside one run, around the callback's own methods, so that a noisy machine slows both alike.
"""

import os
import pathlib
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "examples"))

import keras
import numpy as np
from absl import app, flags
from models.mobilenet_v2_se import mobilenet_v2_se

import tfprune
from tfprune.tables import table

FLAGS = flags.FLAGS
flags.DEFINE_integer("samples", 10000, "Random 32x32 images an epoch; CIFAR-10 has 50,000.", lower_bound=64)
flags.DEFINE_integer("epochs", 3, "Epochs; the first, which compiles, is not counted.", lower_bound=2)
flags.DEFINE_integer("batch_size", 64, "Images a step.", lower_bound=1)


class Timed(tfprune.SoftPruning):
    """Adds up the seconds that its own methods take."""

    seconds = 0.0

    def __getattribute__(self, name):
        value = super().__getattribute__(name)
        if not name.startswith("on_") or not callable(value):
            return value

        def timed(*args, **kwargs):
            start = time.perf_counter()
            try:
                return value(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


def main(_):
    """Run it."""
    generator = np.random.default_rng(0)
    x = generator.random((FLAGS.samples, 32, 32, 3), "float32")
    y = generator.integers(0, 10, FLAGS.samples)
    rows = []
    for mode in ("soft", "hard"):
        keras.utils.set_random_seed(0)
        model = mobilenet_v2_se()
        model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
        callback = Timed("redundancy", thresholds=0.55, mode=mode)
        marks = []
        watch = keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, logs: marks.append((time.perf_counter(), callback.seconds))  # noqa: B023
        )
        model.fit(x, y, FLAGS.batch_size, FLAGS.epochs + 1, verbose=0, callbacks=[watch, callback])
        epochs = np.diff([mark for mark, _ in marks])[1:]
        inside = np.diff([seconds for _, seconds in marks])[1:]
        rows.append((mode, float(np.median(epochs)), float(np.median(inside)), f"{np.median(inside / epochs):.2%}"))
    print(table(f"{FLAGS.samples:,} images an epoch", ("mode", "epoch s", "callback s", "share"), rows))


if __name__ == "__main__":
    app.run(main)
