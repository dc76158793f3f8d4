"""How every Keras arm is trained: SGD with momentum, a learning rate that falls along a cosine in each stage."""

import keras
import numpy as np

from tfprune.resume import Resume

MOMENTUM = 0.9


class Epochs(keras.utils.PyDataset):
    """The batches of `images`, those of epoch `begin` first."""

    def __init__(self, images, begin=0):
        super().__init__()
        self.images, self.begin = images, begin
        self.set_epoch(0)

    def set_epoch(self, epoch):
        """Go to an epoch of this stage."""
        self.epoch = self.begin + epoch
        self.order = self.images.order(self.epoch)

    def __len__(self):
        return self.images.steps

    def __getitem__(self, step):
        return self.images.batch(self.epoch, step, self.order)


class Training:
    """What recipes take as `train`; stages follow each other in the order of the data.

    Args:
        images: an `Images`.
        rate: the learning rate at the beginning of a stage.
        decay: weight decay: each step takes away rate * decay of every weight.
        directory: where a stage keeps its checkpoints; one that was finished there is loaded.
        epoch: where in the order of the data the first stage begins.
        log: called with a line an epoch.
    """

    def __init__(self, images, rate, decay, directory, epoch=0, log=print):
        self.images, self.rate, self.decay, self.directory = images, rate, decay, directory
        self.first = self.epoch = epoch
        self.log, self.curve = log, []

    def __call__(self, model, epochs, *, stage="training", callbacks=()):
        """Train in place."""
        schedule = keras.optimizers.schedules.CosineDecay(self.rate, epochs * self.images.steps)
        model.compile(
            keras.optimizers.SGD(schedule, momentum=MOMENTUM, weight_decay=self.decay or None),
            keras.losses.SparseCategoricalCrossentropy(from_logits=gives_logits(model)),
            metrics=["accuracy"],
            jit_compile=False if keras.backend.backend() == "tensorflow" else "auto",
        )
        data, begin = Epochs(self.images, self.epoch), self.epoch
        some = self.images.x_test[:1000], self.images.y_test[:1000]

        def note(epoch, logs):
            self.log(f"  {stage} {begin + epoch}: {_row(logs)}")

        watch = keras.callbacks.LambdaCallback(on_epoch_end=note)
        resume = Resume(self.directory / stage, [*callbacks], data=data, seed=self.images.seed, log=None)
        history = model.fit(
            data, epochs=epochs, verbose=0, shuffle=False, validation_data=some, validation_batch_size=500,
            callbacks=[*callbacks, watch, resume],
        ).history  # fmt: skip
        done = len(history["loss"])
        rows = [_row({name: values[epoch] for name, values in history.items()}) for epoch in range(done)]
        self.curve += [{"epoch": begin + epoch, "stage": stage, **row} for epoch, row in enumerate(rows)]
        self.epoch += done


def _row(logs):
    return {name: round(float(logs[name]), 4) for name in ("loss", "accuracy", "val_accuracy")}


def gives_logits(model):
    """Whether no softmax ends the model; a `Distiller` gives what its student gives."""
    last = getattr(model, "student", model).outputs[0]._keras_history.operation
    return getattr(last, "activation", None) is not keras.activations.softmax


def accuracy(model, images):
    """The fraction of all test images that is right."""
    answers = [model.predict_on_batch(x) for x in np.array_split(images.x_test, max(1, len(images.x_test) // 500))]
    return float((np.concatenate(answers).argmax(axis=-1) == images.y_test).mean())
