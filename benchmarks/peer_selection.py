"""The same channels as Torch-Pruning at equal settings: torchvision's models, their weights copied to Keras.

    pip install torch torchvision torch-pruning
    python benchmarks/peer_selection.py

ResNet-18, ResNet-50 and MobileNetV2 with random weights and gammas. All groups are ranked together, half of the
channels go, one by one. Torch-Pruning: `GroupMagnitudeImportance(p=2, group_reduction="mean", normalizer="mean")`,
which takes the mean of w**2 over a group's convolutions, BatchNormalization's gamma and classifier, and no depthwise
kernels. tfprune: the same as a criterion of a few lines. Printed for each model: how many filters both take, and how
many one of them takes alone; with those settings, and with tfprune's own `"l2"` (a square root, depthwise kernels, no
gamma).
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")
sys.path.insert(0, str(Path(__file__).parent.parent))

import keras
import numpy as np
import torch
import torch_pruning
from torchvision import models

import tfprune
from examples.models.resnet import resnet18, resnet50
from tfprune.criteria.magnitude import L2
from tfprune.tables import table


@dataclass(frozen=True, kw_only=True)
class Squares(L2):
    """Mean of w**2 over what Torch-Pruning looks at, without a root, divided by the group's mean."""

    members: str = "mean"
    normalize: str = "mean"
    roles: tuple[str, ...] = ("write", "read", "scale")

    def finished(self, scores):
        return scores


def main() -> None:
    rows = []
    for name, build in (("resnet18", resnet18), ("resnet50", resnet50), ("mobilenet_v2", _mobilenet)):
        theirs = shaken(getattr(models, name)(weights=None))
        ours = build()
        pairs = copied(theirs, ours)
        graph = tfprune.trace(ours)
        expected = torch_pruned(theirs)
        for title, criterion in (("equal", Squares()), ("l2", "l2")):
            plan = tfprune.select(graph, criterion, ratio=0.5, scope="global", round_to=1)
            found = {pairs[layer]: set(gone) for layer, gone in filters(plan).items() if layer in pairs}
            layers = [layer for layer in pairs.values() if layer in expected or layer in found]
            both = sum(len(found.get(layer, set()) & expected.get(layer, set())) for layer in layers)
            alone = [sum(len(a.get(n, set()) - b.get(n, set())) for n in layers)
                     for a, b in ((found, expected), (expected, found))]  # fmt: skip
            rows.append((name, title, both, *alone))
    print(table("filters that go", ("model", "settings", "both", "tfprune alone", "Torch-Pruning alone"), rows))


def _mobilenet() -> keras.Model:
    return keras.applications.MobileNetV2(weights=None, classifier_activation=None)


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """Random gammas, so that they tell channels apart."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval()


def copied(theirs: torch.nn.Module, ours: keras.Model) -> dict[str, str]:
    """Copy all weights, layer by layer; Keras layer -> torch module, for those with filters.

    Both lists hold the layers in the order in which they run, but for shortcuts, which names tell apart.
    """
    kinds = (torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.nn.Linear)
    modules = {name: module for name, module in theirs.named_modules() if isinstance(module, kinds)}
    layers = {layer.name: layer for layer in ours.layers if layer.weights}
    if set(layers) == {name.replace(".", "_") for name in modules}:
        matched = [(layers[name.replace(".", "_")], name) for name in modules]
    else:
        matched = list(zip(layers.values(), modules, strict=True))
    for layer, name in matched:
        _copy(modules[name], layer)
    return {layer.name: name for layer, name in matched if not isinstance(modules[name], torch.nn.BatchNorm2d)}


def _copy(module: torch.nn.Module, layer: keras.layers.Layer) -> None:
    arrays = [p.detach().numpy() for p in (module.weight, module.bias) if p is not None]
    if isinstance(module, torch.nn.BatchNorm2d):
        arrays += [module.running_mean.numpy(), module.running_var.numpy()]
    elif isinstance(module, torch.nn.Linear):
        arrays[0] = arrays[0].T
    else:
        depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
        arrays[0] = arrays[0].transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0))
    layer.set_weights(arrays)


def filters(plan: tfprune.PruningPlan) -> dict[str, list[int]]:
    """Layer -> its filters that go, depthwise ones among them."""
    found = {}
    for slot, gone in plan.zeros():
        if slot.kind in ("write", "depthwise"):
            found[slot.weight.layer] = np.flatnonzero(gone).tolist()
    return found


def torch_pruned(model: torch.nn.Module) -> dict[str, set[int]]:
    """Convolution -> its filters that Torch-Pruning takes."""
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=2, group_reduction="mean", normalizer="mean")
    head = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    pruner = torch_pruning.pruner.BasePruner(
        model, torch.zeros(1, 3, 224, 224), importance, global_pruning=True, pruning_ratio=0.5, ignored_layers=head
    )
    names = {module: name for name, module in model.named_modules()}
    found: dict[str, set[int]] = {}
    for group in pruner.step(interactive=True):
        for dependency, indices in group:
            module = dependency.target.module
            if isinstance(module, torch.nn.Conv2d) and "out_channels" in dependency.handler.__name__:
                found.setdefault(names[module], set()).update(map(int, indices))
    return found


if __name__ == "__main__":
    main()
