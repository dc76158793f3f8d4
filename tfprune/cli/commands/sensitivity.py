"""How much of each channel group can go before the model gets worse."""

from __future__ import annotations

from types import SimpleNamespace

from tfprune.cli import datasets, models
from tfprune.cli.command import Command, Flag


def _run(options: SimpleNamespace) -> None:
    import tfprune
    from tfprune.files import output_directory, write_json, write_text
    from tfprune.report import pictures

    output = output_directory(options.output_dir)
    dataset = datasets.load(options)
    print(dataset)
    model = models.load(options.model, dataset.shape, dataset.classes)
    dataset.check_model(model)
    models.compile_classifier(model)
    result = tfprune.sensitivity(
        model,
        (dataset.x_test, dataset.y_test),
        options.criterion,
        ratios=options.ratios,
        mode=options.mode,
        metric=options.metric,
        sample=(dataset.x_train, dataset.y_train),
        only=options.only,
        round_to=options.round_to,
        remove=options.remove,
        batch_size=options.batch_size,
    )
    print(result)
    written = [write_text(output / "sensitivity.json", result.to_json() + "\n")]
    written.append(pictures.sensitivity(result, output / "sensitivity.png", options.max_drop))
    if options.mode != "full":
        ratios = result.ratios(options.max_drop)
        print(f"{result.metric} drops by at most {options.max_drop:g}, each group alone, with the ratios")
        print("\n".join(f"  {group}: {ratio:g}" for group, ratio in ratios.items()))
        written.append(write_json(output / "ratios.json", ratios))
    print(f"wrote {', '.join(map(str, written))}")


COMMAND = Command(
    name="sensitivity",
    summary="prune each channel group by rising ratios, alone and all together, and measure what it costs",
    description=(
        "Nothing is trained: the channels are zeroed in a copy of a trained model, which is then measured on the test "
        "samples. Criteria that need data look at the training samples. Prints a table, and writes sensitivity.json, "
        "sensitivity.png and, for tfprune.select(ratio=...), ratios.json: for each group the largest ratio that costs "
        "at most --max_drop."
    ),
    example="tfprune sensitivity --model=trained.keras --dataset=cifar10.npz --test_samples=2000 --output_dir=runs/s",
    flags=(
        models.MODEL,
        *datasets.SOURCE,
        Flag("output_dir", "Where the table and the picture go; created if need be.", "DIR", required=True),
        Flag("criterion", "What goes first, such as l1, l2 or redundancy.", "NAME", "l1"),
        Flag(
            "ratios",
            "Fractions of a group's channels.",
            "LIST",
            (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
            "numbers",
            low=0,
            high=1,
        ),
        Flag("mode", "A curve a group, one of all together, or both.", "layerwise|full|both", "both", "choice"),
        Flag("metric", "accuracy or loss.", "accuracy|loss", "accuracy", "choice"),
        Flag(
            "max_drop", "How much worse the metric may get: 0.01 is one percent point.", "NUMBER", 0.01, "number", low=0
        ),
        Flag("only", "Only layers whose names begin so or match such patterns: block_3_,SE*.", "LIST", None, "list"),
        Flag("round_to", "The number of channels pruned in a group is a multiple of this.", "N", 1, "integer", low=1),
        Flag("remove", "Also really remove the channels, and measure that.", kind="boolean", default=False),
        Flag("batch_size", "Samples a step.", "N", 256, "integer", low=1),
    ),
    run=_run,
    check=datasets.check,
)
