"""Exported files run in a process without tfprune, as on the device.

A process is started for each runtime when it is first needed, and kept for the next file: TensorFlow takes seconds to
import. It ends with this one, whose end of the pipe then closes.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from tfprune.errors import ExportError

WORKER = Path(__file__).with_name("worker.py")
#: What a device does not have. Only the .keras format's has Keras.
ABSENT = ("tfprune",)


@dataclass(frozen=True)
class Measured:
    """What a file gave in its own runtime.

    Attributes:
        outputs: arrays, in the order of the names asked for.
        load_seconds: what loading took, the runtime's own import aside.
        latency_ms: the median of a run in milliseconds, or None if it was not timed.
        memory: bytes by which the process' largest memory rose, from before loading; 0 where the system does not say.
        where: `process` if it ran in a process without tfprune, `here` if in this one.
    """

    outputs: list[np.ndarray]
    load_seconds: float
    latency_ms: float | None = None
    where: str = "here"
    memory: int = 0


class Process:
    """A worker; `ask` it one thing after the other."""

    def __init__(self, absent: Sequence[str] = ABSENT) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the process)
        self._popen = subprocess.Popen(
            [sys.executable, str(WORKER), json.dumps(list(absent))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env={"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ, **_keras_backend()},
        )

    @property
    def alive(self) -> bool:
        """Whether it can still be asked."""
        return self._popen.poll() is None

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send one request and wait for its answer.

        Raises:
            ExportError: the runtime raised an error, or took the process down.
        """
        assert self._popen.stdin is not None and self._popen.stdout is not None
        try:
            self._popen.stdin.write(json.dumps(request) + "\n")
            self._popen.stdin.flush()
            line = self._popen.stdout.readline()
        except OSError:
            line = ""
        if not line:
            status = self._popen.wait()
            how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
            raise ExportError(f"the runtime's process {how}: {self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise ExportError(answer["error"])
        return answer

    def close(self) -> None:
        """Let it end."""
        assert self._popen.stdin is not None and self._popen.stdout is not None
        self._popen.stdin.close()
        self._popen.wait()
        self._popen.stdout.close()
        self._said.close()

    def _last_words(self) -> str:
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


def _keras_backend() -> dict[str, str]:
    keras = sys.modules.get("keras")
    return {} if keras is None else {"KERAS_BACKEND": keras.backend.backend()}


_running: dict[str, Process] = {}


def prepare(device: ModuleType) -> Process:
    """The process for a device module, started if there is none; it may begin to import while others work."""
    name = getattr(device, "HOST", device.__name__)
    process = _running.get(name)
    if process is None or not process.alive:
        process = _running[name] = Process()
    return process


def call_in(process: Process, module: ModuleType, function: str, **arguments: Any) -> Any:
    """Call a function of a module that does not need tfprune in a process, where a crash takes nobody else down.

    Args:
        process: where.
        module: by its file.
        function: its name.
        arguments: what JSON can hold.

    Raises:
        ExportError: it raised an error, or ended the process.
    """
    request = {"device": str(module.__file__), "call": function, "arguments": arguments}
    return process.ask(request)["result"]


def can_run(arrays: Sequence[np.ndarray]) -> bool:
    """Whether arrays can go over to a process: numpy's own types can, and there must be an interpreter to start."""
    return bool(sys.executable) and all(np.asarray(array).dtype.kind in "biufc" for array in arrays)


def run_in(
    process: Process,
    device: ModuleType,
    path: str | os.PathLike,
    names: tuple[Sequence[str], Sequence[str]],
    arrays: Sequence[np.ndarray],
    seconds: float = 0.0,
    one: bool = False,
    threads: int | None = None,
) -> Measured:
    """Load a file in a process and run it.

    Args:
        process: where.
        device: the module whose `load` reads the file.
        path: the file or directory.
        names: of the inputs, and of the outputs.
        arrays: in the order of the inputs.
        seconds: how long to time runs; 0 for not at all.
        one: time the first sample only.
        threads: how many threads one operator may use.

    Raises:
        ExportError: the runtime cannot load or run it.
    """
    with tempfile.TemporaryDirectory(prefix="tfprune-") as folder:
        data, result = Path(folder, "inputs.npz"), Path(folder, "outputs.npz")
        np.savez(data, *arrays)
        request = {
            "device": str(device.__file__),
            "path": str(Path(path).resolve()),
            "inputs": list(names[0]),
            "outputs": list(names[1]),
            "data": str(data),
            "result": str(result),
            "seconds": seconds,
            "one": one,
            "threads": threads,
        }
        answer = process.ask(request)
        with np.load(result) as file:
            outputs = [file[f"arr_{index}"] for index in range(len(file.files))]
    taken = answer.get("latencies")
    median = 1e3 * statistics.median(taken) if taken else None
    return Measured(outputs, answer["load_seconds"], median, "process", answer["memory"])


def run_in_turns(
    process: Process,
    device: ModuleType,
    files: Sequence[tuple[str | os.PathLike, Sequence[str], Sequence[str], Sequence[np.ndarray]]],
    turns: int,
    warm: int = 3,
    threads: int | None = None,
    processors: bool = False,
) -> np.ndarray:
    """Time several files in one process, in turns, so that what else the machine does falls on all alike.

    Args:
        process: where.
        device: the module whose `load` reads the files.
        files: path, names of the inputs, names of the outputs, and input arrays of each.
        turns: how often each is run and timed.
        warm: how often before that.
        threads: how many threads one operator may use.
        processors: count the processors' time instead of the clock's; with one thread that is what a run takes on a
            machine that does nothing else.

    Returns:
        Seconds, shape (files, turns).

    Raises:
        ExportError: the runtime cannot load or run one.
    """
    with tempfile.TemporaryDirectory(prefix="tfprune-") as folder:
        asked = []
        for number, (path, inputs, outputs, arrays) in enumerate(files):
            data = Path(folder, f"{number}.npz")
            np.savez(data, *arrays)
            names = {"inputs": list(inputs), "outputs": list(outputs)}
            asked.append({"path": str(Path(path).resolve()), "data": str(data), **names})
        request = {"device": str(device.__file__), "files": asked, "turns": turns, "warm": warm, "threads": threads}
        request["processors"] = processors
        return np.array(process.ask(request)["latencies"])
