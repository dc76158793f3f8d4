"""What `trace` says of a model: groups, widths, writers and readers, counted by hand; and what it refuses."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers, ops
from models import (
    assert_same,
    floats,
    inverted_residual_net,
    mini_net,
    outputs,
    parameters,
    residual_net,
    shaken,
)

import tfprune
from tfprune.errors import PlanError, TfpruneError, TraceError


def widths(graph) -> dict[str, int]:
    return {group.name: group.width for group in graph.groups}


def prunable(graph) -> dict[str, int]:
    return {group.name: group.width for group in graph.groups if group.prunable}


def halved(model):
    """Stripped of half of every group, by l1; the plan's widths follow from the ratio alone."""
    return tfprune.strip(model, tfprune.select(model, "l1", ratio=0.5, round_to=1))


# ---------------------------------------------------------------------- counted by hand


def test_three_convolutions():
    """cnn-pruning's network: keeping 1, 2 and 3 filters leaves 23,617 of 63,122 parameters (its own figures)."""
    model = shaken(mini_net())
    graph = tfprune.trace(model)
    assert widths(graph) == {"first": 2, "second": 4, "third": 8, "classes": 10}
    assert prunable(graph) == {"first": 2, "second": 4, "third": 8}
    assert graph.group("third").readers == ("classes",)
    assert graph.group("classes").reason == "it is an output of the model"
    before = tfprune.cost(model)
    assert before.parameters == 63_122
    assert before.macs == 28 * 28 * 9 * (1 * 2 + 2 * 4 + 4 * 8) + 28 * 28 * 8 * 10
    plan = tfprune.PruningPlan.from_groups(graph, {"first": [1], "second": [0, 3], "third": [0, 1, 2, 5, 7]})
    after = tfprune.strip(model, plan).cost_after
    assert after.parameters == 23_617
    assert after.macs == 28 * 28 * 9 * (1 * 1 + 1 * 2 + 2 * 3) + 28 * 28 * 3 * 10
    assert after.bytes == 4 * 23_617


def test_residual_stage():
    model = shaken(residual_net())
    graph = tfprune.trace(model)
    assert widths(graph) == {"stem": 8, "a1": 8, "b1": 12, "b0": 12, "head": 3} or widths(graph)["b2"] == 12
    stem = graph.group("stem")
    assert set(stem.writers) == {"stem", "a2"} and set(stem.readers) == {"a1", "b1", "b0"}
    assert set(stem.carriers) == {"stem_bn", "a2_bn"}
    assert graph.group("b0") is graph.group("b2")
    result = halved(model)
    weights = 9 * 3 * 4 + 9 * 4 * 4 + 9 * 4 * 4 + 9 * 4 * 6 + 9 * 6 * 6 + 4 * 6 + (6 * 3 + 3)
    statistics = 4 * (4 + 4 + 4 + 6 + 6 + 6)
    assert result.cost_after.parameters == weights + statistics
    macs = 64 * 9 * (3 * 4 + 4 * 4 + 4 * 4) + 16 * (9 * 4 * 6 + 9 * 6 * 6 + 4 * 6) + 6 * 3
    assert result.cost_after.macs == macs


def test_inverted_residual_with_squeeze_and_excitation():
    model = shaken(inverted_residual_net())
    graph = tfprune.trace(model)
    assert prunable(graph) == {"stem": 8, "expand": 24, "squeeze": 12, "last": 16}
    assert set(graph.group("stem").writers) == {"stem", "project"}
    expand = graph.group("expand")
    assert set(expand.writers) == {"expand", "excite"} and set(expand.readers) == {"squeeze", "project"}
    assert set(expand.carriers) == {"expand_bn", "depthwise", "depthwise_bn"}
    result = halved(model)
    kernels = 9 * 3 * 4 + 4 * 12 + 9 * 12 + (12 * 6 + 6) + (6 * 12 + 12) + 12 * 4 + 4 * 8 + (8 * 3 + 3)
    assert result.cost_after.parameters == kernels + 4 * (4 + 12 + 12 + 4 + 8)
    macs = 64 * (9 * 3 * 4 + 4 * 12 + 9 * 12 + 12 * 4 + 4 * 8) + 12 * 6 + 6 * 12 + 8 * 3
    assert result.cost_after.macs == macs


def test_concatenation_keeps_its_writers_apart():
    """A dense block: each layer's channels go where the concatenation puts them."""
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 1, name="a")(inputs)
    y = layers.Conv2D(6, 3, padding="same", name="b")(x)
    z = layers.Concatenate()([x, y])
    z = layers.BatchNormalization(name="bn")(z)
    model = keras.Model(inputs, layers.Conv2D(2, 1, name="c")(z))
    graph = tfprune.trace(model)
    assert widths(graph) == {"a": 4, "b": 6, "c": 2}
    assert set(graph.group("a").readers) == {"b", "c"} and graph.group("b").readers == ("c",)
    assert graph.group("a").carriers == ("bn",) == graph.group("b").carriers
    assert len(next(m for m in graph.group("b").members if m.layer == "c").positions) == 6


def test_grouped_convolution_is_chosen_evenly():
    """Four groups of three inputs and two outputs: three units of inputs, two of outputs."""
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(12, 1, name="a")(inputs)
    x = layers.Conv2D(8, 3, groups=4, name="b")(x)
    model = shaken(keras.Model(inputs, layers.Dense(2, name="c")(layers.Flatten()(x))))
    graph = tfprune.trace(model)
    assert widths(graph) == {"a": 3, "b": 2, "c": 2}
    result = tfprune.strip(model, tfprune.select(graph, "l2", ratio=0.5, round_to=1))
    # One of three units goes (half, rounded down), one of two: 8 inputs and 4 outputs in four groups are left.
    assert result.model.get_layer("b").groups == 4
    assert tuple(result.model.get_layer("b").kernel.shape) == (3, 3, 2, 4)
    assert result.cost_after.macs == 36 * 3 * 8 + 16 * 9 * 2 * 4 + 16 * 4 * 2
    assert_same(soft_pruned(model, plan_of=lambda m: tfprune.select(m, "l2", ratio=0.5, round_to=1)), result.model)


def soft_pruned(model, plan_of):
    tfprune.soft_prune(model, plan_of(model))
    return model


def test_flatten_gives_each_channel_all_its_positions():
    graph = tfprune.trace(mini_net())
    member = next(m for m in graph.group("third").members if m.role == "read")
    assert len(member.positions) == 28 * 28 * 8
    assert np.bincount(member.channels).tolist() == [28 * 28] * 8
    # Keras flattens row by row: channel c stands at every 8th row of the kernel.
    np.testing.assert_array_equal(member.positions[member.channels == 3], np.arange(3, 28 * 28 * 8, 8))


def test_the_cost_of_every_kind_of_kernel():
    """MACs by the textbook: positions x kernel entries; a transposed kernel is applied at every input position."""
    inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(6, 3, strides=2, padding="same", groups=2, name="grouped")(inputs)
    x = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="depthwise")(x)
    x = layers.SeparableConv2D(5, 3, padding="valid", name="separable")(x)
    x = layers.Conv2DTranspose(7, 2, strides=2, name="transposed")(x)
    x = layers.Dense(3, name="dense")(x)
    rows = {row.layer: row for row in tfprune.cost(keras.Model(inputs, x)).layers}
    assert (rows["grouped"].macs, rows["grouped"].parameters) == (16 * 9 * 2 * 6, 9 * 2 * 6 + 6)
    assert (rows["depthwise"].macs, rows["depthwise"].parameters) == (16 * 9 * 12, 9 * 12 + 12)
    assert (rows["separable"].macs, rows["separable"].parameters) == (4 * (9 * 12 + 12 * 5), 9 * 12 + 12 * 5 + 5)
    assert (rows["transposed"].macs, rows["transposed"].parameters) == (4 * 4 * 7 * 5, 4 * 7 * 5 + 7)
    assert (rows["dense"].macs, rows["dense"].parameters) == (16 * 7 * 3, 7 * 3 + 3)


def test_parameters_agree_with_keras():
    for model in (mini_net(), residual_net(), inverted_residual_net()):
        cost = tfprune.cost(model)
        assert cost.parameters == model.count_params() == sum(row.parameters for row in cost.layers)
        assert f"{cost.parameters:,}" in str(cost)


# ---------------------------------------------------------------------- the forms a model comes in


def body(x):
    x = layers.Conv2D(8, 3, padding="same", name="one")(x)
    return layers.Conv2D(6, 3, padding="same", activation="relu", name="two")(x)


def test_sequential_and_functional_are_the_same():
    inputs = keras.Input((6, 6, 3))
    functional = keras.Model(inputs, layers.Dense(2, name="head")(layers.Flatten()(body(inputs))))
    sequential = keras.Sequential(
        [keras.Input((6, 6, 3)), *(type(x).from_config(x.get_config()) for x in functional.layers[1:])]
    )
    assert widths(tfprune.trace(sequential)) == widths(tfprune.trace(functional)) == {"one": 8, "two": 6, "head": 2}
    result = halved(shaken(sequential))
    assert isinstance(result.model, keras.Sequential)
    assert result.model.get_layer("one").filters == 4


def nested_net(calls: int):
    inner_input = keras.Input((6, 6, 4))
    x = layers.Conv2D(8, 1, activation="relu", name="inner_one")(inner_input)
    inner = keras.Model(inner_input, layers.Conv2D(4, 1, name="inner_two")(x), name="inner")
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, padding="same", name="stem")(inputs)
    for _ in range(calls):
        x = inner(x)
    return shaken(keras.Model(inputs, layers.Dense(2, name="head")(layers.GlobalAveragePooling2D()(x))))


def test_a_nested_model_called_once():
    graph = tfprune.trace(nested_net(1))
    assert widths(graph) == {"stem": 4, "inner/inner_one": 8, "inner/inner_two": 4, "head": 2}
    assert graph.group("stem").readers == ("inner/inner_one",)
    result = halved(nested_net(1))
    assert isinstance(result.model.get_layer("inner"), keras.Model)
    assert result.model.get_layer("inner").get_layer("inner_one").filters == 4


def test_a_nested_model_called_twice_ties_what_its_calls_share():
    model = nested_net(2)
    graph = tfprune.trace(model)
    # Its input channels are the stem's in one call and its own outputs in the other.
    assert widths(graph) == {"stem": 4, "inner/inner_one": 8, "head": 2}
    assert set(graph.group("stem").writers) == {"stem", "inner/inner_two"}
    result = halved(model)
    assert parameters(result.model) == 9 * 3 * 2 + 2 + (2 * 4 + 4) + (4 * 2 + 2) + (2 * 2 + 2)
    assert result.cost_after.macs == 36 * (9 * 3 * 2 + 2 * (2 * 4 + 4 * 2)) + 2 * 2


def test_a_shared_layer_is_one_weight_with_two_readers_of_its_channels():
    a, b = keras.Input((6, 6, 3)), keras.Input((6, 6, 3))
    shared = layers.Conv2D(8, 3, padding="same", name="shared")
    x = layers.Concatenate()([shared(a), shared(b)])
    model = shaken(keras.Model([a, b], layers.Conv2D(2, 1, name="head")(x)))
    graph = tfprune.trace(model)
    assert widths(graph) == {"shared": 8, "head": 2}
    result = halved(model)
    assert tuple(result.model.get_layer("head").kernel.shape) == (1, 1, 8, 2)
    assert result.cost_before.macs == 36 * (2 * 9 * 3 * 8 + 16 * 2)


def test_several_inputs_and_outputs_in_dictionaries():
    inputs = {"image": keras.Input((6, 6, 3), name="image"), "extra": keras.Input((5,), name="extra")}
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, name="conv")(inputs["image"]))
    y = layers.Dense(6, activation="relu", name="dense")(inputs["extra"])
    z = layers.Concatenate()([x, y])
    ends = {"class": layers.Dense(3, name="class")(z), "box": layers.Dense(4, name="box")(z)}
    model = shaken(keras.Model(inputs, ends))
    assert prunable(tfprune.trace(model)) == {"conv": 8, "dense": 6}
    result = halved(model)
    assert set(result.model.output) == {"class", "box"} and set(result.model.input) == {"image", "extra"}
    assert tuple(result.model.get_layer("box").kernel.shape) == (7, 4)


def test_an_unknown_spatial_size():
    inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(8, 3, padding="same", name="conv")(inputs)
    x = layers.BatchNormalization()(x)
    tokens = layers.Dense(4, name="dense")(layers.Reshape((-1, 8))(x))
    pooled = layers.GlobalMaxPooling2D()(x)
    model = shaken(keras.Model(inputs, [tokens, layers.Dense(2, name="head")(pooled)]))
    graph = tfprune.trace(model)
    assert not graph.opaque
    assert prunable(graph) == {"conv": 8}
    result = halved(model)
    assert result.model.input_shape == (None, None, None, 3)
    assert tfprune.cost(model).macs == 8 * 2  # of the rest the size is unknown


def test_flatten_of_an_unknown_size_protects():
    inputs = keras.Input((None, 4))
    x = layers.Conv1D(8, 3, name="conv")(inputs)
    x = layers.Flatten()(ops.max(layers.Permute((2, 1))(x), axis=2, keepdims=True))
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    assert prunable(tfprune.trace(model)) == {"conv": 8}


def test_channels_first():
    """Traced and rebuilt; TensorFlow has no such convolutions on a CPU, so the groups are what can be compared."""

    def net(data_format):
        shape = (3, 8, 8) if data_format == "channels_first" else (8, 8, 3)
        axis = 1 if data_format == "channels_first" else -1
        inputs = keras.Input(shape)
        x = layers.Conv2D(8, 3, padding="same", data_format=data_format, name="a")(inputs)
        x = layers.BatchNormalization(axis=axis, name="bn")(x)
        x = layers.DepthwiseConv2D(3, data_format=data_format, name="depthwise")(x)
        y = layers.Conv2D(6, 1, data_format=data_format, name="b")(x)
        x = layers.Concatenate(axis=axis)([x, y])
        x = layers.MaxPooling2D(2, data_format=data_format)(layers.ZeroPadding2D(1, data_format=data_format)(x))
        x = layers.Flatten(data_format=data_format)(x)
        return keras.Model(inputs, layers.Dense(2, name="head")(x))

    first, last = net("channels_first"), net("channels_last")
    first.set_weights(shaken(last).get_weights())
    graphs = [tfprune.trace(model) for model in (first, last)]
    assert widths(graphs[0]) == widths(graphs[1]) == {"a": 8, "b": 6, "head": 2}
    assert tfprune.cost(first).macs == tfprune.cost(last).macs
    stripped = [
        tfprune.strip(model, tfprune.select(model, "l1", ratio=0.5, round_to=1), verify=False).model
        for model in (first, last)
    ]
    for a, b in zip(stripped[0].get_weights(), stripped[1].get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not graphs[0].opaque


@pytest.mark.parametrize(
    "merge",
    [
        lambda x, y: x + y,
        lambda x, y: x - y,
        lambda x, y: x * y,
        lambda x, y: x / (ops.absolute(y) + 1.0),
        lambda x, y: ops.add(x, y),
        lambda x, y: ops.add(x1=x, x2=y),
        lambda x, y: ops.maximum(x, y) + x,
        lambda x, y: layers.Add()([x, y, x]),
        lambda x, y: x + x,
        lambda x, y: 2.0 * x + 1.0,
        lambda x, y: 1.0 - x,
        lambda x, y: 1.0 / (ops.absolute(x) + 1.0),
        lambda x, y: x**2,
        lambda x, y: -x,
        lambda x, y: ops.multiply(np.arange(1.0, 9.0), x),
        lambda x, y: x + np.arange(8.0).reshape(1, 1, 8),
        lambda x, y: x - np.arange(8.0).reshape(1, 1, 1, 8),
        lambda x, y: ops.subtract(np.arange(8.0), x),
        lambda x, y: x * np.arange(36.0).reshape(6, 6, 1) / 36,
        lambda x, y: x + np.arange(288.0).reshape(6, 6, 8) / 288,
        lambda x, y: x * np.full((1, 1, 1, 1), 0.5),
        lambda x, y: layers.Concatenate()([x, y, x]),
        lambda x, y: ops.concatenate([x, x], axis=1),
        lambda x, y: x * ops.mean(y, axis=(1, 2), keepdims=True),
        lambda x, y: x * layers.Conv2D(1, 1, activation="sigmoid")(y),
        lambda x, y: x * layers.Reshape((1, 1, 8))(layers.Dense(8)(layers.GlobalAveragePooling2D()(y))),
    ],
)
def test_merges_and_operators(merge):
    with floats("float64"):
        inputs = keras.Input((6, 6, 3))
        x = layers.Conv2D(8, 3, padding="same", activation="sigmoid", name="x")(inputs)
        y = layers.Conv2D(8, 3, padding="same", name="y")(inputs)
        model = shaken(keras.Model(inputs, layers.Conv2D(3, 1, name="head")(merge(x, y))))
    graph = tfprune.trace(model)
    assert not graph.opaque and graph.group("x").prunable
    plan = tfprune.select(graph, "l1", ratio=0.5, round_to=1)
    stripped = tfprune.strip(model, plan, verify=False).model
    tfprune.soft_prune(model, plan)
    assert_same(model, stripped)
    assert_same(model, tfprune.strip(model, verify=False).model)
    assert stripped.get_layer("x").filters == 4


# ---------------------------------------------------------------------- tracing looks and touches nothing


def test_tracing_reads_no_weight_and_leaves_the_graph_alone(monkeypatch):
    model = residual_net()
    nodes = [(len(layer._inbound_nodes), len(layer._outbound_nodes)) for layer in model._operations]

    def read(*_, **__):
        raise AssertionError("a weight was read")

    for name in ("__array__", "numpy"):
        monkeypatch.setattr(type(model.weights[0]), name, read)
    tfprune.trace(model).groups  # noqa: B018
    assert nodes == [(len(layer._inbound_nodes), len(layer._outbound_nodes)) for layer in model._operations]


def test_a_printed_graph_lists_its_groups():
    text = str(tfprune.trace(residual_net()))
    for word in (
        "residual_net: 5 channel groups, 4 prunable",
        "stem, a2",
        "a1, b1, b0",
        "it is an output of the model",
    ):
        assert word in text


def test_the_same_model_traces_to_the_same_groups():
    a, b = (tfprune.trace(inverted_residual_net()) for _ in range(2))
    assert str(a) == str(b)


# ---------------------------------------------------------------------- what is not known is protected


class Doubled(keras.layers.Layer):
    def call(self, x):
        return 2 * x


class Quiet(layers.Conv2D):
    """A convolution by another name: the rule holds."""


class Loud(layers.Conv2D):
    def call(self, x):
        return 2 * super().call(x)


def around(layer):
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, padding="same", name="before")(inputs)
    x = layer(x)
    x = layers.Conv2D(8, 3, padding="same", name="after")(x)
    return shaken(keras.Model(inputs, layers.Conv2D(2, 1, name="head")(x)))


class ByValue(keras.layers.Layer):
    def call(self, x):
        return 2 * x if float(ops.sum(x)) > 0 else x

    def compute_output_shape(self, shape):
        return shape


@pytest.mark.parametrize("layer", [Loud(8, 1, name="odd"), ByValue(name="odd")])
def test_unknown_layers_are_opaque(layer):
    model = around(layer)
    graph = tfprune.trace(model)
    assert [op.layer for op in graph.opaque] == ["odd"]
    assert prunable(graph) == {"after": 8}
    assert "odd" in graph.group("before").reason and type(layer).__name__ in graph.group("before").reason
    plan = tfprune.select(graph, "l1", ratio=0.5)
    assert plan.refusals[0].layer == "before" and "odd" in plan.refusals[0].reason
    assert tfprune.strip(model, plan).verification.equal
    assert "odd" in str(graph)


def test_a_subclass_without_a_call_of_its_own_keeps_the_rule():
    assert not tfprune.trace(around(Quiet(8, 1))).opaque


def test_a_rule_of_ones_own():
    class Tripled(keras.layers.Layer):
        def call(self, x):
            return 3 * x

    @tfprune.register_rule(Tripled)
    def tripled(layer, lower):
        return lower.map(lower.inputs[0], lambda constant: 3 * constant)

    assert prunable(tfprune.trace(around(Tripled()))) == {"before": 8, "after": 8}


def test_an_activation_nobody_knows_protects():
    model = around(layers.Activation(flipped, name="odd"))
    assert prunable(tfprune.trace(model)) == {"after": 8}
    assert_same(model, tfprune.strip(model, verify=False).model)


def flipped(x):
    return ops.flip(x, axis=-1)


def test_operations_over_the_batch_or_with_other_ranks_protect():
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, padding="same", name="before")(inputs)
    y = x + layers.GlobalAveragePooling2D()(x)
    graph = tfprune.trace(keras.Model(inputs, layers.Conv2D(2, 1)(y)))
    assert len(graph.opaque) == 1 and "ranks" in graph.group("before").reason


def test_bad_input():
    class Subclassed(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(TraceError, match=r"'model.keras' does not exist.*onnx file or a loaded keras.Model"):
        tfprune.trace("model.keras")
    with pytest.raises(TraceError, match="Subclassed.*call it once on data"):
        tfprune.trace(Subclassed())
    with pytest.raises(TraceError, match=r"not built.*keras\.Input"):
        tfprune.trace(keras.Sequential([layers.Conv2D(2, 3)]))
    for call in (tfprune.cost, tfprune.strip, lambda m: tfprune.select(m, "l1", ratio=0.5)):
        with pytest.raises(TfpruneError):
            call(Subclassed())
    with pytest.raises(KeyError):
        tfprune.trace(mini_net()).group("nobody")
    assert issubclass(TraceError, TfpruneError) and issubclass(PlanError, TfpruneError)


def test_outputs_of_the_helper_models_vary():
    for model in (mini_net(), residual_net(), inverted_residual_net()):
        assert min(np.std(y) for y in outputs(shaken(model))) > 0.05
