"""L1 and L2 norms over a group's coupled weights.

Source: Li et al., "Pruning Filters for Efficient ConvNets" (arXiv:1608.08710); over coupled weights as in Fang et al.,
"DepGraph" (arXiv:2301.12900).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tfprune.criteria.base import GroupView, register_criterion

_KERNELS = ("write", "depthwise", "read")


@register_criterion("l1")
def l1(weights: GroupView) -> NDArray:
    """Sum of |w| over every kernel slice that writes, carries or reads the channel; shape (width,)."""
    return np.sum([weights.sums(member, np.abs) for member in weights.members(*_KERNELS)], axis=0)


@register_criterion("l2")
def l2(weights: GroupView) -> NDArray:
    """Square root of the sum of w**2 over every kernel slice that writes, carries or reads the channel."""
    return np.sqrt(np.sum([weights.sums(member, np.square) for member in weights.members(*_KERNELS)], axis=0))
