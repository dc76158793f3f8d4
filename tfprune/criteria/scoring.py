"""Every group scored once: a criterion, a graph, and the data sample that some criteria need."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from tfprune.channels.graph import ChannelGraph, ChannelGroup
from tfprune.channels.weights import Weight
from tfprune.criteria.base import Criterion, GroupView, Unscored, criterion_named, name_of
from tfprune.criteria.evidence import Evidence, gather
from tfprune.criteria.features import Feature, Gradient
from tfprune.errors import PlanError, nearest


class Scores(dict[str, NDArray[np.float64]]):
    """group name -> a score for each channel, shape (width,); the higher, the sooner it stays.

    Attributes:
        criterion: the criterion's name.
        absolute: the scores are fractions in [0, 1] that mean the same in every group, so that a threshold compares
            with `1 - score` as it is.
        refused: group name -> why the criterion has nothing to say about it; such a group stays.
    """

    def __init__(self, criterion: str, absolute: bool):
        super().__init__()
        self.criterion, self.absolute = criterion, absolute
        self.refused: dict[str, str] = {}

    def redundancy(self, name: str) -> NDArray[np.float64]:
        """1 - score for absolute scores, and 1 - score / the group's largest score for others.

        Where scores are negative the lowest one stands for 0.
        """
        scores = self[name]
        if self.absolute:
            return 1 - scores
        lowest = scores.min(initial=0)
        largest = scores.max(initial=0) - lowest
        return 1 - (scores - lowest) / largest if largest > 0 else np.ones_like(scores)


class Scorer:
    """A criterion on a graph, asked for any groups at any time; what it has computed it does not compute again.

    Args:
        graph: from `tfprune.trace`.
        criterion: a name, or a function of a `GroupView`.
        data, loss: see `score`.

    Raises:
        PlanError: there is no such criterion, or it needs data and none came.
    """

    def __init__(self, graph: ChannelGraph, criterion: str | Criterion, *, data: Any = None, loss: Any = None):
        self.graph, self.criterion, self.data, self.loss = graph, criterion_named(criterion), data, loss
        self.name = name_of(criterion)
        needs = needs_of(self.criterion, data)
        if needs and not isinstance(graph.model, keras.Model):
            raise PlanError(f"{self.name} needs to run the model, and {graph.name} is no Keras model; take another one")
        if isinstance(data, Evidence) and (not needs <= data.needs or data.graph is not graph):
            raise PlanError(f"the evidence that came as data= was not gathered for {self.name} and this graph")
        self._needs = needs
        self._arrays: dict[Weight, NDArray] = {}
        self._known: dict = {}

    def __call__(self, groups: Iterable[ChannelGroup | str] | None = None) -> Scores:
        """The scores of some groups; of every prunable one by default. A group may be one that the graph does not have.

        Raises:
            PlanError: there is no such group; the scores have another shape than (width,), or are not finite.
        """
        scores = Scores(self.name, bool(getattr(self.criterion, "absolute", False)))
        views = [self.view(group) for group in self._groups(groups)]
        # Products of a few milliseconds: threads that wait for each other make them several times as slow.
        with threadpool_limits(1, user_api="blas"):
            for view in views:
                try:
                    scores[view.group.name] = self._checked(view.group, self.criterion(view))
                except Unscored as reason:
                    scores.refused[view.group.name] = str(reason)
        return scores

    def view(self, group: ChannelGroup) -> GroupView:
        """What the criterion sees of a group."""
        return GroupView(group, self._read, self._known, self.evidence)

    @cached_property
    def evidence(self) -> Evidence | None:
        """What was measured on the sample, once, when it is first asked for; None if the criterion needs no data."""
        if not self._needs or isinstance(self.data, Evidence):
            return self.data if self._needs else None
        return gather(self.graph, self._needs, self.data, self.loss)

    def _groups(self, groups: Iterable[ChannelGroup | str] | None) -> list[ChannelGroup]:
        if groups is None:
            return [group for group in self.graph.groups if group.prunable]
        return [self._group(group) if isinstance(group, str) else group for group in groups]

    def _group(self, name: str) -> ChannelGroup:
        try:
            return self.graph.group(name)
        except KeyError:
            near = nearest(name, [group.name for group in self.graph.groups])
            raise PlanError(f"{self.graph.name} has no channel group {name!r}{near}") from None

    def _read(self, weight: Weight) -> NDArray:
        if weight not in self._arrays:
            self._arrays[weight] = self.graph.weight(weight)
        return self._arrays[weight]

    def _checked(self, group: ChannelGroup, scores: Any) -> NDArray[np.float64]:
        try:
            scores = np.asarray(scores, np.float64)
        except (TypeError, ValueError) as error:
            raise PlanError(
                f"{self.name} must give an array of {group.width} scores for group {group.name!r}, and "
                f"a {type(scores).__name__} came: {error}"
            ) from error
        if scores.shape != (group.width,):
            raise PlanError(
                f"{self.name} must give {group.width} scores for group {group.name!r}; the shape {scores.shape} came"
            )
        wrong = np.flatnonzero(~np.isfinite(scores))
        if len(wrong):
            raise PlanError(
                f"{self.name} gives scores for group {group.name!r} that are not finite ({scores[wrong[0]]} for "
                f"channel {wrong[0]}); are its weights?"
            )
        return scores


def needs_of(criterion: str | Criterion, data: Any) -> frozenset[Feature | Gradient]:
    """What a criterion needs to have measured.

    Raises:
        PlanError: there is no such criterion, or it needs data and none came.
    """
    needs = frozenset(getattr(criterion_named(criterion), "needs", ()))
    if needs and data is None:
        raise PlanError(
            f"{name_of(criterion)} needs a data sample: give data=, such as data=(x_train[:256], y_train[:256])"
        )
    return needs


def score(
    graph: ChannelGraph,
    criterion: str | Criterion,
    groups: Iterable[ChannelGroup | str] | None = None,
    *,
    data: Any = None,
    loss: Any = None,
) -> Scores:
    """Score channel groups, each once.

    Args:
        graph: from `tfprune.trace`.
        criterion: a name, or a function of a `GroupView`.
        groups: groups or their names; every prunable one by default.
        data: a sample for criteria that need one: arrays, `(x, y)`, batches of these, a `Sample`, or an `Evidence` that
            `gather` made.
        loss: what gradients are of; the compiled model's loss by default. See `gather`.

    Returns:
        group name -> scores, shape (width,); the higher, the sooner a channel stays.

    Raises:
        PlanError: there is no such criterion or group; the scores have another shape than (width,), or are not finite;
            the criterion has nothing to say about any of the groups; it needs data and none came.
        DataError: see `gather`.

    >>> import keras, tfprune
    >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, name="conv"),
    ...                           keras.layers.Flatten(), keras.layers.Dense(2)])
    >>> score(tfprune.trace(model), "l1")["conv"].shape
    (4,)
    """
    scores = Scorer(graph, criterion, data=data, loss=loss)(groups)
    if scores.refused and not scores:
        name, reason = next(iter(scores.refused.items()))
        raise PlanError(f"{scores.criterion} can score no group of {graph.name}; {name!r}: {reason}")
    return scores
