"""The pruning of cnn-pruning: a network of three convolutions on Fashion-MNIST, by first-order Taylor expansion.

Trains 10 epochs, scores every filter by the mean of |activation x gradient| over one pass through the training images
(divided by the layer's L2 norm), removes 1 of 2, 2 of 4 and 5 of 8 filters, and trains 10 epochs more: 63,122
parameters become 23,617.

    python examples/fashion_mnist.py
    python examples/fashion_mnist.py --dataset=fashion_mnist.npz --output_dir=runs/fashion_mnist
    python examples/fashion_mnist.py --dataset=digits                 # offline: scikit-learn's digits, at 28x28 pixels
    python examples/fashion_mnist.py --globally=8                     # the 8 lowest scores, whichever layer has them

Writes `model_summary.txt`, `pruned_model_summary.txt`, `model.keras`, `model_pruned.keras` and `results.json` to
`output_dir`.

Source: Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference" (arXiv:1611.06440).
"""

import dataclasses
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from absl import app, flags, logging
from models.cnn28 import cnn28

import tfprune
from tfprune import data
from tfprune.criteria import Taylor
from tfprune.files import atomic_path, output_directory, write_text
from tfprune.report.stages import RunReport, measure

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "dataset", "fashion_mnist", "fashion_mnist or mnist (downloaded), digits, or the path of an .npz file."
)
flags.DEFINE_string("output_dir", "runs/fashion_mnist", "Where everything goes.")
flags.DEFINE_integer("train_samples", None, "Use only the first so many training images.", lower_bound=1)
flags.DEFINE_integer("test_samples", None, "Use only the first so many test images.", lower_bound=1)
flags.DEFINE_integer("epochs", 10, "Epochs of training before pruning, and again after it.", lower_bound=1)
flags.DEFINE_integer("batch_size", 64, "Images a step.", lower_bound=1)
flags.DEFINE_float("learning_rate", 1e-3, "Of Adam.", 0)
flags.DEFINE_list("remove", ["1", "2", "5"], "How many filters of conv1, conv2 and conv3 go.")
flags.DEFINE_integer("globally", None, "Remove the so many filters with the lowest scores instead.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Of initial weights and the order of images.")


class Normalised(Taylor):
    """Taylor scores that are compared between layers as they are: each layer's are divided by their L2 norm."""

    absolute = True


def plan(model, images, remove=(1, 2, 5), globally=None):
    """Which filters go: so many of each convolution, or the so many lowest of all."""
    sample = (images.x_train, images.y_train)
    if globally is not None:
        return tfprune.select(model, Normalised(), count=globally, scope="global", data=sample)
    count = {f"conv{number}": int(amount) for number, amount in enumerate(remove, start=1)}
    return tfprune.select(model, "taylor", count=count, data=sample)


def at_28_pixels(images):
    """The same images, 28x28."""
    if images.shape[:2] == (28, 28):
        return images
    large = {
        name: keras.ops.convert_to_numpy(keras.ops.image.resize(getattr(images, name), (28, 28)))
        for name in ("x_train", "x_test")
    }
    return dataclasses.replace(images, name=f"{images.name} at 28x28", **large)


def summary(model, path):
    """Print Keras' summary and write it."""
    lines = []
    model.summary(print_fn=lines.append)
    print(*lines, sep="\n")
    write_text(path, "\n".join(lines) + "\n")


def train(model, images, *callbacks):
    """Train it; the test images are looked at after every epoch."""
    model.fit(
        images.x_train,
        images.y_train,
        FLAGS.batch_size,
        FLAGS.epochs,
        verbose=2,
        validation_data=(images.x_test, images.y_test),
        callbacks=list(callbacks),
    )


def main(_):
    """Run it."""
    logging.set_verbosity(logging.ERROR)
    keras.utils.set_random_seed(FLAGS.seed)
    output = output_directory(pathlib.Path(FLAGS.output_dir))
    images = at_28_pixels(data.load(FLAGS.dataset).head(FLAGS.train_samples, FLAGS.test_samples))
    print(images)

    model = cnn28(images.shape, images.classes)
    # Without jit: on a CPU, XLA compiles for longer than these epochs take.
    settings = {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"], "jit_compile": False}
    model.compile(keras.optimizers.Adam(FLAGS.learning_rate), **settings)
    summary(model, output / "model_summary.txt")
    train(model, images)
    stages = [measure("before", model, images.x_test, images.y_test)]

    pruning = plan(model, images, FLAGS.remove, FLAGS.globally)
    print(pruning)
    pruned = tfprune.strip(model, pruning).model
    summary(pruned, output / "pruned_model_summary.txt")
    stages.append(measure("pruned", pruned, images.x_test, images.y_test))
    pruned.compile(keras.optimizers.Adam(FLAGS.learning_rate), **settings)
    train(pruned, images)
    stages.append(measure("fine-tuned", pruned, images.x_test, images.y_test))

    for network, name in ((model, "model.keras"), (pruned, "model_pruned.keras")):
        with atomic_path(output / name) as path:
            network.save(path)
    used = {flag.name: flag.value for flag in FLAGS.get_key_flags_for_module(sys.argv[0])}
    report = RunReport(f"{model.name} on {images}", tuple(stages), used)
    report.to_json(output / "results.json")
    print(report)


if __name__ == "__main__":
    app.run(main)
