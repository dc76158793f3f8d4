"""Any model can be traced, pruned and stripped: shared, nested, subclassed, of custom layers, in any precision."""

from __future__ import annotations

import sys

import keras
import numpy as np
import pytest
from fuzzing import assert_untouched, snapshot
from keras import layers, ops
from models import conv_bn, floats, numbers, parameters, shaken

import tfprune
from tfprune.errors import TraceError
from tfprune.verify import random_inputs, run

# ---------------------------------------------------------------------- models


def siamese():
    """One encoder for two images, and their distance."""
    inputs = keras.Input((8, 8, 3))
    x = conv_bn(inputs, 8, name="c1")
    x = layers.GlobalAveragePooling2D()(conv_bn(x, 12, name="c2"))
    encoder = keras.Model(inputs, layers.Dense(6, name="code")(x), name="encoder")
    a, b = keras.Input((8, 8, 3), name="left"), keras.Input((8, 8, 3), name="right")
    distance = ops.absolute(encoder(a) - encoder(b))
    return keras.Model([a, b], layers.Dense(1, name="same")(distance), name="siamese")


def unet():
    """Two levels down, two up with transposed convolutions and concatenations."""
    inputs = keras.Input((16, 16, 3))
    first = conv_bn(inputs, 8, name="down1")
    second = conv_bn(layers.MaxPooling2D()(first), 12, name="down2")
    x = conv_bn(layers.MaxPooling2D()(second), 16, name="bottom")
    x = layers.Conv2DTranspose(12, 2, strides=2, name="up2")(x)
    x = conv_bn(layers.Concatenate()([x, second]), 12, name="merge2")
    x = layers.Conv2DTranspose(8, 3, strides=2, padding="same", activation="relu", name="up1")(x)
    x = conv_bn(layers.Concatenate()([first, x]), 8, name="merge1")
    return keras.Model(inputs, layers.Conv2D(2, 1, name="mask")(x), name="unet")


def resnext():
    """Grouped convolutions between 1x1 ones, with a shortcut."""
    inputs = keras.Input((8, 8, 3))
    x = conv_bn(inputs, 16, name="stem")
    for number in (1, 2):
        y = conv_bn(x, 16, 1, name=f"reduce{number}")
        y = conv_bn(y, 16, 3, groups=4, name=f"grouped{number}")
        x = layers.ReLU()(x + conv_bn(y, 16, 1, activation=None, name=f"expand{number}"))
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(x)), name="resnext")


def shufflenet():
    """ShuffleNetV2: half of the channels pass by, the other half is convolved; then both are shuffled."""

    def shuffled(x):
        _, height, width, channels = x.shape
        x = layers.Reshape((height, width, 2, channels // 2))(x)
        return layers.Reshape((height, width, channels))(layers.Permute((1, 2, 4, 3))(x))

    inputs = keras.Input((8, 8, 3))
    x = conv_bn(inputs, 16, name="stem")
    for number in (1, 2):
        left, right = ops.split(x, 2, axis=-1)
        right = conv_bn(right, 8, 1, name=f"in{number}")
        right = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name=f"depthwise{number}")(right)
        right = conv_bn(layers.BatchNormalization()(right), 8, 1, name=f"out{number}")
        x = shuffled(layers.Concatenate()([left, right]))
    x = conv_bn(x, 12, 1, name="last")
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(x)), name="shufflenet")


class WindowAttention(layers.Layer):
    """Swin's attention inside windows of 4x4, of Dense, reshape, transpose and matmul."""

    def __init__(self, heads, window=4, **settings):
        super().__init__(**settings)
        self.heads, self.window = heads, window
        self.normalization = layers.LayerNormalization(name="normalization")

    def build(self, shape):
        width = shape[-1]
        for name in ("query", "key", "value", "out"):
            setattr(self, name, layers.Dense(width, name=name))
            getattr(self, name).build((None, None, width))
        self.normalization.build(shape)

    def call(self, x):
        _, height, width, channels = x.shape
        side, heads = self.window, self.heads
        y = ops.reshape(self.normalization(x), (-1, height // side, side, width // side, side, channels))
        y = ops.reshape(ops.transpose(y, (0, 1, 3, 2, 4, 5)), (-1, height * width // side**2, side * side, channels))

        def split(z):
            return ops.transpose(ops.reshape(z, (-1, *z.shape[1:3], heads, channels // heads)), (0, 1, 3, 2, 4))

        query, key, value = split(self.query(y)), split(self.key(y)), split(self.value(y))
        weights = ops.softmax(ops.matmul(query, ops.transpose(key, (0, 1, 2, 4, 3))) * (channels // heads) ** -0.5)
        y = ops.transpose(ops.matmul(weights, value), (0, 1, 3, 2, 4))
        y = self.out(ops.reshape(y, (-1, *y.shape[1:3], channels)))
        y = ops.reshape(y, (-1, height // side, width // side, side, side, channels))
        return x + ops.reshape(ops.transpose(y, (0, 1, 3, 2, 4, 5)), (-1, height, width, channels))

    def get_config(self):
        return {**super().get_config(), "heads": self.heads, "window": self.window}


def swin():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(16, 1, name="patches")(inputs)
    x = WindowAttention(4, name="attention")(x)
    y = layers.Dense(32, activation="gelu", name="mlp1")(layers.LayerNormalization()(x))
    x = x + layers.Dense(16, name="mlp2")(y)
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(x)), name="swin")


def several():
    """Two inputs of different kinds, three outputs in a dictionary, one of them an input's own branch."""
    image, ids = keras.Input((8, 8, 3), name="image"), keras.Input((5,), dtype="int32", name="ids")
    x = layers.GlobalAveragePooling2D()(conv_bn(conv_bn(image, 8, name="c1"), 12, name="c2"))
    words = layers.GlobalAveragePooling1D()(layers.Embedding(20, 6, name="table")(ids))
    words = layers.Dense(8, activation="relu", name="words")(words)
    both = layers.Dense(10, activation="relu", name="both")(layers.Concatenate()([x, words]))
    heads = {"class": layers.Dense(3, name="class")(both), "score": layers.Dense(1, name="score")(words), "code": both}
    return keras.Model({"image": image, "ids": ids}, heads, name="several")


def nested():
    """Three deep, with the innermost shared by two of the middle ones, and a layer shared across the levels."""
    shared = layers.Conv2D(8, 1, activation="relu", name="shared")
    i = keras.Input((8, 8, 8))
    inner = keras.Model(i, conv_bn(shared(i), 8, name="inner_c"), name="inner")

    def middle(name):
        i = keras.Input((8, 8, 8))
        return keras.Model(i, i + inner(conv_bn(i, 8, name=f"{name}_c")), name=name)

    i = keras.Input((8, 8, 8))
    x = middle("m1")(i)
    outer = keras.Model(i, middle("m2")(shared(x)), name="outer")
    inputs = keras.Input((8, 8, 3))
    x = outer(conv_bn(inputs, 8, name="stem"))
    x = outer(keras.Sequential([layers.Conv2D(12, 1, name="s1"), layers.Conv2D(8, 1, name="s2")], name="two")(x))
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(x)), name="nested")


def plain():
    inputs = keras.Input((8, 8, 3))
    x = conv_bn(conv_bn(inputs, 8, name="c1"), 12, name="c2")
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(x)), name="plain")


def channels_first():
    """What runs on a CPU in TensorFlow with channels in front: all but the convolutions, which have theirs last."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Permute((3, 1, 2))(layers.Conv2D(8, 3, padding="same", name="c1")(inputs))
    x = layers.ReLU()(layers.BatchNormalization(axis=1, name="bn")(x))
    x = layers.UpSampling2D(2, data_format="channels_first")(layers.ZeroPadding2D(1, data_format="channels_first")(x))
    x = layers.Conv2D(6, 3, padding="same", name="c2")(layers.Permute((2, 3, 1))(x))
    x = layers.Flatten(data_format="channels_first")(layers.Permute((3, 1, 2))(x))
    return keras.Model(inputs, layers.Dense(3, name="head")(x), name="channels_first")


class DropPath(layers.Layer):
    """A branch that is left out now and then in training."""

    def __init__(self, rate=0.2, **settings):
        super().__init__(**settings)
        self.rate = rate

    def call(self, x, training=None):
        if not training:
            return x
        kept = keras.random.uniform((ops.shape(x)[0],) + (1,) * (len(x.shape) - 1)) >= self.rate
        return x * ops.cast(kept, x.dtype) / (1 - self.rate)

    def get_config(self):
        return {**super().get_config(), "rate": self.rate}


class Block(layers.Layer):
    """A residual block; both of its convolutions bear the same name."""

    def __init__(self, width, **settings):
        super().__init__(**settings)
        self.width = width
        self.first = layers.Conv2D(width, 3, padding="same", name="conv")
        self.normalization = layers.BatchNormalization(name="bn")
        self.drop = DropPath(name="drop")

    def build(self, shape):
        self.second = layers.Conv2D(shape[-1], 1, name="conv")
        self.first.build(shape)
        self.normalization.build((*shape[:-1], self.width))
        self.second.build((*shape[:-1], self.width))

    def call(self, x, training=None):
        y = ops.relu(self.normalization(self.first(x), training=training))
        return x + self.drop(self.second(y), training=training)

    def get_config(self):
        return {**super().get_config(), "width": self.width}


class Net(keras.Model):
    """A model with Python code of its own: a loop over blocks, inputs and outputs in dictionaries."""

    def __init__(self, blocks=2, **settings):
        super().__init__(**settings)
        self.stem = layers.Conv2D(8, 3, padding="same", name="stem")
        self.blocks = [Block(12, name=f"block{number}") for number in range(blocks)]
        self.table = layers.Embedding(20, 6, name="table")
        self.hidden = layers.Dense(10, activation="relu", name="hidden")
        self.head = layers.Dense(3, name="head")

    def call(self, inputs, training=None):
        x = self.stem(inputs["image"])
        for block in self.blocks:
            x = block(x, training=training)
        words = ops.mean(self.table(inputs["ids"]), axis=1)
        code = self.hidden(ops.concatenate([ops.mean(x, axis=(1, 2)), words], axis=-1))
        return {"logits": self.head(code), "words": words}


def net(**settings):
    model = Net(name="net", **settings)
    model({"image": np.zeros((2, 8, 8, 3)), "ids": np.zeros((2, 5), "int32")})
    return model


def of_blocks():
    inputs = keras.Input((8, 8, 3))
    shared = Block(12, name="shared")
    x = layers.Conv2D(8, 1, name="stem")(inputs)
    x = Block(10, name="other")(shared(shared(x)))
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(x)), name="of_blocks")


def pruned(model, ratio=0.5, **options):
    """Strip a plan, then the zeros; both equal the soft-pruned model, which nothing but soft pruning changes."""
    shaken(model)
    before = snapshot(model) if hasattr(model, "_operations") else [numbers(v) for v in model.weights]
    plan = tfprune.select(model, "l1", ratio=ratio, round_to=1, **options)
    direct = tfprune.strip(model, plan)
    if isinstance(before, tuple):
        assert_untouched(model, before)
    assert not any(layer._outbound_nodes for layer in model._flatten_layers() if not hasattr(model, "_operations"))
    assert direct.verification.equal and direct.verification.spread > 1e-3
    tfprune.soft_prune(model, plan)
    result = tfprune.strip(model)
    assert result.verification.equal
    assert parameters(result.model) == result.cost_after.parameters <= direct.cost_after.parameters
    assert result.cost_before.parameters == parameters(model)
    again = tfprune.strip(result.model)
    assert not again.plan and "the model is as it was" in str(again)
    return plan, direct.model


def widths(plan):
    """group -> how many channels are left, of those that lose some."""
    return {name: plan.graph.group(name).width - len(gone) for name, gone in plan.channels.items()}


# ---------------------------------------------------------------------- shared, nested, several, any architecture

EXPECTED = {
    siamese: {"encoder/c1": 4, "encoder/c2": 6, "encoder/code": 3},
    unet: {"down1": 4, "down2": 6, "bottom": 8, "up2": 6, "merge2": 6, "up1": 4, "merge1": 4},
    # Of grouped convolutions, the same channels go in every group: 2 of 4.
    resnext: {"stem": 8, "reduce1": 2, "grouped1": 2, "reduce2": 2, "grouped2": 2},
    shufflenet: {"in1": 4, "in2": 4, "last": 6},
    several: {"c1": 4, "c2": 6, "table": 3, "words": 4},
    nested: {"stem": 4, "two/s1": 6},
    channels_first: {"c1": 4, "c2": 3},
    swin: {"attention/query": 2, "attention/value": 2, "mlp1": 16},
    of_blocks: {"stem": 4, "shared/conv": 6, "other/conv": 5},
}


@pytest.mark.parametrize("build", EXPECTED, ids=lambda build: build.__name__)
def test_architectures(build):
    with floats("float64"):
        model = build()
        plan, slim = pruned(model)
    left = widths(plan)
    assert {name: left[name] for name in EXPECTED[build]} == EXPECTED[build]
    assert not plan.graph.opaque
    assert parameters(slim) < 0.7 * parameters(model)


def test_shared_blocks_stay_shared():
    """The block is called twice: one nested model, one set of weights, called twice."""
    with floats("float64"):
        slim = pruned(of_blocks())[1]
    block = slim.get_layer("shared")
    assert len(block._inbound_nodes) == 2
    assert len([layer for layer in slim.layers if isinstance(layer, keras.Model)]) == 2
    assert block.get_layer("conv").filters == 6 and block.get_layer("conv_1").filters == 4


@pytest.mark.parametrize("build", [plain, of_blocks])
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16"])
def test_precisions(build, policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = build()
        plan, slim = pruned(model)
    finally:
        keras.config.set_dtype_policy(before)
    assert widths(plan) and all(width * 2 <= plan.graph.group(name).width for name, width in widths(plan).items())
    for old, new in zip(model.layers, slim.layers, strict=True):
        if not isinstance(new, keras.Model):
            assert new.dtype_policy.name == old.dtype_policy.name
    assert {str(v.dtype) for v in slim.weights} == {str(v.dtype) for v in model.weights}
    assert slim.output.dtype == model.output.dtype


def test_frozen_layers_are_pruned_and_stay_frozen():
    with floats("float64"):
        model = nested()
        model.get_layer("stem").trainable = False
        model.get_layer("outer").get_layer("m2").trainable = False
        _, slim = pruned(model)
        blocks = of_blocks()
        blocks.get_layer("shared").normalization.trainable = False
        blocks.get_layer("other").trainable = False
        _, slim_blocks = pruned(blocks)
        same = tfprune.strip(blocks, tfprune.PruningPlan.from_groups(tfprune.trace(blocks), {})).model
    assert slim.get_layer("stem").filters == 4
    for one, other in ((model, slim), (blocks, slim_blocks), (blocks, same)):
        assert len(one.trainable_variables) == len(other.trainable_variables) < len(one.weights)
        assert [v.name for v in one.trainable_variables] == [v.name for v in other.trainable_variables]
    assert isinstance(same.get_layer("shared"), Block) and not same.get_layer("shared").normalization.trainable


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="TensorFlow convolves with channels last on a CPU")
def test_convolutions_with_channels_in_front():
    inputs = keras.Input((3, 8, 8))
    x = layers.Conv2D(8, 3, padding="same", data_format="channels_first", name="c1")(inputs)
    x = layers.ReLU()(layers.BatchNormalization(axis=1)(x))
    x = layers.Conv2D(6, 3, data_format="channels_first", name="c2")(x)
    x = layers.GlobalAveragePooling2D(data_format="channels_first")(x)
    plan, _ = pruned(keras.Model(inputs, layers.Dense(3)(x)))
    assert widths(plan) == {"c1": 4, "c2": 3}


# ---------------------------------------------------------------------- layers with Python code


def around(layer, width=8):
    """`before`, the layer, `after`, a head."""
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(width, 3, padding="same", name="before")(inputs)
    x = layers.Conv2D(8, 3, padding="same", name="after")(layer(x))
    return shaken(keras.Model(inputs, layers.Conv2D(2, 1, name="head")(x)))


class Doubled(layers.Layer):
    def call(self, x):
        return 2 * x


class ByWidth(layers.Layer):
    """Divides by the root of the number of channels, which it reads from the shape."""

    def call(self, x):
        return x / np.sqrt(x.shape[-1])


class OverChannels(layers.Layer):
    """Writes the number of channels, and that of samples, into a shape."""

    def call(self, x):
        batch, height, width, channels = ops.shape(x)
        return ops.reshape(ops.reshape(x, (batch * height, width, 2, channels // 2)), (batch, height, width, channels))


class Holder(layers.Layer):
    """Cannot be made again from a configuration."""

    def __init__(self, function, layer):
        super().__init__(name="odd")
        self.function, self.layer = function, layer

    def call(self, x):
        return self.function(self.layer(x))


class Gated(layers.Layer):
    """Two tensors in, by keyword, and two out in a dictionary."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.gate = layers.Dense(8, activation="sigmoid", name="gate")

    def call(self, x, *, other):
        return {"b": x * self.gate(other), "a": other}


def odd(model):
    return model.get_layer("odd")


def test_an_elementwise_layer_follows_as_itself():
    with floats("float64"):
        model = around(Doubled(name="odd"))
        plan, slim = pruned(model)
    assert widths(plan) == {"before": 4, "after": 4}
    assert isinstance(odd(slim), Doubled) and odd(slim).output.shape[-1] == 4


def test_a_layer_that_computes_with_its_width_keeps_the_old_one():
    """As itself it would divide by the root of 4 instead of 8."""
    with floats("float64"):
        plan, slim = pruned(around(ByWidth(name="odd")))
    assert widths(plan)["before"] == 4 and not isinstance(odd(slim), ByWidth)


def test_a_layer_that_computes_with_the_batch_size():
    with floats("float64"):
        model = around(OverChannels(name="odd"))
        plan, slim = pruned(model)
    # It splits channels into two groups, of which as many go: two of four pairs.
    assert widths(plan)["before"] == 2
    for samples in (1, 5):
        x = np.random.default_rng(0).standard_normal((samples, 6, 6, 3))
        np.testing.assert_allclose(run(slim, [x])[0], run(model, [x])[0], atol=1e-12)


def test_a_branch_left_out_in_training_still_is():
    """DropPath stays itself where its tensors become narrower, also inside of a block that is taken apart."""
    with floats("float64"):
        plan, slim = pruned(around(DropPath(0.5, name="odd")))
        assert widths(plan)["before"] == 4 and isinstance(odd(slim), DropPath) and odd(slim).rate == 0.5
        _, slim = pruned(of_blocks())
        drop = slim.get_layer("shared").get_layer("drop")
        assert isinstance(drop, DropPath)
        x = np.random.default_rng(0).standard_normal((16, 8, 8, 3))
        assert np.abs(np.asarray(slim(x, training=True)) - np.asarray(slim(x, training=True))).max() > 0


def test_an_unchanged_composite_is_made_again_as_itself():
    with floats("float64"):
        model = shaken(of_blocks())
        graph = tfprune.trace(model)
        plan = tfprune.PruningPlan.from_groups(graph, {"other/conv": [0, 1]})
        slim = tfprune.strip(model, plan).model
    # The types are those of the model, whatever is made at the moment.
    assert isinstance(slim.get_layer("shared"), Block) and not isinstance(slim.get_layer("other"), Block)
    assert isinstance(tfprune.strip(model).model.get_layer("other"), Block)


def test_a_layer_used_inside_and_outside_of_a_composite_stays_one():
    class Both(layers.Layer):
        def __init__(self, inner, **settings):
            super().__init__(**settings)
            self.inner = [keras.saving.deserialize_keras_object(inner) if isinstance(inner, dict) else inner]

        def call(self, x):
            return ops.relu(self.inner[0](x))

        def get_config(self):
            return {**super().get_config(), "inner": keras.saving.serialize_keras_object(self.inner[0])}

    with floats("float64"):
        shared = layers.Conv2D(8, 1, name="shared")
        inputs = keras.Input((6, 6, 3))
        x = shared(layers.Conv2D(8, 1, name="before")(inputs))
        model = keras.Model(inputs, layers.Conv2D(2, 1, name="head")(Both(shared, name="both")(x)))
        same = tfprune.strip(shaken(model)).model
        slim = pruned(model)[1]
    assert len(slim.weights) == len(same.weights) == len(model.weights) == 6


def test_what_cannot_be_made_again_is_made_of_its_parts():
    with floats("float64"):
        model = around(Holder(ops.relu, layers.Conv2D(16, 1, name="inner")))
        plan, slim = pruned(model)
    assert widths(plan) == {"before": 4, "odd/inner": 8, "after": 4}
    assert isinstance(odd(slim), keras.Model)


def test_structures_of_arguments_and_results():
    with floats("float64"):
        inputs = keras.Input((6, 6, 3))
        x = layers.Conv2D(8, 1, name="x")(inputs)
        y = layers.Conv2D(8, 1, name="y")(inputs)
        z = Gated(name="gated")(x, other=y)
        model = keras.Model(inputs, layers.Conv2D(2, 1, name="head")(layers.Concatenate()([z["a"], z["b"]])))
        plan, _ = pruned(model)
    assert widths(plan) == {"x": 4, "y": 4}


def test_a_lambda_and_an_activation_of_ones_own():
    with floats("float64"):
        plan, _ = pruned(around(layers.Lambda(lambda x: ops.square(x) + 1, name="odd")))
        assert widths(plan)["before"] == 4
        plan, slim = pruned(around(layers.Activation(lambda x: x * ops.sigmoid(1.702 * x), name="odd")))
        assert widths(plan)["before"] == 4 and odd(slim).output.shape[-1] == 4


def test_why_a_layer_is_not_followed():
    class Weighted(layers.Layer):
        def build(self, shape):
            self.strength = self.add_weight(name="strength", shape=shape[-1:])

        def call(self, x):
            return x * self.strength

    class Borrowed(layers.Layer):
        def __init__(self, **settings):
            super().__init__(**settings)
            self.table = layers.Embedding(4, 8)

        def build(self, shape):
            self.table.build()

        def call(self, x):
            return x + ops.mean(ops.convert_to_tensor(self.table.embeddings), axis=0)

    class ByValue(layers.Layer):
        def call(self, x):
            return x if ops.max(x) > 0 else -x

        def compute_output_shape(self, shape):
            return shape

    class TrainedOtherwise(layers.Layer):
        def __init__(self, **settings):
            super().__init__(**settings)
            self.inner = layers.Conv2D(8, 1)

        def call(self, x, training=None):
            y = self.inner(x)
            return y + 1 if training else y

    for layer, reason in (
        (Weighted(name="odd"), r"computes with weights: odd/strength; tfprune.register_rule\(Weighted\)"),
        (Borrowed(name="odd"), "computes with weights: .*embeddings"),
        (ByValue(name="odd"), "does not work on symbolic tensors"),
        (TrainedOtherwise(name="odd"), "other things in training"),
    ):
        model = around(layer)
        graph = tfprune.trace(model)
        assert len(graph.opaque) == 1 and len(graph.opaque[0].reason) < 300
        with pytest.raises(AssertionError, match=reason):
            raise AssertionError(graph.group("before").reason)
        plan, slim = pruned(model)
        assert widths(plan) == {"after": 4} and type(odd(slim)) is type(layer)


def test_a_rule_in_ten_lines():
    """A layer with weights of its own: what to do with them, and which setting follows."""

    class Strength(layers.Layer):
        def build(self, shape):
            self.strength = self.add_weight(name="strength", shape=shape[-1:], initializer="ones")

        def call(self, x):
            return x * self.strength

    @tfprune.register_rule(Strength)
    def strength(layer, lower):
        return lower.affine(
            lower.inputs[0],
            axis=len(lower.output_shape) - 1,
            parameters=[(layer.strength, "scale")],
            coefficients=lambda scale: (scale, np.zeros_like(scale)),
        )

    with floats("float64"):
        plan, slim = pruned(around(Strength(name="odd")))
    assert widths(plan) == {"before": 4, "after": 4} and odd(slim).strength.shape == (4,)


def test_expanding_leaves_nothing_behind():
    model = shaken(of_blocks())
    block = model.get_layer("shared")
    nodes = [(len(one._inbound_nodes), len(one._outbound_nodes)) for one in block._flatten_layers()]
    seen = [numbers(v) for v in model.variables]
    name = layers.ReLU().name
    text = str(tfprune.trace(model))
    assert nodes == [(len(one._inbound_nodes), len(one._outbound_nodes)) for one in block._flatten_layers()]
    assert all(np.array_equal(before, numbers(v)) for before, v in zip(seen, model.variables, strict=True))
    assert int(layers.ReLU().name.rpartition("_")[2]) == int(name.rpartition("_")[2] or 0) + 1
    assert str(tfprune.trace(model)) == text


# ---------------------------------------------------------------------- models with Python code


def test_a_subclassed_model():
    with floats("float64"):
        model = net()
        plan, slim = pruned(model)
    assert widths(plan) == {"block0/conv": 6, "block1/conv": 6, "stem": 4, "hidden": 5}
    assert set(slim.input) == {"image", "ids"} and slim.input["ids"].dtype == "int32"
    assert set(slim.output) == {"logits", "words"}
    assert [v.path for v in model.weights] == [v.path for v in model.weights]


def test_inputs_that_nobody_knows_yet():
    model = Net(name="net")
    with pytest.raises(TraceError, match=r"not built.*inputs=keras\.Input"):
        tfprune.trace(model)
    graph = tfprune.trace(model, inputs={"image": (8, 8, 3), "ids": keras.Input((5,), dtype="int32")})
    assert model.built and graph.group("hidden").prunable and not model._inbound_nodes
    # What was said is remembered.
    assert tfprune.strip(model, tfprune.select(model, "l1", ratio=0.5)).verification.equal
    with pytest.raises(TraceError, match="shapes"):
        tfprune.trace(model, inputs={"image": "large", "ids": (5,)})

    class Two(keras.Model):
        def call(self, a, b):
            return a + b

    model = Two()
    model(np.zeros((1, 3)), np.zeros((1, 3)))
    with pytest.raises(TraceError, match="2 arguments"):
        tfprune.trace(model)

    class ByValue(keras.Model):
        def call(self, x):
            return x if ops.max(x) > 0 else -x

    model = ByValue()
    model(np.zeros((1, 3)))
    with pytest.raises(TraceError, match="cannot be followed.*symbolic"):
        tfprune.trace(model)


def test_a_subclassed_model_inside_a_functional_one():
    class Inner(keras.Model):
        def __init__(self, **settings):
            super().__init__(**settings)
            self.block, self.out = Block(12, name="block"), layers.Conv2D(8, 1, name="out")

        def call(self, x, training=None):
            return self.out(self.block(x, training=training))

    with floats("float64"):
        model = around(Inner(name="odd"))
        plan, slim = pruned(model)
    assert widths(plan) == {"before": 4, "odd/block/conv": 6, "odd/out": 4, "after": 4}
    assert isinstance(odd(slim), keras.Model) and odd(slim).get_layer("out").filters == 4


def test_every_public_function_takes_a_subclassed_model(tmp_path):
    model = shaken(net())
    assert tfprune.cost(model).parameters == model.count_params() and tfprune.cost(model).macs > 0
    assert tfprune.verify(model, tfprune.strip(model).model).equal
    report = tfprune.export(model, tmp_path / "files", formats=("keras", "saved_model"))
    assert report["keras"].path.exists()
    x = {"image": np.zeros((4, 8, 8, 3)), "ids": np.zeros((4, 5), "int32")}
    y = {"logits": np.zeros((4, 3)), "words": np.zeros((4, 6))}
    model.compile("adam", "mse", jit_compile=False)
    pruning = tfprune.SoftPruning("l1", ratio=0.5, round_to=1)
    model.fit(x, y, epochs=1, verbose=0, callbacks=[pruning])
    result = tfprune.strip(model, carry_optimizer=True)
    assert result.cost_after.parameters < 0.7 * result.cost_before.parameters
    result.model.fit(x, y, epochs=1, verbose=0)
    with keras.saving.custom_object_scope({"Net": Net, "Block": Block, "DropPath": DropPath}):
        process = tfprune.Pruning(model, output_dir=tmp_path / "pruning", log=None, round_to=1)
        process.run(lambda model, directory: None, thresholds=[0.5])
        assert process.strip().verification.equal


# ---------------------------------------------------------------------- inputs and outputs in any structure


def test_integers_stay_in_the_vocabulary():
    model = several()
    image, ids = (random_inputs(model, samples=50)[i] for i in (1, 0))
    assert image.dtype == np.float32 and ids.dtype == np.int32
    assert ids.min() == 0 and 10 < ids.max() < 20
    i = keras.Input((5,), dtype="int32")
    x = layers.Embedding(20, 4)(i) * ops.cast(ops.expand_dims(i, -1), "float32")
    (ids,) = random_inputs(keras.Model(i, x), samples=50)
    assert ids.max() == 1
    (ids,) = random_inputs(keras.Model(i2 := keras.Input((None,), dtype="int32"), layers.Embedding(20, 4)(i2)))
    assert ids.shape == (2, 8)


def test_structures_are_kept():
    with floats("float64"):
        _, slim = pruned(several())
        assert set(slim.input) == {"image", "ids"} and list(slim.output) == ["class", "score", "code"]
        a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
        hidden = layers.Dense(8, name="hidden")(layers.Concatenate()([a, b]))
        tuples = keras.Model([a, (b,)], [layers.Dense(2)(hidden), {"x": layers.Dense(3)(hidden)}])
        slim = pruned(tuples)[1]
    one, other = slim([np.ones((2, 4)), (np.ones((2, 4)),)])
    assert one.shape == (2, 2) and other["x"].shape == (2, 3)


# ---------------------------------------------------------------------- long models


class Long(keras.Model):
    def __init__(self, length):
        super().__init__()
        self.length, self.first, self.last = length, layers.Dense(4, name="first"), layers.Dense(2, name="last")

    def call(self, x):
        x = self.first(x)
        for _ in range(self.length):
            x = ops.absolute(x) + 1e-3
        return self.last(x)


def test_two_thousand_blocks_one_behind_the_other():
    """Longer than Python's recursion limit, by which Keras walks functional graphs."""
    model = Long(2000)
    model(np.zeros((2, 3)))
    limit = sys.getrecursionlimit()
    plan, slim = pruned(model)
    assert widths(plan) == {"first": 2} and slim.get_layer("first").units == 2
    assert sys.getrecursionlimit() == limit


# ---------------------------------------------------------------------- keras_hub


def bert(layers=2, width=32, heads=4, vocabulary=100, length=16):
    hub = pytest.importorskip("keras_hub")
    return hub.models.BertBackbone(
        vocabulary_size=vocabulary,
        num_layers=layers,
        num_heads=heads,
        hidden_dim=width,
        intermediate_dim=2 * width,
        max_sequence_length=length,
    )


def hub_resnet():
    hub = pytest.importorskip("keras_hub")
    return hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=(32, 32, 3),
    )


def mit():
    hub = pytest.importorskip("keras_hub")
    return hub.models.MiTBackbone(
        layerwise_depths=[1, 1],
        image_shape=(32, 32, 3),
        hidden_dims=[8, 16],
        num_layers=2,
        layerwise_num_heads=[1, 2],
        layerwise_sr_ratios=[2, 1],
        max_drop_path_rate=0.1,
        layerwise_patch_sizes=[7, 3],
        layerwise_strides=[4, 2],
    )


def vit():
    hub = pytest.importorskip("keras_hub")
    return hub.models.ViTBackbone(
        image_shape=(32, 32, 3), patch_size=8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64
    )


def image_classifier():
    return pytest.importorskip("keras_hub").models.ImageClassifier(backbone=hub_resnet(), num_classes=3)


def text_classifier():
    return pytest.importorskip("keras_hub").models.BertTextClassifier(backbone=bert(), num_classes=3)


def masked_words():
    return pytest.importorskip("keras_hub").models.BertMaskedLM(backbone=bert())


@pytest.mark.parametrize(
    ("build", "most"),
    [
        (hub_resnet, 0.5),
        (image_classifier, 0.5),
        (mit, 0.75),
        (vit, 0.75),
        (bert, 0.75),
        (text_classifier, 0.75),
        (masked_words, 0.95),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_keras_hub(build, most):
    model = shaken(build())
    plan = tfprune.select(model, "l1", ratio=0.5, round_to=1)
    direct = tfprune.strip(model, plan)
    assert direct.verification.equal and direct.verification.spread > 0.05
    assert direct.cost_after.parameters < most * direct.cost_before.parameters
    assert direct.cost_before.parameters == model.count_params()
    assert direct.cost_after.parameters == direct.model.count_params()
    tfprune.soft_prune(model, plan)
    result = tfprune.strip(model)
    assert result.verification.equal and result.cost_after.parameters < most * result.cost_before.parameters
    assert not tfprune.strip(result.model).plan
    assert keras.tree.map_structure(lambda x: x.dtype, result.model.input) == keras.tree.map_structure(
        lambda x: x.dtype, model.input
    )
