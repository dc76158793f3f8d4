"""The training that `tfprune train` gives to a recipe: stage after stage, each in a directory of its own."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from tfprune.cli import progress
from tfprune.errors import DataError
from tfprune.files import write_text
from tfprune.resume import Resume

_COLUMNS = ("loss", "accuracy", "val_loss", "val_accuracy", "failure_rate", "pruned_channels")


class Stages:
    """A `train` for recipes. A stage that was finished before is loaded, one that was begun goes on.

    Args:
        train, validation: (x, y); the validation samples may be None.
        directory: each stage keeps its checkpoints below it.
        from_logits: whether the model gives logits.
        optimizer: `sgd` (momentum 0.9) or `adam`.
        rate: the learning rate at the beginning of a stage; it falls to 0 along a cosine.
        decay: weight decay; each step takes away rate * decay of every weight.
        batch_size: samples a step.
        seed: each stage, and what comes behind it, draws the same random numbers whether or not the run was killed.
        settings: what the run was started with; a start with others is refused.

    Attributes:
        curve: a row an epoch: stage, epoch and what was measured.
    """

    def __init__(
        self,
        train: tuple[Any, Any],
        validation: tuple[Any, Any] | None,
        directory: Path,
        *,
        from_logits: bool,
        optimizer: str,
        rate: float,
        decay: float,
        batch_size: int,
        seed: int,
        settings: dict[str, Any],
    ):
        self.train, self.validation, self.directory = train, validation, directory
        self.from_logits, self.optimizer, self.rate, self.decay = from_logits, optimizer, rate, decay
        self.batch_size, self.seed, self.settings = batch_size, seed, settings
        self.curve: list[dict[str, Any]] = []

    def __call__(self, model: keras.Model, epochs: int, *, stage: str, callbacks: Sequence[Any] = ()) -> None:
        """Train in place."""
        self._compile(model, epochs)
        number = len({row["stage"] for row in self.curve})
        place = re.sub(r"[^\w.-]", "_", f"{number}-{stage}")
        resume = Resume(self.directory / place, [*callbacks], settings=self.settings)
        keras.utils.set_random_seed(self.seed + 2 * number)  # `fit` draws the seed of its shuffling before it begins
        with progress.training(stage, epochs) as shown:
            try:
                history = model.fit(
                    *self.train,
                    self.batch_size,
                    epochs,
                    verbose=0,
                    validation_data=self.validation,
                    callbacks=[*callbacks, shown, resume],
                )
            except (ValueError, TypeError) as error:
                raise DataError(f"{model.name!r} could not be trained on these samples: {error}") from error
        keras.utils.set_random_seed(self.seed + 2 * number + 1)
        for epoch in history.epoch:
            logs = {name: values[epoch] for name, values in history.history.items() if epoch < len(values)}
            self.curve.append({"stage": stage, "epoch": epoch, **{n: float(logs[n]) for n in _COLUMNS if n in logs}})

    def _compile(self, model: keras.Model, epochs: int) -> None:
        steps = epochs * -(-len(self.train[0]) // self.batch_size)
        schedule = keras.optimizers.schedules.CosineDecay(self.rate, steps)
        given: dict[str, Any] = {"learning_rate": schedule, "weight_decay": self.decay or None}
        kinds = {"sgd": keras.optimizers.SGD, "adam": keras.optimizers.Adam}
        optimizer = kinds[self.optimizer](**given, **({"momentum": 0.9} if self.optimizer == "sgd" else {}))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=self.from_logits)
        model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=_jit())

    def to_csv(self, path: Path) -> Path:
        """The curve: a row an epoch."""
        out = io.StringIO()
        writer = csv.DictWriter(out, ("stage", "epoch", *_COLUMNS), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.curve)
        return write_text(path, out.getvalue())


def _jit() -> Any:
    """On a CPU, TensorFlow's XLA compiles for longer than it saves."""
    if keras.backend.backend() != "tensorflow":
        return "auto"
    import tensorflow as tf

    return "auto" if tf.config.list_physical_devices("GPU") else False
