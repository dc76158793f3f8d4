"""Soft pruning in a loop written with JAX, where the weights are passed from step to step.

python examples/loops/jax_loop.py
"""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import keras
import setting

import tfprune


def train(model, optimizer, loss, batches, epochs, pruning):
    """Train on batches that can be read again and again."""
    optimizer.build(model.trainable_variables)
    parts = (model.trainable_variables, model.non_trainable_variables, optimizer.variables)

    def read():
        return [[variable.value for variable in part] for part in parts]

    def write():
        for part, values in zip(parts, state, strict=True):
            for variable, value in zip(part, values, strict=True):
                variable.assign(value)

    def loss_of(weights, others, x, y):
        predicted, others = model.stateless_call(weights, others, x, training=True)
        return loss(y, predicted), others

    @jax.jit
    def step(state, x, y):
        weights, others, slots = state
        gradients, others = jax.grad(loss_of, has_aux=True)(weights, others, x, y)
        weights, slots = optimizer.stateless_apply(slots, gradients, weights)
        return [weights, others, slots]

    # The weights are in `state`: `write` brings them into the model to be looked at, `read` gets them back with zeros.
    pruning.start(model, optimizer=optimizer, epochs=epochs, synchronize=lambda: write())
    state = read()
    for _ in range(epochs):
        for x, y in batches:
            state = step(state, x, y)
            if pruning.after_step():
                state = read()
        if pruning.after_epoch():
            state = read()
    pruning.finish()


def main():
    """Train, strip, compare."""
    found = setting.digits()
    model = setting.network()
    starts = range(0, len(found.x_train) - 63, 64)  # whole batches: another size would be compiled anew
    batches = [(found.x_train[start : start + 64], found.y_train[start : start + 64]) for start in starts]
    pruning = tfprune.SoftPruning("l2", ratio=0.5)
    train(model, keras.optimizers.Adam(0.01), setting.loss(), batches, 5, pruning)
    setting.report(model, pruning, found)


if __name__ == "__main__":
    main()
