"""What half of the channels cost when they are cut without retraining, after training with and without a penalty.

    python examples/sparse_training.py --epochs=30

The small network of `examples/models/small.py` learns the handwritten digits of scikit-learn (offline), each time from
the same weights; then half of each width goes by L2 norm, after slimming by BatchNormalization scale, and after growing
regularization by the plan that was pulled.
"""

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(pathlib.Path(__file__).parent))

import keras
from absl import app, flags
from models.small import small

import tfprune
from tfprune import data
from tfprune.sparse import GroupLasso, GrowingRegularization, Slimming
from tfprune.tables import table

FLAGS = flags.FLAGS
flags.DEFINE_integer("epochs", 30, "Epochs of each training.", lower_bound=1)
flags.DEFINE_float("ratio", 0.5, "Which part of each width goes.", lower_bound=0, upper_bound=1)

TRAININGS = {
    "without": lambda: None,
    "Slimming(0.03, shifts=True)": lambda: Slimming(0.03, shifts=True),
    "GroupLasso(0.001)": lambda: GroupLasso(0.001),
    "GroupLasso(0.003, power=2)": lambda: GroupLasso(0.003, power=2),
    "GrowingRegularization": lambda: GrowingRegularization(ratio=FLAGS.ratio, step=0.1, ceiling=2.0),
}


def main(_):
    """Train, cut, and compare."""
    digits = data.load("digits")
    rows = []
    for title, make in TRAININGS.items():
        keras.utils.set_random_seed(0)
        model, penalty = small(), make()
        steps = FLAGS.epochs * -(-len(digits.x_train) // 64)
        rate = keras.optimizers.schedules.CosineDecay(0.05, steps)
        model.compile(keras.optimizers.SGD(rate, momentum=0.9), "sparse_categorical_crossentropy", metrics=["accuracy"])
        callbacks = [penalty] if penalty else []
        model.fit(digits.x_train, digits.y_train, 64, FLAGS.epochs, verbose=0, callbacks=callbacks)
        criterion = "bn_scale" if isinstance(penalty, Slimming) else "l2"
        plan = getattr(penalty, "plan", None) or tfprune.select(model, criterion, ratio=FLAGS.ratio)
        result = tfprune.strip(model, plan)
        rows.append((title, accuracy(model, digits), accuracy(result.model, digits), result.moved.relative))
    header = ("training", "accuracy", "after the cut", "outputs moved")
    print(table(f"{digits.name}: {FLAGS.ratio:.0%} of each width cut, no retraining", header, rows))


def accuracy(model, digits):
    """The fraction of the test set that is right."""
    answers = model.predict(digits.x_test, verbose=0).argmax(axis=-1)
    return f"{(answers == digits.y_test).mean():.2%}"


if __name__ == "__main__":
    app.run(main)
