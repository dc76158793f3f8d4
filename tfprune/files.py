"""Writing files so that a reader sees the old file or the whole new one, never half of one."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tfprune.errors import TfpruneError


def output_directory(path: str | os.PathLike) -> Path:
    """Create `path` and its parents and prove that it can be written to.

    Raises:
        TfpruneError: it cannot be created or written to.
    """
    directory = Path(path)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise TfpruneError(
            f"the output directory {str(directory)!r} cannot be written to ({error.strerror or error}); "
            f"give a directory that you may write to, on a disk with free space"
        ) from error
    return directory


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it into place if the block succeeds, remove it if not.

    What is written may be a file or a directory. The temporary name keeps the suffix, which Keras reads.

    Raises:
        TfpruneError: the disk is full, or the place may not be written to.
    """
    target = Path(path)
    output_directory(target.parent)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.stem}-", dir=target.parent))
    try:
        yield scratch / target.name
        if target.is_dir():
            os.rename(target, scratch / "replaced")
        os.replace(scratch / target.name, target)
    except OSError as error:
        raise TfpruneError(
            f"{str(target)!r} could not be written ({error.strerror or error}); nothing was left there half-written"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Write `text` to `path`, atomically."""
    with atomic_path(path) as scratch:
        scratch.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: str | os.PathLike, value: Any) -> Path:
    """Write `value` to `path` as JSON, atomically."""
    return write_text(path, json.dumps(value, indent=2, sort_keys=False) + "\n")
