"""Accuracy against the MACs that are left, and over the epochs, of what `run.py` wrote.

python benchmarks/accuracy/picture.py --results=benchmarks/accuracy/resnet20_short.json --output=pic/accuracy.png

Torch-Pruning's are squares and dashed lines.
"""

import json
import statistics

import matplotlib
from absl import app, flags
from matplotlib.figure import Figure

from tfprune.files import atomic_path

FLAGS = flags.FLAGS
flags.DEFINE_string("results", None, "The JSON that run.py wrote for a model.", required=True)
flags.DEFINE_string("output", "pic/accuracy.png", "Where the picture goes; its suffix is its format.")


def main(_):
    """Draw it."""
    with open(FLAGS.results, encoding="utf-8") as file:
        results = json.load(file)
    arms = {name: list(seeds.values()) for name, seeds in results["arms"].items() if name != "trained"}
    palette = matplotlib.colormaps["turbo"]([i / max(1, len(arms) - 1) for i in range(len(arms))])
    colours = dict(zip(arms, palette, strict=True))
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    against, over = figure.subplots(1, 2)
    for name, seeds in arms.items():
        torch = name.startswith("torch_")
        style = {"color": colours[name], "label": name.replace("torch_", "Torch-Pruning ")}
        whole = max(seed["macs"] for others in arms.values() for seed in others)
        left = [100 * seed["macs"] / (seed["macs_before"] or whole) for seed in seeds]
        right = [100 * seed["accuracy"] for seed in seeds]
        error = statistics.stdev(right) if len(right) > 1 else 0
        marker = "s" if torch else "o"
        against.errorbar(statistics.mean(left), statistics.mean(right), error, marker=marker, linestyle="", **style)
        curve = seeds[0]["curve"]
        drawn = [100 * row["val_accuracy"] for row in curve]
        over.plot([row["epoch"] + 1 for row in curve], drawn, "--" if torch else "-", color=colours[name])
    against.set(xlabel="MACs left, %", ylabel="test accuracy, %")
    against.legend(fontsize=8)
    over.set(xlabel="epoch", ylabel="accuracy on 1,000 test images, %")
    for axes in (against, over):
        axes.grid(alpha=0.3)
    settings = results["settings"]
    figure.suptitle(f"{settings['model']}, CIFAR-10, {settings['train_samples']:,} images, {settings['tier']} tier")
    with atomic_path(FLAGS.output) as scratch:
        figure.savefig(scratch, dpi=140, facecolor="white")
    print(FLAGS.output)


if __name__ == "__main__":
    app.run(main)
