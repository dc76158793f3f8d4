"""Recurrent layers and layers around layers: which units are 0 at every step, who reads them, what is left."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers
from models import arrays_for, floats, numbers, outputs, parameters, shaken, zero_filters

import tfprune
from tfprune.channels.removal import droppable
from tfprune.monitor import failures

GATES = {"LSTM": (4, 2), "GRU": (3, 2), "SimpleRNN": (1, 0), "ConvLSTM2D": (4, 2)}
KINDS = ["LSTM", "GRU", "GRU reset before", "SimpleRNN"]


@pytest.fixture(autouse=True)
def float64():
    with floats("float64"):
        yield


def recurrent(kind: str, units: int, **settings) -> keras.layers.Layer:
    if kind == "GRU reset before":
        return layers.GRU(units, reset_after=False, **settings)
    return getattr(layers, kind)(units, **settings)


def chain(*body, shape=(5, 3)) -> keras.Model:
    return shaken(keras.Sequential([keras.Input(shape), *body, layers.Dense(3, name="head")]))


def assert_equal(model, other, arrays=None) -> None:
    arrays = arrays_for(model) if arrays is None else arrays
    for a, b in zip(outputs(model, arrays), outputs(other, arrays), strict=True):
        assert a.shape == b.shape
        assert a.std() > 1e-3, "the outputs hardly vary: the test shows nothing"
        assert np.abs(a - b).max() <= 1e-12 * np.abs(a).max()


def stripped(model, arrays=None):
    """Strip by weights alone: equal, and nothing is left to remove."""
    result = tfprune.strip(model)
    assert_equal(model, result.model, arrays)
    again = tfprune.strip(result.model)
    assert not again.plan and parameters(again.model) == parameters(result.model)
    return result


def halved(model, arrays=None):
    """Half of every group, by plan and by the zeros of soft pruning: the same model, equal to the soft-pruned one."""
    graph = tfprune.trace(model)
    plan = tfprune.select(graph, "l1", ratio=0.5, round_to=1)
    by_plan = tfprune.strip(model, plan)
    tfprune.soft_prune(model, plan)
    by_weights = tfprune.strip(model)
    for result in (by_plan, by_weights):
        assert_equal(model, result.model, arrays)
        assert result.cost_after.parameters == parameters(result.model)
    assert parameters(by_plan.model) == parameters(by_weights.model)
    for group in graph.groups:
        if group.prunable:
            left = by_plan.model.get_layer(group.name.partition("/")[0])
            assert len(plan.channels[group.name]) == group.width // 2
            assert parameters_of(left) < parameters_of(model.get_layer(left.name))
    return by_plan


def parameters_of(layer) -> int:
    return sum(int(np.prod(variable.shape)) for variable in layer.weights)


def cell_of(layer):
    return getattr(layer, "cell", layer)


def gates_of(layer) -> tuple[int, int]:
    return GATES[type(layer).__name__]


def edit(variable, gates: int, change) -> None:
    """Change a kernel or bias of a cell in place, seen as (..., gates, units)."""
    array = numbers(variable)
    split = array.reshape(*array.shape[:-1], gates, -1)
    change(split)
    variable.assign(split.reshape(array.shape))


def zero_candidate(layer, units, *, bias=True, recurrent=True) -> None:
    """Zero what makes the candidate state of some units, and nothing of the other gates."""
    gates, candidate = gates_of(layer)
    cell = cell_of(layer)

    def change(split):
        split[..., candidate, units] = 0

    edit(cell.kernel, gates, change)
    if recurrent:
        edit(cell.recurrent_kernel, gates, change)
    if bias and cell.use_bias:
        edit(cell.bias, gates, change)


# ---------------------------------------------------------------------- every layer, half of its units

SEQUENCE = {"return_sequences": True}
BODIES = {
    "LSTM": ((5, 3), lambda: [layers.LSTM(8, **SEQUENCE), layers.LSTM(6)]),
    "GRU": ((5, 3), lambda: [layers.GRU(8, **SEQUENCE), layers.GRU(6)]),
    "GRU, reset before": ((5, 3), lambda: [layers.GRU(8, reset_after=False, **SEQUENCE), layers.GRU(6)]),
    "SimpleRNN": ((5, 3), lambda: [layers.SimpleRNN(8, **SEQUENCE), layers.SimpleRNN(6)]),
    "no bias": ((5, 3), lambda: [layers.GRU(8, use_bias=False, **SEQUENCE), layers.LSTM(6, use_bias=False)]),
    "backwards": ((5, 3), lambda: [layers.LSTM(8, go_backwards=True, **SEQUENCE), layers.GRU(6, go_backwards=True)]),
    "unrolled": ((5, 3), lambda: [layers.LSTM(8, unroll=True, **SEQUENCE), layers.GRU(6, unroll=True)]),
    "dropout": (
        (5, 3),
        lambda: [layers.LSTM(8, dropout=0.5, recurrent_dropout=0.5, **SEQUENCE), layers.GRU(6, recurrent_dropout=0.5)],
    ),
    "activations": (
        (5, 3),
        lambda: [
            layers.LSTM(8, activation="relu", recurrent_activation="hard_sigmoid", **SEQUENCE),
            layers.SimpleRNN(6, activation=None),
        ],
    ),
    "sigmoid": (
        (5, 3),
        lambda: [layers.LSTM(8, activation="sigmoid", **SEQUENCE), layers.GRU(6, activation="sigmoid")],
    ),
    "any length": (
        (None, 3),
        lambda: [layers.LSTM(8, **SEQUENCE), layers.TimeDistributed(layers.Dense(6)), layers.GRU(6)],
    ),
    "cells": (
        (5, 3),
        lambda: [
            layers.RNN(layers.LSTMCell(8), **SEQUENCE),
            layers.RNN(layers.GRUCell(6), **SEQUENCE),
            layers.RNN(layers.SimpleRNNCell(6)),
        ],
    ),
    "list of cells": (
        (5, 3),
        lambda: [layers.RNN([layers.GRUCell(8), layers.LSTMCell(6)], **SEQUENCE), layers.Dense(6)],
    ),
    "stacked cells": (
        (5, 3),
        lambda: [layers.RNN(layers.StackedRNNCells([layers.LSTMCell(8), layers.SimpleRNNCell(6)]))],
    ),
    "ConvLSTM1D": (
        (4, 9, 2),
        lambda: [layers.ConvLSTM1D(6, 3, dilation_rate=2, **SEQUENCE), layers.ConvLSTM1D(6, 2), layers.Flatten()],
    ),
    "ConvLSTM2D": (
        (3, 7, 7, 2),
        lambda: [
            layers.ConvLSTM2D(6, 3, strides=2, **SEQUENCE),
            layers.ConvLSTM2D(6, 2, padding="same"),
            layers.Flatten(),
        ],
    ),
    "ConvLSTM3D": ((3, 4, 4, 4, 2), lambda: [layers.ConvLSTM3D(6, 2), layers.Flatten()]),
    "Bidirectional": (
        (5, 3),
        lambda: [layers.Bidirectional(layers.LSTM(8, **SEQUENCE)), layers.Bidirectional(layers.GRU(6))],
    ),
    "Bidirectional, sum": ((5, 3), lambda: [layers.Bidirectional(layers.GRU(8), merge_mode="sum")]),
    "Bidirectional, mul": (
        (5, 3),
        lambda: [layers.Bidirectional(layers.LSTM(8, **SEQUENCE), merge_mode="mul"), layers.LSTM(6)],
    ),
    "Bidirectional, ave": ((5, 3), lambda: [layers.Bidirectional(layers.SimpleRNN(8), merge_mode="ave")]),
    "Bidirectional, two kinds": (
        (5, 3),
        lambda: [layers.Bidirectional(layers.LSTM(8), backward_layer=layers.GRU(8, go_backwards=True))],
    ),
    "Bidirectional, cells": (
        (5, 3),
        lambda: [layers.Bidirectional(layers.RNN([layers.LSTMCell(8), layers.GRUCell(6)]))],
    ),
    "Bidirectional into Conv1D": (
        (5, 3),
        lambda: [layers.Bidirectional(layers.LSTM(8, **SEQUENCE)), layers.Conv1D(6, 3), layers.Flatten()],
    ),
    "TimeDistributed": ((5, 3), lambda: [layers.TimeDistributed(layers.Dense(8, activation="relu")), layers.LSTM(6)]),
    "TimeDistributed, images": (
        (3, 7, 7, 2),
        lambda: [
            layers.TimeDistributed(layers.Conv2D(8, 3)),
            layers.TimeDistributed(layers.BatchNormalization()),
            layers.ConvLSTM2D(6, 3, padding="same", **SEQUENCE),
            layers.TimeDistributed(layers.MaxPooling2D()),
            layers.TimeDistributed(layers.Flatten()),
            layers.LSTM(6),
        ],
    ),
    "TimeDistributed, groups": (
        (3, 7, 7, 2),
        lambda: [
            layers.TimeDistributed(layers.Conv2D(8, 3)),
            layers.TimeDistributed(layers.Conv2D(8, 3, groups=2)),
            layers.TimeDistributed(layers.SeparableConv2D(6, 2)),
            layers.Flatten(),
        ],
    ),
    "SpectralNormalization": (
        (7, 7, 2),
        lambda: [
            layers.SpectralNormalization(layers.Conv2D(8, 3)),
            layers.SpectralNormalization(layers.Conv2DTranspose(8, 3)),
            layers.SpectralNormalization(layers.DepthwiseConv2D(3, depth_multiplier=2)),
            layers.SpectralNormalization(layers.Dense(6)),
            layers.Flatten(),
        ],
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_half_of_every_group(name):
    shape, body = BODIES[name]
    model = chain(*body(), shape=shape)
    assert not tfprune.trace(model).opaque
    halved(model)


def test_steps_are_no_channels():
    """4 steps, 4 channels in front of the positions."""
    model = chain(
        layers.TimeDistributed(layers.Conv2D(4, 3)),
        layers.TimeDistributed(layers.Permute((3, 1, 2))),
        layers.TimeDistributed(layers.Flatten()),
        layers.LSTM(6),
        shape=(4, 7, 7, 2),
    )
    assert halved(model).model.layers[0].layer.filters == 2


def test_sizes_and_macs():
    """Counted by hand: 4 gates, from 3 inputs and 8 units; 4 gates, from 8 inputs and 6 units; 5 steps."""
    model = chain(layers.LSTM(8, name="a", **SEQUENCE), layers.LSTM(6, name="b"))
    cost = tfprune.cost(model)
    rows = {row.layer: (row.parameters, row.macs) for row in cost.layers}
    assert rows["a"] == (4 * 8 * (3 + 8 + 1), 5 * 4 * 8 * (3 + 8))
    assert rows["b"] == (4 * 6 * (8 + 6 + 1), 5 * 4 * 6 * (8 + 6))
    assert cost.parameters == parameters(model)
    after = halved(model)
    rows = {row.layer: (row.parameters, row.macs) for row in after.cost_after.layers}
    assert rows["a"] == (4 * 4 * (3 + 4 + 1), 5 * 4 * 4 * (3 + 4))
    assert rows["b"] == (4 * 3 * (4 + 3 + 1), 5 * 4 * 3 * (4 + 3))


def test_macs_of_steps_and_positions():
    model = chain(
        layers.TimeDistributed(layers.Conv2D(4, 3, name="inner"), name="t"),
        layers.ConvLSTM2D(6, 3, strides=2, name="c"),
        layers.Flatten(),
        shape=(3, 9, 9, 2),
    )
    macs = {row.layer: row.macs for row in tfprune.cost(model).layers}
    assert macs["t"] == 3 * 7 * 7 * 9 * 2 * 4
    assert macs["c"] == 3 * 3 * 3 * 9 * (4 + 6) * 4 * 6


def test_a_group_is_named_after_its_layer():
    model = chain(
        layers.Bidirectional(layers.LSTM(8, **SEQUENCE), name="both"),
        layers.RNN([layers.GRUCell(4, name="x"), layers.GRUCell(6, name="y")], name="stack"),
    )
    groups = {group.name: group for group in tfprune.trace(model).groups}
    assert set(groups) == {"both", "stack/x", "stack/y", "head"}
    assert groups["both"].width == 8  # unit i of one direction with unit i of the other
    assert groups["stack/y"].readers[0].endswith("/y") and groups["stack/y"].readers[1:] == ("head",)
    plan = tfprune.select(model, "l2", ratio=0.5, round_to=1, only="both")
    assert set(plan.channels) == {"both"}
    with_redundancy = tfprune.select(model, "redundancy", ratio=0.5, round_to=1)
    assert len(with_redundancy.channels["stack/x"]) == 2


# ---------------------------------------------------------------------- what stays 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_unit_whose_candidate_is_zero(kind):
    """Whatever the other gates do: they are random here."""
    model = chain(recurrent(kind, 8, name="a", **SEQUENCE), recurrent(kind, 6, name="b"))
    zero_candidate(model.get_layer("a"), [1, 4, 6])
    result = stripped(model)
    assert result.model.get_layer("a").units == 5 and result.model.get_layer("b").units == 6
    left = [0, 2, 3, 5, 7]
    gates = gates_of(model.get_layer("a"))[0]
    before = numbers(model.get_layer("a").cell.recurrent_kernel).reshape(8, gates, 8)
    after = numbers(result.model.get_layer("a").cell.recurrent_kernel).reshape(5, gates, 5)
    assert np.array_equal(after, before[left][:, :, left])


def test_a_convolutional_unit_whose_candidate_is_zero():
    model = chain(
        layers.ConvLSTM2D(8, 3, padding="same", name="a", **SEQUENCE),
        layers.TimeDistributed(layers.Conv2D(4, 3)),
        layers.Flatten(),
        shape=(3, 6, 6, 2),
    )
    zero_candidate(model.get_layer("a"), [0, 7])
    assert stripped(model).model.get_layer("a").filters == 6


@pytest.mark.parametrize("kind", KINDS)
def test_units_that_keep_each_other_at_zero(kind):
    """1 and 2 read each other alone, and 3 reads them: all three are 0. Had one a bias, none would be."""

    def build(bias):
        model = chain(recurrent(kind, 8, name="a"))
        layer = model.get_layer("a")
        gates, candidate = gates_of(layer)
        zero_candidate(layer, [1, 2, 3])

        def change(split):
            split[[1, 2, 1, 2], candidate, [2, 1, 3, 3]] = 0.5

        edit(layer.cell.recurrent_kernel, gates, change)
        if bias:

            def change(split):
                split[(0, candidate, 1) if split.ndim == 3 else (candidate, 1)] = 0.3

            edit(layer.cell.bias, gates, change)
        return model

    assert stripped(build(False)).model.get_layer("a").units == 5
    result = stripped(build(True))
    assert result.model.get_layer("a").units == 8


@pytest.mark.parametrize("kind", KINDS)
def test_a_candidate_with_a_bias_stays(kind):
    model = chain(recurrent(kind, 8, name="a"))
    zero_candidate(model.get_layer("a"), [2, 5], bias=False)
    result = stripped(model)
    assert result.model.get_layer("a").units == 8
    (refusal,) = result.refusals
    assert refusal.channels == (2, 5)
    assert refusal.reason == "what a writes there is not 0 at every step, and is read"


def test_a_recurrent_bias_is_not_nothing():
    """GRU's second bias row meets the reset gate: r * b."""
    model = chain(layers.GRU(8, name="a"))
    zero_candidate(model.get_layer("a"), [2, 5])

    def change(split):
        split[1, 2, 2] = 0.7

    edit(model.get_layer("a").cell.bias, 3, change)
    assert stripped(model).model.get_layer("a").units == 7


def test_an_activation_that_is_not_zero_at_zero():
    """LSTM's output is a gate times sigmoid(0). By a plan it goes all the same: then nobody reads it."""
    model = chain(layers.LSTM(8, activation="sigmoid", name="a"))
    zero_candidate(model.get_layer("a"), [1, 2])
    result = stripped(model)
    assert result.model.get_layer("a").units == 8 and result.refusals[0].channels == (1, 2)
    plan = tfprune.PruningPlan.from_groups(tfprune.trace(model), {"a": [1, 2]})
    assert tfprune.strip(model, plan).model.get_layer("a").units == 6


def test_a_negative_bias_behind_relu():
    model = chain(layers.LSTM(8, activation="relu", name="a"))
    zero_candidate(model.get_layer("a"), [1, 2], bias=False)

    def change(split):
        split[2, [1, 2]] = [-0.3, 0.3]

    edit(model.get_layer("a").cell.bias, 4, change)
    assert stripped(model).model.get_layer("a").units == 7


def test_a_candidate_of_zero_is_not_an_output_of_zero():
    """hard_sigmoid(-5) is 0, and so is the carry; but the output is a gate times hard_sigmoid(0)."""
    model = chain(layers.LSTM(8, activation="hard_sigmoid", name="a"), layers.Dense(4))
    zero_candidate(model.get_layer("a"), [1, 2], bias=False)

    def change(split):
        split[2, [1, 2]] = -5

    edit(model.get_layer("a").cell.bias, 4, change)
    assert stripped(model).model.get_layer("a").units == 8


# ---------------------------------------------------------------------- what nobody reads


@pytest.mark.parametrize("kind", KINDS)
def test_a_unit_nobody_reads(kind):
    model = chain(recurrent(kind, 8, name="a"))
    zero_filters(model.get_layer("head"), [0, 3], side="read")
    assert stripped(model).model.get_layer("a").units == 8  # the other units read it

    cell = model.get_layer("a").cell
    rows = numbers(cell.recurrent_kernel)
    rows[3] = 0
    cell.recurrent_kernel.assign(rows)
    assert stripped(model).model.get_layer("a").units == 7

    rows.reshape(8, -1, 8)[0][:, [1, 2, 4, 5, 6, 7]] = 0  # 0 is read by 3, and by itself
    rows.reshape(8, -1, 8)[0][:, 3] = 1
    cell.recurrent_kernel.assign(rows)
    assert stripped(model).model.get_layer("a").units == 6


def test_an_input_that_only_zero_units_read():
    model = chain(layers.Dense(6, name="first"), layers.LSTM(8, name="a"))
    layer = model.get_layer("a")
    zero_candidate(layer, [1, 2])
    kernel = numbers(layer.cell.kernel).reshape(6, 4, 8)
    kernel[[0, 5]][:, :, [0, 3, 4, 5, 6, 7]] = 0
    kernel[np.ix_([0, 5], range(4), [0, 3, 4, 5, 6, 7])] = 0
    layer.cell.kernel.assign(kernel.reshape(6, 32))
    result = stripped(model)
    assert (result.model.get_layer("first").units, result.model.get_layer("a").units) == (4, 6)


# ---------------------------------------------------------------------- constants that are folded


def sigmoid_zeros(*body, shape=(5, 3)) -> keras.Model:
    """Inputs 1 and 4 of the layer behind are 0.5."""
    model = chain(layers.TimeDistributed(layers.Dense(6, activation="sigmoid"), name="first"), *body, shape=shape)
    zero_filters(model.get_layer("first").layer, [1, 4])
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_a_constant_input_becomes_a_bias(kind):
    model = sigmoid_zeros(recurrent(kind, 8, name="a"))
    result = stripped(model)
    assert result.model.get_layer("first").layer.units == 4
    cell, before = result.model.get_layer("a").cell, model.get_layer("a").cell
    gained = 0.5 * numbers(before.kernel)[[1, 4]].sum(axis=0)
    bias = numbers(before.bias)
    expected = np.stack([bias[0] + gained, bias[1]]) if bias.ndim == 2 else bias + gained
    np.testing.assert_allclose(cell.bias, expected, rtol=1e-12)


def test_a_constant_input_of_a_candidate_counts():
    """0.5 * w + bias = 0: the candidate is 0 although its kernel and its bias are not."""
    model = sigmoid_zeros(layers.LSTM(8, name="a"))
    layer = model.get_layer("a")
    zero_candidate(layer, [3])
    kernel, bias = numbers(layer.cell.kernel).reshape(6, 4, 8), numbers(layer.cell.bias).reshape(4, 8)
    kernel[1, 2, 3], bias[2, 3] = 0.5, -0.25
    layer.cell.kernel.assign(kernel.reshape(6, 32))
    layer.cell.bias.assign(bias.ravel())
    assert stripped(model).model.get_layer("a").units == 7


def test_a_candidate_that_is_zero_in_the_middle_alone():
    """Zeros come in at the border, where the constant and the bias do not cancel."""
    model = sigmoid_zeros(layers.ConvLSTM2D(4, 3, padding="same", name="a"), layers.Flatten(), shape=(3, 6, 6, 2))
    layer = model.get_layer("a")
    zero_candidate(layer, [3])
    kernel, bias = numbers(layer.cell.kernel).reshape(3, 3, 6, 4, 4), numbers(layer.cell.bias).reshape(4, 4)
    kernel[:, :, 1, 2, 3], bias[2, 3] = 0.5, -0.25 * 9
    layer.cell.kernel.assign(kernel.reshape(3, 3, 6, 16))
    layer.cell.bias.assign(bias.ravel())
    assert stripped(model).model.get_layer("a").filters == 4


def test_one_input_is_left_to_read():
    """All inputs are 0; the layer still moves from step to step by itself."""
    model = chain(layers.Dense(6, name="first"), layers.LSTM(8, name="a"))
    zero_filters(model.get_layer("first"), slice(None))
    result = stripped(model)
    assert (result.model.get_layer("first").units, result.model.get_layer("a").units) == (1, 8)


@pytest.mark.parametrize("why", ["no bias", "shared"])
def test_a_constant_input_that_cannot_be_folded(why):
    def body(x):
        a = layers.LSTM(8, use_bias=why != "no bias", name="a")
        x = layers.Dense(6, activation="sigmoid", name="first")(x)
        return a(x) if why == "no bias" else layers.Concatenate()([a(x), a(layers.Activation("tanh")(x))])

    inputs = keras.Input((5, 3))
    model = shaken(keras.Model(inputs, layers.Dense(3)(body(inputs))))
    zero_filters(model.get_layer("first"), [1, 4])
    result = stripped(model)
    assert result.model.get_layer("first").units == 6
    assert result.refusals[0].reason == "0.5 after first cannot become a bias of a, which is shared or has none"


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_a_constant_input_of_a_convolutional_layer(padding):
    convolution = layers.ConvLSTM2D(4, 3, padding=padding, name="a")
    model = sigmoid_zeros(convolution, layers.Flatten(), shape=(3, 6, 6, 2))
    result = stripped(model)
    assert result.model.get_layer("first").layer.units == (6 if padding == "same" else 4)
    if padding == "same":
        assert result.refusals[0].reason == "0.5 after first crosses the padded a"


# ---------------------------------------------------------------------- states


def encoder_decoder(kind="LSTM") -> keras.Model:
    source, target = keras.Input((5, 3), name="source"), keras.Input((4, 2), name="target")
    _, *states = recurrent(kind, 8, return_state=True, name="encoder")(source)
    x = recurrent(kind, 8, name="decoder", **SEQUENCE)(target, initial_state=states)
    return shaken(keras.Model([source, target], layers.Dense(3, name="head")(x)))


@pytest.mark.parametrize("kind", KINDS)
def test_encoder_and_decoder_have_one_width(kind):
    model = encoder_decoder(kind)
    (group,) = [group for group in tfprune.trace(model).groups if group.prunable]
    assert (group.name, group.width) == ("encoder", 8)
    result = halved(model)
    assert {result.model.get_layer(name).units for name in ("encoder", "decoder")} == {4}


def test_a_zero_candidate_with_a_state_stays():
    """The decoder starts from the encoder's state; only where that is 0, too, is it 0."""
    model = encoder_decoder()
    zero_candidate(model.get_layer("decoder"), [1, 2])
    zero_candidate(model.get_layer("encoder"), [2, 3])
    result = stripped(model)
    assert result.model.get_layer("decoder").units == result.model.get_layer("encoder").units == 7


@pytest.mark.parametrize("kind", KINDS)
def test_a_zero_candidate_forgets_slowly(kind):
    """Where it starts from a state other than 0, it is not 0, although its candidate is."""
    inputs = keras.Input((5, 3))
    states = 2 if kind == "LSTM" else 1
    before = layers.Dense(4, name="before")(layers.GlobalAveragePooling1D()(inputs))
    start = [layers.Dense(8, name=f"s{i}")(before) for i in range(states)]
    y = recurrent(kind, 8, name="a")(inputs, initial_state=start)
    model = shaken(keras.Model(inputs, layers.Dense(3, name="head")(y)))
    zero_candidate(model.get_layer("a"), [1, 2])
    for i in range(states):
        zero_filters(model.get_layer(f"s{i}"), [2])
    # Nobody else reads what unit 1 was before.
    result = stripped(model)
    assert (result.model.get_layer("a").units, result.model.get_layer("before").units) == (7, 4)


def test_states_from_other_layers():
    inputs = keras.Input((5, 3))
    start = layers.GlobalAveragePooling1D()(inputs)
    h, c = (layers.Dense(8, activation="tanh", name=name)(start) for name in "hc")
    y, *states = layers.LSTM(8, return_state=True, name="a")(inputs, [h, c])
    model = shaken(keras.Model(inputs, [layers.Dense(3)(y), layers.Dense(2)(layers.Concatenate()(states))]))
    result = halved(model)
    assert {result.model.get_layer(name).units for name in "hca"} == {4}


def test_a_state_that_is_an_input_cannot_be_narrowed():
    inputs, state = keras.Input((5, 3)), keras.Input((8,))
    model = shaken(keras.Model([inputs, state], layers.Dense(3, name="head")(layers.GRU(8, name="a")(inputs, state))))
    group = tfprune.trace(model).group("a")
    assert group.reason == "it is an input of the model"
    assert not tfprune.select(model, "l1", ratio=0.5).channels
    zero_candidate(model.get_layer("a"), [1])
    assert stripped(model).model.get_layer("a").units == 8


def test_a_state_in_another_order():
    """Channels 0 and 5 of (2, 4) go; what is left, transposed, has another order than the units."""
    inputs = keras.Input((5, 3))
    state = layers.Dense(8, name="state")(layers.GlobalAveragePooling1D()(inputs))
    state = layers.Flatten()(layers.Permute((2, 1))(layers.Reshape((2, 4))(state)))
    model = shaken(keras.Model(inputs, layers.Dense(3)(layers.GRU(8, name="a")(inputs, state))))
    zero_filters(model.get_layer("state"), [0, 5])
    zero_candidate(model.get_layer("a"), [0, 3])
    result = stripped(model)
    assert result.model.get_layer("a").units == 8
    assert "in the order of its initial state" in str(result)


def test_states_of_cells_and_of_both_directions():
    inputs = keras.Input((5, 3))
    _, *states = layers.RNN([layers.LSTMCell(8), layers.GRUCell(6)], return_state=True, name="first")(inputs)
    x = layers.RNN([layers.LSTMCell(8), layers.GRUCell(6)], name="second", **SEQUENCE)(inputs, initial_state=states)
    y, *states = layers.Bidirectional(layers.GRU(6, return_state=True, **SEQUENCE), name="third")(x)
    y, z = layers.Bidirectional(layers.GRU(6), merge_mode=None, name="fourth")(y, initial_state=states)
    model = shaken(keras.Model(inputs, [layers.Dense(3)(y), layers.Dense(2)(z)]))
    halved(model)


def test_stateful():
    """The states of one batch start the next, in both models; strip leaves the user's as they are."""
    inputs = keras.Input(batch_shape=(3, 5, 3))
    x = layers.LSTM(8, stateful=True, name="a", **SEQUENCE)(inputs)
    x = layers.Bidirectional(layers.GRU(6, stateful=True), name="b")(x)
    model = shaken(keras.Model(inputs, layers.Dense(3)(x)))
    generator = np.random.default_rng(3)
    batches = [generator.standard_normal((3, 5, 3)) for _ in range(3)]
    model(batches[0])
    states = [numbers(state) for state in model.get_layer("a").states]
    plan = tfprune.select(model, "l1", ratio=0.5, round_to=1)
    tfprune.soft_prune(model, plan)
    result = tfprune.strip(model)
    assert result.verification.equal
    assert result.model.get_layer("a").units == 4 and result.model.get_layer("b").forward_layer.units == 3
    assert all(np.array_equal(a, b) for a, b in zip(states, model.get_layer("a").states, strict=True))
    assert np.abs(states[0]).min() > 0
    for name in "ab":
        model.get_layer(name).reset_state()
    last = None
    for batch in batches[1:]:
        a, b = np.asarray(model(batch)), np.asarray(result.model(batch))
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(a).max())
        assert last is None or not np.allclose(a, last)
        last = a
    tfprune.strip(model, plan)


# ---------------------------------------------------------------------- masks


def masked(shape=(2, 5, 3)) -> list[np.ndarray]:
    array = np.random.default_rng(1).standard_normal(shape)
    array[0, 3:] = 0
    array[1, :1] = 0
    return [array]


MASKED = {
    "LSTM": lambda: [layers.LSTM(8, name="a", **SEQUENCE), layers.GRU(6, name="b")],
    "zeros": lambda: [layers.RNN(layers.GRUCell(8), zero_output_for_mask=True, name="a", **SEQUENCE), layers.LSTM(6)],
    "both": lambda: [layers.Bidirectional(layers.LSTM(8, **SEQUENCE), name="a"), layers.Bidirectional(layers.GRU(6))],
    "cells": lambda: [layers.RNN([layers.LSTMCell(8), layers.GRUCell(8)], name="a", **SEQUENCE), layers.LSTM(6)],
    "distributed": lambda: [layers.LSTM(8, **SEQUENCE), layers.TimeDistributed(layers.Dense(6)), layers.GRU(6)],
    "images": lambda: [layers.Reshape((5, 3, 1)), layers.ConvLSTM1D(8, 2, name="a"), layers.Flatten()],
}


@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize("name", MASKED)
def test_masks(name, functional):
    if functional:
        inputs = keras.Input((5, 3))
        x = layers.Masking()(inputs)
        for layer in MASKED[name]():
            x = layer(x)
        model = shaken(keras.Model(inputs, layers.Dense(3, name="head")(x)))
    else:
        model = chain(layers.Masking(), *MASKED[name]())
    plain = outputs(model, [masked()[0] + 1e-9])
    assert not np.allclose(plain[0], outputs(model, masked())[0], atol=1e-6) or name == "images"
    halved(model, masked())


def test_a_mask_of_an_embedding():
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Embedding(10, 6, mask_zero=True)(inputs)
    x = layers.Bidirectional(layers.LSTM(8, **SEQUENCE), name="a")(x)
    model = shaken(keras.Model(inputs, layers.Dense(3)(layers.LSTM(6, name="b")(x))))
    words = [np.array([[1, 2, 0, 3, 0], [4, 0, 5, 6, 7]], "int32")]
    result = halved(model, words)
    assert result.model.get_layer("b").units == 3


def test_a_zero_candidate_behind_a_mask():
    model = chain(layers.Masking(), layers.LSTM(8, name="a", **SEQUENCE), layers.LSTM(6))
    zero_candidate(model.get_layer("a"), [1, 2])
    assert stripped(model, masked()).model.get_layer("a").units == 6


def test_an_explicit_mask():
    inputs, mask = keras.Input((5, 3)), keras.Input((5,), dtype="bool")
    x = layers.LSTM(8, name="a", **SEQUENCE)(inputs, mask=mask)
    model = shaken(keras.Model([inputs, mask], layers.Dense(3)(layers.GRU(6)(x))))
    arrays = [masked()[0], np.array([[1, 1, 0, 1, 0], [0, 1, 1, 0, 1]], bool)]
    assert halved(model, arrays).model.get_layer("a").units == 4


# ---------------------------------------------------------------------- two directions, shared layers, whole layers


def test_both_directions_keep_one_width():
    """3 units of one direction are 0 and 1 of the other: 1 goes from each."""
    model = chain(layers.Bidirectional(layers.LSTM(8), name="a"))
    zero_candidate(model.get_layer("a").forward_layer, [1, 2, 3])
    zero_candidate(model.get_layer("a").backward_layer, [5])
    result = stripped(model)
    assert result.model.get_layer("a").forward_layer.units == result.model.get_layer("a").backward_layer.units == 7
    assert result.refusals[0].reason == "a's two directions would have different widths"


def test_directions_of_different_widths_are_not_followed():
    inputs = keras.Input((5, 3))
    x = layers.Bidirectional(layers.GRU(8), backward_layer=layers.GRU(6, go_backwards=True), name="a")(inputs)
    graph = tfprune.trace(keras.Model(inputs, x))
    assert graph.opaque[0].reason == "a is not followed: its two directions have different widths"


def test_spectral_normalization_can_be_trained_on():
    """It keeps a vector along its kernel's last axis, which is the input's where the convolution is transposed."""
    model = chain(
        layers.SpectralNormalization(layers.Conv2D(8, 3), name="a"),
        layers.SpectralNormalization(layers.Conv2DTranspose(6, 3), name="b"),
        layers.Flatten(),
        shape=(7, 7, 2),
    )
    result = halved(model)
    for name, size in (("a", 4), ("b", 4)):
        before, after = (numbers(m.get_layer(name).vector_u) for m in (model, result.model))
        assert after.shape == (1, size) and np.isin(after, before).all()
    assert np.isfinite(result.model(arrays_for(model)[0], training=True)).all()


def test_a_shared_layer():
    inputs = keras.Input((5, 3))
    shared = layers.LSTM(6, name="shared", **SEQUENCE)
    x = layers.Dense(6, name="first")(inputs)
    x = shared(shared(x))
    model = shaken(keras.Model(inputs, layers.Dense(3, name="head")(layers.GlobalAveragePooling1D()(x))))
    (group,) = [group for group in tfprune.trace(model).groups if group.prunable]
    assert set(group.writers) == {"first", "shared/lstm_cell"}
    result = halved(model)
    assert result.model.get_layer("shared").units == result.model.get_layer("first").units == 3


def test_a_layer_of_which_nothing_is_left():
    """Its branch goes; a direction or a cell of it cannot go alone."""

    def body(kind):
        inputs = keras.Input((5, 3))
        y = kind(inputs)
        return shaken(keras.Model(inputs, layers.Dense(3)(layers.Concatenate()([layers.LSTM(6)(inputs), y]))))

    both = body(layers.Bidirectional(layers.LSTM(4), name="a"))
    zero_candidate(both.get_layer("a").forward_layer, slice(None))
    assert stripped(both).model.get_layer("a").forward_layer.units == 4
    zero_candidate(both.get_layer("a").backward_layer, slice(None))
    assert "a" in stripped(both).removed_layers

    stack = body(layers.RNN([layers.SimpleRNNCell(4), layers.SimpleRNNCell(4)], name="a"))
    cell = stack.get_layer("a").cell.cells[1]
    for variable in cell.weights:
        variable.assign(np.zeros(variable.shape))
    assert "a" in stripped(stack).removed_layers

    inputs = keras.Input((5, 3))
    _, *states = layers.RNN([layers.SimpleRNNCell(4), layers.SimpleRNNCell(4)], return_state=True, name="a")(inputs)
    model = shaken(keras.Model(inputs, [layers.Dense(3)(layers.LSTM(4)(inputs)), layers.Dense(2)(states[0])]))
    assert [cell.units for cell in stripped(model).model.get_layer("a").cell.cells] == [4, 1]


def test_a_convolution_that_alone_feeds_a_recurrent_layer_stays():
    inputs = keras.Input((5, 3))
    x = layers.GRU(4)(layers.Conv1D(4, 2, name="fed")(inputs))
    y = layers.GlobalAveragePooling1D()(layers.Conv1D(4, 2, name="beside")(inputs))
    graph = tfprune.trace(keras.Model(inputs, layers.Dense(3)(layers.Concatenate()([x, y]))))
    assert droppable(graph) == ["beside"]


# ---------------------------------------------------------------------- what is not followed; files


@keras.saving.register_keras_serializable()
class OwnCell(layers.LSTMCell):
    def call(self, inputs, states, training=False):
        return states[0], states


class Around(layers.Layer):
    def call(self, x):
        return x[..., ::-1]


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda: layers.RNN(OwnCell(8, name="cell")), "cell, a OwnCell, in it is not followed"),
        (lambda: layers.LSTM(8, activation="softmax"), "its activation softmax is not known to be elementwise"),
        (lambda: layers.GRU(8, recurrent_activation="softmax"), "its activation softmax is not known"),
        (lambda: layers.Bidirectional(layers.RNN(OwnCell(8, name="c"))), "c, a OwnCell, in it is not followed"),
        (
            lambda: layers.TimeDistributed(keras.Sequential([layers.Dense(4)], name="m")),
            "m, a Sequential, in it is not",
        ),
        (lambda: layers.SpectralNormalization(layers.EinsumDense("btc,cd->btd", (5, 8), name="e")), "e, a EinsumDense"),
    ],
)
def test_what_is_not_followed(layer, reason):
    inputs = keras.Input((5, 3))
    layer = layer()
    graph = tfprune.trace(keras.Model(inputs, layer(inputs)))
    assert reason in graph.opaque[0].reason and layer.name in graph.opaque[0].reason


def test_an_initial_state_that_is_an_array():
    inputs = keras.Input(batch_shape=(2, 5, 3))
    x = layers.GRU(8, name="a")(inputs, initial_state=keras.ops.ones((2, 8)))
    model = shaken(keras.Model(inputs, layers.Dense(3)(x)))
    assert "initial state" in tfprune.trace(model).opaque[0].reason
    zero_candidate(model.get_layer("a"), [1])
    assert stripped(model).model.get_layer("a").units == 8


def test_a_plan_for_a_model_from_a_file(tmp_path):
    """Layers inside layers are built elsewhere when a file is read; their weights keep their keys."""
    model = chain(
        layers.TimeDistributed(layers.Dense(6)),
        layers.Bidirectional(layers.LSTM(8, **SEQUENCE)),
        layers.RNN([layers.GRUCell(6), layers.LSTMCell(6)]),
    )
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    keys = [[weight.key for weight in tfprune.trace(m).weights] for m in (model, loaded)]
    assert keys[0] == keys[1] and not any("#" in key for key in keys[0])
    plan = tfprune.select(model, "l1", ratio=0.5, round_to=1)
    result = tfprune.strip(loaded, plan)
    tfprune.soft_prune(loaded, plan)
    assert_equal(loaded, result.model)
    result.model.save(tmp_path / "stripped.keras")
    assert_equal(loaded, keras.models.load_model(tmp_path / "stripped.keras"))


def test_training_goes_on():
    """Soft-pruned units come back unless they are kept at zero; the monitor sees them in the kernels of a cell."""
    model = chain(layers.LSTM(8, name="a"))
    plan = tfprune.select(model, "l1", ratio=0.5, round_to=1)
    tfprune.soft_prune(model, plan)
    report = failures(model, plan)
    assert report.by_layer["a/lstm_cell"][1] == 0
    cell = model.get_layer("a").cell
    cell.recurrent_kernel.assign(numbers(cell.recurrent_kernel) + 1)
    assert failures(model, plan).by_layer["a/lstm_cell"][1] > 0
