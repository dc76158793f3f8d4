"""ResNets in torchvision's layout: no biases, BatchNormalization, shortcuts of 1x1 convolutions where shapes change.

`resnet18` and `resnet50` are torchvision's for 224x224 images, padding and all, so that its weights fit (a dot in its
names is an underscore here: `layer2_0_downsample_0`). `resnet20` and `resnet56` are the narrow ones for 32x32 images.

    python -m tfprune inspect --model=examples.models.resnet:resnet18

Source: He et al., Deep Residual Learning for Image Recognition (arXiv:1512.03385).
"""

import keras
from keras import layers


def resnet18(input_shape=(224, 224, 3), classes=1000):
    """18 layers, 11,689,512 parameters that are trained.

    Args:
        input_shape: (height, width, channels) of an image.
        classes: how many logits come out.
    """
    return _large("resnet18", _basic, (2, 2, 2, 2), 1, input_shape, classes)


def resnet50(input_shape=(224, 224, 3), classes=1000):
    """50 layers, blocks of three convolutions with the stride in the second; see `resnet18`."""
    return _large("resnet50", _bottleneck, (3, 4, 6, 3), 4, input_shape, classes)


def resnet20(input_shape=(32, 32, 3), classes=10):
    """20 layers for small images, widths 16, 32 and 64; see `resnet18`."""
    return _small("resnet20", 3, input_shape, classes)


def resnet56(input_shape=(32, 32, 3), classes=10):
    """56 layers for small images, widths 16, 32 and 64; see `resnet18`."""
    return _small("resnet56", 9, input_shape, classes)


def _large(name, block, depths, expansion, input_shape, classes):
    image = keras.Input(input_shape, name="image")
    x = layers.ReLU(name="relu")(_conv(image, 64, 7, "conv1", "bn1", stride=2))
    x = layers.ZeroPadding2D(1, name="maxpool_pad")(x)  # after a ReLU, 0 is as good as torch's minus infinity
    x = layers.MaxPooling2D(3, 2, name="maxpool")(x)
    return _stages(name, image, x, block, depths, 64, expansion, classes)


def _small(name, depth, input_shape, classes):
    image = keras.Input(input_shape, name="image")
    x = layers.ReLU(name="relu")(_conv(image, 16, 3, "conv1", "bn1"))
    return _stages(name, image, x, _basic, (depth,) * 3, 16, 1, classes)


def _stages(name, image, x, block, depths, width, expansion, classes):
    """Stages of blocks, each twice as wide and half as large as the one before, then the classifier."""
    for stage, depth in enumerate(depths):
        for index in range(depth):
            stride = 2 if stage and not index else 1
            x = _residual(x, block, width * 2**stage, expansion, stride, f"layer{stage + 1}_{index}")
    x = layers.GlobalAveragePooling2D(name="avgpool")(x)
    return keras.Model(image, layers.Dense(classes, name="fc")(x), name=name)


def _residual(x, block, width, expansion, stride, name):
    y = block(x, width, expansion, stride, name)
    if y.shape != x.shape:
        x = _conv(x, width * expansion, 1, f"{name}_downsample_0", f"{name}_downsample_1", stride)
    return layers.ReLU(name=f"{name}_relu")(layers.Add(name=f"{name}_add")([y, x]))


def _basic(x, width, expansion, stride, name):
    x = layers.ReLU(name=f"{name}_relu1")(_conv(x, width, 3, f"{name}_conv1", f"{name}_bn1", stride))
    return _conv(x, width * expansion, 3, f"{name}_conv2", f"{name}_bn2")


def _bottleneck(x, width, expansion, stride, name):
    x = layers.ReLU(name=f"{name}_relu1")(_conv(x, width, 1, f"{name}_conv1", f"{name}_bn1"))
    x = layers.ReLU(name=f"{name}_relu2")(_conv(x, width, 3, f"{name}_conv2", f"{name}_bn2", stride))
    return _conv(x, width * expansion, 1, f"{name}_conv3", f"{name}_bn3")


def _conv(x, filters, kernel, name, normalization, stride=1):
    """A convolution with as much padding on all sides, as torch has it, and BatchNormalization."""
    if stride > 1 and kernel > 1:  # "same" would pad one side more
        x = layers.ZeroPadding2D(kernel // 2, name=f"{name}_pad")(x)
    padding = "same" if stride == 1 else "valid"
    x = layers.Conv2D(filters, kernel, stride, padding, use_bias=False, name=name)(x)
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=normalization)(x)
