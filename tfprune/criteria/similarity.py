"""Filters that others can stand in for: near the geometric median of their layer, or in the direction of the others.

Source: He et al., "Filter Pruning via Geometric Median" (FPGM, arXiv:1811.00250), which has both distances.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tfprune.channels.graph import Member
from tfprune.criteria.base import GroupView, register_criterion
from tfprune.criteria.group import WeightCriterion


@dataclass(frozen=True)
class FPGM(WeightCriterion):
    """sum over j of |f_i - f_j|, the distances of a filter to all others of its layer.

    It is smallest at the geometric median. Scores grow with the weights; adding the same filter to all changes nothing.
    """

    def of(self, view: GroupView, member: Member) -> NDArray:
        rows = view.matrix(member)
        # Distances are the same from anywhere; from the middle there is less to cancel.
        rows = rows - rows.mean(axis=0)
        distances = rows @ rows.T
        squares = distances.diagonal().copy()
        distances *= -2
        distances += squares
        distances += squares[:, None]
        np.maximum(distances, 0, out=distances)
        return np.sqrt(distances, out=distances).sum(axis=1, dtype=np.float64)


@dataclass(frozen=True)
class Cosine(WeightCriterion):
    """mean over j != i of 1 - cos(f_i, f_j): how far a filter points away from the others of its layer.

    A filter of zeros points nowhere and scores 0. Scores do not depend on the length of any filter.
    """

    def of(self, view: GroupView, member: Member) -> NDArray:
        rows = view.matrix(member)
        lengths = np.linalg.norm(rows, axis=1)
        units = rows / np.where(lengths > 0, lengths, 1)[:, None]
        # The sum of a direction's products with all is its product with their sum.
        similar = units @ units.sum(axis=0) - 1
        return np.where(lengths > 0, 1 - similar / max(1, len(rows) - 1), 0)


register_criterion("fpgm")(FPGM())
register_criterion("cosine")(Cosine())
