"""The same tests on Keras' other backends: one process each, in which tests/test_loops.py runs again."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

LOOPS = Path(__file__).parent / "test_loops.py"


@pytest.mark.parametrize("backend", sorted({"jax", "tensorflow", "torch"} - {keras.backend.backend()}))
def test_loops_on_another_backend(backend):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed; docs/loops.md says how this is run")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n0", "-p", "no:cacheprovider", str(LOOPS)]
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, env=environment, cwd=LOOPS.parent.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
