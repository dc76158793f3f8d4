"""Strip proves what may go from the weights alone: every way to be zero, and every way not to be."""

from __future__ import annotations

import subprocess
import sys

import keras
import numpy as np
import pytest
from fuzzing import assert_untouched, snapshot
from keras import layers, ops
from models import (
    assert_same,
    conv_bn,
    difference,
    floats,
    inverted_residual_net,
    numbers,
    outputs,
    parameters,
    residual_net,
    shaken,
    zero_filters,
    zero_layer,
    zero_normalization,
)

import tfprune
from tfprune.errors import PlanError, TraceError, VerificationError
from tfprune.keras_graph import rebuild

SHAPE = (6, 6, 3)


@pytest.fixture(autouse=True)
def float64():
    with floats("float64"):
        yield


def model_of(body, shape=SHAPE, head=True):
    inputs = keras.Input(shape)
    x = body(inputs)
    if head:
        x = layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(x) if len(x.shape) == 4 else x)
    return shaken(keras.Model(inputs, x))


def stripped(model, plan=None):
    """Strip, with all that must hold of any strip."""
    before = snapshot(model)
    result = tfprune.strip(model, plan)
    assert_untouched(model, before)
    if plan is None:
        assert_same(model, result.model)
        again = tfprune.strip(result.model)
        assert parameters(again.model) == parameters(result.model) and not again.plan
        assert "the model is as it was" in str(again)
    assert result.verification.equal and result.verification.spread > 1e-3
    assert result.cost_after.parameters == parameters(result.model)
    assert all(refusal.layer and refusal.channels and refusal.reason for refusal in result.refusals)
    return result


def filters(result, *names):
    return tuple(result.model.get_layer(name).filters for name in names)


# ---------------------------------------------------------------------- constants that are folded


def test_filters_zeroed_but_not_normalization():
    """Behind BatchNormalization: relu(beta - gamma * mean / sqrt(variance)), a bias of the next kernel."""
    model = model_of(lambda x: layers.Conv2D(5, 1, name="b")(conv_bn(x, 8, name="a")))
    zero_filters(model.get_layer("a"), [1, 4, 6])
    result = stripped(model)
    assert filters(result, "a", "b") == (5, 5)
    bn = model.get_layer("a_bn")
    gamma, beta, mean, variance = (
        numbers(v)[[1, 4, 6]] for v in (bn.gamma, bn.beta, bn.moving_mean, bn.moving_variance)
    )
    constant = np.maximum(0, beta - gamma * mean / np.sqrt(variance + bn.epsilon))
    assert constant.any()
    gained = constant @ numbers(model.get_layer("b").kernel)[0, 0, [1, 4, 6]]
    np.testing.assert_allclose(
        result.model.get_layer("b").bias, numbers(model.get_layer("b").bias) + gained, rtol=1e-12
    )


@pytest.mark.parametrize("activation", ["sigmoid", "hard_sigmoid", "softplus", "exponential", "relu"])
def test_a_zero_filter_behind_an_activation(activation):
    """f(0) is not 0: 0.5 for sigmoid, log 2 for softplus. It becomes a bias, made where there is none."""
    model = model_of(lambda x: layers.Conv2D(5, 3, use_bias=False, name="b")(
        layers.Conv2D(8, 3, activation=activation, name="a")(x)))  # fmt: skip
    zero_filters(model.get_layer("a"), [0, 7])
    result = stripped(model)
    assert filters(result, "a") == (6,)
    layer = result.model.get_layer("b")
    assert layer.use_bias == (activation != "relu")
    if layer.use_bias:
        zero = float(keras.activations.get(activation)(np.zeros(1))[0])
        expected = zero * numbers(model.get_layer("b").kernel)[:, :, [0, 7]].sum((0, 1, 2))
        np.testing.assert_allclose(layer.bias, expected, rtol=1e-12)


@pytest.mark.parametrize("reader", ["conv", "depthwise", "padding", "transposed"])
def test_a_constant_does_not_cross_padding(reader):
    def body(x):
        x = layers.Conv2D(8, 3, activation="sigmoid", name="a")(x)
        return {
            "conv": lambda: layers.Conv2D(5, 3, padding="same", name="b"),
            "depthwise": lambda: layers.DepthwiseConv2D(3, padding="same", name="b"),
            "padding": lambda: layers.ZeroPadding2D(1, name="b"),
            "transposed": lambda: layers.Conv2DTranspose(4, 3, name="b"),
        }[reader]()(x)

    model = model_of(body)
    zero_filters(model.get_layer("a"), [2, 3])
    result = stripped(model)
    assert filters(result, "a") == (8,)
    (refusal,) = [refusal for refusal in result.refusals if refusal.layer == "a"]
    assert refusal.channels == (2, 3) and refusal.reason == "0.5 after a crosses the padded b"
    assert str(refusal) in str(result) and "a: 2 channels [2, 3] stay" in str(refusal)


def test_a_constant_map_is_none_behind_padding():
    """Every input of b is 0.5, and yet b's outputs differ at the border."""

    def body(x):
        y = layers.Conv2D(8, 1, activation="sigmoid", name="a")(x)
        y = layers.Conv2D(5, 3, padding="same", activation="relu", name="b")(y)
        return layers.Conv2D(4, 1, name="c")(layers.Concatenate()([x, y]))

    model = model_of(body, head=False)
    zero_layer(model.get_layer("a"))
    assert "b" not in stripped(model).removed_layers


def test_zero_crosses_padding():
    model = model_of(
        lambda x: layers.Conv2D(5, 3, padding="same", name="b")(layers.Conv2D(8, 3, activation="relu", name="a")(x))
    )
    zero_filters(model.get_layer("a"), [2, 3])
    assert filters(stripped(model), "a") == (6,)


def test_a_gamma_of_zero_makes_the_filter_needless():
    model = model_of(lambda x: layers.Conv2D(5, 1, name="b")(conv_bn(x, 8, name="a")))
    gamma = numbers(model.get_layer("a_bn").gamma)
    gamma[[0, 5]] = 0
    model.get_layer("a_bn").gamma.assign(gamma)
    assert filters(stripped(model), "a") == (6,)


def test_constants_cascade():
    """A zeroed layer's reader without bias writes zeros too, and so on to the end."""
    settings = {"padding": "same", "use_bias": False}

    def body(x):
        y = layers.Conv2D(8, 1, name="a", **settings)(x)
        y = layers.ReLU()(layers.Conv2D(5, 3, name="b", **settings)(y))
        return layers.Concatenate()([layers.Conv2D(4, 1, name="keep")(x), layers.Conv2D(6, 3, name="c", **settings)(y)])

    model = model_of(body)
    zero_layer(model.get_layer("a"))
    result = stripped(model)
    assert set(result.removed_layers) >= {"a", "b", "c"}


def test_a_channel_nobody_reads():
    model = model_of(lambda x: layers.Conv2D(5, 3, name="b")(layers.ReLU()(conv_bn(x, 8, name="a"))))
    zero_filters(model.get_layer("b"), [1, 2], side="read")
    result = stripped(model)
    assert filters(result, "a") == (6,)
    assert result.model.get_layer("a_bn").gamma.shape == (6,)


def test_constants_of_a_shared_layer_stay_where_its_calls_differ():
    def body(x):
        shared = layers.Conv2D(4, 1, name="shared")
        a = layers.Conv2D(6, 1, activation="sigmoid", name="a")(x)
        b = layers.Conv2D(6, 1, activation="sigmoid", name="b")(x)
        return layers.Concatenate()([shared(a), shared(b)])

    model = model_of(body)
    zero_filters(model.get_layer("a"), [0, 1])
    zero_filters(model.get_layer("b"), [1, 2])
    result = stripped(model)
    assert filters(result, "a", "b") == (6, 6)
    assert any("shared" in refusal.reason for refusal in result.refusals)


# ---------------------------------------------------------------------- whole branches


def test_a_zeroed_residual_branch_leaves_its_shortcut():
    model = shaken(residual_net())
    zero_layer(model.get_layer("a2"))
    zero_normalization(model.get_layer("a2_bn"), slice(None))
    result = stripped(model)
    assert {"a1", "a1_bn", "a2", "a2_bn", "a_add"} <= set(result.removed_layers)
    assert parameters(result.model) == parameters(model) - 2 * 9 * 8 * 8 - 2 * 4 * 8


def test_a_residual_branch_that_is_a_constant_leaves_a_shift():
    model = shaken(residual_net())
    zero_layer(model.get_layer("a2"))
    result = stripped(model)
    assert {"a1", "a2", "a2_bn"} <= set(result.removed_layers)
    assert isinstance(result.model.get_layer("a_add"), layers.Rescaling)


def test_a_zeroed_inverted_residual_with_its_gate():
    model = shaken(inverted_residual_net())
    zero_layer(model.get_layer("project"))
    zero_normalization(model.get_layer("project_bn"), slice(None))
    result = stripped(model)
    assert {"expand", "depthwise", "squeeze", "excite", "gated", "project", "add"} <= set(result.removed_layers)


def test_a_constant_gate_becomes_a_scale():
    """excite zeroed: hard_sigmoid(bias) for every image, folded into the kernel that reads the product."""
    model = shaken(inverted_residual_net())
    excite = model.get_layer("excite")
    excite.kernel.assign(np.zeros(excite.kernel.shape))
    result = stripped(model)
    assert {"squeeze", "excite", "gated"} <= set(result.removed_layers)
    gate = np.clip(numbers(excite.bias) / 6 + 0.5, 0, 1)
    left = gate != 0
    np.testing.assert_allclose(
        result.model.get_layer("project").kernel,
        (numbers(model.get_layer("project").kernel) * gate[:, None])[:, :, left],
        rtol=1e-12,
    )


def test_a_constant_gate_nobody_can_take_becomes_a_layer():
    def body(x):
        gate = layers.Dense(8, activation="sigmoid", name="gate")(layers.GlobalAveragePooling2D()(x))
        x = layers.Conv2D(8, 3, name="a")(x)
        return layers.ReLU()(x * layers.Reshape((1, 1, 8))(gate) + 1.0)

    model = model_of(body)
    model.get_layer("gate").kernel.assign(np.zeros((3, 8)))
    result = stripped(model)
    assert "gate" in result.removed_layers
    assert any(isinstance(layer, layers.Rescaling) for layer in result.model.layers)


def test_the_gate_shrinks_with_its_block():
    model = shaken(inverted_residual_net())
    for name in ("expand", "depthwise"):
        zero_normalization(model.get_layer(f"{name}_bn"), slice(0, 10))
    zero_filters(model.get_layer("squeeze"), [0, 1, 2])
    result = stripped(model)
    assert filters(result, "expand", "excite", "squeeze") == (14, 14, 9)
    assert result.model.get_layer("depthwise").kernel.shape == (3, 3, 14, 1)


def test_a_zeroed_branch_of_a_concatenation():
    def body(x):
        a = conv_bn(x, 6, 1, name="a")
        b = conv_bn(conv_bn(x, 4, 1, name="b1"), 5, name="b2")
        c = layers.Conv2D(4, 1, name="c")(layers.AveragePooling2D(3, 1, "same", name="pool")(x))
        return layers.Conv2D(7, 3, padding="same", name="d")(layers.Concatenate(name="cat")([a, b, c]))

    model = model_of(body)
    zero_layer(model.get_layer("b2"))
    zero_normalization(model.get_layer("b2_bn"), slice(None))
    result = stripped(model)
    assert {"b1", "b1_bn", "b2", "b2_bn"} <= set(result.removed_layers)
    assert result.model.get_layer("d").kernel.shape == (3, 3, 10, 7)
    zero_layer(model.get_layer("c"))
    assert {"b1", "b2", "c", "pool", "cat"} <= set(stripped(model).removed_layers)


def test_a_dense_block_loses_a_layer():
    def body(x):
        x = conv_bn(x, 6, name="stem")
        for name in ("a", "b", "c"):
            y = layers.Conv2D(4, 3, padding="same", use_bias=False, name=name)(
                layers.ReLU()(layers.BatchNormalization()(x))
            )
            x = layers.Concatenate()([x, y])
        return layers.ReLU()(layers.BatchNormalization(name="last")(x))

    model = model_of(body)
    zero_layer(model.get_layer("b"))
    zero_normalization(model.get_layer("last"), slice(10, 14))
    result = stripped(model)
    # What BatchNormalization makes of b's zeros is a constant before the padded c: there it stays.
    assert "b" not in result.removed_layers
    assert any("crosses the padded c" in refusal.reason for refusal in result.refusals)
    bn = model.layers[model.layers.index(model.get_layer("c")) - 2]
    bn.gamma.assign(np.where(np.arange(14) < 10, bn.gamma, 0))
    bn.beta.assign(np.where(np.arange(14) < 10, bn.beta, 0))
    assert "b" in stripped(model).removed_layers


@pytest.mark.skipif(keras.__version__ < "3.14", reason="Keras before 3.14 builds no model with an unused input")
def test_one_side_of_a_merge_with_unused_input():
    a, b = keras.Input((4,), name="a"), keras.Input((5,), name="b")
    y = layers.Add()([layers.Dense(6, name="left")(a), layers.Dense(6, name="right")(b)])
    model = shaken(keras.Model([a, b], layers.Dense(3)(layers.ReLU()(y))))
    zero_layer(model.get_layer("right"))
    result = stripped(model)
    assert "right" in result.removed_layers
    assert [tuple(tensor.shape) for tensor in result.model.inputs] == [(None, 4), (None, 5)]


def test_a_residual_branch_that_is_zero_only_where_it_is_read():
    """The channels in which the branch is alive go; of the others it adds nothing."""

    def body(x):
        x = layers.Conv2D(8, 3, padding="same", name="x")(x)
        y = layers.Conv2D(8, 3, padding="same", name="y")(x)
        return layers.Conv2D(4, 1, name="reader")(layers.Add(name="add")([x, y]))

    model = model_of(body)
    zero_filters(model.get_layer("y"), slice(0, 4))
    zero_filters(model.get_layer("reader"), slice(4, 8), side="read")
    result = stripped(model)
    assert {"y", "add"} <= set(result.removed_layers) and filters(result, "x") == (4,)


def test_a_model_that_is_zero_throughout_keeps_a_thread():
    model = model_of(lambda x: conv_bn(conv_bn(x, 8, name="a"), 6, name="b"))
    for layer in model.layers:
        zero_layer(layer)
    model.get_layer("head").bias.assign(np.arange(3.0))
    result = tfprune.strip(model)
    assert outputs(result.model)[0].tolist() == [[0, 1, 2]] * 2
    assert filters(result, "a", "b") == (1, 1)


# ---------------------------------------------------------------------- channels that move


def test_uneven_zeros_in_a_grouped_convolution():
    model = model_of(lambda x: layers.Conv2D(8, 3, groups=4, name="b")(layers.Conv2D(12, 1, name="a")(x)))
    zero_filters(model.get_layer("a"), [0, 1, 3])  # 1, 2, 3 and 3 inputs are left
    result = stripped(model)
    assert filters(result, "a") == (12,)
    assert {r.reason for r in result.refusals if r.layer == "a"} == {"b's groups would have uneven inputs"}
    zero_filters(model.get_layer("a"), [6, 9])  # now one is zero in every group, and two in the first
    result = stripped(model)
    assert filters(result, "a") == (8,)
    assert result.model.get_layer("b").groups == 4
    assert [refusal.channels for refusal in result.refusals if refusal.layer == "a"] == [(0,)] or result.refusals


def test_a_whole_group_goes():
    model = model_of(lambda x: layers.Conv2D(8, 3, groups=4, name="b")(layers.Conv2D(12, 1, name="a")(x)))
    zero_filters(model.get_layer("a"), [3, 4, 5])
    zero_filters(model.get_layer("b"), [2, 3])
    result = stripped(model)
    assert (result.model.get_layer("b").groups, *filters(result, "a", "b")) == (3, 9, 6)


def test_a_channel_shuffle_whose_groups_lost_different_channels():
    def body(x):
        x = layers.Conv2D(12, 1, name="a")(x)
        x = layers.Reshape((6, 6, 3, 4))(x)
        x = layers.Reshape((6, 6, 12))(layers.Permute((1, 2, 4, 3))(x))
        return layers.Conv2D(5, 3, name="b")(x)

    model = model_of(body)
    zero_filters(model.get_layer("a"), [0, 5, 6, 7, 8, 9])
    assert filters(stripped(model), "a") == (6,)
    model = model_of(body)
    zero_filters(model.get_layer("a"), [0, 1, 2, 3, 8])
    result = stripped(model)  # seven are left, which are no rectangle: some stay, and it says why
    assert filters(result, "a")[0] in range(7, 13) and (filters(result, "a")[0] == 7 or result.refusals)


@pytest.mark.parametrize("form", ["concatenate", "add", "multiply", "subtract"])
def test_a_value_merged_with_itself(form):
    def body(x):
        x = layers.Conv2D(8, 3, name="a")(x)
        y = layers.Conv2D(8, 1, name="y")(x)
        x = {"concatenate": lambda: layers.Concatenate()([x, x]), "add": lambda: x + x, "multiply": lambda: x * x,
             "subtract": lambda: (x - x) + y}[form]()  # fmt: skip
        return layers.Conv2D(5, 1, name="b")(x)

    model = model_of(body)
    zero_filters(model.get_layer("a"), [1, 2])
    if form == "subtract":
        zero_filters(model.get_layer("y"), [1, 2])
    assert filters(stripped(model), "a") == (6,)


def test_flatten_then_dense():
    model = model_of(lambda x: layers.Flatten()(layers.Conv2D(8, 3, activation="softplus", name="a")(x)))
    zero_filters(model.get_layer("a"), [1, 6])
    result = stripped(model)
    assert result.model.get_layer("head").kernel.shape == (4 * 4 * 6, 3)


@pytest.mark.parametrize("form", ["reshape", "keepdims", "dense on map", "spatial"])
def test_gates(form):
    def body(x):
        x = conv_bn(x, 8, name="a")
        if form == "spatial":
            gate = layers.Conv2D(1, 3, padding="same", activation="sigmoid", name="gate")(x)
        elif form == "keepdims":
            gate = layers.Conv2D(8, 1, activation="sigmoid", name="gate")(layers.GlobalMaxPooling2D(keepdims=True)(x))
        elif form == "reshape":
            gate = layers.Dense(8, activation="sigmoid", name="gate")(layers.GlobalAveragePooling2D()(x))
            gate = layers.Reshape((1, 1, 8))(gate)
        else:
            gate = layers.Dense(8, activation="sigmoid", name="gate")(x)
        return layers.Conv2D(5, 1, name="b")(layers.Multiply()([x, gate]))

    model = model_of(body)
    zero_filters(model.get_layer("a"), [1, 2, 5])
    zero_normalization(model.get_layer("a_bn"), [1, 2, 5])
    result = stripped(model)
    assert filters(result, "a") == (5,)
    assert result.model.get_layer("gate").kernel.shape[-1] == (1 if form == "spatial" else 5)


def test_a_spatial_gate_that_is_constant():
    def body(x):
        x = layers.Conv2D(8, 3, padding="same", name="a")(x)
        gate = layers.Conv2D(1, 3, padding="same", activation="sigmoid", name="gate")(x)
        return layers.Conv2D(5, 3, padding="same", name="b")(layers.Multiply(name="gated")([x, gate]))

    model = model_of(body)
    model.get_layer("gate").kernel.assign(np.zeros((3, 3, 8, 1)))
    result = stripped(model)
    assert {"gate", "gated"} <= set(result.removed_layers)


def test_heads_go_whole_or_evenly():
    def body(x):
        x = layers.Conv2D(12, 3, name="a")(x)
        x = layers.Reshape((4, 4, 3, 4))(x)
        x = ops.transpose(x, (0, 3, 1, 2, 4))
        return layers.Dense(4, name="mix")(layers.Flatten()(x))

    model = model_of(body)
    zero_filters(model.get_layer("a"), [4, 5, 6, 7])
    assert filters(stripped(model), "a") == (8,)
    model = model_of(body)
    zero_filters(model.get_layer("a"), [1, 5, 9])
    result = stripped(model)
    assert filters(result, "a") == (9,)
    assert result.model.get_layer("reshape").target_shape == (4, 4, 3, 3) if "reshape" in names(result.model) else True


def names(model):
    return [layer.name for layer in model.layers]


def test_an_array_in_the_model_loses_its_positions():
    vector = np.linspace(0.5, 1.5, 8)

    def body(x):
        return layers.Conv2D(5, 1, name="b")(layers.Conv2D(8, 3, name="a")(x) * vector + vector.reshape(1, 1, 1, 8))

    model = model_of(body)
    zero_filters(model.get_layer("a"), [1, 2])
    result = stripped(model)
    assert filters(result, "a") == (6,)
    assert not any(isinstance(layer, layers.Rescaling) for layer in result.model.layers)


@pytest.mark.parametrize("calls", [1, 2])
def test_nested_models(calls):
    inner_input = keras.Input((6, 6, 4))
    y = layers.Conv2D(8, 1, activation="sigmoid", name="one")(inner_input)
    y = layers.Conv2D(4, 1, use_bias=False, name="two")(y)
    inner = keras.Model(inner_input, layers.Add()([inner_input, y]), name="inner")

    def body(x):
        x = layers.Conv2D(4, 3, padding="same", name="stem")(x)
        for _ in range(calls):
            x = inner(x)
        return x

    model = model_of(body)
    zero_filters(inner.get_layer("one"), [0, 3])
    result = stripped(model)
    one = result.model.get_layer("inner").get_layer("one")
    # Two calls share the kernel that would take the constant as its bias: there it stays.
    assert one.filters == (6 if calls == 1 else 8)
    assert calls == 1 or any("shared" in refusal.reason for refusal in result.refusals)
    inner.get_layer("two").kernel.assign(np.zeros((1, 1, 8, 4)))
    assert parameters(stripped(model).model) < parameters(result.model)


def test_an_input_layer_that_normalizes():
    def body(x):
        x = layers.Normalization(mean=[0.4, 0.5, 0.6], variance=[0.1, 0.2, 0.3])(
            layers.Rescaling(1 / 127.5, offset=-1)(x)
        )
        return layers.Conv2D(8, 3, name="a")(x)

    model = model_of(body)
    zero_filters(model.get_layer("a"), [0])
    assert filters(stripped(model), "a") == (7,)


# ---------------------------------------------------------------------- plans


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("net", [residual_net, inverted_residual_net])
def test_a_plan_given_is_the_plan_taken(net, whole):
    model = shaken(net())
    plan = tfprune.select(model, "l2", ratio=0.5, round_to=1, layers=whole)
    assert bool(plan.layers) == whole
    before = snapshot(model)
    direct = tfprune.strip(model, plan)
    assert_untouched(model, before)
    assert direct.verification.equal
    tfprune.soft_prune(model, plan)
    assert_same(model, direct.model)
    by_weights = stripped(model)
    assert parameters(by_weights.model) == parameters(direct.model)
    assert set(plan.layers) <= set(direct.removed_layers)


def test_a_plan_that_is_not_zero_says_how_far_outputs_moved():
    model = residual_net()
    plan = tfprune.select(model, "l1", ratio=0.5, round_to=1)
    result = tfprune.strip(model, plan)
    assert result.verification.equal and result.lossless is False and result.moved.relative > 1e-3
    assert "not lossless: the outputs moved by" in str(result)
    tfprune.soft_prune(model, plan)
    result = tfprune.strip(model, plan)
    assert result.lossless and "not lossless" not in str(result)


def test_a_plan_takes_nothing_else():
    model = shaken(residual_net())
    zero_filters(model.get_layer("b1"), [0, 1])
    zero_normalization(model.get_layer("b1_bn"), [0, 1])
    plan = tfprune.PruningPlan.from_groups(tfprune.trace(model), {"a1": [3]})
    result = stripped(model, plan)
    assert filters(result, "a1", "b1", "stem") == (7, 12, 8)
    assert result.plan.channels == {"a1": (3,)}


def test_a_plan_that_would_leave_uneven_groups_says_so():
    model = model_of(lambda x: layers.Conv2D(8, 3, groups=2, name="b")(layers.Conv2D(12, 1, name="a")(x)))
    graph = tfprune.trace(model)
    slot = next(s for s in graph.labels.slots.values() if s.weight.key == "a/kernel" and s.role == "write")
    gone = np.zeros(graph.channels, bool)
    gone[graph.channel_of[slot.labels.ravel()[[0, 1, 7]]]] = True
    result = stripped(model, tfprune.PruningPlan(graph, gone))
    assert filters(result, "a") == (10,)
    assert [(r.layer, r.reason) for r in result.refusals] == [("a", "b's groups would have uneven inputs")]


def test_a_plan_for_another_model_is_refused():
    model, other = shaken(residual_net()), shaken(inverted_residual_net())
    plan = tfprune.select(model, "l1", ratio=0.5)
    with pytest.raises(PlanError, match="another model"):
        tfprune.strip(other, plan)
    with pytest.raises(PlanError, match="another model"):
        tfprune.soft_prune(other, plan)


def test_a_plan_fits_a_copy_of_its_model():
    model = shaken(residual_net())
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    plan = tfprune.select(model, "l1", ratio=0.5)
    assert_same(tfprune.strip(model, plan).model, tfprune.strip(copy, plan).model)


# ---------------------------------------------------------------------- the result


def test_a_model_without_zeros_is_as_it_was():
    model = shaken(inverted_residual_net())
    result = stripped(model)
    assert not result.plan and not result.refusals and not result.removed_layers
    assert parameters(result.model) == parameters(model)
    assert difference(model, result.model) == 0
    assert "nothing to remove" in str(result)


def test_the_result_prints_what_happened():
    model = shaken(residual_net())
    zero_layer(model.get_layer("a2"))
    zero_normalization(model.get_layer("a2_bn"), slice(None))
    text = str(stripped(model))
    assert "layers removed: " in text and "a1" in text and "equal: " in text and "MACs" in text


def test_names_inputs_and_settings_survive():
    inputs = keras.Input(SHAPE, batch_size=2, name="picture")
    x = layers.Conv2D(8, 3, strides=2, dilation_rate=1, padding="same", name="a", kernel_regularizer="l2")(inputs)
    x = layers.Dropout(0.3, name="drop")(layers.ReLU(6.0, name="act")(x))
    model = shaken(keras.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(x)), name="named"))
    model.get_layer("a").trainable = False
    zero_filters(model.get_layer("a"), [0])
    result = stripped(model).model
    assert result.name == "named" and result.inputs[0].name == "picture" and result.input_shape == (2, *SHAPE)
    layer = result.get_layer("a")
    assert layer.strides == (2, 2) and not layer.trainable and layer.kernel_regularizer is not None
    assert result.get_layer("drop").rate == 0.3 and result.get_layer("act").max_value == 6.0


def test_the_stripped_model_trains():
    model = shaken(residual_net())
    tfprune.soft_prune(model, tfprune.select(model, "l1", ratio=0.5))
    result = tfprune.strip(model).model
    result.compile("sgd", "mse")
    before = numbers(result.get_layer("stem").kernel)
    result.fit(np.random.default_rng(0).normal(size=(8, 8, 8, 3)), np.ones((8, 3)), verbose=0)
    assert not np.array_equal(before, numbers(result.get_layer("stem").kernel))


def test_loads_where_tfprune_is_not(tmp_path):
    """Saved with folded biases, Rescaling vectors and narrowed arrays; loaded with nothing but Keras."""

    def body(x):
        x = layers.Conv2D(8, 3, activation="sigmoid", name="a")(x)
        x = layers.Conv2D(8, 1, use_bias=False, name="b")(x) * np.linspace(0.5, 1, 8)
        y = layers.Conv2D(8, 3, padding="same", name="y")(x)
        return layers.ReLU()(layers.Reshape((4, 2, 2, 8))(layers.Add(name="add")([x, y])))

    inputs = keras.Input(SHAPE)
    model = shaken(keras.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(body(inputs)))))
    zero_filters(model.get_layer("a"), [0, 1])
    zero_filters(model.get_layer("b"), [2])
    model.get_layer("y").kernel.assign(np.zeros((3, 3, 8, 8)))
    zero_filters(model.get_layer("y"), [2])
    result = stripped(model)
    assert isinstance(result.model.get_layer("add"), layers.Rescaling) and result.model.get_layer("b").use_bias
    given = np.random.default_rng(0).normal(size=(2, *SHAPE))
    result.model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "arrays.npz", given=given, expected=outputs(result.model, [given])[0])
    code = (
        "import sys; sys.modules['tfprune'] = None\n"
        "import keras, numpy as np\n"
        "model = keras.models.load_model('model.keras')\n"
        "arrays = np.load('arrays.npz')\n"
        "np.testing.assert_allclose(model(arrays['given']), arrays['expected'], rtol=1e-12)\n"
        "try:\n    import tfprune\nexcept ImportError:\n    pass\nelse:\n    raise SystemExit('tfprune was there')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


# ---------------------------------------------------------------------- nothing wrong is handed over


def test_a_wrong_model_is_not_returned(monkeypatch):
    model = model_of(lambda x: layers.Conv2D(5, 1, name="b")(layers.Conv2D(8, 3, activation="sigmoid", name="a")(x)))
    zero_filters(model.get_layer("a"), [0, 1])
    with monkeypatch.context() as patch:
        patch.setattr(rebuild, "bias_shifts", lambda *_: {})  # it forgets the constants it should fold
        with pytest.raises(VerificationError, match=r"outputs differ by .* of the largest output"):
            tfprune.strip(model)
        assert tfprune.strip(model, verify=False).verification is None
        assert tfprune.strip(model, tolerance=100.0).verification.equal
    take = rebuild.take
    monkeypatch.setattr(rebuild, "take", lambda *given: take(*given)[..., ::-1])  # it takes the wrong filters
    plan = tfprune.PruningPlan.from_groups(tfprune.trace(model), {"a": [0, 1]})
    with pytest.raises(VerificationError):
        tfprune.strip(model, plan)


def test_a_layer_that_cannot_be_made_again():
    class Stubborn(layers.Layer):
        def __init__(self, needed):
            super().__init__()
            self.needed = needed

        def build(self, shape):
            self.shift = self.add_weight(shape=shape[-1:])

        def call(self, x):
            return x + self.shift

    model = model_of(lambda x: layers.Conv2D(5, 1)(Stubborn(3)(layers.Conv2D(8, 3, name="a")(x))))
    with pytest.raises(TraceError, match="Stubborn.*get_config"):
        tfprune.strip(model)
