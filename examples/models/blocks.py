"""What MobileNets are made of: convolutions with BatchNormalization, and inverted residuals.

Source: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (arXiv:1801.04381).
"""

from keras import layers


def wide(filters, width):
    """`filters` times `width`, to a multiple of 8, losing at most a tenth."""
    rounded = max(8, int(filters * width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * filters * width else rounded


def conv(x, filters, kernel, name, stride=1, activation=True):
    """A convolution without bias, BatchNormalization, and ReLU6."""
    x = layers.Conv2D(filters, kernel, stride, padding="same", use_bias=False, name=name)(x)
    x = layers.BatchNormalization(momentum=0.9, name=f"{name}_BN")(x)
    return layers.ReLU(6.0, name=f"{name}_relu")(x) if activation else x


def inverted_residual(x, expansion, filters, stride, name):
    """Wider by `expansion`, depthwise, narrower again; with a shortcut where the shape stays."""
    shortcut = x
    if expansion > 1:
        x = conv(x, expansion * x.shape[-1], 1, f"{name}_expand")
    x = layers.DepthwiseConv2D(3, stride, padding="same", use_bias=False, name=f"{name}_depthwise")(x)
    x = layers.BatchNormalization(momentum=0.9, name=f"{name}_depthwise_BN")(x)
    x = layers.ReLU(6.0, name=f"{name}_depthwise_relu")(x)
    x = conv(x, filters, 1, f"{name}_project", activation=False)
    return layers.Add(name=f"{name}_add")([shortcut, x]) if x.shape == shortcut.shape else x
