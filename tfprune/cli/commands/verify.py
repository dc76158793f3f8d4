"""Compare two models on random inputs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tfprune.cli import models
from tfprune.cli.command import Command, Flag
from tfprune.errors import CheckpointError
from tfprune.frontend import is_onnx


def _run(options: SimpleNamespace) -> int:
    model = models.given(options)
    from tfprune.verify import verify

    other = _other(options, model)
    found = verify(model, other, samples=options.samples, seed=options.seed, tolerance=options.tolerance)
    print(f"{options.model} and {options.other}: {found}")
    return 0 if found.equal else 1


def _other(options: SimpleNamespace, model: Any) -> Any:
    """A Keras model, or for another format a function from inputs to outputs in that format's own runtime."""
    path, suffix = options.other, Path(options.other).suffix
    if is_onnx(model):
        if not models.is_onnx(path):
            raise CheckpointError(f"an ONNX model is compared with another, and {path!r} came")
        return models.given(options, path) if models.is_tensorflow(path) else models.load(path)
    if suffix in (".keras", ".h5", ".hdf5"):
        return models.load_file(path)
    from tfprune.export.names import functional, input_names, output_names
    from tfprune.export.registry import Options, find

    kind = {".onnx": "onnx", ".pb": "pb"}.get(suffix) or ("saved_model" if Path(path).is_dir() else None)
    if kind is None:
        raise CheckpointError(f"{path!r} is no .keras, .onnx or .pb file and no SavedModel directory")
    if not Path(path).exists():
        raise CheckpointError(f"{path!r} does not exist")
    whole = functional(model)
    try:
        return find(kind).load(Path(path), Options(input_names(whole), output_names(whole)))
    except Exception as error:
        raise CheckpointError(f"{path!r} could not be loaded as {kind} ({type(error).__name__}: {error})") from error


COMMAND = Command(
    name="verify",
    summary="run two models on the same random inputs and compare what comes out",
    description=(
        "The second model may be a .keras, .onnx or frozen .pb file or a SavedModel directory. Exit status 0 if the "
        "outputs agree, 1 if they do not."
    ),
    example="tfprune verify --model=soft_pruned.keras --other=exported/net.onnx",
    flags=(
        *models.SOURCE_OR_ONNX,
        Flag("other", "What to compare it with.", "PATH", required=True),
        Flag(
            "tolerance",
            "Largest difference that counts as equal, as a fraction of the largest output. By default by the model's "
            "type: 1e-5 for float32, 1e-12 for float64.",
            "FRACTION",
            kind="number",
            low=0,
        ),
        Flag("samples", "How many random inputs.", "N", 2, "integer", low=1),
        Flag("seed", "Of the random inputs.", "N", 0, "integer", low=0),
    ),
    run=_run,
)
