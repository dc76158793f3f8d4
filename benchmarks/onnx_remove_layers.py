"""Convolutions removed from ONNX files of keras.applications: is every result valid, and does it run?

    python benchmarks/onnx_remove_layers.py --models=ResNet152,InceptionV3,VGG19,ResNet50 --size=96
    python benchmarks/onnx_remove_layers.py --files=model.onnx

At each percentage: so many random choices, the lowest L1 scores, and a list of names. A result counts if ONNX's checker
takes it with full shape inference, onnxruntime runs it, its outputs have the shapes of the model's and are finite, and
the convolutions that were chosen, and no others, are gone.
"""

from __future__ import annotations

import argparse
import gc
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx_strip import file_of

import tfprune
from tfprune.errors import PlanError
from tfprune.onnx_graph.run import random_inputs, run


def convolutions(model: onnx.ModelProto) -> set[str]:
    return {node.name for node in model.graph.node if node.op_type == "Conv"}


class Tries:
    """One model, and what came of it."""

    def __init__(self, path: Path):
        self.model = onnx.load(path)
        self.inputs = random_inputs(self.model)
        self.shapes = [y.shape for y in run(self.model, self.inputs)]
        self.every = convolutions(self.model)
        self.valid = self.tried = 0

    def one(self, percent: float | None, **settings: Any) -> float:
        """Remove some, count it, and say which fraction of the parameters is left."""
        self.tried += 1
        result = tfprune.remove_layers(self.model, percent, **settings)
        onnx.checker.check_model(result.model, full_check=True)
        outputs = run(result.model, self.inputs)
        gone = self.every - convolutions(result.model)
        wanted = len(settings["names"]) if percent is None else int(percent * len(self.every) / 100 + 1e-9)
        runs = [y.shape for y in outputs] == self.shapes and all(np.isfinite(y).all() for y in outputs)
        self.valid += runs and gone == set(result.removed) and len(gone) == wanted
        return result.cost_after.parameters / result.cost_before.parameters


def row(path: Path, percents: list[int], seeds: int) -> str:
    gc.freeze()  # what TensorFlow has made to write the file need not be looked at again and again
    start, tries, left = time.perf_counter(), Tries(path), []
    for percent in percents:
        sizes = [tries.one(percent, seed=seed) for seed in range(seeds)]
        tries.one(percent, criterion="l1")
        names = sorted(tries.every)
        random.Random(percent).shuffle(names)
        try:
            tries.one(None, names=names[: len(names) * percent // 100])
        except PlanError as error:
            print(error)
        left.append(f"{np.median(sizes):.0%}")
    seconds = (time.perf_counter() - start) / tries.tried
    counts = f"{path.stem} | {len(tries.every)} | {tries.valid} of {tries.tried}"
    return f"| {counts} | {' | '.join(left)} | {seconds:.1f} s |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="")
    parser.add_argument("--files", default="")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--percents", default="10,30,50,70")
    parser.add_argument("--seeds", type=int, default=10)
    given = parser.parse_args()
    percents = [int(percent) for percent in given.percents.split(",")]
    print(f"| model | convolutions | valid and running | {' | '.join(f'{p} %' for p in percents)} | each |")
    print("|---|---|---|" + "---|" * (len(percents) + 1), flush=True)
    for path in filter(None, given.files.split(",")):
        print(row(Path(path), percents, given.seeds), flush=True)
    for name in filter(None, given.models.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            print(row(file_of(name, given.size, Path(folder)), percents, given.seeds), flush=True)


if __name__ == "__main__":
    main()
