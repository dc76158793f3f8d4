"""Seven keras.applications through trace, select, soft_prune and strip: exactness, cost, seconds.

    python benchmarks/spine.py                       all seven
    python benchmarks/spine.py --models=VGG16 ResNet50 --repeats=5

Torch-Pruning counts parameters without moving statistics, and MACs with biases, BatchNormalization, ReLUs and pools;
`its count` does as it does. Keras' ResNet50 strides in other convolutions than torchvision's and has other MACs.

Each model is built with weights=None, without its softmax, and given random BatchNormalization statistics and biases;
L2, ratio 0.5, counts not rounded. Printed for each: channel groups and opaque operations; the largest difference
between soft-pruned and stripped; parameters and MACs beside Torch-Pruning's; seconds to trace and group (median of 5,
and the peer's), and of the rebuild beside `clone_model` plus copying the weights (alternating, medians).

The peer's figures are those of Torch-Pruning 1.6.1 with torch 2.13.0 on a CPU with 2 cores, for torchvision's models.
VGG16 there has BatchNormalization and MobileNetV3 is the large one, so for those two no comparison of costs is made.
Where torch, torchvision and torch_pruning are installed they are run beside it.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent.parent))

import keras
import numpy as np

import tfprune
from tfprune.channels.graph import ChannelGraph
from tfprune.tables import table

# Torch-Pruning 1.6.1: name there, seconds to build its graph, millions of parameters left, billions of MACs left.
# None: another architecture.
PEER: dict[str, tuple[str, float, float | None, float | None]] = {
    "MobileNetV2": ("mobilenet_v2", 0.023, 1.22, 0.093),
    "MobileNetV3Small": ("mobilenet_v3_large", 0.022, None, None),
    "EfficientNetB0": ("efficientnet_b0", 0.034, 1.70, 0.116),
    "ResNet50": ("resnet50", 0.224, 6.92, None),
    "DenseNet121": ("densenet121", 0.083, 2.27, 0.763),
    "InceptionV3": ("inception_v3", 0.136, 6.48, 1.444),
    "VGG16": ("vgg16_bn", 0.843, None, None),
}


RELUS = (keras.activations.relu, keras.activations.relu6)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(PEER), choices=list(PEER))
    parser.add_argument("--repeats", type=int, default=3, help="of the rebuild and of clone_model")
    given = parser.parse_args()
    rows, wrong = [], False
    for name in given.models:
        row, exact = measured(name, given.repeats)
        rows.append(row)
        wrong |= not exact
        print(f"{name}: done", file=sys.stderr, flush=True)
        keras.utils.clear_session()
        gc.collect()
    header = (
        "model", "groups", "opaque", "difference", "parameters M", "peer", "MACs G", "its count G", "peer",
        "trace s", "peer",
        "rebuild s", "clone s", "rebuild/clone", "select s", "strip s",
    )  # fmt: skip
    print(table("soft-pruned by L2 at ratio 0.5, then stripped; peer: Torch-Pruning 1.6.1", header, rows, width=240))
    peer_beside(given.models)
    return int(wrong)


def measured(name: str, repeats: int) -> tuple[tuple[Any, ...], bool]:
    """One model's row, and whether it is exact with nothing opaque."""
    size = 299 if name == "InceptionV3" else 224
    model = shaken(
        getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3), classifier_activation=None)
    )
    traced = median(5, lambda: tfprune.trace(model).groups)
    graph = tfprune.trace(model)
    selected, plan = timed(lambda: tfprune.select(graph, "l2", ratio=0.5, round_to=1))
    tfprune.soft_prune(model, plan)
    stripped, result = timed(lambda: tfprune.strip(model, tolerance=float("inf")))
    rebuilt, cloned = against_clone(model, repeats)
    _, seconds, parameters, macs = PEER[name]
    check = result.verification
    assert check is not None
    row = (
        name,
        len(graph.groups),
        len(graph.opaque),
        f"{check.relative:.1g} (spread {check.spread:.1g})",
        change(trainable(model), trainable(result.model), 1e6),
        off(trainable(result.model) / 1e6, parameters),
        change(result.cost_before.macs, result.cost_after.macs, 1e9),
        change(as_the_peer_counts(graph), ours := as_the_peer_counts(tfprune.trace(result.model)), 1e9),
        off(ours / 1e9, macs),
        round(traced, 3),
        seconds,
        round(rebuilt, 2),
        round(cloned, 2),
        round(rebuilt / cloned, 2),
        round(selected, 2),
        round(stripped, 2),
    )
    return row, check.relative <= 1e-5 and not graph.opaque


def shaken(model: keras.Model) -> keras.Model:
    """Random BatchNormalization parameters and statistics, and biases: outputs that vary."""
    generator = np.random.default_rng(0)
    for variable in model.weights:
        kind = variable.path.rpartition("/")[2]
        if kind in ("gamma", "moving_variance"):
            variable.assign(generator.uniform(0.5, 1.5, variable.shape))
        elif kind in ("beta", "moving_mean", "bias"):
            variable.assign(generator.normal(0, 0.1, variable.shape))
    return model


def against_clone(model: keras.Model, repeats: int) -> tuple[float, float]:
    """Seconds for strip without the verification (trace, facts, rebuild), and for clone_model with its weights."""
    ours, clones = [], []
    for _ in range(repeats):
        ours.append(timed(lambda: tfprune.strip(model, verify=False))[0])
        gc.collect()
        clones.append(timed(lambda: cloned(model))[0])
        gc.collect()
    return statistics.median(ours), statistics.median(clones)


def cloned(model: keras.Model) -> keras.Model:
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


def trainable(model: keras.Model) -> int:
    """Parameters as torch counts them: moving statistics are none."""
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


def as_the_peer_counts(graph: ChannelGraph) -> int:
    """MACs with what Torch-Pruning adds: biases, two an entry for BatchNormalization, one for ReLUs and pools."""
    total = 0
    for call in graph.calls:
        total += sum(op.macs(lambda weight: weight.size) for op in call.ops)
        entries = int(np.prod([size or 1 for size in graph.shapes[call.outputs[0]]]))
        if call.kind == "BatchNormalization":
            total += 2 * entries
        elif call.kind == "ReLU" or (call.kind == "Activation" and call.origin.operation.activation in RELUS):
            total += entries
        elif "Pooling" in call.kind:
            total += int(np.prod([size or 1 for size in graph.shapes[call.inputs[0]]]))
        elif any(weight.name == "bias" for op in call.ops for weight in op.weights()):
            total += entries
    return total


def timed(act: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = act()
    return time.perf_counter() - start, result


def median(times: int, act: Callable[[], Any]) -> float:
    return statistics.median(timed(act)[0] for _ in range(times))


def change(before: float, after: float, unit: float) -> str:
    return f"{before / unit:.3f} -> {after / unit:.3f}"


def off(ours: float, peer: float | None) -> str:
    return "" if peer is None else f"{peer} ({ours / peer - 1:+.1%})"


def peer_beside(models: list[str]) -> None:
    """Torch-Pruning on torchvision's models, here and now, if they are installed."""
    try:
        import torch
        import torch_pruning as tp
        import torchvision
    except ImportError:
        print("torch, torchvision and torch_pruning are not all installed: the peer was not run here.")
        return
    rows = []
    for name in models:
        kind = PEER[name][0]
        net = getattr(torchvision.models, kind)(weights=None).eval()
        size = 299 if kind == "inception_v3" else 224
        example = torch.randn(1, 3, size, size)
        seconds = median(5, lambda: tp.DependencyGraph().build_dependency(net, example))  # noqa: B023
        rows.append((name, kind, round(seconds, 3)))
    print(table("Torch-Pruning here", ("model", "there", "build graph s"), rows))


if __name__ == "__main__":
    sys.exit(main())
