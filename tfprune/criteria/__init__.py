"""How important each channel of a group is: one small file a family.

A criterion is a function from a `GroupView` to one number a channel, larger for what should stay. Any callable of
that form works wherever a name does. `register_criterion` gives one a name; `score` has a graph's groups scored.
"""

from tfprune.criteria import magnitude, redundancy
from tfprune.criteria.base import (
    Criterion,
    GroupView,
    Unscored,
    criterion_named,
    criterion_names,
    name_of,
    register_criterion,
)
from tfprune.criteria.scoring import Scorer, Scores, score

__all__ = [
    "Criterion",
    "GroupView",
    "Scorer",
    "Scores",
    "Unscored",
    "criterion_named",
    "criterion_names",
    "magnitude",
    "name_of",
    "redundancy",
    "register_criterion",
    "score",
]
