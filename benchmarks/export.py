"""Export models of keras.applications, beside Keras' own exporter if asked; one process a model and exporter.

    python benchmarks/export.py                                  # ONNX, all 40
    python benchmarks/export.py --models NASNetMobile InceptionV3 --stock
    python benchmarks/export.py --models MobileNetV3Small --stock --fresh
    python benchmarks/export.py --models VGG16 ConvNeXtXLarge --memory
    python benchmarks/export.py --formats onnx tflite tflite_int8 --models MobileNetV2

Models have their own size, but 224 at most where they take it, random weights and calibrated statistics
(`common.lively`) and no softmax. Such deep networks amplify rounding, in Keras too: where `rounding` is above 1e-5, no
exporter's `difference` can be below it. Columns:

difference     the largest from Keras, a fraction of the largest output, over two images
rounding       how far Keras' own outputs move when each number of the input is moved to the next float32
response       how far the outputs for the two images are apart, the same fraction
nodes, T       nodes of the ONNX graph, and how many of them are Transposes
seconds, CPU   for writing, not for reading back: by the clock, and by the processors
MB             the file
x weights      with --memory: highest resident memory while a .keras file is loaded and written in the first format,
               less what TensorFlow takes alone, over the bytes of the weights. In a process of its own: initialisers
               leave TensorFlow with free memory that it never gives back
x loaded       the same for the loaded model before it is written
run ms         median of one image in the file's runtime on --threads threads; on a machine that others use, with
               --threads 1 --processors
stock ...      the same of `model.export(format="onnx")`, in turns with ours: `speed-up` is the median of the ratios of
               neighbouring runs. `NO` if it raises, is killed, or the file does not load

The exit code is 1 if one of our files is not written.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

COLUMNS = tuple(
    "model|size|format|difference|rounding|response|nodes|T|seconds|CPU|MB|x weights|run ms|"
    "x loaded|stock s|stock CPU|stock difference|stock T|stock ms|speed-up".split("|")
)


def build(name: str, size: int | None, fresh: bool = False) -> Any:
    """The model; two processes make the same one."""
    from common import application, keras

    keras.utils.set_random_seed(0)
    if "NASNet" in name:
        size = None  # it takes no other
    elif size is None:
        own = getattr(keras.applications, name)(weights=None).inputs[0].shape[1]
        keras.backend.clear_session()
        size = 224 if own and own > 224 else None
    if fresh:
        shape = None if size is None else (size, size, 3)
        return getattr(keras.applications, name)(weights=None, input_shape=shape, classifier_activation=None)
    return application(name, size)


def ours(name: str, size: int | None, fresh: bool, formats: list[str], folder: Path) -> None:
    """Export in this process; print a row a format."""
    from common import images, np

    e = importlib.import_module("tfprune.export")  # `tfprune.export` is the function
    registry = importlib.import_module("tfprune.export.registry")
    from tfprune.errors import TfpruneError
    from tfprune.verify import run

    model = build(name, size, fresh)
    x = images(model, seed=3, samples=2)
    outputs = run(model, x)
    largest = float(np.abs(outputs[0]).max())
    moved = run(model, [np.nextafter(x[0], np.float32(1e9))])
    row = {
        "model": name,
        "size": model.inputs[0].shape[1] or x[0].shape[1],
        "rounding": float(np.abs(moved[0] - outputs[0]).max()) / largest,
        "response": float(np.abs(outputs[0][0] - outputs[0][1]).max()) / largest,
    }
    np.savez(folder / "data.npz", x[0], outputs[0])
    representative = (
        np.concatenate([images(model, seed=s)[0] for s in range(10, 40)]) if "int8" in str(formats) else None
    )
    for format in formats:
        spent: list[float] = []
        exporter = registry.find(format)
        registry.register(_watched(exporter, spent))
        try:
            # Random inputs are far from what a network that scales 0 to 255 itself was made for.
            report = e.export(model, folder, [format], name, inputs=x, representative=representative, tolerance=1e9)
        except TfpruneError as error:
            print("ROW", json.dumps({**row, "format": format, "error": str(error)[:300]}), flush=True)
            continue
        finally:
            registry.register(exporter)
        written = report[format]
        got = exporter.load(written.path, _options(e, model))(x)
        more = {"difference": float(np.abs(got[0] - outputs[0]).max()) / largest, "MB": written.bytes / 1e6}
        if format == "onnx":
            more |= _nodes(written.path)
        more |= {"seconds": spent[0], "CPU": spent[1]}
        print("ROW", json.dumps({**row, "format": format, "path": str(written.path), **more}), flush=True)


def _options(e: Any, model: Any) -> Any:
    whole = e.functional(model)
    return e.Options(e.input_names(whole), e.output_names(whole))


def _watched(exporter: Any, spent: list[float]) -> Any:
    """The exporter, noting seconds and processor seconds of its `write`."""
    import dataclasses

    def write(*arguments: Any) -> None:
        start, busy = time.perf_counter(), time.process_time()
        exporter.write(*arguments)
        spent[:] = [time.perf_counter() - start, time.process_time() - busy]

    return dataclasses.replace(exporter, write=write)


def _nodes(path: Path) -> dict[str, int]:
    import onnx

    kinds = Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)
    return {"nodes": sum(kinds.values()), "T": kinds["Transpose"]}


def save(name: str, size: int | None, folder: Path) -> None:
    """The model as a .keras file for `memory`."""
    build(name, size, fresh=True).save(folder / "model.keras")


def memory(format: str, folder: Path) -> None:
    """Load the .keras file and write it; print a row."""
    from common import keras, np, resident

    e = importlib.import_module("tfprune.export")
    exporter = importlib.import_module("tfprune.export.registry").find(format)
    importlib.import_module("tf2onnx")
    keras.ops.convert_to_numpy(keras.ops.ones(3))
    framework = resident()
    model = keras.models.load_model(folder / "model.keras", compile=False)
    held = resident()
    Path("/proc/self/clear_refs").write_text("5")
    exporter.write(model, folder / f"again{exporter.suffix}", _options(e, model))
    weights = sum(int(np.prod(v.shape)) * 4 for v in model.variables)
    row = {"x weights": (resident("VmHWM") - framework) / weights, "x loaded": (held - framework) / weights}
    print("ROW", json.dumps(row), flush=True)


def stock(name: str, size: int | None, fresh: bool, folder: Path) -> None:
    """Keras' own exporter in this process; print a row."""
    from common import images

    model = build(name, size, fresh)
    model(images(model, seed=3)[0])  # it raises on a model never called
    start, busy = time.perf_counter(), time.process_time()
    path = folder / "stock.onnx"
    model.export(str(path), format="onnx", verbose=False)
    row = {"stock s": time.perf_counter() - start, "stock CPU": time.process_time() - busy, "path": str(path)}
    print("ROW", json.dumps({**row, "stock T": _nodes(path)["T"]}), flush=True)


def in_turns(paths: list[str], folder: Path, threads: int, repeats: int, processors: bool) -> dict[str, Any]:
    """Latencies of .onnx files, one image each, in turns; and how far the last is from Keras."""
    import numpy as np
    import onnxruntime

    with np.load(folder / "data.npz") as file:
        x, expected = file["arr_0"], file["arr_1"]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    options.add_session_config_entry("session.force_spinning_stop", "1")  # or one is in the other's way
    sessions = [onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]) for path in paths]
    feeds = [{session.get_inputs()[0].name: x[:1]} for session in sessions]
    taken: list[list[float]] = [[] for _ in sessions]
    clock = time.process_time if processors else time.perf_counter
    for turn in range(repeats + 3):
        for session, feed, times in zip(sessions, feeds, taken, strict=True):
            start = clock()
            session.run(None, feed)
            if turn >= 3:
                times.append(clock() - start)
    row = {"run ms": 1e3 * statistics.median(taken[0])}
    if len(paths) > 1:
        got = sessions[1].run(None, {sessions[1].get_inputs()[0].name: x})[0]
        row |= {"stock ms": 1e3 * statistics.median(taken[1])}
        row |= {"speed-up": statistics.median(b / a for a, b in zip(*taken, strict=True))}
        row |= {"stock difference": float(np.abs(got - expected).max() / np.abs(expected).max())}
    return row


def child(arguments: list[str], limit_gb: float) -> tuple[list[dict], str]:
    """Run this file in a process of its own; its rows, and its last line if it failed."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (int(limit_gb * 2**30),) * 2)

    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=limited)
    rows = [json.loads(line[4:]) for line in done.stdout.splitlines() if line.startswith("ROW ")]
    if done.returncode == 0:
        return rows, ""
    lines = done.stderr.strip().splitlines() or ["no message"]
    how = f"killed by {signal.Signals(-done.returncode).name}" if done.returncode < 0 else f"exit {done.returncode}"
    return rows, f"{how}: {lines[-1][:200]}"


def show(row: dict) -> str:
    """One line of the table."""
    cells = []
    for column in COLUMNS:
        value = row.get(column, "")
        if isinstance(value, float):
            small = column in ("difference", "rounding", "stock difference")
            value = f"{value:.1e}" if small else f"{value:.2f}" if value < 10 else f"{value:.0f}"
        cells.append(str(value).ljust(17) if column == "model" else str(value).rjust(max(len(column), 7)))
    errors = "".join(f"\n    {key}: {row[key]}" for key in ("error", "stock error") if key in row)
    return "  ".join(cells) + errors


def main() -> int:
    """Run each model in processes of its own and print the table as it grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=[], help="names in keras.applications; by default all")
    parser.add_argument("--formats", nargs="*", default=["onnx"])
    parser.add_argument("--size", type=int, help="height and width of the input")
    parser.add_argument("--stock", action="store_true", help="Keras' own ONNX exporter beside ours")
    parser.add_argument("--memory", action="store_true", help="measure the memory that writing takes")
    parser.add_argument("--fresh", action="store_true", help="initial weights: tf2onnx's graphs depend on them")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--processors", action="store_true", help="time runs by processors' seconds; for --threads 1")
    parser.add_argument("--repeats", type=int, default=30, help="timed runs of onnxruntime")
    parser.add_argument("--limit", type=float, default=16, help="memory a process may take, GB")
    parser.add_argument("--json", help="write the rows to this file, too")
    parser.add_argument("--here", choices=("ours", "stock", "save", "memory"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.here:
        folder = Path(flags.folder)
        if flags.here == "ours":
            ours(flags.models[0], flags.size, flags.fresh, flags.formats, folder)
        elif flags.here == "save":
            save(flags.models[0], flags.size, folder)
        elif flags.here == "memory":
            memory(flags.formats[0], folder)
        else:
            stock(flags.models[0], flags.size, flags.fresh, folder)
        return 0
    names = flags.models or _all()
    print("  ".join(c.ljust(17) if c == "model" else c.rjust(max(len(c), 7)) for c in COLUMNS), flush=True)
    rows = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            fresh = ["--fresh"] if flags.fresh else []
            common = [
                *fresh,
                "--models",
                name,
                "--folder",
                folder,
                *(["--size", str(flags.size)] if flags.size else []),
            ]
            found, wrong = child(["--here", "ours", *common, "--formats", *flags.formats], flags.limit)
            if wrong and not found:
                found = [{"model": name, "error": wrong}]
            if flags.memory and "error" not in found[0]:
                wrong = child(["--here", "save", *common], flags.limit)[1]
                measured, wrong = child(["--here", "memory", *common, "--formats", flags.formats[0]], flags.limit)
                found[0] |= measured[0] if measured else {"stock error": f"memory not measured: {wrong}"}
            for row in found:
                if row.get("format") == "onnx" and "path" in row:
                    paths = [row["path"]]
                    if flags.stock:
                        theirs, wrong = child(["--here", "stock", *common], flags.limit)
                        if wrong or not theirs:
                            row["stock error"] = f"NO, {wrong or 'no file'}"
                        else:
                            row |= {key: value for key, value in theirs[0].items() if key != "path"}
                            paths.append(theirs[0]["path"])
                    try:
                        row |= in_turns(paths, Path(folder), flags.threads, flags.repeats, flags.processors)
                    except Exception as error:
                        row["stock error"] = f"NO, {type(error).__name__}: {str(error)[:200]}"
                        row |= in_turns(paths[:1], Path(folder), flags.threads, flags.repeats, flags.processors)
                rows.append(row)
                print(show(row), flush=True)
        if flags.json:
            Path(flags.json).write_text(json.dumps(rows, indent=1))
    return int(any("error" in row for row in rows))


def _all() -> list[str]:
    from common import keras

    return [name for name in dir(keras.applications) if inspect.isfunction(getattr(keras.applications, name))]


if __name__ == "__main__":
    sys.exit(main())
