"""Random models with random zeros strip to equal models, or refuse with a reason; and what that has found so far.

`benchmarks/fuzz.py` runs the same check for as long as one likes.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
from fuzzing import check
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import layers, ops
from models import assert_same, floats, outputs, parameters, shaken, without_xla, zero_filters, zero_layer
from random_models import Builder, flat_layers

import tfprune


@pytest.fixture(autouse=True)
def float64():
    with floats("float64"), without_xla():
        yield


settings.register_profile(
    "few", max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@settings(settings.get_profile("few"))
@given(st.data())
def test_random_models_strip_to_equal_ones(data):
    builder = Builder(lambda n: data.draw(st.integers(0, n - 1)))
    try:
        check(builder, steps=4)
    except Exception:
        print("; ".join(builder.steps))
        raise


@pytest.mark.parametrize("number", range(12))
def test_models_from_numbers(number):
    """Deeper than what Hypothesis likes to draw, the same ones each time."""
    generator = np.random.default_rng(number)
    check(Builder(lambda n: int(generator.integers(n))), steps=8)


# ---------------------------------------------------------------------- found by fuzzing, each by its cause


def model_of(body, head=True):
    inputs = keras.Input((6, 6, 3))
    x = body(inputs)
    return shaken(keras.Model(inputs, layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(x)) if head else x))


def strips(model, spread=1e-3):
    stripped = tfprune.strip(model, verify=False).model
    assert_same(model, stripped, spread=spread)
    return stripped


def test_an_input_that_is_constant_throughout_keeps_one_channel():
    """The walk asked for labels that were there already, and gave up."""
    model = model_of(lambda x: layers.Conv2D(4, 1)(layers.Conv2D(8, 1, activation="sigmoid", name="a")(x)), False)
    zero_layer(model.get_layer("a"))
    stripped = tfprune.strip(model, verify=False).model
    np.testing.assert_allclose(outputs(stripped)[0], outputs(model)[0], rtol=1e-12)
    assert stripped.get_layer("a").filters == 1


def test_flatten_of_nothing():
    """Positions along several axes of an empty value could not be counted."""

    def body(x):
        flat = layers.Flatten()(layers.Conv2D(8, 1, name="a")(x))
        return layers.Concatenate()([layers.Dense(2)(layers.GlobalMaxPooling2D()(x)), layers.Dense(3, name="d")(flat)])

    model = model_of(body, False)
    zero_layer(model.get_layer("a"))
    zero_layer(model.get_layer("d"))
    strips(model)


@pytest.mark.parametrize("left", [False, True])
def test_arrays_in_sums_and_products(left):
    """Replaced by a Rescaling for nothing, twice over where it was folded too; `array + x` failed."""
    vector = np.linspace(0.5, 1.5, 8)
    pair = (lambda f, x: f(vector, x)) if left else (lambda f, x: f(x, vector))
    model = model_of(lambda x: layers.Conv2D(4, 1)(pair(ops.multiply, pair(ops.add, layers.Conv2D(8, 1, name="a")(x)))))
    zero_filters(model.get_layer("a"), [1])
    assert parameters(strips(model)) <= parameters(model)


def test_a_vector_that_becomes_a_layer_keeps_its_precision():
    """Rescaling passes lists through float32: 3e-8 in a float64 model."""
    model = model_of(lambda x: layers.Add()([x, layers.Conv2D(3, 1, activation="sigmoid", name="a")(x)]), False)
    model.get_layer("a").kernel.assign(np.zeros((1, 1, 3, 3)))
    stripped = strips(model)
    assert any(isinstance(layer, layers.Rescaling) for layer in stripped.layers)


def test_a_rescaling_of_lists_is_what_it_computes():
    """Its constants were folded in float64 where the layer itself goes through float32."""
    model = model_of(
        lambda x: layers.Conv2D(4, 1)(layers.Rescaling([1 / 3] * 8, offset=0.1)(layers.Conv2D(8, 1, name="a")(x)))
    )
    zero_filters(model.get_layer("a"), [0, 1], bias=False)
    assert strips(model).get_layer("a").filters == 6


def test_a_number_that_is_an_array():
    """An array of shape (1, 1, 1) beside a tensor gave constants of three axes."""
    model = model_of(lambda x: layers.Conv2D(4, 1)(ops.add(np.full((1, 1, 1), 0.3), layers.Conv2D(8, 1, name="a")(x))))
    zero_filters(model.get_layer("a"), [0, 1])
    assert strips(model).get_layer("a").filters == 6


@pytest.mark.parametrize("channels", [1, 4])
def test_a_gate_that_is_gone_before_what_it_gates(channels):
    """(1, 1, 1) and (1, 1, 0) broadcast to nothing: a product that lost its gate seemed to have lost itself."""

    def body(x):
        x = layers.Conv2D(channels, 1, name="a")(x)
        return layers.Conv2D(2, 3, padding="same")(
            layers.Multiply()([x, layers.Conv2D(1, 3, padding="same", activation="sigmoid", name="gate")(x)])
        )

    model = model_of(body, False)
    zero_layer(model.get_layer("a"))
    assert np.abs(outputs(model)[0] - outputs(tfprune.strip(model, verify=False).model)[0]).max() <= 1e-12


def test_an_array_of_which_nothing_is_left():
    """Its other axes were counted as empty too, and could not be squeezed."""
    model = model_of(lambda x: layers.Concatenate()([layers.GlobalMaxPooling2D()(x), layers.GlobalMaxPooling2D()(
        layers.Conv2D(8, 1, name="a")(x) + np.zeros(8))]), False)  # fmt: skip
    zero_layer(model.get_layer("a"))
    strips(model)


def test_constants_of_a_shared_kernel_are_in_nobodys_bias():
    """A constant that only one call of a shared kernel reads, for a filter that only the other call needs."""

    def body(x):
        a = layers.Conv2D(4, 1, activation="sigmoid", name="a")(x)
        b = layers.Conv2D(4, 1, activation="relu", name="b")(x)
        shared = layers.Conv2D(4, 1, name="shared")
        return layers.Concatenate()(
            [layers.Conv2D(3, 1, name="c")(shared(a)), layers.Conv2D(3, 1, name="d")(shared(b))]
        )

    model = model_of(body)
    zero_filters(model.get_layer("a"), [0])
    zero_filters(model.get_layer("b"), [0])
    zero_filters(model.get_layer("shared"), [1, 2, 3], bias=False)
    zero_filters(model.get_layer("c"), [0], side="read")
    strips(model)


def test_what_was_shared_before_one_of_its_calls_went():
    """A kernel whose other call fed a branch that is gone takes constants like any other."""
    given = keras.Input((6, 6, 4))
    inner = keras.Model(given, layers.Conv2D(4, 1, name="c")(given), name="inner")

    def body(x):
        x = layers.Conv2D(4, 1, activation="sigmoid", name="a")(x)
        dead = layers.Conv2D(4, 1, use_bias=False, name="dead")(inner(x))
        return layers.Add()([inner(x), dead])

    model = model_of(body)
    zero_filters(model.get_layer("a"), [0, 1])
    zero_layer(model.get_layer("dead"))
    assert strips(model).get_layer("a").filters == 2


def test_a_reason_that_begins_at_an_array():
    """An array of many numbers is written by nobody who could be asked for a padding."""
    grid = np.arange(288.0).reshape(6, 6, 8) / 288
    model = model_of(lambda x: layers.Conv2D(4, 1)(ops.add(grid, layers.Conv2D(8, 1, name="a")(x))))
    zero_filters(model.get_layer("a"), [0, 1])
    result = tfprune.strip(model)
    assert [(refusal.layer, refusal.channels) for refusal in result.refusals] == [("a", (0, 1))]


def test_a_product_that_goes_takes_the_mask_with_it():
    """An operation drops masks: what stands in its place must not let the mask of the other side through."""
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(5, 8, mask_zero=True)(inputs)
    gate = layers.Dense(8, name="gate")(x)
    x = layers.Dense(8)(x) * ops.sigmoid(gate)
    model = shaken(keras.Model(inputs, layers.Dense(3)(layers.MultiHeadAttention(2, 4, dropout=0.1)(x, x))))
    zero_layer(model.get_layer("gate"))
    result = tfprune.strip(model, verify=False)
    assert "gate" in result.removed_layers
    assert_same(model, result.model)


def test_a_sum_that_carries_a_mask_stays():
    """With one side gone, another mask would reach the layer behind it."""
    inputs, others = (keras.Input((6,), dtype="int32") for _ in range(2))
    x, y = (layers.Embedding(5, 8, mask_zero=True, name=name)(ids) for name, ids in (("x", inputs), ("y", others)))
    x = layers.Add()([layers.Dense(8)(x), layers.Dense(8, name="zero")(y)])
    # Recurrent layers are given their masks as tensors of the graph; attention looks for them itself.
    x = layers.MultiHeadAttention(2, 4, dropout=0.1)(x, x)
    model = shaken(keras.Model([inputs, others], layers.Dense(3)(x)))
    zero_layer(model.get_layer("zero"))
    stripped = tfprune.strip(model, verify=False).model
    ids = [np.array([[1, 2, 0, 3, 0, 0]]), np.array([[1, 1, 2, 2, 3, 3]])]
    np.testing.assert_allclose(outputs(stripped, ids)[0], outputs(model, ids)[0], rtol=1e-12)


def test_a_kernel_over_positions_that_keras_does_not_count():
    """Attention on an input of unknown length: the kernel behind it knows how many positions there are."""
    inputs = keras.Input((None, 3))
    x = layers.Permute((2, 1))(layers.Dense(1)(inputs))
    kernel = layers.Dense(4, name="positions")
    kernel.build((None, 1, 5))
    model = shaken(keras.Model(inputs, layers.Dense(2)(kernel(x))))
    slots = tfprune.trace(model).labels.slots
    (read,) = (slot for slot in slots.values() if slot.weight.key == "positions/kernel" and slot.role == "read")
    assert read.labels.size == 5


def test_an_uneven_split_gets_back_as_few_as_it_needs():
    """All channels came back where one made the groups of a shuffle even."""

    def body(x):
        x = layers.Reshape((6, 6, 4, 2))(layers.Conv2D(8, 1, name="a")(x))
        return layers.Conv2D(4, 1)(layers.Reshape((6, 6, 8))(layers.Permute((1, 2, 4, 3))(x)))

    model = model_of(body)
    zero_filters(model.get_layer("a"), [0, 2, 3, 5, 6])
    result = tfprune.strip(model, verify=False)
    assert_same(model, result.model)
    assert result.model.get_layer("a").filters == 4
    assert [(refusal.layer, refusal.channels) for refusal in result.refusals] == [("a", (2,))]


def test_what_is_constant_behind_a_normalization_reads_nobody():
    """A channel that is 0 comes out as 0 whatever the mean of squares is: the others seemed to be read by it."""
    model = model_of(
        lambda x: layers.Conv2D(2, 1)(layers.RMSNormalization(name="n")(layers.Conv2D(6, 1, name="a")(x))), False
    )
    zero_filters(model.get_layer("a"), [0])
    model.get_layer("n").scale.assign([0.5, 0, 0, 0, 0, 0])
    stripped = tfprune.strip(model, verify=False).model
    np.testing.assert_allclose(outputs(stripped)[0], outputs(model)[0], rtol=1e-12)
    assert stripped.get_layer("a").filters == 1


def constants_by_position(body, width):
    """Filters of zeros whose biases become another constant at each of four positions."""

    model = model_of(lambda x: body(layers.Reshape((4, 3))(layers.Conv2D(12, 6, name="a")(x))), False)
    zero_filters(model.get_layer("a"), [1, 4, 7, 10], bias=False)
    stripped = tfprune.strip(model, verify=False).model
    assert_same(model, stripped)
    assert stripped.get_layer("a").filters == width


def test_a_constant_that_differs_between_positions_is_no_bias():
    """It vanished: it is not one number that the bias could take, and counted as foldable."""
    constants_by_position(layers.Dense(3), width=12)


def test_a_constant_that_differs_between_steps_is_no_bias_of_a_recurrent_layer():
    constants_by_position(lambda x: layers.GRU(3, reset_after=False)(x), width=12)


def test_a_nested_model_of_which_nothing_is_left():
    """It returned its input as it was, which Keras then took for made by itself: rebuilding never ended."""
    inputs, given = keras.Input((6, 6, 3)), keras.Input((None, None, 8))
    first = keras.Model(given, layers.Conv2D(8, 1)(given), name="first")
    inner = keras.Model(given, given + layers.Conv2D(8, 1, name="branch")(given), name="inner")
    # What comes out of the first has sizes that are known in the smaller model alone.
    x = layers.Conv2D(4, 1)(inner(first(layers.Conv2D(8, 1)(inputs))))
    model = shaken(keras.Model(inputs, x))
    zero_layer(inner.get_layer("branch"))
    assert "branch" not in {layer.name for layer in flat_layers(strips(model))}


def test_channels_that_become_pixels_in_another_order():
    """What was left of a shuffle came to other pixels than before, and a convolution of pixels did not look."""

    def body(x):
        x = layers.Reshape((6, 6, 4, 3))(layers.Conv2D(12, 1, name="a")(x))
        x = layers.Reshape((6, 6, 12))(layers.Permute((1, 2, 4, 3))(x))
        x = ops.transpose(ops.reshape(x, (-1, 6, 6, 2, 2, 3)), (0, 1, 3, 2, 4, 5))
        return layers.Conv2D(2, 3, padding="same", name="pixels")(ops.reshape(x, (-1, 12, 12, 3)))

    model = model_of(body, False)
    zero_filters(model.get_layer("pixels"), [0, 1], side="read")
    strips(model)


def test_a_normalization_reads_what_it_makes_constant():
    """A gate of 0 became a scale of 1: what the normalization behind it made a constant counted as read by nobody."""

    def body(x):
        x = layers.Conv2D(4, 1, name="a")(x)
        gate = layers.Dense(4, activation="relu", name="gate")(layers.GlobalMaxPooling2D()(x))
        x = layers.Multiply()([x, layers.Reshape((1, 1, 4))(gate)])
        return layers.Flatten()(layers.GroupNormalization(-1)(x))

    inputs = keras.Input((6, 6, 3))
    model = shaken(keras.Model(inputs, layers.Dense(3)(body(inputs))))
    zero_filters(model.get_layer("gate"), range(4), bias=False)
    model.get_layer("gate").bias.assign([-1.0, 0.5, 0.7, 0.9])
    strips(model)


def test_of_two_zeros_that_are_multiplied_one_stays():
    """Each counted as read by nobody, because the other is 0; made into something else, both were."""
    inputs = keras.Input((6, 6, 3))

    def gated(name):
        x = layers.Conv2D(4, 1)(inputs)
        gate = layers.Dense(4, activation="relu", name=name)(layers.GlobalMaxPooling2D()(x))
        return layers.Multiply()([x, layers.Reshape((1, 1, 4))(gate)])

    model = shaken(keras.Model(inputs, layers.Multiply()([gated("first"), gated("second")])))
    for name in ("first", "second"):
        zero_filters(model.get_layer(name), range(4), bias=False)
        model.get_layer(name).bias.assign([-1.0, 0.5, 0.7, 0.9])
    strips(model)
