"""The fraction of a filter's weights that are below the layer's mean.

Source: Liu et al., "Computation-Performance Optimization of Convolutional Neural Networks with Redundant Kernel
Removal" (arXiv:1705.10748), as Tensorflow_Model_Pruning uses it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tfprune.channels.graph import Member
from tfprune.criteria.base import GroupView, register_criterion
from tfprune.errors import PlanError


@dataclass(frozen=True)
class Redundancy:
    """1 - redundancy, where redundancy(f) = fraction of f's weights with |w| < mean |W| (strictly).

    Attributes:
        mode: `full` reads the whole kernel; `legacy` reads only kernel position [0, 0], as the original did, which is
            the same for 1x1 kernels and wrong for larger ones. The mean is over all that is read of the layer.
        members: `all` averages over every layer whose filters write the channel; `first` takes the first alone, as the
            original did.
    """

    mode: Literal["full", "legacy"] = "full"
    members: Literal["all", "first"] = "all"

    #: Scores are fractions already: a threshold compares with 1 - score as it is.
    absolute = True

    def __post_init__(self) -> None:
        if self.mode not in ("full", "legacy"):
            raise PlanError(f"redundancy's mode is 'full' or 'legacy', and {self.mode!r} came")
        if self.members not in ("all", "first"):
            raise PlanError(f"redundancy's members are 'all' or 'first', and {self.members!r} came")

    def __call__(self, weights: GroupView) -> NDArray:
        writers = weights.members("write")
        return 1 - np.mean([self._redundancy(weights, m) for m in writers[: 1 if self.members == "first" else None]], 0)

    def _redundancy(self, weights: GroupView, member: Member) -> NDArray:
        array = weights.array(member)
        if self.mode == "legacy" and array.ndim > 2:
            corner = np.abs(array[(0,) * (array.ndim - 2)])
            small = np.broadcast_to(corner < np.mean(corner, dtype=np.float64), array.shape)
            fractions = member.slot.rows(small)[member.positions].mean(axis=1)
        else:
            whole = weights.sums_of(member, np.abs)
            mean = whole.sum() / array.size
            fractions = member.slot.sums(array, lambda part: np.abs(part) < mean) * len(whole) / array.size
            fractions = fractions[member.positions]
        counts = np.bincount(member.channels, minlength=weights.width)
        return weights.per_channel(member, fractions) / counts


register_criterion("redundancy")(Redundancy())
register_criterion("redundancy_legacy")(Redundancy(mode="legacy"))
