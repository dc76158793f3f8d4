"""Print the channel groups of a model."""

from __future__ import annotations

from types import SimpleNamespace

from tfprune.cli import models
from tfprune.cli.command import Command


def _run(options: SimpleNamespace) -> None:
    import tfprune

    print(tfprune.trace(models.given(options)))


COMMAND = Command(
    name="inspect",
    summary="list a model's channel groups: width, who writes and reads them, prunable or why not",
    description=(
        "Traces the model and prints its channel groups: the channels that always go together across layers. For each, "
        "its width, the layers that write and read it, and whether it can be pruned, or the reason why not."
    ),
    example="tfprune inspect --model=MobileNetV2",
    flags=models.SOURCE_OR_ONNX,
    run=_run,
)
