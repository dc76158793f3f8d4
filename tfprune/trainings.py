"""The trainings of a `Pruning.run` that are done, in `run.json` beside what they have written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from tfprune.errors import CheckpointError
from tfprune.files import write_json
from tfprune.monitor import ConvergenceMonitor, FailureReport
from tfprune.runs.checkpoints import checksum
from tfprune.runs.randomness import layer_seeds, set_layer_seeds
from tfprune.runs.settings import differences

_FILE, _VERSION = "run.json", 1


class Trainings:
    """What is done of a ladder; a run that was killed goes on behind it.

    Args:
        home: the run's directory.
        started: what it was started with, as JSON.
        log: called with a line when the newest cannot be used.
        resume: False: what is there is passed over, and written over.

    Raises:
        CheckpointError: the directory holds a run that was started otherwise, or of whose models none can be read.
    """

    def __init__(self, home: Path, started: dict[str, Any], log: Callable[[str], None], resume: bool = True):
        self.home, self.started, self.log = home, started, log
        self.records: list[dict[str, Any]] = self._read() if resume else []

    def past(self, number: int, monitor: ConvergenceMonitor) -> FailureReport | None:
        """The report of a training that is done; None for one that is not."""
        ours = monitor.history[len(monitor.history) - len(self.records) :]
        return ours[number] if number < len(ours) else None

    def add(self, name: str, run: Any) -> None:
        """Note a training of a `Pruning`, whose model is in `retrained.keras` of its directory."""
        self.records.append(
            {
                "name": name,
                "checksum": checksum(self.home / name / "retrained.keras"),
                "seeds": layer_seeds(run.model),
                "plan": run.plan.to_state(),
                "monitor": run.monitor.get_state(),
            }
        )
        write_json(self.home / _FILE, {"version": _VERSION, "started": self.started, "trainings": self.records})

    def restore(self, model: keras.Model, monitor: ConvergenceMonitor) -> dict[str, Any] | None:
        """Fill a model and a monitor from the newest; its plan's state, or None where nothing is done."""
        if not self.records:
            return None
        newest = self.records[-1]
        place = self.home / newest["name"] / "retrained.keras"
        optimizer = getattr(model, "optimizer", None)
        if isinstance(optimizer, keras.optimizers.Optimizer) and not optimizer.built:
            optimizer.build(model.trainable_variables)
        try:
            model.load_weights(place)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{str(place)!r} does not fit the model: {error}") from error
        set_layer_seeds(model, newest["seeds"])
        monitor.set_state(newest["monitor"])
        self.log(f"{self.home}: {len(self.records)} trainings are done, going on behind {newest['name']}")
        return newest["plan"]

    def _read(self) -> list[dict[str, Any]]:
        path = self.home / _FILE
        if not path.exists():
            return []
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            records, started, version = data["trainings"], data["started"], data["version"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{str(path)!r} cannot be read ({error}); remove it to begin anew") from error
        changed = differences(started, self.started) if version == _VERSION else [f"format {version}"]
        if changed:
            raise CheckpointError(
                f"{str(self.home)!r} holds a run that was started otherwise:\n  " + "\n  ".join(changed[:8]) + "\n"
                "Go on with what was, give another output_dir, or write over it with run(..., resume=False)"
            )
        whole = list(records)
        while records and not self._good(records[-1]):
            self.log(f"{self.home}: {records.pop()['name']}/retrained.keras is damaged or gone; going on from before")
        if whole and not records:
            raise CheckpointError(
                f"no retrained.keras in {str(self.home)!r} can be read; remove run.json to begin anew"
            )
        return records

    def _good(self, record: dict[str, Any]) -> bool:
        try:
            return checksum(self.home / record["name"] / "retrained.keras") == record["checksum"]
        except OSError:
            return False
