"""Sparse training: penalties that make whole channels small while a model trains, so that little is lost when they go.

Each is a callback of `fit`, and leaves nothing behind. A penalty acts on channel groups: on every weight that goes with
a channel, in whatever layers.

| callback | what it pulls to 0 |
|---|---|
| `Slimming` | BatchNormalization's scales (network slimming) |
| `GroupLasso` | all coupled weights of a channel, the weakest channels most (group lasso, DepGraph) |
| `GrowingRegularization` | the channels of a plan, harder and harder (GReg) |
"""

from tfprune.sparse.base import SparseTraining
from tfprune.sparse.group_lasso import GroupLasso
from tfprune.sparse.growing import GrowingRegularization
from tfprune.sparse.slimming import Slimming

__all__ = ["GroupLasso", "GrowingRegularization", "Slimming", "SparseTraining"]
