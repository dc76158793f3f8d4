"""The Keras callback: soft pruning on a schedule inside `model.fit`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from tfprune.channels.graph import ChannelGraph
from tfprune.channels.plan import PruningPlan, zeroable
from tfprune.criteria import Criterion, Sample, needs_of
from tfprune.errors import PlanError
from tfprune.frontend import trace
from tfprune.latency import LatencyTable
from tfprune.monitor import ConvergenceMonitor
from tfprune.processes import agree, is_first
from tfprune.runs.finite import refuse_diverged
from tfprune.runs.settings import described
from tfprune.schedules import Schedule, as_schedule
from tfprune.selection import Request, Scope, select
from tfprune.soft import Zeroing


class SoftPruning(keras.callbacks.Callback):
    """Choose and zero channels again and again while the model trains.

    At the start of training, and then after every epoch (before its validation) or every N steps, the filters that
    were zeroed before are looked at (`monitor`), channels are chosen for the next value of the schedule, and zeroed. So
    validation, checkpoints and the end of training always see a model that `tfprune.strip` can make smaller.

    What keeps a zeroed filter at 0, or not: its gradient is 0, for everything it touches is 0, but an optimizer's slots
    (momentum) and weight decay still move it. `slots` is the policy for that.

    Args:
        criterion: see `tfprune.select`.
        ratio: a fraction in [0, 1), a sequence of them, or a schedule from epoch (or step) to one.
        thresholds: the same for thresholds. A sequence is spread evenly over the epochs of `fit`, as a ladder.
        params, macs, latency: the same for budgets, the fraction of the unpruned model that is LEFT then: 0.5, or
            `tfprune.schedules.Cosine(1.0, 0.5, length=20)`. Several at once are all met.
        every: `"epoch"`, or a number of steps.
        begin: the first epoch (or step) at which anything is zeroed.
        mode: `"soft"`: filters may come back, and all are chosen anew each time (He et al. 2018). `"hard"`: what was
            zeroed once is held at 0 by the optimizer itself (a constraint on the variable), and the plan only grows.
        slots: `"keep"`: the optimizer's slots stay, so that filters can come back. `"reset"`: the slots of what is
            zeroed are zeroed too; with an optimizer without weight decay nothing comes back then.
        scope, round_to, min_width, max_ratio, only, ignore, layers, heads, latency_table: see `tfprune.select`. A
            latency table that is not given is measured once, when training begins.
        data, loss: for a criterion that needs them, a small sample that can be read again and again: it is measured
            whenever channels are chosen. See docs/criteria.md.
        max_failure_rate: with `stop_when_converged`, what counts as converged, a fraction in [0, 1].
        stop_when_converged: leave a threshold of the ladder early once it has converged, and stop training after the
            last.
        csv: a path; the monitor's history is written there after every epoch.
        tensorboard: a directory for TensorBoard's log, written at the end.

    Attributes:
        monitor: a `ConvergenceMonitor`; also in the logs of every epoch, as `failure_rate`.
        plan: the `PruningPlan` that is zeroed now.

    Raises:
        ProcessError: (while training) the processes that train together chose differently.
        DivergedError: in training, when channels are to be chosen and a weight is NaN or infinite.
        PlanError: not exactly one of ratio, thresholds and budgets, a value out of range, an unknown criterion, mode
            or policy, a criterion that needs data without any.
        DataError: data that can be read only once.

    In a loop of your own, instead of `fit`: `start`, `after_step`, `after_epoch`, `finish`; see docs/loops.md.

    >>> import keras, numpy as np, tfprune
    >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(8, 3, activation="relu"),
    ...                           keras.layers.Flatten(), keras.layers.Dense(2)])
    >>> model.compile("sgd", "mse")
    >>> pruning = tfprune.SoftPruning("l2", ratio=0.5)
    >>> x, y = np.random.rand(16, 8, 8, 1), np.random.rand(16, 2)
    >>> _ = model.fit(x, y, epochs=2, verbose=0, callbacks=[pruning])
    >>> tfprune.strip(model).model.layers[0].filters
    4

    Source: He et al., "Soft Filter Pruning" (arXiv:1808.06866).
    """

    def __init__(
        self,
        criterion: str | Criterion = "redundancy",
        *,
        ratio: float | Sequence[float] | Schedule | None = None,
        thresholds: float | Sequence[float] | Schedule | None = None,
        params: float | Sequence[float] | Schedule | None = None,
        macs: float | Sequence[float] | Schedule | None = None,
        latency: float | Sequence[float] | Schedule | None = None,
        every: int | Literal["epoch"] = "epoch",
        begin: int = 0,
        mode: Literal["soft", "hard"] = "soft",
        slots: Literal["keep", "reset"] = "keep",
        scope: Scope = "local",
        round_to: int = 4,
        min_width: int = 1,
        max_ratio: float | None = None,
        only: str | Sequence[str] | None = None,
        ignore: str | Sequence[str] | None = None,
        layers: bool = False,
        heads: bool = False,
        latency_table: Any = None,
        data: Any = None,
        loss: Any = None,
        max_failure_rate: float = 0.1,
        stop_when_converged: bool = False,
        csv: str | os.PathLike | None = None,
        tensorboard: str | os.PathLike | None = None,
    ):
        super().__init__()
        if mode not in ("soft", "hard"):
            raise PlanError(f"mode is 'soft' or 'hard', and {mode!r} came")
        if slots not in ("keep", "reset"):
            raise PlanError(f"slots is 'keep' or 'reset', and {slots!r} came")
        if every != "epoch" and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
            raise PlanError(f"every is 'epoch' or a number of steps of at least 1, and {every!r} came")
        if begin < 0:
            raise PlanError(f"begin is an epoch or step from 0 on, and {begin} came")
        needs_of(criterion, data)
        Sample.of(data).check_again()
        limits: dict[str, Any] = {
            "scope": scope,
            "round_to": round_to,
            "min_width": min_width,
            "max_ratio": max_ratio,
        }
        given = {"ratio": ratio, "threshold": thresholds, "params": params, "macs": macs, "latency": latency}
        self.scheduled: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        amounts: dict[str, Any] = dict.fromkeys(self.scheduled, 0.5)
        Request.checked(**amounts, **limits)
        for name, values in self.scheduled.items():
            as_schedule(values, 1, name)
            for value in () if callable(values) else np.atleast_1d(values):
                Request.checked(**{name: value})
        self.options: dict[str, Any] = {
            "criterion": criterion,
            "only": only,
            "ignore": ignore,
            "layers": layers,
            "heads": heads,
            "data": data,
            "loss": loss,
            **limits,
        }
        self.latency_table = latency_table
        self.every, self.begin, self.mode, self.slots = every, begin, mode, slots
        self.stop_when_converged, self.csv, self.tensorboard = stop_when_converged, csv, tensorboard
        self.monitor = ConvergenceMonitor(max_failure_rate)
        self.plan: PruningPlan | None = None
        self._loop: _Loop | None = None
        #: Keras need not wait for each step: between epochs alone there is something to do
        self.async_safe = every == "epoch"
        #: batches that have been trained on before are read again, and do not count (`Resume` sets it)
        self.paused = False
        #: where the state before this moment is kept, if it is (`Resume` sets it)
        self.newest_checkpoint: Path | None = None

    # -- Keras' events --------------------------------------------------------------------------------------------

    def on_train_begin(self, logs: Any = None) -> None:
        self._graph: ChannelGraph = trace(self.model)
        self._schedules = {
            name: as_schedule(values, self._rung(values), name) for name, values in self.scheduled.items()
        }
        if "latency" in self.scheduled and self.latency_table is None:
            self.latency_table = LatencyTable.measure(self._graph)
        self._step, self._skipped, self._epoch, self._zeroed = 0, 0, 0, 0
        self._zeroing: Zeroing | None = None
        # In a loop of one's own, jax.jit would keep the first masks: zeros are held by hand there.
        held = self._loop is None or (self._optimizer() is not None and keras.backend.backend() != "jax")
        self._masks = _Masks(self.model, self._graph) if self.mode == "hard" and held else None
        self._epoch_done = True
        self.plan = None
        if self.begin == 0:
            self._choose(0)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch, self._epoch_done = epoch, False

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.paused:
            return
        self._step += 1
        due = self.every != "epoch" and self._step % int(self.every) == 0 and self._step >= self.begin
        by_hand = self.mode == "hard" and self._masks is None and self._zeroing is not None
        if due or by_hand:
            self._synchronize()
        if by_hand:
            self._zero()
        if due:
            self._measure()
            self._choose(self._step)

    def on_test_begin(self, logs: Any = None) -> None:
        self._end_epoch()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._end_epoch()
        if logs is not None:
            logs["failure_rate"] = self.monitor.rate
            logs["pruned_channels"] = float(self.plan.pruned if self.plan else 0)
        if self.csv is not None and is_first():
            self.monitor.to_csv(self.csv)

    def on_train_end(self, logs: Any = None) -> None:
        self._zero()
        if self._masks is not None:
            self._masks.release()
        if self.tensorboard is not None and is_first():
            self.monitor.to_tensorboard(self.tensorboard)

    # -- a loop of your own -----------------------------------------------------------------------------------------

    def start(
        self,
        model: keras.Model,
        *,
        optimizer: Any = None,
        epochs: int | None = None,
        steps: int | None = None,
        synchronize: Callable[[], Any] | None = None,
    ) -> None:
        """Begin a training loop that is not `fit`; call it before the first step is traced or compiled.

        Args:
            model: what is trained; it need not be compiled.
            optimizer: what trains it, if that is not the model's own. A Keras optimizer takes part in `slots="reset"`
                and, but on JAX, in `mode="hard"`; with others, hard pruning zeroes after every step instead.
            epochs: how many there will be; a sequence of ratios is spread over them.
            steps: of an epoch; a sequence is spread over them if `every` counts steps.
            synchronize: called before the model's variables are looked at, to write into them what the loop keeps
                elsewhere: on JAX, where weights are passed from step to step.

        Raises:
            PlanError: `slots="reset"` with nothing that has slots tfprune knows; a sequence without its length.
        """
        optimizer = getattr(model, "optimizer", None) if optimizer is None else optimizer
        if self.slots == "reset" and not isinstance(optimizer, keras.optimizers.Optimizer):
            came = "none came" if optimizer is None else f"{type(optimizer).__name__} came"
            raise PlanError(f"slots='reset' needs a Keras optimizer, and {came}; give optimizer=, or slots='keep'")
        self.set_model(model)
        self.set_params({"epochs": epochs, "steps": steps})
        self._loop = _Loop(optimizer, synchronize)
        self.on_train_begin()

    def after_step(self) -> bool:
        """Call it after each step.

        Returns:
            whether weights were zeroed now, so that a loop that keeps them elsewhere takes them from the model anew.
        """
        loop, before = self._own_loop(), self._zeroed
        if self._epoch_done:
            self.on_epoch_begin(loop.epoch)
        self.on_train_batch_end(self._step)
        return self._zeroed > before

    def after_epoch(self) -> bool:
        """Call it after each epoch, before validation and checkpoints.

        Returns:
            as `after_step`. With `stop_when_converged`, `model.stop_training` says whether to go on.
        """
        loop, before = self._own_loop(), self._zeroed
        if self._epoch_done:  # an epoch without a step
            self.on_epoch_begin(loop.epoch)
        self._synchronize()
        self.on_epoch_end(loop.epoch)
        loop.epoch += 1
        return self._zeroed > before

    def finish(self) -> None:
        """Call it when training has ended: what the plan says is 0 in the model, and constraints are given back."""
        self._own_loop()
        self._synchronize()
        self.on_train_end()
        self._loop = None

    # -- a training that goes on -----------------------------------------------------------------------------------

    @property
    def begun(self) -> bool:
        """Whether training has begun, so that there is a state."""
        return hasattr(self, "_graph")

    @property
    def settings(self) -> dict[str, Any]:
        """What it was made with, as JSON: a training that goes on must have the same."""
        own = {"every": self.every, "begin": self.begin, "mode": self.mode, "slots": self.slots}
        stops = {"stop_when_converged": self.stop_when_converged, "max_failure_rate": self.monitor.max_failure_rate}
        schedules = getattr(self, "_schedules", self.scheduled)
        return {"kind": type(self).__name__, **described({**schedules, **self.options}), **own, **stops}

    def get_state(self) -> dict[str, Any]:
        """Where pruning is, as JSON: the plan, the schedule's position, the monitor, a latency table measured here.

        Raises:
            PlanError: training has not begun.
        """
        if not self.begun:
            raise PlanError("there is no state before training begins")
        table = self.latency_table
        return {
            "epoch": self._epoch if self._loop is None else self._loop.epoch,
            "step": self._step,
            "skipped": self._skipped,
            "amounts": self._current if self.plan is not None else {},
            "plan": None if self.plan is None else self.plan.to_state(),
            "monitor": self.monitor.get_state(),
            "latency_table": table.to_json() if isinstance(table, LatencyTable) else None,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from `get_state`; called after training has begun and the model has its weights back.

        Raises:
            PlanError: the state is that of another model, or training has not begun.
        """
        if not self.begun:
            raise PlanError("a state is taken over after training has begun: on_train_begin or start come first")
        self._epoch, self._step, self._skipped = state["epoch"], state["step"], state["skipped"]
        self.monitor.set_state(state["monitor"])
        if state["latency_table"] is not None:
            self.latency_table = LatencyTable.from_json(state["latency_table"])
        if self._loop is not None:
            self._loop.epoch = state["epoch"]
        self._current, self.plan, self._zeroing = state["amounts"], None, None
        if state["plan"] is not None:
            self.plan = PruningPlan.from_state(state["plan"], self._graph)
            self._zeroing = Zeroing(self.model, self.plan)
            if self._masks is not None:
                self._masks.hold(self._zeroing)

    def set_model(self, model: keras.Model) -> None:
        """Keras calls it before `fit`."""
        super().set_model(model)
        self._loop = None

    def _own_loop(self) -> _Loop:
        if self._loop is None:
            raise PlanError("the loop has not begun; call start(model) before the first step")
        return self._loop

    def _optimizer(self) -> Any:
        """A Keras optimizer that trains the model, or None."""
        optimizer = getattr(self.model, "optimizer", None) if self._loop is None else self._loop.optimizer
        return optimizer if isinstance(optimizer, keras.optimizers.Optimizer) else None

    # -- what they do ---------------------------------------------------------------------------------------------

    @property
    def amount(self) -> dict[str, float]:
        """What the schedules asked for when `plan` was chosen, such as `{"ratio": 0.5}`; empty before."""
        return {} if self.plan is None else dict(self._current)

    def _rung(self, values: Any) -> int:
        """How many epochs or steps each value of a sequence gets."""
        if not isinstance(values, Sequence):
            return 1
        epochs = self.params.get("epochs")
        if epochs is None:
            raise PlanError("a sequence is spread over the epochs; give epochs= to start, or a schedule instead")
        epochs = int(epochs)
        if self.every == "epoch":
            return max(1, (epochs - self.begin) // len(values))
        steps = self.params.get("steps")
        if steps is None:
            raise PlanError(
                "a sequence over steps needs to know how many there are, and fit does not; "
                "give steps_per_epoch to fit (steps to start), every='epoch', or a schedule such as "
                "tfprune.schedules.Ladder"
            )
        return max(1, (epochs * int(steps) - self.begin) // len(values))

    def _end_epoch(self) -> None:
        """Once an epoch, before its validation if it has one."""
        if getattr(self, "_epoch_done", True):
            return
        self._epoch_done = True
        if self.every == "epoch":
            if self.plan is not None:
                self._measure()
            if self._converged_early():
                return
            upcoming = self._epoch + 1
            if upcoming >= self.begin:
                last = self.plan is not None and upcoming >= int(self.params.get("epochs") or upcoming + 1)
                self._choose(self._epoch if last else upcoming)
        elif self._zeroing is not None:
            self._synchronize()
            self._measure()
            self._zero()

    def _converged_early(self) -> bool:
        """With `stop_when_converged`: skip to the next value of the ladder, or stop behind the last."""
        if not (self.stop_when_converged and self.plan is not None and self.monitor.converged):
            return False
        now = self._amount(self._epoch)
        remaining = range(self._epoch + 1, int(self.params.get("epochs") or 0))
        for upcoming in remaining:
            if self._amount(upcoming) != now:
                self._skipped += upcoming - (self._epoch + 1)
                return False
        self._zero()
        self.model.stop_training = True
        return True

    def _amount(self, progress: int) -> dict[str, float]:
        """What is asked of `select` at an epoch or step."""
        amount = {}
        for name, schedule in self._schedules.items():
            amount[name] = float(schedule(progress + self._skipped - self.begin))
            if not 0 <= amount[name] <= 1:
                raise PlanError(f"the schedule gives {name} {amount[name]} at {progress}; it must be in [0, 1]")
        return amount

    def _measure(self) -> None:
        if self.plan is not None:
            value = next(iter(self._current.values()))
            self.monitor.measure(self.model, self.plan, epoch=self._epoch, threshold=value)

    def _choose(self, progress: int) -> None:
        refuse_diverged(self.model, newest=self.newest_checkpoint)
        self._current = self._amount(progress)
        amount: dict[str, Any] = {**self._current, "latency_table": self.latency_table}
        plan = select(self._graph, **amount, **self.options)
        if self.mode == "hard" and self.plan is not None:
            layers = tuple(dict.fromkeys((*self.plan.layers, *plan.layers)))
            plan = replace(plan, gone=plan.gone | self.plan.gone, layers=layers)
        agree(
            f"the channels chosen at {progress}",
            *(progress, *self._current.values(), plan.gone, *plan.layers),
            hint="give all the same model, weights (keras.utils.set_random_seed), schedule and data=",
        )
        self.plan = plan
        self._zeroing = Zeroing(self.model, plan)
        self._zero()
        if self.slots == "reset" and self._optimizer() is not None:
            self._zeroing.apply_to_slots(self._optimizer())
        if self._masks is not None:
            self._masks.hold(self._zeroing)

    def _zero(self) -> None:
        """Zero what the plan says in the weights, and in their averages, which may take their place."""
        if self._zeroing is None:
            return
        self._zeroing.apply()
        if self._optimizer() is not None:
            self._zeroing.apply_to_averages(self._optimizer())
        self._zeroed += 1

    def _synchronize(self) -> None:
        """On JAX the weights live in the training loop during an epoch; have them written back."""
        synchronize = getattr(self.model, "jax_state_sync", None) if self._loop is None else self._loop.synchronize
        if synchronize is not None:
            synchronize()


@dataclass
class _Loop:
    """A training loop that is not `fit`."""

    optimizer: Any
    synchronize: Callable[[], Any] | None
    epoch: int = 0


class _Masks:
    """Constraints that hold masked weights at 0 inside the compiled training step.

    A mask is a Keras variable, so that a new plan needs no new compilation; JAX alone bakes its value in.
    """

    def __init__(self, model: keras.Model, graph: ChannelGraph):
        self.model = model
        self._held: dict[int, tuple[Any, Any, dict[tuple[int, ...], Any]]] = {}
        for slot in zeroable(graph):
            variable = graph.variables[slot.weight]
            _, before, masks = self._held.setdefault(id(variable), (variable, variable.constraint, {}))
            shape = np.broadcast_shapes(
                slot.mask(np.ones(slot.labels.size, bool)).shape, masks[slot.split].shape if slot.split in masks else ()
            )
            masks[slot.split] = keras.Variable(np.ones(shape, bool), dtype="bool", trainable=False)
            variable.constraint = _Masked(before, masks)
        self._compile()

    def hold(self, zeroing: Zeroing) -> None:
        """Hold what `zeroing` zeroes, and nothing else."""
        wanted = {(id(variable), split): mask for variable, split, mask in zeroing.masks}
        for key, (_, _, masks) in self._held.items():
            for split, mask in masks.items():
                mask.assign(np.broadcast_to(wanted.get((key, split), True), mask.shape))
        if keras.backend.backend() == "jax":
            self._compile()

    def release(self) -> None:
        """Give the variables their own constraints back; the next training compiles its step without the masks."""
        for variable, before, _ in self._held.values():
            variable.constraint = before
        self._held.clear()
        self.model.train_function = None

    def _compile(self) -> None:
        """Have Keras make its training step anew; a loop of one's own has its own."""
        if self.model.compiled:
            self.model.make_train_function(force=True)


class _Masked(keras.constraints.Constraint):
    """The variable's own constraint, then zeros where the masks say so."""

    def __init__(self, inner: Any, masks: dict[tuple[int, ...], Any]):
        self.inner, self.masks = inner, masks

    def __call__(self, weight: Any) -> Any:
        ops = keras.ops
        value = ops.convert_to_tensor(weight if self.inner is None else self.inner(weight))
        shape = tuple(weight.shape)
        for split, mask in self.masks.items():
            value = ops.reshape(ops.where(mask.value, ops.reshape(value, split), 0), shape)
        return value
