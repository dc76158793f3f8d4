"""What pruning saves in onnxruntime, against the multiply-adds it saves and against a model built by hand.

    python benchmarks/latency.py                                  # ResNet50 and MobileNetV2, ratio 0.5
    python benchmarks/latency.py --models ResNet50 --round_to 1 8 16 --threads 1 --processors   # on a busy machine

Each model of keras.applications at 224 loses half of every width by L2. It, its stripped self for each --round_to, and
for the first of those a model built by hand (the application's own layers with the stripped ones' widths, random
weights) are exported to ONNX and run in turns, one image each.

ms         the median, and [quartiles]; `least`: the least of all runs, which what else a machine does cannot lower
speed-up   of the unpruned model's time over this one's: the median of the ratios of neighbouring runs; of the leasts
fewer MACs multiply-adds before over after
kept       speed-up over fewer MACs, from the medians and from the leasts; 1 is as fast as there is less to compute
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from common import application, keras, lively, progress

import tfprune
from tfprune.export.device import onnx_runtime, process
from tfprune.export.names import input_names, output_names
from tfprune.export.registry import Options, find
from tfprune.tables import table


def by_hand(model: keras.Model, stripped: keras.Model) -> keras.Model:
    """The model's own architecture with the widths of the stripped one, written into its layers' settings."""

    def narrower(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = layer.get_config()
        try:
            wanted = stripped.get_layer(layer.name).get_config()
        except ValueError:  # gone, and with it what its settings could say
            wanted = config
        for setting in ("filters", "units", "groups"):
            if setting in config:
                config[setting] = wanted[setting]
        return type(layer).from_config(config)

    return keras.models.clone_model(model, clone_function=narrower)


def shape_of(path: Path) -> list[Any]:
    """An ONNX graph without names and numbers: operators, attributes, the shapes of constants; equal ones run alike."""
    graph = onnx.load(path).graph
    constants = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    makers = {name: place for place, node in enumerate(graph.node) for name in node.output}
    return [
        (
            node.op_type,
            sorted(attribute.SerializeToString() for attribute in node.attribute),
            [constants.get(name, makers.get(name)) for name in node.input],
        )
        for node in graph.node
    ]


def measure(
    name: str, rounds: list[int], threads: int, turns: int, folder: Path, processors: bool, layout: str
) -> list[dict[str, Any]]:
    """The rows of one application."""
    model = application(name, 224)
    models = {"unpruned": model}
    for round_to in rounds:
        progress(f"{name}, rounded to {round_to}")
        plan = tfprune.select(model, "l2", ratio=0.5, round_to=round_to)
        models[f"stripped, round_to={round_to}"] = tfprune.strip(model, plan, verify=False).model
    first = models[f"stripped, round_to={rounds[0]}"]
    models["by hand, the same widths"] = lively(by_hand(model, first))  # zero biases would be left out
    files = []
    x = np.random.default_rng(0).standard_normal((1, 224, 224, 3)).astype(np.float32)
    for place, one in enumerate(models.values()):
        path = folder / f"{name}_{place}.onnx"
        options = Options(input_names(one), output_names(one), layout=layout)
        find("onnx").write(one, path, options)
        files.append((path, options.inputs, options.outputs, find("onnx").feed([x], options)))
    host = process.Process()
    taken = process.run_in_turns(host, onnx_runtime, files, turns, warm=5, threads=threads, processors=processors)
    seconds = 1e3 * taken
    host.close()
    costs = [tfprune.cost(one) for one in models.values()]
    rows = []
    for what, cost, ms in zip(models, costs, seconds, strict=True):
        fewer = costs[0].macs / cost.macs
        faster, at_best = float(np.median(seconds[0] / ms)), float(seconds[0].min() / ms.min())
        row = {"model": name, "what": what, "parameters M": cost.parameters / 1e6, "MACs M": cost.macs / 1e6}
        row |= {"ms": float(np.median(ms)), "quartiles": [float(q) for q in np.percentile(ms, (25, 75))]}
        row |= {"least": float(ms.min()), "speed-up": faster, "speed-up of leasts": at_best, "fewer MACs": fewer}
        row |= {"kept": faster / fewer, "kept of leasts": at_best / fewer}
        rows.append(row)
    stripped, hand = seconds[1], seconds[-1]
    ratio = float(np.median(stripped / hand)), float(stripped.min() / hand.min())
    alike = shape_of(files[1][0]) == shape_of(files[-1][0])
    rows[-1] |= {"stripped over by hand": ratio, "same graph": alike}
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["ResNet50", "MobileNetV2"])
    parser.add_argument("--round_to", nargs="*", type=int, default=[1, 8])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--processors", action="store_true", help="count the processors' time; for --threads 1")
    parser.add_argument("--layout", choices=("NHWC", "NCHW"), default="NHWC", help="of the images")
    parser.add_argument("--turns", type=int, default=60)
    parser.add_argument("--json", help="write the rows to this file, too")
    flags = parser.parse_args()
    rows = []
    for name in flags.models:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(
                name, flags.round_to, flags.threads, flags.turns, Path(folder), flags.processors, flags.layout
            )
        rows += found
        header = (
            "what",
            "parameters M",
            "MACs M",
            "ms",
            "quartiles",
            "least",
            "speed-up",
            "fewer MACs",
            "kept",
            "of leasts",
        )
        cells = [
            (
                row["what"],
                row["parameters M"],
                row["MACs M"],
                row["ms"],
                "[{:.3g} {:.3g}]".format(*row["quartiles"]),
                row["least"],
                row["speed-up"],
                row["fewer MACs"],
                row["kept"],
                row["kept of leasts"],
            )
            for row in found
        ]
        print(table(f"{name}, {flags.threads} threads", header, cells))
        print(
            "stripped over by hand: {:.3f}, of leasts {:.3f}\n".format(*found[-1]["stripped over by hand"]), flush=True
        )
    if flags.json:
        Path(flags.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
