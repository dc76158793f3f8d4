"""A small network with one of each: residual, inverted residual and squeeze-and-excitation blocks."""

import keras
from keras import layers


def small(input_shape=(8, 8, 1), classes=10):
    """Build it.

    Args:
        input_shape: (height, width, channels) of an image with values in [0, 1].
        classes: how many probabilities come out.
    """
    image = keras.Input(input_shape, name="image")
    x = _conv(image, 24, 3, "stem")

    shortcut = x
    x = _conv(x, 24, 3, "residual_1")
    x = _conv(x, 24, 3, "residual_2", activation=False)
    x = layers.ReLU(name="residual_relu")(layers.Add(name="residual_add")([shortcut, x]))

    x = _inverted_residual(x, 96, 32, 2, "block_1")
    x = _squeeze_and_excite(x, 16, "SE1")
    x = _inverted_residual(x, 128, 32, 1, "block_2")
    x = _inverted_residual(x, 128, 32, 1, "block_3")

    x = _conv(x, 128, 1, "head")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, layers.Dense(classes, activation="softmax", name="output")(x), name="small")


def _conv(x, filters, kernel, name, activation=True):
    x = layers.Conv2D(filters, kernel, padding="same", use_bias=False, name=name)(x)
    x = layers.BatchNormalization(momentum=0.9, name=f"{name}_BN")(x)
    return layers.ReLU(name=f"{name}_relu")(x) if activation else x


def _inverted_residual(x, inner, filters, stride, name):
    shortcut = x
    x = _conv(x, inner, 1, f"{name}_expand")
    x = layers.DepthwiseConv2D(3, stride, padding="same", use_bias=False, name=f"{name}_depthwise")(x)
    x = layers.BatchNormalization(momentum=0.9, name=f"{name}_depthwise_BN")(x)
    x = layers.ReLU(name=f"{name}_depthwise_relu")(x)
    x = _conv(x, filters, 1, f"{name}_project", activation=False)
    return layers.Add(name=f"{name}_add")([shortcut, x]) if x.shape == shortcut.shape else x


def _squeeze_and_excite(x, inner, name):
    gate = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_squeeze")(x)
    gate = layers.Conv2D(inner, 1, activation="relu", name=f"{name}_reduce")(gate)
    gate = layers.Conv2D(x.shape[-1], 1, activation="sigmoid", name=f"{name}_expand")(gate)
    return layers.Multiply(name=f"{name}_scale")([x, gate])
