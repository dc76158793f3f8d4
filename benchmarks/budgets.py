"""Budgets on architectures of keras.applications, measured on the stripped model; and how long selection takes.

    python benchmarks/budgets.py                        20 architectures, half of the MACs left, two scopes
    python benchmarks/budgets.py --budget=params --left=0.3 --models ResNet50 VGG16
    python benchmarks/budgets.py --speed                seconds of a global plan: ResNet152 and NASNetLarge

Fresh random weights, 96 pixels, L2, steps of 4 channels. `left` is cost(stripped) / cost(model), counted by
`tfprune.cost` on the rebuilt model; `off` how far that is from the budget, as a fraction of it. The exit code is 1 if
it is 1 % or more, and the plan does not say why.
"""

from __future__ import annotations

import argparse
import functools

from common import keras, median, progress, timed

import tfprune
from tfprune.tables import table

MODELS = (
    "ConvNeXtTiny", "DenseNet121", "DenseNet201", "EfficientNetB0", "EfficientNetB3", "EfficientNetV2B0",
    "EfficientNetV2S", "InceptionResNetV2", "InceptionV3", "MobileNet", "MobileNetV2", "MobileNetV3Large",
    "MobileNetV3Small", "NASNetMobile", "ResNet50", "ResNet50V2", "ResNet101", "VGG16", "VGG19", "Xception",
)  # fmt: skip
LARGE = ("ResNet152", "NASNetLarge")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", metavar="NAME")
    parser.add_argument("--budget", choices=("params", "macs"), default="macs")
    parser.add_argument("--left", type=float, default=0.5, help="the budget, a fraction of the model")
    parser.add_argument("--size", type=int, default=96, help="of the images")
    parser.add_argument("--speed", action="store_true", help="how long selection takes")
    parser.add_argument("--repeats", type=int, default=3, help="with --speed")
    given = parser.parse_args()
    return speed(given) if given.speed else accuracy(given)


def accuracy(given: argparse.Namespace) -> int:
    rows, unexplained = [], 0
    for name in given.models or MODELS:
        keras.backend.clear_session()
        model = built(name, given.size)
        graph = tfprune.trace(model)
        row = [name]
        for scope in ("local", "global"):
            choose = functools.partial(tfprune.select, graph, "l2", scope=scope, **{given.budget: given.left})
            seconds, plan = timed(choose)
            result = tfprune.strip(model, plan, verify=False)
            before, after = (
                cost.parameters if given.budget == "params" else cost.macs
                for cost in (result.cost_before, result.cost_after)
            )
            off = after / before / given.left - 1
            unexplained += abs(off) >= 0.01 and not plan.forecast.notes
            row += [f"{after / before:.2%}", f"{off:+.2%}", f"{seconds:.2f}"]
        rows.append(tuple(row))
        progress(" ".join(row))
    title = f"{given.left:.0%} of the {'parameters' if given.budget == 'params' else 'MACs'} asked for"
    print(table(title, ("model", "local: left", "off", "s", "global: left", "off", "s"), rows))
    return int(unexplained > 0)


def speed(given: argparse.Namespace) -> int:
    rows = []
    for name in given.models or LARGE:
        keras.backend.clear_session()
        graph = tfprune.trace(built(name, None))
        row = [name, f"{len(graph.groups)}"]
        for arguments in ({"ratio": 0.5}, {"ratio": 0.5, "scope": "global"}, {"macs": 0.5, "scope": "global"}):
            row.append(f"{median(given.repeats, functools.partial(tfprune.select, graph, 'l2', **arguments)):.2f}")
        rows.append(tuple(row))
    columns = ("model", "groups", "ratio=0.5, s", "ratio=0.5, global, s", "macs=0.5, global, s")
    print(table("seconds of select, given the graph", columns, rows))
    return 0


def built(name: str, size: int | None) -> keras.Model:
    shape = None if size is None else (size, size, 3)
    return getattr(keras.applications, name)(weights=None, input_shape=shape, classifier_activation=None)


if __name__ == "__main__":
    raise SystemExit(main())
