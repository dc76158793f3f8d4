"""Run by test_distribution.py: soft pruning on two replicas of `tf.distribute.MirroredStrategy`, and on one device."""

import keras
import numpy as np
import tensorflow as tf
from test_loops import assert_stripped, data, momentum, network

import tfprune

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


def trained(mode, criterion, strategy):
    """A trained model, and what was chosen."""
    with strategy.scope():
        model = network(synchronized=True)
        model.compile(momentum(use_ema=True, ema_momentum=0.5), "mse", jit_compile=False)
    sample = data() if criterion == "taylor" else None
    pruning = tfprune.SoftPruning(criterion, ratio=0.5, mode=mode, begin=1, slots="reset", data=sample)
    history = model.fit(*data(), epochs=3, batch_size=8, verbose=0, shuffle=False, callbacks=[pruning]).history
    return model, pruning.plan, history


def main():
    """Both modes, and a criterion with gradients."""
    both = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    for mode, criterion in (("hard", "l2"), ("soft", "taylor")):
        model, plan, history = trained(mode, criterion, both)
        kernel = model.get_layer("first").kernel.value
        replicas = [value.numpy() for value in kernel.values]
        assert len(replicas) == 2
        for array in replicas:
            assert sorted(np.flatnonzero(np.abs(array).sum((0, 1, 2)) == 0)) == list(plan.channels["first"])
        np.testing.assert_array_equal(*replicas)
        assert mode == "soft" or history["failure_rate"][1:] == [0.0, 0.0]
        assert_stripped(model)

        alone, same_plan, _ = trained(mode, criterion, tf.distribute.get_strategy())
        np.testing.assert_array_equal(plan.gone, same_plan.gone)
        for one, other in zip(alone.get_weights(), model.get_weights(), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
        print(mode, criterion, "ok", flush=True)


if __name__ == "__main__":
    keras.config.disable_traceback_filtering()
    main()
