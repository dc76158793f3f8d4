"""A CSV file: a row an epoch."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, ClassVar

from tfprune.errors import TfpruneError
from tfprune.files import write_text
from tfprune.tables import listed
from tfprune.trackers.base import Tracker
from tfprune.trackers.record import Record

# What every row begins with; the other columns are the record's scalars.
_FIRST = ("epoch", "time")
# These columns are the same in all epochs of a model's training.
_OF_LAYERS = ("width/", "failure_rate/")


@dataclass
class CSV(Tracker):
    """A row an epoch, in a file that is whole at any moment.

    A run that goes on at epoch 5 appends: rows of epoch 5 and later, if the killed process had come so far, are written
    anew. One that begins at epoch 0 begins the file anew.

    Args:
        path: of the file.

    Raises:
        TfpruneError: (when training begins) the file holds another model's run, or is no such file.

    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/run.csv"
    >>> tracker = CSV(path)
    >>> tracker.log(Record(0, 0.0, {"loss": 0.5}))
    >>> print(open(path).read().strip())
    epoch,time,loss
    0,1970-01-01T00:00:00+00:00,0.5
    """

    path: str

    name: ClassVar[str] = "csv"

    def __post_init__(self) -> None:
        self.path = os.fspath(self.path)
        super().__post_init__()

    @classmethod
    def within(cls, directory: str | os.PathLike) -> CSV:
        """`track.csv` there."""
        return cls(str(Path(directory) / "track.csv"))

    @property
    def target(self) -> str:
        return f"the table {self.path!r}"

    @property
    def beside(self) -> Path:
        return Path(self.path)

    def check(self, names: Collection[str], model: Any) -> None:
        """Refuse to mix two runs: what comes from the model, and not from its metrics, must have the same columns."""
        old, new = ([name for name in own if name.startswith(_OF_LAYERS)] for own in (self._rows()[0], names))
        if old and set(old) != set(new):
            differing = sorted(set(old) ^ set(new))
            raise TfpruneError(
                f"{self.path!r} holds the run of another model: there are {len(old)} columns of its layers, and this "
                f"one has {len(new)} ({listed(differing[::-1])} differ); give another path, or remove the file"
            )

    def write(self, record: Record) -> None:
        """Write the file anew with one more row."""
        columns, rows = self._rows()
        when = datetime.fromtimestamp(record.time, timezone.utc).isoformat(timespec="seconds")
        row = {"epoch": record.step, "time": when, **record.scalars()}
        columns = list(dict.fromkeys((*_FIRST, *columns, *row)))
        out = io.StringIO()
        writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows([*(old for old in rows if int(old["epoch"]) < record.step), row])
        write_text(self.path, out.getvalue())

    def _rows(self) -> tuple[list[str], list[dict[str, str]]]:
        """The columns and rows that are there."""
        if not os.path.exists(self.path):
            return [], []
        with open(self.path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            columns, rows = list(reader.fieldnames or ()), list(reader)
        if columns and tuple(columns[:2]) != _FIRST:
            raise TfpruneError(f"{self.path!r} is no table of this tracker's: it begins with {columns[:2]}")
        return columns, rows
