"""Scores and an amount, or a budget, become a PruningPlan."""

from tfprune.selection.patterns import matches
from tfprune.selection.choose import Amount, select

__all__ = ["Amount", "matches", "select"]
