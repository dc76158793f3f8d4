"""The training loop of Tensorflow_Model_Pruning on CIFAR-10: a threshold ladder with retries, then strip and export.

A MobileNetV2 with squeeze-and-excitation is trained, then for each threshold of a falling ladder its redundant filters
are zeroed and it is trained on. The first training after zeroing keeps the optimizer's momentum, which brings filters
back; while more than `max_failure_rate` of them came back, the same ones are zeroed again, now with their momentum.

    python examples/cifar10.py --dataset=cifar10.npz --output_dir=runs/cifar10
    python examples/pictures.py --run=runs/cifar10

Writes to `output_dir`: the seed's directories (`TH0.8/`, `TH0.8_Repruned1/`, ...), `before.keras`, `soft_pruned.keras`,
`before/` and `stripped/` with the exports, `failure_rates.csv` (an entry an epoch) and `results.json`.
"""

import os
import pathlib
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from absl import app, flags, logging
from augment import Augmented
from models.mobilenet_v2_se import SCOPES, mobilenet_v2_se

import tfprune
from tfprune import data
from tfprune.monitor import ConvergenceMonitor
from tfprune.report.stages import RunReport, measure

FLAGS = flags.FLAGS
flags.DEFINE_string("dataset", "cifar10", "cifar10, which Keras downloads, or the path of an .npz file.")
flags.DEFINE_string("output_dir", "runs/cifar10", "Where everything goes.")
flags.DEFINE_integer("train_samples", None, "Use only the first so many training images.", lower_bound=1)
flags.DEFINE_integer("test_samples", None, "Use only the first so many test images.", lower_bound=1)
flags.DEFINE_integer("epochs", 30, "Epochs of training before pruning.", lower_bound=0)
flags.DEFINE_integer("retrain_epochs", 3, "Epochs of training after each zeroing.", lower_bound=1)
flags.DEFINE_list("thresholds", ["0.8", "0.7", "0.6", "0.55", "0.5"], "The ladder, fractions in [0, 1].")
flags.DEFINE_float("max_failure_rate", 0.1, "Go on when at most this fraction came back.", 0, 1)
flags.DEFINE_integer("max_retries", 3, "How often the same filters are zeroed again.", lower_bound=0)
flags.DEFINE_integer("batch_size", 64, "Images a step.", lower_bound=1)
flags.DEFINE_float("learning_rate", 2e-3, "Of Adam before pruning; a quarter of it after.", 0)
flags.DEFINE_float("width", 0.5, "Of the model: multiplies the channels of every layer.", 0)
flags.DEFINE_integer("seed", 0, "Of initial weights and the order of images.")


class EveryEpoch(keras.callbacks.Callback):
    """Notes the failure rate after every epoch."""

    def __init__(self, monitor, pruning):
        super().__init__()
        self.monitor, self.pruning = monitor, pruning

    def on_epoch_end(self, epoch, logs=None):
        """Measure what came back so far."""
        count = len(self.monitor.history)
        self.monitor.measure(self.model, self.pruning.plan, epoch=count, threshold=self.pruning.threshold)


def main(_):
    """Run it."""
    logging.set_verbosity(logging.ERROR)
    keras.utils.set_random_seed(FLAGS.seed)
    output = pathlib.Path(FLAGS.output_dir)
    images = data.load(FLAGS.dataset).head(FLAGS.train_samples, FLAGS.test_samples)
    print(images)
    start = time.time()

    model = mobilenet_v2_se(images.shape, images.classes, FLAGS.width)
    steps = max(1, FLAGS.epochs * len(images.x_train) // FLAGS.batch_size)
    rate = keras.optimizers.schedules.CosineDecay(FLAGS.learning_rate, steps, alpha=0.25)
    optimizer, loss = keras.optimizers.Adam(rate), "sparse_categorical_crossentropy"
    # Without jit: on a CPU, XLA compiles for longer than these epochs take.
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)
    batches = Augmented(images.x_train, images.y_train, FLAGS.batch_size, FLAGS.seed)
    model.fit(batches, epochs=FLAGS.epochs, verbose=2)
    report = tfprune.export(model, output / "before", formats=("onnx",), name="before")
    before = measure("before", model, images.x_test, images.y_test, report["onnx"].path)
    checkpoint = output / "before.keras"
    model.save(checkpoint)
    print(f"accuracy before pruning: {before.accuracy:.2%}")

    pruning = tfprune.Pruning(input_ckpt_path=checkpoint, scope_names=SCOPES, output_dir=output)
    monitor = ConvergenceMonitor(FLAGS.max_failure_rate)
    for threshold in map(float, FLAGS.thresholds):
        pruning.set_threshold(threshold)
        for attempt in range(FLAGS.max_retries + 1):
            name = f"TH{threshold:g}" + (f"_Repruned{attempt}" if attempt else "")
            directory = pruning.set_output_dir(output / name)
            pruning.slots = "reset" if attempt else "keep"
            to_retrain = pruning.pruning_process(retrain=attempt > 0)

            # Your own training: from the checkpoint, to a checkpoint in `directory`.
            model = keras.saving.load_model(to_retrain)
            model.fit(batches, epochs=FLAGS.retrain_epochs, verbose=2, callbacks=[EveryEpoch(monitor, pruning)])
            model.save(directory / "model.keras")

            pruning.get_retrained_ckpt(directory)
            failed_rate = pruning.get_pruning_summary()
            print(f"{name}: {pruning.plan.pruned} channels zeroed, {failed_rate:.1%} came back")
            if failed_rate <= FLAGS.max_failure_rate:
                break
    pruning.set_output_dir(output)
    monitor.to_csv(output / "failure_rates.csv")

    result = pruning.strip()  # what came back of the last plan is zeroed in pruning.model first
    print(result)
    pruning.model.save(output / "soft_pruned.keras")
    soft = measure("soft-pruned", pruning.model, images.x_test, images.y_test)
    exported = pruning.export(output / "stripped")
    print(exported)
    stripped = measure("stripped", result.model, images.x_test, images.y_test, exported["onnx"].path)
    settings = {flag.name: flag.value for flag in FLAGS.get_key_flags_for_module(sys.argv[0])}
    settings["minutes"] = round((time.time() - start) / 60, 1)
    run = RunReport(f"{pruning.model.name} on {images}", (before, soft, stripped), settings)
    run.to_json(output / "results.json")
    print(run)


if __name__ == "__main__":
    app.run(main)
