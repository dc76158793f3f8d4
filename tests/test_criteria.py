"""Every criterion through the same tests; then each against loops, sub-models and gradients taken another way."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers, ops
from models import conv_bn, inverted_residual_net, numbers, residual_net, shaken

import tfprune
from tfprune import criteria
from tfprune.criteria import (
    L1,
    L2,
    APoZ,
    Feature,
    KMeansL1,
    Random,
    Redundancy,
    Sample,
    Scorer,
    Taylor,
    TaylorWeight,
    gather,
    score,
)
from tfprune.criteria.features import feature_maps
from tfprune.errors import DataError, PlanError

TENSORFLOW = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="takes gradients with TensorFlow")


# ---------------------------------------------------------------------- models


def chain(width=12):
    """A convolution, its BatchNormalization and ReLU, and a reader; whatever is planted is planted in channel 5."""
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(width, 3, name="a")(inputs)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="bn")(x))
    x = layers.Conv2D(5, 3, name="b")(x)
    return shaken(keras.Model(inputs, layers.Flatten()(x), name="chain"))


def grouped_net():
    inputs = keras.Input((6, 6, 3))
    x = conv_bn(inputs, 8, name="stem")
    x = conv_bn(x, 12, groups=4, name="grouped")
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)), name="grouped_net")


def dense_net():
    inputs = keras.Input((7,))
    x = layers.Dense(10, activation="relu", name="one")(inputs)
    return keras.Model(inputs, layers.Dense(3)(layers.Dense(6, activation="tanh", name="two")(x)), name="dense_net")


def attention_net():
    inputs = keras.Input((5, 6))
    x = layers.MultiHeadAttention(2, 4, name="attention")(inputs, inputs)
    x = layers.Dense(8, activation="relu", name="mlp")(x)
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)), name="attention_net")


def recurrent_net():
    inputs = keras.Input((5, 6))
    x = layers.Bidirectional(layers.LSTM(4, return_sequences=True), name="both")(inputs)
    return keras.Model(inputs, layers.Dense(3)(layers.GRU(6, name="gru")(x)), name="recurrent_net")


def concatenation_net():
    inputs = keras.Input((6, 6, 3))
    a, b = conv_bn(inputs, 4, name="a"), conv_bn(inputs, 6, name="b")
    x = conv_bn(layers.Concatenate()([a, b]), 8, name="c")
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(layers.MaxPooling2D()(x))), name="concatenation_net")


def nested_net():
    """A model inside of a model, a shared layer, and a layer with Python code of its own."""
    inner = keras.Input((6, 6, 4))
    block = keras.Model(inner, layers.ReLU()(layers.Conv2D(4, 3, padding="same", name="inside")(inner)), name="block")
    shared = layers.Conv2D(4, 1, activation="relu", name="shared")
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, padding="same", name="stem")(inputs)
    x = Doubled(name="doubled")(shared(block(shared(x))))
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)), name="nested_net")


class Doubled(layers.Layer):
    """A convolution, and Python code."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.conv = layers.Conv2D(6, 3, name="own")

    def call(self, x):
        return ops.relu(2 * self.conv(x))


MODELS = {
    net.__name__: net
    for net in (
        residual_net,
        inverted_residual_net,
        grouped_net,
        dense_net,
        attention_net,
        recurrent_net,
        concatenation_net,
        nested_net,
    )
}


def sample_of(model, samples=10, seed=3):
    """(x, y): random inputs and classes."""
    generator = np.random.default_rng(seed)
    shape = (samples, *model.inputs[0].shape[1:])
    return generator.standard_normal(shape).astype("float32"), generator.integers(
        0, model.outputs[0].shape[-1], samples
    )


CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def squares(y, outputs):
    return ops.mean(ops.square(outputs - 0.3))


# ---------------------------------------------------------------------- the table


def filters(model, change):
    kernel = numbers(model.get_layer("a").kernel)
    change(kernel)
    model.get_layer("a").kernel.assign(kernel)


def small(model):
    def shrink(kernel):
        kernel[..., 5] *= 0.01

    filters(model, shrink)
    unread(model, 0.01)


def small_in_the_corner(model):
    def shrink(kernel):
        kernel[0, 0] = 1
        kernel[0, 0, :, 5] = 0.5

    filters(model, shrink)


def unread(model, factor=0.0):
    kernel = numbers(model.get_layer("b").kernel)
    kernel[:, :, 5] *= factor
    model.get_layer("b").kernel.assign(kernel)


def average(model):
    def between(kernel):
        kernel[..., 5] = np.delete(kernel, 5, axis=-1).mean(axis=-1)

    filters(model, between)


def aligned(model):
    def along(kernel):
        others = np.delete(kernel, 5, axis=-1)
        kernel[..., 5] = 7 * (others / np.sqrt((others**2).sum((0, 1, 2)))).sum(axis=-1)

    filters(model, along)


def unscaled(model):
    values = numbers(model.get_layer("bn").gamma)
    values[5] = 1e-3
    model.get_layer("bn").gamma.assign(values)


def silent(model):
    values = numbers(model.get_layer("bn").beta)
    values[5] = -100
    model.get_layer("bn").beta.assign(values)


def clusters(model):
    """Nine filters near one another and three elsewhere."""

    def gather_them(kernel):
        centres = np.random.default_rng(5).standard_normal((2, *kernel.shape[:-1])).astype(kernel.dtype)
        for channel in range(12):
            kernel[..., channel] = centres[int(channel > 8)] + 0.1 * kernel[..., channel]

    filters(model, gather_them)
    model.get_layer("bn").gamma.assign(np.ones(12))


def smallest_of_cluster(model):
    clusters(model)

    def shrink(kernel):
        kernel[..., 5] *= 0.9

    filters(model, shrink)


def unread_in_cluster(model):
    clusters(model)
    unread(model)


def centre_of_cluster(model):
    clusters(model)

    def centre(kernel):
        kernel[..., 5] = kernel[..., [0, 1, 2, 3, 4, 6, 7, 8]].mean(axis=-1)

    filters(model, centre)


# name: (what makes channel 5 the worst; the power of 2 by which scores grow when kernels and gammas are doubled; the
# same when the loss is doubled). None: not in that way.
TABLE = {
    "redundancy": (small, 0, 0),
    "redundancy_legacy": (small_in_the_corner, 0, 0),
    "l1": (small, 1, 0),
    "l2": (small, 1, 0),
    "linf": (small, 1, 0),
    "fpgm": (average, 1, 0),
    "cosine": (aligned, 0, 0),
    "lamp": (small, 0, 0),
    "bn_scale": (unscaled, 1, 0),
    "taylor": (unread, None, 0),
    "taylor_weight": (unread, None, 2),
    "hessian": (unread, None, 2),
    "activation": (silent, None, 0),
    "apoz": (silent, None, 0),
    "kmeans_l1": (smallest_of_cluster, 0, 0),
    "kmeans_taylor": (unread_in_cluster, None, 0),
    "kmeans_distance": (centre_of_cluster, 0, 0),
    "random": (None, 0, 0),
}


def test_every_named_criterion_is_in_the_table():
    """Doctests and other tests register criteria of their own."""
    assert set(TABLE) <= set(criteria.criterion_names())
    own = {name for name in criteria.criterion_names() if type(named(name)).__module__.startswith("tfprune.criteria.")}
    assert own == set(TABLE)


def test_the_command_line_names_them_all():
    from tfprune.cli.commands.prune import COMMAND

    (flag,) = (flag for flag in COMMAND.flags if flag.name == "criterion")
    assert set(TABLE) <= set(re.findall(r"\w+", flag.help))


def named(name):
    return criteria.criterion_named(name)


def scored(model, criterion, loss=squares, **settings):
    return score(tfprune.trace(model), criterion, data=sample_of(model), loss=loss, **settings)


@pytest.fixture(scope="module", params=MODELS)
def traced(request):
    """A graph, and what one pass over a sample says for all criteria together."""
    model = shaken(MODELS[request.param]())
    graph = tfprune.trace(model)
    return graph, gather(graph, map(named, TABLE), sample_of(model), CROSSENTROPY)


@pytest.mark.parametrize("name", TABLE)
def test_a_score_for_every_channel_of_every_group(traced, name):
    graph, evidence = traced
    first, again = (Scorer(graph, name, data=evidence)() for _ in range(2))
    assert set(first) | set(first.refused) == {group.name for group in graph.groups if group.prunable}
    without_norm = not any("gamma" in weight.key for weight in graph.weights)
    assert bool(first.refused) == (name == "bn_scale" and (without_norm or graph.name in ("inverted_residual_net",)))
    for group, scores in first.items():
        assert scores.shape == (graph.group(group).width,) and scores.dtype == np.float64
        assert np.isfinite(scores).all() and (scores >= 0).all()
        assert len(np.unique(scores)) > 1 or name == "apoz" or len(scores) == 2
        np.testing.assert_array_equal(scores, again[group])
    if first.absolute:
        assert all(((scores >= 0) & (scores <= 1)).all() for scores in first.values())


@pytest.mark.parametrize("name", [name for name, (planted, *_) in TABLE.items() if planted])
def test_a_planted_worst_channel_is_found(name):
    planted, *_ = TABLE[name]
    for seed in range(3):
        model = shaken(chain(), seed)
        before = scored(model, name)["a"]
        planted(model)
        scores = scored(model, name)["a"]
        assert np.argmin(scores) == 5 and np.sort(scores)[1] > scores[5], (before, scores)


@pytest.mark.parametrize("name", TABLE)
def test_how_scores_grow(name):
    _, by_weights, by_loss = TABLE[name]
    model = chain()
    before = scored(model, name)["a"]
    if by_loss is not None:
        doubled = scored(model, name, lambda y, outputs: 2 * squares(y, outputs))["a"]
        np.testing.assert_allclose(doubled, before * 2**by_loss, rtol=1e-5)
    if by_weights is not None:
        for variable in model.weights:
            if variable.path.endswith(("kernel", "gamma")):
                variable.assign(2 * variable)
        np.testing.assert_allclose(scored(model, name)["a"], before * 2**by_weights, rtol=1e-6)


@pytest.mark.parametrize("name", TABLE)
def test_a_plan_of_each(name):
    model = shaken(residual_net())
    plan = tfprune.select(model, name, ratio=0.5, data=sample_of(model), loss=CROSSENTROPY)
    assert plan.pruned and len(plan.channels["b1"]) in (4, 8)


# ---------------------------------------------------------------------- weights, against loops


def flat_filters(model, name="a"):
    kernel = numbers(model.get_layer(name).kernel).astype(np.float64)
    return kernel.reshape(-1, kernel.shape[-1]).T


def test_fpgm_against_a_loop():
    rows = flat_filters(chain())
    expected = [sum(np.linalg.norm(one - other) for other in rows) for one in rows]
    np.testing.assert_allclose(scored(chain(), "fpgm")["a"], expected, rtol=1e-5)


def test_fpgm_of_more_filters_than_fit_a_block(monkeypatch):
    monkeypatch.setattr("tfprune.criteria.similarity._BLOCK", 5)
    test_fpgm_against_a_loop()


def test_cosine_against_a_loop():
    rows = flat_filters(chain())
    units = [one / np.linalg.norm(one) for one in rows]
    expected = [np.mean([1 - a @ b for j, b in enumerate(units) if j != i]) for i, a in enumerate(units)]
    np.testing.assert_allclose(scored(chain(), "cosine")["a"], expected, rtol=1e-5)


def test_lamp_against_a_loop():
    worth = (flat_filters(chain()) ** 2).sum(axis=1)
    expected = [one / sum(other for other in worth if other >= one) for one in worth]
    np.testing.assert_allclose(scored(chain(), "lamp")["a"], expected, rtol=1e-6)


def test_lamp_of_equal_filters_and_of_none():
    model = chain()
    model.get_layer("a").kernel.assign(np.ones((3, 3, 3, 12)))
    np.testing.assert_allclose(scored(model, "lamp")["a"], 1 / 12)
    model.get_layer("a").kernel.assign(np.zeros((3, 3, 3, 12)))
    for name in ("lamp", "cosine", "fpgm", "taylor", "kmeans_l1", "kmeans_distance"):
        assert np.isfinite(scored(model, name)["a"]).all()


def test_linf_and_bn_scale():
    model = chain()
    kernels = [numbers(model.get_layer(name).kernel) for name in "ab"]
    expected = np.maximum(abs(kernels[0]).max((0, 1, 2)), abs(kernels[1]).max((0, 1, 3)))
    np.testing.assert_allclose(scored(model, "linf")["a"], expected)
    np.testing.assert_allclose(scored(model, "bn_scale")["a"], abs(numbers(model.get_layer("bn").gamma)))


def test_norms_of_filters_alone():
    """What Li et al. and CNN-Pruning-Engine rank by."""
    expected = abs(flat_filters(chain())).sum(axis=1)
    np.testing.assert_allclose(scored(chain(), L1(roles=("write",)))["a"], expected, rtol=1e-6)


def test_channels_with_several_rows():
    """A unit of a grouped convolution is a channel of each of its groups; a head is all that is inside."""
    model = shaken(grouped_net())
    kernel = numbers(model.get_layer("grouped").kernel).astype(np.float64)
    rows = np.moveaxis(kernel.reshape(3, 3, 2, 4, 3), -1, 0).reshape(3, -1)
    expected = [sum(np.linalg.norm(one - other) for other in rows) for one in rows]
    np.testing.assert_allclose(scored(model, "fpgm")["grouped"], expected, rtol=1e-5)


# ---------------------------------------------------------------------- how members combine, and scores are normalised


def test_members_combine():
    model = shaken(residual_net())
    each = {name: abs(numbers(model.get_layer(name).kernel)).sum((0, 1, 2)) for name in ("stem", "a2")}
    graph = tfprune.trace(model)
    first = graph.group("stem").writers[0]
    expected = {
        "mean": np.mean(list(each.values()), axis=0),
        "sum": np.sum(list(each.values()), axis=0),
        "max": np.max(list(each.values()), axis=0),
        "product": np.prod(list(each.values()), axis=0),
        "first": each[first],
    }
    for how, scores in expected.items():
        got = score(graph, L1(members=how, roles=("write",)))["stem"]
        np.testing.assert_allclose(got, scores, rtol=1e-5)


def test_scores_are_normalised():
    plain = scored(chain(), "l2")["a"]
    expected = {
        "mean": plain / plain.mean(),
        "max": plain / plain.max(),
        "sum": plain / plain.sum(),
        "width": plain / 12,
        "standard": (plain - plain.mean()) / plain.std(),
    }
    for how, scores in expected.items():
        np.testing.assert_allclose(scored(chain(), L2(normalize=how))["a"], scores)
    assert not scored(chain(), Redundancy(normalize="mean")).absolute and scored(chain(), Redundancy()).absolute


def test_a_threshold_on_standardised_scores():
    scores = scored(chain(), L2(normalize="standard"))
    redundancy = scores.redundancy("a")
    assert redundancy.min() == 0 and redundancy.max() == 1
    assert (np.argsort(-redundancy) == np.argsort(scores["a"])).all()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: L1(members="median"),
        lambda: L1(normalize="l2"),
        lambda: L1(normalize=None),
        lambda: L1(roles="write"),
        lambda: L1(roles=("kernel",)),
        lambda: Redundancy("half"),
        lambda: Taylor(at="input"),
        lambda: Taylor(average="none"),
        lambda: TaylorWeight(power=3),
        lambda: APoZ(at="relu"),
        lambda: Random(seed=-1),
        lambda: Random(seed=0.5),
        lambda: KMeansL1(clusters=0),
        lambda: KMeansL1(clusters=2.5),
        lambda: KMeansL1(variance=0),
        lambda: Sample(np.zeros((3, 2)), batch_size=0),
        lambda: Sample(np.zeros((3, 2)), steps=True),
    ],
)
def test_settings_that_are_none(wrong):
    with pytest.raises(PlanError, match="came"):
        wrong()


# ---------------------------------------------------------------------- k-means


@pytest.mark.parametrize("name", ["kmeans_l1", "kmeans_taylor", "kmeans_distance"])
def test_each_cluster_keeps_one_whatever_the_budget(name):
    model = chain()
    clusters(model)
    order = np.argsort(scored(model, name)["a"])
    for left in range(2, 12):
        stay = set(order[12 - left :].tolist())
        assert stay & set(range(9)) and stay & {9, 10, 11}


def test_clusters_lose_in_proportion():
    model = chain()
    clusters(model)
    gone = np.argsort(scored(model, "kmeans_l1")["a"])[:8]
    assert sum(gone > 8) == 2 and sum(gone <= 8) == 6


def test_a_cluster_of_one_is_locked():
    model = chain()
    clusters(model)

    def alone(kernel):
        kernel[..., [9, 10]] = kernel[..., [0, 1]] * 1.01
        kernel[..., 11] *= 0.2

    filters(model, alone)
    assert np.argsort(scored(model, "kmeans_l1")["a"])[-2:].tolist().count(11) == 1


def test_more_clusters_than_channels():
    with pytest.raises(PlanError, match="13 clusters, and group 'a' has only 12 channels"):
        scored(chain(), KMeansL1(clusters=13))


def test_fewer_different_filters_than_clusters():
    model = chain()
    model.get_layer("a").kernel.assign(np.ones((3, 3, 3, 12)))
    assert np.isfinite(scored(model, KMeansL1(clusters=6))["a"]).all()


def test_components_hold_the_variance():
    from sklearn.decomposition import PCA

    from tfprune.criteria.kmeans import components

    rows = np.random.default_rng(0).standard_normal((20, 50)) * np.arange(1, 51)
    expected = PCA(0.8, svd_solver="full").fit_transform(rows)
    np.testing.assert_allclose(np.abs(components(rows, 0.8)), np.abs(expected), atol=1e-8)


# ---------------------------------------------------------------------- data, against sub-models and gradients


def test_activations_against_submodels():
    model = chain()
    x, _ = sample_of(model)
    for at, layer in (("activation", "relu"), ("output", "a")):
        z = np.asarray(ops.convert_to_numpy(keras.Model(model.input, model.get_layer(layer).output)(x)), np.float64)
        got = scored(model, criteria.Activation(at=at))["a"]
        np.testing.assert_allclose(got, abs(z).mean((0, 1, 2)), rtol=1e-5)
        np.testing.assert_allclose(scored(model, APoZ(at=at))["a"], (z != 0).mean((0, 1, 2)), rtol=1e-6)


def taped(model, layer, x, y):
    """(feature map, gradient of every sample's own loss) of a plain chain, one sample at a time."""
    import tensorflow as tf

    found = []
    before = keras.Model(model.input, model.get_layer(layer).output)
    after = model.layers[[one.name for one in model.layers].index(layer) + 1 :]
    for one, label in zip(x, y, strict=True):
        z = tf.convert_to_tensor(before(one[None]))
        with tf.GradientTape() as tape:
            tape.watch(z)
            outputs = z
            for then in after:
                outputs = then(outputs, training=False)
            loss = squares(label, outputs)
        found.append((z[0], tape.gradient(loss, z)[0]))
    return [np.array(part, np.float64) for part in zip(*found, strict=True)]


@TENSORFLOW
@pytest.mark.parametrize(("at", "layer"), [("output", "a"), ("activation", "relu")])
def test_taylor_against_a_tape(at, layer):
    model = chain()
    z, gradient = taped(model, layer, *sample_of(model))
    products = z * gradient
    for average, expected in (
        ("absolute", abs(products).mean((0, 1, 2))),
        ("signed", abs(products.mean((1, 2))).mean(axis=0)),
    ):
        got = scored(model, Taylor(at=at, average=average))["a"]
        np.testing.assert_allclose(got, expected / np.linalg.norm(expected), rtol=1e-4)


@TENSORFLOW
def test_weight_gradients_against_a_tape():
    import tensorflow as tf

    model = chain()
    x, y = sample_of(model)
    kernel = model.get_layer("a").kernel
    gradients = []
    for one, label in zip(x, y, strict=True):
        with tf.GradientTape() as tape:
            loss = squares(label, model(one[None], training=False))
        gradients.append(np.asarray(tape.gradient(loss, kernel.value), np.float64))
    w = numbers(kernel).astype(np.float64)
    mean, square = np.mean(gradients, axis=0), np.mean(np.square(gradients), axis=0)
    np.testing.assert_allclose(scored(model, "taylor_weight")["a"], ((mean * w) ** 2).sum((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(scored(model, TaylorWeight(power=1))["a"], abs(mean * w).sum((0, 1, 2)), rtol=1e-4)
    exact = score(tfprune.trace(model), "hessian", data=Sample(sample_of(model), batch_size=1), loss=squares)["a"]
    np.testing.assert_allclose(exact, (square * w**2 / 2).sum((0, 1, 2)), rtol=1e-4)


def test_the_compiled_loss_is_that_of_fit():
    model = shaken(residual_net())
    x, y = sample_of(model)
    graph = tfprune.trace(model)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    evidence = gather(graph, [Taylor()], Sample((x, y), batch_size=4))
    assert evidence.loss == pytest.approx(model.evaluate(x, y, batch_size=10, verbose=0), rel=1e-5)
    assert evidence.samples == 10


@pytest.mark.parametrize("name", ["taylor", "taylor_weight", "activation", "apoz"])
def test_batches_do_not_matter(name):
    """Ten samples in batches of four, and more of them than it takes to compile."""
    model = shaken(residual_net())
    graph = tfprune.trace(model)
    expected = score(graph, name, data=Sample(sample_of(model), batch_size=10), loss=CROSSENTROPY)
    for size in (4, 2):
        got = score(graph, name, data=Sample(sample_of(model), batch_size=size), loss=CROSSENTROPY)
        for group, scores in expected.items():
            np.testing.assert_allclose(got[group], scores, rtol=1e-3, atol=1e-6 * scores.max())


class Batches(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return self.x[4 * index : 4 * index + 4], self.y[4 * index : 4 * index + 4]


def forms(x, y):
    parts = [(x[start : start + 4], y[start : start + 4]) for start in (0, 4, 8)]
    yield "arrays", Sample((x, y), batch_size=4)
    yield "weights of samples", (x, y, np.ones(len(x)))
    yield "a list of batches", parts
    yield "a generator", iter(parts)
    yield "a generator function", lambda: iter(parts)
    yield "a PyDataset", Batches(x, y)
    yield "tensors", (ops.convert_to_tensor(x), ops.convert_to_tensor(y))
    yield "data without end", Sample(lambda: (parts[index % 3] for index in range(10**9)), steps=3)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        yield "tf.data", tf.data.Dataset.from_tensor_slices((x, y)).batch(4)


def test_every_form_of_data():
    model = shaken(residual_net())
    graph = tfprune.trace(model)
    x, y = sample_of(model)
    expected = score(graph, "taylor", data=(x, y), loss=CROSSENTROPY)
    for what, data in forms(x, y):
        got = score(graph, "taylor", data=data, loss=CROSSENTROPY)
        np.testing.assert_allclose(got["stem"], expected["stem"], rtol=1e-4, err_msg=what)


def test_samples_count_by_their_weights():
    model = shaken(residual_net())
    graph = tfprune.trace(model)
    x, y = sample_of(model)
    weights = np.array([1.0] * 4 + [0.0] * 6)
    got = score(graph, "taylor", data=(x, y, weights), loss=CROSSENTROPY)["stem"]
    expected = score(graph, "taylor", data=(x[:4], y[:4]), loss=CROSSENTROPY)["stem"]
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_several_inputs_and_outputs():
    inputs = {"left": keras.Input((6, 6, 3), name="left"), "right": keras.Input((4,), name="right")}
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, activation="relu", name="conv")(inputs["left"]))
    x = layers.Concatenate()([x, layers.Dense(4, activation="relu", name="dense")(inputs["right"])])
    outputs = {"kind": layers.Dense(3, name="kind")(x), "size": layers.Dense(1, name="size")(x)}
    model = shaken(keras.Model(inputs, outputs))
    generator = np.random.default_rng(0)
    data = (
        {name: generator.standard_normal((10, *one.shape[1:])).astype("float32") for name, one in inputs.items()},
        {"kind": generator.integers(0, 3, 10), "size": generator.standard_normal((10, 1))},
    )
    losses = {"kind": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "size": "mse"}
    graph = tfprune.trace(model)
    given = score(graph, "taylor", data=data, loss=losses)
    model.compile("sgd", losses, loss_weights={"kind": 1.0, "size": 0.0}, jit_compile=False)
    compiled = score(graph, "taylor", data=data)
    assert set(given) == set(compiled) == {"conv", "dense"}
    assert not np.allclose(given["conv"], compiled["conv"], rtol=1e-3)  # the weight of a loss counts
    evidence = gather(graph, [Taylor()], data)
    assert evidence.loss == pytest.approx(model.evaluate(*data, batch_size=10, verbose=0, return_dict=True)["loss"])


def test_a_loss_of_the_models_own():
    class Own(keras.Model):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return squares(y, y_pred)

    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, activation="relu", name="conv")(inputs)
    model = shaken(Own(inputs, layers.Dense(3)(layers.Flatten()(x))))
    model.compile("sgd", "mse", jit_compile=False)
    data = (sample_of(model)[0], np.zeros((10, 3)))
    got, expected = (score(tfprune.trace(model), "taylor", data=data, loss=loss)["conv"] for loss in (None, squares))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_not_changed(training):
    inputs = keras.Input((8, 8, 3))
    x = layers.Dropout(0.5)(conv_bn(inputs, 8, name="conv"))
    model = shaken(keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x))))
    model.get_layer("conv").trainable = False
    model.compile("adam", CROSSENTROPY, metrics=["accuracy"], jit_compile=False)
    x, y = sample_of(model)
    model.fit(x, y, verbose=0)
    variables = [*model.variables, *model.optimizer.variables]
    before = [numbers(variable) for variable in variables]
    flags = [variable.trainable for variable in model.variables]
    call = keras.Operation.__call__
    graph = tfprune.trace(model)
    gather(graph, map(named, TABLE), Sample((x, y), batch_size=3, training=training))
    assert flags == [variable.trainable for variable in model.variables] and keras.Operation.__call__ is call
    assert [*model.variables, *model.optimizer.variables] == variables
    assert all(np.array_equal(a, numbers(b)) for a, b in zip(before, variables, strict=True))
    assert model.fit(x, y, verbose=0).history["loss"]


def test_what_is_frozen_has_scores():
    """Scores say what a channel is worth, and not whether it is trained just now."""
    model = chain()
    expected = {name: scored(model, name)["a"] for name in ("taylor", "taylor_weight", "hessian")}
    model.trainable = False
    for name, scores in expected.items():
        np.testing.assert_allclose(scored(model, name)["a"], scores)


def test_training_uses_the_statistics_of_the_batch():
    model = chain()
    graph = tfprune.trace(model)
    as_usual, training = (
        score(graph, "activation", data=Sample(sample_of(model), training=mode))["a"] for mode in (False, True)
    )
    assert not np.allclose(as_usual, training, rtol=0.1)


# ---------------------------------------------------------------------- feature maps


def where(model, at):
    maps = feature_maps(tfprune.trace(model), at)
    return {weight.key: [one.operation.name for one in found] for weight, found in maps.items()}


def test_where_feature_maps_are():
    assert where(chain(), "output")["a/kernel"] == ["a"] and where(chain(), "activation")["a/kernel"] == ["relu"]
    # A sum, and a second reader, end the way.
    maps = where(residual_net(), "activation")
    assert maps["a2/kernel"] == ["a2_bn"] and maps["a1/kernel"][0].startswith("activation")
    inside = where(attention_net(), "output")
    assert inside["attention/query/kernel"] == ["query"] and inside["attention/value/kernel"] == ["value"]
    nested = where(nested_net(), "activation")
    assert nested["doubled/own/kernel"] == ["own"] and nested["block/inside/kernel"][0].startswith("re_lu")
    assert nested["shared/kernel"] == ["shared"]


def test_a_shared_layer_counts_all_its_calls():
    shared = layers.Dense(6, activation="relu", name="shared")
    inputs = keras.Input((4,))
    first = layers.Dense(6, activation="relu", name="stem")(inputs)
    second = shared(first)
    third = shared(second)
    model = shaken(keras.Model(inputs, layers.Dense(2)(third)))
    x = np.random.default_rng(0).standard_normal((9, 4)).astype("float32")
    parts = map(ops.convert_to_numpy, keras.Model(inputs, [first, second, third])(x))
    stem, a, b = (np.abs(np.asarray(one)).mean(axis=0) for one in parts)
    got = score(tfprune.trace(model), "activation", data=x)
    np.testing.assert_allclose(got["stem"], (stem + (a + b) / 2) / 2, rtol=1e-5)


def test_cells_inside_of_cells_have_no_feature_map():
    cells = [layers.LSTMCell(5, name="inner"), layers.LSTMCell(4, name="outer")]
    inputs = keras.Input((5, 6))
    model = shaken(keras.Model(inputs, layers.Dense(3)(layers.RNN(cells, name="stack")(inputs))))
    x, y = sample_of(model)
    graph = tfprune.trace(model)
    for name in ("taylor", "activation", "kmeans_taylor"):
        scores = score(graph, name, data=(x, y), loss=CROSSENTROPY)
        assert [reason.partition("needs ")[2][:13] for reason in scores.refused.values()] == ["a feature map"]
        assert len(scores) == 1
    assert len(score(graph, "hessian", data=(x, y), loss=CROSSENTROPY)) == 2


def test_heads_are_scored_by_what_is_inside():
    model = shaken(attention_net())
    graph = tfprune.trace(model)
    heads = next(group for group in graph.groups if group.holds)
    x, y = sample_of(model)
    for name in ("taylor", "activation", "hessian", "fpgm"):
        assert Scorer(graph, name, data=(x, y), loss=CROSSENTROPY)([heads])[heads.name].shape == (2,)
    assert tfprune.select(model, "taylor", ratio=0.5, round_to=1, heads=True, data=(x, y), loss=CROSSENTROPY).pruned


def test_whole_layers_by_data():
    model = shaken(residual_net())
    plan = tfprune.select(model, "taylor", ratio=0.5, layers=True, data=sample_of(model), loss=CROSSENTROPY)
    assert plan.layers


# ---------------------------------------------------------------------- a user's own


def test_a_function_that_needs_data():
    def largest(z, gradient, mean):
        return ops.amax(z, axis=tuple(range(1, len(z.shape) - 1)))

    feature = Feature(largest, "activation")

    def peak(view):
        return np.mean(view.features(feature), axis=0)

    peak.needs = (feature,)
    model = chain()
    x, _ = sample_of(model)
    z = ops.convert_to_numpy(keras.Model(model.input, model.get_layer("relu").output)(x))
    scores = score(tfprune.trace(model), peak, data=x)
    assert scores.criterion == "peak"
    np.testing.assert_allclose(scores["a"], np.asarray(z).max((1, 2)).mean(axis=0), rtol=1e-5)
    del peak.needs
    with pytest.raises(PlanError, match="needs"):
        score(tfprune.trace(model), peak, data=x)


def test_groups_by_name_and_what_cannot_be_scored():
    graph = tfprune.trace(shaken(inverted_residual_net()))
    assert set(score(graph, "l1", ["expand", "stem"])) == {"expand", "stem"}
    scores = score(graph, "bn_scale")
    assert "normalization layer" in scores.refused["squeeze"] and "squeeze" not in scores
    plan = tfprune.select(graph, "bn_scale", ratio=0.5)
    assert "squeeze" not in plan.channels and "normalization layer with a scale" in str(plan)
    with pytest.raises(PlanError, match="can score no group of dense_net"):
        score(tfprune.trace(dense_net()), "bn_scale")
    with pytest.raises(PlanError, match="no channel group 'expnd'; did you mean 'expand'"):
        score(graph, "l1", ["expnd"])


# ---------------------------------------------------------------------- while training


def trained(**settings):
    model = shaken(residual_net())
    model.compile("sgd", CROSSENTROPY, jit_compile=False)
    x, y = sample_of(model)
    pruning = tfprune.SoftPruning("taylor", ratio=0.5, data=(x, y), **settings)
    model.fit(x, y, epochs=2, batch_size=5, validation_data=(x, y), verbose=0, callbacks=[pruning])
    return model, pruning


@pytest.mark.parametrize("settings", [{}, {"every": 2}, {"mode": "hard"}])
def test_soft_pruning_with_data(settings):
    model, pruning = trained(**settings)
    assert pruning.plan.pruned and tfprune.strip(model).cost_after.parameters < tfprune.cost(model).parameters


def test_pruning_with_data(tmp_path):
    model = shaken(residual_net())
    x, y = sample_of(model)
    pruning = tfprune.Pruning(
        model, output_dir=tmp_path, criterion="taylor", data=(x, y), loss=CROSSENTROPY, round_to=1, log=None
    )
    pruning.run(lambda model, directory: None, thresholds=[0.5])
    assert pruning.plan.pruned


def test_data_that_is_missing_or_ends_is_told_at_once(tmp_path):
    model = residual_net()
    for prune in (tfprune.SoftPruning, lambda *args, ratio, **more: tfprune.Pruning(model, "", tmp_path, **more)):
        with pytest.raises(PlanError, match="taylor needs a data sample"):
            prune(criterion="taylor", ratio=0.5)
        with pytest.raises(DataError, match="an iterator came"):
            prune(criterion="taylor", ratio=0.5, data=iter([]))


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("criterion", "settings", "error", "message"),
    [
        ("tailor", {}, PlanError, "no criterion 'tailor'; did you mean 'taylor'"),
        (3, {}, PlanError, "no criterion 3"),
        ("taylor", {}, PlanError, "taylor needs a data sample"),
        (Taylor(), {"data": []}, DataError, "holds no samples"),
        ("taylor", {"data": (np.zeros((0, 6, 6, 3)), np.zeros(0))}, DataError, "holds no samples"),
        ("activation", {"data": [(np.zeros((0, 6, 6, 3)), np.zeros(0))]}, DataError, "holds no samples"),
        ("activation", {"data": iter([])}, DataError, "a generator can be read only once"),
        ("taylor", {"data": np.zeros((4, 6, 6, 3))}, DataError, "need labels"),
        ("taylor", {"data": (np.zeros((4, 6, 6, 3)), np.zeros(4))}, DataError, "need a loss"),
        ("taylor", {"data": (np.zeros((4, 6, 6, 3)), np.zeros(3)), "loss": squares}, DataError, "3 and 4 samples"),
        ("taylor", {"data": (np.zeros((4, 6, 6, 3)), np.zeros(4)), "loss": "mes"}, DataError, "no loss 'mes'"),
        ("taylor", {"data": (np.zeros((4, 6, 6, 3)), np.zeros(4)), "loss": 3}, DataError, "3 came"),
        ("activation", {"data": np.zeros((4, 9))}, DataError, "chain cannot be run on data="),
        ("activation", {"data": 3}, DataError, "and int came"),
        ("activation", {"data": "x.npz"}, DataError, "and str came"),
        ("activation", {"data": [(1, 2, 3, 4)]}, DataError, "a tuple of 4"),
        ("activation", {"data": [0.5]}, DataError, "a single number"),
        (
            "taylor",
            {"data": (np.full((4, 6, 6, 3), np.nan), np.zeros(4)), "loss": squares},
            DataError,
            "loss .* is nan",
        ),
    ],
)
def test_bad_input(criterion, settings, error, message):
    model = chain()
    before = [numbers(variable) for variable in model.variables]
    with pytest.raises(error, match=message):
        score(tfprune.trace(model), criterion, **settings)
    assert all(np.array_equal(a, numbers(b)) for a, b in zip(before, model.variables, strict=True))


def test_evidence_of_another_criterion_or_graph():
    model = chain()
    evidence = gather(tfprune.trace(model), [APoZ()], sample_of(model))
    with pytest.raises(PlanError, match="not gathered for taylor"):
        score(evidence.graph, "taylor", data=evidence)
    with pytest.raises(PlanError, match="and this graph"):
        score(tfprune.trace(chain()), "apoz", data=evidence)
    with pytest.raises(PlanError, match="none of the criteria"):
        gather(evidence.graph, [L1()], sample_of(model))


def test_a_graph_of_no_keras_model():
    graph = tfprune.trace(chain())
    graph.model = object()  # an ONNX model's
    assert score(graph, "l2")["a"].shape == (12,)
    with pytest.raises(PlanError, match="taylor needs to run the model, and chain is no Keras model"):
        score(graph, "taylor", data=(np.zeros((2, 6, 6, 3)), np.zeros(2)), loss=squares)


def test_weights_that_are_not_finite():
    model = chain()
    kernel = numbers(model.get_layer("a").kernel)
    kernel[0, 0, 0, 3] = np.nan
    model.get_layer("a").kernel.assign(kernel)
    with pytest.raises(PlanError, match="l1 gives scores for group 'a' that are not finite .nan for channel 3."):
        scored(model, "l1")


# ---------------------------------------------------------------------- other backends

SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import numpy as np
from test_criteria import *
for make in (chain, attention_net, recurrent_net, nested_net):
    model = shaken(make())
    graph = tfprune.trace(model)
    data = Sample(sample_of(model), batch_size=5)
    evidence = gather(graph, map(named, TABLE), data, squares)
    for name in TABLE:
        scores = Scorer(graph, name, data=evidence)()
        print(make.__name__, name, *(f"{{x:.6e}}" for one in scores.values() for x in one))
"""


def scores_on(backend):
    script = SCRIPT.format(tests=str(Path(__file__).parent))
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line.split() for line in done.stdout.splitlines() if line.split()[:2][-1:] and line.split()[1] in TABLE]
    return {(row[0], row[1]): np.array(row[2:], float) for row in rows}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_backends_say_the_same(backend):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    expected, got = scores_on("tensorflow"), scores_on(backend)
    assert len(expected) == len(got) == 4 * len(TABLE)
    for key, scores in expected.items():
        np.testing.assert_allclose(
            got[key], scores, rtol=1e-3, atol=1e-4 * np.abs(scores).max(initial=0), err_msg=str(key)
        )
