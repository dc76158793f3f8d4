"""Run by test_distribution.py, in one process or as one of two: soft pruning under `keras.distribution` on JAX.

Arguments: tasks, a folder, and of two processes the port where they meet and the number of this one.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import jax
import keras
import numpy as np
from test_loops import assert_stripped, data, momentum, network

import tfprune
from tfprune.errors import ProcessError
from tfprune.keras_graph.arrays import numbers

TASKS, FOLDER = sys.argv[1].split(","), Path(sys.argv[2])
PORT, NUMBER = map(int, sys.argv[3:] or (0, 0))
PROCESSES = 2 if PORT else 1


def distributions():
    """By name: every weight on every device, and kernels spread over them."""
    devices = keras.distribution.list_devices()
    parallel = keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False)
    mesh = keras.distribution.DeviceMesh((1, len(devices)), ("batch", "model"), devices)
    layout = keras.distribution.LayoutMap(mesh)
    layout["first/kernel"] = (None, None, None, "model")
    layout["second/kernel"] = (None, None, "model", None)
    layout["head/kernel"] = ("model", None)
    spread = keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch", auto_shard_dataset=False)
    found = {"data": parallel, "model": spread}
    if PROCESSES == 1:
        found["one"] = keras.distribution.DataParallel(devices=devices[:1])
    return found


def own_part(arrays, distribution):
    """What this process feeds: its part of every batch of 8 where the batch is spread, else all of it."""
    if PROCESSES == 1 or "model" in distribution.device_mesh.axis_names:
        return arrays
    return tuple(np.concatenate([a[i + 4 * NUMBER : i + 4 * NUMBER + 4] for i in range(0, len(a), 8)]) for a in arrays)


def train(distribution, mode, criterion, ratio=0.5, callbacks=()):
    """A trained model, the callback."""
    keras.distribution.set_distribution(distribution)
    model = network()
    model.compile(momentum(), "mse")
    sample = data() if criterion == "taylor" else None
    csv = FOLDER / f"{NUMBER}.csv"
    pruning = tfprune.SoftPruning(criterion, ratio=ratio, mode=mode, begin=1, slots="reset", data=sample, csv=csv)
    x, y = own_part(data(), distribution)
    size = 8 * len(x) // 32
    model.fit(x, y, epochs=2, batch_size=size, verbose=0, shuffle=False, callbacks=[pruning, *callbacks])
    return model, pruning


WAYS = {"data": [("hard", "l2")], "model": [("soft", "taylor")], "one": [("hard", "l2"), ("soft", "taylor")]}


def everything():
    """What is to be the same anywhere: plans, weights, and what is left of them."""
    found = {}
    for name, distribution in distributions().items():
        for mode, criterion in WAYS[name]:
            model, pruning = train(distribution, mode, criterion)
            kernel = model.get_layer("first").kernel.value
            assert kernel.is_fully_replicated == (name != "model")
            assert kernel.is_fully_addressable == (PROCESSES == 1)
            key = f"{name} {mode} {criterion}"
            keras.distribution.set_distribution(None)  # what is left is a plain model of each process
            stripped = assert_stripped(model)
            if NUMBER == 0:
                stripped.save(FOLDER / "stripped.keras")
                keras.saving.load_model(FOLDER / "stripped.keras")
            arrays = {"plan": pruning.plan.gone, **named("weight", model), **named("stripped", stripped)}
            found.update({f"{key} {what}": array for what, array in arrays.items()})
            print(key, "ok", flush=True)
    np.savez(FOLDER / f"of{NUMBER}.npz", **found)


def named(prefix, model):
    return {f"{prefix}{number}": numbers(variable) for number, variable in enumerate(model.weights)}


def disagree():
    """Processes that were told to prune differently find out, all of them."""
    distribution = distributions()["data"]
    try:
        train(distribution, "soft", "l2", ratio=0.5 if NUMBER == 0 else 0.25)
    except ProcessError as error:
        print("ProcessError:", error, flush=True)


def die():
    """Process 1 is killed in the middle of training."""

    class Killed(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if NUMBER == 1 and batch == 2:
                os.kill(os.getpid(), signal.SIGKILL)

    train(distributions()["data"], "soft", "l2", callbacks=[Killed()])


if __name__ == "__main__":
    if PORT:  # seconds; keras.distribution.initialize does the same with JAX's own, which are longer
        patience = {"heartbeat_timeout_seconds": 20, "shutdown_timeout_seconds": 20}
        jax.distributed.initialize(f"localhost:{PORT}", PROCESSES, NUMBER, **patience)
    for task in TASKS:
        globals()[task]()
