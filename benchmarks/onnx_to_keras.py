"""ONNX files of keras.applications (or any given) as Keras models: how far apart, how long it takes, what prunes.

    python benchmarks/onnx_to_keras.py --models=ResNet50,MobileNetV2 --size=96
    python benchmarks/onnx_to_keras.py --files=model.onnx

*Difference*: Keras against onnxruntime on random inputs, of the largest output. *Opaque*: layers that tracing the Keras
model does not follow. *Stripped*: parameters before and after half of every channel group is zeroed and stripped, and
the difference of that.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from onnx_strip import file_of

import tfprune


def row(path: Path) -> str:
    start = time.perf_counter()
    model = tfprune.to_keras(path)
    seconds = time.perf_counter() - start
    found = tfprune.verify(str(path), model, seed=7)
    graph = tfprune.trace(model)
    tfprune.soft_prune(model, tfprune.select(graph, "l1", ratio=0.5))
    result = tfprune.strip(model)
    sizes = f"{model.count_params() / 1e6:.2f} → {result.model.count_params() / 1e6:.2f}"
    again = tfprune.verify(model, result.model, seed=7)
    return (
        f"| {path.stem} | {len(model.layers)} | {'any' if model.input_shape[0] is None else model.input_shape[0]} "
        f"| {found.relative:.0e} | {seconds:.1f} s | {len(graph.opaque)} | {sizes} | {again.relative:.0e} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="")
    parser.add_argument("--files", default="")
    parser.add_argument("--size", type=int, default=96)
    given = parser.parse_args()
    print("| model | layers | batch | difference | to_keras | opaque | parameters, M | difference stripped |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        files = [lambda path=path: Path(path) for path in given.files.split(",") if path]
        files += [lambda name=name: file_of(name, given.size, Path(folder)) for name in given.models.split(",") if name]
        for file in files:
            try:
                path = file()
                print(row(path), flush=True)
            except tfprune.TfpruneError as error:
                print(f"| {path.stem} | {type(error).__name__}: {str(error)[:300]} |", flush=True)


if __name__ == "__main__":
    main()
