"""Accuracy against measured MACs: all recipes, training from scratch, and Torch-Pruning, in one run of one command.

    python benchmarks/accuracy/run.py --tier=short --dataset=cifar10.npz --torch_python=torch_env/bin/python
    KERAS_BACKEND=jax python benchmarks/accuracy/run.py --tier=full --model=resnet56 --dataset=cifar10.npz ...

One model is trained first. Every arm starts from those very weights (Torch-Pruning too: they are copied), sees the same
batches in the same order (`images.py`) for the same number of epochs, with SGD, momentum and weight decay alike, and a
learning rate that begins at the same value and falls along a cosine in each stage of its recipe. `unpruned` is the
model trained on for as many epochs; `scratch` the small model with new weights, trained for all epochs, those of the
first training included. MACs are counted on the stripped models. Test images are looked at for the curves and the
results, and nothing is chosen by them.

Each arm writes `OUTPUT_DIR/MODEL/seedN/ARM.json` when it is done; the same command goes on where it was killed. In the
end everything is in `OUTPUT_DIR/MODEL.json`, with the command and the settings; `picture.py` draws it.
"""

import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent.parent))
sys.path.insert(0, str(pathlib.Path(__file__).parent))

import keras
import numpy as np
from absl import app, flags
from images import Images
from training import Training, accuracy

import tfprune
from examples.models.mobilenet_v2 import mobilenet_v2
from examples.models.resnet import resnet20, resnet56
from tfprune import recipes
from tfprune.files import atomic_path, output_directory, write_json
from tfprune.recipes.base import taught
from tfprune.tables import table

FLAGS = flags.FLAGS
HERE = pathlib.Path(__file__).parent
MODELS = {"resnet20": resnet20, "resnet56": resnet56, "mobilenet_v2": mobilenet_v2}
DEPTHS = {"resnet20": 20, "resnet56": 56}

# What a tier is, each to be overridden by its flag. Two quiet cores finish `short` in about an hour.
TIERS = {
    "short": {"train_samples": 10_000, "test_samples": 10_000, "first_epochs": 24, "epochs": 12, "batch_size": 128,
              "first_rate": 0.1, "rate": 0.05, "decay": 5e-3, "seeds": 1},
    "full": {"train_samples": 50_000, "test_samples": 10_000, "first_epochs": 200, "epochs": 200, "batch_size": 128,
             "first_rate": 0.1, "rate": 0.05, "decay": 5e-3, "seeds": 3},
}  # fmt: skip

# Arm -> (recipe, what it is told beside the amount). Arms are run in this order.
ARMS = {
    "unpruned": None,
    "torch_group_norm": None,
    "agp": ("agp", {"until": 0.3}),
    "sfp": ("sfp", {}),
    "agp_taught": ("agp", {"until": 0.3}),
    "torch_group_sl": None,
    "group_sparsity": ("group_sparsity", {}),
    "fpgm": ("fpgm", {}),
    "slimming": ("slimming", {}),
    "asfp": ("asfp", {}),
    "ladder": ("ladder", {}),
    "scratch": ("scratch", {}),
}

flags.DEFINE_string("dataset", None, "An .npz file with x_train, y_train, x_test and y_test.", required=True)
flags.DEFINE_enum("model", "resnet20", list(MODELS), "What is pruned.")
flags.DEFINE_enum("tier", "short", list(TIERS), "How much training.")
flags.DEFINE_float("macs", 0.5, "The fraction of the model's MACs that is left.", 0, 1)
flags.DEFINE_list("arms", list(ARMS), "Which arms; they start from the same trained model.")
flags.DEFINE_string("torch_python", None, "A Python with torch and torch-pruning; without it those arms are left out.")
flags.DEFINE_string("output_dir", "runs/accuracy", "Where everything goes.")
flags.DEFINE_integer("seed", 0, "The first of the seeds.", lower_bound=0)
for _name, _default in TIERS["short"].items():
    _define = flags.DEFINE_float if isinstance(_default, float) else flags.DEFINE_integer
    _define(_name, None, f"In place of the tier's {_name}.")


def main(_):
    """Run what is missing, and write what there is."""
    unknown = [arm for arm in FLAGS.arms if arm not in ARMS]
    if unknown:
        raise app.UsageError(f"unknown arm {unknown[0]!r}; there are {', '.join(ARMS)}")
    settings = {name: getattr(FLAGS, name) or value for name, value in TIERS[FLAGS.tier].items()}
    settings |= {"model": FLAGS.model, "tier": FLAGS.tier, "macs": FLAGS.macs}
    output = output_directory(pathlib.Path(FLAGS.output_dir) / FLAGS.model)
    for seed in range(FLAGS.seed, FLAGS.seed + settings["seeds"]):
        run_seed(seed, settings, output / f"seed{seed}")
        report(settings, output)


def run_seed(seed, settings, directory):
    """All arms that start from one trained model."""
    same = write_or_compare(directory / "settings.json", {**settings, "seeds": None})
    if not same:
        raise SystemExit(f"{directory} was made with other settings; see its settings.json, or give another directory")
    images = Images(FLAGS.dataset, settings["train_samples"], settings["test_samples"], settings["batch_size"], seed)
    trained = directory / "trained.keras"
    if not trained.exists():
        train_first(images, settings, trained, seed)
    for arm in ARMS:
        if arm not in FLAGS.arms or (directory / f"{arm}.json").exists():
            continue
        print(f"{FLAGS.model}, seed {seed}: {arm}", flush=True)
        keras.utils.set_random_seed(seed)
        if arm.startswith("torch_"):
            run_torch(arm, images, settings, directory, seed)
        else:
            write_json(directory / f"{arm}.json", run_arm(arm, images, settings, trained))
        keras.backend.clear_session()


def train_first(images, settings, path, seed):
    """The model that all arms start from, its accuracy, and its weights for PyTorch."""
    keras.utils.set_random_seed(seed)
    print(f"{FLAGS.model}, seed {seed}: first training", flush=True)
    model, start = MODELS[FLAGS.model](), time.time()
    train = Training(images, settings["first_rate"], settings["decay"], path.parent / "stages")
    train(model, settings["first_epochs"], stage="first")
    graph = tfprune.trace(model)
    weights = {w.key: keras.ops.convert_to_numpy(v) for w, v in graph.variables.items()}
    write_json(path.with_name("trained.json"), {**measured(model, images, train, start), "macs_before": None})
    with atomic_path(path.with_name("trained.npz")) as scratch:
        np.savez(scratch, **weights)
    with atomic_path(path) as scratch:
        model.save(scratch)


def run_arm(arm, images, settings, trained):
    """Train, prune and measure one arm."""
    model, start = keras.saving.load_model(trained), time.time()
    before = tfprune.cost(model)
    epochs = settings["epochs"]
    stages = trained.parent / "stages" / arm
    train = Training(images, settings["rate"], settings["decay"], stages, epoch=settings["first_epochs"])
    note = {}
    if arm == "unpruned":
        train(model, epochs)
        smaller = model
    else:
        name, options = ARMS[arm]
        if arm == "scratch":
            train = Training(images, settings["first_rate"], settings["decay"], stages)
            epochs += settings["first_epochs"]
        asked = taught(train, keras.saving.load_model(trained)) if arm.endswith("_taught") else train
        result = recipes.named(name)(model, asked, epochs=epochs, macs=settings["macs"], round_to=1, **options)
        smaller = result.model
        note = {"recipe": name, "options": options, "widths": widths(smaller)}
        if result.verification is not None:
            note["stripped_against_soft_pruned"] = result.verification.relative
    found = {**measured(smaller, images, train, start), "macs_before": before.macs, **note}
    print(f"  {arm}: {found['accuracy']:.2%} at {found['macs'] / before.macs:.2%} of the MACs", flush=True)
    return found


def measured(model, images, train, start):
    """What every arm's file holds."""
    after = tfprune.cost(model)
    return {
        "accuracy": accuracy(model, images),
        "macs": after.macs,
        "parameters": after.parameters,
        "seconds": round(time.time() - start),
        "epochs": train.epoch - train.first,
        "curve": train.curve,
    }


def widths(model):
    """Convolution -> filters."""
    return {layer.name: layer.filters for layer in model.layers if isinstance(layer, keras.layers.Conv2D)}


def run_torch(arm, images, settings, directory, seed):
    """The same in PyTorch, by `torch_arm.py` in an environment of its own."""
    if FLAGS.torch_python is None or FLAGS.model not in DEPTHS:
        why = "no --torch_python" if FLAGS.torch_python is None else f"{FLAGS.model} is not built there"
        print(f"  left out: {why}", flush=True)
        return
    given = {
        "method": arm.removeprefix("torch_"), "depth": DEPTHS[FLAGS.model], "dataset": FLAGS.dataset,
        "weights": directory / "trained.npz", "output": directory / f"{arm}.json", "seed": seed,
        "first_epoch": settings["first_epochs"], "train_samples": len(images.x), "test_samples": len(images.x_test),
        **{name: settings[name] for name in ("batch_size", "epochs", "rate", "decay", "macs")},
    }  # fmt: skip
    command = [FLAGS.torch_python, str(HERE / "torch_arm.py"), *(f"--{name}={value}" for name, value in given.items())]
    # Its threads wait in a busy loop otherwise, which makes it many times slower where cores are shared.
    subprocess.run(command, check=True, env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"})
    ours = json.loads((directory / "trained.json").read_text())["accuracy"]
    theirs = json.loads((directory / f"{arm}.json").read_text())["accuracy_before"]
    if abs(ours - theirs) > 0.002:
        raise SystemExit(f"the same weights have an accuracy of {ours:.2%} here and {theirs:.2%} in PyTorch")


def write_or_compare(path, value):
    """Whether a file holds this already, or does now."""
    if not path.exists():
        write_json(path, value)
    return json.loads(path.read_text()) == value


def report(settings, output):
    """One JSON and one table of all arms of all seeds."""
    found = {}
    for path in sorted(output.glob("seed*/*.json")):
        if path.stem != "settings":
            found.setdefault(path.stem, {})[path.parent.name] = json.loads(path.read_text())
    order = {name: place for place, name in enumerate(["trained", *ARMS])}
    found = dict(sorted(found.items(), key=lambda item: order[item[0]]))
    rows = []
    for arm, seeds in found.items():
        accuracies = [one["accuracy"] for one in seeds.values()]
        spread = f" ± {statistics.stdev(accuracies):.2%}" if len(accuracies) > 1 else ""
        one = next(iter(seeds.values()))
        left = one["macs"] / (one["macs_before"] or one["macs"])
        mean = statistics.mean(accuracies)
        drop = ""
        if "unpruned" in found:
            paired = [
                found["unpruned"][s]["accuracy"] - o["accuracy"] for s, o in seeds.items() if s in found["unpruned"]
            ]
            drop = f"{100 * statistics.mean(paired):+.2f}" if paired else ""
        rows.append((arm, f"{mean:.2%}{spread}", drop, f"{left:.2%}", one["parameters"], one["epochs"], one["seconds"]))
    header = ("arm", "accuracy", "drop, points", "MACs left", "parameters", "epochs", "seconds")
    text = table(f"{FLAGS.model} on {pathlib.Path(FLAGS.dataset).name}, {FLAGS.tier} tier", header, rows)
    print(text, flush=True)
    command = " ".join(["python", "benchmarks/accuracy/run.py", *map(without_folders, sys.argv[1:])])
    write_json(
        output.with_suffix(".json"),
        {
            "command": command,
            "settings": settings,
            "backend": keras.backend.backend(),
            "machine": f"{os.cpu_count()} cores, {platform.machine()}",
            "arms": found,
        },
    )


def without_folders(argument):
    """A flag as it may be shown: of absolute paths the last part."""
    name, equals, value = argument.partition("=")
    return f"{name}{equals}{pathlib.Path(value).name}" if value.startswith("/") else argument


if __name__ == "__main__":
    app.run(main)
