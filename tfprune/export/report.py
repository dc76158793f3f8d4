"""What `export` wrote, as a value, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ExportRow:
    """One file (or directory) that was written and read back.

    Attributes:
        format: the name of the format.
        path: where it is.
        bytes: its size on disk.
        difference: the largest difference from Keras, as a fraction of the largest output.
        seconds: what writing, loading and comparing took.
        noise: the norm of the difference, as a fraction of the outputs' norm.
        agreement: of how many samples (a fraction) the largest output is the same one; None for outputs that are no
            vectors.
        samples: how many were compared.
        load_ms: what its runtime took to load it.
        latency_ms: the median of a run of one sample there, with the runtime's own number of threads; None if it was
            not timed.
        where: `process` if it ran in a process without tfprune, `here` if in this one.
    """

    format: str
    path: Path
    bytes: int
    difference: float
    seconds: float
    noise: float = 0.0
    agreement: float | None = None
    samples: int = 0
    load_ms: float | None = None
    latency_ms: float | None = None
    where: str = "here"

    @property
    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        return (
            self.format,
            f"{self.bytes / 1e6:.2f}",
            f"{self.difference:.1e}",
            "" if self.agreement is None else f"{self.agreement:.0%}",
            "" if self.load_ms is None else f"{self.load_ms:.1f}",
            "" if self.latency_ms is None else f"{self.latency_ms:.3g}",
            f"{self.seconds:.1f}",
            str(self.path),
        )

    @property
    def json(self) -> dict[str, Any]:
        """The row as JSON takes it."""
        return {**vars(self), "path": Path(self.path).name}


_HEADER = ("format", "MB", "difference", "top 1", "load ms", "run ms", "seconds", "path")


@dataclass(frozen=True)
class ExportReport:
    """All that one call of `export` wrote; `str()` is a plain table, `rich.print()` a coloured one.

    >>> print(ExportReport("net", (ExportRow("onnx", Path("out/net.onnx"), 1500000, 2e-7, 0.84, 1e-7, 1.0, 2, 3, 4),)))
    net: 1 format written, each read back and compared with Keras
    format    MB  difference  top 1  load ms  run ms  seconds  path
    onnx    1.50     2.0e-07   100%      3.0       4      0.8  out/net.onnx
    """

    model: str
    rows: tuple[ExportRow, ...]

    def __iter__(self) -> Iterator[ExportRow]:
        return iter(self.rows)

    def __getitem__(self, format: str) -> ExportRow:
        """The row of one format; KeyError if it was not exported."""
        return {row.format: row for row in self.rows}[format]

    @property
    def _title(self) -> str:
        count = len(self.rows)
        return f"{self.model}: {count} format{'s' * (count != 1)} written, each read back and compared with Keras"

    def __str__(self) -> str:
        lines = [_HEADER, *(row.cells for row in self.rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADER))]
        last = len(_HEADER) - 1
        table = (
            "  ".join(
                cell if column == last else cell.ljust(width) if column == 0 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        )
        return "\n".join((self._title, *table))

    def __rich__(self) -> Any:
        from rich.table import Table

        table = Table(title=self._title)
        for column, name in enumerate(_HEADER):
            numeric = 0 < column < len(_HEADER) - 1
            table.add_column(name, justify="right" if numeric else "left", no_wrap=numeric)
        for row in self.rows:
            table.add_row(*row.cells)
        return table
