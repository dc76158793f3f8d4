"""Train and prune by a recipe of a paper."""

from __future__ import annotations

import ast
from types import SimpleNamespace
from typing import Any

from tfprune import recipes
from tfprune.cli import datasets, models
from tfprune.cli.command import Command, Flag, UsageError
from tfprune.errors import PlanError, TfpruneError, nearest

_AMOUNTS = ("ratio", "params", "macs", "latency")


def _run(options: SimpleNamespace) -> None:
    import keras

    from tfprune.cli.training import Stages
    from tfprune.files import output_directory
    from tfprune.report.stages import RunReport, measure

    recipe, own = _recipe(options)
    output = output_directory(options.output_dir)
    keras.utils.set_random_seed(options.seed)
    dataset = datasets.load(options)
    print(dataset)
    model = models.load(options.model, dataset.shape, dataset.classes)
    dataset.check_model(model)
    train_set, validation = _held_out(dataset, options.validation)
    train = Stages(
        train_set,
        validation,
        output / "stages",
        from_logits=not models.gives_probabilities(model),
        optimizer=options.optimizer,
        rate=options.learning_rate,
        decay=options.weight_decay,
        batch_size=options.batch_size,
        seed=options.seed,
        settings={name: value for name, value in vars(options).items() if name != "output_dir"},
    )
    if options.train_epochs:
        train(model, options.train_epochs, stage="first")
    before = measure("before", model, dataset.x_test, dataset.y_test)
    print(f"accuracy before pruning: {before.accuracy:.2%}")

    taught = _taught(train, model, options)
    result = recipe(model, taught, epochs=options.epochs, **_amounts(options), **_selection(options), **own)
    stripped = measure("stripped", result.model, dataset.x_test, dataset.y_test)
    written = [models.save(result.model, output), train.to_csv(output / "curve.csv")]
    title = f"{options.recipe}: {result.model.name} on {dataset.name}"
    report = RunReport(title, (before, stripped), vars(options), [str(path) for path in written])
    print(f"{result}\n\n{report}\nwrote {report.to_json(output / 'results.json')}")


def _recipe(options: SimpleNamespace) -> tuple[Any, dict[str, Any]]:
    """The recipe, and its own options, checked."""
    import inspect

    from tfprune.data import import_function

    own = dict(_assignment(text) for text in options.options or ())
    named = ":" not in options.recipe
    recipe = recipes.named(options.recipe) if named else import_function(options.recipe, TfpruneError)
    known = [name for name, one in inspect.signature(recipe).parameters.items() if one.kind is one.KEYWORD_ONLY]
    if options.criterion is not None:
        own["criterion"] = options.criterion
    if options.stop_early:
        own["stop_early"] = True
    for name in own:
        if name not in known:
            takes = ", ".join(n for n in known if n not in ("epochs", "callbacks"))
            raise PlanError(f"recipe {options.recipe} has no {name}{nearest(name, known)}; it takes {takes}")
    return recipe, own


def _taught(train: Any, model: Any, options: SimpleNamespace) -> Any:
    """The training, with a teacher if one was given."""
    if options.teacher is None:
        return train
    import keras

    from tfprune.recipes.base import taught

    if options.teacher == "self":
        teacher = keras.models.clone_model(model)
        teacher.set_weights(model.get_weights())
    else:
        teacher = models.load_file(options.teacher)
    return taught(train, teacher, temperature=options.temperature, alpha=options.alpha, from_logits=train.from_logits)


def _held_out(dataset: Any, fraction: float) -> tuple[tuple[Any, Any], tuple[Any, Any] | None]:
    """(x, y) to train on, and the last part of the training samples for validation."""
    count = int(len(dataset.x_train) * fraction)
    if not count:
        return (dataset.x_train, dataset.y_train), None
    cut = len(dataset.x_train) - count
    return (dataset.x_train[:cut], dataset.y_train[:cut]), (dataset.x_train[cut:], dataset.y_train[cut:])


def _amounts(options: SimpleNamespace) -> dict[str, float]:
    given = {name: getattr(options, name) for name in _AMOUNTS}
    return {name: value for name, value in given.items() if value is not None}


def _selection(options: SimpleNamespace) -> dict[str, Any]:
    """The flags that are arguments of `tfprune.select`; a recipe has a scope of its own where none is given."""
    given = {name: getattr(options, name) for name in ("scope", "only", "ignore", "round_to", "min_width", "max_ratio")}
    return {name: value for name, value in given.items() if value is not None}


def _assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"--options takes name=value separated by commas, such as strength=1e-4, and {text!r} came")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _check(options: SimpleNamespace) -> None:
    """What no single flag can say."""
    datasets.check(options)
    amounts = _amounts(options)
    if not amounts:
        raise UsageError("say how much: --macs, --params or --latency (what is left), or --ratio (what goes)")
    if "ratio" in amounts and len(amounts) > 1:
        raise UsageError("give either --ratio or budgets (--params, --macs, --latency), not both")
    if ":" not in options.recipe and options.recipe not in recipes.names():
        near = nearest(options.recipe, recipes.names())
        raise UsageError(f"there is no recipe {options.recipe!r}{near}; there are {', '.join(recipes.names())}")
    for text in options.options or ():
        _assignment(text)


COMMAND = Command(
    name="train",
    summary="train and prune by a recipe of a paper: SFP, FPGM, network slimming, group sparsity, ...",
    description=(
        "Trains and prunes a model as a paper does (docs/recipes.md), to a budget that the stripped model meets, and "
        "writes the stripped model, results.json and the curve. Each stage has a learning rate that falls to 0 along a "
        "cosine. A run that was killed goes on when the same command is started again; one with other flags is refused."
    ),
    example=(
        "tfprune train --recipe=sfp --model=my_models:small --dataset=digits --macs=0.5 --output_dir=runs/sfp\n"
        "tfprune train --recipe=group_sparsity --model=trained.keras --dataset=cifar10.npz --epochs=40 --macs=0.5 "
        "--teacher=self --options=strength=1e-3 --output_dir=runs/gs"
    ),
    flags=(
        Flag(
            "recipe",
            "Which: one of these, or a function of your own that takes the same.",
            f"{'|'.join(recipes.names())}|module:function",
            required=True,
        ),
        models.MODEL,
        *datasets.SOURCE,
        Flag("output_dir", "Where everything goes; created if need be.", "DIR", required=True),
        Flag("epochs", "Epochs of the recipe, all its stages together.", "N", 20, "integer", low=1),
        Flag("train_epochs", "Epochs of ordinary training before it.", "N", 0, "integer", low=0),
        Flag.fraction("macs", "Leave this fraction of the model's multiply-adds."),
        Flag.fraction("params", "Leave this fraction of its parameters."),
        Flag.fraction(
            "latency", "Leave this fraction of its latency, predicted from a table that is measured (onnxruntime)."
        ),
        Flag.fraction("ratio", "Prune this fraction of the channels instead."),
        Flag("criterion", "What channels are ranked by, in place of the recipe's own; see docs/criteria.md.", "NAME"),
        Flag("options", "What else the recipe takes: strength=1e-4,part=0.3.", "NAME=VALUE,...", None, "list"),
        Flag("teacher", "Learn from this model as well; self: from the model as it was before.", "PATH.keras|self"),
        Flag("temperature", "Of the teacher's outputs, above 0.", "T", 4.0, "number", low=0),
        Flag.fraction("alpha", "The teacher's share of the loss.", 0.5),
        Flag("stop_early", "Stop once few enough filters come back.", kind="boolean", default=False),
        Flag("optimizer", "SGD with momentum 0.9, or Adam.", "sgd|adam", "sgd", "choice"),
        Flag("learning_rate", "At the beginning of each stage.", "RATE", 0.05, "number", low=0),
        Flag("weight_decay", "Each step takes away rate * this of every weight.", "DECAY", 0.0, "number", low=0),
        Flag("batch_size", "Samples a step.", "N", 64, "integer", low=1),
        Flag(
            "validation",
            "The last part of the training samples that is not trained on but measured, for the curve.",
            "FRACTION",
            0.1,
            "number",
            low=0,
            high=0.9,
        ),
        Flag(
            "scope",
            "What is ranked together; the recipe's own if not given.",
            "local|global|isomorphic",
            None,
            "choice",
        ),
        Flag("only", "Prune only layers whose names begin so or match such patterns.", "LIST", None, "list"),
        Flag("ignore", "Leave layers alone whose names begin so or match such patterns.", "LIST", None, "list"),
        Flag("round_to", "The number of channels pruned in a group is a multiple of this.", "N", kind="integer", low=1),
        Flag("min_width", "So many channels of a group stay at least.", "N", kind="integer", low=1),
        Flag.fraction("max_ratio", "At most this fraction of a group goes."),
        Flag("seed", "Of initial weights and the order of samples.", "N", 0, "integer", low=0),
    ),
    run=_run,
    check=_check,
)
