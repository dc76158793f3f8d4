"""Take whole convolutions out of a model."""

from __future__ import annotations

from types import SimpleNamespace

from tfprune.cli import models
from tfprune.cli.command import Command, Flag, UsageError


def _run(options: SimpleNamespace) -> None:
    import tfprune
    from tfprune.files import output_directory

    folder = output_directory(options.output_dir)
    result = tfprune.remove_layers(
        models.given(options),
        options.percent,
        seed=options.seed,
        criterion=options.criterion,
        names=options.names,
    )
    print(f"{result}\nwrote {models.save(result.model, folder)}")


def _check(options: SimpleNamespace) -> None:
    if (options.percent is None) == (options.names is None):
        raise UsageError("give either --percent or --names")


COMMAND = Command(
    name="remove_layers",
    summary="take whole convolutions out of a model and mend their neighbours",
    description=(
        "Chooses convolutions at random, by the lowest scores of a criterion or by name, and removes them one by one: "
        "channels, strides and spatial sizes of what is left fit together, residual additions and concatenations stay "
        "valid. The result is checked and run; it computes something else than before and is meant to be trained."
    ),
    example="tfprune remove_layers --model=vgg19.onnx --percent=30 --output_dir=smaller",
    flags=(
        *models.SOURCE_OR_ONNX,
        Flag(
            "percent",
            "How many of the convolutions go, rounded down to whole ones.",
            "PERCENT",
            kind="number",
            low=0,
            high=100,
        ),
        Flag("names", "Exactly these go.", "LIST", kind="list"),
        Flag("criterion", "The lowest scores go instead of random ones: l1, l2, ...", "NAME"),
        Flag("seed", "Of the random choice.", "N", 0, "integer", low=0),
        Flag("output_dir", "Where model.onnx or model.keras goes; created if need be.", "DIR", required=True),
    ),
    run=_run,
    check=_check,
)
