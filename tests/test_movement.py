"""Slices, splits, pads, blocks and reductions: what they are written as once widths have changed."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers, ops
from models import arrays_for, assert_same, difference, floats, numbers, outputs, shaken, zero_filters

import tfprune
from tfprune.channels.facts import prove
from tfprune.channels.plan import PruningPlan

not_on_torch = pytest.mark.skipif(keras.backend.backend() == "torch", reason="Keras on PyTorch computes it wrongly")
needs_depth_to_space = pytest.mark.skipif(not hasattr(ops, "depth_to_space"), reason="this Keras has none")


@pytest.fixture(autouse=True)
def in_float64():
    with floats("float64"):
        yield


def model_of(body, filters: int = 8, size: int | None = 6, activation=None) -> keras.Model:
    """A stem, what is looked at, a head."""
    inputs = keras.Input((size, size, 3))
    x = layers.Conv2D(filters, 3, padding="same", name="stem", activation=activation)(inputs)
    y = body(x)
    if len(y.shape) > 2:
        y = layers.GlobalAveragePooling2D()(y) if size is None else layers.Flatten()(y)
    return shaken(keras.Model(inputs, layers.Dense(3, name="head")(y)))


def conv(x, filters=None, kernel=3, **settings):
    return layers.Conv2D(filters or x.shape[-1], kernel, padding="same", **settings)(x)


def pruned(model: keras.Model, groups: dict[str, list[int]]) -> keras.Model:
    """The model without these channels, which equals the model with them zeroed, however it is stripped."""
    plan = PruningPlan.from_groups(tfprune.trace(model), groups)
    stripped = tfprune.strip(model, plan, verify=False).model
    tfprune.soft_prune(model, plan)
    assert_same(model, stripped)
    assert_same(model, tfprune.strip(model, verify=False).model)
    # What was written anew is followed as what it replaces.
    assert_same(model, tfprune.strip(stripped, verify=False).model)
    return stripped


def width(model: keras.Model, name: str) -> int:
    return model.get_layer(name).filters


def operation(model: keras.Model, kind: str):
    return next(op for op in model.operations if type(op).__name__ == kind)


def key_of(model: keras.Model):
    return operation(model, "GetItem")._inbound_nodes[0].arguments.args[1]


# ---------------------------------------------------------------------- slices and splits


def test_a_slice_takes_what_is_left_of_its_range():
    model = model_of(lambda x: ops.concatenate([conv(x[..., 2:6], 4, name="reader"), x], axis=-1))
    stripped = pruned(model, {"stem": [0, 3, 7]})
    assert width(stripped, "stem") == 5 and stripped.get_layer("reader").kernel.shape[2] == 3
    assert key_of(stripped)[-1] == slice(1, 4, 1)


def test_what_a_slice_passes_over_goes_because_nobody_reads_it():
    model = model_of(lambda x: x[..., 2:6])
    stripped = tfprune.strip(model, verify=False).model
    assert_same(model, stripped)
    assert width(stripped, "stem") == 4 and not [op for op in stripped.operations if type(op).__name__ == "GetItem"]


def test_a_split_into_uneven_parts_of_which_one_goes():
    def body(x):
        a, b, c = ops.split(x, [3, 5], axis=-1)
        return ops.concatenate([ops.relu(a), conv(b, 4), c], axis=-1)

    model = model_of(body)
    # Channels 0 to 2 are the first part: nothing is left of it.
    stripped = pruned(model, {"stem": [0, 1, 2, 4]})
    assert width(stripped, "stem") == 4 and stripped.get_layer("head").kernel.shape[0] == 36 * (4 + 3)
    name = operation(model, "Split").name
    taken = [op.name for op in stripped.operations if type(op).__name__ == "GetItem"]
    assert taken == [f"{name}_part_1", f"{name}_part_2"]


def test_an_even_split_stays_a_split():
    def body(x):
        a, b = ops.split(x, 2, axis=-1)
        return a * ops.sigmoid(b)

    stripped = pruned(model_of(body), {"stem": [1]})
    assert width(stripped, "stem") == 6 and operation(stripped, "Split").indices_or_sections == 2


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (lambda x: ops.roll(x, 3, axis=-1), "Take"),
        (lambda x: ops.take(x, [7, 7, 0, 3], axis=-1), "Take"),
        pytest.param(lambda x: ops.repeat(x, (1, 2, 1, 0, 3, 1, 1, 1), axis=-1), "Take", marks=not_on_torch),
        (lambda x: ops.flip(x, axis=-1), "Flip"),
        (lambda x: ops.repeat(x, 2, axis=-1), "Repeat"),
        (lambda x: ops.tile(x, (1, 1, 1, 2)), "Tile"),
        (lambda x: ops.pad(x, ((0, 0), (0, 0), (1, 1), (2, 3)), mode="reflect"), "Take"),
    ],
)
def test_channels_in_another_order(body, kind):
    model = model_of(lambda x: conv(body(x), 4))
    stripped = pruned(model, {"stem": [0, 5]})
    assert width(stripped, "stem") == 6 and operation(stripped, kind)


def test_a_shuffle_unit():
    """ShuffleNetV2: half of the channels passes by, and is shuffled into the other half."""

    def unit(x):
        channels = x.shape[-1]
        a, b = ops.split(x, 2, axis=-1)
        b = layers.DepthwiseConv2D(3, padding="same")(conv(b, kernel=1, activation="relu"))
        x = ops.concatenate([a, conv(b, kernel=1, activation="relu")], axis=-1)
        x = ops.reshape(x, (-1, 6, 6, 2, channels // 2))
        return ops.reshape(ops.transpose(x, (0, 1, 2, 4, 3)), (-1, 6, 6, channels))

    model = model_of(lambda x: unit(unit(x)))
    plan = tfprune.select(model, "l1", ratio=0.5, round_to=1)
    before = sum(layer.count_params() for layer in model.layers)
    result = tfprune.strip(model, plan, verify=False)
    tfprune.soft_prune(model, plan)
    assert_same(model, result.model)
    assert sum(layer.count_params() for layer in result.model.layers) < 0.7 * before


def test_a_stripped_model_with_new_slices_is_saved_and_loaded(tmp_path):
    model = model_of(lambda x: ops.concatenate([ops.roll(x, 3, axis=-1), x[..., 1:4]], axis=-1))
    stripped = pruned(model, {"stem": [0, 5]})
    stripped.save(tmp_path / "model.keras")
    assert difference(stripped, keras.models.load_model(tmp_path / "model.keras")) == 0


# ---------------------------------------------------------------------- pads and stacks


def test_padded_channels_of_a_shortcut():
    """ResNet's option A: where a stage widens, the shortcut gets channels of zeros."""

    def body(x):
        shortcut = layers.AveragePooling2D(2)(x)
        shortcut = ops.pad(shortcut, ((0, 0), (0, 0), (0, 0), (4, 4)))
        return ops.relu(shortcut + conv(conv(x, strides=2, activation="relu"), 16, name="wide"))

    model = model_of(body)
    groups = {group.name: group.width for group in tfprune.trace(model).groups if "wide" in group.writers}
    assert groups == {"stem": 8, "wide": 8}  # what is added to the stem, and what is added to zeros
    stripped = pruned(model, {"stem": [0, 3, 7], "wide": [1, 2, 6]})
    assert width(stripped, "wide") == 10 and width(stripped, "stem") == 5
    assert tuple(map(tuple, operation(stripped, "Pad").pad_width))[-1] == (2, 3)


def test_padding_with_a_number_that_is_read():
    model = model_of(lambda x: conv(ops.pad(x, ((0, 0), (0, 0), (0, 0), (1, 2)), constant_values=0.5), 4, 1))
    stripped = pruned(model, {"stem": [0, 3]})
    # A bias takes the padded channels, which are nothing but a number.
    assert width(stripped, "stem") == 6
    by_weights = tfprune.strip(model, verify=False).model
    assert sum(map(sum, operation(by_weights, "Pad").pad_width)) == 0


def test_stacked_values_keep_the_same_channels():
    model = model_of(lambda x: ops.max(ops.stack([x, conv(x, name="other")], axis=1), axis=1))
    stripped = pruned(model, {"stem": [2, 5]})
    assert width(stripped, "stem") == width(stripped, "other") == 6


def test_a_gated_unit_loses_both_halves():
    stripped = pruned(model_of(lambda x: ops.glu(x)), {"stem": [1, 2]})
    assert width(stripped, "stem") == 4 and stripped.get_layer("head").kernel.shape[0] == 72


# ---------------------------------------------------------------------- depth and space


@needs_depth_to_space
@pytest.mark.parametrize("first", [False, True])
def test_depth_to_space_of_unknown_size(first):
    """Sub-pixel convolution: a channel of the result is block * block filters."""

    def body(x):
        x = conv(x, 12, name="wide")
        if first:
            x = ops.transpose(x, (0, 3, 1, 2))
        x = ops.depth_to_space(x, 2, data_format="channels_first" if first else "channels_last")
        return conv(ops.transpose(x, (0, 2, 3, 1)) if first else x, 4)

    model = model_of(body, size=None)
    assert tfprune.trace(model).group("wide").width == 3
    assert width(pruned(model, {"wide": [1], "stem": [0, 1]}), "wide") == 8


@needs_depth_to_space
def test_space_to_depth_and_back():
    model = model_of(lambda x: conv(ops.depth_to_space(ops.space_to_depth(x, 2), 2), 4))
    assert width(pruned(model, {"stem": [0, 1, 6]}), "stem") == 5


def test_a_decoder_whose_kernel_writes_positions_too():
    def body(x):
        x = layers.Dense(36, name="wide")(layers.GlobalAveragePooling2D()(x))
        return conv(layers.UpSampling2D()(layers.Reshape((3, 3, 4))(x)), 4)

    model = model_of(body)
    graph = tfprune.trace(model)
    assert not graph.opaque and graph.group("wide").width == 4
    assert pruned(model, {"wide": [1, 3]}).get_layer("wide").units == 18


# ---------------------------------------------------------------------- reductions

REDUCTIONS = {
    "sum": lambda x: ops.sum(x, axis=-1, keepdims=True),
    "mean": lambda x: ops.mean(x, axis=-1, keepdims=True),
    "max": lambda x: ops.max(x, axis=-1, keepdims=True),
    "min": lambda x: ops.min(x, axis=-1, keepdims=True),
    "prod": lambda x: ops.prod(x + 0.5, axis=-1, keepdims=True),
    "any": lambda x: ops.cast(ops.any(x > 1, axis=-1, keepdims=True), x.dtype),
    "all": lambda x: ops.cast(ops.all(x > -0.5, axis=-1, keepdims=True), x.dtype),
    "count_nonzero": lambda x: ops.cast(ops.expand_dims(ops.count_nonzero(ops.relu(x), axis=-1), -1), x.dtype),
    "logsumexp": lambda x: ops.logsumexp(x, axis=-1, keepdims=True),
    "mean of rows": lambda x: ops.mean(x, axis=(2, -1), keepdims=True),
    "sum of rows": lambda x: ops.sum(x, axis=(2, -1), keepdims=True),
}


def unread(model: keras.Model, channels: list[int]) -> None:
    """Have the head read none of these channels, so that nothing but the reduction does."""
    kernel = numbers(model.get_layer("head").kernel).reshape(36, 8, 3)
    kernel[:, channels] = 0
    model.get_layer("head").kernel.assign(kernel.reshape(288, 3))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[not_on_torch] * (name == "count_nonzero")) for name in REDUCTIONS]
)
def test_constant_channels_leave_a_reduction_over_channels(name):
    """Two channels are 0, and one is 0.7: the number is put together again without them."""
    model = model_of(lambda x: x * ops.sigmoid(REDUCTIONS[name](x)))
    zero_filters(model.get_layer("stem"), [1, 4])
    zero_filters(model.get_layer("stem"), [6], bias=False)
    model.get_layer("stem").bias.assign(np.where(np.arange(8) == 6, 0.7, numbers(model.get_layer("stem").bias)))
    unread(model, [1, 4, 6])
    stripped = tfprune.strip(model, verify=False).model
    assert_same(model, stripped)
    assert width(stripped, "stem") == 5


def test_a_length_keeps_what_is_not_zero():
    model = model_of(lambda x: x * ops.exp(-ops.norm(x, axis=-1, keepdims=True)))
    zero_filters(model.get_layer("stem"), [1, 4])
    zero_filters(model.get_layer("stem"), [6], bias=False)
    unread(model, [6])
    result = tfprune.strip(model, verify=False)
    assert_same(model, result.model)
    assert width(result.model, "stem") == 6
    assert [refusal.channels for refusal in result.refusals] == [(6,)]


def test_spatial_attention():
    """CBAM: a convolution of the mean and the maximum over channels gates every position."""

    def body(x):
        both = [ops.mean(x, axis=-1, keepdims=True), ops.max(x, axis=-1, keepdims=True)]
        return x * conv(ops.concatenate(both, axis=-1), 1, activation="sigmoid")

    stripped = pruned(model_of(body), {"stem": [0, 2, 5]})
    assert width(stripped, "stem") == 5


def test_split_attention():
    """ResNeSt: softmax over branches, which are written by one kernel, and their weighted sum."""

    def body(x):
        x = ops.reshape(conv(x, 12, name="branches"), (-1, 6, 6, 3, 4))
        pooled = ops.mean(ops.sum(x, axis=3), axis=(1, 2))
        gates = ops.reshape(layers.Dense(12)(layers.Dense(5, activation="relu")(pooled)), (-1, 1, 1, 3, 4))
        return ops.sum(x * ops.softmax(gates, axis=3), axis=3)

    model = model_of(body)
    assert tfprune.trace(model).group("branches").width == 4
    assert width(pruned(model, {"branches": [1, 2]}), "branches") == 6


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (lambda x: ops.std(x, axis=-1), "reduces over channels"),
        (lambda x: ops.argmax(x, axis=-1), "reduces over channels"),
        (lambda x: ops.softmax(x), "reads all channels together"),
        (lambda x: ops.sort(x), "reads all channels together"),
        (lambda x: ops.cumsum(x, axis=-1), "reads all channels together"),
        (lambda x: ops.diff(x), "works along an axis that holds channels"),
        (lambda x: ops.image.resize(ops.transpose(x, (0, 3, 1, 2)), (4, 4)), "works along an axis that holds channels"),
        (lambda x: layers.Masking()(x), "reads all channels together"),
    ],
)
def test_what_reads_channels_together_says_so(body, reason):
    model = model_of(lambda x: ops.cast(body(x), "float64"))
    assert reason in tfprune.trace(model).group("stem").reason


@pytest.mark.parametrize("depthwise", [False, True])
def test_a_window_that_slides_over_channels_needs_them_all(depthwise):
    def body(x):
        x = ops.transpose(x, (0, 3, 1, 2))
        return layers.DepthwiseConv2D(3)(x) if depthwise else conv(x, 6)

    model = model_of(body)
    assert tfprune.trace(model).group("stem").width == 1  # all or none
    plan = tfprune.select(model, "l1", ratio=0.5, round_to=1)
    stripped = tfprune.strip(model, plan, verify=False).model
    tfprune.soft_prune(model, plan)
    assert_same(model, stripped)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (lambda x: x[0:1, ...], "a part of the batch"),
        (lambda x: ops.reshape(x[None, ...], (-1, 6, 6, 8)), "before the batch axis"),
        (lambda x: ops.flip(x), "the batch axis included"),
        (lambda x: x - ops.mean(x), "the batch axis included"),
        (lambda x: ops.concatenate([x, x], axis=0), "the batch axis"),
        (lambda x: ops.stack([x, x], axis=0)[0], "the batch axis"),
        (lambda x: ops.roll(x, 1, axis=0), "the batch axis"),
        (lambda x: ops.take(x, ops.argmax(x[0, 0, 0]), axis=-1)[..., None], "computed"),
        (lambda x: ops.pad(x, ((1, 0), (0, 0), (0, 0), (0, 0))), "pads the batch"),
        (lambda x: x + ops.reshape(ops.max(x, axis=(1, 2)), (-1, 8)), "different ranks"),
        (lambda x: ops.average(x, axis=-1, weights=np.arange(8.0)), "weighted"),
    ],
)
def test_what_is_not_followed_says_why(body, reason):
    model = model_of(lambda x: layers.Conv2D(2, 1)(body(x)) if len(body(x).shape) == 4 else body(x))
    assert any(reason in op.reason for op in tfprune.trace(model).opaque)
    plan = tfprune.select(model, "l1", ratio=0.5)
    assert "stem" not in plan.channels


# ---------------------------------------------------------------------- facts


def constant_after(function, value: float) -> float:
    """What is proved of a channel that is `value` before an operation."""
    model = model_of(lambda x: ops.cast(function(x), "float64"), filters=1)
    stem = model.get_layer("stem")
    stem.kernel.assign(np.zeros(stem.kernel.shape))
    stem.bias.assign([value])
    graph = tfprune.trace(model)
    facts = prove(graph, graph.weight)
    return float(facts.constant[graph.calls[3].outputs[0]].ravel()[0])


def test_a_constant_next_to_a_step_is_not_known():
    assert constant_after(lambda x: ops.floor(x), 2.5) == 2
    assert np.isnan(constant_after(lambda x: ops.floor(x), 3.0))
    assert constant_after(lambda x: x > 0.25, 0.5) == 1
    assert np.isnan(constant_after(lambda x: x > 0.25, 0.25))
    # 0 is 0, however it is computed.
    assert constant_after(lambda x: ops.sign(x), 0.0) == 0


def test_normalization_follows_what_it_normalizes():
    """Means and variances are settings: given, or adapted to data."""
    generator = np.random.default_rng(0)
    adapted = layers.Normalization()
    model = model_of(lambda x: adapted(layers.Normalization(mean=np.arange(8.0), variance=np.arange(1.0, 9))(x)))
    adapted.adapt(generator.normal(1, 2, (20, 6, 6, 8)))
    stripped = pruned(model, {"stem": [2, 3]})
    assert width(stripped, "stem") == 6


@pytest.mark.parametrize("mode", ["int", "multi_hot"])
def test_an_adapted_vocabulary_goes_along(mode):
    lookup = layers.IntegerLookup(output_mode=mode)
    lookup.adapt(np.array([1, 5, 7, 9, 5, 5]))
    image, numbers_given = keras.Input((6, 6, 3)), keras.Input((4,), dtype="int64")
    x = layers.GlobalMaxPooling2D()(layers.Conv2D(8, 1, name="stem")(image))
    x = layers.Concatenate()([x, ops.cast(lookup(numbers_given), x.dtype)])
    model = shaken(keras.Model([image, numbers_given], layers.Dense(2)(x)))
    plan = tfprune.select(model, "l1", ratio=0.5, round_to=1)
    stripped = tfprune.strip(model, plan, verify=False).model
    tfprune.soft_prune(model, plan)
    arrays = [arrays_for(model)[0], np.array([[1, 5, 7, 9], [2, 3, 9, 1]])]
    np.testing.assert_allclose(outputs(stripped, arrays), outputs(model, arrays), rtol=1e-12)


def test_random_slices_are_what_numpy_takes():
    """One slice after another, with random channels gone: the head reads what numpy would have left."""
    generator = np.random.default_rng(0)
    for _ in range(12):
        cuts = [tuple(sorted(generator.choice(9, 2, replace=False).tolist())) for _ in range(2)]
        order = generator.permutation(8).tolist()

        def body(x, cuts=cuts, order=order):
            x = ops.take(x, order, axis=-1)
            return ops.concatenate([x[..., a:b] for a, b in cuts], axis=-1)

        model = model_of(body)
        taken = np.concatenate([np.array(order)[a:b] for a, b in cuts])
        group = tfprune.trace(model).group("stem")
        gone = np.flatnonzero(generator.random(group.width) < 0.5).tolist()[: group.width - 1]
        stripped = pruned(model, {group.name: gone})
        x = arrays_for(model)
        expected = numbers(model.get_layer("stem").kernel)
        alive = np.flatnonzero(np.abs(expected).sum((0, 1, 2)))
        assert stripped.get_layer("head").kernel.shape[0] == 36 * sum(channel in alive for channel in taken)
        assert outputs(stripped, x)[0].shape == (2, 3)
