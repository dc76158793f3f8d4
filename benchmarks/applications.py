"""Every model of keras.applications through trace, select, soft_prune, strip and verify.

    python benchmarks/applications.py                         all of them, at their own sizes (about an hour)
    python benchmarks/applications.py --models VGG16 ResNet50 --repeats=5
    python benchmarks/applications.py --float64               one of each family, tolerance 1e-12
    python benchmarks/applications.py --size=96 --reasons --json=rows.json

Each model has random weights, statistics and biases (`common.lively`), no softmax, and a process of its own. L2, ratio
0.5, counts not rounded. Printed for each:

groups, refused     channel groups, and how many of them may not lose a channel (`--reasons`: why)
parameters, MACs    before and after, millions and billions
difference          stripped against soft-pruned, the largest over two images, a fraction of the largest output
response            how far the soft-pruned model's outputs for the two images are apart, as the same fraction: near 0
                    the model would output a constant and `difference` say nothing
rounding            how far the soft-pruned model's own outputs move when its input is rounded differently; above the
                    tolerance the model amplifies rounding, and `difference` says nothing either (CHAOTIC)
trace ... clone s   seconds: trace with its groups; plan (facts, simplify, narrow) and rebuild as strip counts them; all
                    of strip(verify=False); clone_model plus set_weights. Medians, strip and clone in turn
peak MB             what strip(verify=False) adds to the resident memory at its peak
of models           resident memory at that peak over what both models take once strip is done, each less what there
                    was before the first was built
of weights          the same peak over the bytes of both models' weights: how much a model is besides its weights, too.
                    Memory is measured in a second process, where the model is built from arrays: initialisers leave
                    TensorFlow with free memory that it never gives back, and strip would take from there unseen

The exit code is 1 if a model is not exact, does not respond, or fails.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common import (
    MB,
    application,
    calibrated,
    change,
    cloned,
    images,
    keras,
    median,
    np,
    peak_growth,
    progress,
    resident,
    timed,
)

import tfprune
from tfprune.channels.graph import ChannelGraph
from tfprune.tables import table
from tfprune.verify import compare, run

FAMILIES = (
    "MobileNet", "MobileNetV2", "MobileNetV3Small", "EfficientNetB0", "EfficientNetV2B0", "ResNet50", "ResNet50V2",
    "DenseNet121", "InceptionV3", "InceptionResNetV2", "Xception", "NASNetMobile", "VGG16", "ConvNeXtTiny",
)  # fmt: skip
ALL = tuple(name for name in dir(keras.applications) if name[0].isupper())
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
RESPONSE = 1e-3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=ALL, metavar="NAME", help="by default all, or all --float64")
    parser.add_argument("--float64", action="store_true", help="one of each family in float64")
    parser.add_argument("--size", type=int, help="of the images, instead of each model's own")
    parser.add_argument("--repeats", type=int, default=3, help="of strip and of clone_model")
    parser.add_argument("--reasons", action="store_true", help="print why groups are refused")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time")
    parser.add_argument("--timeout", type=int, default=1800, help="seconds for a model")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--child", choices=("measure", "memory"), help=argparse.SUPPRESS)
    parser.add_argument("--arrays", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(_CHILDREN[given.child](given)))
        return 0
    models = given.models or (FAMILIES if given.float64 else ALL)
    with ThreadPoolExecutor(given.jobs) as pool:
        rows = list(pool.map(lambda name: _row(name, given), models))
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(_table(rows, given))
    if given.reasons:
        print(_reasons(rows))
    for row in rows:
        if "error" in row:
            print(f"{row['model']} failed: {row['error']}")
    return int(any(_verdict(row) != "exact" for row in rows))


def _row(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """One model's figures, from processes of its own."""
    with tempfile.TemporaryDirectory() as folder:
        row = {"model": name, **_in_process("measure", name, given, folder)}
        if "error" not in row and not given.float64 and sys.platform == "linux":
            memory = _in_process("memory", name, given, folder)
            row |= {"memory_error": memory["error"]} if "error" in memory else memory
    progress(f"{name}: {row.get('error') or json.dumps({key: row[key] for key in row if key != 'reasons'})}")
    return row


def _in_process(child: str, name: str, given: argparse.Namespace, folder: str) -> dict[str, Any]:
    command = [sys.executable, __file__, f"--child={child}", f"--arrays={folder}", "--models", name]
    command += [f"--repeats={given.repeats}", *(["--float64"] if given.float64 else [])]
    command += [] if given.size is None else [f"--size={given.size}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=given.timeout)
    except subprocess.TimeoutExpired:
        return {"error": f"{child} took more than {given.timeout} s"}
    if done.returncode:
        return {"error": f"{child} ended with {done.returncode}: " + " | ".join(done.stderr.strip().splitlines()[-6:])}
    return json.loads(done.stdout.splitlines()[-1])


def _measured(given: argparse.Namespace) -> dict[str, Any]:
    """Everything but memory. Leaves the soft-pruned weights behind for `_peak`, in the order they were made."""
    kind = "float64" if given.float64 else "float32"
    keras.config.set_floatx(kind)
    keras.config.set_dtype_policy(kind)
    made: list[Any] = []
    with_weights(lambda variable: made.append(variable))
    model = application(given.models[0], given.size)
    with_weights(None)
    graph = tfprune.trace(model)
    refused = [group for group in graph.groups if not group.prunable]
    plan = tfprune.select(graph, "l2", ratio=0.5, round_to=1)
    tfprune.soft_prune(model, plan)
    calibrated(model, seed=1)
    if not given.float64:
        for index, variable in enumerate(made):
            np.save(given.arrays / f"{index}.npy", keras.ops.convert_to_numpy(variable))
    made.clear()
    strips, clones, laps = [], [], []
    for _ in range(given.repeats):
        result: Any = None
        gc.collect()
        seconds, result = timed(lambda: tfprune.strip(model, verify=False))
        strips.append(seconds)
        laps.append(result.seconds)
        gc.collect()
        clones.append(timed(lambda: cloned(model))[0])
    strip, clone = statistics.median(strips), statistics.median(clones)
    checks = [_compared(model, result.model, seed, kind) for seed in (1, 2)]
    (first, check), (second, other) = checks
    arrays = images(model, 1)
    moved = [np.nextafter(array, np.inf, dtype=array.dtype) for array in arrays]
    rounding = compare(run(model, arrays), run(model, moved), TOLERANCE[kind]).relative
    return {
        "groups": len(graph.groups),
        "refused": len(refused),
        "opaque": [op.reason for op in graph.opaque],
        "reasons": dict(Counter(_without_names(group.reason, graph) for group in refused)),
        "pruned": plan.pruned,
        "parameters": [result.cost_before.parameters, result.cost_after.parameters],
        "macs": [result.cost_before.macs, result.cost_after.macs],
        "difference": max(check.relative, other.relative),
        "rounding": rounding,
        "largest": check.largest,
        "response": float(np.abs(first - second).max() / check.largest) if check.largest else 0.0,
        "finite": bool(np.isfinite(first).all() and np.isfinite(second).all()),
        "dtype": kind,
        "trace_s": median(5, lambda: tfprune.trace(model).groups),
        "plan_s": statistics.median(lap["plan"] for lap in laps),
        "rebuild_s": statistics.median(lap["rebuild"] for lap in laps),
        "strip_s": strip,
        "clone_s": clone,
        "ratio": strip / clone,
        "strips": strips,
        "clones": clones,
    }


def _compared(model: keras.Model, stripped: keras.Model, seed: int, kind: str) -> tuple[np.ndarray, Any]:
    arrays = images(model, seed)
    expected = run(model, arrays)
    return expected[0], compare(expected, run(stripped, arrays), TOLERANCE[kind])


def _without_names(reason: str, graph: ChannelGraph) -> str:
    """A reason with classes where it names layers, so that reasons can be counted."""
    kinds = {call.layer: call.kind for call in graph.calls}
    return re.sub(r"[\w/]+", lambda word: f"<{kinds[word[0]]}>" if word[0] in kinds else word[0], reason)


def _peak(given: argparse.Namespace) -> dict[str, Any]:
    """The resident memory of strip, in a process that has done nothing before but strip a few filters."""
    small = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(8, 3), keras.layers.BatchNormalization()])
    tfprune.soft_prune(small, tfprune.select(small, "l2", ratio=0.5))
    tfprune.strip(small)
    del small
    _settle()
    empty = resident()
    arrays = (np.load(given.arrays / f"{index}.npy") for index in range(10**9))
    with_weights(None, lambda shape, dtype=None, **_: next(arrays))
    shape = None if given.size is None else (given.size, given.size, 3)
    build = getattr(keras.applications, given.models[0])
    model = build(weights=None, input_shape=shape, classifier_activation=None)
    with_weights(None)
    _settle()
    before = resident()
    growth, result = peak_growth(lambda: tfprune.strip(model, verify=False))
    stripped = result.model
    del result
    _settle()
    peak = before - empty + growth * MB
    return {
        "weights_MB": [_bytes(model) / MB, _bytes(stripped) / MB],
        "model_MB": (before - empty) / MB,
        "growth_MB": growth,
        "of_models": peak / (resident() - empty),
        "of_weights": peak / (_bytes(model) + _bytes(stripped)),
    }


_CHILDREN: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {"measure": _measured, "memory": _peak}
_add_weight = keras.layers.Layer.add_weight


def with_weights(watch: Callable[[Any], None] | None, initializer: Callable[..., Any] | None = None) -> None:
    """From now on show each new weight of a layer to `watch`, and fill it by `initializer`; None: as Keras does."""

    def add_weight(layer, shape=None, own=None, *args, **settings):
        own = settings.pop("initializer", own)
        variable = _add_weight(layer, shape, own if initializer is None else initializer, *args, **settings)
        if watch is not None:
            watch(variable)
        return variable

    keras.layers.Layer.add_weight = _add_weight if watch is None and initializer is None else add_weight


def _settle() -> None:
    keras.utils.clear_session()
    gc.collect()


def _bytes(model: keras.Model) -> int:
    return sum(int(np.prod(v.shape)) * np.dtype(v.dtype).itemsize for v in model.weights)


def _verdict(row: dict[str, Any]) -> str:
    if "error" in row:
        return "FAILED"
    if not row["finite"] or row["response"] < RESPONSE:
        return "SHOWS NOTHING"
    if row["difference"] <= TOLERANCE[row["dtype"]]:
        return "exact"
    return "CHAOTIC" if row["rounding"] > TOLERANCE[row["dtype"]] else "NOT EXACT"


def _table(rows: list[dict[str, Any]], given: argparse.Namespace) -> str:
    header = (
        "model", "groups", "refused", "parameters M", "MACs G", "difference", "response", "rounding",
        "trace s", "plan s", "rebuild s", "strip s", "clone s", "strip/clone", "peak MB", "of models", "of weights", "",
    )  # fmt: skip
    lines = []
    for row in rows:
        if "error" in row:
            lines.append((row["model"], *[""] * (len(header) - 2), _verdict(row)))
            continue
        peak, ratios = row.get("growth_MB"), [row.get(key) for key in ("of_models", "of_weights")]
        lines.append(
            (
                row["model"],
                row["groups"],
                row["refused"],
                change(*row["parameters"], 1e6),
                change(*row["macs"], 1e9),
                f"{row['difference']:.1g}",
                f"{row['response']:.2g}",
                f"{row['rounding']:.1g}",
                *(f"{row[key]:.3f}" for key in ("trace_s", "plan_s", "rebuild_s", "strip_s", "clone_s")),
                f"{row['ratio']:.2f}",
                "" if peak is None else f"{peak:.0f}",
                *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
                _verdict(row),
            )
        )
    versions = f"Keras {keras.__version__}, {keras.backend.backend()}, {os.cpu_count()} cores"
    title = f"soft-pruned by L2 at ratio 0.5 and stripped, {'float64' if given.float64 else 'float32'}; {versions}"
    return table(title, header, lines, width=240)


def _reasons(rows: list[dict[str, Any]]) -> str:
    lines = [(row["model"], count, reason) for row in rows for reason, count in row.get("reasons", {}).items()]
    return table("refused groups", ("model", "groups", "reason"), lines, width=240)


if __name__ == "__main__":
    sys.exit(main())
