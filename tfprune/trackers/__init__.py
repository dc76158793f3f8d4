"""Where a training can be followed: one file a tracker.

`Tracking` is the callback; `CSV`, `TensorBoard` and `MLflow` are the trackers. See docs/tracking.md.
"""

import importlib
import pkgutil

from tfprune.trackers.base import Tracker, named, names, send
from tfprune.trackers.csv import CSV
from tfprune.trackers.mlflow import MLflow
from tfprune.trackers.record import Record
from tfprune.trackers.tensorboard import TensorBoard
from tfprune.trackers.tracking import Tracking

__all__ = ["CSV", "MLflow", "Record", "TensorBoard", "Tracker", "Tracking", "named", "names", "send"]


def _find() -> None:
    """Import every file of this folder: one that is not named above is known by its name all the same."""
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        importlib.import_module(module.name)


_find()
