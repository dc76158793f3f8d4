"""What the best structured pruner of the PyTorch side gets wrong without a word, or dies of: here exact, or refused.

The list is that of its measured errors (masked against removed, as a fraction of the largest output): sigmoid, hard
sigmoid and softplus .31-.48, GroupNorm .16, ConvNeXt .35, ViT .53, BatchNormalization's beta kept .16-2.5, filters
zeroed but not BatchNormalization .45-1.2, grouped convolution .63, channel shuffle .89; and of its failures:
ShuffleNet, Swin, a hard-coded reshape, PixelShuffle, a whole convolution, frozen weights, heads that are not traced.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import pytest
from keras import layers, ops
from models import conv_bn, difference, floats, numbers, parameters, shaken, zero_filters, zero_layer

import tfprune


def between(body: Callable, filters: int = 8, padding: str = "valid", normalized: bool = True) -> keras.Model:
    """A convolution that is pruned, `body`, a convolution that reads it, and a head."""
    inputs = keras.Input((12, 12, 3))
    x = layers.Conv2D(filters, 3, padding="same", use_bias=not normalized, name="pruned")(inputs)
    if normalized:
        x = layers.BatchNormalization(name="pruned_bn")(x)
    x = layers.Conv2D(6, 3, padding=padding, name="reader")(body(x))
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
    return shaken(keras.Model(inputs, layers.Dense(3, name="head")(x)))


def convnext_block(x):
    y = layers.DepthwiseConv2D(3, padding="same")(x)
    y = layers.Dense(16, "gelu", name="wide")(layers.LayerNormalization()(y))
    return x + layers.Dense(8)(y)


def vit() -> keras.Model:
    inputs = keras.Input((12, 12, 3))
    x = layers.Reshape((9, 8))(layers.Conv2D(8, 4, 4, name="patches")(inputs))
    x = x + np.random.default_rng(0).normal(size=(1, 9, 8)).astype(x.dtype)
    for number in range(2):
        y = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(2, 4, name=f"attention{number}")(y, y)
        y = layers.LayerNormalization()(x)
        x = x + layers.Dense(8)(layers.Dense(16, "gelu", name=f"wide{number}")(y))
    x = layers.LayerNormalization()(x)
    return shaken(keras.Model(inputs, layers.Dense(3, name="head")(x[:, 0])))


def shuffled(x, groups: int = 2):
    _, height, width, channels = x.shape
    x = ops.reshape(x, (-1, height, width, groups, channels // groups))
    return ops.reshape(ops.transpose(x, (0, 1, 2, 4, 3)), (-1, height, width, channels))


def shufflenet_unit(x):
    """ShuffleNetV2's: half of the channels pass, the other half go through a branch, then all are shuffled."""
    left, right = ops.split(x, 2, axis=-1)
    right = conv_bn(right, 4, 1, name="branch1")
    right = layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same", use_bias=False)(right))
    right = conv_bn(right, 4, 1, name="branch2")
    return shuffled(ops.concatenate([left, right], axis=-1))


def window_attention(x):
    """Swin's: the map is cut into windows, and positions of a window attend to each other."""
    channels, heads = x.shape[-1], 2
    x = ops.reshape(x, (-1, 3, 4, 3, 4, channels))
    x = ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, 9, 16, channels))
    q, k, v = (ops.reshape(layers.Dense(8, name=name)(x), (-1, 9, 16, heads, 4)) for name in "qkv")
    weights = ops.softmax(ops.einsum("bwqhd,bwkhd->bwhqk", q, k) / 2.0, axis=-1)
    y = ops.reshape(ops.einsum("bwhqk,bwkhd->bwqhd", weights, v), (-1, 9, 16, 8))
    y = layers.Dense(channels, name="projected")(y)
    y = ops.transpose(ops.reshape(y, (-1, 3, 3, 4, 4, channels)), (0, 1, 3, 2, 4, 5))
    return ops.reshape(y, (-1, 12, 12, channels))


def pixel_shuffle(x):
    """A block of four channels becomes four positions of one."""
    _, height, width, channels = x.shape
    x = ops.reshape(x, (-1, height, width, 2, 2, channels // 4))
    return ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, 2 * height, 2 * width, channels // 4))


# What is wrong or fails there, and how much of the convolution must go here at ratio 0.5 (its filters before: 8).
SILENT = {
    "sigmoid": (lambda: between(layers.Activation("sigmoid")), 4),
    "hard sigmoid": (lambda: between(layers.Activation("hard_sigmoid")), 4),
    "softplus": (lambda: between(layers.Activation("softplus")), 4),
    "GroupNorm": (lambda: between(layers.GroupNormalization(4), normalized=False), 4),
    "LayerNorm": (lambda: between(layers.LayerNormalization()), 0),
    "ConvNeXt": (lambda: between(convnext_block), 0),
    "grouped convolution": (lambda: between(layers.Conv2D(8, 3, groups=4, padding="same")), 4),
    "channel shuffle": (lambda: between(lambda x: shuffled(layers.Conv2D(8, 1, groups=2)(x))), 4),
    "ShuffleNet": (lambda: between(shufflenet_unit), 4),
    "Swin": (lambda: between(window_attention), 4),
    "hard-coded reshape": (lambda: between(lambda x: layers.Reshape((12, 12, 8))(layers.Reshape((144, 8))(x))), 4),
    "PixelShuffle": (lambda: between(pixel_shuffle), 4),
}


@pytest.mark.parametrize("name", SILENT)
def test_pruned_as_planned(name):
    build, gone = SILENT[name]
    with floats("float64"):
        model = build()
        plan = tfprune.select(model, "l2", ratio=0.5, round_to=1)
        direct = tfprune.strip(model, plan, verify=False)
        tfprune.soft_prune(model, plan)
        result = tfprune.strip(model, verify=False)
        for stripped in (direct.model, result.model):
            assert difference(model, stripped) <= 1e-12
            assert stripped.get_layer("pruned").filters == 8 - gone
            assert parameters(stripped) < parameters(model) or not plan
        if not gone:
            assert any(refusal.layer == "pruned" and "all channels" in refusal.reason for refusal in plan.refusals)


def test_vit():
    """Heads keep the scale of their scores, the stream that LayerNormalization reads stays."""
    with floats("float32"):
        model = vit()
        plan = tfprune.select(model, "l2", ratio=0.5, round_to=1)
        tfprune.soft_prune(model, plan)
        result = tfprune.strip(model)
        attention = result.model.get_layer("attention0")
        assert (attention.key_dim, attention.value_dim) == (2, 2)
        assert result.model.get_layer("wide0").units == 8
        assert result.model.get_layer("patches").filters == 8
        assert result.verification.equal


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("kept", ["normalization", "beta"])
def test_constants_that_normalization_keeps(kept, padding):
    """Filters zeroed but not BatchNormalization; or its beta kept: constants, folded where that is exact."""
    with floats("float64"):
        model = between(layers.Activation("sigmoid"), padding=padding)
        zero_filters(model.get_layer("pruned"), [1, 4, 5])
        if kept == "beta":
            gamma = model.get_layer("pruned_bn").gamma
            gamma.assign(np.where(np.isin(np.arange(8), [1, 4, 5]), 0, numbers(gamma)))
        result = tfprune.strip(model, verify=False)
        assert difference(model, result.model) <= 1e-12
        if padding == "valid":
            assert result.model.get_layer("pruned").filters == 5
        else:
            assert result.model.get_layer("pruned").filters == 8
            assert sorted(channel for refusal in result.refusals for channel in refusal.channels) == [1, 4, 5]
            assert all("crosses the padded reader" in refusal.reason for refusal in result.refusals)


def test_a_relu_that_is_only_likely_to_be_dead_stays():
    """A beta so low that no input of everyday size gets above 0 proves nothing."""
    with floats("float64"):
        model = between(layers.ReLU())
        beta = numbers(model.get_layer("pruned_bn").beta)
        beta[3] = -1e6
        model.get_layer("pruned_bn").beta.assign(beta)
        result = tfprune.strip(model, verify=False)
        assert result.model.get_layer("pruned").filters == 8


def test_a_whole_convolution():
    """Zeroed whole, a branch goes with everything that fed it."""
    with floats("float64"):
        model = between(lambda x: x + layers.Conv2D(8, 3, padding="same", name="branch")(x))
        zero_layer(model.get_layer("branch"))
        result = tfprune.strip(model, verify=False)
        assert "branch" in result.removed_layers
        assert difference(model, result.model) <= 1e-12


def test_frozen_layers_are_pruned_and_stay_frozen():
    with floats("float64"):
        model = between(layers.ReLU())
        model.get_layer("pruned").trainable = False
        model.get_layer("pruned_bn").trainable = False
        plan = tfprune.select(model, "l2", ratio=0.5, round_to=1)
        tfprune.soft_prune(model, plan)
        result = tfprune.strip(model, verify=False)
        assert difference(model, result.model) <= 1e-12
        stripped = result.model.get_layer("pruned")
        assert stripped.filters == 4 and not stripped.trainable
        assert not result.model.get_layer("pruned_bn").trainable and result.model.get_layer("reader").trainable


def test_a_head_that_only_training_uses():
    """An auxiliary output is an output: what it reads is narrowed for it too."""
    with floats("float64"):
        inputs = keras.Input((12, 12, 3))
        x = layers.Conv2D(8, 3, name="pruned")(inputs)
        auxiliary = layers.Dense(2, name="auxiliary")(layers.GlobalAveragePooling2D()(x))
        x = layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(layers.Conv2D(6, 3)(layers.ReLU()(x))))
        model = shaken(keras.Model(inputs, {"main": x, "auxiliary": auxiliary}))
        plan = tfprune.select(model, "l2", ratio=0.5, round_to=1)
        tfprune.soft_prune(model, plan)
        result = tfprune.strip(model, verify=False)
        assert difference(model, result.model) <= 1e-12
        assert set(result.model.output) == {"main", "auxiliary"}
        result.model.compile("sgd", {"main": "mse", "auxiliary": "mse"}, jit_compile=False)
        arrays = np.ones((2, 12, 12, 3)), {"main": np.ones((2, 3)), "auxiliary": np.ones((2, 2))}
        result.model.fit(*arrays, verbose=0)
