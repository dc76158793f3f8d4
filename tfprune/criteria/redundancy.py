"""The fraction of a filter's weights that are below the layer's mean.

Source: Liu et al., "Computation-Performance Optimization of Convolutional Neural Networks with Redundant Kernel
Removal" (arXiv:1705.10748), as Tensorflow_Model_Pruning uses it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from tfprune.channels.graph import Member
from tfprune.criteria.base import GroupView, register_criterion
from tfprune.criteria.group import WeightCriterion, one_of


@dataclass(frozen=True)
class Redundancy(WeightCriterion):
    """1 - redundancy, where redundancy(f) = fraction of f's weights with |w| < mean |W| (strictly).

    Scores are fractions: a threshold compares with the redundancy as it is. They do not depend on the weights' scale.

    Attributes:
        mode: `full` reads the whole kernel; `legacy` reads only kernel position [0, 0], as the original did, which is
            the same for 1x1 kernels and wrong for larger ones. The mean is over all that is read of the layer.
        members: the `mean` over every layer whose filters write the channel; `first` takes the first alone, as the
            original did.
    """

    mode: Literal["full", "legacy"] = "full"

    fractions: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("Redundancy", "mode", self.mode, ("full", "legacy"))

    def of(self, view: GroupView, member: Member) -> NDArray:
        array = view.array(member)
        if self.mode == "legacy" and array.ndim > 2:
            corner = np.abs(array[(0,) * (array.ndim - 2)])
            small = np.broadcast_to(corner < np.mean(corner, dtype=np.float64), array.shape)
            fractions = member.slot.rows(small)[member.positions].mean(axis=1)
        else:
            whole = view.sums_of(member, np.abs)
            mean = whole.sum() / array.size
            fractions = member.slot.sums(array, lambda part: np.abs(part) < mean) * len(whole) / array.size
            fractions = fractions[member.positions]
        counts = np.bincount(member.channels, minlength=view.width)
        return 1 - view.per_channel(member, fractions) / counts


register_criterion("redundancy")(Redundancy())
register_criterion("redundancy_legacy")(Redundancy(mode="legacy"))
