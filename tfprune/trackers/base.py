"""What a tracker is, and what becomes of records while it is down.

To add a tracker, put a module beside this one with a dataclass that inherits from `Tracker`; nothing else changes.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tfprune.errors import TfpruneError, nearest
from tfprune.files import write_text
from tfprune.processes import is_first
from tfprune.trackers.record import Record

_KINDS: dict[str, type[Tracker]] = {}


@dataclass
class Tracker:
    """Where records go. A subclass is a dataclass of settings that JSON can hold.

    It has a `name`, says where it goes (`target`) and where to keep what could not be sent (`beside`), writes records
    (`write`), and may look at its settings before training (`check`), ask the model for more (`complete`) and `close`.

    Nothing that happens in `write` stops a training: what could not be sent is kept in `unsent`, a file of JSON lines
    beside the run, with one warning, and sent before the next record, by the next process that uses the same tracker,
    or by `tfprune.trackers.send`.
    """

    name: ClassVar[str]  # what it is called on a command line
    requires: ClassVar[str] = ""  # the package, and extra of tfprune, without which it does nothing

    def __init_subclass__(cls) -> None:
        _KINDS[cls.name] = cls

    def __post_init__(self) -> None:
        if self.requires and importlib.util.find_spec(self.requires) is None:
            raise TfpruneError(
                f"the tracker {self.name!r} needs {self.requires}: pip install 'tfprune[{self.requires}]'"
            )
        self._kept: list[dict[str, Any]] | None = None
        self._warned = False

    # -- what a tracker says -------------------------------------------------------------------------------------------

    @classmethod
    def within(cls, directory: str | os.PathLike) -> Tracker:
        """One with its usual settings, in the directory of a run."""
        raise NotImplementedError

    @property
    def target(self) -> str:
        """Where records go, in words."""
        raise NotImplementedError

    @property
    def beside(self) -> Path:
        """A file or directory of the run; what could not be sent is kept beside it."""
        raise NotImplementedError

    def check(self, names: Collection[str], model: Any) -> None:
        """Look, before training, at what the user would have to mend.

        Args:
            names: of the scalars that every record of this training will have.
            model: what is trained.

        Raises:
            TfpruneError: records of this training do not belong there.
        """

    def complete(self, record: Record, model: Any) -> Record:
        """Add what this tracker alone wants to know of the model. Called in every process that trains it."""
        return record

    def write(self, record: Record) -> None:
        """Write a record.

        Raises:
            Exception: any; the record is kept then.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Training has ended; another may follow."""

    # -- what all trackers do ------------------------------------------------------------------------------------------

    def open(self, names: Collection[str], model: Any) -> None:
        """Prepare for a training; see `check`."""
        if is_first():
            _ = self.kept  # another run's file is refused now
            self.check(names, model)

    def log(self, record: Record) -> None:
        """Send a record, or keep it."""
        self.deliver({"record": dataclasses.asdict(record)})

    def deliver(self, entry: dict[str, Any]) -> None:
        """Send what was kept, and then this; keep it if that fails. Only the first of several processes does."""
        if not is_first():
            return
        try:
            self.resend()
            self.take(entry)
        except Exception as error:  # whatever a tracker runs into, training goes on
            self._keep(entry, error)

    def take(self, entry: dict[str, Any]) -> None:
        """Write one entry: `{"record": ...}`, or what else a tracker has put there."""
        self.write(Record(**entry["record"]))

    def resend(self) -> int:
        """Send what was kept, the oldest first.

        Returns:
            how many entries.

        Raises:
            Exception: the tracker is still down; what is not sent is still kept.
        """
        sent = 0
        try:
            while self.kept:
                self.take(self.kept[0])
                del self.kept[0]
                sent += 1
        finally:
            if sent:
                self._store()
        return sent

    @property
    def unsent(self) -> Path:
        """The file that keeps what could not be sent; it exists only while there is something in it."""
        return self.beside.with_name(f"{self.beside.name}.unsent.jsonl")

    @property
    def kept(self) -> list[dict[str, Any]]:
        """What could not be sent, the oldest first.

        Raises:
            TfpruneError: the file was written for another run.
        """
        if self._kept is None:
            self._kept = []
            if self.unsent.exists():
                header, self._kept = _read(self.unsent)
                if header.get("target") != self.target:
                    raise TfpruneError(
                        f"{str(self.unsent)!r} holds what could not be sent to {header.get('target')}, and this is "
                        f"{self.target}; send it first: tfprune track --send={self.unsent}"
                    )
        return self._kept

    def _keep(self, entry: dict[str, Any], error: Exception) -> None:
        self.kept.append(entry)
        stored = self._store()
        if not self._warned:
            self._warned = True
            message = " ".join(str(error).split())[:300]
            place = f"{str(self.unsent)!r}" if stored else f"memory, for {str(self.unsent)!r} cannot be written either"
            warnings.warn(
                f"{self.target} cannot be written ({type(error).__name__}: {message}); training goes on. What could "
                f"not be sent is kept in {place}, and sent when it is back, or by: tfprune track --send={self.unsent}",
                RuntimeWarning,
                stacklevel=2,
            )

    def _store(self) -> bool:
        """Write what is kept; whether that could be done."""
        if self._kept:
            header = {"tracker": self.name, "target": self.target, "settings": self.settings()}
            lines = [json.dumps(line) for line in (header, *self._kept)]
            try:
                write_text(self.unsent, "\n".join(lines) + "\n")
            except TfpruneError:
                return False
        else:
            self.unsent.unlink(missing_ok=True)
        return True

    def settings(self) -> dict[str, Any]:
        """The arguments that make this tracker again."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.init}


def names() -> tuple[str, ...]:
    """What trackers there are, as they are called on a command line.

    >>> names()
    ('csv', 'mlflow', 'tensorboard')
    """
    return tuple(sorted(_KINDS))


def named(name: str, directory: str | os.PathLike) -> Tracker:
    """A tracker by name, with its usual settings, for a run whose files are in `directory`.

    Raises:
        TfpruneError: there is none of that name, or a package that it needs is not installed.

    >>> named("csv", "runs/first")
    CSV(path='runs/first/track.csv')
    """
    return _kind(name).within(directory)


def send(path: str | os.PathLike) -> int:
    """Send what a tracker could not be sent, from the file that keeps it; the file is removed when all is sent.

    Returns:
        how many entries were sent.

    Raises:
        TfpruneError: there is no such file, it is damaged, or the tracker is still down.
    """
    header, _ = _read(Path(path))
    try:
        tracker = _kind(header["tracker"])(**header["settings"])
    except (KeyError, TypeError) as error:
        raise TfpruneError(f"{os.fspath(path)!r} does not say which tracker it is for: {error}") from error
    if tracker.unsent.resolve() != Path(path).resolve():
        raise TfpruneError(f"{os.fspath(path)!r} was moved; it is sent from {str(tracker.unsent)!r}")
    try:
        sent = tracker.resend()
        tracker.close()
    except Exception as error:
        raise TfpruneError(f"{tracker.target} still cannot be written: {type(error).__name__}: {error}") from error
    return sent


def _kind(name: str) -> type[Tracker]:
    if name not in _KINDS:
        raise TfpruneError(f"there is no tracker {name!r}; there are {', '.join(names())}{nearest(name, _KINDS)}")
    return _KINDS[name]


def _read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The header and the entries of a file of what was kept."""
    try:
        header, *entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise TfpruneError(f"{str(path)!r} holds nothing that could be sent: {error}") from error
    return header, entries
