"""Knowledge distillation: the loss is the formula's, the student learns, the teacher stays."""

import keras
import numpy as np
import pytest
from keras import layers
from models import floats, numbers, shaken

import tfprune
from tfprune.distillation import Distiller
from tfprune.errors import PlanError


def network(width, seed, activation="softmax", **settings):
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(width, activation="relu", name="inner", **settings),
            layers.Dense(4, activation=activation, name="scores"),
        ]
    )
    return shaken(model, seed)


def samples(count=32):
    generator = np.random.default_rng(0)
    return generator.standard_normal((count, 6)), generator.integers(0, 4, count)


def compiled(model, from_logits=False, rate=0.01):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"], jit_compile=False)
    return model


def softmax(x):
    powers = np.exp(x - x.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_the_loss_is_the_formula(from_logits, weighted):
    """Worked out in numpy from logits; models that give probabilities come to the same."""
    x, y = samples()
    weights = np.linspace(0.1, 2, len(x)) if weighted else np.ones(len(x))
    activation = None if from_logits else "softmax"
    student, teacher = network(3, 1, activation), network(16, 2, activation)
    distiller = compiled(Distiller(student, teacher, temperature=5, alpha=0.7, from_logits=from_logits), from_logits)
    y_pred = distiller(x)
    loss = float(distiller.compute_loss(x, y, y_pred, weights if weighted else None, training=True))
    plain = float(distiller.compute_loss(x, y, y_pred, weights if weighted else None, training=False))

    own, given = (
        numbers(model.layers[0](x)) @ numbers(model.layers[1].kernel) + numbers(model.layers[1].bias)
        for model in (student, teacher)
    )
    hard = np.mean(weights * -np.log(softmax(own)[np.arange(len(x)), y]))
    soft_teacher, soft_student = softmax(given / 5), softmax(own / 5)
    divergence = (soft_teacher * np.log(soft_teacher / soft_student)).sum(1)
    expected = 0.3 * hard + 0.7 * 25 * np.mean(weights * divergence)
    assert loss == pytest.approx(expected, rel=1e-4)
    assert plain == pytest.approx(hard, rel=1e-5)
    assert abs(loss - hard) > 0.05


def test_the_student_comes_to_agree_with_the_teacher():
    x, y = samples(64)
    student, teacher = network(12, 1), network(16, 2)
    before = [numbers(variable) for variable in teacher.variables]
    distiller = compiled(Distiller(student, teacher, temperature=2, alpha=1.0), rate=0.05)
    assert [id(v) for v in distiller.trainable_variables] == [id(v) for v in student.trainable_variables]

    def apart():
        return float(np.abs(numbers(student(x)) - numbers(teacher(x))).mean())

    first = apart()
    history = distiller.fit(x, y, batch_size=16, epochs=40, verbose=0).history
    assert history["loss"][-1] < history["loss"][0] / 10
    assert apart() < first / 4
    for array, variable in zip(before, teacher.variables, strict=True):
        np.testing.assert_array_equal(array, numbers(variable))
    assert teacher.trainable


def test_without_the_teachers_share_it_is_plain_training():
    x, y = samples()
    plain, student = compiled(network(5, 1)), network(5, 1)
    distiller = compiled(Distiller(student, network(8, 2), alpha=0.0))
    histories = [model.fit(x, y, shuffle=False, epochs=3, verbose=0).history for model in (plain, distiller)]
    np.testing.assert_allclose(histories[0]["loss"], histories[1]["loss"], rtol=1e-6)
    for a, b in zip(plain.weights, student.weights, strict=True):
        np.testing.assert_allclose(numbers(a), numbers(b), atol=1e-6)


def test_evaluation_is_the_students():
    x, y = samples()
    student = network(5, 1)
    distiller = compiled(Distiller(student, network(8, 2)))
    assert distiller.evaluate(x, y, verbose=0) == pytest.approx(compiled(student).evaluate(x, y, verbose=0), rel=1e-6)
    np.testing.assert_array_equal(distiller.predict(x, verbose=0), student.predict(x, verbose=0))


def test_regularisation_stays_whole():
    x, y = samples()
    student = network(5, 1, kernel_regularizer=keras.regularizers.L2(0.1))
    distiller = compiled(Distiller(student, network(8, 2), alpha=0.9))
    whole = float(distiller.compute_loss(x, y, distiller(x), training=True))
    penalty = 0.1 * float(np.square(numbers(student.layers[0].kernel)).sum())
    without = compiled(Distiller(network(5, 1), network(8, 2), alpha=0.9))
    assert whole - float(without.compute_loss(x, y, without(x), training=True)) == pytest.approx(penalty, rel=1e-4)


def test_soft_pruning_inside():
    """The callback traces the distiller, prunes the student, and leaves the teacher."""
    x, y = samples()
    student, teacher = network(8, 1), network(8, 2)
    distiller = compiled(Distiller(student, teacher))
    distiller.fit(x, y, epochs=2, verbose=0, callbacks=[tfprune.SoftPruning("l2", ratio=0.5)])
    assert tfprune.strip(student).model.get_layer("inner").units == 4
    assert (np.abs(numbers(teacher.layers[0].kernel)).sum(0) > 0).all()


def test_functional_students_with_named_inputs():
    with floats("float64"):
        inputs = {"a": keras.Input((3,), name="a"), "b": keras.Input((3,), name="b")}
        both = layers.Concatenate()([inputs["a"], inputs["b"]])
        student, teacher = (
            shaken(keras.Model(inputs, layers.Dense(4, activation="softmax")(both)), seed) for seed in (1, 2)
        )
        distiller = compiled(Distiller(student, teacher))
        x, y = samples()
        history = distiller.fit({"a": x[:, :3], "b": x[:, 3:]}, y, epochs=20, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"alpha": 1.5}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
    ],
)
def test_numbers_out_of_range(options, message):
    with pytest.raises(PlanError, match=message):
        Distiller(network(3, 1), network(3, 2), **options)


def test_models_that_do_not_fit():
    student = network(3, 1)
    with pytest.raises(PlanError, match="the same model"):
        Distiller(student, student)
    other = keras.Sequential([keras.Input((6,)), layers.Dense(5)])
    with pytest.raises(PlanError, match=r"\(None, 4\).*\(None, 5\)"):
        Distiller(student, other)
