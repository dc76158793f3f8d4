"""What the loops have in common: a small network, images of handwritten digits, and what is said at the end."""

import keras
from keras import layers

import tfprune
from tfprune import data


def digits():
    """Training and test images of 8x8 pixels with their labels."""
    return data.load("digits")


def network(seed=0):
    """A small convolutional network that gives 10 logits."""
    keras.utils.set_random_seed(seed)
    image = keras.Input((8, 8, 1))
    x = image
    for number, filters in enumerate((16, 32), 1):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"conv{number}")(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    return keras.Model(image, layers.Dense(10, name="logits")(layers.GlobalAveragePooling2D()(x)))


def loss():
    """Cross entropy of logits."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def report(model, pruning, found):
    """Strip, and say what came out."""
    result = tfprune.strip(model)
    print(result)
    print(pruning.monitor)
    for name, one in (("soft-pruned", model), ("stripped", result.model)):
        classes = keras.ops.convert_to_numpy(one(found.x_test, training=False)).argmax(-1)
        print(f"{name}: accuracy {(classes == found.y_test).mean():.2%}")
