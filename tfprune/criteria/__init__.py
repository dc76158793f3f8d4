"""How important each channel of a group is: one small file a family.

A criterion is a function from a `GroupWeights` to one number a channel, larger for what should stay. Any callable of
that form works wherever a name does. `register_criterion` gives one a name.
"""

from tfprune.criteria import magnitude, redundancy
from tfprune.criteria.base import Criterion, GroupWeights, criterion_named, register_criterion

__all__ = ["Criterion", "GroupWeights", "criterion_named", "magnitude", "redundancy", "register_criterion"]
