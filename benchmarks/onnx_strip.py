"""ONNX files of keras.applications (or any given): strip and remove_layers, their differences and times.

    python benchmarks/onnx_strip.py --models=ResNet50,MobileNetV2 --size=96
    python benchmarks/onnx_strip.py --files=model.onnx --remove=10,30,50,70 --seeds=10

Half of every channel group is zeroed by L1 norm and stripped. *Time*: trace, plan and rebuild of strip, over onnx.load,
onnx.save and shape inference of the same file; medians of three, in turns, of the processor's time, which other work on
the machine moves less than the clock's.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import tfprune
from tfprune.frontend import rebuild
from tfprune.strip import outcome

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))


def timed(action: Callable[[], Any]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


def through_onnx(path: Path) -> None:
    """Load, infer shapes and save."""
    onnx.save(onnx.shape_inference.infer_shapes(onnx.load(path)), path.with_suffix(".copy.onnx"))


def through_tfprune(path: Path) -> None:
    """What strip does but for comparing and counting."""
    left = outcome(tfprune.trace(str(path)))
    rebuild(left.graph, left.facts, left.new, left.replacements)


def file_of(name: str, size: int, folder: Path) -> Path:
    """A keras.applications model with random statistics, as a file."""
    import inspect

    import keras
    from models import shaken

    build = getattr(keras.applications, name)
    settings = {"weights": None, "input_shape": (size, size, 3), "classes": 10, "classifier_activation": None}
    if "include_preprocessing" in inspect.signature(build).parameters:
        settings["include_preprocessing"] = False
    model = build(**settings)
    shaken(model)
    return tfprune.export(model, folder, ("onnx",), name=name)["onnx"].path


def strip_row(path: Path) -> str:
    gc.freeze()  # what TensorFlow has made to write the file need not be looked at again and again
    model = onnx.load(path)
    plan = tfprune.select(model, "l1", ratio=0.5)
    tfprune.soft_prune(model, plan)
    pruned = path.with_suffix(".zeroed.onnx")
    onnx.save(model, pruned)
    ours, theirs = [], []
    for _ in range(3):
        theirs.append(timed(lambda: through_onnx(pruned)))
        ours.append(timed(lambda: through_tfprune(pruned)))
    result = tfprune.strip(str(pruned))
    onnx.checker.check_model(result.model, full_check=True)
    before, after = result.cost_before, result.cost_after
    ratio = statistics.median(ours) / statistics.median(theirs)
    return (
        f"| {path.stem} | {len(model.graph.node)} | {before.parameters / 1e6:.2f} → {after.parameters / 1e6:.2f} | "
        f"{before.macs / 1e9:.3f} → {after.macs / 1e9:.3f} | {result.verification.relative:.0e} | {ratio:.2f} |"
    )


def remove_row(path: Path, percents: list[int], seeds: int) -> str:
    parts = []
    for percent in percents:
        sizes = []
        for seed in range(seeds):
            result = tfprune.remove_layers(str(path), percent, seed=seed)
            onnx.checker.check_model(result.model, full_check=True)
            sizes.append(result.cost_after.parameters / result.cost_before.parameters)
        parts.append(f"{percent} %: {len(sizes)} of {seeds} valid, {np.median(sizes):.0%} of the parameters")
    return f"{path.stem}: " + "; ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="")
    parser.add_argument("--files", default="")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--remove", default="")
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print("| model | nodes | parameters, M | MACs, G | difference | time |\n|---|---|---|---|---|---|", flush=True)
        paths = []
        for path in filter(None, options.files.split(",")):
            paths.append(Path(shutil.copy(path, folder)))
            print(strip_row(paths[-1]), flush=True)
        for name in filter(None, options.models.split(",")):
            paths.append(file_of(name, options.size, Path(folder)))
            print(strip_row(paths[-1]), flush=True)
        for path in paths if options.remove else ():
            print(remove_row(path, [int(p) for p in options.remove.split(",")], options.seeds), flush=True)


if __name__ == "__main__":
    main()
