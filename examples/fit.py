"""Pruning inside `model.fit`, in three lines; then strip."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from models.small import small

import tfprune
from tfprune import data

keras.utils.set_random_seed(0)
digits = data.load("digits")
model = small(digits.shape, digits.classes)
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])

# The three lines.
pruning = tfprune.SoftPruning("l2", ratio=0.5, begin=4)
model.fit(digits.x_train, digits.y_train, 32, epochs=12, verbose=2, callbacks=[pruning])
result = tfprune.strip(model)

print(result)
print(pruning.monitor)
result.model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
for name, network in (("soft-pruned", model), ("stripped", result.model)):
    print(f"{name}: accuracy {network.evaluate(digits.x_test, digits.y_test, verbose=0)[1]:.2%}")
