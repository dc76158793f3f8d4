"""What a criterion sees of a channel group, and the names of the criteria."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tfprune.channels.graph import ChannelGroup, Member
from tfprune.channels.weights import Weight
from tfprune.errors import PlanError, nearest

if TYPE_CHECKING:
    from tfprune.criteria.evidence import Evidence
    from tfprune.criteria.features import Feature, Gradient

Criterion = Callable[["GroupView"], NDArray]
_CRITERIA: dict[str, Criterion] = {}


@dataclass(frozen=True)
class GroupView:
    """What a criterion sees of a channel group: its weights and, with a data sample, its feature maps and gradients.

    Attributes:
        group: the group.
        read: from a weight to its array.
        known: what has been computed for other groups.
        evidence: what was measured on the sample; None without one.
    """

    group: ChannelGroup
    read: Callable[[Weight], NDArray]
    known: dict[Any, Any] = field(default_factory=dict, repr=False)
    evidence: Evidence | None = field(default=None, repr=False)

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
        rows = member.slot.rows(self.array(member))
        # All of them are most often a view of the weight.
        return rows if np.array_equal(member.positions, np.arange(len(rows))) else rows[member.positions]

    def matrix(self, member: Member) -> NDArray:
        """The same with all of a channel's slices in one row: shape (width, values), float32 or float64."""
        rows = self.rows(member)
        rows = rows if rows.dtype == np.float64 else rows.astype(np.float32, copy=False)
        if len(rows) == self.width and (member.channels == np.arange(self.width)).all():
            return rows
        counts = np.bincount(member.channels, minlength=self.width)
        order = np.argsort(member.channels, kind="stable")
        place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        result = np.zeros((self.width, counts.max(initial=0), rows.shape[1]), rows.dtype)
        result[member.channels[order], place] = rows[order]
        return result.reshape(self.width, -1)

    def sums(
        self, member: Member, function: Callable[[NDArray], NDArray], by: np.ufunc = np.add
    ) -> NDArray[np.float64]:
        """Sum an elementwise function of each channel's slices of a member; shape (width,).

        Args:
            by: `np.maximum` takes the largest instead; the function's values are then at least 0.
        """
        return self.per_channel(member, self.sums_of(member, function, by)[member.positions], by)

    def sums_of(
        self, member: Member, function: Callable[[NDArray], NDArray], by: np.ufunc = np.add
    ) -> NDArray[np.float64]:
        """The same for every row of the member's weight, in this group or not; computed once."""
        # A concatenation's reader is a member of many groups.
        return self.once((member.slot, function, by), lambda: member.slot.sums(self.array(member), function, by))

    def per_channel(self, member: Member, values: NDArray, by: np.ufunc = np.add) -> NDArray:
        """Sum one value a row (or take the largest) into one a channel, shape (width,)."""
        if by is np.add:
            return np.bincount(member.channels, weights=values, minlength=self.width)
        result = np.zeros(self.width)
        by.at(result, member.channels, values)
        return result

    def features(self, feature: Feature) -> list[NDArray[np.float64]]:
        """What was measured of the group's feature maps, one array of shape (width,) for each layer that writes it.

        Raises:
            PlanError: the criterion's `needs` do not name it.
        """
        return self._evidence(feature).feature(self.group, feature)

    def gradient(self, member: Member, gradient: Gradient) -> NDArray:
        """The gradient of the whole weight that a member is part of; its mean or mean square over samples.

        Raises:
            PlanError: the criterion's `needs` do not name it.
        """
        return self._evidence(gradient).gradient(member.slot.weight, gradient)

    def once(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """What `compute` returns, computed once for all groups."""
        if key not in self.known:
            self.known[key] = compute()
        return self.known[key]

    def _evidence(self, need: Feature | Gradient) -> Evidence:
        if self.evidence is None or need not in self.evidence.needs:
            raise PlanError(f"{need} was not measured; name it in the criterion's `needs`, and give data=")
        return self.evidence


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
