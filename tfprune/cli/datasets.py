"""--dataset and --data: what a model is trained and measured on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tfprune.cli.command import Flag, UsageError

SOURCE = (
    Flag(
        "dataset",
        "digits (offline), cifar10, fashion_mnist or mnist (downloaded), or an .npz file with the arrays x_train, "
        "y_train, x_test and y_test. Without --data: digits.",
        "digits|cifar10|fashion_mnist|mnist|PATH.npz",
    ),
    Flag("data", "A function that returns (x_train, y_train), (x_test, y_test).", "module:function"),
    Flag("train_samples", "Use only the first so many training samples.", "N", kind="integer", low=1),
    Flag("test_samples", "Use only the first so many test samples.", "N", kind="integer", low=1),
)


def check(options: SimpleNamespace) -> None:
    """Raise `UsageError` if two data sets are given."""
    if options.data and options.dataset:
        raise UsageError("give either --dataset or --data, not both")


def load(options: SimpleNamespace) -> Any:
    """The `tfprune.data.Dataset` that the flags mean.

    Raises:
        DataError: it does not exist, or does not hold what training needs.
    """
    from tfprune import data

    found = data.from_function(options.data) if options.data else data.load(options.dataset or "digits")
    return found.head(options.train_samples, options.test_samples)
