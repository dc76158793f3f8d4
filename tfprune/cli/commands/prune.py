"""Train, soft-prune, strip, export: the whole road."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tfprune.cli import datasets, models, progress
from tfprune.cli.command import Command, Flag, UsageError
from tfprune.cli.commands.export import FORMATS, OPSET
from tfprune.errors import DataError, TfpruneError, nearest


def _run(options: SimpleNamespace) -> None:
    import keras

    import tfprune
    from tfprune.files import atomic_path, output_directory
    from tfprune.report.stages import RunReport, measure

    output = output_directory(options.output_dir)
    if models.is_onnx(options.model):
        return _once(options, output)
    keras.utils.set_random_seed(options.seed)
    dataset = datasets.load(options)
    print(dataset)
    model = models.load(options.model, dataset.shape, dataset.classes)
    dataset.check_model(model)
    _check_patterns_and_formats(model, options)
    models.compile_classifier(model, options.learning_rate)

    if options.train_epochs:
        _fit(model, dataset, options, "training", options.train_epochs)
    with atomic_path(output / "before.keras") as path:
        model.save(path)
    before = measure("before", model, dataset.x_test, dataset.y_test, _onnx(model, output / "before", options))
    print(f"accuracy before pruning: {before.accuracy:.2%}")

    if options.thresholds is not None:
        model, result = _over_thresholds(model, dataset, options, output)
    else:
        model, result = _to_amount(model, dataset, options, output)
    with atomic_path(output / "soft_pruned.keras") as path:
        model.save(path)
    soft = measure("soft-pruned", model, dataset.x_test, dataset.y_test)
    exported = tfprune.export(result.model, output / "stripped", options.formats, name="model", opset=options.opset)
    onnx = exported["onnx"].path if "onnx" in options.formats else None
    stripped = measure("stripped", result.model, dataset.x_test, dataset.y_test, onnx)

    print(f"{result}\n\n{exported}\n")
    title = f"{model.name} on {dataset.name}"
    report = RunReport(title, (before, soft, stripped), vars(options), [str(row.path) for row in exported])
    print(f"{report}\nwrote {report.to_json(output / 'results.json')}")


def _once(options: SimpleNamespace, output: Path) -> None:
    """An ONNX file is not trained: choose by its weights, remove, write."""
    import tfprune

    amount: dict[str, Any] = _amounts(options) or {"threshold": options.thresholds[0]}
    model = models.given(options)
    amount |= _latency_table(options)
    plan = tfprune.select(
        model, options.criterion, layers=options.layers, heads=options.heads, **amount, **_selection(options)
    )
    print(plan)
    result = tfprune.strip(model, plan, seed=options.seed)
    print(f"{result}\nwrote {models.save(result.model, output)}")


def _check(options: SimpleNamespace) -> None:
    """What no single flag can say."""
    datasets.check(options)
    amounts = _amounts(options)
    if amounts and options.thresholds is not None:
        raise UsageError(f"give either --thresholds or --{next(iter(amounts))}, not both")
    if "ratio" in amounts and len(amounts) > 1:
        raise UsageError("give either --ratio or budgets (--params, --macs, --latency), not both")
    if options.latency_table is not None and "latency" not in amounts:
        raise UsageError("--latency_table is what --latency is predicted by; give that as well")
    if options.schedule is not None:
        _check_schedule(options)
    if models.is_onnx(options.model) and not amounts and len(options.thresholds or ()) != 1:
        raise UsageError("an ONNX model is not trained, but pruned once: give --ratio, a budget or one of --thresholds")
    if not amounts and options.thresholds is None:
        options.thresholds = (0.8, 0.7, 0.6, 0.55, 0.5)


def _amounts(options: SimpleNamespace) -> dict[str, float]:
    """The ratio or the budgets that were given."""
    given = {name: getattr(options, name) for name in ("ratio", "params", "macs", "latency")}
    return {name: value for name, value in given.items() if value is not None}


def _latency_table(options: SimpleNamespace) -> dict[str, Any]:
    """That argument of `tfprune.select`, if it was given."""
    if options.latency_table is None:
        return {}
    from tfprune.latency import LatencyTable

    return {"latency_table": LatencyTable.load(options.latency_table)}


def _selection(options: SimpleNamespace) -> dict[str, Any]:
    """The flags that are arguments of `tfprune.select`, but for what is asked."""
    names = ("only", "ignore", "round_to", "scope", "min_width", "max_ratio")
    return {name: getattr(options, name) for name in names}


def _check_schedule(options: SimpleNamespace) -> None:
    from tfprune.schedules import NAMES

    if not _amounts(options):
        raise UsageError("--schedule is the way to a --ratio or a budget; give one as well")
    if options.schedule not in NAMES:
        near = nearest(options.schedule, NAMES)
        raise UsageError(f"there is no schedule {options.schedule!r}; there are {', '.join(NAMES)}{near}")


def _check_patterns_and_formats(model: Any, options: SimpleNamespace) -> None:
    """Find mistakes before the training, not after it."""
    import tfprune
    from tfprune import trackers
    from tfprune.criteria import needs_of
    from tfprune.export.registry import find

    for name in options.formats:
        find(name)
    for name in options.track or ():
        trackers.named(name, options.output_dir)
    amounts: dict[str, Any] = _amounts(options) or {"threshold": options.thresholds[0]}
    if options.latency_table is None:
        amounts.pop("latency", None)  # that is measured later
    amounts = {**amounts, **_latency_table(options)} or {"ratio": 0.0}
    needs_of(options.criterion, data=True)
    tfprune.select(model, "random", layers=options.layers, heads=options.heads, **amounts, **_selection(options))


def _fit(model: Any, dataset: Any, options: SimpleNamespace, title: str, epochs: int, *callbacks: Any) -> None:
    with progress.training(title, epochs) as shown:
        try:
            model.fit(
                dataset.x_train,
                dataset.y_train,
                options.batch_size,
                epochs,
                verbose=0,
                callbacks=[*callbacks, shown],
            )
        except (ValueError, TypeError) as error:
            raise DataError(f"{model.name!r} could not be trained on {dataset.name}: {error}") from error


def _sample(dataset: Any, options: SimpleNamespace) -> Any:
    """Some of the training samples, for criteria that look at data."""
    import numpy as np

    from tfprune.criteria import Sample

    chosen = np.random.default_rng(options.seed).permutation(len(dataset.x_train))[: options.criterion_samples]
    return Sample((dataset.x_train[chosen], dataset.y_train[chosen]), options.batch_size)


def _onnx(model: Any, directory: Path, options: SimpleNamespace) -> Path | None:
    """The model before pruning as .onnx, to compare sizes and times; None if .onnx is not wanted."""
    import tfprune

    if "onnx" not in options.formats:
        return None
    return tfprune.export(model, directory, ("onnx",), name="model", opset=options.opset)["onnx"].path


def _over_thresholds(model: Any, dataset: Any, options: SimpleNamespace, output: Path) -> tuple[Any, Any]:
    import tfprune

    def train(model: Any, directory: Path) -> None:
        _fit(model, dataset, options, directory.name, options.epochs, *tracking)

    selection = _selection(options)
    pruning = tfprune.Pruning(
        model,
        selection.pop("only") or "",
        output,
        criterion=options.criterion,
        layers=options.layers,
        heads=options.heads,
        data=_sample(dataset, options),
        slots=options.slots or "reset",
        **selection,
    )
    tracking = _tracking(options, output, pruning)
    pruning.run(train, options.thresholds, options.max_failure_rate, options.max_retries)
    print(pruning.monitor)
    result = pruning.strip()
    return pruning.model, result


def _to_amount(model: Any, dataset: Any, options: SimpleNamespace, output: Path) -> tuple[Any, Any]:
    import tfprune
    from tfprune.recipes.base import along

    amounts: dict[str, Any] = _amounts(options)
    if options.schedule is not None:  # the last epoch is trained at the whole amount
        amounts = along(options.schedule, options.epochs - 1, amounts)
    pruning = tfprune.SoftPruning(
        options.criterion,
        layers=options.layers,
        heads=options.heads,
        data=_sample(dataset, options),
        slots=options.slots or "keep",
        max_failure_rate=options.max_failure_rate,
        csv=output / "failure_rates.csv",
        **amounts,
        **_latency_table(options),
        **_selection(options),
    )
    tracking = _tracking(options, output, pruning)
    _fit(model, dataset, options, "soft pruning", options.epochs, pruning, *tracking)
    if not pruning.plan:
        raise TfpruneError(
            f"{pruning.plan.request if pruning.plan is not None else options.criterion} prunes no channel of "
            f"{model.name!r}; give a larger --ratio, a smaller budget or a smaller --round_to"
        )
    if pruning.plan.forecast is not None:
        print(pruning.plan.forecast)
    print(pruning.monitor)
    return model, tfprune.strip(model)


def _tracking(options: SimpleNamespace, output: Path, pruning: Any) -> list[Any]:
    """The callback that --track asks for."""
    from tfprune.trackers import Tracking, named

    if not options.track:
        return []
    return [Tracking(*(named(name, output) for name in options.track), pruning=pruning)]


COMMAND = Command(
    name="prune",
    summary="train, soft-prune over thresholds or to a ratio, strip, export, and report before and after",
    description=(
        "Trains the model (Adam, cross-entropy), zeroes redundant channels and trains on, threshold after threshold, "
        "until few enough come back; strips what is zero, exports the result and compares accuracy, parameters, MACs, "
        "file size and latency with the model before. For a training loop of your own use tfprune.Pruning or "
        "tfprune.SoftPruning from Python. An ONNX model is not trained: it is pruned once by its weights; --ratio, a "
        "budget or one threshold says how much."
    ),
    example=(
        "tfprune prune --model=MobileNetV2 --dataset=cifar10.npz --train_epochs=20 --output_dir=runs/cifar10\n"
        "tfprune prune --model=my_models:small --dataset=digits --ratio=0.5 --epochs=10 --output_dir=runs/digits"
    ),
    flags=(
        models.MODEL_OR_ONNX,
        *models.TENSORS,
        *datasets.SOURCE,
        Flag("output_dir", "Where everything goes; created if need be.", "DIR", required=True),
        Flag("train_epochs", "Epochs before pruning; 0 for a model that is trained.", "N", 10, "integer", low=0),
        Flag(
            "epochs", "Epochs at each threshold and retry, or in all for --ratio and budgets.", "N", 3, "integer", low=1
        ),
        Flag("batch_size", "Samples a step.", "N", 64, "integer", low=1),
        Flag("learning_rate", "Of Adam.", "RATE", 1e-3, "number", low=0),
        Flag(
            "thresholds",
            "Prune channels more redundant than these, one after the other. Without --ratio: 0.8,0.7,0.6,0.55,0.5.",
            "LIST",
            kind="numbers",
            low=0,
            high=1,
        ),
        Flag.fraction("ratio", "Prune this fraction of every group's channels instead."),
        Flag.fraction("params", "Leave this fraction of the model's parameters."),
        Flag.fraction("macs", "Leave this fraction of its multiply-adds."),
        Flag.fraction(
            "latency",
            "Leave this fraction of its latency, predicted from a table that is measured first (onnxruntime).",
        ),
        Flag(
            "track",
            "Follow the training epoch by epoch: csv (track.csv in the output directory), tensorboard, mlflow (where "
            "MLFLOW_TRACKING_URI says, or mlflow.db there); several are separated by commas.",
            "NAMES",
            kind="list",
        ),
        Flag(
            "latency_table",
            "That table from a file: latency.json of `tfprune bench --advise`, or what LatencyTable.save wrote.",
            "FILE",
        ),
        Flag(
            "scope",
            "What is ranked together: each group by itself, all of them, or those of one structure.",
            "local|global|isomorphic",
            "local",
            "choice",
        ),
        Flag(
            "schedule",
            "How --ratio or a budget is reached over the epochs: constant (at once), linear, polynomial, cosine, "
            "exponential, asymptotic, ladder, rounds or one_shot.",
            "NAME",
        ),
        Flag.fraction(
            "max_failure_rate",
            "Go on to the next threshold when at most this fraction of what was zeroed came back.",
            0.1,
        ),
        Flag("max_retries", "How often the same channels are zeroed again.", "N", 3, "integer", low=0),
        Flag(
            "criterion",
            "What channels are ranked by: redundancy, redundancy_legacy, l1, l2, linf, fpgm, cosine, lamp, bn_scale, "
            "taylor, taylor_weight, hessian, activation, apoz, kmeans_l1, kmeans_taylor, kmeans_distance or random; "
            "see docs/criteria.md.",
            "NAME",
            "redundancy",
        ),
        Flag(
            "criterion_samples",
            "How many training samples a criterion looks at that needs data (taylor and the like).",
            "N",
            256,
            "integer",
            low=1,
        ),
        Flag(
            "only",
            "Prune only layers whose names begin so or match such patterns: block_3_,SE*.",
            "LIST",
            None,
            "list",
        ),
        Flag("ignore", "Leave layers alone whose names begin so or match such patterns.", "LIST", None, "list"),
        Flag("round_to", "The number of channels pruned in a group is a multiple of this.", "N", 4, "integer", low=1),
        Flag("min_width", "So many channels of a group stay at least.", "N", 1, "integer", low=1),
        Flag.fraction("max_ratio", "At most this fraction of a group goes."),
        Flag("layers", "Also prune whole convolutions that the model can live without.", kind="boolean", default=False),
        Flag("heads", "Prune whole attention heads instead of widths inside of them.", kind="boolean", default=False),
        Flag(
            "slots",
            "The optimizer's momentum of what is zeroed: keep it, and channels can come back, or reset it. By default "
            "reset for thresholds, keep otherwise.",
            "keep|reset",
            None,
            "choice",
        ),
        FORMATS,
        OPSET,
        Flag("seed", "Of initial weights and the order of samples.", "N", 0, "integer", low=0),
    ),
    run=_run,
    check=_check,
)
