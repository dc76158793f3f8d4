"""How important each channel of a group is: one small file a family.

A criterion is a function from a `GroupView` to one number a channel, larger for what should stay. Any callable of
that form works wherever a name does. `register_criterion` gives one a name; `score` has a graph's groups scored.
"""

from tfprune.criteria.activation import Activation, APoZ
from tfprune.criteria.base import (
    Criterion,
    GroupView,
    Unscored,
    criterion_named,
    criterion_names,
    name_of,
    register_criterion,
)
from tfprune.criteria.chance import Random
from tfprune.criteria.evidence import Evidence, gather
from tfprune.criteria.features import Feature, Gradient
from tfprune.criteria.group import GroupCriterion, WeightCriterion, combined, normalized
from tfprune.criteria.hessian import Hessian
from tfprune.criteria.kmeans import KMeansDistance, KMeansL1, KMeansTaylor
from tfprune.criteria.lamp import LAMP
from tfprune.criteria.magnitude import L1, L2, LInf
from tfprune.criteria.redundancy import Redundancy
from tfprune.criteria.sample import Sample
from tfprune.criteria.scale import BNScale
from tfprune.criteria.scoring import Scorer, Scores, needs_of, score
from tfprune.criteria.similarity import FPGM, Cosine
from tfprune.criteria.taylor import Taylor, TaylorWeight

__all__ = [
    "FPGM",
    "L1",
    "L2",
    "LAMP",
    "APoZ",
    "Activation",
    "BNScale",
    "Cosine",
    "Criterion",
    "Evidence",
    "Feature",
    "Gradient",
    "GroupCriterion",
    "GroupView",
    "Hessian",
    "KMeansDistance",
    "KMeansL1",
    "KMeansTaylor",
    "LInf",
    "Random",
    "Redundancy",
    "Sample",
    "Scorer",
    "Scores",
    "Taylor",
    "TaylorWeight",
    "Unscored",
    "WeightCriterion",
    "combined",
    "criterion_named",
    "criterion_names",
    "gather",
    "name_of",
    "needs_of",
    "normalized",
    "register_criterion",
    "score",
]
