"""Training and pruning on one device, on two devices of one process, and in two processes, through keras.distribution.

    python benchmarks/distributed.py --epochs=4 --json=distributed.json

Every device gets a core of its own and the same number of images, so that two devices train on twice as many a step. On
JAX; processes meet on this machine. Step times are medians over epochs; the first, which compiles, is not counted.
"""

import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import time

from absl import app, flags

HERE = pathlib.Path(__file__).parent
FLAGS = flags.FLAGS
flags.DEFINE_integer("epochs", 4, "Epochs that are counted.", lower_bound=1)
flags.DEFINE_integer("steps", 8, "Steps an epoch.", lower_bound=1)
flags.DEFINE_integer("batch_size", 32, "Images a device and step.", lower_bound=1)
flags.DEFINE_string("json", None, "A file for the numbers.")
flags.DEFINE_list("child", None, "For the benchmark's own use: devices, processes, number, port.")

SETTINGS = {"1 process, 1 device": (1, 1), "1 process, 2 devices": (2, 1), "2 processes, 1 device each": (1, 2)}


def main(_):
    """Run every setting in processes of its own, and print a table."""
    if FLAGS.child:
        print("RESULT", json.dumps(child(*map(int, FLAGS.child))))
        return
    sys.path.insert(0, str(HERE.parent))
    from tfprune.tables import table

    found = {name: measured(*setting) for name, setting in SETTINGS.items()}
    alone = found["1 process, 1 device"]["step"]
    rows = [
        (
            name,
            f"{1000 * result['step']:.0f}",
            f"{alone / result['step']:.0%}",
            *(f"{1000 * result[part]:.1f}" for part in ("choose", "zero", "agree")),
        )
        for name, result in found.items()
    ]
    header = ("", "step ms", "efficiency", "choose ms", "zero ms", "agree ms")
    print(table(f"ResNet-20, {FLAGS.batch_size} images a device", header, rows))
    if FLAGS.json:
        pathlib.Path(FLAGS.json).write_text(json.dumps(found, indent=1) + "\n")


def measured(devices, processes):
    """What process 0 measured."""
    with socket.socket() as one:
        one.bind(("localhost", 0))
        port = one.getsockname()[1]
    environment = {**os.environ, "KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    paths = (HERE.parent, HERE.parent / "examples", os.environ.get("PYTHONPATH", ""))
    environment["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    options = [f"--{name}={FLAGS[name].value}" for name in ("epochs", "steps", "batch_size")]
    running = [
        subprocess.Popen(
            [sys.executable, __file__, *options, f"--child={devices},{processes},{number},{port}"],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]
    printed = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit("\n".join(printed))
    return json.loads(printed[0].partition("RESULT")[2])


def child(devices, processes, number, port):
    """Train in this process."""
    cores = sorted(os.sched_getaffinity(0))
    own = cores[number * devices : number * devices + devices] or cores
    os.sched_setaffinity(0, own)
    import jax

    if processes > 1:
        jax.distributed.initialize(f"localhost:{port}", processes, number)
    import keras
    import numpy as np
    from models.resnet import resnet20

    import tfprune
    from tfprune import soft_pruning

    seconds = {"choose": [], "zero": [], "agree": []}

    def timed(name, act):
        def run(*args, **kwargs):
            start = time.perf_counter()
            result = act(*args, **kwargs)
            seconds[name].append(time.perf_counter() - start)
            return result

        return run

    def zeroed(zeroing, apply=soft_pruning.Zeroing.apply):
        apply(zeroing)
        jax.block_until_ready([variable.value for variable, _, _ in zeroing.masks])

    soft_pruning.select = timed("choose", soft_pruning.select)
    soft_pruning.agree = timed("agree", soft_pruning.agree)
    soft_pruning.Zeroing.apply = timed("zero", zeroed)

    keras.utils.set_random_seed(0)
    everywhere = keras.distribution.list_devices()
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=everywhere, auto_shard_dataset=False))
    model = resnet20()
    model.compile("sgd", "sparse_categorical_crossentropy")
    marks = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            marks.append(time.perf_counter())

        def on_epoch_end(self, epoch, logs=None):
            jax.block_until_ready([variable.value for variable in model.trainable_variables])
            marks[-1] = (time.perf_counter() - marks[-1]) / FLAGS.steps

    size = FLAGS.batch_size * devices
    generator = np.random.default_rng(number)
    x = generator.random((size * FLAGS.steps, 32, 32, 3), "float32")
    y = generator.integers(0, 10, len(x))
    pruning = tfprune.SoftPruning("l2", ratio=0.5)
    model.fit(x, y, batch_size=size, epochs=FLAGS.epochs + 1, verbose=0, callbacks=[Watch(), pruning])
    gradients = 4 * sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
    later = {name: statistics.median(values[1:]) for name, values in seconds.items()}  # the first compiles
    return {"step": statistics.median(marks[1:]), **later, "cores": len(own), "gradient_bytes": gradients}


if __name__ == "__main__":
    app.run(main)
