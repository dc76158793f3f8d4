"""The scale that BatchNormalization gives a channel.

Source: Liu et al., "Learning Efficient Convolutional Networks through Network Slimming" (arXiv:1708.06519).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from tfprune.channels.graph import Member
from tfprune.criteria.base import GroupView, register_criterion
from tfprune.criteria.group import WeightCriterion


@dataclass(frozen=True, kw_only=True)
class BNScale(WeightCriterion):
    """|gamma|, the mean over the normalization layers that the channel passes.

    Groups without such a scale have no score, and stay. Scores grow with gamma and know nothing of kernels. A model
    trained with an L1 penalty on its scales is what the paper ranks so.
    """

    roles: tuple[str, ...] = ("scale",)

    wants: ClassVar[str] = "a normalization layer with a scale (gamma), and the group has none"

    def of(self, view: GroupView, member: Member) -> NDArray:
        return view.sums(member, np.abs)


register_criterion("bn_scale")(BNScale())
