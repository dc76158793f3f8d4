"""What a criterion sees of a channel group, and the names of the criteria."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tfprune.channels.graph import ChannelGroup, Member
from tfprune.channels.weights import Slot, Weight
from tfprune.errors import PlanError, nearest

Criterion = Callable[["GroupView"], NDArray]
_CRITERIA: dict[str, Criterion] = {}


@dataclass(frozen=True)
class GroupView:
    """A channel group with its weights at hand.

    Attributes:
        group: the group.
        read: from a weight to its array.
        known: what has been computed for other groups.
    """

    group: ChannelGroup
    read: Callable[[Weight], NDArray]
    known: dict[tuple[Slot, object], NDArray] = field(default_factory=dict, repr=False)

    @property
    def width(self) -> int:
        """How many channels to score."""
        return self.group.width

    def members(self, *roles: str) -> list[Member]:
        """The group's parts of weights with one of these roles (all roles if none is given)."""
        return [member for member in self.group.members if not roles or member.role in roles]

    def array(self, member: Member) -> NDArray:
        """The whole weight that a member is part of."""
        return self.read(member.slot.weight)

    def rows(self, member: Member) -> NDArray:
        """The member's slices: shape (positions, values); `member.channels` says whose each row is."""
        return member.slot.rows(self.array(member))[member.positions]

    def sums(self, member: Member, function: Callable[[NDArray], NDArray]) -> NDArray[np.float64]:
        """Sum an elementwise function of each channel's slices of a member; shape (width,)."""
        return self.per_channel(member, self.sums_of(member, function)[member.positions])

    def sums_of(self, member: Member, function: Callable[[NDArray], NDArray]) -> NDArray[np.float64]:
        """The same for every row of the member's weight, in this group or not; computed once."""
        key = (member.slot, function)
        if key not in self.known:  # a concatenation's reader is a member of many groups
            self.known[key] = member.slot.sums(self.array(member), function)
        return self.known[key]

    def per_channel(self, member: Member, values: NDArray) -> NDArray:
        """Sum one value a row into one a channel, shape (width,)."""
        return np.bincount(member.channels, weights=values, minlength=self.width)


class Unscored(PlanError):
    """A criterion has nothing to say about a group, and why: the group stays."""


def register_criterion(name: str) -> Callable[[Criterion], Criterion]:
    """Give a criterion a name for `criterion=`.

    >>> @register_criterion("first_weight")
    ... def first_weight(view):
    ...     member = view.members("write")[0]
    ...     return view.per_channel(member, abs(view.rows(member)[:, 0]))
    """

    def register(criterion: Criterion) -> Criterion:
        _CRITERIA[name] = criterion
        return criterion

    return register


def criterion_named(criterion: str | Criterion) -> Criterion:
    """The criterion with this name; a callable is itself.

    Raises:
        PlanError: there is none with this name.
    """
    if callable(criterion):
        return criterion
    if not isinstance(criterion, str) or criterion not in _CRITERIA:
        near = nearest(str(criterion), _CRITERIA)
        raise PlanError(
            f"there is no criterion {criterion!r}{near}{'' if near else ';'} there are {', '.join(criterion_names())}, "
            f"or give a function"
        )
    return _CRITERIA[criterion]


def criterion_names() -> tuple[str, ...]:
    """All names that `criterion=` takes, sorted."""
    return tuple(sorted(_CRITERIA))


def name_of(criterion: str | Criterion) -> str:
    """What a criterion is called in plans and messages.

    >>> name_of("l1"), name_of(len)
    ('l1', 'len')
    """
    if isinstance(criterion, str):
        return criterion
    known = [name for name, value in _CRITERIA.items() if value is criterion]
    return known[0] if known else getattr(criterion, "__name__", type(criterion).__name__)
