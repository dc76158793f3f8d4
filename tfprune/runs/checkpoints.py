"""Numbered checkpoints in a directory: whole or not there, checked when read, and of one run at a time.

| in the directory | what it is |
|---|---|
| `lock` | says which process is writing here |
| `checkpoint-000007/` | the one before |
| `checkpoint-000008/` | the newest: `state.json`, arrays such as `model.weights.h5`, and `SHA256SUMS` |
| `damaged-000006/` | one that was passed over |

`sha256sum -c SHA256SUMS` checks a checkpoint by hand.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tfprune.errors import CheckpointError, TfpruneError
from tfprune.files import atomic_path, output_directory

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_VERSION = 1
_STATE, _SUMS = "state.json", "SHA256SUMS"
_NAME = re.compile(r"checkpoint-(\d{6,})")


class Checkpoints:
    """The checkpoints of one run.

    Args:
        directory: where; it is created when the first is written.
        keep: how many of the newest are kept, at least 2 to have one to fall back on.
        log: called with a line whenever something is passed over.
    """

    def __init__(self, directory: str | os.PathLike, keep: int = 2, log: Callable[[str], None] = print):
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 2:
            raise CheckpointError(f"keep is how many checkpoints are kept, at least 2, and {keep!r} came")
        self.directory, self.keep, self.log = Path(directory), keep, log
        self.newest: Path | None = None

    def write(self, state: dict[str, Any], files: Callable[[Path], None] = lambda place: None, size: int = 0) -> Path:
        """Write a new checkpoint; older ones than the `keep` newest are removed then.

        Args:
            state: JSON.
            files: writes further files into the directory that it is given.
            size: about how many bytes these will take.

        Raises:
            CheckpointError: it cannot be written, for lack of space for instance. Those before it are untouched.
        """
        output_directory(self.directory)
        free = shutil.disk_usage(self.directory).free
        if size > free:
            raise CheckpointError(
                f"{str(self.directory)!r} has {free:,} bytes free, and a checkpoint takes {size:,}; make room there"
            )
        known = self._numbered()
        place = self.directory / f"checkpoint-{max(known, default=0) + 1:06d}"
        try:
            with atomic_path(place) as scratch:
                scratch.mkdir()
                files(scratch)
                (scratch / _STATE).write_text(json.dumps({"version": _VERSION, **state}) + "\n", encoding="utf-8")
                names = sorted(path.name for path in scratch.iterdir())
                sums = [f"{checksum(scratch / name)}  {name}\n" for name in names]
                (scratch / _SUMS).write_text("".join(sums), encoding="utf-8")
                for name in (*names, _SUMS):
                    _flush(scratch / name)
        except CheckpointError:
            raise
        except (TfpruneError, OSError, RuntimeError) as error:  # HDF5 raises RuntimeError when closing fails
            raise CheckpointError(f"{str(place)!r} could not be written: {error}") from error
        _flush(self.directory)
        self.newest = place
        for number in sorted(known)[: -(self.keep - 1)]:
            self._remove(known[number])
        return place

    def read(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest undamaged checkpoint and its state, or None where there is none at all.

        Raises:
            CheckpointError: all are damaged, or one was written by a newer tfprune.
        """
        known, reasons = self._numbered(), []
        for number in sorted(known, reverse=True):
            place = known[number]
            try:
                state = _checked(place)
            except (OSError, ValueError, KeyError) as error:
                reasons.append(f"{place.name} is damaged ({error})")
                continue
            if state.get("version") != _VERSION:
                raise CheckpointError(
                    f"{str(place)!r} was written by another version of tfprune (format {state.get('version')}; this "
                    f"one knows {_VERSION}); go on with that one, or in another directory"
                )
            for reason in reasons:
                self.log(f"{self.directory}: {reason}; going on from {place.name}")
            for damaged in (known[other] for other in known if other > number):
                self._set_aside(damaged)
            self.newest = place
            return place, state
        if reasons:
            raise CheckpointError(
                f"no checkpoint in {str(self.directory)!r} can be read: {'; '.join(reasons)}. To begin anew, give "
                f"another directory or remove this one"
            )
        return None

    def clean(self) -> None:
        """Remove what killed runs have left half-written; only under the lock."""
        for path in self.directory.glob(".checkpoint-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _numbered(self) -> dict[int, Path]:
        if not self.directory.is_dir():
            return {}
        found = ((_NAME.fullmatch(path.name), path) for path in self.directory.iterdir())
        return {int(match[1]): path for match, path in found if match}

    def _remove(self, place: Path) -> None:
        """Out of sight first: a kill in between must leave no damaged checkpoint."""
        hidden = place.with_name(f".{place.name}")
        with contextlib.suppress(OSError):
            os.replace(place, hidden)
        shutil.rmtree(hidden, ignore_errors=True)

    def _set_aside(self, place: Path) -> None:
        aside = place.with_name(place.name.replace("checkpoint", "damaged"))
        shutil.rmtree(aside, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.replace(place, aside)


def _checked(place: Path) -> dict[str, Any]:
    """The state of a checkpoint whose files all have the checksums that were noted."""
    text = (place / _SUMS).read_text(encoding="utf-8")
    sums = {name: checksum for checksum, name in (line.split("  ", 1) for line in text.splitlines())}
    if _STATE not in sums:
        raise ValueError(f"{_SUMS} is incomplete")
    for name, expected in sums.items():
        if not (place / name).is_file():
            raise ValueError(f"{name} is missing")
        if checksum(place / name) != expected:
            raise ValueError(f"{name} is not what was written: its checksum differs")
    return json.loads((place / _STATE).read_text(encoding="utf-8"))


def checksum(path: Path) -> str:
    """A file's SHA-256, in hexadecimal digits."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def _flush(path: Path) -> None:
    """What is written reaches the disk before its name does, so that a power cut leaves the old or the new."""
    with contextlib.suppress(OSError):  # some file systems cannot flush directories
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# -- one run at a time ------------------------------------------------------------------------------------------------

# Path of a lock -> (process, descriptor). A process may lock again what it has locked: a cell that is run once more.
_HELD: dict[Path, tuple[int, int]] = {}


def lock(directory: str | os.PathLike) -> None:
    """Keep other processes out of a directory until `unlock`, or until this process ends, however it ends.

    A record lock of the operating system (`fcntl.lockf`): unlike that of `flock`, it is not inherited by the workers
    that a data loader forks, which may outlive a killed run.

    Raises:
        CheckpointError: another process holds it; the message says which.
    """
    path = output_directory(directory).resolve() / "lock"
    if fcntl is None or _HELD.get(path, (None, 0))[0] == os.getpid():
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(descriptor, 1000).decode("utf-8", "replace").strip() or "another process"
        os.close(descriptor)
        raise CheckpointError(
            f"{str(directory)!r} is in use by {holder} ({error.strerror}); two runs in one directory would mix: wait "
            f"for it, stop it, or give another directory"
        ) from error
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}: {' '.join(sys.argv)[:500]}\n".encode())
    _HELD[path] = (os.getpid(), descriptor)


def unlock(directory: str | os.PathLike) -> None:
    """Let others in; nothing where this process holds no lock."""
    path = Path(directory).resolve() / "lock"
    process, descriptor = _HELD.pop(path, (None, 0))
    if process == os.getpid():
        os.close(descriptor)
