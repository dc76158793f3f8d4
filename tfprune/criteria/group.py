"""What most criteria share: a group's members are scored one by one, then combined, then normalised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tfprune.channels.graph import Member
from tfprune.criteria.base import GroupView, Unscored
from tfprune.criteria.features import Feature, Gradient
from tfprune.errors import PlanError

Combine = Literal["mean", "sum", "max", "first", "product"]
Normalize = Literal["none", "mean", "max", "sum", "standard", "width"]

#: What a channel's kernels are: those that write it, carry it and read it.
KERNELS = ("write", "depthwise", "read")
#: What criteria want that look at feature maps.
FEATURE_MAP = "a feature map, and what runs inside of a recurrent layer's loop has none of its own"
ROLES = (*KERNELS, "bias", "scale", "shift")


def combined(parts: list[NDArray], how: Combine) -> NDArray[np.float64]:
    """Several scores a channel become one.

    >>> combined([np.array([1.0, 2.0]), np.array([3.0, 5.0])], "product").tolist()
    [3.0, 10.0]
    """
    array = np.asarray(parts, np.float64)
    match how:
        case "mean":
            return array.mean(axis=0)
        case "sum":
            return array.sum(axis=0)
        case "max":
            return array.max(axis=0)
        case "first":
            return array[0]
        case "product":
            return array.prod(axis=0)


def normalized(scores: NDArray, how: Normalize) -> NDArray[np.float64]:
    """Make the scores of one group comparable with those of another; the order inside a group stays.

    Args:
        scores: shape (width,).
        how: divide by the group's `mean`, `max` or `sum` (of absolute values) or its `width`; `standard`: take the mean
            away and divide by the standard deviation; `none`. What would divide by 0 divides by 1.

    >>> normalized(np.array([1.0, 3.0]), "mean").tolist(), normalized(np.array([1.0, 3.0]), "standard").tolist()
    ([0.5, 1.5], [-1.0, 1.0])
    """
    match how:
        case "none":
            return scores
        case "mean":
            return scores / (np.abs(scores).mean() or 1)
        case "max":
            return scores / (np.abs(scores).max(initial=0) or 1)
        case "sum":
            return scores / (np.abs(scores).sum() or 1)
        case "standard":
            return (scores - scores.mean()) / (scores.std() or 1)
        case "width":
            return scores / len(scores)


@dataclass(frozen=True, kw_only=True)
class GroupCriterion:
    """The base of criteria that score each of a group's members (the layers that hold its channels) alone.

    A criterion overrides `parts`.

    Attributes:
        members: how the members' scores combine: `mean`, `sum`, `max`, `product`, or the `first` one alone.
        normalize: what makes scores of different groups comparable: `none`, or divided by the group's `mean`, `max` or
            `sum`, or by its `width`, or `standard` (mean 0, deviation 1).

    Raises:
        PlanError: one of them is none of these.
    """

    members: Combine = "mean"
    normalize: Normalize = "none"

    #: Scores are fractions that mean the same in every group.
    fractions: ClassVar[bool] = False
    #: What it takes to score a group at all.
    wants: ClassVar[str] = "a layer whose weights write the channels, and the group has none"

    def __post_init__(self) -> None:
        for name, known in (("members", get_args(Combine)), ("normalize", get_args(Normalize))):
            one_of(type(self).__name__, name, getattr(self, name), known)

    @property
    def needs(self) -> tuple[Feature | Gradient, ...]:
        """What has to be measured on a data sample."""
        return ()

    @property
    def absolute(self) -> bool:
        """Whether a threshold may compare with 1 - score as it is."""
        return self.fractions and self.normalize == "none" and self.members != "sum"

    def __call__(self, view: GroupView) -> NDArray[np.float64]:
        parts = self.parts(view)
        if not parts:
            raise Unscored(f"{type(self).__name__} needs {self.wants}")
        return normalized(self.finished(combined(parts, self.members)), self.normalize)

    def parts(self, view: GroupView) -> list[NDArray]:
        """The members' scores, each of shape (width,)."""
        raise NotImplementedError

    def finished(self, scores: NDArray) -> NDArray:
        """What becomes of the combined scores."""
        return scores


@dataclass(frozen=True, kw_only=True)
class WeightCriterion(GroupCriterion):
    """The base of criteria whose members are parts of weights; one overrides `of`.

    Attributes:
        roles: which of a channel's weights count: those that `write` it (its filters, rows of a Dense kernel), carry it
            (`depthwise`) and `read` it; also `bias`, `scale`, `shift`.
    """

    roles: tuple[str, ...] = ("write",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.roles, str) or not self.roles:
            raise PlanError(f"{type(self).__name__}'s roles are a tuple, such as ('write',), and {self.roles!r} came")
        for role in self.roles:
            one_of(type(self).__name__, "roles", role, ROLES)

    def parts(self, view: GroupView) -> list[NDArray]:
        return [self.of(view, member) for member in view.members(*self.roles)]

    def of(self, view: GroupView, member: Member) -> NDArray:
        """The scores of one member, shape (width,)."""
        raise NotImplementedError


def one_of(owner: str, name: str, value: object, known: tuple[object, ...]) -> None:
    """Check a setting.

    Raises:
        PlanError: it is none of those known.
    """
    if not any(value is one or value == one for one in known):
        raise PlanError(f"{owner}'s {name} is {', '.join(map(repr, known[:-1]))} or {known[-1]!r}, and {value!r} came")
