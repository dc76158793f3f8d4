"""L1, L2 and L-infinity norms over a group's coupled weights.

Source: Li et al., "Pruning Filters for Efficient ConvNets" (arXiv:1608.08710); over coupled weights as in Fang et al.,
"DepGraph" (arXiv:2301.12900).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tfprune.channels.graph import Member
from tfprune.criteria.base import GroupView, register_criterion
from tfprune.criteria.group import KERNELS, Combine, WeightCriterion


@dataclass(frozen=True, kw_only=True)
class L1(WeightCriterion):
    """Sum of |w| over every kernel slice that writes, carries or reads the channel.

    `L1(roles=("write",))` is the norm of the filters alone, as Li et al. have it. Scores grow with the weights.
    """

    members: Combine = "sum"
    roles: tuple[str, ...] = KERNELS

    def of(self, view: GroupView, member: Member) -> NDArray:
        return view.sums(member, np.abs)


@dataclass(frozen=True, kw_only=True)
class L2(WeightCriterion):
    """Square root of the sum of w**2 over every kernel slice that writes, carries or reads the channel.

    What the members combine are sums of squares. Scores grow with the weights.
    """

    members: Combine = "sum"
    roles: tuple[str, ...] = KERNELS

    def of(self, view: GroupView, member: Member) -> NDArray:
        return view.sums(member, np.square)

    def finished(self, scores: NDArray) -> NDArray:
        return np.sqrt(scores)


@dataclass(frozen=True, kw_only=True)
class LInf(WeightCriterion):
    """The largest |w| of every kernel slice that writes, carries or reads the channel. Scores grow with the weights."""

    members: Combine = "max"
    roles: tuple[str, ...] = KERNELS

    def of(self, view: GroupView, member: Member) -> NDArray:
        return view.sums(member, np.abs, np.maximum)


register_criterion("l1")(L1())
register_criterion("l2")(L2())
register_criterion("linf")(LInf())
