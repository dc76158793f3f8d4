"""Sensitivity sweeps: what is measured is what strip gives, the model stays as it is, and mistakes are told."""

import json

import keras
import numpy as np
import pytest
from keras import layers
from models import conv_bn, floats, inverted_residual_net, numbers, shaken

import tfprune
from tfprune.criteria import criterion_named
from tfprune.errors import DataError, PlanError, TraceError
from tfprune.sensitivity import TOGETHER, Curve, Sensitivity


def samples(model, count=24, seed=3):
    """Random images, and the classes that the model itself finds in most of them."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((count, *model.inputs[0].shape[1:])).astype(model.inputs[0].dtype)
    y = np.argmax(keras.ops.convert_to_numpy(model(x, training=False)), axis=1)
    y[: count // 4] = (y[: count // 4] + 1) % 3
    return x, y


def compiled(model, metrics=("accuracy",), eager=True):
    """A step in Python takes less time than compiling one, but for many points."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=list(metrics), jit_compile=False, run_eagerly=eager)
    return model


def chain(classes=3):
    image = keras.Input((8, 8, 3))
    x = conv_bn(image, 10, name="first")
    x = conv_bn(x, 6, name="second", strides=2)
    return keras.Model(image, layers.Dense(classes, name="head")(layers.Flatten()(x)), name="chain")


@pytest.fixture(scope="module")
def model():
    return compiled(shaken(chain()))


@pytest.fixture(scope="module")
def data(model):
    return samples(model)


def sweep(model, data, *arguments, **options):
    return tfprune.sensitivity(model, data, *arguments, **{"ratios": (0.25, 0.5), "progress": False, **options})


@pytest.mark.parametrize("build", [chain, inverted_residual_net])
def test_zeroing_and_removing_coincide(build):
    """The curves "zero weight" and "real remove" of CNN-Pruning-Engine."""
    with floats("float64"):
        model = compiled(shaken(build()), eager=build is inverted_residual_net)
        result = sweep(model, samples(model), "l2", metric="loss", remove=True)
    assert len(result.curves) >= 2 and result.together is not None
    for curve in result.all_curves:
        assert len(curve.removed) == 2 and all(pruned > 0 for pruned in curve.pruned)
        np.testing.assert_allclose(curve.removed, curve.values, rtol=1e-12)
    assert result.apart <= 1e-12
    assert len({value for curve in result.all_curves for value in (result.baseline, *curve.values)}) > 4


def test_what_is_measured():
    """Against zeros written by hand and a cross-entropy worked out in numpy."""
    with floats("float64"):
        model = compiled(shaken(chain()))
        x, y = samples(model)
        result = sweep(model, (x, y), "l1", ratios=(0.5,), metric="loss", mode="layerwise", only="first")
        kernels = [numbers(model.get_layer(name).kernel) for name in ("first", "second")]
        norms = np.abs(kernels[0]).sum((0, 1, 2)) + np.abs(kernels[1]).sum((0, 1, 3))
        gone = np.argsort(norms)[:5]
        norm = model.get_layer("first_bn")
        by_hand = keras.models.clone_model(model)
        by_hand.set_weights(model.get_weights())
        for name in ("gamma", "beta"):
            array = numbers(getattr(norm, name))
            array[gone] = 0
            getattr(by_hand.get_layer("first_bn"), name).assign(array)
        scores = keras.ops.convert_to_numpy(by_hand(x, training=False))
    probabilities = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    assert [curve.group for curve in result.curves] == ["first"] and result.together is None
    assert result.curve("first").pruned == (5,) and result.curve("first").width == 10
    np.testing.assert_allclose(
        result.curve("first").values, [-np.log(probabilities[np.arange(len(y)), y]).mean()], rtol=1e-7
    )


def test_the_model_is_not_changed(model, data):
    model.evaluate(*data, verbose=0)
    before = [numbers(variable) for variable in (*model.variables, *model.metrics_variables)]
    sweep(model, data, remove=True)
    for array, variable in zip(before, (*model.variables, *model.metrics_variables), strict=True):
        np.testing.assert_array_equal(array, numbers(variable))


def test_the_copy_is_put_right_after_each_point(model, data):
    """A curve measured behind another comes out as one measured alone."""
    after = sweep(model, data, metric="loss", mode="layerwise")
    alone = sweep(model, data, metric="loss", mode="layerwise", only="second")
    assert [curve.group for curve in after.curves] == ["first", "second"]
    np.testing.assert_allclose(after.curve("second").values, alone.curve("second").values, rtol=1e-6)
    assert after.baseline == pytest.approx(model.evaluate(*data, verbose=0)[0], rel=1e-6)


def test_ratio_0_changes_nothing(model, data):
    result = sweep(model, data, ratios=(0.0,), metric="loss", remove=True)
    for curve in result.all_curves:
        assert curve.pruned == (0,) and curve.values == (result.baseline,)
    assert result.apart <= 1e-6 * result.baseline


def test_each_group_is_scored_once(model, data):
    seen = []

    def counted(view):
        seen.append(view.group.name)
        return criterion_named("l1")(view)

    result = sweep(model, data, counted, ratios=(0.1, 0.5, 0.3))
    assert sorted(seen) == ["first", "second"]
    assert result.criterion == "counted" and result.swept == (0.1, 0.3, 0.5)


def test_criteria_that_need_data(model, data):
    """They look at `data`, or at a sample of their own; both are what `select` chooses with it."""
    values = []
    for sample in (None, samples(model, count=12, seed=9)):
        result = sweep(model, data, "taylor", ratios=(0.5,), metric="loss", mode="full", sample=sample)
        plan = tfprune.select(model, "taylor", ratio=0.5, round_to=1, data=data if sample is None else sample)
        zeroed = compiled(keras.models.clone_model(model))
        zeroed.set_weights(model.get_weights())
        tfprune.soft_prune(zeroed, plan)
        values += result.together.values
        assert values[-1] == pytest.approx(zeroed.evaluate(*data, verbose=0)[0], rel=1e-6)
    assert abs(values[0] - values[1]) > 1e-3


def test_modes_and_rounding(model, data):
    full = sweep(model, data, mode="full", round_to=4)
    assert not full.curves and full.together.width == 16 and full.together.pruned == (4, 8)
    layerwise = sweep(model, data, mode="layerwise")
    assert [(curve.group, curve.pruned) for curve in layerwise.curves] == [("first", (2, 5)), ("second", (1, 3))]
    assert layerwise.together is None


@pytest.mark.parametrize("kind", ["tf.data", "PyDataset", "weighted"])
def test_kinds_of_data(model, data, kind):
    x, y = data
    given = (x, y, np.ones(len(y)))
    if kind == "tf.data":
        given = pytest.importorskip("tensorflow").data.Dataset.from_tensor_slices(data).batch(5)
    if kind == "PyDataset":

        class Batches(keras.utils.PyDataset):
            def __len__(self):
                return len(y) // 6

            def __getitem__(self, index):
                return x[index * 6 : index * 6 + 6], y[index * 6 : index * 6 + 6]

        given = Batches()
    expected = sweep(model, data, metric="loss", mode="full")
    found = sweep(model, given, metric="loss", mode="full")
    np.testing.assert_allclose(found.together.values, expected.together.values, rtol=1e-5)


def test_metrics(model, data):
    by_default = sweep(model, data, mode="full")
    assert (by_default.metric, by_default.better) == ("accuracy", "higher")
    assert by_default.baseline == pytest.approx(0.75)
    loss = sweep(model, data, mode="full", metric="loss")
    assert loss.better == "lower"
    assert loss.drops(loss.together) == tuple(value - loss.baseline for value in loss.together.values)
    first = compiled(shaken(chain()), metrics=[keras.metrics.SparseTopKCategoricalAccuracy(2, name="top"), "accuracy"])
    assert sweep(first, data, mode="full").metric == "top"
    only_loss = compiled(shaken(chain()), metrics=())
    assert sweep(only_loss, data, mode="full").metric == "loss"

    def spread(model, data):
        return float(np.std(keras.ops.convert_to_numpy(model(data[0]))))

    result = sweep(shaken(chain()), data, metric=spread, mode="full", remove=True)  # not compiled
    assert (result.metric, result.better) == ("spread", "higher")
    assert result.baseline == pytest.approx(spread(model, data), rel=1e-5)
    assert result.apart < 1e-5 < result.baseline - result.together.values[-1]


def test_several_outputs():
    image = keras.Input((8, 8, 3))
    x = layers.Flatten()(conv_bn(image, 8, name="conv"))
    outputs = {"kind": layers.Dense(3, name="kind")(x), "size": layers.Dense(1, name="size")(x)}
    model = shaken(keras.Model(image, outputs))
    losses = {"kind": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "size": "mse"}
    model.compile("adam", losses, metrics={"kind": ["accuracy"], "size": ["mae"]}, run_eagerly=True)
    x = np.random.default_rng(0).standard_normal((16, 8, 8, 3))
    y = {"kind": np.arange(16) % 3, "size": np.arange(16.0)}
    expected = model.evaluate(x, y, verbose=0, return_dict=True)
    for metric, better in (
        ("kind_accuracy", "higher"),
        ("size_mae", "lower"),
        ("size_loss", "lower"),
        ("loss", "lower"),
    ):
        result = sweep(model, (x, y), ratios=(0.5,), metric=metric, mode="full", remove=True)
        assert (result.metric, result.better) == (metric, better)
        assert result.baseline == pytest.approx(expected[metric], rel=1e-5)
        np.testing.assert_allclose(result.together.removed, result.together.values, rtol=1e-5)
    assert sweep(model, (x, y), mode="full").metric == "kind_accuracy"


def test_metrics_that_nobody_knows(data):
    class Odd(keras.metrics.Mean):
        def __init__(self, share, name="odd"):
            super().__init__(name=name)
            self._direction = None

        def update_state(self, y_true, y_pred, sample_weight=None):
            return super().update_state(keras.ops.mean(y_pred))

    model = compiled(shaken(chain()), metrics=[Odd(0.5)])
    with pytest.raises(PlanError, match="odd is not carried over"):  # its config has no share
        sweep(model, data)
    assert sweep(model, data, mode="full", metric="loss").metric == "loss"

    class Plain(Odd):
        def __init__(self, name="plain"):
            super().__init__(1, name)

        def get_config(self):
            return {"name": self.name}

    model = compiled(shaken(chain()), metrics=[Plain()])
    with pytest.raises(PlanError, match="higher or a lower plain is better"):
        sweep(model, data)
    assert sweep(model, data, mode="full", better="lower").better == "lower"


def swept(values, better="higher", baseline=0.9):
    curves = tuple(Curve(name, 10, (1, 2, 5), tuple(row)) for name, row in values.items())
    return Sensitivity("net", "l1", "accuracy", better, baseline, (0.1, 0.2, 0.5), curves)


def test_ratios_that_cost_at_most_so_much():
    result = swept(
        {
            "hardly": (0.91, 0.9, 0.895),
            "badly": (0.8, 0.7, 0.1),
            "back": (0.895, 0.85, 0.9),  # worse, then better again: one does not jump over the worse
            "nan": (0.9, float("nan"), 0.9),
        }
    )
    assert result.ratios(max_drop=0.01) == {"hardly": 0.5, "badly": 0.0, "back": 0.1, "nan": 0.1}
    assert result.ratios(0.1) == {"hardly": 0.5, "badly": 0.1, "back": 0.5, "nan": 0.1}
    losses = swept({"a": (1.0, 1.2, 0.5)}, better="lower", baseline=1.0)
    assert losses.ratios(0.1) == {"a": 0.1} and losses.ratios(0.2) == {"a": 0.5}
    for wrong in (-0.1, float("nan"), "1%", True):
        with pytest.raises(PlanError, match="max_drop"):
            result.ratios(wrong)
    with pytest.raises(PlanError, match="layerwise"):
        swept({}).ratios(0.1)
    with pytest.raises(PlanError, match=r"did you mean 'back'"):
        result.curve("bakc")


def test_json_and_table(model, data):
    result = sweep(model, data, remove=True)
    assert Sensitivity.from_json(result.to_json()) == result
    printed = str(result)
    assert "first" in printed and TOGETHER in printed and "removed" in printed and "at most" in printed
    assert "head: 3 channels" in printed  # what stays, and why
    damaged = json.loads(result.to_json())
    damaged["curves"][0]["values"].pop()
    for text in ("", "[]", "{}", json.dumps(damaged), result.to_json()[:-20]):
        with pytest.raises(PlanError, match="sensitivity sweep"):
            Sensitivity.from_json(text)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ratios": (0.5, 1)}, PlanError, "ratio 1"),
        ({"ratios": (-0.1,)}, PlanError, "-0.1"),
        ({"ratios": ()}, PlanError, "no ratios"),
        ({"ratios": ("half",)}, PlanError, "half"),
        ({"mode": "every"}, PlanError, "'every'"),
        ({"only": "frist"}, PlanError, "frist"),
        ({"only": "head"}, PlanError, "nothing can be pruned"),
        ({"criterion": "l3"}, PlanError, "l3"),
        ({"metric": "acuracy"}, PlanError, "did you mean 'accuracy'"),
        ({"better": "more"}, PlanError, "'more'"),
        ({"metric": lambda model, data: [1, 2]}, PlanError, "one number"),
        ({"metric": lambda model, data: float("nan")}, DataError, "not a number"),
        ({"data": None}, DataError, "must be given"),
        ({"data": (np.zeros((0, 8, 8, 3)), np.zeros(0))}, DataError, "empty"),
        ({"data": (np.zeros((4, 8, 8, 3)),)}, DataError, "1 parts"),
        ({"data": np.zeros((4, 8, 8, 3))}, DataError, "labels"),
        ({"data": (np.zeros((4, 8, 8, 3)), np.zeros(3))}, DataError, r"\[4, 3\]"),
        ({"data": (np.zeros((4, 5, 8, 3)), np.zeros(4))}, DataError, "chain could not be evaluated"),
        ({"data": iter([])}, DataError, "again and again"),
        ({"data": (np.zeros((2, 8, 8, 3)), [0, 1])}, DataError, "numpy.array"),
        ({"data": (np.zeros((2, 8, 8, 3)), np.array(["a", "b"]))}, DataError, "chain could not be evaluated"),
        ({"data": []}, DataError, "0 parts"),
        ({"data": [], "metric": lambda model, data: 1.0}, DataError, "empty"),
    ],
)
def test_mistakes(model, data, options, error, message):
    with pytest.raises(error, match=message):
        sweep(model, **{"data": data, **options})


def test_models_that_cannot_be_measured(data):
    with pytest.raises(TraceError, match=r"a Keras model, and str came"):
        sweep("model.onnx", data)
    with pytest.raises(PlanError, match="not compiled"):
        sweep(shaken(chain()), data)

    class Own(keras.Model):
        def test_step(self, data):
            return {"score": 1.0}

    image = keras.Input((8, 8, 3))
    own = compiled(Own(image, chain()(image)))
    with pytest.raises(PlanError, match="its own test_step"):
        sweep(own, data)
    assert sweep(own, data, metric=lambda model, data: 1.0, mode="full").baseline == 1.0


def test_empty_tf_data(model):
    tf = pytest.importorskip("tensorflow")
    with pytest.raises(DataError, match="empty"):
        sweep(model, tf.data.Dataset.from_tensor_slices((np.zeros((0, 8, 8, 3)), np.zeros(0))).batch(2))


def test_progress(model, data, capsys):
    sweep(model, data, progress=True)
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [f"sensitivity: {name}" for name in ("first", "second", TOGETHER)]
    assert not printed.out
    sweep(model, data)
    assert not capsys.readouterr().err


def test_the_ratios_feed_select(data):
    """Each group loses what it lost on its curve, though one name is the beginning of another."""
    image = keras.Input((8, 8, 3))
    x = conv_bn(image, 10, name="conv1")
    x = layers.Add()([x, conv_bn(x, 10, name="conv10")])  # two writers
    x = conv_bn(x, 6, name="conv11", strides=2)
    model = compiled(shaken(keras.Model(image, layers.Dense(3, name="head")(layers.Flatten()(x)))))
    result = sweep(model, data, "l1", ratios=(0.2, 0.4, 0.6), metric="loss", mode="layerwise")
    drops = sorted(max(result.drops(curve)) for curve in result.curves)
    ratios = result.ratios(max_drop=max(0.0, sum(drops) / 2))
    assert len(ratios) == 2 and len(set(ratios.values())) == 2
    plan = tfprune.select(model, "l1", ratio=ratios, round_to=1)
    for curve in result.curves:
        steps = dict(zip((0.0, *result.swept), (0, *curve.pruned), strict=True))
        assert len(plan.channels.get(curve.group, ())) == steps[ratios[curve.group]]
