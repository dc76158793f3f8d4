"""Scores and an amount, or budgets, become a PruningPlan."""

from tfprune.selection.amounts import Request, Scope
from tfprune.selection.choose import select
from tfprune.selection.patterns import matches

__all__ = ["Request", "Scope", "matches", "select"]
