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

_BLOCK = 512  # rows: what is done to their products stays in the cache


@dataclass(frozen=True)
class FPGM(WeightCriterion):
    """sum over j of |f_i - f_j|, the distances of a filter to all others of its layer.

    It is smallest at the geometric median. Scores grow with the weights; adding the same filter to all changes nothing.
    """

    def of(self, view: GroupView, member: Member) -> NDArray:
        rows = view.matrix(member)
        # Distances are the same from anywhere; from the middle there is less to cancel.
        rows = rows - rows.mean(axis=0)
        squares = np.einsum("ij,ij->i", rows, rows)
        result = np.zeros(len(rows))
        # Each pair once, in blocks that stay in the cache.
        for start in range(0, len(rows), _BLOCK):
            block = slice(start, start + _BLOCK)
            distances = rows[block] @ rows[start:].T
            distances *= -2
            distances += squares[start:]
            distances += squares[block, None]
            np.maximum(distances, 0, out=distances)
            np.sqrt(distances, out=distances)
            size = len(distances)
            distances[np.arange(size), np.arange(size)] = 0
            result[block] += distances.sum(axis=1)
            result[start + size :] += distances[:, size:].sum(axis=0)
        return result


@dataclass(frozen=True)
class Cosine(WeightCriterion):
    """mean over j != i of 1 - cos(f_i, f_j): how far a filter points away from the others of its layer.

    A filter of zeros points nowhere and scores 0. Scores do not depend on the length of any filter.
    """

    def of(self, view: GroupView, member: Member) -> NDArray:
        rows = view.matrix(member)
        lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))
        shares = np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths > 0)
        # The sum of a direction's products with all is its product with their sum.
        similar = (rows @ (shares @ rows)) * shares - 1
        return np.where(lengths > 0, 1 - similar / max(1, len(rows) - 1), 0)


register_criterion("fpgm")(FPGM())
register_criterion("cosine")(Cosine())
