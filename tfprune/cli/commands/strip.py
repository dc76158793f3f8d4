"""Remove what the weights prove removable."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from tfprune.cli import models
from tfprune.cli.command import Command, Flag
from tfprune.errors import CheckpointError


def _run(options: SimpleNamespace) -> None:
    import tfprune
    from tfprune.files import output_directory

    folder = output_directory(options.output_dir)
    model = models.given(options)
    plan = None if options.plan is None else _plan(options.plan, model)
    result = tfprune.strip(model, plan, verify=options.verify, samples=options.samples, seed=options.seed)
    output = models.save(result.model, folder)
    print(result)
    print(f"wrote {output}")


def _plan(path: str, model):
    import tfprune

    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"the plan {path!r} cannot be read ({error}); give a file that prune wrote") from error
    return tfprune.PruningPlan.from_json(text, tfprune.trace(model))


COMMAND = Command(
    name="strip",
    summary="remove the zeroed channels and layers of a model, and prove that it computes the same",
    description=(
        "Reads the weights, finds every channel that is provably constant or never read, and builds the model again "
        "without them; what stays although it is zero is listed with the reason. Both models are run on random inputs "
        "and compared before anything is written."
    ),
    example="tfprune strip --model=soft_pruned.keras --output_dir=stripped",
    flags=(
        *models.SOURCE_OR_ONNX,
        Flag(
            "output_dir",
            "Where the stripped model goes, as model.keras or model.onnx; created if need be.",
            "DIR",
            required=True,
        ),
        Flag(
            "plan",
            "Remove exactly what this plan names, zero or not. By default all that is provably removable.",
            "JSON",
        ),
        Flag("verify", "Compare the two models before writing.", kind="boolean", default=True),
        Flag("samples", "How many random inputs are compared.", "N", 2, "integer", low=1),
        Flag("seed", "Of the random inputs.", "N", 0, "integer", low=0),
    ),
    run=_run,
)
