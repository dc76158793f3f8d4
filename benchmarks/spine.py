"""Seven keras.applications through trace, select, soft_prune and strip: exactness, cost, seconds.

    python benchmarks/spine.py                       all seven
    python benchmarks/spine.py --models=VGG16 ResNet50 --repeats=5

Torch-Pruning counts parameters without moving statistics, and MACs with biases, BatchNormalization, ReLUs and pools;
`its count` does as it does. Keras' ResNet50 strides in other convolutions than torchvision's and has other MACs.

Each model is built without its softmax and given random weights, statistics and biases (`common.lively`); L2, ratio
0.5, counts not rounded. Printed for each: channel groups and opaque operations; the largest difference between
soft-pruned and stripped for one image, and how far the outputs for two images are apart (`response`; near 0 the
difference says nothing), both as fractions of the largest output; parameters and MACs beside Torch-Pruning's; seconds
to trace and group (median of 5, and the peer's), and of strip(verify=False) beside `clone_model` plus copying the
weights (alternating, medians). `applications.py` does all forty, each in a process of its own, with memory.

The peer's figures are those of Torch-Pruning 1.6.1 with torch 2.13.0 on a CPU with 2 cores, for torchvision's models.
VGG16 there has BatchNormalization and MobileNetV3 is the large one, so for those two no comparison of costs is made.
Where torch, torchvision and torch_pruning can be imported here the peer is run beside it. torchvision must be built for
the same torch: the published 0.28.0, beside a CPU build of torch 2.13.0, ends in `torchvision::nms does not exist`.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
from typing import Any

from common import application, calibrated, change, cloned, images, keras, median, np, progress, timed

import tfprune
from tfprune.channels.graph import ChannelGraph
from tfprune.tables import table
from tfprune.verify import compare, run

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
        progress(f"{name}: done")
        keras.utils.clear_session()
        gc.collect()
    header = (
        "model", "groups", "opaque", "difference", "response", "parameters M", "peer", "MACs G", "its count G", "peer",
        "trace s", "peer",
        "unverified s", "clone s", "unverified/clone", "select s", "strip s",
    )  # fmt: skip
    print(table("soft-pruned by L2 at ratio 0.5, then stripped; peer: Torch-Pruning 1.6.1", header, rows, width=240))
    peer_beside(given.models)
    return int(wrong)


def measured(name: str, repeats: int) -> tuple[tuple[Any, ...], bool]:
    """One model's row, and whether it is exact with nothing opaque."""
    model = application(name)
    traced = median(5, lambda: tfprune.trace(model).groups)
    graph = tfprune.trace(model)
    selected, plan = timed(lambda: tfprune.select(graph, "l2", ratio=0.5, round_to=1))
    tfprune.soft_prune(model, plan)
    calibrated(model, seed=1)
    stripped, result = timed(lambda: tfprune.strip(model, tolerance=float("inf")))
    outputs = [run(model, images(model, seed)) for seed in (1, 2)]
    check = compare(outputs[0], run(result.model, images(model, 1)), 1e-5)
    response = float(np.abs(outputs[0][0] - outputs[1][0]).max() / check.largest)
    rebuilt, copied = against_clone(model, repeats)
    _, seconds, parameters, macs = PEER[name]
    row = (
        name,
        len(graph.groups),
        len(graph.opaque),
        f"{check.relative:.1g}",
        f"{response:.2g}",
        change(trainable(model), trainable(result.model), 1e6),
        off(trainable(result.model) / 1e6, parameters),
        change(result.cost_before.macs, result.cost_after.macs, 1e9),
        change(as_the_peer_counts(graph), ours := as_the_peer_counts(tfprune.trace(result.model)), 1e9),
        off(ours / 1e9, macs),
        round(traced, 3),
        seconds,
        round(rebuilt, 2),
        round(copied, 2),
        round(rebuilt / copied, 2),
        round(selected, 2),
        round(stripped, 2),
    )
    return row, check.equal and response > 1e-3 and not graph.opaque


def against_clone(model: keras.Model, repeats: int) -> tuple[float, float]:
    """Seconds for strip without the verification (trace, facts, rebuild), and for clone_model with its weights."""
    ours, clones = [], []
    for _ in range(repeats):
        ours.append(timed(lambda: tfprune.strip(model, verify=False))[0])
        gc.collect()
        clones.append(timed(lambda: cloned(model))[0])
        gc.collect()
    return statistics.median(ours), statistics.median(clones)


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


def off(ours: float, peer: float | None) -> str:
    return "" if peer is None else f"{peer} ({ours / peer - 1:+.1%})"


def peer_beside(models: list[str]) -> None:
    """Torch-Pruning on torchvision's models, here and now, if they are installed; each in turn with ours.

    Its seconds: the graph, and a step of its L2 pruner at ratio 0.5, which slices weights as it goes. Ours: trace,
    select, and what strip plans (facts, what may go, where what stays is); weights are sliced in the rebuild.
    """
    try:
        import torch
        import torch_pruning as tp
        import torchvision
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that was built for another torch
        print(f"torch, torchvision and torch_pruning cannot all be imported, so the peer was not run here: {error}")
        return

    def peers(kind: str, example: Any) -> float:
        net = getattr(torchvision.models, kind)(weights=None).eval()
        ignored = [module for module in net.modules() if isinstance(module, torch.nn.Linear)][-1:]

        def prune() -> None:
            importance = tp.importance.GroupMagnitudeImportance(p=2)
            tp.pruner.BasePruner(net, example, importance, pruning_ratio=0.5, ignored_layers=ignored).step()

        return timed(prune)[0]

    def own(model: keras.Model) -> float:
        def chosen() -> Any:
            graph = tfprune.trace(model)
            return tfprune.select(graph, "l2", ratio=0.5, round_to=1)

        seconds, plan = timed(chosen)
        return seconds + tfprune.strip(model, plan, verify=False).seconds["plan"]

    rows = []
    for name in models:
        kind = PEER[name][0]
        size = 299 if kind == "inception_v3" else 224
        example, model = torch.randn(1, 3, size, size), application(name)
        pairs = [(own(model), peers(kind, example)) for _ in range(5)]
        ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
        rows.append((name, kind, round(ours, 3), round(theirs, 3), round(ours / theirs, 2)))
        progress(f"{name}: beside the peer")
    print(table("graph and plan, s, in turns", ("model", "there", "tfprune", "Torch-Pruning", "ratio"), rows))


if __name__ == "__main__":
    sys.exit(main())
