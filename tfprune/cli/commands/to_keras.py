"""Make an ONNX model a Keras model, to be trained."""

from __future__ import annotations

from types import SimpleNamespace

from tfprune.cli import models
from tfprune.cli.command import Command, Flag, UsageError


def _run(options: SimpleNamespace) -> None:
    import tfprune
    from tfprune.files import output_directory

    folder = output_directory(options.output_dir)
    model = tfprune.to_keras(models.given(options))
    print(f"{tfprune.cost(model)}\nequal to the ONNX model in onnxruntime; wrote {models.save(model, folder)}")


def _check(options: SimpleNamespace) -> None:
    if not models.is_onnx(options.model):
        raise UsageError(f"--model must be an .onnx file, a frozen .pb or a SavedModel, and {options.model!r} came")


COMMAND = Command(
    name="to_keras",
    summary="make an ONNX model a Keras model that computes the same, so that it can be trained",
    description=(
        "Every node becomes a layer or operation of Keras itself; the file loads where tfprune is not installed. Both "
        "are run on random inputs and compared before anything is written."
    ),
    example="tfprune to_keras --model=model.onnx --output_dir=keras",
    flags=(
        Flag("model", "The model.", "PATH.onnx|PATH.pb|DIR", required=True),
        models.INPUT_SHAPE,
        *models.TENSORS,
        Flag("output_dir", "Where model.keras goes; created if need be.", "DIR", required=True),
    ),
    run=_run,
    check=_check,
)
