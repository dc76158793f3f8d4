"""TensorBoard: scalars of every epoch, and histograms of chosen weights."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from tfprune.events import EventFile, histogram
from tfprune.frontend import trace
from tfprune.selection.patterns import checked, matches
from tfprune.trackers.base import Tracker
from tfprune.trackers.record import Record


@dataclass
class TensorBoard(Tracker):
    """TensorBoard's log: `tensorboard --logdir DIRECTORY` shows it while training goes on.

    A run that goes on at epoch 5 writes what older files say of epoch 5 and later anew.

    Args:
        directory: of the log.
        histograms: the weights of these layers as histograms `weights/<layer>/<weight>`, once an epoch; names, their
            beginnings, or patterns with * ? []. The weights are copied from the device for that.

    Raises:
        TfpruneError: tensorboard is not installed.
        PlanError: (when training begins) a pattern matches no layer.

    >>> import tempfile
    >>> directory = tempfile.mkdtemp()
    >>> tracker = TensorBoard(directory, histograms=["conv*"])
    >>> tracker.log(Record(0, 0.0, {"loss": 0.5}))
    >>> [file.name[:19] for file in Path(directory).iterdir()]
    ['events.out.tfevents']
    """

    directory: str
    histograms: Collection[str] = ()

    name: ClassVar[str] = "tensorboard"
    requires: ClassVar[str] = "tensorboard"

    def __post_init__(self) -> None:
        self.directory = os.fspath(self.directory)
        self.histograms = [self.histograms] if isinstance(self.histograms, str) else list(self.histograms)
        self._events: EventFile | None = None
        super().__post_init__()

    @classmethod
    def within(cls, directory: str | os.PathLike) -> TensorBoard:
        """`tensorboard/` there."""
        return cls(str(Path(directory) / "tensorboard"))

    @property
    def target(self) -> str:
        return f"TensorBoard's log {self.directory!r}"

    @property
    def beside(self) -> Path:
        return Path(self.directory)

    def check(self, names: Collection[str], model: Any) -> None:
        """Look whether there are layers of those names."""
        checked(trace(model), list(self.histograms), "histograms")

    def complete(self, record: Record, model: Any) -> Record:
        """Add the histograms."""
        if not self.histograms:
            return record
        graph = trace(model)
        return replace(
            record,
            histograms={
                f"weights/{weight.layer}/{weight.name}": histogram(graph.read(variable))
                for weight, variable in graph.variables.items()
                if any(matches(weight.layer, pattern) for pattern in self.histograms)
            },
        )

    def write(self, record: Record) -> None:
        """Write one event; the first of a file says from which step on older files are replaced."""
        try:
            if self._events is None:
                self._events = EventFile(self.directory, record.step)
            self._events.write(record.step, record.scalars(), record.histograms, record.time)
        except BaseException:
            self.close()  # half an event may be in the file; the next one begins another
            raise

    def close(self) -> None:
        """Close the file; a later training begins another."""
        if self._events is not None:
            self._events.close()
        self._events = None
