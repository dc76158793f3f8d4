"""VGG16 with BatchNormalization for small images such as CIFAR-10's 32x32: one dense layer behind 13 convolutions.

    python -m tfprune cost --model=examples.models.vgg:vgg16_bn

Source: Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition" (arXiv:1409.1556).
"""

import keras
from keras import layers

# Channels at width 1 of the convolutions between one pooling and the next.
BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def vgg16_bn(input_shape=(32, 32, 3), classes=10, width=1.0):
    """Build it; its convolutions are called conv1_1 to conv5_3.

    Args:
        input_shape: (height, width, channels) of an image with values in [0, 1].
        classes: how many probabilities come out.
        width: multiplies the channels of every layer.
    """
    image = keras.Input(input_shape, name="image")
    x = layers.Rescaling(4.0, offset=-2.0, name="rescaling")(image)
    for block, widths in enumerate(BLOCKS, start=1):
        for number, filters in enumerate(widths, start=1):
            name = f"conv{block}_{number}"
            x = layers.Conv2D(max(1, round(filters * width)), 3, padding="same", name=name)(x)
            x = layers.BatchNormalization(momentum=0.9, name=f"{name}_BN")(x)
            x = layers.ReLU(name=f"{name}_relu")(x)
        x = layers.MaxPooling2D(name=f"pool{block}")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, layers.Dense(classes, activation="softmax", name="output")(x), name="vgg16_bn")
