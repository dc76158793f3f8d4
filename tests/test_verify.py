"""The comparison that strip and export rely on: what counts as the same."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers
from models import floats, residual_net, shaken

import tfprune
from tfprune.errors import VerificationError
from tfprune.verify import compare, tolerance_of


def test_a_difference_is_a_fraction_of_the_largest_output():
    found = compare([np.array([1.0, -4.0])], [np.array([1.0, -4.2])], tolerance=0.01)
    assert found.relative == pytest.approx(0.05) and not found.equal and "DIFFERENT" in str(found)
    with pytest.raises(VerificationError, match=r"stripping x: outputs differ by 0\.2"):
        found.raise_if_different("stripping x")


def test_each_output_is_measured_against_its_own_scale():
    large, small = np.array([1000.0, -1000.0]), np.array([0.001, -0.002])
    found = compare([large, small], [large, small * 1.5], tolerance=1e-5)
    assert not found.equal and found.relative == pytest.approx(0.5) and found.largest == 0.002


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_what_one_has_and_the_other_has_not_is_a_difference_in_any_output(bad, place):
    good = [np.ones(3), np.ones(3)]
    other = [a.copy() for a in good]
    other[place][1] = bad
    assert not compare(good, other, 1e-5).equal and not compare(other, good, 1e-5).equal
    assert compare(other, other, 1e-5).equal


def test_shapes_and_numbers_of_outputs():
    with pytest.raises(VerificationError, match="shapes"):
        compare([np.ones(3)], [np.ones(4)], 1e-5)
    with pytest.raises(VerificationError):
        compare([np.ones(3)], [np.ones(3), np.ones(3)], 1e-5)
    with pytest.raises(VerificationError):
        compare([], [], 1e-5)


def test_two_models():
    model = shaken(residual_net())
    other = keras.models.clone_model(model)
    other.set_weights(model.get_weights())
    assert tfprune.verify(model, other).difference == 0
    other.get_layer("head").bias.assign_add([1e-3, 0, 0])
    assert not tfprune.verify(model, other).equal
    assert tfprune.verify(model, other, tolerance=0.1).equal
    assert tfprune.verify(model, lambda arrays: [np.asarray(model(arrays[0]))]).equal


def test_the_tolerance_follows_the_type():
    for name, limit in (("float32", 1e-5), ("float64", 1e-12)):
        with floats(name):
            inputs = keras.Input((4,))
            assert tolerance_of(keras.Model(inputs, layers.Dense(2)(inputs))) == limit
