"""Pictures of what `bench` and `advise` measured."""

from __future__ import annotations

import os
from pathlib import Path

from matplotlib.figure import Figure

from tfprune.bench.advice import Advice
from tfprune.bench.report import BenchReport
from tfprune.report.pictures import _AFTER, _BEFORE, _INK, _save


def speedups(report: BenchReport, path: str | os.PathLike) -> Path:
    """Each model's speed-up over the first, with quartiles, beside how many times fewer multiply-adds it has.

    Args:
        report: of `bench`.
        path: of the picture.
    """
    figure = Figure(figsize=(7, 0.6 + 0.5 * len(report.rows)))
    axes = figure.add_subplot()
    for place, row in enumerate(report.rows):
        low, high = row.speedup_spread
        error = [[max(0.0, row.speedup - low)], [max(0.0, high - row.speedup)]]
        axes.barh(place, row.speedup, color=_AFTER, xerr=error, ecolor=_INK, label="speed-up" if not place else None)
        if row.macs_ratio:
            axes.plot(
                row.macs_ratio, place, "D", color=_BEFORE, mec=_INK, label=None if place else "fewer multiply-adds"
            )
        axes.text(row.speedup, place, f" {row.ms:.3g} ms", va="center", color=_INK)
    axes.set_yticks(range(len(report.rows)), [f"{row.model}, {row.runtime}" for row in report.rows])
    axes.invert_yaxis()
    axes.set_xlabel(f"times faster than the first; {report.threads} threads, batch {report.batch}")
    axes.spines[["top", "right"]].set_visible(False)
    if any(row.macs_ratio for row in report.rows):
        axes.legend(frameon=False, loc="lower right")
    return _save(figure, path)


def curves(advice: Advice, path: str | os.PathLike) -> Path:
    """Milliseconds by width, a line a kind of kernel.

    Args:
        advice: of `advise`.
        path: of the picture.
    """
    figure = Figure(figsize=(7, 4.5))
    axes = figure.add_subplot()
    for curve in advice.curves:
        widths = sorted(curve.ms)
        axes.plot(widths, [curve.ms[width] for width in widths], ".-", label=f"{curve.kernel}: {curve.round_to}")
    axes.set(xlabel="filters", ylabel="ms", title=f"{advice.runtime}, {advice.threads} threads: what to round to")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return _save(figure, path)
