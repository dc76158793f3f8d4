"""Open a model in Netron."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tfprune.cli import models
from tfprune.cli.command import Command, Flag
from tfprune.errors import CheckpointError, TfpruneError

_ENDINGS = (".onnx", ".keras", ".h5", ".hdf5", ".tflite", ".pb")


def _run(options: SimpleNamespace) -> None:
    netron = _netron()
    if options.model.endswith(_ENDINGS):
        if not Path(options.model).is_file():
            raise CheckpointError(f"{options.model!r} does not exist or is no file; give one of {', '.join(_ENDINGS)}")
        return _show(netron, Path(options.model), options)
    model = models.load(options.model, options.input_shape, options.classes)
    with tempfile.TemporaryDirectory(prefix="tfprune-") as folder:
        _show(netron, _written(model, Path(folder), options.format), options)


def _netron() -> Any:
    try:
        import netron
    except ImportError as error:
        raise TfpruneError(f"tfprune view needs netron: pip install 'tfprune[netron]' ({error})") from error
    return netron


def _written(model: Any, folder: Path, format_name: str) -> Path:
    if format_name == "keras":
        return models.save(model, folder)
    import tfprune

    return tfprune.export(model, folder / "exported", ["onnx"], name="model")["onnx"].path


def _show(netron: Any, file: Path, options: SimpleNamespace) -> None:
    """Serve the file until it is interrupted."""
    try:
        host, port = netron.start(str(file), address=options.port, browse=options.browse)
    except OSError as error:
        raise TfpruneError(f"Netron could not show {str(file)!r} ({error}); try another --port") from error
    print(f"Netron shows {file} at http://{host}:{port}; Ctrl+C ends it", flush=True)
    netron.wait()


COMMAND = Command(
    name="view",
    summary="look at a model in Netron, in the browser",
    description=(
        "Opens an .onnx, .keras, .h5, .tflite or .pb file in Netron until it is interrupted. A function or a "
        "keras.applications model is first written to a temporary file. Needs netron: pip install 'tfprune[netron]'."
    ),
    example="tfprune view --model=vgg19.onnx",
    flags=(
        Flag(
            "model",
            "A file; or a function or the name of a keras.applications model, built with random weights.",
            "PATH|module:function|NAME",
            required=True,
        ),
        models.INPUT_SHAPE,
        models.CLASSES,
        Flag("format", "What a function's or an application's model is written as.", "keras|onnx", "keras", "choice"),
        Flag(
            "port", "Where to serve; by default any that is free from 8080 on.", "N", None, "integer", low=1, high=65535
        ),
        Flag("browse", "Open the browser.", default=True, kind="boolean"),
    ),
    run=_run,
)
