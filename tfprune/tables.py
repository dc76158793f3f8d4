"""Plain text tables, drawn by rich."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]], width: int = 160) -> str:
    """A table as text; numbers are right-aligned.

    >>> print(table("", ("a", "b"), [("x", 1)]).strip().splitlines()[-1].split())
    ['x', '1']
    """
    drawn = Table(box=SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(header):
        cells = [row[index] for row in rows if row[index] is not None]
        numeric = bool(cells) and all(isinstance(cell, int | float) for cell in cells)
        drawn.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(text(cell) for cell in row))
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False)
    console.print(drawn, markup=False, highlight=False)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    lines = [title, *(line.rstrip() for line in printed.splitlines())]
    return "\n".join(lines).strip("\n")


def text(cell: Any) -> str:
    """A cell: whole numbers with thousands' commas, others with four digits."""
    if isinstance(cell, bool) or cell is None:
        return "" if cell is None else str(cell)
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def listed(names: Sequence[str], most: int = 3) -> str:
    """The first few names, and how many more there are.

    >>> listed(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
