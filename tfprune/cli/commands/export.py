"""Write a model in the formats that others run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tfprune.cli import models
from tfprune.cli.command import Command, Flag
from tfprune.errors import ExportError

FORMATS = Flag(
    "formats",
    "What to write: any of keras, saved_model, pb, onnx, tflite; smaller ones: keras_int8, tflite_float16, "
    "tflite_dynamic, tflite_int8.",
    "LIST",
    "keras,saved_model,pb,onnx",
    "list",
)
OPSET = Flag("opset", "Version of the ONNX operators.", "N", 17, "integer", low=13, high=18)


def _run(options: SimpleNamespace) -> None:
    import numpy as np

    import tfprune
    from tfprune.files import output_directory

    output_directory(options.output_dir)
    arrays = {what: _arrays(getattr(options, what), what, np) for what in ("inputs", "representative")}
    model = models.load(options.model, options.input_shape, options.classes)
    original = models.load(options.original) if options.original else None
    report = tfprune.export(
        model,
        options.output_dir,
        options.formats,
        name=options.name,
        opset=options.opset,
        tolerance=options.tolerance,
        input_nodes=options.input_nodes,
        output_nodes=options.output_nodes,
        shapes=_fixed(model, options.batch),
        layout=options.layout,
        precision=options.precision,
        integer_io=options.integer_io,
        original=original,
        **arrays,
    )
    print(report)


def _arrays(path: str | None, what: str, np: Any) -> Any:
    """An .npy (one input) or an .npz (its arrays in the order of the inputs)."""
    if path is None:
        return None
    try:
        loaded = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ExportError(f"--{what}={path} could not be read ({error}); give an .npy or .npz file") from error
    return [loaded[name] for name in loaded.files] if hasattr(loaded, "files") else loaded


def _fixed(model: Any, batch: int | None) -> dict[str, tuple] | None:
    from tfprune.export.names import functional, input_names

    if batch is None:
        return None
    whole = functional(model)
    return {name: (batch, *x.shape[1:]) for name, x in zip(input_names(whole), whole.inputs, strict=True)}


COMMAND = Command(
    name="export",
    summary="write a model as .keras, SavedModel, frozen .pb, .onnx and .tflite, each read back and compared",
    description=(
        "Every file is loaded by its own runtime (Keras, TensorFlow, onnxruntime, LiteRT), in a process without "
        "tfprune, and compared with the Keras model on random inputs and on yours; the files appear under their names "
        "only when all of them agree. What was found is printed, and written beside them as JSON."
    ),
    example="tfprune export --model=stripped.keras --output_dir=exported --formats=onnx,pb",
    flags=(
        *models.SOURCE,
        Flag("output_dir", "Where the files go; created if need be.", "DIR", required=True),
        FORMATS,
        Flag("name", "Of the files, before the suffix. By default the model's.", "NAME"),
        OPSET,
        Flag("layout", "Of an ONNX file's images: NCHW has the channels first.", "NHWC|NCHW", "NHWC", "choice"),
        Flag("precision", "Of an ONNX file.", "float32|float16", "float32", "choice"),
        Flag(
            "batch", "A fixed number of samples. By default any number, and 1 for .tflite.", "N", None, "integer", low=1
        ),
        Flag("input_nodes", "Names of the inputs. By default the model's.", "LIST", None, "list"),
        Flag(
            "output_nodes", "Names of the outputs. By default those of the layers that make them.", "LIST", None, "list"
        ),
        Flag("inputs", "Data to compare besides random inputs: an .npy, or an .npz for several inputs.", "FILE"),
        Flag("representative", "Data that tflite_int8 is calibrated with, likewise.", "FILE"),
        Flag("integer_io", "Whether tflite_int8 takes and gives integers.", default=False, kind="boolean"),
        Flag("tolerance", "Largest difference, a fraction of the largest output.", "X", None, "number", low=0),
        Flag("original", "The model before pruning, for what the ONNX file says of its origin.", "PATH.keras"),
    ),
    run=_run,
)
