"""Knowledge distillation: what is left of a model learns from what it was."""

from __future__ import annotations

import functools
import math
from typing import Any

import keras

from tfprune.errors import PlanError
from tfprune.frontend import trace
from tfprune.keras_graph.expand import input_structure


class Distiller(keras.Model):
    """Train a student on its labels and on a teacher's softened outputs; `compile` and `fit` are Keras' own.

    The loss in training is

        (1 - alpha) * the compiled loss + alpha * T**2 * KL(softmax(teacher / T) || softmax(student / T))

    over logits, averaged over samples. The factor T**2 keeps the second part's gradients at the size of the first's.
    In evaluation it is the compiled loss alone, that of the student. Regularisation is added to it as it is.

    The student is trained in place: use it, save it and export it as ever. The teacher is not changed.
    Callbacks such as `tfprune.SoftPruning` work on the student.

    Args:
        student: the model to train, such as `tfprune.strip(model).model`.
        teacher: a model with the same inputs and outputs, such as the one before pruning.
        temperature: T, above 0; the larger, the more the classes that are not the right one count.
        alpha: the teacher's share of the loss, in [0, 1].
        from_logits: whether the models give logits. Otherwise they give probabilities, over the last axis.

    Raises:
        PlanError: a number out of its range, a teacher that is the student, more than one output, other outputs than
            the student's.

    >>> import keras, numpy as np
    >>> def network(width):
    ...     return keras.Sequential([keras.Input((4,)), keras.layers.Dense(width, activation="relu"),
    ...                              keras.layers.Dense(3, activation="softmax")])
    >>> student = network(2)
    >>> distiller = Distiller(student, network(8), temperature=20, alpha=0.9)
    >>> distiller.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    >>> x, y = np.random.rand(8, 4), np.arange(8) % 3
    >>> _ = distiller.fit(x, y, verbose=0)          # student is trained

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network" (arXiv:1503.02531).
    """

    def __init__(
        self,
        student: keras.Model,
        teacher: keras.Model,
        *,
        temperature: float = 20.0,
        alpha: float = 0.9,
        from_logits: bool = False,
    ):
        _check(student, teacher, temperature, alpha)
        super().__init__(name=f"{student.name}_distilled")
        self.student = student
        self.temperature, self.alpha, self.from_logits = float(temperature), float(alpha), from_logits
        # As a function, so that Keras does not take the teacher's weights for this model's.
        self._teach = functools.partial(teacher, training=False)
        trace(self, inputs=input_structure(student))  # builds it, and lets callbacks trace it

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """What the student gives."""
        return self.student(inputs, training=training)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """The loss above; without the teacher's part in evaluation."""
        hard = super().compute_loss(x, y, y_pred, sample_weight, training)
        if not training or self.alpha == 0:
            return hard
        soft = self._divergence(keras.ops.stop_gradient(self._teach(x)), y_pred)
        if sample_weight is not None:
            soft = soft * keras.ops.cast(sample_weight, soft.dtype)
        # What regularises is part of `hard`, and stays whole.
        rest = sum(self.losses) if self.losses else 0.0
        return (1 - self.alpha) * hard + self.alpha * (keras.ops.cast(keras.ops.mean(soft), hard.dtype) + rest)

    def _divergence(self, teacher: Any, student: Any) -> Any:
        """T**2 * KL(teacher || student), a number a sample."""
        given, own = self._softened(teacher), self._softened(student)
        return self.temperature**2 * keras.ops.sum(keras.ops.exp(given) * (given - own), axis=-1)

    def _softened(self, outputs: Any) -> Any:
        """log softmax(logits / T)."""
        if keras.backend.standardize_dtype(outputs.dtype) in ("float16", "bfloat16"):
            outputs = keras.ops.cast(outputs, "float32")
        if not self.from_logits:  # a probability's logarithm is its logit, but for what softmax does not see
            outputs = keras.ops.log(keras.ops.maximum(outputs, 1e-30))
        return keras.ops.log_softmax(outputs / self.temperature, axis=-1)


def _check(student: keras.Model, teacher: keras.Model, temperature: float, alpha: float) -> None:
    if not temperature > 0 or math.isinf(temperature):
        raise PlanError(f"temperature must be a number above 0, and {temperature!r} came")
    if not 0 <= alpha <= 1:
        raise PlanError(f"alpha is the teacher's share of the loss, in [0, 1], and {alpha!r} came")
    if student is teacher:
        raise PlanError("student and teacher are the same model; copy it before pruning, or prune with tfprune.strip")
    shapes = [[tuple(tensor.shape) for tensor in keras.tree.flatten(model.outputs)] for model in (student, teacher)]
    if len(shapes[0]) != 1 or shapes[0] != shapes[1]:
        raise PlanError(
            f"student and teacher must have one output of the same shape; they have {shapes[0]}, {shapes[1]}"
        )


__all__ = ["Distiller"]
