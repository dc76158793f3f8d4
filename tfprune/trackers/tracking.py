"""The callback that makes one record an epoch and hands it to every tracker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from tfprune.errors import TfpruneError
from tfprune.trackers.base import Tracker
from tfprune.trackers.record import Recorder


class Tracking(keras.callbacks.Callback):
    """Follow a training: failure rates, widths, sparsity, cost and losses of every epoch, wherever you look at them.

    It stands beside `SoftPruning` in the list of callbacks, before it or after it. Several calls of `fit` with one
    `Tracking` make one curve. Of several processes that train together, the first one writes.

    A tracker that is down stops nothing: see `Tracker`.

    Args:
        trackers: `TensorBoard(...)`, `MLflow(...)`, `CSV(...)`, or your own.
        pruning: the `SoftPruning` of this training, or the `Pruning` whose loop calls `fit`. None for a training
            without one: losses, and the model's cost.
        suffix: what names end with, such as `-pruned_model` when a stripped model is trained on.

    Raises:
        TfpruneError: no tracker came, or something else; when training begins, what a tracker's `check` says.

    >>> import keras, numpy as np, tempfile, tfprune
    >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(8, 3, activation="relu", name="conv"),
    ...                           keras.layers.Flatten(), keras.layers.Dense(2)])
    >>> model.compile("sgd", "mse")
    >>> pruning, path = tfprune.SoftPruning("l2", ratio=0.5), tempfile.mkdtemp() + "/run.csv"
    >>> tracking = Tracking(tfprune.trackers.CSV(path), pruning=pruning)
    >>> x, y = np.random.rand(16, 8, 8, 1), np.random.rand(16, 2)
    >>> _ = model.fit(x, y, epochs=2, verbose=0, callbacks=[pruning, tracking])
    >>> tracking.last.widths
    {'conv': 4}
    """

    def __init__(self, *trackers: Tracker, pruning: Any = None, suffix: str = ""):
        super().__init__()
        wrong = [tracker for tracker in trackers if not isinstance(tracker, Tracker)]
        if wrong or not trackers:
            came = f"{type(wrong[0]).__name__} came" if wrong else "none came"
            raise TfpruneError(f"Tracking needs trackers such as tfprune.trackers.CSV('run.csv'), and {came}")
        self.trackers, self.pruning, self.suffix = trackers, pruning, suffix
        self.last: Any = None
        self._before = 0  # epochs of earlier calls of `fit`

    def on_train_begin(self, logs: Any = None) -> None:
        self._recorder = Recorder(self.model, self.pruning, self.suffix)
        self._first = True
        names = self._recorder.record(0).scalars()
        for tracker in self.trackers:
            tracker.open(names, self.model)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        if isinstance(self.pruning, keras.callbacks.Callback):
            self.pruning.on_test_begin()  # so that it has looked and zeroed if it comes later in the list
        if self._first:
            self._first, self._before = False, 0 if self.last is None else max(0, self.last.step + 1 - epoch)
        self.last = self._recorder.record(epoch + self._before, logs)
        for tracker in self.trackers:
            tracker.log(tracker.complete(self.last, self.model))

    def on_train_end(self, logs: Any = None) -> None:
        for tracker in self.trackers:
            tracker.close()
