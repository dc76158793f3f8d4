"""Pictures of a run: widths, failure rates, filter weights and blocks, before and after.

Every function draws to a file, whose suffix (.png, .svg, .pdf) is the format, and returns its path.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import matplotlib
import numpy as np
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import MaxNLocator

from tfprune.channels.graph import Call, ChannelGraph
from tfprune.errors import PlanError
from tfprune.files import atomic_path
from tfprune.frontend import trace
from tfprune.schedules import Schedule
from tfprune.sensitivity import Sensitivity

_BEFORE, _AFTER, _INK = "#b8c4d6", "#2f6db5", "#24292f"


def _save(figure: Figure, path: str | os.PathLike) -> Path:
    with atomic_path(path) as scratch:
        figure.savefig(scratch, dpi=140, bbox_inches="tight", facecolor="white")
    return Path(path)


def _layer(model: keras.Model, name: str) -> keras.layers.Layer | None:
    for part in name.split("/"):
        found = [layer for layer in model.layers if layer.name == part]
        if not found:
            return None
        model = found[0]
    return found[0]


def _width(layer: keras.layers.Layer | None) -> int:
    """Channels that a layer writes; 0 if it is gone."""
    if layer is None:
        return 0
    return int(layer.output.shape[-1] if keras.config.image_data_format() == "channels_last" else layer.output.shape[1])


def widths(before: keras.Model, after: keras.Model, path: str | os.PathLike) -> Path:
    """The width of every layer that writes a channel group, before and after.

    Args:
        before: the model that was stripped.
        after: what it became.
        path: of the picture.
    """
    graph = trace(before)
    writers = {name for group in graph.groups if group.prunable for name in group.writers}
    names = list(dict.fromkeys(call.layer for call in graph.calls if call.layer in writers))
    old = [_width(_layer(before, name)) for name in names]
    new = [_width(_layer(after, name)) for name in names]
    figure = Figure(figsize=(8, 1.2 + 0.24 * len(names)))
    axes = figure.subplots()
    places = np.arange(len(names))
    axes.barh(places, old, color=_BEFORE, height=0.8, label="before")
    axes.barh(places, new, color=_AFTER, height=0.45, label="after")
    for place, (was, now) in enumerate(zip(old, new, strict=True)):
        axes.text(was, place, f" {was} → {now}" if was != now else f" {was}", va="center", fontsize=8, color=_INK)
    axes.set_yticks(places, names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(old, default=1))
    axes.set_xlabel("channels")
    axes.set_title(f"{before.name}: widths before and after", fontsize=11, pad=22)
    axes.margins(y=0.01)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return _save(figure, path)


def failure_rates(table: str | os.PathLike, path: str | os.PathLike) -> Path:
    """Failure rate over the epochs, with the thresholds of the ladder.

    Args:
        table: the CSV that a `ConvergenceMonitor` wrote, an entry an epoch.
        path: of the picture.

    Raises:
        PlanError: the table holds no totals.
    """
    with open(table, encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["layer"] == "total"]
    if not rows:
        raise PlanError(
            f"{os.fspath(table)!r} holds no failure rates; give the CSV that ConvergenceMonitor.to_csv wrote"
        )
    rates = [100 * float(row["rate"]) for row in rows]
    figure = Figure(figsize=(8, 3.6))
    axes = figure.subplots()
    epochs = np.arange(1, len(rows) + 1)
    axes.plot(epochs, rates, color=_AFTER, marker="o", markersize=4, linewidth=1.5)
    starts = [i for i, row in enumerate(rows) if i == 0 or row["threshold"] != rows[i - 1]["threshold"]]
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(rows)], strict=True)):
        axes.axvspan(start + 0.5, end + 0.5, color=_BEFORE, alpha=0.35 if number % 2 == 0 else 0.12, linewidth=0)
        label = f"threshold {rows[start]['threshold']}\n{int(rows[start]['pruned']):,} zeroed"
        axes.text((start + end) / 2 + 0.5, 108, label, ha="center", va="bottom", fontsize=8, color=_INK)
    axes.axhline(10, color=_INK, linewidth=0.8, linestyle=":")
    axes.set_xlim(0.5, len(rows) + 0.5)
    axes.set_ylim(-3, 105)
    axes.set_xticks(epochs if len(epochs) <= 30 else epochs[:: len(epochs) // 15])
    axes.set_xlabel("epochs after the first zeroing")
    axes.set_ylabel("zeroed filters that came back, %")
    axes.spines[["top", "right"]].set_visible(False)
    return _save(figure, path)


def tracking(table: str | os.PathLike, path: str | os.PathLike) -> Path:
    """A training epoch by epoch: metrics, failure rate, widths of the channel groups, and what strip would leave.

    Args:
        table: the CSV that `tfprune.trackers.CSV` wrote.
        path: of the picture.

    Raises:
        PlanError: the table is not such a file.
    """
    with open(table, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or "epoch" not in rows[0]:
        raise PlanError(f"{os.fspath(table)!r} holds no epochs; give the CSV that tfprune.trackers.CSV wrote")
    columns = {name: np.array([float(row[name] or "nan") for row in rows]) for name in rows[0] if name != "time"}
    epochs = columns.pop("epoch")
    accuracies = [name for name in columns if "acc" in name]
    metrics = accuracies or [name for name in columns if "/" not in name]
    widths = [name for name in columns if name.startswith("width/")]
    left = [name for name in ("cost/params_left", "cost/macs_left") if name in columns]
    figure = Figure(figsize=(9, 5.6))
    panels = (
        ("metrics", metrics, 1),
        ("zeroed filters that came back, %", ["failure_rate/total"], 100),
        ("channels that are not zeroed", widths, 1),
        ("left by strip, % of the unpruned model", left, 100),
    )
    for axes, (title, names, scale) in zip(figure.subplots(2, 2).ravel(), panels, strict=True):
        for name in (name for name in names if name in columns):
            label = name.rpartition("/")[2].removesuffix("_left")
            axes.plot(epochs, scale * columns[name], label=label, marker="o", markersize=2.5, linewidth=1.2)
        if title != "metrics":
            axes.set_ylim(bottom=0, top=105 if scale == 100 else None)
        if 1 < len(names) <= 12:
            axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
        axes.set_title(title if len(names) != 1 or "/" in names[0] else names[0], fontsize=10)
        axes.set_xlabel("epoch", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return _save(figure, path)


def sensitivity(result: Sensitivity, path: str | os.PathLike, max_drop: float | None = None) -> Path:
    """The metric over the ratio pruned: a line a channel group, a thick one for all together.

    The model that was really stripped is drawn as circles, which lie on the lines of the one that was zeroed.

    Args:
        result: of `tfprune.sensitivity`.
        path: of the picture.
        max_drop: draw the limit that `result.ratios(max_drop)` goes by, in the metric's own unit.
    """
    figure = Figure(figsize=(8, 4.5))
    axes = figure.subplots()
    palette = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, max(1, len(result.curves))))
    ratios = [0.0, *result.swept]
    for curve in result.all_curves:
        together = curve is result.together
        colour = _INK if together else palette[result.curves.index(curve)]
        style = {"linewidth": 2.5, "linestyle": "--"} if together else {"linewidth": 1.3}
        axes.plot(ratios, [result.baseline, *curve.values], color=colour, label=curve.group, **style)
        if curve.removed is not None:
            axes.plot(result.swept, curve.removed, "o", markersize=5, markerfacecolor="none", color=colour)
    axes.axhline(result.baseline, color=_INK, linewidth=0.8, linestyle=":")
    if max_drop is not None:
        limit = result.baseline - max_drop if result.better == "higher" else result.baseline + max_drop
        axes.axhline(limit, color="#c0392b", linewidth=0.8, linestyle=":")
    axes.set_xlim(0, max(ratios) * 1.02)
    axes.set_xlabel("fraction of the channels that is pruned")
    axes.set_ylabel(result.metric)
    note = " (circles: really removed)" if any(curve.removed is not None for curve in result.all_curves) else ""
    axes.set_title(f"{result.model} pruned by {result.criterion}, without training{note}", fontsize=11)
    columns = 1 + len(result.all_curves) // 20
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), ncols=columns, frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return _save(figure, path)


def schedules(drawn: Mapping[str, Schedule], path: str | os.PathLike, length: int = 40) -> Path:
    """Schedules over their epochs (or steps), a small picture each.

    Args:
        drawn: title -> schedule.
        path: of the picture.
        length: how many epochs are drawn.

    Raises:
        PlanError: there are none.
    """
    if not drawn:
        raise PlanError("give at least one schedule to draw")
    columns = min(4, len(drawn))
    rows = -(-len(drawn) // columns)
    figure = Figure(figsize=(3 * columns, 2.1 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    epochs = np.arange(length + 1)
    for axes, (title, schedule) in zip(grid, drawn.items(), strict=False):
        axes.step(epochs, [schedule(int(epoch)) for epoch in epochs], where="post", color=_AFTER, linewidth=1.5)
        axes.set_title(title, fontsize=7.5)
        axes.set_ylim(-0.03, 1.0)
        axes.tick_params(labelsize=7)
        axes.grid(color=_BEFORE, linewidth=0.4)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[len(drawn) :]:
        axes.set_axis_off()
    figure.supxlabel("epoch or step", fontsize=9)
    figure.supylabel("ratio or threshold", fontsize=9)
    return _save(figure, path)


def filters(models: dict[str, keras.Model], layers: Sequence[str], path: str | os.PathLike) -> Path:
    """Filter weights as heat maps: a column a layer, a row a model, a line of pixels a filter.

    Args:
        models: title -> model, such as soft-pruned and stripped.
        layers: names of convolutions.
        path: of the picture.

    Raises:
        PlanError: a layer is in none of the models, or has no kernel.
    """
    kernels = {(title, name): _filters(model, name) for title, model in models.items() for name in layers}
    for name in layers:
        if all(kernels[title, name] is None for title in models):
            raise PlanError(
                f"no model has a convolution called {name!r}; their layers are listed by print(trace(model))"
            )
    figure = Figure(figsize=(3.2 * len(layers) + 1, 3.6 * len(models)), layout="constrained")
    grid = figure.subplots(len(models), len(layers), squeeze=False)
    for column, name in enumerate(layers):
        present = [k for title in models if (k := kernels[title, name]) is not None]
        limit = float(np.quantile(np.abs(present[0]), 0.99)) or 1.0
        rows = max(len(k) for k in present)
        for row, title in enumerate(models):
            axes, kernel = grid[row, column], kernels[title, name]
            axes.set_xticks([])
            axes.tick_params(labelsize=7)
            if kernel is None:
                axes.set_axis_off()
                axes.text(0.5, 0.5, "removed", ha="center")
                continue
            # Zero is drawn in grey: a zeroed filter must not look like a small one.
            shown = np.ma.masked_equal(kernel, 0.0)
            palette = matplotlib.colormaps["RdBu_r"].with_extremes(bad="#d0d0d0")
            image = axes.imshow(
                shown,
                aspect="auto",
                interpolation="nearest",
                cmap=palette,
                norm=colors.TwoSlopeNorm(0, -limit, limit),
            )
            axes.set_ylim(rows - 0.5, -0.5)  # the same height a filter in both rows
            zero = int((kernel == 0).all(axis=1).sum())
            axes.set_title(f"{name}\n{title}: {len(kernel)} filters, {zero} zero", fontsize=8)
            axes.set_ylabel("filter", fontsize=8) if column == 0 else None
            figure.colorbar(image, ax=axes, shrink=0.8).ax.tick_params(labelsize=6)
    return _save(figure, path)


def _filters(model: keras.Model, name: str) -> np.ndarray | None:
    """(filters, weights of one), or None if the layer is gone."""
    layer = _layer(model, name)
    kernel = getattr(layer, "kernel", None)
    if layer is None or kernel is None:
        return None
    array = keras.ops.convert_to_numpy(kernel)
    if "Depthwise" in type(layer).__name__:
        return array.reshape(-1, array.shape[-2] * array.shape[-1]).T
    return array.reshape(-1, array.shape[-1]).T


def block(before: keras.Model, after: keras.Model, scope: str, path: str | os.PathLike) -> Path:
    """The layers of one block as a diagram, with their widths and parameters, before and after.

    Args:
        before: the model that was stripped.
        after: what it became.
        scope: what the names of the block's layers begin with, such as `expanded_conv_3_` or `SE1`.
        path: of the picture.

    Raises:
        PlanError: no layer's name begins so.
    """
    figure = Figure(figsize=(9, 1), layout="constrained")
    panels = figure.subplots(1, 2)
    graphs = (trace(before), trace(after))
    rows = _rows(graphs[0], scope)
    if not rows:
        raise PlanError(f"no layer of {before.name!r} is called {scope!r}...; tfprune inspect lists the layers")
    figure.set_size_inches(9, 0.9 + 0.78 * (max(rows.values()) + 1))
    for axes, title, model, graph in zip(panels, ("before", "after"), (before, after), graphs, strict=True):
        _draw_block(axes, model, graph, scope, rows)
        axes.set_title(f"{scope.rstrip('_')} {title}", fontsize=11)
    return _save(figure, path)


def _calls(graph: ChannelGraph, scope: str) -> list[Call]:
    return [call for call in graph.calls if call.layer.startswith(scope)]


def _rows(graph: ChannelGraph, scope: str) -> dict[str, int]:
    """layer -> its row: one more than the lowest of those that it reads."""
    row_of_value: dict[int, int] = {}
    rows: dict[str, int] = {}
    for call in _calls(graph, scope):
        inside = [row_of_value[value] for value in call.inputs if value in row_of_value]
        rows[call.layer] = max(inside, default=0) + 1
        row_of_value.update(dict.fromkeys(call.outputs, rows[call.layer]))
    return rows


def _draw_block(axes: Axes, model: keras.Model, graph: ChannelGraph, scope: str, rows: dict[str, int]) -> None:
    last = max(rows.values())
    axes.set_xlim(-1.5, 1.9)
    axes.set_ylim(last + 0.6, -0.6)
    axes.set_axis_off()
    calls = _calls(graph, scope)
    place: dict[int, float] = {}
    outside: list[tuple[float, str]] = []
    for call in calls:
        row = rows.get(call.layer, last)
        layer = _layer(model, call.layer)
        shape = _shape(graph, call.outputs[0])
        count = layer.count_params() if layer is not None else 0
        label = f"{call.layer[len(scope) :].strip('_') or call.layer} · {call.kind}"
        detail = shape + (f" · {count:,} parameters" if count else "")
        colour = _AFTER if count and hasattr(layer, "kernel") else _BEFORE
        axes.add_patch(
            FancyBboxPatch(
                (-1, row - 0.26), 2, 0.52, boxstyle="round,pad=0.02", facecolor=colour, alpha=0.3, linewidth=0
            )
        )
        axes.text(0, row - 0.1, label, ha="center", va="center", fontsize=8, color=_INK)
        axes.text(0, row + 0.12, detail, ha="center", va="center", fontsize=7, color=_INK)
        for value in call.inputs:
            if value not in place:
                outside.append((row, _shape(graph, value)))
                place[value] = 0.0
            _arrow(axes, place[value], row)
        place.update(dict.fromkeys(call.outputs, row))
    if outside:
        axes.text(0, -0.1, f"input · {outside[0][1]}", ha="center", va="center", fontsize=8, color=_INK)


def _shape(graph: ChannelGraph, value: int) -> str:
    return "x".join("?" if size is None else str(size) for size in graph.shapes[value])


def _arrow(axes: Axes, start: float, end: float) -> None:
    """Straight down to the next row; around the boxes where it skips one."""
    style = {"arrowstyle": "-|>", "color": _INK, "linewidth": 0.9}
    if end - start <= 1:
        axes.annotate("", (0, end - 0.28), (0, start + (0.28 if start else 0.05)), arrowprops=style)
    else:
        axes.plot([1.02 if start else 0.4, 1.5, 1.5], [start, start, end], color=_INK, linewidth=0.9)
        axes.annotate("", (1.02, end), (1.5, end), arrowprops=style)
