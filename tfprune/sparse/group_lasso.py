"""Group lasso over all weights that are coupled to a channel."""

from __future__ import annotations

from typing import Any, Literal

import keras
import numpy as np
from numpy.typing import NDArray

from tfprune.channels.graph import ChannelGraph
from tfprune.errors import PlanError
from tfprune.schedules import Schedule
from tfprune.selection.patterns import Patterns
from tfprune.sparse.base import Penalty, SparseTraining, Squares, chosen_groups, coupled

_KERNELS = ("write", "read", "depthwise", "scale")
_TINY = 1e-24  # the square of a weight that is as good as 0; a root has no slope at 0


class GroupLasso(SparseTraining):
    """Pull whole channels to 0: a penalty on the norm of all weights that are coupled to a channel.

    With w_k all weights of channel k, in whatever layers (filters, kernel slices that read it, depthwise slices,
    BatchNormalization's scale), n_k of them:

        strength * sum over channels of  gamma_k * sqrt(n_k) * |w_k|      power=1: group lasso
        strength * sum over channels of  gamma_k * |w_k|**2               power=2: DepGraph's regularisation

    A norm has the same slope however small it is, so power 1 brings channels to 0, where power 2 only makes them small.
    gamma_k = 2 ** (growth * (most - |w_k|) / (most - least)), over the norms of the channel's group, pulls the weakest
    channels hardest and leaves the strongest alone: from 1 to 2 ** growth. It counts as a constant: no gradient goes
    through it. growth=0 treats all alike.

    Args:
        strength: a number from 0 on, or a schedule of them; 1e-4 to 1e-2 are usual. The gradient on a weight is about
            gamma_k * strength at power 1, as with an L1 penalty.
        growth: from 0 on; 4 in the paper.
        power: 1 or 2.
        biases: pull biases and BatchNormalization's shifts as well.
        every, only, ignore: see `SparseTraining`.

    Raises:
        PlanError: a value out of range; when training begins, a pattern that matches no layer, or no prunable group.

    >>> import keras, numpy as np, tfprune
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, activation="relu"), keras.layers.Dense(1)])
    >>> model.compile(keras.optimizers.SGD(0.05), "mse")
    >>> x = np.random.default_rng(0).normal(size=(64, 4))
    >>> lasso = tfprune.sparse.GroupLasso(0.01)
    >>> history = model.fit(x, x[:, :1], epochs=60, verbose=0, callbacks=[lasso])
    >>> tfprune.select(model, "l2", threshold=0.9, round_to=1).pruned > 0
    True

    Source: Yuan & Lin, "Model selection and estimation in regression with grouped variables" (2006); Fang et al.,
    "DepGraph" (arXiv:2301.12900), for coupled weights, gamma and power 2. There gamma is of squared norms in the paper
    and of norms in its authors' code; this is the latter.
    """

    name = "group_lasso"

    def __init__(
        self,
        strength: float | Schedule = 1e-3,
        *,
        growth: float = 4.0,
        power: Literal[1, 2] = 1,
        biases: bool = False,
        every: int | Literal["epoch"] = "epoch",
        only: Patterns | None = None,
        ignore: Patterns | None = None,
    ):
        super().__init__(strength, every=every, only=only, ignore=ignore)
        if isinstance(growth, bool) or not isinstance(growth, int | float) or not 0 <= growth < 64:
            raise PlanError(f"growth is a number from 0 on (4 in the paper), and {growth!r} came")
        if power not in (1, 2):
            raise PlanError(f"power is 1 (group lasso) or 2 (squared norms), and {power!r} came")
        self.growth, self.power, self.biases = growth, power, biases

    def penalty(self, graph: ChannelGraph) -> Penalty:
        roles = (*_KERNELS, "bias", "shift") if self.biases else _KERNELS
        squares, group_of = coupled(graph, chosen_groups(graph, self.only, self.ignore), roles)
        if not squares.count:
            raise PlanError(f"no weight of {graph.name} that is coupled to a channel is trained; unfreeze its layers")
        return lambda: norms(squares, group_of, self.growth, self.power)


def norms(squares: Squares, group_of: NDArray, growth: float, power: int) -> Any:
    """The penalty of `GroupLasso` at strength 1."""
    ops = keras.ops
    squared = ops.maximum(squares(), _TINY)
    norm = ops.sqrt(squared)
    each = norm * ops.convert_to_tensor(np.sqrt(squares.sizes), "float32") if power == 1 else squared
    if growth:
        each = each * ops.power(2.0, growth * _weakness(ops.stop_gradient(norm), group_of))
    return ops.sum(each)


def _weakness(norm: Any, group_of: NDArray) -> Any:
    """From 0 for the strongest channel of its group to 1 for the weakest; 0 where all are alike."""
    ops, groups = keras.ops, int(group_of.max()) + 1
    ids = ops.convert_to_tensor(group_of, "int32")
    most = ops.take(ops.segment_max(norm, ids, num_segments=groups), ids)
    least = -ops.take(ops.segment_max(-norm, ids, num_segments=groups), ids)
    return (most - norm) / ops.maximum(most - least, 1e-12)
