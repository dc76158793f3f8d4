"""Print what a model costs, or two models side by side."""

from __future__ import annotations

from types import SimpleNamespace

from tfprune.cli import models
from tfprune.cli.command import Command, Flag


def _run(options: SimpleNamespace) -> None:
    from tfprune.cost import compare_table, cost

    count = cost(models.given(options))
    if options.after is None:
        print(count)
    else:
        print(compare_table(count, cost(models.given(options, options.after))))


COMMAND = Command(
    name="cost",
    summary="count parameters, MACs and bytes, layer by layer, of one model or before and after",
    description=(
        "Parameters are all weights, trainable or not. A MAC is one multiply and one add, counted for one sample in "
        "convolutions and matrix products. Bytes are those of the weights in the types they are stored in."
    ),
    example="tfprune cost --model=big.keras --after=small.keras",
    flags=(
        *models.SOURCE_OR_ONNX,
        Flag("after", "A second model, such as the stripped one: print both, layer by layer.", "PATH"),
    ),
    run=_run,
)
