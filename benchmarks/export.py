"""Export models of keras.applications and print what came out, one process a model.

    python benchmarks/export.py                          # ONNX, ten models
    python benchmarks/export.py --formats onnx,pb --models MobileNetV2,VGG16 --size 224

Columns: `difference` is the largest from Keras, as a fraction of the largest output (logits); `spread` the largest
standard deviation of any output from one input to the next, over it; `seconds` covers writing, loading and comparing;
`peak` is the process' largest memory, `before` what it held when export began (TensorFlow and the model); `latency` is
onnxruntime's median for one image on two threads.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

MODELS = {
    "MobileNetV2": 96,
    "MobileNetV3Small": 96,
    "EfficientNetB0": 96,
    "ResNet50": 96,
    "ResNet50V2": 96,
    "DenseNet121": 96,
    "InceptionV3": 96,
    "VGG16": 64,
    "ConvNeXtTiny": 96,
    "NASNetMobile": 96,
}
COLUMNS = ("model", "size", "format", "ok", "difference", "spread", "nodes", "Transposes", "seconds", "MB", "before MB",
           "peak MB", "latency ms")  # fmt: skip


def build(name: str, size: int):
    """The model with random weights, BatchNormalization statistics and biases, so that its outputs vary."""
    import keras
    import numpy as np

    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    arguments = {"weights": None, "input_shape": (size, size, 3), "classifier_activation": None}
    if name == "NASNetMobile":  # wants its classifier only at 224
        arguments |= {"include_top": False, "pooling": "avg"}
        del arguments["classifier_activation"]
    elif size < 75:
        arguments["classes"] = 1000
    elif name == "InceptionV3":
        arguments |= {"include_top": False, "pooling": "avg"}
        del arguments["classifier_activation"]
    model = getattr(keras.applications, name)(**arguments)
    for layer in model._flatten_layers():
        for variable in getattr(layer, "weights", []) if not getattr(layer, "layers", None) else []:
            kind = variable.path.rpartition("/")[2]
            if kind in ("gamma", "moving_variance"):
                variable.assign(generator.uniform(0.5, 1.5, variable.shape))
            elif kind in ("beta", "moving_mean", "bias", "mean"):
                variable.assign(generator.normal(0, 0.3, variable.shape))
    return model


def measure(name: str, size: int, formats: list[str], repeats: int) -> list[dict]:
    """Export one model in this process."""
    import keras

    from tfprune.errors import TfpruneError
    from tfprune.export import export, onnx_latency
    from tfprune.verify import compare, random_inputs, run

    model = build(name, size)
    outputs = run(model, random_inputs(model))
    spread = compare(outputs, outputs, 0.0).spread / max(float(abs(y).max()) for y in outputs)
    del outputs
    keras.utils.clear_session(free_memory=True)
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for format in formats:
            row: dict = {"model": name, "size": size, "format": format, "spread": spread, "before MB": _resident()}
            try:
                exported = export(model, directory, formats=[format])[format]
            except TfpruneError as error:
                rows.append({**row, "ok": "NO", "error": str(error)})
                continue
            row |= {"ok": "yes", "difference": exported.difference, "seconds": exported.seconds}
            row |= {"MB": exported.bytes / 1e6, "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
            if format == "onnx":
                import onnx

                nodes = Counter(node.op_type for node in onnx.load(exported.path).graph.node)
                row |= {"nodes": sum(nodes.values()), "Transposes": nodes["Transpose"]}
                row["latency ms"] = onnx_latency(exported.path, repeats=repeats)
            rows.append(row)
    return rows


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1]) if Path("/proc/self/statm").exists() else 0
    return pages * resource.getpagesize() / 2**20


def show(row: dict) -> str:
    """One line of the table."""
    cells = []
    for column in COLUMNS:
        value = row.get(column, "")
        if isinstance(value, float):
            value = f"{value:.1e}" if column in ("difference",) else f"{value:.2f}" if value < 10 else f"{value:.0f}"
        cells.append(str(value).ljust(17) if column == "model" else str(value).rjust(max(len(column), 7)))
    return "  ".join(cells) + (f"\n    {row['error']}" if "error" in row else "")


def main() -> int:
    """Run each model in a process of its own and print the table as it grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="names in keras.applications")
    parser.add_argument("--formats", default="onnx")
    parser.add_argument("--size", type=int, help="height and width of the input; by default small, by model")
    parser.add_argument("--repeats", type=int, default=30, help="timed runs of onnxruntime")
    parser.add_argument("--json", action="store_true", help="one JSON object a row instead of the table")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if flags.here:
        for row in measure(flags.models, flags.size, flags.formats.split(","), flags.repeats):
            print("ROW", json.dumps(row), flush=True)
        return 0
    if not flags.json:
        print("  ".join(c.ljust(17) if c == "model" else c.rjust(max(len(c), 7)) for c in COLUMNS), flush=True)
    failed = 0
    for name in flags.models.split(","):
        size = flags.size or MODELS.get(name, 96)
        command = [sys.executable, __file__, "--here", "--models", name, "--size", str(size)]
        command += ["--formats", flags.formats, "--repeats", str(flags.repeats)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        rows = [json.loads(line[4:]) for line in done.stdout.splitlines() if line.startswith("ROW ")]
        if not rows:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            rows = [{"model": name, "size": size, "ok": "NO", "error": f"exit status {done.returncode}: {last}"}]
        for row in rows:
            failed += row["ok"] != "yes"
            print(json.dumps(row) if flags.json else show(row), flush=True)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
