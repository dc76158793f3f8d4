"""What soft pruning zeroes, and what it leaves; the weights are looked at one by one."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers
from models import inverted_residual_net, numbers, outputs, residual_net, shaken

import tfprune
from tfprune.soft import Zeroing


def changed(model, act):
    """`layer/weight` -> where it was changed, for those that were."""
    before = [numbers(v) for v in model.weights]
    act()
    found = {}
    for variable, old in zip(model.weights, before, strict=True):
        new = numbers(variable)
        if not np.array_equal(new, old):
            assert (new[new != old] == 0).all(), "something was changed and not zeroed"
            found["/".join(variable.path.split("/")[-2:])] = new != old
    return found


def plan_for(model, **groups):
    return tfprune.PruningPlan.from_groups(tfprune.trace(model), groups)


def test_what_is_zeroed_in_an_inverted_residual():
    model = shaken(inverted_residual_net())
    found = changed(model, lambda: tfprune.soft_prune(model, plan_for(model, expand=[1, 5])))
    zeros = {path: [sorted(set(axis.tolist())) for axis in np.nonzero(where)] for path, where in found.items()}
    assert {path: axes[-1] for path, axes in zeros.items() if path.startswith("expand")} == {
        "expand/kernel": [1, 5], "expand_bn/gamma": [1, 5], "expand_bn/beta": [1, 5]}  # fmt: skip
    assert zeros["depthwise/kernel"][2] == [1, 5] and found["depthwise/kernel"].sum() == 2 * 9
    assert zeros["depthwise_bn/gamma"] == zeros["depthwise_bn/beta"] == [[1, 5]]
    # Who reads the channel loses the slice; the gate's own filter and bias for it go too.
    assert zeros["squeeze/kernel"][2] == zeros["project/kernel"][2] == [1, 5]
    assert zeros["excite/kernel"][3] == zeros["excite/bias"][0] == [1, 5]
    assert len(found) == 10 and not any("moving" in path for path in found)


def test_a_bias_and_the_positions_behind_flatten():
    model = shaken(
        keras.Sequential(
            [keras.Input((5, 5, 2)), layers.Conv2D(4, 2, name="a"), layers.Flatten(), layers.Dense(3, name="b")]
        )
    )
    found = changed(model, lambda: tfprune.soft_prune(model, plan_for(model, a=[2])))
    assert set(found) == {"a/kernel", "a/bias", "b/kernel"}
    assert np.flatnonzero(found["b/kernel"].any(axis=1)).tolist() == list(range(2, 4 * 4 * 4, 4))
    assert found["a/bias"].tolist() == [False, False, True, False]


def test_prelu_keeps_its_slopes():
    inputs = keras.Input((5, 5, 2))
    x = layers.PReLU(shared_axes=(1, 2), name="slope")(layers.Conv2D(4, 2, name="a")(inputs))
    model = shaken(keras.Model(inputs, layers.Conv2D(2, 1, name="b")(x)))
    assert not any(
        "slope" in path for path in changed(model, lambda: tfprune.soft_prune(model, plan_for(model, a=[2])))
    )


def test_grouped_kernels_are_zeroed_in_each_group():
    inputs = keras.Input((5, 5, 3))
    x = layers.Conv2D(6, 3, groups=2, name="b")(layers.Conv2D(8, 1, name="a")(inputs))
    model = shaken(keras.Model(inputs, layers.Conv2D(2, 1, name="c")(x)))
    found = changed(model, lambda: tfprune.soft_prune(model, plan_for(model, a=[1])))
    assert np.flatnonzero(found["a/bias"]).tolist() == [1, 5]
    assert np.flatnonzero(found["b/kernel"].any(axis=(0, 1, 3))).tolist() == [1] and found["b/kernel"].sum() == 9 * 6


def test_whole_layers_are_zeroed_with_the_normalization_behind_them():
    model = shaken(residual_net())
    graph = tfprune.trace(model)
    plan = tfprune.PruningPlan.from_groups(graph, {}, layers=("a2",))
    found = changed(model, lambda: tfprune.soft_prune(model, plan))
    assert set(found) == {"a2/kernel", "a2_bn/gamma", "a2_bn/beta"} and all(where.all() for where in found.values())


def test_nothing_else_happens():
    model = shaken(residual_net())
    plan = tfprune.select(model, "l1", ratio=0.5)
    assert changed(model, lambda: tfprune.soft_prune(model, plan))
    assert not changed(model, lambda: tfprune.soft_prune(model, plan)), "the second time there is nothing to zero"
    assert not changed(model, lambda: tfprune.select(model, "l1", ratio=0.5))
    assert min(np.std(y) for y in outputs(model)) > 1e-3


def trained(model, optimizer):
    model.compile(optimizer, "mse")
    shapes = [(8, *tensor.shape[1:]) for tensor in model.inputs]
    targets = [np.ones((8, *tensor.shape[1:])) for tensor in model.outputs]
    (given,) = (np.random.default_rng(0).normal(size=shape) for shape in shapes)
    model.fit(given, targets[0], epochs=2, verbose=0)
    return model.optimizer


def slots_of(optimizer, name):
    return [numbers(v) for v in optimizer.variables if name in v.path]


@pytest.mark.parametrize("optimizer", [keras.optimizers.SGD(0.01, momentum=0.9), keras.optimizers.Adam(0.01)])
def test_optimizer_slots(optimizer):
    model = shaken(residual_net())
    optimizer = trained(model, optimizer)
    plan = plan_for(model, a1=[0, 3])
    before = {v.path: numbers(v) for v in optimizer.variables}
    Zeroing(model, plan).apply_to_slots(optimizer)
    touched = {
        v.path: numbers(v) != before[v.path] for v in optimizer.variables if (numbers(v) != before[v.path]).any()
    }
    count = len(slots_of(optimizer, "a1_kernel"))
    assert count >= 1 and len(touched) == 4 * count  # kernel, gamma, beta, the reader's kernel
    for path, where in touched.items():
        part = path.rpartition("/")[2]
        axis = 2 if part.startswith("a2_kernel") else where.ndim - 1
        other = tuple(a for a in range(where.ndim) if a != axis)
        assert np.flatnonzero(where.any(axis=other)).tolist() == [0, 3], path
    kernels = slots_of(optimizer, "a1_kernel")
    assert all((k[..., [0, 3]] == 0).all() and (k[..., 1] != 0).any() for k in kernels)


def test_slots_of_layers_with_one_name():
    """Two nested models, each with a layer `c`: their variables have the same path, their slots the same names."""

    def inner(name):
        given = keras.Input((5, 5, 3))
        return keras.Model(given, layers.Conv2D(2, 1, name="d")(layers.Conv2D(4, 1, name="c")(given)), name=name)

    inputs = keras.Input((5, 5, 3))
    model = shaken(keras.Model(inputs, layers.Add()([inner("left")(inputs), inner("right")(inputs)])))
    optimizer = trained(model, keras.optimizers.SGD(0.01, momentum=0.9))
    slots = slots_of(optimizer, "c_kernel")
    assert len(slots) == 2 and all((slot != 0).all() for slot in slots)
    Zeroing(model, plan_for(model, **{"right/c": [1]})).apply_to_slots(optimizer)
    left, right = slots_of(optimizer, "c_kernel")
    assert (left != 0).all() and (right[..., 1] == 0).all() and (right[..., 0] != 0).all()
