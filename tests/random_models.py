"""Random functional models and random zeros in them, for the fuzz tests.

Everything is decided by `draw(n)`, a number from 0 to n - 1: Hypothesis draws in the tests (and shrinks towards 0,
the simplest choice), numpy in `benchmarks/fuzz.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers, ops
from models import numbers, shaken

Draw = Callable[[int], int]
ACTIVATIONS = ("relu", "linear", "sigmoid", "softplus", "relu6", "hard_sigmoid", "tanh", "silu", "elu", "exponential")


class Builder:
    """Grows a model step by step; `steps` records what was done, for a readable failure."""

    def __init__(self, draw: Draw):
        self.draw = draw
        self.steps: list[str] = []
        self.shared: list[Any] = []

    def pick(self, *options: Any) -> Any:
        return options[self.draw(len(options))]

    def activation(self) -> str:
        return self.pick(*ACTIVATIONS)

    def note(self, text: str) -> None:
        self.steps.append(text)

    # ------------------------------------------------------------------ one step each: a feature map to a feature map

    def conv(self, x):
        filters = self.pick(4, 6, 8, 12)
        groups = self.pick(1, 1, 2, 4)
        if filters % groups or x.shape[-1] % groups:
            groups = 1
        kernel, padding = self.pick((1, "valid"), (3, "same"), (3, "valid"), (2, "same"))
        if padding == "valid" and min(x.shape[1:3]) < kernel:
            kernel = 1
        strides = self.pick(1, 1, 2)
        bias, activation = self.pick(True, False), self.activation()
        self.note(f"conv {filters} k{kernel} {padding} s{strides} g{groups} bias={bias} {activation}")
        return layers.Conv2D(
            filters, kernel, strides=strides, padding=padding, groups=groups, use_bias=bias, activation=activation
        )(x)

    def depthwise(self, x):
        multiplier, padding, bias = self.pick(1, 2), self.pick("same", "valid"), self.pick(True, False)
        if min(x.shape[1:3]) < 3 or x.shape[-1] > 24:
            padding, multiplier = "same", 1
        self.note(f"depthwise x{multiplier} {padding} bias={bias}")
        return layers.DepthwiseConv2D(
            3, padding=padding, depth_multiplier=multiplier, use_bias=bias, activation=self.activation()
        )(x)

    def grouped_depthwise(self, x):
        if x.shape[-1] > 16:
            return x
        times = self.pick(1, 2)
        self.note(f"grouped depthwise x{times}")
        return layers.Conv2D(
            x.shape[-1] * times, 3, padding="same", groups=x.shape[-1], use_bias=self.pick(True, False)
        )(x)

    def separable(self, x):
        self.note("separable")
        return layers.SeparableConv2D(
            self.pick(4, 6), 3, padding="same", depth_multiplier=self.pick(1, 2), use_bias=self.pick(True, False)
        )(x)

    def transposed(self, x):
        if x.shape[1] > 8:
            return x
        self.note("transposed")
        return layers.Conv2DTranspose(self.pick(4, 6), self.pick(1, 2, 3), strides=self.pick(1, 2), padding="same")(x)

    def normalize(self, x):
        self.note("batch normalization")
        return layers.BatchNormalization(scale=self.pick(True, True, False), center=self.pick(True, True, False))(x)

    def activate(self, x):
        name = self.pick(*ACTIVATIONS, "prelu", "prelu_full", "leaky_relu", "dropout")
        self.note(name)
        if name == "prelu":
            return layers.PReLU(shared_axes=(1, 2))(x)
        if name == "prelu_full":
            return layers.PReLU()(x)
        if name == "leaky_relu":
            return layers.LeakyReLU()(x)
        return layers.Dropout(0.2)(x) if name == "dropout" else layers.Activation(name)(x)

    def move(self, x):
        small = min(x.shape[1:3]) < 4
        kind = self.pick("max", "average", "pad", "crop", "up", "max_same", "average_same")
        self.note(kind)
        if kind == "pad":
            return layers.ZeroPadding2D(((1, 0), (0, 1)))(x) if x.shape[1] < 10 else x
        if kind == "up":
            return layers.UpSampling2D(2, interpolation=self.pick("nearest", "bilinear"))(x) if x.shape[1] < 6 else x
        if small:
            return x
        if kind == "crop":
            return layers.Cropping2D(((1, 0), (0, 1)))(x)
        pool = layers.MaxPooling2D if kind.startswith("max") else layers.AveragePooling2D
        return pool(2, strides=self.pick(2, 1), padding="same" if kind.endswith("same") else "valid")(x)

    def residual(self, x):
        self.note("residual {")
        y = x
        for _ in range(self.pick(1, 2)):
            y = self.pick(self.plain, self.activate, self.normalize, self.depthwise_same)(y)
        if y.shape[-1] != x.shape[-1]:
            y = layers.Conv2D(x.shape[-1], 1, use_bias=self.pick(True, False))(y)
        if self.pick(False, True):
            y = layers.BatchNormalization()(y)
        kind = self.pick("Add", "+", "-", "*", "Maximum", "Average", "Minimum", "Subtract", "reversed")
        self.note(f"}} {kind}")
        return {
            "Add": lambda: layers.Add()([x, y]),
            "+": lambda: x + y,
            "reversed": lambda: layers.Add()([y, x]),
            "-": lambda: x - y,
            "*": lambda: x * ops.tanh(y),
            "Maximum": lambda: layers.Maximum()([x, y]),
            "Minimum": lambda: ops.minimum(x, y),
            "Average": lambda: layers.Average()([x, y]),
            "Subtract": lambda: layers.Subtract()([y, x]),
        }[kind]()

    def plain(self, x):
        return layers.Conv2D(x.shape[-1], self.pick(1, 3), padding="same", use_bias=self.pick(True, False))(x)

    def depthwise_same(self, x):
        return layers.DepthwiseConv2D(3, padding="same")(x)

    def sum_of_three(self, x):
        self.note("sum of three")
        return layers.Add()([self.plain(x), x, self.plain(x)])

    def concatenate(self, x):
        kind = self.pick("branches", "with itself", "dense", "ops")
        if x.shape[-1] > 16:
            return x
        self.note(f"concatenate {kind}")
        if kind == "with itself":
            return layers.Concatenate()([x, x])
        if kind == "dense":
            return layers.Concatenate()([x, self.plain(x)])
        a, b = self.plain(x), layers.Conv2D(self.pick(4, 2), 1)(x)
        return ops.concatenate([a, b, x], axis=-1) if kind == "ops" else layers.Concatenate()([a, b])

    def gate(self, x):
        kind = self.pick("dense", "keepdims", "spatial", "scalar")
        self.note(f"gate {kind}")
        activation = self.pick("sigmoid", "hard_sigmoid", "relu")
        channels = x.shape[-1]
        if kind == "spatial":
            return layers.Multiply()([x, layers.Conv2D(1, 3, padding="same", activation=activation)(x)])
        if kind == "keepdims":
            g = layers.GlobalAveragePooling2D(keepdims=True)(x)
            g = layers.Conv2D(4, 1, activation="relu")(g)
            return layers.Multiply()([x, layers.Conv2D(channels, 1, activation=activation)(g)])
        g = layers.GlobalMaxPooling2D()(x)
        if kind == "scalar":
            g = layers.Reshape((1, 1, 1))(layers.Dense(1, activation=activation)(g))
            return x * g
        g = layers.Dense(channels, activation=activation)(layers.Dense(4, activation="relu")(g))
        return layers.Reshape((1, 1, channels))(g) * x

    def arrays(self, x):
        kind = self.pick("scalar", "array", "left array", "times", "map", "rescale", "rank one", "over", "from")
        self.note(f"array {kind}")
        generator = np.random.default_rng(self.draw(100))
        vector = generator.uniform(0.5, 1.5, x.shape[-1]).astype(x.dtype)
        return {
            "scalar": lambda: x * 0.5 + 0.25,
            "array": lambda: x + vector.reshape(1, 1, 1, -1),
            "left array": lambda: ops.add(vector.reshape(1, 1, -1), x),
            "times": lambda: x * vector.reshape(1, 1, -1),
            "rank one": lambda: ops.multiply(vector, x),
            "over": lambda: x / vector,
            "from": lambda: ops.subtract(vector, x),
            "map": lambda: x + generator.normal(0, 1, (1, *x.shape[1:])).astype(x.dtype),
            "rescale": lambda: layers.Rescaling(vector.tolist(), offset=0.1)(x),
        }[kind]()

    def shuffle(self, x):
        channels = x.shape[-1]
        groups = self.pick(2, 3, 4)
        if channels % groups or channels == groups:
            return x
        self.note(f"shuffle {groups}")
        height, width = x.shape[1:3]
        y = layers.Reshape((height, width, groups, channels // groups))(x)
        y = layers.Permute((1, 2, 4, 3))(y)
        return layers.Reshape((height, width, channels))(y)

    def share(self, x):
        """A layer called twice, one after the other or on two branches."""
        self.note("shared convolution")
        layer = layers.Conv2D(x.shape[-1], self.pick(1, 3), padding="same", use_bias=self.pick(True, False))
        kind = self.pick("chain", "siblings", "depthwise")
        if kind == "chain":
            return layer(layers.ReLU()(layer(x)))
        if kind == "depthwise":
            layer = layers.DepthwiseConv2D(3, padding="same")
            return layer(layers.ReLU()(layer(x)))
        return layers.Concatenate()([layer(x), layer(self.plain(x))])

    def nest(self, x):
        channels = x.shape[-1]
        inner_input = keras.Input(x.shape[1:])
        y = layers.Conv2D(self.pick(4, 8), 1, activation=self.activation())(inner_input)
        if self.pick(False, True):
            y = layers.BatchNormalization()(y)
        y = layers.Conv2D(channels, 3, padding="same")(y)
        if self.pick(False, True):
            y = layers.Add()([inner_input, y])
        inner = keras.Model(inner_input, y)
        if self.pick(False, True):
            inner = keras.Sequential([keras.Input(x.shape[1:]), layers.Conv2D(4, 1), layers.Conv2D(channels, 1)])
        kind = self.pick("once", "twice", "siblings")
        self.note(f"nested, called {kind}")
        if kind == "siblings":
            return layers.Add()([inner(x), inner(self.plain(x))])
        return inner(inner(x)) if kind == "twice" else inner(x)

    def normalize_together(self, x):
        channels = x.shape[-1]
        kind = self.pick("group", "instance", "rms", "unit", "layer")
        self.note(f"{kind} normalization")
        return {
            "group": lambda: layers.GroupNormalization(2 if channels % 2 == 0 else 1)(x),
            "instance": lambda: layers.GroupNormalization(-1)(x),
            "rms": lambda: layers.RMSNormalization()(x),
            "unit": lambda: layers.UnitNormalization()(x),
            "layer": lambda: layers.LayerNormalization()(x),
        }[kind]()

    def slices(self, x):
        channels = x.shape[-1]
        kind = self.pick("unit", "pad", "glu", "slice", "every other", "flip")
        if channels < 4:
            return x
        self.note(f"slices {kind}")
        if kind in ("unit", "glu"):
            a, b = ops.split(x[..., : channels // 2 * 2], 2, axis=-1)
            return a * ops.sigmoid(b) if kind == "glu" else ops.concatenate([a, self.plain(b)], axis=-1)
        return {
            "pad": lambda: ops.pad(x, ((0, 0), (0, 0), (0, 0), (2, 1))),
            "slice": lambda: x[:, 1:, :, 1 : channels - 1] if x.shape[1] > 2 else x[..., 1:],
            "every other": lambda: x[..., ::2],
            "flip": lambda: ops.flip(x, axis=self.pick(-1, 1)),
        }[kind]()

    def over_channels(self, x):
        """A map of what all channels have together: CBAM's gate, or one more channel."""
        kinds = [self.pick("mean", "max", "sum", "min", "std") for _ in range(self.pick(1, 2))]
        self.note(f"over channels {kinds}")
        found = [getattr(ops, kind)(x, axis=-1, keepdims=True) for kind in kinds]
        maps = ops.concatenate(found, axis=-1) if len(found) > 1 else found[0]
        if self.pick(True, False):
            return x * layers.Conv2D(1, 3, padding="same", activation="sigmoid")(maps)
        return ops.concatenate([x, maps], axis=-1)

    def rearrange(self, x):
        _, height, width, channels = x.shape
        kind = self.pick("depth to space", "space to depth", "windows")
        self.note(kind)
        if kind == "depth to space" and channels % 4 == 0 and height < 6:
            y = ops.reshape(x, (-1, height, width, 2, 2, channels // 4))
            return ops.reshape(ops.transpose(y, (0, 1, 3, 2, 4, 5)), (-1, 2 * height, 2 * width, channels // 4))
        if kind == "space to depth" and height % 2 == width % 2 == 0 and channels < 8:
            y = ops.reshape(x, (-1, height // 2, 2, width // 2, 2, channels))
            return ops.reshape(ops.transpose(y, (0, 1, 3, 2, 4, 5)), (-1, height // 2, width // 2, 4 * channels))
        if kind == "windows" and height % 2 == width % 2 == 0:
            y = ops.reshape(x, (-1, height // 2, 2, width // 2, 2, channels))
            y = ops.reshape(ops.transpose(y, (0, 1, 3, 2, 4, 5)), (-1, height * width // 4, 4, channels))
            y = layers.Dense(channels, activation=self.activation())(y)
            y = ops.transpose(ops.reshape(y, (-1, height // 2, width // 2, 2, 2, channels)), (0, 1, 3, 2, 4, 5))
            return x + ops.reshape(y, (-1, height, width, channels))
        return x

    # ------------------------------------------------------------------ the model

    def step(self, x):
        options = (
            self.conv, self.normalize, self.activate, self.residual, self.depthwise, self.gate, self.concatenate,
            self.move, self.shuffle, self.share, self.arrays, self.sum_of_three, self.nest, self.grouped_depthwise,
            self.separable, self.transposed, self.normalize_together, self.slices, self.over_channels, self.rearrange,
        )  # fmt: skip
        return self.pick(*options)(x)

    def head(self, x):
        kind = self.pick("pool", "flatten", "keepdims", "tokens", "heads", "map", "mean", "two", "columns")
        self.note(f"head {kind}")
        height, width, channels = x.shape[1:]
        if kind == "pool":
            return layers.Dense(3)(layers.GlobalAveragePooling2D()(x))
        if kind == "flatten":
            return layers.Dense(3)(layers.Flatten()(x))
        if kind == "keepdims":
            return layers.Flatten()(layers.Conv2D(3, 1)(layers.GlobalMaxPooling2D(keepdims=True)(x)))
        if kind == "tokens":
            return layers.Dense(3)(layers.Reshape((height * width, channels))(x))
        if kind == "heads" and channels % 2 == 0:
            return layers.Dense(3)(layers.Flatten()(layers.Reshape((height, width, 2, channels // 2))(x)))
        if kind == "columns":
            return layers.Dense(3)(layers.Reshape((width, height * channels))(layers.Permute((2, 1, 3))(x)))
        if kind == "mean":
            return layers.Dense(3)(ops.mean(x, axis=(1, 2)))
        if kind == "two":
            return [layers.Dense(3)(layers.GlobalAveragePooling2D()(x)), layers.Conv2D(2, 1)(x)]
        return layers.Conv2D(2, 3, padding="same")(x)

    def model(self, most_steps: int = 6) -> keras.Model:
        size = self.pick(6, 8, 5)
        inputs = keras.Input((size, size, 3))
        x = layers.Conv2D(self.pick(4, 8, 6, 12), self.pick(3, 1), padding="same", use_bias=self.pick(True, False))(
            inputs
        )
        for _ in range(1 + self.draw(most_steps)):
            x = self.step(x)
        model = keras.Model(inputs, self.head(x))
        return shaken(model, seed=self.draw(1000))

    # ------------------------------------------------------------------ zeros

    def zero(self, model: keras.Model) -> None:
        """Zeros of several kinds in place: filters, consumer slices, normalization, whole layers."""
        weighted = [layer for layer in flat_layers(model) if layer.trainable_variables]
        for _ in range(1 + self.draw(4)):
            layer = weighted[self.draw(len(weighted))]
            kind = self.pick("filters", "filters and bias", "whole", "inputs", "kernel", "single weights")
            for variable in layer.trainable_variables:
                array = numbers(variable)
                self._zero(array, variable, kind)
                variable.assign(array)
            self.note(f"zero {kind} of {layer.name}")
        if self.pick(False, True):
            self.note("zero a kernel with what follows it")
            self._zero_forward(model)

    def _zero(self, array: np.ndarray, variable: Any, kind: str) -> None:
        vector = array.ndim < 2
        if array.ndim == 0:
            return
        if kind == "whole" or (kind == "kernel" and not vector):
            array[...] = 0
        elif kind == "filters and bias" or (kind == "filters" and not vector):
            array[..., self._some(array.shape[-1])] = 0
        elif kind == "inputs" and not vector:
            array[..., self._some(array.shape[-2]), :] = 0
        elif kind == "single weights":
            array.reshape(-1)[:: 2 + self.draw(3)] = 0

    def _some(self, size: int) -> np.ndarray:
        step, start = 1 + self.draw(3), self.draw(2)
        stop = size - (size * self.draw(3)) // 3
        return np.arange(min(start, size - 1), stop, step)

    def _zero_forward(self, model: keras.Model) -> None:
        """Every BatchNormalization loses a run of gammas, and half of them the betas too."""
        for layer in flat_layers(model):
            if isinstance(layer, layers.BatchNormalization):
                for variable in layer.trainable_variables:
                    array = numbers(variable)
                    if variable.name == "gamma" or self.pick(True, False):
                        array[: array.size // 2] = 0
                    variable.assign(array)


def flat_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """All layers that are not models, nested ones included, each once."""
    found = model._flatten_layers(include_self=False)
    return list({id(layer): layer for layer in found if not isinstance(layer, keras.Model)}.values())
