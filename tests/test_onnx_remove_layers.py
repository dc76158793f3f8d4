"""Whole convolutions taken out: the model stays valid, runs, and keeps the shapes that others rely on."""

from __future__ import annotations

import models
import numpy as np
import onnx
import pytest
from onnx_models import Net, numbers

import tfprune
from tfprune.errors import PlanError, TraceError
from tfprune.onnx_graph.run import random_inputs, run


def vgg(opset=17):
    """The seed's kind: convolutions and pools in a row, with a dense head."""
    net, x, width = Net(opset=opset), "x", 3
    for filters in (8, 8, 12, 12, 16, 16):
        x = net.add("Relu", net.conv(x, width, filters))
        if filters != width:
            x = net.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
        width = filters
    x = net.add("Flatten", x)
    x = net.add("Relu", net.add("Gemm", x, net.weight(20, 64), net.weight(20), transB=1))
    return net.model({"x": ("N", 3, 16, 16)}, [net.add("Gemm", x, net.weight(5, 20), net.weight(5), transB=1)])


def resnet():
    net = Net()
    x = net.add("Relu", net.norm(net.conv("x", 3, 8, bias=False), 8))
    for width, filters, stride in ((8, 8, 1), (8, 12, 2), (12, 12, 1)):
        y = net.add("Relu", net.norm(net.conv(x, width, filters, bias=False, strides=[stride] * 2), filters))
        y = net.norm(net.conv(y, filters, filters, bias=False), filters)
        if width != filters:
            x = net.norm(net.conv(x, width, filters, 1, bias=False, strides=[stride] * 2), filters)
        x = net.add("Relu", net.add("Add", x, y))
    x = net.add("Flatten", net.add("GlobalAveragePool", x))
    return net.model({"x": ("N", 3, 16, 16)}, [net.dense(x, 12, 5)])


def mobilenet():
    net = Net()
    x = net.norm(net.conv("x", 3, 8), 8)
    for stride in (1, 2):
        y = net.add("Clip", net.norm(net.conv(x, 8, 24, 1, bias=False), 24), "", net.constant(np.float32(6)))
        y = net.norm(net.conv(y, 24, 24, bias=False, group=24, strides=[stride] * 2), 24)
        gate = net.add("Relu", net.conv(net.add("GlobalAveragePool", y), 24, 6, 1))
        y = net.add("Mul", y, net.add("HardSigmoid", net.conv(gate, 6, 24, 1)))
        y = net.norm(net.conv(y, 24, 8, 1, bias=False), 8)
        x = net.add("Add", x, y) if stride == 1 else y
    return net.model({"x": ("N", 3, 16, 16)}, [net.add("Flatten", net.add("GlobalAveragePool", net.conv(x, 8, 5, 1)))])


def densenet():
    net = Net()
    x, width = net.conv("x", 3, 8), 8
    for _ in range(3):
        y = net.conv(net.add("Relu", net.norm(x, width)), width, 12, 1)
        x, width = net.add("Concat", x, net.conv(net.add("Relu", y), 12, 4), axis=1), width + 4
    a = net.add("AveragePool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    x = net.add("Concat", net.conv(a, width, 6, 1), net.conv(x, width, 6, 5), net.conv(x, width, 6, group=2), axis=1)
    # One without padding: the spatial size shrinks.
    x = net.conv(x, 18, 8, pads=[0, 0, 0, 0])
    return net.model({"x": (2, 3, 16, 16)}, [net.add("Flatten", net.add("GlobalMaxPool", net.conv(x, 8, 5, 1)))])


NETS = [vgg, resnet, mobilenet, densenet]


def count(model):
    return sum(node.op_type == "Conv" for node in model.graph.node)


@pytest.mark.parametrize("percent", [10, 30, 50, 70, 90])
@pytest.mark.parametrize("build", NETS, ids=lambda build: build.__name__)
def test_what_is_left_is_valid_and_runs(build, percent):
    model = build()
    before, expected = model.SerializeToString(), run(model, inputs := random_inputs(model))
    for seed in range(4):
        result = tfprune.remove_layers(model, percent, seed=seed)
        onnx.checker.check_model(result.model, full_check=True)
        assert len(result.removed) == int(percent * count(model) / 100)
        assert count(result.model) == count(model) - len(result.removed)
        assert not {node.name for node in result.model.graph.node} & set(result.removed)
        outputs = run(result.model, inputs)
        assert [y.shape for y in outputs] == [y.shape for y in expected]
        assert all(np.isfinite(y).all() for y in outputs)
        if result.removed:
            assert numbers(result.model) < numbers(model)
        # What stays has the widths of what stands before it now.
        assert tfprune.trace(result.model).opaque == ()
    assert model.SerializeToString() == before


def test_the_same_seed_removes_the_same_layers():
    model = vgg()
    first, again, other = (tfprune.remove_layers(model, 50, seed=seed).removed for seed in (3, 3, 4))
    assert first == again != other


def test_nothing_and_everything():
    model = vgg()
    result = tfprune.remove_layers(model, 0)
    assert result.model == model and result.removed == () and "nothing was removed" in str(result)
    with pytest.raises(PlanError, match=r"100 % of 6 convolutions are 6, and at most 5 can be removed \(83.33 %\)"):
        tfprune.remove_layers(model, 100)
    for wrong in (-1, 100.5, float("nan"), "many", True):
        with pytest.raises(PlanError, match="percent must be a number"):
            tfprune.remove_layers(model, wrong)
    for settings in ({}, {"percent": 10, "names": ["Conv_3"]}):
        with pytest.raises(PlanError, match="either percent or names"):
            tfprune.remove_layers(model, **settings)
    with pytest.raises(PlanError, match="no convolution 'nothing'"):
        tfprune.remove_layers(model, names=["nothing"])
    with pytest.raises(TraceError, match="dict"):
        tfprune.remove_layers({}, 10)


def test_named_layers_and_the_lowest_scores():
    model = vgg()
    names = [node.name for node in model.graph.node if node.op_type == "Conv"]
    assert tfprune.remove_layers(model, names=[names[3], names[1]]).removed == (names[3], names[1])
    for tensor in model.graph.initializer:
        if tensor.name == next(node for node in model.graph.node if node.name == names[2]).input[1]:
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * 1e-3, tensor.name))
    assert tfprune.remove_layers(model, 20, criterion="l1").removed == (names[2],)


def test_neighbours_lose_the_channels_and_not_more():
    """Worked out by hand: the third convolution, 8 to 12, goes; the fourth then reads 8 channels."""
    model = vgg()
    names = [node.name for node in model.graph.node if node.op_type == "Conv"]
    result = tfprune.remove_layers(model, names=[names[2]])
    sizes = {tensor.name: list(tensor.dims) for tensor in result.model.graph.initializer}
    fourth = next(node for node in result.model.graph.node if node.name == names[3])
    assert sizes[fourth.input[1]] == [12, 8, 3, 3]
    assert numbers(model) - numbers(result.model) == (12 * 8 * 9 + 12) + 12 * (12 - 8) * 9
    assert [node.op_type for node in result.model.graph.node if node.op_type in ("Pad", "Identity")] == []


def test_a_stride_is_kept():
    model = resnet()
    strides = {node.name: next(a.ints[0] for a in node.attribute if a.name == "strides")
               for node in model.graph.node if any(a.name == "strides" for a in node.attribute)}  # fmt: skip
    names = [name for name, stride in strides.items() if stride == 2]
    result = tfprune.remove_layers(model, names=names)
    assert sum(node.op_type == "AveragePool" for node in result.model.graph.node) == len(names) == 2


def test_the_walk_names_each_layer_with_its_shape():
    lines = tfprune.remove_layers(vgg(), 50).walk.splitlines()
    assert lines[0].startswith("After Layer   0: layer type: ") and lines[-1].endswith("Gemm, shape is: [5]")


@pytest.mark.parametrize("opset", [9, 12, 18, 21])
def test_opsets(opset):
    model = vgg(opset)
    result = tfprune.remove_layers(model, 50, seed=1)
    onnx.checker.check_model(result.model, full_check=True)
    assert run(result.model, random_inputs(model))


@pytest.mark.parametrize("percent", [30, 70])
@pytest.mark.parametrize("build", [models.mini_net, models.residual_net, models.inverted_residual_net])
def test_keras_models_too(build, percent):
    model = models.shaken(build())
    weights = [models.numbers(variable) for variable in model.weights]
    every = [layer for layer in model.layers if "Conv" in type(layer).__name__]
    arrays = models.arrays_for(model)
    for seed in range(3):
        result = tfprune.remove_layers(model, percent, seed=seed)
        assert len(result.removed) == int(percent * len(every) / 100)
        left = [layer.name for layer in result.model.layers if "Conv" in type(layer).__name__]
        assert sorted(left) == sorted({layer.name for layer in every} - set(result.removed))
        before, after = models.outputs(model, arrays), models.outputs(result.model, arrays)
        assert [y.shape for y in before] == [y.shape for y in after]
        assert not result.removed or result.cost_after.parameters < result.cost_before.parameters
    assert all(np.array_equal(a, models.numbers(b)) for a, b in zip(weights, model.weights, strict=True))
    with pytest.raises(PlanError, match="at most"):
        tfprune.remove_layers(model, 100)
