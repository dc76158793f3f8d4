"""What channels are like on data: how large, and how often 0.

Sources: the mean activation of Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient
Inference" (arXiv:1611.06440); Hu et al., "Network Trimming" (arXiv:1607.03250) for APoZ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from keras import ops
from numpy.typing import NDArray

from tfprune.criteria.base import GroupView, register_criterion
from tfprune.criteria.features import At, Feature
from tfprune.criteria.group import FEATURE_MAP, GroupCriterion


def magnitude(z: Any, gradient: Any, mean: Any) -> Any:
    """|z|, averaged over positions."""
    return mean(ops.abs(z))


def nonzero(z: Any, gradient: Any, mean: Any) -> Any:
    """The fraction of positions where z is not 0."""
    return mean(ops.cast(ops.not_equal(z, 0), z.dtype))


@dataclass(frozen=True, kw_only=True)
class Activation(GroupCriterion):
    """mean over samples and positions of |z|, where z is the feature map behind BatchNormalization and activation.

    Needs no labels. Scores grow with the weights.

    Attributes:
        at: `activation`, or `output` for what the convolution itself gives out.
    """

    at: At = "activation"

    wants: ClassVar[str] = FEATURE_MAP

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.needs

    @property
    def needs(self) -> tuple[Feature, ...]:
        return (Feature(magnitude, self.at),)

    def parts(self, view: GroupView) -> list[NDArray]:
        return view.features(self.needs[0])


@dataclass(frozen=True, kw_only=True)
class APoZ(Activation):
    """1 - APoZ, where APoZ is the average percentage of zeros of the feature map behind its activation.

    Scores are fractions: `threshold=0.9` takes channels that are 0 more than 90 % of the time. Without a ReLU nothing
    is ever 0, and all score 1. Needs no labels. The scale of weights does not matter.
    """

    fractions: ClassVar[bool] = True

    @property
    def needs(self) -> tuple[Feature, ...]:
        return (Feature(nonzero, self.at),)


register_criterion("activation")(Activation())
register_criterion("apoz")(APoZ())
