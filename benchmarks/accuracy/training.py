"""How every Keras arm is trained: SGD with momentum, a learning rate that falls along a cosine in each stage."""

import keras
import numpy as np

MOMENTUM = 0.9


class Epochs(keras.utils.PyDataset):
    """The batches of `images`, from an epoch on."""

    def __init__(self, images, epoch=0):
        super().__init__()
        self.images, self.epoch = images, epoch
        self._order = (None, None)

    def __len__(self):
        return self.images.steps

    def __getitem__(self, step):
        if self._order[0] != self.epoch:
            self._order = self.epoch, self.images.order(self.epoch)
        return self.images.batch(self.epoch, step, self._order[1])


class Training:
    """What recipes take as `train`; stages follow each other in the order of the data.

    Args:
        images: an `Images`.
        rate: the learning rate at the beginning of a stage.
        decay: weight decay: each step takes away rate * decay of every weight.
        epoch: where in the order of the data the first stage begins.
        log: called with a line an epoch.
    """

    def __init__(self, images, rate, decay, epoch=0, log=print):
        self.images, self.rate, self.decay, self.epoch, self.log = images, rate, decay, epoch, log
        self.first = epoch
        self.curve = []

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

        def move(epoch, logs):
            data.epoch = begin + epoch

        def note(epoch, logs):
            row = {name: round(float(logs[name]), 4) for name in ("loss", "accuracy", "val_accuracy")}
            self.curve.append({"epoch": begin + epoch, "stage": stage, **row})
            self.log(f"  {stage} {begin + epoch}: {row}")

        watch = keras.callbacks.LambdaCallback(on_epoch_begin=move, on_epoch_end=note)
        history = model.fit(
            data, epochs=epochs, verbose=0, shuffle=False, validation_data=some, validation_batch_size=500,
            callbacks=[*callbacks, watch],
        )  # fmt: skip
        self.epoch += len(history.epoch)


def gives_logits(model):
    """Whether no softmax ends the model; a `Distiller` gives what its student gives."""
    last = getattr(model, "student", model).outputs[0]._keras_history.operation
    return getattr(last, "activation", None) is not keras.activations.softmax


def accuracy(model, images):
    """The fraction of all test images that is right."""
    answers = [model.predict_on_batch(x) for x in np.array_split(images.x_test, max(1, len(images.x_test) // 500))]
    return float((np.concatenate(answers).argmax(axis=-1) == images.y_test).mean())
