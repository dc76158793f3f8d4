"""LAMP: what a filter is worth among those of its layer that are worth at least as much.

Source: Lee et al., "Layer-Adaptive Sparsity for the Magnitude-based Pruning" (arXiv:2010.07611), for filters in place
of single weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from tfprune.channels.graph import Member
from tfprune.criteria.base import GroupView, register_criterion
from tfprune.criteria.group import WeightCriterion


@dataclass(frozen=True)
class LAMP(WeightCriterion):
    """s_i / sum of s_j over all j with s_j >= s_i, where s is a filter's sum of w**2; per layer.

    The best filter of a layer scores 1 (1/n if n are equal), so that ranking all groups together empties none. Scores
    do not depend on the weights' scale.
    """

    #: Scores of different groups compare as they are.
    comparable: ClassVar[bool] = True

    def of(self, view: GroupView, member: Member) -> NDArray:
        squares = view.sums(member, np.square)
        order = np.argsort(-squares, kind="stable")
        falling = squares[order]
        # Up to the last of equal ones.
        last = np.searchsorted(-falling, -falling, side="right") - 1
        at_least = np.empty_like(squares)
        at_least[order] = np.cumsum(falling)[last]
        return squares / np.where(at_least > 0, at_least, 1)


register_criterion("lamp")(LAMP())
