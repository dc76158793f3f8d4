"""What a budget counts: predicted for thousands of plans, and confirmed for the one that is taken."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from tfprune.channels.forecast import CostModel
from tfprune.channels.graph import ChannelGraph
from tfprune.channels.labels import varies
from tfprune.channels.narrow import narrow
from tfprune.channels.ops import Normalize, Op, Product, Recurrent, Reduce, Together
from tfprune.channels.ops.contract import OverPositions
from tfprune.channels.plan import PruningPlan
from tfprune.cost import dtype_bytes
from tfprune.errors import PlanError
from tfprune.strip import outcome, strip

Bools = NDArray[np.bool_]
#: Ops that may read a plan's channels without a kernel that is zeroed: whether these may go depends on the weights.
_READING = (Normalize, Product, Recurrent, OverPositions, Together)


@dataclass(frozen=True)
class Cost:
    """One budget's cost.

    Attributes:
        name: the budget's.
        before: of the unpruned model.
        predict: of what is left when these channels stay and these whole layers go.
        confirm: of what strip leaves of a plan: from the cost model of the graph, the channels and layers left.
    """

    name: str
    before: float
    predict: Callable[[Bools, Collection[str]], float]
    confirm: Callable[[PruningPlan, CostModel, Bools, Collection[str]], float]


def costs_of(model: CostModel, budgets: Mapping[str, float], latency_table: Any = None) -> list[Cost]:
    """The costs that these budgets are about.

    Raises:
        PlanError: the latency has no table, or there is no such file format.
    """
    return [_cost(model, name, latency_table) for name in budgets]


def _cost(model: CostModel, name: str, latency_table: Any) -> Cost:
    if name == "latency":
        return _latency(model, latency_table)
    if name in ("params", "macs"):
        count = CostModel.parameters if name == "params" else CostModel.macs
        return Cost(
            name,
            count(model, _everything(model)),
            lambda keep, cut: count(model, keep, cut),
            lambda plan, left, keep, cut: count(left, keep, cut),
        )
    return _file(model, name)


def _latency(model: CostModel, table: Any) -> Cost:
    """Milliseconds by a table; by one that is measured now, if there is none."""
    if table is None:
        from tfprune.latency import LatencyTable

        table = LatencyTable.measure(model.graph)
    if not callable(table):
        raise PlanError(f"latency_table is a LatencyTable or a function from widths to milliseconds; {table!r} came")

    def milliseconds(costs: CostModel, keep: Bools, cut: Collection[str]) -> float:
        found = float(table(costs.widths(keep, cut)))
        if not np.isfinite(found) or found < 0:
            raise PlanError(f"latency_table gives milliseconds, and {found} came")
        return found

    return Cost(
        "latency",
        milliseconds(model, _everything(model), ()),
        lambda keep, cut: milliseconds(model, keep, cut),
        lambda plan, left, keep, cut: milliseconds(left, keep, cut),
    )


def _file(model: CostModel, format: str) -> Cost:
    """Bytes of a file: in proportion to those of the weights, which a look at the stripped model's file corrects."""
    from tfprune.export.size import file_bytes

    graph = model.graph
    if not isinstance(graph.model, keras.Model):
        raise PlanError(f"file_bytes needs a Keras model, and {graph.name} is none")
    sizes = np.array([_itemsize(graph.variables.get(weight)) for weight in model.weights], np.float64)
    return Cost(
        format,
        file_bytes(graph.model, format),
        lambda keep, cut: model.bytes(keep, cut, sizes),
        lambda plan, left, keep, cut: file_bytes(strip(graph.model, plan, verify=False).model, format),
    )


def _everything(model: CostModel) -> Bools:
    return np.ones(model.graph.channels, bool)


def _itemsize(variable: Any) -> int:
    return 4 if variable is None else dtype_bytes(variable)


def what_strip_leaves(plan: PruningPlan, model: CostModel) -> tuple[CostModel, Bools, Collection[str], dict[int, str]]:
    """(cost model, channels that stay, whole layers that go, channel -> why it came back), as strip would find it.

    Where nothing but kernels could read a plan's zeros the weights need not be looked at.
    """
    graph = plan.graph
    if plan.layers or any(_reads(op, graph) for op in graph.ops):
        left = outcome(graph, plan)
        again = model if left.graph is graph else CostModel(left.graph)
        return again, left.keep, (), left.returned
    new, returned = narrow(graph, ~plan.gone)
    keep = np.zeros(graph.channels, bool)
    keep[graph.channel_of[new.keep]] = True
    return model, keep, (), returned


def _reads(op: Op, graph: ChannelGraph) -> bool:
    over_channels = isinstance(op, Reduce) and varies(graph.labels.of[op.inputs[0]], op.axes)
    return over_channels or isinstance(op, _READING)
