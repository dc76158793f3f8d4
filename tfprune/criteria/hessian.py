"""How much the loss would change without a channel, to second order.

Sources: LeCun et al., "Optimal Brain Damage" (NIPS 1989), with the empirical Fisher matrix for the Hessian as in Theis
et al., "Faster gaze prediction with dense networks and Fisher pruning" (arXiv:1801.05787).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tfprune.channels.graph import Member
from tfprune.criteria.base import GroupView, register_criterion
from tfprune.criteria.features import Gradient
from tfprune.criteria.group import Combine, WeightCriterion


@dataclass(frozen=True, kw_only=True)
class Hessian(WeightCriterion):
    """sum of h * w**2 / 2 over a channel's filters, where h is the mean square of the gradient over the sample.

    h, the diagonal of the empirical Fisher matrix, is that of the Hessian where the model fits its data. It is the sum
    over batches of (the sum of the samples' gradients)**2, over the number of samples: exact for `Sample(...,
    batch_size=1)`, and for larger batches as far as the gradients of different samples are independent, with mean 0.
    Scores grow with the square of the loss.
    """

    members: Combine = "sum"
    roles: tuple[str, ...] = ("write", "depthwise")

    @property
    def needs(self) -> tuple[Gradient, ...]:
        return (Gradient(2),)

    def of(self, view: GroupView, member: Member) -> NDArray:
        weight, slot = member.slot.weight, member.slot
        product = view.once(
            ("h * w**2 / 2", weight),
            lambda: np.square(view.array(member)) * view.gradient(member, self.needs[0]) / 2,
        )
        sums = view.once(("h * w**2 / 2", slot), lambda: slot.sums(product, np.positive))
        return view.per_channel(member, sums[member.positions])


register_criterion("hessian")(Hessian())
