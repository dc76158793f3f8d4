"""One table of all rules, one test for each: trace, select, soft-prune, strip, and the outputs are the same.

A rule that is registered and not in the table fails the last test here.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers, ops
from models import assert_same, floats, parameters, shaken

import tfprune
from tfprune.keras_graph import lowering

# What stands between a convolution with eight filters and a Dense head, by the name of the rule's class.
ROWS = {
    "Conv1D": (1, lambda x: layers.Conv1D(6, 3, padding="causal", dilation_rate=2, activation="relu")(x)),
    "Conv2D": (2, lambda x: layers.Conv2D(8, 3, groups=4, strides=2, padding="same")(x)),
    "Conv3D": (3, lambda x: layers.Conv3D(6, 2, strides=(1, 2, 1), padding="valid")(x)),
    "Conv1DTranspose": (1, lambda x: layers.Conv1DTranspose(6, 3, strides=2, padding="same")(x)),
    "Conv2DTranspose": (2, lambda x: layers.Conv2DTranspose(6, 3, strides=2)(x)),
    "Conv3DTranspose": (3, lambda x: layers.Conv3DTranspose(6, 2, padding="same")(x)),
    "DepthwiseConv1D": (1, lambda x: layers.DepthwiseConv1D(3, strides=2, depth_multiplier=2)(x)),
    "DepthwiseConv2D": (2, lambda x: layers.DepthwiseConv2D(3, padding="same", dilation_rate=2)(x)),
    "SeparableConv1D": (1, lambda x: layers.SeparableConv1D(6, 3, depth_multiplier=2, activation="tanh")(x)),
    "SeparableConv2D": (2, lambda x: layers.SeparableConv2D(6, 3, padding="same", strides=2)(x)),
    "Dense": (2, lambda x: layers.Dense(6, activation="gelu")(x)),
    "LSTM": (1, lambda x: layers.LSTM(6, return_sequences=True)(x)),
    "GRU": (1, lambda x: layers.GRU(6)(x)),
    "SimpleRNN": (1, lambda x: layers.SimpleRNN(6, activation="relu")(x)),
    "RNN": (1, lambda x: layers.RNN(layers.GRUCell(6, reset_after=False))(x)),
    "ConvLSTM1D": (2, lambda x: layers.ConvLSTM1D(6, 3)(x)),
    "ConvLSTM2D": (3, lambda x: layers.ConvLSTM2D(6, 3, padding="same", strides=2)(x)),
    "ConvLSTM3D": (3, lambda x: layers.ConvLSTM3D(4, 2)(layers.Reshape((2, 3, 6, 6, 8))(x))),
    "Bidirectional": (1, lambda x: layers.Bidirectional(layers.LSTM(6, return_sequences=True))(x)),
    "TimeDistributed": (2, lambda x: layers.TimeDistributed(layers.Conv1D(6, 3, padding="same"))(x)),
    "SpectralNormalization": (2, lambda x: layers.SpectralNormalization(layers.Conv2D(6, 3))(x)),
    "Masking": (1, lambda x: layers.Masking()(x)),
    "BatchNormalization": (2, lambda x: layers.BatchNormalization()(x)),
    "LayerNormalization": (2, lambda x: layers.LayerNormalization()(x)),
    "GroupNormalization": (2, lambda x: layers.GroupNormalization(2)(x)),
    "RMSNormalization": (2, lambda x: layers.RMSNormalization()(x)),
    "UnitNormalization": (2, lambda x: layers.UnitNormalization()(x)),
    "Normalization": (2, lambda x: layers.Normalization(mean=np.arange(8) / 8, variance=np.arange(1, 9) / 4)(x)),
    "Rescaling": (2, lambda x: layers.Rescaling((np.arange(1, 9) / 4).tolist(), offset=0.1)(x)),
    "Activation": (2, lambda x: layers.Activation("hard_sigmoid")(x)),
    "ReLU": (2, lambda x: layers.ReLU(max_value=1.0, negative_slope=0.1, threshold=0.1)(x)),
    "LeakyReLU": (2, lambda x: layers.LeakyReLU(negative_slope=0.2)(x)),
    "ELU": (2, lambda x: layers.ELU(0.7)(x)),
    "PReLU": (2, lambda x: layers.PReLU(shared_axes=(1, 2))(layers.PReLU()(x))),
    "Softmax": (2, lambda x: layers.Softmax()(x)),
    "Dropout": (2, lambda x: layers.Dropout(0.5)(x)),
    "SpatialDropout1D": (1, lambda x: layers.SpatialDropout1D(0.5)(x)),
    "SpatialDropout2D": (2, lambda x: layers.SpatialDropout2D(0.5)(x)),
    "SpatialDropout3D": (3, lambda x: layers.SpatialDropout3D(0.5)(x)),
    "AlphaDropout": (2, lambda x: layers.AlphaDropout(0.5)(x)),
    "GaussianDropout": (2, lambda x: layers.GaussianDropout(0.5)(x)),
    "GaussianNoise": (2, lambda x: layers.GaussianNoise(0.5)(x)),
    "ActivityRegularization": (2, lambda x: layers.ActivityRegularization(0.1)(x)),
    "Identity": (2, lambda x: layers.Identity()(x)),
    "MaxPooling1D": (1, lambda x: layers.MaxPooling1D(2)(x)),
    "MaxPooling2D": (2, lambda x: layers.MaxPooling2D(2, padding="same")(x)),
    "MaxPooling3D": (3, lambda x: layers.MaxPooling3D(2)(x)),
    "AveragePooling1D": (1, lambda x: layers.AveragePooling1D(2)(x)),
    "AveragePooling2D": (2, lambda x: layers.AveragePooling2D(3, strides=1, padding="same")(x)),
    "AveragePooling3D": (3, lambda x: layers.AveragePooling3D(2)(x)),
    "GlobalAveragePooling1D": (1, lambda x: layers.GlobalAveragePooling1D()(x)),
    "GlobalAveragePooling2D": (2, lambda x: layers.GlobalAveragePooling2D(keepdims=True)(x)),
    "GlobalAveragePooling3D": (3, lambda x: layers.GlobalAveragePooling3D()(x)),
    "GlobalMaxPooling1D": (1, lambda x: layers.GlobalMaxPooling1D(keepdims=True)(x)),
    "GlobalMaxPooling2D": (2, lambda x: layers.GlobalMaxPooling2D()(x)),
    "GlobalMaxPooling3D": (3, lambda x: layers.GlobalMaxPooling3D()(x)),
    "ZeroPadding1D": (1, lambda x: layers.ZeroPadding1D(1)(x)),
    "ZeroPadding2D": (2, lambda x: layers.ZeroPadding2D(((1, 0), (0, 2)))(x)),
    "ZeroPadding3D": (3, lambda x: layers.ZeroPadding3D(1)(x)),
    "Cropping1D": (1, lambda x: layers.Cropping1D(1)(x)),
    "Cropping2D": (2, lambda x: layers.Cropping2D(((1, 0), (0, 2)))(x)),
    "Cropping3D": (3, lambda x: layers.Cropping3D(1)(x)),
    "UpSampling1D": (1, lambda x: layers.UpSampling1D(2)(x)),
    "UpSampling2D": (2, lambda x: layers.UpSampling2D(2, interpolation="bilinear")(x)),
    "UpSampling3D": (3, lambda x: layers.UpSampling3D(2)(x)),
    "Add": (2, lambda x: layers.Add()([x, branch(x), branch(x)])),
    "Subtract": (2, lambda x: layers.Subtract()([x, branch(x)])),
    "Multiply": (2, lambda x: layers.Multiply()([x, layers.GlobalAveragePooling2D(keepdims=True)(x)])),
    "Average": (2, lambda x: layers.Average()([x, branch(x)])),
    "Maximum": (2, lambda x: layers.Maximum()([x, branch(x)])),
    "Minimum": (2, lambda x: layers.Minimum()([x, branch(x)])),
    "Concatenate": (2, lambda x: layers.Concatenate()([x, branch(x), x])),
    "Reshape": (2, lambda x: layers.Reshape((6, 12, 4))(x)),
    "Flatten": (2, lambda x: layers.Flatten()(x)),
    "Permute": (2, lambda x: layers.Permute((3, 1, 2))(x)),
    "RepeatVector": (2, lambda x: layers.RepeatVector(3)(layers.GlobalMaxPooling2D()(x))),
}
# Elementwise ops that are defined everywhere; those that want a number above 0; what else needs an argument.
UNARY = (
    "absolute arctan arcsinh cbrt ceil copy cos cosh exp exp2 expm1 floor nan_to_num negative rint round sign sin sinh "
    "square tan tanh trunc relu relu6 sigmoid sparse_sigmoid softplus softsign soft_shrink sparse_plus silu squareplus "
    "log_sigmoid leaky_relu hard_sigmoid hard_silu elu selu gelu celu tanh_shrink hard_tanh hard_shrink erf"
).split()
POSITIVE = "log1p reciprocal rsqrt sqrt log log2 log10".split()
BINARY = "add subtract multiply divide true_divide maximum minimum power mod floor_divide".split()
OPERATIONS = {
    **{name: (2, lambda x, f=name: getattr(ops, f)(x)) for name in UNARY},
    **{name: (2, lambda x, f=name: getattr(ops, f)(ops.absolute(x) + 0.5)) for name in POSITIVE},
    **{name: (2, lambda x, f=name: getattr(ops, f)(ops.absolute(x), ops.absolute(branch(x)) + 0.5)) for name in BINARY},
    "clip": (2, lambda x: ops.clip(x, -0.5, 0.7)),
    "threshold": (2, lambda x: ops.threshold(x, 0.1, 0.2)),
    "cast": (2, lambda x: ops.cast(ops.cast(x, "float16"), "float32")),
    "concatenate": (2, lambda x: ops.concatenate([x, branch(x)], axis=-1)),
    "reshape": (2, lambda x: ops.reshape(x, (-1, 36, 8))),
    "expand_dims": (2, lambda x: ops.expand_dims(x, 1)),
    "squeeze": (2, lambda x: ops.squeeze(layers.GlobalMaxPooling2D(keepdims=True)(x), (1, 2))),
    "transpose": (2, lambda x: ops.transpose(x, (0, 3, 2, 1))),
    "mean": (2, lambda x: ops.mean(x, axis=(1, 2))),
    "max": (2, lambda x: ops.max(x, axis=1, keepdims=True)),
    "min": (2, lambda x: ops.min(x, axis=(-3, -2))),
    "amax": (2, lambda x: ops.amax(x, axis=(1, 2))),
    "amin": (2, lambda x: ops.amin(x, axis=2)),
    "softmax": (2, lambda x: ops.softmax(x)),
    "log_softmax": (2, lambda x: ops.log_softmax(x)),
}
PROTECTING = {"LayerNormalization", "GroupNormalization", "RMSNormalization", "UnitNormalization", "Normalization"}
PROTECTING |= {"Masking", "Softmax", "RepeatVector", "LogSoftmax"}
# TensorFlow has no kernel for these in float64 on a CPU.
FLOAT32_ONLY = {"MaxPooling3D", "AveragePooling3D"}


def branch(x):
    return layers.Conv2D(x.shape[-1], 3, padding="same")(x)


def built(row) -> keras.Model:
    """A stem of eight filters, the row, a head."""
    rank, body = row
    convolution = (layers.Conv1D, layers.Conv2D, layers.Conv3D)[rank - 1]
    inputs = keras.Input((6,) * rank + (3,))
    x = convolution(8, 3, padding="same", name="stem")(inputs)
    y = body(layers.Activation("linear")(x))
    y = y if y.dtype == x.dtype else ops.cast(y, x.dtype)
    return shaken(keras.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(y))))


def checked(row, name: str) -> None:
    model = built(row)
    graph = tfprune.trace(model)
    assert name in {call.kind for call in graph.calls}, "the rule was not met"
    assert not graph.opaque or name == "RepeatVector"
    plan = tfprune.select(graph, "l1", ratio=0.5, round_to=1)
    assert ("stem" in plan.channels) != (name in PROTECTING)
    result = tfprune.strip(model, plan, verify=False)
    tfprune.soft_prune(model, plan)
    by_weights = tfprune.strip(model, verify=False)
    for stripped in (result.model, by_weights.model):
        assert_same(model, stripped)
        assert (parameters(stripped) < parameters(model)) == bool(plan)
    for layer, gone in plan.channels.items():
        name = layer.partition("/")[0]
        before, left = (m.get_layer(name).weights[-1].shape[-1] for m in (model, result.model))
        width = graph.group(layer).width
        assert left * width == before * (width - len(gone))


@pytest.mark.parametrize("floatx", ["float32", "float64"])
@pytest.mark.parametrize("name", ROWS)
def test_layer(name, floatx):
    if not hasattr(layers, name):
        pytest.skip("this Keras has none")
    if floatx == "float64" and name in FLOAT32_ONLY:
        pytest.skip("TensorFlow has no such kernel")
    with floats(floatx):
        checked(ROWS[name], name)


def class_name(function: str) -> str:
    return "".join(part.capitalize() for part in function.split("_"))


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation(name):
    if not hasattr(ops, name):
        pytest.skip("this Keras has none")
    with floats("float32" if name == "cast" else "float64"):
        checked(OPERATIONS[name], class_name(name))


@pytest.mark.parametrize("activation", ["mish", "celu", "exponential", "log_sigmoid"])
def test_activation_argument(activation):
    with floats("float64"):
        checked((2, lambda x: layers.Conv2D(6, 1, activation=activation)(x)), "Conv2D")


def test_every_rule_has_a_row():
    registered = {cls.__name__ for cls in lowering._RULES if cls.__module__.startswith("keras.")}
    assert not registered - set(ROWS), f"rules without a row: {registered - set(ROWS)}"
    missing = set(lowering._OPERATION_RULES) - {class_name(name) for name in OPERATIONS}
    assert not missing, f"rules for operations without a row: {missing}"
