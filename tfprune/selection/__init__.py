"""Scores and an amount, or a budget, become a PruningPlan."""

from tfprune.selection.choose import Amount, select
from tfprune.selection.patterns import matches

__all__ = ["Amount", "matches", "select"]
