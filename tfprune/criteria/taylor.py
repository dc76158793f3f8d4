"""How much the loss would change without a channel, to first order.

Sources: Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference" (arXiv:1611.06440),
on feature maps; Molchanov et al., "Importance Estimation for Neural Network Pruning" (arXiv:1906.10771), on weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from keras import ops
from numpy.typing import NDArray

from tfprune.channels.graph import Member
from tfprune.criteria.base import GroupView, register_criterion
from tfprune.criteria.features import At, Feature, Gradient
from tfprune.criteria.group import FEATURE_MAP, Combine, GroupCriterion, WeightCriterion, one_of


def products(z: Any, gradient: Any, mean: Any) -> Any:
    """|z * gradient|, averaged over positions."""
    return mean(ops.abs(z * gradient))


def averaged_products(z: Any, gradient: Any, mean: Any) -> Any:
    """|z * gradient averaged over positions|."""
    return ops.abs(mean(z * gradient))


@dataclass(frozen=True, kw_only=True)
class Taylor(GroupCriterion):
    """mean over samples and positions of |z * dL/dz|, divided by the layer's L2 norm; z is the feature map.

    As CNN-Pruning-Engine and cnn-pruning have it. Scores do not depend on the scale of the loss, nor on how the sample
    is cut into batches.

    Attributes:
        at: `output`: z is what the convolution gives out, as in these; `activation`: what is left of it behind
            BatchNormalization and activation.
        average: `absolute` averages |z * dL/dz|; `signed` takes the absolute value of the average over positions, as
            the paper has it.
    """

    at: At = "output"
    average: Literal["absolute", "signed"] = "absolute"

    wants: ClassVar[str] = FEATURE_MAP

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("Taylor", "average", self.average, ("absolute", "signed"))
        _ = self.needs

    @property
    def needs(self) -> tuple[Feature, ...]:
        measure = products if self.average == "absolute" else averaged_products
        return (Feature(measure, self.at, gradient=True),)

    def parts(self, view: GroupView) -> list[NDArray]:
        return [one / (np.linalg.norm(one) or 1) for one in view.features(self.needs[0])]


@dataclass(frozen=True, kw_only=True)
class TaylorWeight(WeightCriterion):
    """sum of (g * w)**2, or of |g * w|, over a channel's filters; g is the mean gradient of the sample.

    The paper averages the squares over minibatches, which is `hessian` here (but for a factor). Scores grow with the
    loss and do not depend on how the sample is cut into batches.

    Attributes:
        power: 2 for squares, 1 for absolute values.
    """

    members: Combine = "sum"
    roles: tuple[str, ...] = ("write", "depthwise")
    power: Literal[1, 2] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("TaylorWeight", "power", self.power, (1, 2))

    @property
    def needs(self) -> tuple[Gradient, ...]:
        return (Gradient(1),)

    def of(self, view: GroupView, member: Member) -> NDArray:
        weight, function = member.slot.weight, np.square if self.power == 2 else np.abs
        product = view.once(("g * w", weight), lambda: view.array(member) * view.gradient(member, self.needs[0]))
        sums = view.once(("g * w", member.slot, function), lambda: member.slot.sums(product, function))
        return view.per_channel(member, sums[member.positions])


register_criterion("taylor")(Taylor())
register_criterion("taylor_weight")(TaylorWeight())
