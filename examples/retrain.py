"""Prune a trained network and teach what is left: warm-up, knowledge distillation, mixup, as CNN-Pruning-Engine does.

A network for 32x32 images is trained; a fraction of every channel group is removed; what is left learns from the
labels and from the network before pruning.

    python examples/retrain.py --dataset=cifar10.npz --network=vgg16_bn --ratio=0.5
    python examples/retrain.py --dataset=cifar10.npz --teacher=runs/retrain/before.keras --alpha=0      # labels alone
    python examples/retrain.py --dataset=cifar10.npz --max_drop=0.02 --mixup=0.2

With `--max_drop` each group loses as much as it can lose alone without training, by `tfprune.sensitivity` on some
training images. Writes `before.keras`, `pruned.keras`, `plan.json` and `results.json` to `output_dir`.

Sources: Hinton et al., "Distilling the Knowledge in a Neural Network" (arXiv:1503.02531); Goyal et al., "Accurate,
Large Minibatch SGD" (arXiv:1706.02677) for the warm-up; Zhang et al., "mixup" (arXiv:1710.09412).
"""

import dataclasses
import os
import pathlib
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from absl import app, flags, logging
from augment import Augmented
from models.mobilenet_v2 import mobilenet_v2
from models.resnet import resnet20, resnet56
from models.vgg import vgg16_bn

import tfprune
from tfprune import data
from tfprune.distillation import Distiller
from tfprune.files import atomic_path, output_directory, write_text
from tfprune.report.stages import RunReport, measure


@dataclasses.dataclass(frozen=True)
class Network:
    """How to build one, and whether it gives logits instead of probabilities."""

    build: object
    logits: bool = False


NETWORKS = {
    "vgg16_bn": Network(vgg16_bn),
    "mobilenet_v2": Network(mobilenet_v2),
    "resnet20": Network(resnet20, logits=True),
    "resnet56": Network(resnet56, logits=True),
}

FLAGS = flags.FLAGS
flags.DEFINE_string("dataset", "cifar10", "cifar10, which Keras downloads, or the path of an .npz file.")
flags.DEFINE_string("output_dir", "runs/retrain", "Where everything goes.")
flags.DEFINE_integer("train_samples", None, "Use only the first so many training images.", lower_bound=1)
flags.DEFINE_integer("test_samples", None, "Use only the first so many test images.", lower_bound=1)
flags.DEFINE_enum("network", "vgg16_bn", list(NETWORKS), "What is trained and pruned.")
flags.DEFINE_float("width", 1.0, "Of VGG16 and MobileNetV2: multiplies the channels of every layer.", 0)
flags.DEFINE_string("teacher", None, "The .keras file of a trained network, instead of training one.")
flags.DEFINE_integer("epochs", 30, "Epochs of training before pruning.", lower_bound=1)
flags.DEFINE_integer("retrain_epochs", 10, "Epochs of training after it.", lower_bound=1)
flags.DEFINE_string("criterion", "l1", "Which channels go first.")
flags.DEFINE_float("ratio", 0.5, "The fraction of each group's channels that goes.", 0, 0.99)
flags.DEFINE_float("max_drop", None, "Find a ratio for each group instead: this accuracy is what it may cost alone.", 0)
flags.DEFINE_float("temperature", 20.0, "Of the distillation.", 0)
flags.DEFINE_float("alpha", 0.9, "The teacher's share of the loss; 0: the labels alone.", 0, 1)
flags.DEFINE_float(
    "mixup", 0.0, "Mix images and labels after pruning, by shares from Beta(mixup, mixup); 0: do not.", 0
)
flags.DEFINE_float("warmup", 1.0, "Epochs over which the learning rate rises from 0.", 0)
flags.DEFINE_float("learning_rate", 1e-3, "Of Adam, at its highest; it falls to 0 along a cosine.", 0)
flags.DEFINE_integer("batch_size", 64, "Images a step.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Of initial weights and the order of images.")


def train(model, images, epochs, logits, mixup=0.0):
    """Train with a learning rate that rises, then falls."""
    labels = keras.utils.to_categorical(images.y_train, images.classes)  # mixup needs them so
    batches = Augmented(images.x_train, labels, FLAGS.batch_size, FLAGS.seed, mixup)
    rising = int(FLAGS.warmup * len(batches))
    falling = max(1, epochs * len(batches) - rising)
    rate = keras.optimizers.schedules.CosineDecay(0.0, falling, warmup_target=FLAGS.learning_rate, warmup_steps=rising)
    loss = keras.losses.CategoricalCrossentropy(from_logits=logits)
    # Without jit: on a CPU, XLA compiles for longer than these epochs take.
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"], jit_compile=False)
    model.fit(batches, epochs=epochs, verbose=2)


def plan(model, images, logits):
    """The same ratio for every group, or one that each group stands alone."""
    ratio = FLAGS.ratio
    if FLAGS.max_drop is not None:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=logits)
        model.compile(loss=loss, metrics=["accuracy"], jit_compile=False)
        sample = images.x_train[-1000:], images.y_train[-1000:]  # never the test images: they choose
        found = tfprune.sensitivity(model, sample, FLAGS.criterion, batch_size=250)
        print(found)
        ratio = found.ratios(FLAGS.max_drop)
    return tfprune.select(model, FLAGS.criterion, ratio=ratio)


def main(_):
    """Run it."""
    logging.set_verbosity(logging.ERROR)
    keras.utils.set_random_seed(FLAGS.seed)
    output = output_directory(pathlib.Path(FLAGS.output_dir))
    images = data.load(FLAGS.dataset).head(FLAGS.train_samples, FLAGS.test_samples)
    print(images)
    start, network = time.time(), NETWORKS[FLAGS.network]
    if FLAGS.teacher is not None:
        model = keras.saving.load_model(FLAGS.teacher, compile=False)
    else:
        width = {} if FLAGS.network.startswith("resnet") else {"width": FLAGS.width}
        model = network.build(images.shape, images.classes, **width)
        train(model, images, FLAGS.epochs, network.logits)
    images.check_model(model)
    stages = [measure("before", model, images.x_test, images.y_test)]

    pruning = plan(model, images, network.logits)
    print(pruning)
    write_text(output / "plan.json", pruning.to_json())
    pruned = tfprune.strip(model, pruning).model
    stages.append(measure("pruned", pruned, images.x_test, images.y_test))

    student = pruned
    if FLAGS.alpha > 0:
        options = {"temperature": FLAGS.temperature, "alpha": FLAGS.alpha, "from_logits": network.logits}
        student = Distiller(pruned, model, **options)
    train(student, images, FLAGS.retrain_epochs, network.logits, FLAGS.mixup)
    taught = "distilled" if FLAGS.alpha > 0 else "retrained"
    stages.append(measure(taught, pruned, images.x_test, images.y_test))

    for one, name in ((model, "before.keras"), (pruned, "pruned.keras")):
        with atomic_path(output / name) as path:
            one.save(path)
    settings = {flag.name: flag.value for flag in FLAGS.get_key_flags_for_module(sys.argv[0])}
    settings["minutes"] = round((time.time() - start) / 60, 1)
    report = RunReport(f"{model.name} on {images}", tuple(stages), settings)
    report.to_json(output / "results.json")
    print(report)


if __name__ == "__main__":
    app.run(main)
