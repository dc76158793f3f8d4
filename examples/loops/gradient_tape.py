"""Soft pruning in a loop written with TensorFlow's GradientTape: python examples/loops/gradient_tape.py"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import setting
import tensorflow as tf

import tfprune


def train(model, optimizer, loss, batches, epochs, pruning):
    """Train on a `tf.data.Dataset`."""
    # Before the first step is traced: hard pruning puts its zeros into the optimizer's part of it.
    pruning.start(model, optimizer=optimizer, epochs=epochs)

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=True))
        gradients = tape.gradient(value, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)

    for _ in range(epochs):
        for x, y in batches:
            step(x, y)
            pruning.after_step()
        pruning.after_epoch()  # before validation and checkpoints, so that they see the zeros
    pruning.finish()


def main():
    """Train, strip, compare."""
    found = setting.digits()
    model = setting.network()
    batches = tf.data.Dataset.from_tensor_slices((found.x_train, found.y_train)).shuffle(2000, seed=0).batch(64)
    pruning = tfprune.SoftPruning("l2", ratio=0.5)
    train(model, keras.optimizers.Adam(0.01), setting.loss(), batches, 5, pruning)
    setting.report(model, pruning, found)


if __name__ == "__main__":
    main()
