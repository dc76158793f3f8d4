"""The layers of docs/layers.md in ONNX, run by onnxruntime.

Layers of a family share an input and make an output each, so that each is compared against its own scale.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers
from test_export import by_onnxruntime, shake

from tfprune.export import export
from tfprune.verify import run

onnx = pytest.importorskip("onnx")

IMAGES = {
    "conv": lambda: layers.Conv2D(4, 3, strides=2, padding="same"),
    "dilated": lambda: layers.Conv2D(4, 3, dilation_rate=2),
    "grouped": lambda: layers.Conv2D(8, 3, groups=4, padding="same"),
    "transposed": lambda: layers.Conv2DTranspose(4, 3, strides=2, padding="same"),
    "transposed_valid": lambda: layers.Conv2DTranspose(4, 4, strides=2, padding="valid"),
    "depthwise": lambda: layers.DepthwiseConv2D(3, depth_multiplier=2),
    "separable": lambda: layers.SeparableConv2D(4, 3),
    "dense": lambda: layers.Dense(5),
    "einsum": lambda: layers.EinsumDense("abcd,de->abce", output_shape=(None, None, 3), bias_axes="e"),
    "batch_norm": lambda: layers.BatchNormalization(),
    "layer_norm": lambda: layers.LayerNormalization(),
    "group_norm": lambda: layers.GroupNormalization(2),
    "rms_norm": lambda: layers.RMSNormalization(),
    "unit_norm": lambda: layers.UnitNormalization(),
    "spectral": lambda: layers.SpectralNormalization(layers.Conv2D(4, 3)),
    "rescaling": lambda: layers.Rescaling(0.5, 1.0),
    "prelu": lambda: layers.PReLU(shared_axes=(1, 2)),
    "leaky": lambda: layers.LeakyReLU(0.1),
    "elu": lambda: layers.ELU(),
    "softmax": lambda: layers.Softmax(),
    "max_pool": lambda: layers.MaxPooling2D(3, 2, padding="same"),
    "average_pool": lambda: layers.AveragePooling2D(3, 2, padding="same"),
    "global_max": lambda: layers.GlobalMaxPooling2D(),
    "global_average": lambda: layers.GlobalAveragePooling2D(keepdims=True),
    "padding": lambda: layers.ZeroPadding2D(((1, 0), (2, 1))),
    "cropping": lambda: layers.Cropping2D(1),
    "nearest": lambda: layers.UpSampling2D(2),
    "bilinear": lambda: layers.UpSampling2D(2, interpolation="bilinear"),
    "resizing": lambda: layers.Resizing(5, 7),
    "permute": lambda: layers.Permute((3, 1, 2)),
    "flatten": lambda: layers.Flatten(),
    "reshape": lambda: layers.Reshape((-1, 4)),
    "augmentation": lambda: layers.RandomFlip(),
    "rows": lambda: layers.TimeDistributed(layers.Dense(3)),
    "center_crop": lambda: layers.CenterCrop(4, 5),
}
SEQUENCES = {
    "conv": lambda: layers.Conv1D(4, 3, padding="causal"),
    "transposed": lambda: layers.Conv1DTranspose(4, 3, strides=2),
    "depthwise": lambda: layers.DepthwiseConv1D(3),
    "separable": lambda: layers.SeparableConv1D(4, 3),
    "max_pool": lambda: layers.MaxPooling1D(2),
    "average_pool": lambda: layers.AveragePooling1D(2),
    "global": lambda: layers.GlobalAveragePooling1D(),
    "up": lambda: layers.UpSampling1D(2),
    "crop": lambda: layers.Cropping1D(1),
    "pad": lambda: layers.ZeroPadding1D(2),
    "time": lambda: layers.TimeDistributed(layers.Dense(3)),
}
RECURRENT = {
    "lstm": lambda: layers.LSTM(3),
    "lstm_sequence": lambda: layers.LSTM(3, return_sequences=True, go_backwards=True),
    "gru": lambda: layers.GRU(3, return_sequences=True),
    "gru_before": lambda: layers.GRU(3, reset_after=False),
    "simple": lambda: layers.SimpleRNN(3),
    "both": lambda: layers.Bidirectional(layers.LSTM(3, return_sequences=True)),
    "unrolled": lambda: layers.LSTM(3, unroll=True),
    "cells": lambda: layers.RNN([layers.LSTMCell(3), layers.GRUCell(2)]),
}
VOLUMES = {
    "conv": lambda: layers.Conv3D(4, 2),
    "transposed": lambda: layers.Conv3DTranspose(3, 2, strides=2),
    "max_pool": lambda: layers.MaxPooling3D(2),
    "average_pool": lambda: layers.AveragePooling3D(2),
    "global": lambda: layers.GlobalAveragePooling3D(),
    "pad": lambda: layers.ZeroPadding3D(1),
    "crop": lambda: layers.Cropping3D(1),
    "up": lambda: layers.UpSampling3D(2),
    "conv_lstm": lambda: layers.ConvLSTM2D(2, 2),
}
ACTIVATIONS = (
    "celu elu exponential gelu hard_shrink hard_sigmoid hard_silu hard_tanh leaky_relu linear log_sigmoid "
    "log_softmax mish relu relu6 selu sigmoid silu soft_shrink softmax softplus softsign sparse_plus sparsemax "
    "squareplus tanh tanh_shrink"
).split()
FAMILIES = {"images": ((7, 8, 4), IMAGES), "sequences": ((6, 4), SEQUENCES), "recurrent": ((5, 4), RECURRENT),
            "volumes": ((5, 6, 4, 2), VOLUMES)}  # fmt: skip


def family(name):
    shape, table = FAMILIES[name]
    inputs = keras.Input(shape, name="x")
    # What comes before has a range of its own, and is what each layer reads.
    return shake(keras.Model(inputs, {key: make()(inputs) for key, make in table.items()}, name=name))


def attention_family():
    x, y = keras.Input((6, 8), name="x"), keras.Input((5, 8), name="y")
    outputs = {
        "multi_head": layers.MultiHeadAttention(2, 4)(x, y),
        "causal": layers.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True),
        "grouped": layers.GroupQueryAttention(4, 4, 2)(x, y),
        "dot": layers.Attention()([x, y]),
        "additive": layers.AdditiveAttention()([x, y]),
        "product": layers.Dot(2)([x, y]),
        "merged": layers.Average()(
            [layers.Maximum()([x, x * 2.0]), layers.Minimum()([x, layers.Subtract()([x, x * 0.5])])]
        ),
        "scaled": keras.ops.softmax(keras.ops.matmul(x, keras.ops.swapaxes(y, 1, 2)) / 3.0),
        "einsum": keras.ops.einsum("bij,bkj->bik", x, y),
        "normal": keras.ops.normalize(x),
        "sum": keras.ops.logsumexp(x, axis=-1),
    }
    return shake(keras.Model([x, y], outputs, name="attention"))


def tokens_family():
    tokens = keras.Input((6,), dtype="int32", name="tokens")
    x = layers.Embedding(9, 8)(tokens)
    return shake(
        keras.Model(tokens, {"repeat": layers.RepeatVector(3)(layers.Flatten()(x)), "embedded": x}, name="tokens")
    )


def inputs_of(model, batch=3):
    generator = np.random.default_rng(7)
    return [
        generator.integers(0, 9, (batch, *x.shape[1:])).astype("int32")
        if x.dtype == "int32"
        else generator.standard_normal((batch, *x.shape[1:])).astype("float32")
        for x in model.inputs
    ]


def check(model, tmp_path, **options):
    """The file runs and computes, output by output, what the model computes; 1e-5 of each one's largest."""
    path = export(model, tmp_path, ["onnx"], name="m", **options)["onnx"].path
    arrays = inputs_of(model)
    moved = options.get("layout") == "NCHW"
    fed = [a.transpose(0, 3, 1, 2) if moved and a.ndim == 4 else a for a in arrays]
    for name, a, b in zip(model.output_names, run(model, arrays), by_onnxruntime(path, fed), strict=True):
        assert np.shape(a) == np.shape(b), name
        assert np.max(np.abs(a - b)) <= 1e-5 * np.max(np.abs(a)), name
    return path


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_in_onnx(name, tmp_path):
    check(family(name), tmp_path)


@pytest.mark.parametrize("build", [attention_family, tokens_family])
def test_attention_and_embeddings_in_onnx(build, tmp_path):
    check(build(), tmp_path)


def test_activations_in_onnx(tmp_path):
    inputs = keras.Input((3, 8), name="x")
    check(keras.Model(inputs, {name: layers.Activation(name)(inputs) for name in ACTIVATIONS}), tmp_path)


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("name", ["images", "recurrent"])
def test_layers_in_other_opsets(name, opset, tmp_path):
    check(family(name), tmp_path, opset=opset)


def test_image_layers_with_channels_first(tmp_path):
    check(family("images"), tmp_path, layout="NCHW")
