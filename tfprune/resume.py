"""`Resume`: a training that goes on where it was, however it ended."""

from __future__ import annotations

import inspect
import io
import math
import os
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from tfprune.errors import CheckpointError, DataError, DivergedError, PlanError
from tfprune.keras_graph.arrays import numbers
from tfprune.processes import agree, is_first
from tfprune.runs.checkpoints import Checkpoints, lock, unlock
from tfprune.runs.finite import refuse_diverged
from tfprune.runs.packing import packed, read_arrays, unpacked, write_arrays
from tfprune.runs.randomness import layer_seeds, random_state, seed_epoch, set_layer_seeds, set_random_state
from tfprune.runs.settings import described, differences

_WEIGHTS, _ARRAYS = "model.weights.h5", "arrays.npz"
_SHOWN = 8  # differences in an error


class Resume(keras.callbacks.Callback):
    """Save a training's whole state as it goes, and go on from there when the same command is started again.

    Put it behind all other callbacks of `fit`. A run that was killed at any moment, `kill -9` included, goes on from
    the newest checkpoint and ends with the plan it would have ended with; on one thread, with the same weights to the
    bit:

        model.fit(x, y, epochs=30, callbacks=[pruning, tfprune.Resume("runs/resnet", pruning)])

    Kept are the weights, the optimizer (averages, accumulated gradients and the learning rate among them), seeds of
    layers such as Dropout, the epoch and batch, the logs so far, and the state of the callbacks it is given. The
    global generators of Python, NumPy, Keras and the backend are seeded anew before every epoch from `seed` and the
    epoch's number, so that an epoch sees the same random numbers whether or not the run was killed before it.

    Args:
        directory: of this run alone. Checkpoints are numbered; each is whole or not there, and has checksums.
        pruning: the `SoftPruning` whose state is kept, or several callbacks: those with `get_state` and `set_state`
            say themselves what it is; of others (Keras' own `EarlyStopping`, `ReduceLROnPlateau`) the numbers and
            arrays among their attributes are.
        every: when a checkpoint is written: `"epoch"`, or a number of steps. One in the middle of an epoch goes on
            there: batches that were trained on are read again, and passed over. The last epoch's end is always saved.
        keep: how many checkpoints are kept, at least 2: the last one may turn out to be damaged.
        settings: what the run was started with (flags, as a dictionary). A start with others is refused, and the
            differences are listed.
        data: what brings the samples, if it has to know the epoch: an object with `set_epoch(epoch)` (and, if it has
            one, a length that must not change), or a function of the epoch. `"stream"`: one iterator goes through
            all epochs, such as a generator; when the run goes on, it is read again up to where it was.
        seed: from 0 on. None: generators are not seeded.
        changes: `"refuse"` or `"accept"` other settings than before. Another model is refused in any case.
        log: called with one line at a time; None for silence.

    Attributes:
        epoch: how many epochs are done; in a loop of your own, begin with this one.
        batch: how many batches of the next epoch are done.
        step: how many batches were trained on since the beginning.
        logs: the logs of the epochs that are done, oldest first.
        extra: what `save` was given, from the checkpoint that was restored.

    Raises:
        CheckpointError: another process is at work in the directory; other settings, another model, or fewer batches
            than before; no checkpoint can be read, or none was written yet and the first cannot be.
        DivergedError: the loss or a weight is NaN or infinite. Nothing is saved then; the message names the layer, and
            the last checkpoint, which is good.

    >>> import keras, numpy as np, tempfile, tfprune
    >>> def run(directory, epochs):
    ...     keras.utils.set_random_seed(0)
    ...     model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, activation="relu", name="hidden"),
    ...                               keras.layers.Dense(1, name="head")])
    ...     model.compile("adam", "mse", jit_compile=False)
    ...     pruning = tfprune.SoftPruning("l2", ratio=0.5)
    ...     callbacks = [pruning, tfprune.Resume(directory, pruning, log=None)]
    ...     x = np.arange(64.0).reshape(16, 4) / 64
    ...     return model.fit(x, x[:, :1], epochs=epochs, verbose=0, callbacks=callbacks).history["loss"]
    >>> directory = tempfile.mkdtemp()
    >>> first = run(directory, epochs=2)       # as if it had been killed after 2 of 4 epochs
    >>> whole = run(directory, epochs=4)       # goes on with epoch 2
    >>> whole[:2] == first and len(whole) == 4
    True
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        pruning: Any = None,
        *,
        every: int | Literal["epoch"] = "epoch",
        keep: int = 2,
        settings: Mapping[str, Any] | None = None,
        data: Any = None,
        seed: int | None = 0,
        changes: Literal["refuse", "accept"] = "refuse",
        log: Callable[[str], None] | None = print,
    ):
        super().__init__()
        if every != "epoch" and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
            raise PlanError(f"every is 'epoch' or a number of steps of at least 1, and {every!r} came")
        if changes not in ("refuse", "accept"):
            raise PlanError(f"changes is 'refuse' or 'accept', and {changes!r} came")
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or seed < 0):
            raise PlanError(f"seed is a whole number from 0 on or None, and {seed!r} came")
        streams = isinstance(data, str) and data == "stream"
        if streams and keras.backend.backend() != "tensorflow":
            raise DataError("data='stream' is read again on TensorFlow alone; begin the generator itself where it was")
        if not (data is None or streams or callable(data) or hasattr(data, "set_epoch")):
            raise DataError(
                f"data is an object with set_epoch(epoch), a function of the epoch or 'stream', and a "
                f"{type(data).__name__} came"
            )
        self.directory, self.every, self.seed, self.changes = Path(directory), every, seed, changes
        self.log = log or (lambda line: None)
        self.checkpoints = Checkpoints(directory, keep, self.log)
        self.kept = list(pruning) if isinstance(pruning, Sequence) else [] if pruning is None else [pruning]
        self.settings, self.data, self._streams = dict(settings or {}), data, streams
        self.epoch = self.batch = self.step = 0
        self.logs: list[dict[str, Any]] = []
        self.extra: Any = None
        #: Keras need not wait for this callback after each batch
        self.async_safe = every == "epoch"
        self._stopped = False
        self._optimizer: Any = None
        self._synchronize: Callable[[], Any] | None = None
        self._metrics: list[Any] = []
        self._reread = self._ahead = 0
        self._random: dict[str, Any] | None = None
        self._poison: float | None = None
        self._thread = 0
        self._counting = threading.Lock()

    # -- Keras' events --------------------------------------------------------------------------------------------

    def on_train_begin(self, logs: Any = None) -> None:
        self._optimizer, self._synchronize = None, getattr(self.model, "jax_state_sync", None)
        self._open()
        # The name is Keras' own: its BackupAndRestore tells `fit` in the same way where to begin.
        self.model._initial_epoch = int(self.params.get("epochs") or self.epoch) if self._stopped else self.epoch

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.model._initial_epoch = None
        self._fill_history()
        self.epoch, self._epoch_step = epoch, self.step - self.batch
        self._begin_epoch(epoch)
        self._tell("paused", self._reread > 0)
        if self._reread or self._ahead:
            self._pass_over(self._reread, self._ahead)
            self._ahead = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self._reread:
            self._reread = max(0, self._reread - self.model.steps_per_execution)
            self._tell("paused", self._reread > 0)
            return
        self._after_batch(batch + 1, (logs or {}).get("loss"), self.params.get("steps"))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._reread:
            raise CheckpointError(
                f"the data set has shrunk: {self.batch} batches of epoch {epoch} had been trained on, and it ends "
                f"{self._reread} before that; go on with the data of before, or begin anew in another directory"
            )
        stops = bool(self.model.stop_training)
        self._end_epoch(logs or {}, last=stops or self.epoch + 1 >= int(self.params.get("epochs") or 0), stops=stops)

    def on_train_end(self, logs: Any = None) -> None:
        self.model._initial_epoch = None
        self._fill_history()
        self._close()

    # -- a loop of your own ---------------------------------------------------------------------------------------

    def start(
        self,
        model: keras.Model,
        *,
        optimizer: Any = None,
        steps: int | None = None,
        synchronize: Callable[[], Any] | None = None,
    ) -> int:
        """Begin or go on with a loop that is not `fit`; call it after `SoftPruning.start` and before the first step.

        Args:
            model: what is trained; its variables are filled if there is a checkpoint.
            optimizer: what trains it, if that is not the model's own: a Keras optimizer, or an object with `state_dict`
                and `load_state_dict`, as PyTorch's have.
            steps: of an epoch, if they must not change between starts.
            synchronize: called before the model's variables are read, to write into them what the loop keeps elsewhere:
                on JAX, where weights are passed from step to step.

        Returns:
            the epoch to begin with; `batch` says how many of its batches are done.

        Raises:
            CheckpointError: see the class.
        """
        self.set_model(model)
        self.set_params({"steps": steps})
        own = getattr(model, "optimizer", None)
        self._optimizer, self._synchronize = None if optimizer is own else optimizer, synchronize
        self._open()
        self._epoch_step = self.step - self.batch
        self._begin_epoch(self.epoch)
        return self.epoch

    def after_step(self, loss: Any = None) -> None:
        """Call it after each step.

        Args:
            loss: a number to look at for NaN; reading it makes the loop wait for the step.

        Raises:
            DivergedError: it is not finite.
        """
        self._after_batch(self.batch + 1, None if loss is None else float(loss), self.params.get("steps"))

    def after_epoch(self, logs: Mapping[str, Any] | None = None, *, last: bool = False) -> None:
        """Call it after each epoch, behind `SoftPruning.after_epoch`.

        Args:
            logs: numbers to keep in `logs`; a loss among them is looked at for NaN.
            last: save in any case.

        Raises:
            DivergedError: a loss or a weight is not finite.
        """
        self._end_epoch(dict(logs or {}), last)
        self._begin_epoch(self.epoch)

    def finish(self) -> None:
        """Call it at the end: others may use the directory then."""
        self._close()

    def save(self, extra: Any = None) -> Path | None:
        """Write a checkpoint now.

        Args:
            extra: what else the loop needs: numbers, texts and arrays in dictionaries, lists and tuples. It is in
                `extra` when the run goes on.

        Returns:
            where, or None where nothing could be written, of which a warning tells, and an older one is there.

        Raises:
            CheckpointError: nothing could be written, and there is no older one.
            DivergedError: a weight is not finite.
        """
        if extra is not None:
            self.extra = extra
        self._refuse_diverged({})
        if not is_first():
            return None
        arrays: dict[str, Any] = {}
        state = self._state(arrays)
        file = _InMemory()
        self.model.save_weights(file)
        weights = file.getvalue()  # a view of it in an error's traceback makes Python 3.12 crash

        def files(place: Path) -> None:
            (place / _WEIGHTS).write_bytes(weights)
            if arrays:
                write_arrays(place / _ARRAYS, arrays)

        size = len(weights) + sum(array.nbytes for array in arrays.values())
        try:
            place = self.checkpoints.write(state, files, size)
        except CheckpointError as error:
            if self.checkpoints.newest is None:
                raise
            warnings.warn(f"{error}; training goes on, {self.checkpoints.newest.name} stays", stacklevel=2)
            return None
        self._tell("newest_checkpoint", place)
        return place

    def restore_random(self) -> None:
        """Put the global generators to where they were, for a loop that does not read passed batches again."""
        if self._random is not None:
            set_random_state(self._random)

    # -- what they do ---------------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Lock the directory, and take over what is there."""
        self._ready()
        self._now = self._described()
        if is_first():
            lock(self.directory)
            self.checkpoints.clean()
        self.epoch = self.batch = self.step = self._reread = self._ahead = 0
        self.logs, self.extra, self._stopped, self._random, self._poison = [], None, False, None, None
        self._thread = threading.get_ident()
        try:
            found = self.checkpoints.read()
            name = "" if found is None else found[0].name
            agree("the checkpoints to go on from", name, hint="have all processes see the same directory")
            if found is not None:
                self._restore(*found)
        except BaseException:
            unlock(self.directory)
            raise

    def _close(self) -> None:
        if is_first():
            unlock(self.directory)

    def _ready(self) -> None:
        """All variables exist, and the callbacks that are kept have begun."""
        if not self.model.built:
            raise CheckpointError(
                f"the weights of {self.model.name!r} do not exist yet; give it a keras.Input, or call it once before"
            )
        for optimizer in (getattr(self.model, "optimizer", None), self._optimizer):
            if isinstance(optimizer, keras.optimizers.Optimizer) and not optimizer.built:
                optimizer.build(self.model.trainable_variables)
        late = [one for one in self.kept if getattr(one, "model", self.model) is not self.model or _asleep(one)]
        if late:
            raise PlanError(f"put Resume behind {type(late[0]).__name__} in callbacks=[...]: it comes last")

    def _begin_epoch(self, epoch: int) -> None:
        if self.seed is not None:
            seed_epoch(self.seed, epoch)
        set_epoch = getattr(self.data, "set_epoch", self.data)
        if callable(set_epoch):
            set_epoch(epoch)

    def _after_batch(self, batch: int, loss: Any, steps: int | None) -> None:
        with self._counting:  # Keras may call this from several threads
            before, self.batch = self.step, max(self.batch, batch)
            self.step = self._epoch_step + self.batch
        if loss is not None and not math.isfinite(loss) and self._poison is None:
            self._poison = float(loss)
            if threading.get_ident() == self._thread:
                self._refuse_diverged({})
            self.model.stop_training = True  # on_epoch_end raises it
        if self.every != "epoch" and self.step // self.every > before // self.every and batch != steps:
            self.save()

    def _end_epoch(self, logs: Mapping[str, Any], last: bool, stops: bool = False) -> None:
        self._refuse_diverged(logs)
        due = self.every == "epoch" or self.step // self.every > max(0, self.step - 1) // self.every
        self.epoch, self.batch, self._epoch_step, self._stopped = self.epoch + 1, 0, self.step, stops
        self.logs.append({name: float(value) for name, value in logs.items() if np.ndim(value) == 0})
        if due or last:
            self.save()

    def _refuse_diverged(self, logs: Mapping[str, Any]) -> None:
        if self._synchronize is not None:
            self._synchronize()
        losses = [(name, value) for name, value in logs.items() if "loss" in name and not math.isfinite(float(value))]
        name, value = losses[0] if losses else ("loss", self._poison)
        said = "" if value is None else f"{name} is {value} in epoch {self.epoch}, batch {self.batch}"
        try:
            refuse_diverged(self.model, said, self.checkpoints.newest)
        except DivergedError:
            self._close()
            raise

    # -- what is kept ---------------------------------------------------------------------------------------------

    def _state(self, arrays: dict[str, Any]) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "batch": self.batch,
            "step": self.step,
            "stopped": self._stopped,
            "started": self._now,
            "weights": _listed(self.model.weights),
            "optimizer": _listed(self._own_variables()),
            "seeds": layer_seeds(self.model),
            "metrics": [numbers(variable).tolist() for variable in self.model.metrics_variables] if self.batch else [],
            "callbacks": [packed(_state_of(one), arrays) for one in self.kept],
            "other_optimizer": packed(_state_of_optimizer(self._optimizer), arrays),
            "random": random_state(),
            "logs": packed(self.logs, arrays),
            "extra": packed(self.extra, arrays),
        }

    def _restore(self, place: Path, state: dict[str, Any]) -> None:
        self._check(place, state)
        arrays, rate = read_arrays(place / _ARRAYS), self._new_rate(state)
        try:
            self.model.load_weights(place / _WEIGHTS)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{str(place)!r} does not fit {self.model.name!r}: {error}") from error
        if rate is not None:
            self.model.optimizer.learning_rate = rate
        set_layer_seeds(self.model, state["seeds"])
        _put_optimizer(self._optimizer, unpacked(state["other_optimizer"], arrays))
        for one, kept in zip(self.kept, state["callbacks"], strict=True):
            _put_state(one, unpacked(kept, arrays))
        self.epoch, self.batch, self.step = state["epoch"], state["batch"], state["step"]
        self.logs, self.extra = unpacked(state["logs"], arrays), unpacked(state["extra"], arrays)
        self._metrics, self._random, self._stopped = state["metrics"], state["random"], state["stopped"]
        self._reread, self._ahead = self.batch, self.step - self.batch if self._streams else 0
        self._tell("newest_checkpoint", place)
        where = f", batch {self.batch}" if self.batch else ""
        told = "the training had ended" if self._stopped else f"going on with epoch {self.epoch}{where}"
        self.log(f"{place}: {told}")

    def _check(self, place: Path, state: dict[str, Any]) -> None:
        """Refuse what is not the run that was saved."""
        lines = _other_variables("weight", state["weights"], _listed(self.model.weights))
        lines += _other_variables("optimizer variable", state["optimizer"], _listed(self._own_variables()))
        if len(state["callbacks"]) != len(self.kept):
            lines.append(f"callbacks whose state is kept: were {len(state['callbacks'])}, are {len(self.kept)}")
        changed = differences(state["started"], self._now)
        if changed and not lines and self.changes == "accept":
            self.log(f"{place}: going on with other settings: {'; '.join(changed)}")
            return
        found = lines + changed
        if found:
            rest = f"\n  and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            raise CheckpointError(
                f"{str(self.directory)!r} holds a run that was started otherwise:\n  "
                + "\n  ".join(found[:_SHOWN])
                + f"{rest}\nGo on with what was, or begin anew in another directory"
                + ("" if lines else "; Resume(changes='accept') goes on with other settings")
            )

    def _new_rate(self, state: dict[str, Any]) -> float | None:
        """The learning rate, where the run is to go on with another than it was started with."""
        was, now = ((one["optimizer"] or {}).get("learning_rate") for one in (state["started"], self._now))
        return now if isinstance(now, float) and now != was and self._optimizer is None else None

    def _described(self) -> dict[str, Any]:
        """What the run is started with."""
        optimizer = self._optimizer or getattr(self.model, "optimizer", None)
        size = len(self.data) if hasattr(self.data, "__len__") and not self._streams else None
        return {
            "settings": described(self.settings),
            "backend": keras.backend.backend(),
            "seed": self.seed,
            "optimizer": described(optimizer) if isinstance(optimizer, keras.optimizers.Optimizer) else None,
            "batches an epoch": described(self.params.get("steps")),
            "size of the data": size,
            "callbacks": [described(getattr(one, "settings", type(one).__name__)) for one in self.kept],
        }

    def _own_variables(self) -> list[Any]:
        return list(getattr(getattr(self.model, "optimizer", None), "variables", ()))

    # -- how `fit` is told ----------------------------------------------------------------------------------------

    def _pass_over(self, batches: int, ahead: int) -> None:
        """Let `fit` read the batches that have been trained on, and do nothing with them.

        So every kind of data goes on where it was, as long as an epoch's order is the same when it is read again. The
        batches of a stream that belong to earlier epochs come `ahead` of this one's.
        """
        model, left = self.model, batches
        train, backend = model.train_function, keras.backend.backend()
        _put(model.metrics_variables, self._metrics)

        def passed(*given: Any) -> Any:
            nonlocal left, ahead
            while ahead:
                next(given[0])
                ahead -= 1
            if not left:
                model.train_function = train
                return train(*given)
            left -= model.steps_per_execution
            if left <= 0:
                model.train_function = train
            if backend == "tensorflow":  # it is handed an iterator, others a list of batches
                for _ in range(model.steps_per_execution):
                    batch = next(given[0])
                if len(model.metrics_variables) < len(self._metrics):
                    _build_metrics(model, batch)
                    _put(model.metrics_variables, self._metrics)
            return ({}, given[0]) if backend == "jax" else {}

        model.train_function = passed

    def _tell(self, name: str, value: Any) -> None:
        """Those callbacks that want to know: that batches are passed over and do not count; what is safe on disk."""
        for one in self.kept:
            if hasattr(one, name):
                setattr(one, name, value)

    def _fill_history(self) -> None:
        """What `fit` returns has the epochs before the kill in it, too."""
        history = getattr(self.model, "history", None)
        if history is None or not self.logs or history.epoch:
            return
        history.epoch.extend(range(len(self.logs)))
        for logs in self.logs:
            for name, value in logs.items():
                history.history.setdefault(name, []).append(value)


class _InMemory(io.BytesIO):
    """A weights file that Keras writes to memory: HDF5 crashes where a disk fills under it, and Python only raises."""

    def __str__(self) -> str:
        return _WEIGHTS  # Keras looks at the suffix


def _asleep(callback: Any) -> bool:
    """Whether a `SoftPruning` has not begun."""
    begun = getattr(callback, "begun", True)
    return not begun


def _state_of(callback: Any) -> Any:
    if hasattr(callback, "get_state"):
        return callback.get_state()
    # What it was made with is no state: EarlyStopping turns its min_delta around when it begins.
    settings = inspect.signature(type(callback).__init__).parameters
    found = {}
    for name, value in vars(callback).items():
        if name in ("params", "_model") or name in settings:
            continue
        try:
            packed(value, {})
        except TypeError:
            continue
        found[name] = value
    return found


def _put_state(callback: Any, state: Any) -> None:
    if hasattr(callback, "set_state"):
        callback.set_state(state)
    else:
        vars(callback).update(state)


def _state_of_optimizer(optimizer: Any) -> Any:
    if optimizer is None:
        return None
    if hasattr(optimizer, "state_dict"):
        return optimizer.state_dict()
    return [numbers(variable) for variable in optimizer.variables]


def _put_optimizer(optimizer: Any, state: Any) -> None:
    if optimizer is None:
        return
    if hasattr(optimizer, "load_state_dict"):
        optimizer.load_state_dict(state)
    else:
        _put(optimizer.variables, state)


def _build_metrics(model: keras.Model, batch: Any) -> None:
    """TensorFlow makes the variables of compiled metrics in the first step; here they have to be filled before it."""
    seeds = layer_seeds(model)
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
    outputs = model(x, training=False)
    model.compute_loss(x=x, y=y, y_pred=outputs, sample_weight=sample_weight, training=False)
    model.compute_metrics(x=x, y=y, y_pred=outputs, sample_weight=sample_weight)
    set_layer_seeds(model, seeds)


def _put(variables: Sequence[Any], values: Sequence[Any]) -> None:
    """Fill variables; those of metrics that do not exist before the first batch are left as they are."""
    if len(variables) == len(values):
        for variable, value in zip(variables, values, strict=True):
            variable.assign(np.asarray(value, keras.backend.standardize_dtype(variable.dtype)))


def _listed(variables: Sequence[Any]) -> list[list[Any]]:
    """(name, shape, type) of each."""
    dtype = keras.backend.standardize_dtype
    return [[variable.path, list(variable.shape), dtype(variable.dtype)] for variable in variables]


def _other_variables(what: str, was: list[list[Any]], now: list[list[Any]]) -> list[str]:
    """How lists of variables differ; their names may, as those that Keras gives do in one process."""
    lines = [f"{what}s: were {len(was)}, are {len(now)}"] if len(was) != len(now) else []
    for (path, shape, dtype), (_, *own) in zip(was, now, strict=False):
        if [shape, dtype] != own:
            lines.append(f"{what} {path}: was {dtype} {tuple(shape)}, is {own[1]} {tuple(own[0])}")
    return lines


__all__ = ["Resume"]
