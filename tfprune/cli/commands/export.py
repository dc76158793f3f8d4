"""Write a model in the formats that others run."""

from __future__ import annotations

from types import SimpleNamespace

from tfprune.cli import models
from tfprune.cli.command import Command, Flag

FORMATS = Flag(
    "formats",
    "What to write: any of keras, saved_model, pb, onnx.",
    "LIST",
    "keras,saved_model,pb,onnx",
    "list",
)
OPSET = Flag("opset", "Version of the ONNX operators.", "N", 17, "integer", low=13, high=18)


def _run(options: SimpleNamespace) -> None:
    import tfprune
    from tfprune.files import output_directory

    output_directory(options.output_dir)
    model = models.load(options.model, options.input_shape, options.classes)
    print(tfprune.export(model, options.output_dir, options.formats, name=options.name, opset=options.opset))


COMMAND = Command(
    name="export",
    summary="write a model as .keras, SavedModel, frozen .pb and .onnx, each read back and compared",
    description=(
        "Every file is loaded by its own runtime (Keras, TensorFlow, onnxruntime) and compared with the Keras model on "
        "random inputs; the files appear under their names only when all of them agree."
    ),
    example="tfprune export --model=stripped.keras --output_dir=exported --formats=onnx,pb",
    flags=(
        *models.SOURCE,
        Flag("output_dir", "Where the files go; created if need be.", "DIR", required=True),
        FORMATS,
        Flag("name", "Of the files, before the suffix. By default the model's.", "NAME"),
        OPSET,
    ),
    run=_run,
)
