"""Graphs and plans as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tfprune.tables import table

if TYPE_CHECKING:
    from tfprune.channels.graph import ChannelGraph
    from tfprune.channels.plan import PruningPlan


def _names(names: tuple[str, ...], most: int = 3) -> str:
    shown = ", ".join(names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def graph_table(graph: ChannelGraph) -> str:
    """A row a channel group: width, who writes and reads it, and whether it is prunable or why not."""
    rows = [
        (group.name, group.width, _names(group.writers), _names(group.readers), group.reason or "prunable")
        for group in graph.groups
    ]
    prunable = sum(group.prunable for group in graph.groups)
    title = f"{graph.name}: {len(rows)} channel groups, {prunable} prunable"
    return table(title, ("group", "width", "written by", "read by", ""), rows)


def plan_table(plan: PruningPlan) -> str:
    """A row a group that loses channels, then the layers that go whole, then what stays and why."""
    rows = []
    for group in plan.graph.groups:
        gone = plan.channels.get(group.name, ())
        if gone:
            shown = ", ".join(map(str, gone[:6])) + (", ..." if len(gone) > 6 else "")
            rows.append((group.name, group.width, group.width - len(gone), shown))
    title = f"{plan.graph.name}: {plan.pruned} channels go" + (f" ({plan.request})" if plan.request else "")
    parts = [table(title, ("group", "width", "left", "channels"), rows)] if rows else [f"{title}: nothing is pruned"]
    parts += [f"{layer}: zeroed whole" for layer in plan.layers]
    parts += [str(refusal) for refusal in plan.refusals]
    return "\n".join(parts)
