"""MobileNetV2 with squeeze-and-excitation blocks, for small images such as CIFAR-10's 32x32.

The sample of Tensorflow_Model_Pruning in Keras: at width 0.5 its 16 inverted residual blocks have the same inner
widths (48, 96x5, 192x4, 288x3, 480x3). Its scopes are prefixes of layer names here: `expanded_conv_3_` holds
`expanded_conv_3_expand`, `expanded_conv_3_depthwise` and `expanded_conv_3_project`; `SE1` holds `SE1_reduce` and
`SE1_expand`. It strides less than for 224x224: the last feature map of 32x32 images is 4x4.

    python -m tfprune cost --model=examples.models.mobilenet_v2_se:mobilenet_v2_se

Sources: Sandler et al., MobileNetV2 (arXiv:1801.04381); Hu et al., Squeeze-and-Excitation Networks (arXiv:1709.01507).
"""

import keras
from keras import layers

from .blocks import conv, inverted_residual, wide

# Inner width over input width, output channels at width 1, blocks, stride of the first block.
STAGES = ((6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 1), (6, 320, 1, 1))
SQUEEZED_AFTER = {6: "SE1", 13: "SE2"}  # SE3 follows the last convolution
SCOPES = ["SE1", "SE2", "SE3", *(f"expanded_conv_{block}_" for block in range(1, 17))]


def mobilenet_v2_se(input_shape=(32, 32, 3), classes=10, width=0.5):
    """Build it.

    Args:
        input_shape: (height, width, channels) of an image with values in [0, 1].
        classes: how many probabilities come out.
        width: multiplies the channels of every layer.
    """
    image = keras.Input(input_shape, name="image")
    x = layers.Rescaling(2.0, offset=-1.0, name="rescaling")(image)
    x = conv(x, wide(32, width), 3, "Conv", stride=2)
    x = inverted_residual(x, 1, wide(16, width), 1, "expanded_conv_0")
    block = 1
    for expansion, filters, count, stride in STAGES:
        for index in range(count):
            name = f"expanded_conv_{block}"
            x = inverted_residual(x, expansion, wide(filters, width), stride if index == 0 else 1, name)
            if block in SQUEEZED_AFTER:
                x = _squeeze_and_excite(x, SQUEEZED_AFTER[block])
            block += 1
    x = conv(x, wide(1280, width), 1, "Conv_1")
    x = _squeeze_and_excite(x, "SE3", ratio=8)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dropout(0.2, name="dropout")(x)
    return keras.Model(image, layers.Dense(classes, activation="softmax", name="output")(x), name="mobilenet_v2_se")


def _squeeze_and_excite(x, name, ratio=2):
    """The channels scaled by what a small network makes of their means; its inner width can shrink."""
    gate = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_squeeze")(x)
    gate = layers.Conv2D(x.shape[-1] // ratio, 1, activation="relu", name=f"{name}_reduce")(gate)
    gate = layers.Conv2D(x.shape[-1], 1, activation="sigmoid", name=f"{name}_expand")(gate)
    return layers.Multiply(name=f"{name}_scale")([x, gate])
