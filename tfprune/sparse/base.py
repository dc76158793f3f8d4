"""What all penalties share: how they get into the compiled step, and out of the model again.

Keras adds `variable.regularizer(variable)` of every trained variable to the loss, inside the compiled step and on every
backend. One variable of the model carries the whole penalty while training lasts, around its own regularizer if it has
one. So the loss that is printed has the penalty in it, as with `kernel_regularizer`; any optimizer, loss scaling and a
`train_step` of one's own see its gradients; and nothing of it is saved, because Keras saves the settings of layers and
not the regularizers of their variables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import keras
import numpy as np
from numpy.typing import NDArray

from tfprune.channels.graph import ChannelGraph, ChannelGroup
from tfprune.channels.parts import share
from tfprune.channels.weights import Slot, Weight
from tfprune.errors import PlanError
from tfprune.frontend import trace
from tfprune.runs.settings import described
from tfprune.schedules import Schedule
from tfprune.selection.patterns import Patterns, holding_all, holding_any

Penalty = Callable[[], Any]  # a scalar tensor, of the weights as they are


class SparseTraining(keras.callbacks.Callback):
    """A callback that adds a penalty on channels to the loss of `fit`; the ones here are its subclasses.

    A subclass says in `penalty` what is added for a strength of 1. The strength may follow a schedule.

    Args:
        strength: a number from 0 on, or a function from an epoch (or step) to one. 0 adds nothing at all.
        every: with a schedule, when the strength is set anew: `"epoch"`, or a number of steps. On the JAX backend each
            new strength compiles the training step again.
        only: layer-name prefixes or patterns; groups of which one holds all writers are pulled. None: every group.
        ignore: the same for layers that are left alone.

    Raises:
        PlanError: a strength below 0 or not finite, an unknown `every`; when training begins, a pattern that matches no
            layer, or nothing in the model that could be pulled.
    """

    #: what the penalty is called in the logs of an epoch
    name = "penalty"

    def __init__(
        self,
        strength: float | Schedule,
        *,
        every: int | Literal["epoch"] = "epoch",
        only: Patterns | None = None,
        ignore: Patterns | None = None,
    ):
        super().__init__()
        if every != "epoch" and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
            raise PlanError(f"every is 'epoch' or a number of steps of at least 1, and {every!r} came")
        if not callable(strength):
            _checked(strength)
        self.strength, self.every, self.only, self.ignore = strength, every, only, ignore
        self._held: _Carried | None = None

    def penalty(self, graph: ChannelGraph) -> Penalty | None:
        """What is added to the loss at strength 1; None for nothing."""
        raise NotImplementedError

    def strength_at(self, progress: int) -> float:
        """The strength at an epoch (or step)."""
        return _checked(self.strength(progress) if callable(self.strength) else self.strength)

    @property
    def now(self) -> float:
        """The strength in use; 0 while nothing is added."""
        return 0.0 if self._held is None else float(keras.ops.convert_to_numpy(self._held.strength))

    # -- Keras' events --------------------------------------------------------------------------------------------

    def on_train_begin(self, logs: Any = None) -> None:
        self._release()  # a training before this one may have been interrupted
        self._step = 0
        if self.strength == 0:
            return
        graph = trace(self.model)
        penalty = self.penalty(graph)
        if penalty is not None:
            carrier = self.model.trainable_variables[0]
            strength = keras.Variable(self.strength_at(0), dtype="float32", trainable=False, name="strength")
            self._held = _Carried(carrier.regularizer, penalty, strength)
            self._carrier, carrier.regularizer = carrier, self._held
            self._compile_again()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self.every == "epoch":
            self._set(epoch)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._step += 1
        if self.every != "epoch" and self._step % int(self.every) == 0:
            self._set(self._step)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if logs is not None and self._held is not None:
            logs[self.name] = float(keras.ops.convert_to_numpy(self._held.penalty())) * self.now

    def on_train_end(self, logs: Any = None) -> None:
        self._release()

    # -- for `tfprune.Resume` --------------------------------------------------------------------------------------

    @property
    def settings(self) -> dict[str, Any]:
        """What it was made with, as JSON: a training that goes on must have the same."""
        given = {"strength": self.strength, "every": self.every, "only": self.only, "ignore": self.ignore}
        return {"kind": type(self).__name__, **described(given)}

    def get_state(self) -> dict[str, Any]:
        """How many steps were trained; the epoch is told anyway."""
        return {"step": self._step}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from `get_state`; called after training has begun."""
        self._step = int(state["step"])
        if self.every != "epoch":
            self._set(self._step)

    # -- what they do ---------------------------------------------------------------------------------------------

    def _set(self, progress: int) -> None:
        if self._held is None or not callable(self.strength):
            return
        strength = np.float32(self.strength_at(progress))
        if strength != self.now:
            self._held.strength.assign(strength)
            if keras.backend.backend() == "jax":  # its steps hold the value that they were compiled with
                self._compile_again()

    def _release(self) -> None:
        """Give the variable its own regularizer back, even if another penalty has been put around this one."""
        if self._held is None:
            return
        if self._carrier.regularizer is self._held:
            self._carrier.regularizer = self._held.inner
        else:
            around = self._carrier.regularizer
            while isinstance(around, _Carried) and around.inner is not self._held:
                around = around.inner
            if isinstance(around, _Carried):
                around.inner = self._held.inner
        self._held = None
        self.model.train_function = self.model.test_function = None

    def _compile_again(self) -> None:
        self.model.test_function = None
        self.model.make_train_function(force=True)


class _Carried(keras.regularizers.Regularizer):
    """The variable's own regularizer, and a penalty on others."""

    def __init__(self, inner: Any, penalty: Penalty, strength: Any):
        self.inner, self.penalty, self.strength = inner, penalty, strength

    def __call__(self, weight: Any) -> Any:
        total = self.penalty() * keras.ops.cast(self.strength, "float32")
        return total if self.inner is None else total + keras.ops.cast(keras.ops.sum(self.inner(weight)), "float32")


class Squares:
    """The sum of squares of every channel's weights, over all layers they are in, as one vector.

    Args:
        variables: weight -> the model's variable.
        members: (slot, id of each of its labels); -1 for labels that do not count.
        count: how many channels there are.
    """

    def __init__(self, variables: Mapping[Weight, Any], members: Iterable[tuple[Slot, NDArray]], count: int):
        self.count = count
        #: how many weights each channel has
        self.sizes = np.zeros(count)
        self.members: list[tuple[Any, Slot]] = []
        ids = [np.zeros(0, np.int64)]
        for slot, own in members:
            self.members.append((variables[slot.weight], slot))
            ids.append(np.where(own < 0, count, own))
            self.sizes += share(slot) * np.bincount(own[own >= 0], minlength=count)
        self.ids = np.concatenate(ids).astype("int32")

    def __call__(self) -> Any:
        ops = keras.ops
        sums = [_sums(variable, slot) for variable, slot in self.members]
        ids = ops.convert_to_tensor(self.ids)
        return ops.segment_sum(ops.concatenate(sums), ids, num_segments=self.count + 1)[: self.count]


def _sums(variable: Any, slot: Slot) -> Any:
    """The sum of squares of each label's weights."""
    ops = keras.ops
    others = tuple(axis for axis in range(len(slot.split)) if axis not in slot.axes)
    squares = ops.square(ops.cast(variable.value, "float32"))
    sums = ops.sum(ops.reshape(squares, slot.split), axis=others) if others else ops.reshape(squares, slot.split)
    # What is left of the axes is in ascending order; labels are in the slot's.
    return ops.reshape(ops.transpose(sums, np.argsort(np.argsort(slot.axes)).tolist()), (-1,))


def chosen_groups(graph: ChannelGraph, only: Patterns | None, ignore: Patterns | None) -> list[ChannelGroup]:
    """The groups whose channels may go, as `tfprune.select` would take them.

    Raises:
        PlanError: a pattern matches no layer, or there are none.
    """
    held, ignored = holding_all(graph, only, "only"), holding_any(graph, ignore, "ignore")
    # Where attention heads hold widths, the widths are taken.
    found = [g for g in graph.groups if g.prunable and not g.holds and held(g.writers) and not ignored(g.writers)]
    if not found:
        raise PlanError(f"no channel group of {graph.name} may go and is meant; print(tfprune.trace(model)) lists them")
    return found


def coupled(graph: ChannelGraph, groups: Iterable[ChannelGroup], roles: tuple[str, ...]) -> tuple[Squares, NDArray]:
    """The squares of each channel of some groups, over their weights with these roles that are trained.

    Returns:
        the squares, and the number of each channel's group.
    """
    trained = {id(variable) for variable in graph.model.trainable_variables}
    ids: dict[Slot, NDArray] = {}
    group_of: list[NDArray] = []
    count = 0
    for number, group in enumerate(groups):
        members = [m for m in group.members if m.role in roles and id(graph.variables[m.slot.weight]) in trained]
        for member in members:
            own = ids.setdefault(member.slot, np.full(member.slot.labels.size, -1, np.int64))
            own[member.positions] = count + member.channels
        if members:
            group_of.append(np.full(group.width, number))
            count += group.width
    return Squares(graph.variables, ids.items(), count), np.concatenate([np.zeros(0, np.int64), *group_of])


def _checked(strength: Any) -> float:
    value = np.asarray(strength)
    if value.ndim or value.dtype == bool or not np.issubdtype(value.dtype, np.number) or not 0 <= value < np.inf:
        raise PlanError(f"strength is a number from 0 on, or a schedule that gives one, and {strength!r} came")
    return float(value)
