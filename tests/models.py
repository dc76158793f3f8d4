"""Models for the tests: small, and with random weights everywhere, so that their outputs vary.

A fresh network outputs next to nothing, and anything equals anything. `shaken` gives every weight of a model random
numbers, BatchNormalization's statistics among them; `outputs` runs it; `assert_same` compares with the spread in mind.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers

# Other backends than TensorFlow compute float64 products in float32: Keras promotes types so.
TOLERANCE = {"float32": 1e-5, "float64": 1e-12 if keras.backend.backend() == "tensorflow" else 1e-6}


@contextlib.contextmanager
def floats(name: str) -> Iterator[None]:
    """Build layers in this type inside the block."""
    before = keras.config.floatx()
    policy = keras.config.dtype_policy()
    keras.config.set_floatx(name)
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_floatx(before)
        keras.config.set_dtype_policy(policy)


@contextlib.contextmanager
def without_xla() -> Iterator[None]:
    """Run eagerly: TensorFlow compiles every grouped convolution by itself, half of what small models take."""
    if keras.backend.backend() != "tensorflow":
        yield
        return
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


def shaken(model: keras.Model, seed: int = 0) -> keras.Model:
    """Random weights in place: kernels that keep the scale, biases and statistics of everyday size."""
    generator = np.random.default_rng(seed)
    for variable in model.weights:
        kind = variable.path.rpartition("/")[2]
        shape = tuple(variable.shape)
        if kind in ("gamma", "moving_variance", "variance"):
            array = generator.uniform(0.5, 1.5, shape)
        elif len(shape) < 2 or kind == "alpha":
            array = generator.normal(0, 0.4, shape)
        else:
            array = generator.normal(0, (2 / max(1, np.prod(shape[:-1]))) ** 0.5, shape)
        if "int" not in variable.dtype:
            variable.assign(array.astype(variable.dtype))
    return model


def arrays_for(model: keras.Model, samples: int = 2, seed: int = 1, size: int = 8) -> list[np.ndarray]:
    """Random inputs; unknown axes get `size` entries."""
    generator = np.random.default_rng(seed)
    shapes = [(samples, *(axis or size for axis in tensor.shape[1:])) for tensor in model.inputs]
    return [
        generator.integers(0, 2 if tensor.dtype == "bool" else 5, shape).astype(tensor.dtype)
        if "int" in tensor.dtype or tensor.dtype == "bool"
        else generator.standard_normal(shape).astype(tensor.dtype)
        for shape, tensor in zip(shapes, model.inputs, strict=True)
    ]


def outputs(model: keras.Model, arrays: list[np.ndarray] | None = None) -> list[np.ndarray]:
    """All outputs at inference, flat, as float64."""
    given = arrays_for(model) if arrays is None else arrays
    functional = model._functional if isinstance(model, keras.Sequential) else model
    packed = keras.tree.pack_sequence_as(functional._inputs_struct, list(given))
    found = keras.tree.flatten(model(packed, training=False))
    return [np.asarray(keras.ops.convert_to_numpy(y), np.float64) for y in found]


def difference(model: keras.Model, other: keras.Model, expected: list[np.ndarray] | None = None) -> float:
    """The largest difference over all outputs, each as a fraction of that output's largest entry.

    Args:
        expected: the outputs of `model`, where they are known.
    """
    worst = 0.0
    for a, b in zip(outputs(model) if expected is None else expected, outputs(other), strict=True):
        assert a.shape == b.shape, (a.shape, b.shape)
        assert np.isfinite(a).all()
        largest = np.abs(a).max()
        worst = max(worst, float(np.abs(a - b).max() / (largest if largest > 0 else 1)))
    return worst


def assert_same(model: keras.Model, other: keras.Model, spread: float = 1e-3) -> None:
    """The two agree to rounding, and the outputs vary enough for that to mean something."""
    deviation = min(float(np.std(y)) for y in outputs(model))
    assert deviation >= spread, f"the outputs hardly vary (standard deviation {deviation:.2g}): the test shows nothing"
    limit = max(TOLERANCE.get(tensor.dtype, 1e-5) for tensor in model.outputs)
    assert difference(model, other) <= limit


def numbers(variable) -> np.ndarray:
    """A copy of a variable's array."""
    return np.array(keras.ops.convert_to_numpy(variable))


def zero_filters(layer: keras.layers.Layer, indices, *, bias: bool = True, side: str = "write") -> None:
    """Zero some filters (or, with `side="read"`, kernel slices that read a channel) of a plain Conv or Dense."""
    kernel = numbers(layer.kernel)
    if side == "read":
        kernel[..., indices, :] = 0
    else:
        kernel[..., indices] = 0
        if bias and layer.use_bias:
            values = numbers(layer.bias)
            values[indices] = 0
            layer.bias.assign(values)
    layer.kernel.assign(kernel)


def zero_normalization(layer: keras.layers.BatchNormalization, indices) -> None:
    """Zero gamma and beta of some channels."""
    for variable in (layer.gamma, layer.beta):
        if variable is not None:
            values = numbers(variable)
            values[indices] = 0
            variable.assign(values)


def zero_layer(layer: keras.layers.Layer) -> None:
    """Zero all that is trained of a layer."""
    for variable in layer.trainable_variables:
        variable.assign(np.zeros(variable.shape))


def parameters(model: keras.Model) -> int:
    """Numbers in all weights, counted by Keras."""
    return sum(int(np.prod(v.shape)) for v in {id(v): v for v in model.weights}.values())


def conv_bn(x, filters, kernel=3, activation="relu", **settings):
    """Conv, BatchNormalization, activation."""
    settings = {"padding": "same", "use_bias": False, **settings}
    name = settings.pop("name", None)
    x = layers.Conv2D(filters, kernel, name=name, **settings)(x)
    x = layers.BatchNormalization(name=name and f"{name}_bn")(x)
    return layers.Activation(activation)(x) if activation else x


def mini_net() -> keras.Model:
    """The three convolutions of cnn-pruning: 63,122 parameters by its own README."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(2, 3, padding="same", activation="relu", name="first"),
            layers.Conv2D(4, 3, padding="same", activation="relu", name="second"),
            layers.Conv2D(8, 3, padding="same", activation="relu", name="third"),
            layers.Flatten(),
            layers.Dense(10, name="classes"),
        ]
    )


def residual_net(classes: int = 3) -> keras.Model:
    """A stem, two residual blocks (the second with a projection), a head."""
    inputs = keras.Input((8, 8, 3))
    x = conv_bn(inputs, 8, name="stem")
    y = conv_bn(x, 8, name="a1")
    y = conv_bn(y, 8, activation=None, name="a2")
    x = layers.ReLU()(layers.Add(name="a_add")([x, y]))
    y = conv_bn(x, 12, strides=2, name="b1")
    y = conv_bn(y, 12, activation=None, name="b2")
    x = conv_bn(x, 12, 1, strides=2, activation=None, name="b0")
    x = layers.ReLU()(x + y)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(classes, name="head")(x), name="residual_net")


def inverted_residual_net(classes: int = 3) -> keras.Model:
    """MobileNetV2's block with a squeeze-and-excitation gate, as in MobileNetV3."""
    inputs = keras.Input((8, 8, 3))
    x = conv_bn(inputs, 8, activation="relu6", name="stem")
    y = conv_bn(x, 24, 1, activation="relu6", name="expand")
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(y)
    y = layers.BatchNormalization(name="depthwise_bn")(y)
    y = layers.ReLU(6.0)(y)
    gate = layers.GlobalAveragePooling2D(keepdims=True)(y)
    gate = layers.Conv2D(12, 1, activation="relu", name="squeeze")(gate)
    gate = layers.Conv2D(24, 1, activation="hard_sigmoid", name="excite")(gate)
    y = layers.Multiply(name="gated")([y, gate])
    y = conv_bn(y, 8, 1, activation=None, name="project")
    x = layers.Add(name="add")([x, y])
    x = conv_bn(x, 16, 1, activation="relu6", name="last")
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(classes, name="head")(x), name="inverted_residual_net")
