"""Dependency plans: what a channel takes with it, counted and printed, by layer, piece by piece and group by group."""

from __future__ import annotations

import runpy
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from models import (
    assert_same,
    floats,
    inverted_residual_net,
    numbers,
    parameters,
    residual_net,
    shaken,
    without_xla,
)
from random_models import Builder

import tfprune
from tfprune.channels import pieces
from tfprune.errors import PlanError

RESNET = Path(__file__).parents[1] / "examples" / "models" / "resnet.py"

# What seeds/003's README prints for channels [2, 6, 9] of the first convolution of a ResNet-18, layer by layer.
BY_HAND = {
    "conv1": 441, "bn1": 6, "layer2_0_conv1": 3456, "layer1_1_bn2": 6, "layer1_1_conv2": 1728,
    "layer2_0_downsample_0": 384, "layer1_1_conv1": 1728, "layer1_0_bn2": 6, "layer1_0_conv2": 1728,
    "layer1_0_conv1": 1728,
}  # fmt: skip


def built(name):
    return runpy.run_path(str(RESNET))[name]()


@pytest.fixture(scope="module")
def resnet18():
    return built("resnet18")


@pytest.fixture(scope="module")
def graph(resnet18):
    return tfprune.trace(resnet18)


def lines(text):
    """Without the spaces that end a line."""
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


# ---------------------------------------------------------------------- by layer


def test_the_resnet_18_of_the_first_readme(resnet18, graph):
    plan = graph.plan("conv1", channels=[2, 6, 9])
    assert {part.layer: part.parameters for part in plan.parts} == BY_HAND
    assert all(part.channels == (2, 6, 9) for part in plan.parts)
    assert plan.parameters == sum(BY_HAND.values()) == 11_211
    assert plan.statistics == 3 * 2 * 3, "three BatchNormalizations, a mean and a variance, three channels"
    assert "11,211 parameters go, and 18 moving statistics" in str(plan)
    stripped = tfprune.strip(resnet18, plan, verify=False).model
    assert parameters(resnet18) - parameters(stripped) == 11_211 + 18
    assert stripped.get_layer("conv1").filters == 61


def test_a_plan_for_a_small_model_reads():
    keras.utils.clear_session()  # Keras numbers the activations of a session
    assert lines(str(tfprune.trace(residual_net()).plan("b1", [0, 5]))) == lines(
        """
residual_net: 2 channels go (b1 [0, 5])

 group   width   left   channels that go
 ───────────────────────────────────────
 b1         12     10   0, 5

 layer   loses                    of                                             parameters   statistics
 ───────────────────────────────────────────────────────────────────────────────────────────────────────
 b1      output channels [0, 5]   kernel 3x3x8x12                                       144
 b1_bn   channels [0, 5]          gamma, beta, moving_mean, moving_variance 12            4            4
 b2      input channels [0, 5]    kernel 3x3x12x12                                      216
364 parameters go, and 4 moving statistics
layers without weights that they pass through: activation_2"""
    )


def test_the_groups_of_the_resnet_18_are_walked_in_order(graph):
    prunable = [group for group in graph.groups if group.prunable]
    assert [group.name for group in prunable] == [
        "conv1", "layer1_0_conv1", "layer1_1_conv1",
        "layer2_0_conv1", "layer2_0_downsample_0", "layer2_1_conv1",
        "layer3_0_conv1", "layer3_0_downsample_0", "layer3_1_conv1",
        "layer4_0_conv1", "layer4_0_downsample_0", "layer4_1_conv1",
    ]  # fmt: skip
    assert lines(str(graph.group("layer2_1_conv1"))) == lines("""
layer2_1_conv1: 128 channels, prunable

 layer            side              in                                              parameters a channel   statistics
 ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
 layer2_1_conv1   output channels   kernel 3x3x128x128                                             1,152
 layer2_1_bn1     channels          gamma, beta, moving_mean, moving_variance 128                      2            2
 layer2_1_conv2   input channels    kernel 3x3x128x128                                             1,152""")
    assert "fc: 1000 channels, stays: it is an output of the model" in str(graph.group("fc"))


@pytest.mark.parametrize("make", [residual_net, inverted_residual_net], ids=lambda make: make.__name__)
def test_what_a_selected_plan_counts_is_what_strip_removes(make):
    model = shaken(make())
    plan = tfprune.select(model, "l2", ratio=0.5)
    stripped = tfprune.strip(model, plan)
    assert parameters(model) - parameters(stripped.model) == plan.parameters + plan.statistics
    trained = [sum(v.size for v in map(numbers, m.trainable_variables)) for m in (model, stripped.model)]
    assert trained[0] - trained[1] == plan.parameters


def test_random_models_lose_what_the_plan_counts():
    counted = 0
    with floats("float64"), without_xla():
        for number in range(8):
            generator = np.random.default_rng(number)
            model = Builder(lambda n: int(generator.integers(n))).model(4)  # noqa: B023
            graph = tfprune.trace(model)
            for group in [group for group in graph.groups if group.prunable and group.width > 2][:1]:
                plan = graph.plan(group.writers[0], [1])
                result = tfprune.strip(model, plan, verify=False)
                if not result.refusals:
                    assert parameters(model) - parameters(result.model) == plan.parameters + plan.statistics
                    counted += 1
    assert counted >= 5


def odd_net():
    """Grouped and depthwise convolutions, an LSTM, a Dense behind a Flatten: kernels cut on two sides, in blocks."""
    inputs = keras.Input((6, 6, 4))
    x = layers.Conv2D(8, 1, name="a")(inputs)
    x = layers.Conv2D(12, 3, groups=2, padding="same", name="grouped")(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(x)
    x = layers.PReLU(shared_axes=(1, 2), name="slopes")(x)
    x = layers.Reshape((16, 24))(x)
    x = layers.LSTM(6, return_sequences=True, name="lstm")(x)
    x = layers.Dense(7, name="dense")(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(2, name="head")(x), name="odd_net")


def test_kernels_cut_on_several_sides_are_counted_once():
    with floats("float64"):
        model = shaken(odd_net())
    graph = tfprune.trace(model)
    plan = graph.plan({"a": [1], "grouped": [0, 7], "lstm": [2, 5], "dense": [3]})
    stripped = tfprune.strip(model, plan)
    assert parameters(model) - parameters(stripped.model) == plan.parameters
    assert stripped.model.get_layer("a").filters == 6, "channel 5 is channel 1 of the other group"
    tfprune.soft_prune(model, plan)
    assert_same(model, stripped.model)


def test_layers_and_groups_by_name(graph):
    assert np.array_equal(graph.plan("bn1", [2]).gone, graph.plan("conv1", [2]).gone)
    assert np.array_equal(graph.plan("layer1_1_conv2", [2]).gone, graph.plan("conv1", [2]).gone)
    both = graph.plan({"conv1": np.array([2]), "layer4_1_conv1": range(3)})
    assert both.channels == {"conv1": (2,), "layer4_1_conv1": (0, 1, 2)}
    inputs = keras.Input((4, 4, 3))
    left, right = keras.ops.split(layers.Conv2D(8, 1, name="a")(inputs), 2, axis=-1)
    left = left + layers.Conv2D(4, 1, name="b")(inputs)
    model = keras.Model(inputs, [layers.Conv2D(2, 1)(left), layers.Conv2D(2, 1)(right)])
    assert tfprune.trace(model).plan("a", [5]).channels == {"a#2": (1,)}
    assert tfprune.trace(model).plan("a#2", [1]).channels == {"a#2": (1,)}


@pytest.mark.parametrize(
    ("layer", "channels", "message"),
    [
        ("conv9", [1], "no layer or channel group 'conv9'; did you mean 'conv1'"),
        ("conv1", [63, 64], r"'conv1' has channels 0 to 63, and \[64\] came"),
        ("conv1", [-1], r"0 to 63, and \[-1\]"),
        ("conv1", [4, 1, 4], r"\[4\] of 'conv1' are named twice"),
        ("conv1", [True], "whole numbers, and True"),
        ("conv1", [0.5], "whole numbers, and 0.5"),
        ("conv1", "12", "whole numbers, and '12'"),
        ("conv1", [], "none came"),
        ("conv1", None, "none came"),
        ("conv1", range(64), "all 64 channels of 'conv1'"),
        ("fc", [1], "'fc' stay: it is an output"),
        ("maxpool", [0], "'maxpool' has no channels of its own"),
        ({}, None, "at least one layer"),
        ({"layer1_0_conv2": range(32), "conv1": range(32, 64)}, None, "all 64 channels of 'conv1'"),
    ],
)
def test_mistakes_are_told(graph, layer, channels, message):
    with pytest.raises(PlanError, match=message):
        graph.plan(layer, channels)


def test_a_large_plan_prints_short_and_in_full(graph):
    plan = tfprune.select(graph, "l2", ratio=0.5)
    assert "from 41 layers; plan.details() lists them" in str(plan) and len(str(plan).splitlines()) < 20
    assert all(f" {part.layer} " in plan.details() for part in plan.parts)
    assert tfprune.PruningPlan(graph, np.zeros(graph.channels, bool)).details() == "nothing is pruned"


@pytest.mark.parametrize(
    ("name", "trained"), [("resnet18", 11_689_512), ("resnet20", 272_474), ("resnet56", 855_770)]
)  # torchvision's count, and those of He et al.'s narrow ones with 1x1 shortcuts
def test_example_resnets_have_the_parameters_they_are_known_for(name, trained):
    model = built(name)
    assert sum(int(np.prod(v.shape)) for v in model.trainable_variables) == trained
    assert not tfprune.trace(model).opaque


# ---------------------------------------------------------------------- piece by piece


def test_pieces_that_belong_together_are_the_plan(graph):
    gone = [2, 6, 9]
    made = [
        pieces.outputs(graph, "conv1", gone),
        *(pieces.carried(graph, f"{name}", gone) for name in ("bn1", "layer1_0_bn2", "layer1_1_bn2")),
        *(pieces.inputs(graph, f"layer1_{block}_conv1", gone) for block in (0, 1)),
        *(pieces.outputs(graph, f"layer1_{block}_conv2", gone) for block in (0, 1)),
        *(pieces.inputs(graph, name, gone) for name in ("layer2_0_conv1", "layer2_0_downsample_0")),
    ]
    assert {piece.layer: piece.part.parameters for piece in made} == BY_HAND
    assert np.array_equal(pieces.assemble(made).gone, graph.plan("conv1", gone).gone)
    with pytest.raises(PlanError) as raised:
        pieces.assemble([piece for piece in made if piece.layer not in ("bn1", "layer2_0_downsample_0")])
    message = str(raised.value)
    assert "bn1 loses channels [2, 6, 9]: 6 parameters and 6 statistics" in message
    assert "layer2_0_downsample_0 loses input channels [2, 6, 9]: 384 parameters" in message
    assert "layer1_0" not in message


def test_a_pieces_arrays_are_those_of_the_stripped_model():
    model = shaken(inverted_residual_net())
    graph = tfprune.trace(model)
    stripped = tfprune.strip(model, graph.plan("expand", [1, 5]), verify=False).model
    for piece in (
        pieces.outputs(graph, "expand", [1, 5]),
        pieces.carried(graph, "expand_bn", [1, 5]),
        pieces.carried(graph, "depthwise", [1, 5]),
        pieces.inputs(graph, "squeeze", [1, 5]),
        pieces.outputs(graph, "excite", [1, 5]),
        pieces.inputs(graph, "project", [1, 5]),
    ):
        small = stripped.get_layer(piece.layer)
        assert piece.arrays()
        for name, array in piece.arrays().items():
            np.testing.assert_array_equal(array, numbers(getattr(small, name)))


def test_arrays_of_groups_and_gates():
    graph = tfprune.trace(shaken(odd_net()))
    assert pieces.outputs(graph, "grouped", [0, 7]).arrays()["kernel"].shape == (3, 3, 4, 10)
    assert {k: v.shape for k, v in pieces.outputs(graph, "lstm", [1]).arrays().items()} == {
        "kernel": (24, 20), "recurrent_kernel": (6, 20), "bias": (20,)}  # fmt: skip
    kernel = numbers(graph.model.get_layer("dense").kernel)
    np.testing.assert_array_equal(
        pieces.inputs(graph, "dense", [0, 4]).arrays()["kernel"], np.delete(kernel, [0, 4], axis=0)
    )
    with pytest.raises(PlanError, match="several axes"):
        pieces.inputs(graph, "grouped", [0, 4]).arrays()


@pytest.mark.parametrize(
    ("make", "layer", "channels", "message"),
    [
        (pieces.outputs, "dense_9", [0], "no layer 'dense_9'; did you mean .*'dense'"),
        (pieces.outputs, "slopes", [0], "'slopes' has no output channels.*it has channels"),
        (pieces.carried, "a", [0], "'a' has no channels with weights.*it has input channels and output channels"),
        (pieces.outputs, "grouped", [0, 1], r"2 groups of output channels.*would lose \[2, 0\]"),
        (pieces.outputs, "a", [8], r"channels 0 to 7, and \[8\]"),
        (pieces.outputs, "a", range(8), "all 8 output channels of 'a'"),
        (pieces.inputs, "a", [0], "'a' stay: "),
        (pieces.carried, "depthwise", [3, 3], "named twice"),
    ],
)
def test_pieces_are_refused_with_a_reason(make, layer, channels, message):
    with pytest.raises(PlanError, match=message):
        make(tfprune.trace(odd_net()), layer, channels)


def test_pieces_of_different_graphs_make_no_plan():
    one, other = tfprune.trace(odd_net()), tfprune.trace(odd_net())
    with pytest.raises(PlanError, match="different graphs"):
        pieces.assemble([pieces.outputs(one, "a", [0]), pieces.inputs(other, "grouped", [0, 4])])
    with pytest.raises(PlanError, match="at least one piece"):
        pieces.assemble([])
