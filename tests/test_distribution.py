"""Soft pruning on several devices and in several processes, each in processes of their own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

TESTS = Path(__file__).parent
PATIENCE = 600  # seconds


def started(script, *arguments, **environment):
    path = os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, str(TESTS / script), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(processes):
    """What they printed; none is left behind."""
    try:
        return [process.communicate(timeout=PATIENCE)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()


def free_port():
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def test_mirrored_strategy():
    """Two replicas of TensorFlow train and prune as one device does."""
    process = started("mirrored.py", KERAS_BACKEND="tensorflow")
    (printed,) = finished([process])
    assert process.returncode == 0, printed[-5000:]
    assert printed.count(" ok") == 2


@pytest.fixture(scope="module")
def jax_runs(tmp_path_factory):
    """Two processes that train together, and one alone with four devices: (exit codes, what they printed, folder)."""
    pytest.importorskip("jax")
    folder, port = tmp_path_factory.mktemp("several"), free_port()
    alone = tmp_path_factory.mktemp("alone")
    tasks = "everything,disagree,die"
    processes = [started("several.py", tasks, folder, port, number, KERAS_BACKEND="jax") for number in (0, 1)]
    devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "KERAS_BACKEND": "jax"}
    processes.append(started("several.py", "everything", alone, **devices))
    printed = finished(processes)
    return [process.returncode for process in processes], printed, folder, alone


def test_one_process_several_or_many_devices_train_and_prune_alike(jax_runs):
    codes, printed, folder, alone = jax_runs
    assert codes[2] == 0, printed[2][-5000:]
    assert (folder / "of1.npz").exists(), printed[1][-5000:]
    reference, first, second = (np.load(path) for path in (alone / "of0.npz", folder / "of0.npz", folder / "of1.npz"))
    ways = {name.partition(" ")[0] for name in reference}
    assert ways == {"one", "data", "model"} and set(first) == set(second)
    for several in (first, second, reference):
        for name in several:
            what = name.partition(" ")[2]
            expected = reference[f"one {what}"]
            if what.endswith("plan"):
                np.testing.assert_array_equal(several[name], expected)
                assert expected.any()
            else:
                np.testing.assert_allclose(several[name], expected, rtol=1e-4, atol=1e-6, err_msg=name)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    assert {path.name for path in folder.glob("*.csv")} == {"0.csv"}, "process 0 writes the files"


def test_processes_that_were_told_differently_all_stop(jax_runs):
    _, printed, _, _ = jax_runs
    for text in printed[:2]:
        assert "ProcessError: the channels chosen at 1 differ between process 0 and 1 of 2" in text


def test_a_process_that_dies_stops_the_others_with_an_error(jax_runs):
    codes, printed, _, _ = jax_runs
    assert codes[1] == -9 and codes[0] not in (0, -9)
    assert "most likely another one has died" in printed[0] or "another task died" in printed[0], printed[0][-5000:]
