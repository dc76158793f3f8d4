"""The network of cnn-pruning: three convolutions and a dense layer on 28x28 grey images."""

import keras
from keras import layers


def cnn28(input_shape=(28, 28, 1), classes=10):
    """Build it: 63,122 parameters for 28x28 images and 10 classes.

    Args:
        input_shape: (height, width, channels) of an image with values in [0, 1].
        classes: how many probabilities come out.
    """
    return keras.Sequential(
        [
            keras.Input(input_shape, name="image"),
            layers.Conv2D(2, 3, padding="same", activation="relu", name="conv1"),
            layers.Conv2D(4, 3, padding="same", activation="relu", name="conv2"),
            layers.Conv2D(8, 3, padding="same", activation="relu", name="conv3"),
            layers.Flatten(name="flatten"),
            layers.Dense(classes, activation="softmax", name="output"),
        ],
        name="cnn28",
    )
