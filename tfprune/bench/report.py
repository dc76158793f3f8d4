"""What `bench` measured, as a value, a table and JSON."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tfprune.files import write_json
from tfprune.tables import table


@dataclass(frozen=True)
class BenchRow:
    """One model in one runtime.

    Attributes:
        model: its name.
        runtime: where it ran.
        ms: the median of its runs, milliseconds.
        spread: their quartiles.
        speedup: how many times faster than the first model: the median of the ratios of neighbouring runs.
        speedup_spread: the quartiles of those.
        macs: multiply-adds of one sample, or None if they are not known.
        macs_ratio: how many times fewer than the first model's.
        load_ms: what loading took.
        memory: bytes by which the process' largest memory rose, from before loading to after a run; 0 where the system
            does not say.
        bytes: of the file.
    """

    model: str
    runtime: str
    ms: float
    spread: tuple[float, float]
    speedup: float
    speedup_spread: tuple[float, float]
    macs: int | None
    macs_ratio: float | None
    load_ms: float
    memory: int
    bytes: int

    @property
    def kept(self) -> float | None:
        """The speed-up over the ratio of MACs: 1 if the time went as the multiply-adds did."""
        return self.speedup / self.macs_ratio if self.macs_ratio else None


@dataclass(frozen=True)
class BenchReport:
    """All rows; `print` it, or `save` it as JSON.

    Attributes:
        rows: runtime by runtime, in the order the models were given.
        threads: how many threads one operator had.
        batch: samples a run.
        turns: timed runs of each.
    """

    rows: tuple[BenchRow, ...]
    threads: int
    batch: int
    turns: int

    def __str__(self) -> str:
        title = f"{self.threads} threads, batch {self.batch}, {self.turns} runs each, in turns; [quartiles]"
        header = (
            "model",
            "runtime",
            "ms",
            "",
            "speed-up",
            "",
            "MACs M",
            "fewer MACs",
            "kept",
            "load ms",
            "MB",
            "peak MB",
        )
        return table(title, header, [_cells(row) for row in self.rows])

    @property
    def json(self) -> dict[str, Any]:
        """The report as JSON takes it."""
        return {
            "threads": self.threads,
            "batch": self.batch,
            "turns": self.turns,
            "rows": [{**asdict(row), "kept": row.kept} for row in self.rows],
        }

    def save(self, path: str | os.PathLike) -> Path:
        """Write it as JSON."""
        return write_json(path, self.json)


def _cells(row: BenchRow) -> tuple[Any, ...]:
    return (
        row.model,
        row.runtime,
        f"{row.ms:.3g}",
        "[{:.3g} {:.3g}]".format(*row.spread),
        f"{row.speedup:.2f}",
        "[{:.2f} {:.2f}]".format(*row.speedup_spread),
        "" if row.macs is None else f"{row.macs / 1e6:,.1f}",
        "" if row.macs_ratio is None else f"{row.macs_ratio:.2f}",
        "" if row.kept is None else f"{row.kept:.2f}",
        f"{row.load_ms:.1f}",
        f"{row.bytes / 1e6:.1f}",
        f"{row.memory / 1e6:.1f}" if row.memory else "",
    )
