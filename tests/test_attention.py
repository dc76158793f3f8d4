"""Attention heads, products of activations, normalization by the channels' own statistics, EinsumDense, embeddings."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers, ops
from models import difference, floats, numbers, parameters, shaken

import tfprune

# TensorFlow casts attention's scale to float32, whatever the model's type.
SINGLE = 1e-7


def dense_head(inputs, x) -> keras.Model:
    return shaken(keras.Model(inputs, layers.Dense(3, name="head")(x)))


def self_attention(**settings) -> keras.Model:
    inputs = keras.Input((5, 6))
    x = layers.Dense(8, name="stem")(inputs)
    return dense_head(inputs, layers.MultiHeadAttention(4, 4, name="mha", **settings)(x, x))


def transformer_block() -> keras.Model:
    inputs = keras.Input((5, 6))
    x = layers.Dense(8, name="stem")(inputs)
    x = x + layers.MultiHeadAttention(4, 4, name="mha", use_bias=False)(x, x)
    y = layers.Dense(16, "gelu", name="wide")(layers.LayerNormalization()(x))
    return dense_head(inputs, x + layers.Dense(8)(y))


def cross_attention() -> keras.Model:
    inputs, others = keras.Input((5, 6)), keras.Input((5, 4))
    x, z = layers.Dense(8, name="stem")(inputs), layers.Dense(10, name="memory")(others)
    y, scores = layers.MultiHeadAttention(4, 4, name="mha", output_shape=6)(x, z, return_attention_scores=True)
    return shaken(keras.Model([inputs, others], [layers.Dense(3)(y), layers.Dense(3)(scores)]))


def axial_attention() -> keras.Model:
    inputs = keras.Input((3, 4, 6))
    x = layers.Dense(8, name="stem")(inputs)
    return dense_head(inputs, layers.MultiHeadAttention(2, 4, name="mha", attention_axes=(2,))(x, x))


def masked_attention() -> keras.Model:
    inputs, mask = keras.Input((5, 6)), keras.Input((5, 5), dtype="bool")
    x = layers.Dense(8, name="stem")(inputs)
    x = layers.MultiHeadAttention(4, 4, name="mha")(x, x, attention_mask=mask, use_causal_mask=True)
    return dense_head([inputs, mask], x)


def grouped_query_attention() -> keras.Model:
    inputs = keras.Input((5, 6))
    x = layers.Dense(8, name="stem")(inputs)
    return dense_head(inputs, layers.GroupQueryAttention(6, 4, 2, name="mha")(x, x))


def heads_by_hand(product) -> keras.Model:
    """Dense layers, their outputs split into heads, and `product(q, k, v)`."""
    inputs = keras.Input((6, 8))
    x = layers.Dense(12, name="stem")(inputs)
    q, k, v = (ops.reshape(layers.Dense(12, name=name)(x), (-1, 6, 3, 4)) for name in "qkv")
    return dense_head(inputs, ops.reshape(product(q, k, v), (-1, 6, 12)))


def by_matmul(q, k, v):
    q, k, v = (ops.transpose(x, (0, 2, 1, 3)) for x in (q, k, v))
    weights = ops.softmax(ops.matmul(q * 0.5, ops.transpose(k, (0, 1, 3, 2))), axis=-1)
    return ops.transpose(ops.matmul(weights, v), (0, 2, 1, 3))


def by_einsum(q, k, v):
    weights = ops.softmax(ops.einsum("bqhd,bkhd->bhqk", q, k), axis=-1)
    return ops.einsum("...hqk,...khd->...qhd", weights, v)


def by_operation(q, k, v):
    return ops.dot_product_attention(q, k, v)


def plain_attention(cls, **settings) -> keras.Model:
    inputs, others = keras.Input((5, 6)), keras.Input((7, 4))
    q, k, v = layers.Dense(8, name="q")(inputs), layers.Dense(8, name="k")(others), layers.Dense(6, name="v")(others)
    return dense_head([inputs, others], cls(**settings)([q, v, k]))


def dot(**settings) -> keras.Model:
    inputs = keras.Input((5, 6))
    a, b = layers.Dense(8, name="a")(inputs), layers.Dense(8, name="b")(inputs)
    return dense_head(inputs, layers.Dot(**settings)([a, b]))


def einsum_dense(equation: str, shape: tuple) -> keras.Model:
    """An EinsumDense of four blocks of six channels, and the one to be tested."""
    inputs = keras.Input((5, 6))
    x = layers.EinsumDense("abc,cde->abde", (5, 4, 6), bias_axes="de", name="stem")(inputs)
    return dense_head(inputs, layers.Flatten()(layers.EinsumDense(equation, shape, name="einsum")(x)))


def normalized(layer) -> keras.Model:
    inputs = keras.Input((5, 5, 3))
    x = layers.ReLU()(layer(layers.Conv2D(8, 3, name="stem")(inputs)))
    return shaken(keras.Model(inputs, layers.Conv2D(3, 2, name="head")(x)))


def mixer() -> keras.Model:
    """Dense layers over positions, channel by channel, and over channels."""
    inputs = keras.Input((6, 4))
    x = layers.Dense(8, name="stem")(inputs)
    y = layers.Permute((2, 1))(layers.RMSNormalization()(x))
    y = layers.Dense(6)(layers.Dense(5, "gelu", name="positions")(y))
    x = x + layers.Permute((2, 1))(y)
    return dense_head(inputs, x + layers.Dense(8)(layers.Dense(16, "gelu", name="wide")(x)))


def embedded(**settings) -> keras.Model:
    inputs = keras.Input((5,), dtype="int32")
    return dense_head(inputs, layers.Embedding(10, 8, name="stem", **settings)(inputs))


def tied_embeddings(**settings) -> keras.Model:
    inputs = keras.Input((5,), dtype="int32")
    table = layers.ReversibleEmbedding(10, 8, name="stem", **settings)
    x = table(inputs)
    x = x + layers.Dense(8, name="dense")(x)
    return shaken(keras.Model(inputs, table(x, reverse=True)))


# What to build, how far it may be off, how much of which groups goes at ratio 0.5.
CASES = {
    "multi-head": (self_attention, SINGLE, {"stem": 4, "mha/query": 2, "mha/value": 2, "mha/attention_output": 4}),
    "value width": (lambda: self_attention(value_dim=6), SINGLE, {"mha/query": 2, "mha/value": 3}),
    "dropout": (lambda: self_attention(dropout=0.1), SINGLE, {"mha/query": 2, "mha/value": 2}),
    "block": (transformer_block, SINGLE, {"mha/query": 2, "mha/value": 2, "wide": 8, "stem": 0}),
    "cross": (cross_attention, SINGLE, {"memory": 5, "mha/query": 2, "mha/attention_output": 3}),
    "axial": (axial_attention, SINGLE, {"stem": 4, "mha/query": 2}),
    "masked": (masked_attention, SINGLE, {"stem": 4, "mha/query": 2}),
    "grouped query": (grouped_query_attention, SINGLE, {"stem": 4, "mha/query": 3}),
    "matmul": (lambda: heads_by_hand(by_matmul), 1e-12, {"stem": 6, "k": 2, "v": 2}),
    "einsum": (lambda: heads_by_hand(by_einsum), 1e-12, {"stem": 6, "k": 2, "v": 2}),
    "operation": (lambda: heads_by_hand(by_operation), SINGLE, {"stem": 6, "v": 2}),
    "Attention": (lambda: plain_attention(layers.Attention, use_scale=True), 1e-12, {"q": 4, "v": 3}),
    "Attention, concat": (lambda: plain_attention(layers.Attention, score_mode="concat"), 1e-12, {"q": 4, "v": 3}),
    "AdditiveAttention": (lambda: plain_attention(layers.AdditiveAttention), 1e-12, {"q": 4, "v": 3}),
    "Dot": (lambda: dot(axes=2), 1e-12, {"a": 4}),
    "Dot, normalized": (lambda: dot(axes=2, normalize=True), 1e-12, {"a": 4}),
    "Dot over positions": (lambda: dot(axes=1), 1e-12, {"a": 0, "b": 4}),
    "blocks": (lambda: einsum_dense("abde,def->abdf", (5, 4, 7)), 1e-12, {"stem": 3, "einsum": 3}),
    "several axes": (lambda: einsum_dense("abde,def->abf", (5, 7)), 1e-12, {"stem": 3, "einsum": 3}),
    "ellipsis": (lambda: einsum_dense("...e,ef->...f", (7,)), 1e-12, {"stem": 3, "einsum": 3}),
    "by position": (lambda: einsum_dense("abde,bef->abdf", (5, 4, 7)), 1e-12, {"stem": 3, "einsum": 3}),
    "GroupNormalization": (lambda: normalized(layers.GroupNormalization(4)), 1e-12, {"stem": 2}),
    "instance": (lambda: normalized(layers.GroupNormalization(-1)), 1e-12, {"stem": 4}),
    "one group": (lambda: normalized(layers.GroupNormalization(1)), 1e-12, {"stem": 0}),
    "RMSNormalization": (lambda: normalized(layers.RMSNormalization()), 1e-12, {"stem": 4}),
    "UnitNormalization": (lambda: normalized(layers.UnitNormalization()), 1e-12, {"stem": 4}),
    "LayerNormalization": (lambda: normalized(layers.LayerNormalization()), 1e-12, {"stem": 0}),
    "by position only": (lambda: normalized(layers.LayerNormalization(axis=(1, 2))), 1e-12, {"stem": 4}),
    "mixer": (mixer, 1e-12, {"stem": 4, "wide": 8}),
    "Embedding": (embedded, 1e-12, {"stem": 4}),
    "Embedding, masked": (lambda: embedded(mask_zero=True), 1e-12, {"stem": 4}),
    "tied embeddings": (tied_embeddings, 1e-12, {"stem": 4}),
    "untied embeddings": (lambda: tied_embeddings(tie_weights=False), 1e-12, {"stem": 4}),
}


@pytest.mark.parametrize("name", CASES)
def test_widths(name):
    build, tolerance, expected = CASES[name]
    with floats("float64"):
        model = build()
        plan = tfprune.select(model, "l1", ratio=0.5, round_to=1)
        assert {group: len(plan.channels.get(group, ())) for group in expected} == expected
        direct = tfprune.strip(model, plan, verify=False)
        tfprune.soft_prune(model, plan)
        by_weights = tfprune.strip(model, verify=False)
        for result in (direct, by_weights):
            assert difference(model, result.model) <= tolerance
            assert (parameters(result.model) < parameters(model)) == bool(plan)
        assert parameters(by_weights.model) <= parameters(direct.model)


@pytest.mark.parametrize("name", ["multi-head", "block", "axial", "grouped query", "matmul", "einsum", "operation"])
def test_whole_heads(name):
    build, tolerance, _ = CASES[name]
    with floats("float64"):
        model = build()
        plan = tfprune.select(model, "l1", ratio=0.5, round_to=1, heads=True)
        graph = tfprune.trace(model)
        heads = next(group for group in graph.groups if group.holds)
        assert len(plan.channels[heads.name]) == heads.width // 2
        assert not set(heads.holds) & set(plan.channels)
        direct = tfprune.strip(model, plan, verify=False)
        tfprune.soft_prune(model, plan)
        result = tfprune.strip(model, verify=False)
        for stripped in (direct.model, result.model):
            assert difference(model, stripped) <= tolerance
        if name in ("multi-head", "block", "axial"):
            assert result.model.get_layer("mha").num_heads == heads.width - heads.width // 2


def test_a_zeroed_head_goes_without_help():
    """Its values are 0: nobody reads its scores, its queries or its keys."""
    with floats("float64"):
        model = self_attention()
        mha = model.get_layer("mha")
        for variable in mha._value_dense.weights:
            array = numbers(variable)
            array[..., 1, :] = 0
            variable.assign(array)
        result = tfprune.strip(model, verify=False)
        assert result.model.get_layer("mha").num_heads == 3
        assert difference(model, result.model) <= 1e-12


def test_a_head_that_nobody_reads_goes():
    with floats("float64"):
        model = self_attention()
        kernel = model.get_layer("mha")._output_dense.kernel
        array = numbers(kernel)
        array[2] = 0
        kernel.assign(array)
        result = tfprune.strip(model, verify=False)
        assert result.model.get_layer("mha").num_heads == 3
        assert difference(model, result.model) <= 1e-12


def test_a_constant_value_becomes_a_bias():
    """The weights of an average sum to 1, so that a value's bias comes through; with a mask they may not."""
    with floats("float64"):
        for build, left in ((self_attention, 3), (masked_attention, 4)):
            model = build()
            kernel = model.get_layer("mha")._value_dense.kernel
            array = numbers(kernel)
            array[..., 1] = 0
            kernel.assign(array)
            result = tfprune.strip(model, verify=False)
            assert result.model.get_layer("mha").value_dim == left
            assert difference(model, result.model) <= SINGLE


def test_widths_that_differ_from_head_to_head():
    """Each head may lose other channels, as long as all lose equally many."""
    with floats("float64"):
        model = self_attention()
        mha = model.get_layer("mha")
        for dense in (mha._query_dense, mha._key_dense):
            for variable in dense.weights:
                array = numbers(variable)
                for head, gone in enumerate((0, 1, 3, 2)):
                    array[..., head, gone] = 0
                variable.assign(array)
        result = tfprune.strip(model, verify=False)
        assert result.model.get_layer("mha").key_dim == 3
        assert difference(model, result.model) <= SINGLE


def test_uneven_heads_stay():
    with floats("float64"):
        model = self_attention()
        for dense in (model.get_layer("mha")._query_dense, model.get_layer("mha")._key_dense):
            for variable in dense.weights:
                array = numbers(variable)
                array[..., 1, 2] = 0
                variable.assign(array)
        result = tfprune.strip(model, verify=False)
        assert result.model.get_layer("mha").key_dim == 4
        assert any("different sizes" in refusal.reason for refusal in result.refusals)


def test_a_group_of_normalization_goes_whole():
    """One channel of a group moves the mean of the other; both together do not."""
    with floats("float64"):
        model = normalized(layers.GroupNormalization(4))
        for gone, left in (([2], 8), ([2, 3], 6)):
            for variable in model.get_layer("stem").weights:
                array = numbers(variable)
                array[..., gone] = 0
                variable.assign(array)
            result = tfprune.strip(model, verify=False)
            assert result.model.get_layer("stem").filters == left
            assert difference(model, result.model) <= 1e-12


def test_attention_as_one_layer_that_goes():
    with floats("float64"):
        model = transformer_block()
        plan = tfprune.select(model, "l1", threshold=0.0, round_to=1, layers=True, only="mha")
        assert "mha" in plan.layers
        tfprune.soft_prune(model, plan)
        result = tfprune.strip(model, verify=False)
        assert "mha" in result.removed_layers
        assert difference(model, result.model) <= 1e-12


def test_heads_by_callback_and_by_pruning(tmp_path):
    """The option goes through to the selection."""
    x, y = np.zeros((4, 5, 6), "float32"), np.zeros((4, 5, 3), "float32")
    model = self_attention()
    model.compile("sgd", "mse", jit_compile=False)
    callback = tfprune.SoftPruning("l1", ratio=0.5, round_to=1, heads=True)
    model.fit(x, y, verbose=0, callbacks=[callback])
    assert "mha" in callback.plan.channels and "mha/query" not in callback.plan.channels
    pruning = tfprune.Pruning(self_attention(), output_dir=tmp_path, criterion="l1", round_to=1, heads=True, log=None)
    pruning.set_threshold(0.01)
    filters = pruning.get_pruning_filters()
    assert filters["mha"] and "mha/query" not in filters
