"""The whole road in a minute or two, offline: the handwritten digits that scikit-learn carries.

    python examples/digits.py

Trains a small network with residual, inverted residual and squeeze-and-excitation blocks, soft-prunes it over a ladder
of thresholds, strips it, exports it, and ends with a table and a picture, in `runs/digits`.
"""

import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from absl import app, flags, logging
from models.small import small

import tfprune
from tfprune import data
from tfprune.report import pictures
from tfprune.report.stages import RunReport, measure

FLAGS = flags.FLAGS
flags.DEFINE_string("output_dir", "runs/digits", "Where everything goes.")
flags.DEFINE_integer("epochs", 15, "Epochs of training before pruning.", lower_bound=1)
flags.DEFINE_integer("retrain_epochs", 4, "Epochs of training after each zeroing.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Of initial weights and the order of images.")


def main(_):
    """Run it."""
    logging.set_verbosity(logging.ERROR)
    keras.utils.set_random_seed(FLAGS.seed)
    start = time.time()
    output = pathlib.Path(FLAGS.output_dir)
    digits = data.load("digits")
    print(digits)

    model = small(digits.shape, digits.classes)
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(digits.x_train, digits.y_train, 32, FLAGS.epochs, verbose=2)
    exported = tfprune.export(model, output / "before", formats=("keras", "onnx"), name="model")
    before = measure("before", model, digits.x_test, digits.y_test, exported["onnx"].path)

    def train(model, directory):
        model.fit(digits.x_train, digits.y_train, 32, FLAGS.retrain_epochs, verbose=0)

    model.optimizer.learning_rate = 1e-3
    pruning = tfprune.Pruning(model, output_dir=output)
    pruning.run(train, thresholds=[0.8, 0.7, 0.6, 0.55, 0.5], max_failure_rate=0.1, max_retries=2)
    result = pruning.strip()
    soft = measure("soft-pruned", pruning.model, digits.x_test, digits.y_test)
    exported = pruning.export(output / "stripped")
    stripped = measure("stripped", result.model, digits.x_test, digits.y_test, exported["onnx"].path)

    print(result)
    print(exported)
    picture = pictures.widths(pruning.model, result.model, output / "widths.png")
    minutes = round((time.time() - start) / 60, 1)
    report = RunReport("small network on digits", (before, soft, stripped), {"minutes": minutes}, [str(picture)])
    report.to_json(output / "results.json")
    print(f"\n{report}\n\n{minutes} minutes; picture: {picture}")


if __name__ == "__main__":
    app.run(main)
