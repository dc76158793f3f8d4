"""How seconds and memory grow with the depth of a model and with the number of its channels.

    python benchmarks/growth.py                              the curves, and their slopes
    python benchmarks/growth.py --blocks 50 200 --channels 1000
    python benchmarks/growth.py --profile=1000               cProfile of each step at that depth

Depth: residual blocks of two conv-bn-relu on 4x4 images, 8 channels, a process for each number of blocks. Channels: a
chain of 1x1 convolutions of 100 channels each, and one convolution as wide as can be. A slope is the exponent: seconds
grow as size to the power of it (log-log, least squares; `last`: between the two largest). 1 is linear.

Keras builds a model by recursion, a frame a layer of depth, so Python's limit is raised for Keras' sake wherever a
model is built; trace and select run under the limit of 1000. `limit` says where strip ends under that limit.

Columns: build (Keras alone), clone (clone_model plus weights), trace (with its groups), select, plan (facts, simplify,
narrow), strip (all of it, not verified), and the resident memory that trace and strip added at their peak, MB.
For channels: graph (trace alone), groups, select, and the same plan made again from its group names and indices.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import gc
import json
import pstats
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from common import cloned, keras, lively, np, peak_growth, progress, timed

import tfprune
from tfprune.tables import table

BLOCKS = (50, 200, 500, 1000, 2000)
CHANNELS = (1_000, 10_000, 100_000)
LAYER = 100


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, nargs="*", default=list(BLOCKS))
    parser.add_argument("--channels", type=int, nargs="*", default=list(CHANNELS))
    parser.add_argument("--profile", type=int, metavar="BLOCKS", help="cProfile of each step instead of the curves")
    parser.add_argument("--child", choices=tuple(_MEASURES), help=argparse.SUPPRESS)
    parser.add_argument("--number", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(_MEASURES[given.child](given.number)))
        return 0
    if given.profile:
        profiled(given.profile)
        return 0
    failed = curve("deep", "blocks", given.blocks)
    for kind in ("chain", "wide"):
        failed |= curve(kind, "channels", given.channels)
    return int(failed)


def curve(kind: str, unit: str, numbers: Sequence[int]) -> bool:
    """Print one curve; whether any point failed."""
    rows, errors = {}, {}
    for number in numbers:
        done = subprocess.run(
            [sys.executable, __file__, f"--child={kind}", f"--number={number}"], capture_output=True, text=True
        )
        if done.returncode:
            errors[number] = done.stderr.strip()
        else:
            rows[number] = json.loads(done.stdout.splitlines()[-1])
        progress(f"{kind}, {number} {unit}: {rows.get(number, 'failed')}")
    if rows:
        names = list(next(iter(rows.values())))
        lines = [(f"{number:,}", *(shown(row[name]) for name in names)) for number, row in rows.items()]
        if len(rows) > 1:
            lines.append(("slope", *(slope(list(rows), [row[name] for row in rows.values()]) for name in names)))
            last = list(rows)[-2:]
            lines.append(("last", *(slope(last, [rows[number][name] for number in last]) for name in names)))
        print(table(f"{kind}: seconds and MB by {unit}", (unit, *names), lines, width=200))
    for number, error in errors.items():
        print(f"{kind}, {number} {unit} failed:\n{_shortened(error)}")
    return bool(errors)


@contextlib.contextmanager
def deep_recursion() -> Iterator[None]:
    """Let Keras recurse as deep as its model is."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(10**6)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def under_the_limit(act: Callable[[], Any]) -> str:
    """Where the recursion limit is met, as `file:line in function < called from`; nothing if it is not."""
    try:
        act()
    except RecursionError as error:
        frames = traceback.extract_tb(error.__traceback__)
        inner = Counter((frame.filename, frame.lineno, frame.name) for frame in frames).most_common(1)[0][0]
        own = [frame for frame in frames if "tfprune" in Path(frame.filename).parts][-1]
        place = f"{Path(inner[0]).parent.name}/{Path(inner[0]).name}:{inner[1]} in {inner[2]}"
        return f"{place} < {Path(own.filename).name}:{own.lineno}"
    return ""


def shown(value: float | str) -> str:
    """Three digits of a number."""
    return value if isinstance(value, str) else f"{value:.3g}"


def slope(sizes: Sequence[int], values: Sequence[Any]) -> str:
    """The exponent of a power law through the points; nothing where a value is no positive number."""
    if not all(isinstance(value, float) and value > 0 for value in values):
        return ""
    return f"{np.polyfit(np.log(sizes), np.log(values), 1)[0]:.2f}"


def deep_model(blocks: int) -> keras.Model:
    """A residual network with two convolutions a block."""
    layers = keras.layers
    inputs = keras.Input((4, 4, 3))
    x = layers.Conv2D(8, 1, use_bias=False)(inputs)
    for _ in range(blocks):
        y = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same", use_bias=False)(x)))
        y = layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same", use_bias=False)(y))
        x = layers.ReLU()(layers.Add()([x, y]))
    return keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))


def chain_model(channels: int) -> keras.Model:
    """Convolutions of `LAYER` channels, one after another."""
    inputs = x = keras.Input((2, 2, 3))
    for _ in range(channels // LAYER):
        x = keras.layers.Conv2D(LAYER, 1)(x)
    return keras.Model(inputs, keras.layers.Conv2D(2, 1)(x))


def wide_model(channels: int) -> keras.Model:
    """One convolution with that many channels."""
    inputs = keras.Input((2, 2, 3))
    return keras.Model(inputs, keras.layers.Conv2D(2, 1)(keras.layers.Conv2D(channels, 1)(inputs)))


def depth(blocks: int) -> dict[str, Any]:
    """The columns of one depth."""
    keras.utils.set_random_seed(0)
    with deep_recursion():
        build, model = timed(lambda: deep_model(blocks))
        lively(model)
        clone = timed(lambda: cloned(model))[0]
    gc.collect()
    trace_memory, (trace, graph) = peak_growth(lambda: timed(lambda: _traced(model)))
    select, plan = timed(lambda: tfprune.select(graph, "l2", ratio=0.5, round_to=1))
    tfprune.soft_prune(model, plan)
    gc.collect()
    with deep_recursion():
        strip_memory, (strip, result) = peak_growth(lambda: timed(lambda: tfprune.strip(model, verify=False)))
    return {
        "build": build,
        "clone": clone,
        "trace": trace,
        "select": select,
        "plan": result.seconds["plan"],
        "rebuild": result.seconds["rebuild"],
        "strip": strip,
        "strip/clone": strip / clone,
        "trace MB": trace_memory,
        "strip MB": strip_memory,
        "limit": under_the_limit(lambda: tfprune.strip(model, verify=False)),
    }


def width(build: Callable[[int], keras.Model], channels: int) -> dict[str, Any]:
    """The columns of one number of channels."""
    with deep_recursion():
        model = build(channels)
    tfprune.trace(model)
    graph_seconds, graph = timed(lambda: tfprune.trace(model))
    groups, _ = timed(lambda: graph.groups)
    select, plan = timed(lambda: tfprune.select(graph, "l2", ratio=0.5, round_to=1))
    chosen, found = timed(lambda: plan.channels)
    names = {name: list(indices) for name, indices in found.items()}
    again, other = timed(lambda: type(plan).from_groups(graph, names))
    assert (other.gone == plan.gone).all()
    zeros, _ = timed(lambda: plan.zeros_of)
    return {
        "graph": graph_seconds,
        "groups": groups,
        "select": select,
        "plan.channels": chosen,
        "from_groups": again,
        "zeros": zeros,
        "all": graph_seconds + groups + select + chosen + again + zeros,
    }


def profiled(blocks: int) -> None:
    """What each step spends its seconds on."""
    with deep_recursion():
        model = lively(deep_model(blocks))
    graph = tfprune.trace(model)
    plan = tfprune.select(graph, "l2", ratio=0.5, round_to=1)
    tfprune.soft_prune(model, plan)
    steps: dict[str, Callable[[], Any]] = {
        "trace and groups": lambda: _traced(model),
        "select": lambda: tfprune.select(graph, "l2", ratio=0.5, round_to=1),
        "strip": lambda: tfprune.strip(model, verify=False),
    }
    for name, step in steps.items():
        profile = cProfile.Profile()
        with deep_recursion():
            profile.runcall(step)
        print(f"--- {name}, {blocks} blocks")
        pstats.Stats(profile, stream=sys.stdout).sort_stats("tottime").print_stats(15)
        pstats.Stats(profile, stream=sys.stdout).sort_stats("cumulative").print_stats("tfprune", 25)


def _traced(model: keras.Model) -> Any:
    graph = tfprune.trace(model)
    _ = graph.groups
    return graph


def _shortened(error: str, lines: int = 12) -> str:
    """The beginning and the end of a traceback: where it went in, and where it ended."""
    parts = error[error.find("Traceback") :].splitlines()
    return error if len(parts) <= 2 * lines else "\n".join([*parts[:lines], "...", *parts[-lines:]])


_MEASURES: dict[str, Callable[[int], dict[str, Any]]] = {
    "deep": depth,
    "chain": lambda number: width(chain_model, number),
    "wide": lambda number: width(wide_model, number),
}

if __name__ == "__main__":
    sys.exit(main())
