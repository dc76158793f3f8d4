"""Draw a model as a graph, or what has become of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from tfprune.cli import models
from tfprune.cli.command import Command, Flag, UsageError


def _run(options: SimpleNamespace) -> None:
    from tfprune.report.graphs import draw

    model = models.given(options)
    other = models.given(options, options.other) if options.other else None
    print(f"wrote {draw(model, options.output, other, Path(options.model).name)}")


def _check(options: SimpleNamespace) -> None:
    from tfprune.report.graphs import ENDINGS

    if Path(options.output).suffix.lower() not in ENDINGS:
        raise UsageError(f"--output must end with {', '.join(ENDINGS)}, and {options.output!r} came")


COMMAND = Command(
    name="draw",
    summary="draw a model as a graph, or what strip or remove_layers has made of it",
    description=(
        "A box a layer with its type, shape and parameters, and on every edge the width. With --other, layers that are "
        "gone are red and dashed, new ones green, and those that changed blue, before and after. Needs pygraphviz: "
        "pip install 'tfprune[graphviz]'."
    ),
    example="tfprune draw --model=vgg19.onnx --other=fewer/model.onnx --output=removed.svg",
    flags=(
        *models.SOURCE_OR_ONNX,
        Flag("other", "What the model became: likewise, and both of Keras or both of ONNX.", "PATH"),
        Flag("output", "The picture: .svg, .png or .pdf.", "FILE", required=True),
    ),
    run=_run,
    check=_check,
)
