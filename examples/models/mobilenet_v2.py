"""MobileNetV2 for small images such as CIFAR-10's 32x32: it strides less, and its last feature map is 4x4.

    python -m tfprune cost --model=examples.models.mobilenet_v2:mobilenet_v2

Source: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (arXiv:1801.04381).
"""

import keras
from keras import layers

from .blocks import conv, inverted_residual, wide

# Inner width over input width, output channels at width 1, blocks, stride of the first block.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def mobilenet_v2(input_shape=(32, 32, 3), classes=10, width=1.0):
    """Build it.

    Args:
        input_shape: (height, width, channels) of an image with values in [0, 1].
        classes: how many probabilities come out.
        width: multiplies the channels of every layer.
    """
    image = keras.Input(input_shape, name="image")
    x = layers.Rescaling(2.0, offset=-1.0, name="rescaling")(image)
    x = conv(x, wide(32, width), 3, "Conv")
    block = 0
    for expansion, filters, count, stride in STAGES:
        for index in range(count):
            x = inverted_residual(x, expansion, wide(filters, width), 1 if index else stride, f"block_{block}")
            block += 1
    x = conv(x, wide(1280, max(1.0, width)), 1, "Conv_1")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dropout(0.2, name="dropout")(x)
    return keras.Model(image, layers.Dense(classes, activation="softmax", name="output")(x), name="mobilenet_v2")
