"""What PyTorch users have: torchvision's models through both of PyTorch's exporters. Slow, and needs torchvision."""

from __future__ import annotations

import sys
import types

import numpy as np
import onnx
import pytest
from onnx_models import numbers

import tfprune

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def torchvision():
    pytest.importorskip("torch")
    try:
        return pytest.importorskip("torchvision")
    except RuntimeError:  # its compiled operators are for another PyTorch; these models use none of them
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")
        return pytest.importorskip("torchvision")


def vit(models):
    return models.VisionTransformer(64, 16, num_layers=3, num_heads=4, hidden_dim=64, mlp_dim=128, num_classes=10)


def swin(models):
    return models.SwinTransformer([4, 4], 32, [2, 2], [2, 4], [2, 2], num_classes=10)


#: name -> (how it is built, the most of its parameters that may be left)
MODELS = {
    "resnet18": (lambda models: models.resnet18(num_classes=10), 0.27),
    "resnet50": (lambda models: models.resnet50(num_classes=10), 0.27),
    "mobilenet_v2": (lambda models: models.mobilenet_v2(num_classes=10), 0.28),
    "mobilenet_v3_small": (lambda models: models.mobilenet_v3_small(num_classes=10), 0.28),
    "efficientnet_b0": (lambda models: models.efficientnet_b0(num_classes=10), 0.28),
    "convnext_tiny": (lambda models: models.convnext_tiny(num_classes=10), 0.56),
    "densenet121": (lambda models: models.densenet121(num_classes=10), 0.28),
    "shufflenet_v2_x0_5": (lambda models: models.shufflenet_v2_x0_5(num_classes=10), 0.31),
    "vit": (vit, 0.8),
    "swin": (swin, 0.8),
}


def shaken(torch, model):
    """Random biases, scales and statistics in place, at inference."""
    torch.manual_seed(0)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not tensor.is_floating_point():
            continue
        low, high = (-0.2, 0.2) if name.endswith(("bias", "mean")) else (0.5, 1.5)
        with torch.no_grad():
            if tensor.dim() == 1:
                tensor.uniform_(low, high)
            elif "layer_scale" in name:
                tensor.uniform_(0.5, 1.0)
            elif not tensor.any():  # a classifier that starts from zeros says the same of every image
                tensor.normal_(0, 0.1)
    return model.eval()


def export(torch, model, path, dynamo, batch):
    """An .onnx file, with a batch of any size or of two."""
    image = torch.randn(2, 3, 64, 64)
    if not dynamo:
        axes = {"x": {0: "batch"}} if batch == "any" else None
        torch.onnx.export(model, (image,), path, dynamo=False, input_names=["x"], dynamic_axes=axes, opset_version=17)
    else:
        shapes = ({0: torch.export.Dim("batch", min=2)},) if batch == "any" else None
        settings = {"dynamic_shapes": shapes, "input_names": ["x"], "external_data": False, "verbose": False}
        torch.onnx.export(model, (image,), path, dynamo=True, **settings)
    return onnx.load(path)


@pytest.mark.parametrize("batch", ["any", "two"])
@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
@pytest.mark.parametrize("name", MODELS)
def test_half_the_channels_zeroed_and_stripped(name, dynamo, batch, torchvision, tmp_path):
    import torch

    if dynamo:
        pytest.importorskip("onnxscript")
    build, most = MODELS[name]
    proto = export(torch, shaken(torch, build(torchvision.models)), tmp_path / "model.onnx", dynamo, batch)
    before = numbers(proto)
    graph = tfprune.trace(proto)
    # With an open batch, flattening the pooled features is a Gather there whose indices are computed from the batch.
    strided = [one for one in graph.opaque if "as_strided" in one.layer]
    assert len(strided) <= 1 and len(graph.opaque) == len(strided), graph.opaque
    tfprune.soft_prune(proto, tfprune.select(graph, "l1", ratio=0.5, round_to=1))
    result = tfprune.strip(proto)
    onnx.checker.check_model(result.model, full_check=True)
    assert result.verification.relative <= 1e-5 and result.verification.spread > 0
    assert numbers(result.model) < (0.95 if strided else most) * before
    # A batch of another size than the comparison's, where the file takes one.
    if batch == "any":
        inputs = [np.random.default_rng(0).standard_normal((5, 3, 64, 64)).astype(np.float32)]
        tfprune.verify(proto, result.model, inputs=inputs).raise_if_different("another batch")
