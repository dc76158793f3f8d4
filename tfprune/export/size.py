"""How large a model's file is: written, and not proved."""

from __future__ import annotations

import tempfile
from pathlib import Path

import keras

from tfprune.errors import ExportError
from tfprune.export.names import functional, input_names, output_names
from tfprune.export.registry import Options, find
from tfprune.export.variant import in_float32


def file_bytes(model: keras.Model, format: str) -> int:
    """Bytes of a model's file in a format.

    Raises:
        ExportError: there is no such format, it cannot be written here, or only with real data.
    """
    with tempfile.TemporaryDirectory(prefix="tfprune-") as folder:
        path = written(model, format, Path(folder))
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        return sum(file.stat().st_size for file in files)


def written(model: keras.Model, format: str, directory: Path) -> Path:
    """Write a model in a format, without reading it back.

    Raises:
        ExportError: as `file_bytes`.
    """
    exporter = find(format)
    if exporter.calibrated:
        raise ExportError(f"the {format} format needs real data, so that a file cannot be written just to look at it")
    whole = functional(model)
    options = Options(names := input_names(whole, None), output_names(whole, None, names))
    path = directory / f"model{exporter.suffix}"
    try:
        exporter.write(in_float32(whole) if exporter.plain else whole, path, options)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ExportError(f"{model.name!r} cannot be written as {format}: {error}") from error
    return path
