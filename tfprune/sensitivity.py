"""Sensitivity: how much of each group, and of all together, can go before the model gets worse."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import keras
import numpy as np

from tfprune.carry import compile_as, compile_settings
from tfprune.channels.graph import ChannelGraph
from tfprune.channels.plan import PruningPlan
from tfprune.criteria.base import Criterion, GroupView, Unscored
from tfprune.criteria.scoring import Scorer
from tfprune.errors import DataError, PlanError, Refusal, TraceError, nearest
from tfprune.frontend import trace
from tfprune.keras_graph.arrays import numbers
from tfprune.selection import select
from tfprune.soft import Zeroing
from tfprune.strip import strip
from tfprune.tables import table

#: What the curve of all groups together is called in tables and pictures.
TOGETHER = "all together"
Better = Literal["higher", "lower"]
# Where a model class has its own, the copy would be measured otherwise than the model.
_OWN_EVALUATION = ("test_step", "compute_loss", "compute_metrics", "evaluate")


def sensitivity(
    model: keras.Model,
    data: Any,
    criterion: str | Criterion = "l1",
    *,
    ratios: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    mode: Literal["both", "layerwise", "full"] = "both",
    metric: str | Callable[[keras.Model, Any], float] | None = None,
    better: Better | None = None,
    sample: Any = None,
    loss: Any = None,
    only: str | Sequence[str] | None = None,
    round_to: int = 1,
    heads: bool = False,
    remove: bool = False,
    batch_size: int | None = None,
    steps: int | None = None,
    progress: bool = True,
) -> Sensitivity:
    """Prune each channel group by each ratio, alone and all together, without training, and measure.

    The model is copied once and never changed. On the copy a plan's channels are zeroed, the copy is evaluated, and
    its weights are put back. What is measured is what `tfprune.strip` would give; `remove=True` really strips too, and
    measures that beside it.

    Args:
        model: any model that `tfprune.trace` can follow, compiled unless `metric` is a function.
        data: `(x, y)` or `(x, y, sample_weight)` arrays, or a `tf.data.Dataset`, `PyDataset` or data loader that can be
            read again and again: what `model.evaluate` takes.
        criterion: what goes first; see `tfprune.select`. Every group is scored once.
        ratios: fractions in [0, 1) of a group's width.
        mode: `layerwise`: a curve a channel group; `full`: one of all groups together; `both`.
        metric: a name that `model.evaluate(return_dict=True)` knows, such as `accuracy` or `loss`; by default the first
            compiled metric, or the loss where there is none. Or a function of a model and the data that gives a number;
            it must not train the model that it is given.
        better: whether `higher` or `lower` is better. Keras knows it of its own metrics; for a function it is `higher`.
        sample, loss: what criteria that need data look at (by default `data` too), and what gradients are of (by
            default the compiled loss).
        only, round_to, heads: see `tfprune.select`.
        remove: also remove the same channels with `tfprune.strip` and evaluate the smaller model. Takes longer: each
            model is compiled anew.
        batch_size: samples a step, for arrays.
        steps: batches to evaluate, for data without an end.
        progress: show on standard error how far it is.

    Returns:
        a `Sensitivity`; print it, draw it with `tfprune.report.pictures.sensitivity`, or give its `ratios(max_drop)` to
        `tfprune.select`.

    Raises:
        PlanError: a ratio out of range, an unknown mode or metric, layers that do not exist, a model that is not
            compiled or evaluates itself in a way of its own, nothing to prune.
        TraceError: it is not a Keras model, or cannot be read as a graph.
        DataError: the data is empty, can be read only once, or does not fit the model.

    >>> import keras, numpy as np, tfprune
    >>> keras.utils.set_random_seed(0)
    >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(8, 3, name="conv"),
    ...                           keras.layers.Flatten(), keras.layers.Dense(2)])
    >>> model.compile(loss="mse")
    >>> x, y = np.random.rand(16, 8, 8, 1), np.random.rand(16, 2)
    >>> result = tfprune.sensitivity(model, (x, y), "l2", ratios=(0.25, 0.5), progress=False)
    >>> result.curve("conv").pruned
    (2, 4)
    >>> sorted(result.ratios(max_drop=100.0).items())
    [('conv', 0.5)]

    Sources: Li et al., "Pruning Filters for Efficient ConvNets" (arXiv:1608.08710), figure 2b; the layerwise and full
    modes of CNN-Pruning-Engine.
    """
    swept = _ascending(ratios)
    if mode not in ("both", "layerwise", "full"):
        raise PlanError(f"mode is 'layerwise', 'full' or 'both', and {mode!r} came")
    if not isinstance(model, keras.Model):
        raise TraceError(f"sensitivity needs a Keras model, and {type(model).__name__} came")
    measure = _Measure(model, data, metric, better, batch_size, steps)
    graph = trace(model)
    scorer = Scorer(graph, criterion, data=data if sample is None else sample, loss=loss)
    plans = _plans(graph, scorer, swept, round_to=round_to, only=only, heads=heads)
    scored = list(plans[0].redundancies)
    wanted: dict[str, list[PruningPlan]] = {}
    if mode != "full":
        wanted = {name: [_part(plan, name) for plan in plans] for name in scored}
    if mode != "layerwise":
        wanted[TOGETHER] = plans

    copy = _Copy(graph, measure, remove)
    baseline = measure.baseline(copy.model)
    widths = {group.name: group.width for group in graph.groups}
    widths[TOGETHER] = sum(widths[name] for name in scored)
    curves = []
    with _shown(progress, len(wanted) * len(swept)) as step:
        for name, parts in wanted.items():
            points = []
            for part in parts:
                points.append(copy.point(part))
                step(name)
            values, removed = zip(*points, strict=True)
            pruned = tuple(part.pruned for part in parts)
            curves.append(Curve(name, widths[name], pruned, values, removed if remove else None))
    together = curves.pop() if mode != "layerwise" else None
    refusals = tuple(refusal for refusal in plans[0].refusals if refusal.layer not in scored)
    by = scorer.name, measure.name, measure.better
    return Sensitivity(model.name, *by, baseline, swept, tuple(curves), together, refusals)


@dataclass(frozen=True)
class Curve:
    """What pruning one channel group, or all together, does to the metric; an entry for each ratio that was swept.

    Attributes:
        group: the channel group's name, or `all together`.
        width: how many channels it has.
        pruned: how many of them were zeroed.
        values: the metric with those zeroed.
        removed: the metric of the stripped model, without them; None if not asked for.
    """

    group: str
    width: int
    pruned: tuple[int, ...]
    values: tuple[float, ...]
    removed: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Sensitivity:
    """What a sweep found; printed as a table.

    Attributes:
        model: the model's name.
        criterion: what went first.
        metric: what was measured.
        better: whether `higher` or `lower` is better.
        baseline: the metric of the model as it is.
        swept: the ratios, fractions of a group's width, ascending.
        curves: a curve a channel group, in the order of the layers.
        together: of all groups together; None if not asked for.
        refusals: the groups that stay, and why.
    """

    model: str
    criterion: str
    metric: str
    better: Better
    baseline: float
    swept: tuple[float, ...]
    curves: tuple[Curve, ...]
    together: Curve | None = None
    refusals: tuple[Refusal, ...] = ()

    @property
    def all_curves(self) -> tuple[Curve, ...]:
        """The groups' curves, and that of all together behind them."""
        return (*self.curves, self.together) if self.together else self.curves

    def curve(self, group: str) -> Curve:
        """The curve of a channel group, or of `all together`.

        Raises:
            PlanError: there is none.
        """
        for curve in self.all_curves:
            if curve.group == group:
                return curve
        names = [curve.group for curve in self.all_curves]
        raise PlanError(f"there is no curve of {group!r}{nearest(group, names)}; there are {', '.join(names)}")

    def drops(self, curve: Curve) -> tuple[float, ...]:
        """By how much the metric gets worse along a curve, in the metric's own unit; negative where it gets better."""
        sign = 1 if self.better == "higher" else -1
        return tuple(sign * (self.baseline - value) for value in curve.values)

    def ratios(self, max_drop: float) -> dict[str, float]:
        """For each group the largest swept ratio up to which the metric never drops by more than `max_drop`.

        Each group is looked at alone: what all of them lose together is more, and is measured by pruning so.

        Args:
            max_drop: in the metric's own unit: 0.01 is one percent point of an accuracy.

        Returns:
            group -> ratio, for `tfprune.select(ratio=...)`; 0 where even the smallest ratio is too much.

        Raises:
            PlanError: `max_drop` is not a number of at least 0, or only all groups together were swept.

        >>> curves = (Curve("a", 10, (1, 5), (0.9, 0.2)), Curve("b", 10, (1, 5), (0.9, 0.89)))
        >>> Sensitivity("net", "l1", "accuracy", "higher", 0.9, (0.1, 0.5), curves).ratios(max_drop=0.02)
        {'a': 0.1, 'b': 0.5}
        """
        if isinstance(max_drop, bool) or not isinstance(max_drop, int | float | np.number) or not max_drop >= 0:
            raise PlanError(f"max_drop must be a number of at least 0, in the unit of {self.metric}; {max_drop!r} came")
        if not self.curves:
            raise PlanError("there are no curves of single groups; sweep with mode='layerwise' or 'both'")
        return {curve.group: self._tolerated(curve, float(max_drop)) for curve in self.curves}

    def _tolerated(self, curve: Curve, max_drop: float) -> float:
        best = 0.0
        for ratio, drop in zip(self.swept, self.drops(curve), strict=True):
            if not drop <= max_drop + 1e-12:  # not even a NaN passes
                break
            best = ratio
        return best

    @property
    def apart(self) -> float | None:
        """The largest difference between zeroing and removing, over all curves; None if nothing was removed."""
        pairs = [
            abs(a - b) for curve in self.all_curves for a, b in zip(curve.values, curve.removed or (), strict=False)
        ]
        return max(pairs, default=None)

    def __str__(self) -> str:
        title = f"{self.model}: {self.metric} is {self.baseline:.4g}; without so much of a group, by {self.criterion}:"
        header = ("group", "width", *(f"{ratio:g}" for ratio in self.swept))
        rows: list[tuple[Any, ...]] = []
        for curve in self.all_curves:
            rows.append((curve.group, curve.width, *curve.values))
            if curve.removed is not None:
                rows.append(("    removed", curve.width, *curve.removed))
        parts = [table(title, header, rows)]
        if self.apart is not None:
            parts.append(f"zeroing and removing are at most {self.apart:.2g} apart")
        return "\n".join([*parts, *map(str, self.refusals)])

    def to_json(self) -> str:
        """Everything, as JSON."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Sensitivity:
        """Read what `to_json` wrote.

        Raises:
            PlanError: it is something else, or damaged.
        """
        try:
            data = json.loads(text)
            curves = tuple(map(_curve, data.pop("curves")))
            together = data.pop("together")
            refusals = tuple(Refusal(r["layer"], tuple(r["channels"]), r["reason"]) for r in data.pop("refusals"))
            swept = tuple(data.pop("swept"))
            result = cls(**data, swept=swept, curves=curves, together=together and _curve(together), refusals=refusals)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PlanError(f"this is not the result of a sensitivity sweep: {error}") from error
        if any(len(curve.values) != len(swept) for curve in result.all_curves):
            raise PlanError("this is not the result of a sensitivity sweep: a curve has not one value for each ratio")
        return result


def _curve(data: dict[str, Any]) -> Curve:
    removed = data["removed"]
    return Curve(data["group"], data["width"], tuple(data["pruned"]), tuple(data["values"]), removed and tuple(removed))


# -- what is pruned ----------------------------------------------------------------------------------------------------


def _ascending(ratios: Sequence[float]) -> tuple[float, ...]:
    """The ratios, each once; `select` looks at their range."""
    try:
        swept = tuple(sorted({float(ratio) for ratio in np.atleast_1d(ratios)}))
    except (TypeError, ValueError) as error:
        raise PlanError(f"ratios must be numbers in [0, 1), and {ratios!r} came") from error
    if not swept:
        raise PlanError("there are no ratios to sweep; give some, such as ratios=(0.25, 0.5, 0.75)")
    return swept


def _plans(graph: ChannelGraph, scorer: Scorer, swept: Sequence[float], **options: Any) -> list[PruningPlan]:
    """The plan of each ratio: what `select` chooses, with every group scored once."""
    once = _Once(scorer)
    plans = [select(graph, once, ratio=ratio, **options) for ratio in swept]
    if not plans[0].redundancies:
        reasons = "\n".join(map(str, plans[0].refusals)) or "it has no channel groups"
        raise PlanError(f"nothing can be pruned of {graph.name}:\n{reasons}")
    return plans


class _Once:
    """A criterion that remembers what another one has said."""

    def __init__(self, scorer: Scorer):
        self._scorer, self._scores = scorer, scorer([])
        self.absolute = self._scores.absolute

    def __call__(self, view: GroupView) -> Any:
        name = view.group.name
        if name not in self._scores and name not in self._scores.refused:
            found = self._scorer([view.group])
            self._scores.update(found)
            self._scores.refused.update(found.refused)
        if name in self._scores.refused:
            raise Unscored(self._scores.refused[name])
        return self._scores[name]


def _part(plan: PruningPlan, group: str) -> PruningPlan:
    """What a plan takes of one group."""
    return PruningPlan.from_groups(plan.graph, {group: list(plan.channels.get(group, ()))})


# -- how it is measured ------------------------------------------------------------------------------------------------


class _Copy:
    """The one copy of the model that is zeroed, measured and put right again."""

    def __init__(self, graph: ChannelGraph, measure: _Measure, remove: bool):
        self.model = strip(graph.model, PruningPlan.from_groups(graph, {}), verify=False).model
        self.graph = trace(self.model)
        self.measure, self.remove = measure, remove
        self._known: dict[bytes, tuple[float, float | None]] = {}
        measure.prepare(self.model)

    def point(self, plan: PruningPlan) -> tuple[float, float | None]:
        """The metric with the plan's channels zeroed, and with them removed."""
        key = plan.gone.tobytes()
        if key not in self._known:  # two ratios of a narrow group may take the same channels
            plan = PruningPlan(self.graph, plan.onto(self.graph))
            with _zeroed(self.model, plan):
                zeroed = self.measure(self.model)
            self._known[key] = zeroed, self._removed(plan) if self.remove else None
        return self._known[key]

    def _removed(self, plan: PruningPlan) -> float:
        smaller = strip(self.model, plan, verify=False).model
        self.measure.prepare(smaller)
        return self.measure(smaller)


@contextlib.contextmanager
def _zeroed(model: keras.Model, plan: PruningPlan) -> Iterator[None]:
    """The plan's slices are 0 inside the block, and what they were behind it."""
    zeroing = Zeroing(model, plan)
    held = {id(v): (v, np.array(numbers(v))) for v, _, _ in zeroing.masks}
    try:
        zeroing.apply()
        yield
    finally:
        for variable, array in held.values():
            variable.assign(array)


class _Measure:
    """The metric of a model on the data."""

    def __init__(
        self,
        model: keras.Model,
        data: Any,
        metric: str | Callable[[keras.Model, Any], float] | None,
        better: Better | None,
        batch_size: int | None,
        steps: int | None,
    ):
        if better not in (None, "higher", "lower"):
            raise PlanError(f"better is 'higher' or 'lower', and {better!r} came")
        self.like, self.data, self.metric = model, data, metric
        self._better = better
        self.options = {"batch_size": batch_size, "steps": steps}
        self.name = metric if isinstance(metric, str) else getattr(metric, "__name__", "metric")
        _check_data(data, needs_labels=not callable(metric))
        if not callable(metric):
            self._check_model(model)

    def _check_model(self, model: keras.Model) -> None:
        if not compile_settings(model):
            raise PlanError(
                f"{model.name} is not compiled, so that there is nothing to measure: call "
                f"model.compile(loss=..., metrics=[...]) first, or give metric= a function of a model and the data"
            )
        own = [name for name in _OWN_EVALUATION if getattr(type(model), name) is not getattr(keras.Model, name)]
        if own:
            raise PlanError(
                f"{type(model).__name__} has its own {' and '.join(own)}, which a copy of {model.name} has not; give "
                f"metric= a function of a model and the data"
            )

    def prepare(self, model: keras.Model) -> None:
        """Compile a model as the user's is compiled."""
        if not callable(self.metric):
            notes = compile_as(self.like, model, keras.optimizers.SGD())
            if keras.backend.backend() == "tensorflow":  # XLA compiles for longer than a few evaluations take
                model.jit_compile = False
            if notes and self.metric != "loss":
                raise PlanError(f"{'; '.join(notes)}; give metric= a function of a model and the data")

    def baseline(self, model: keras.Model) -> float:
        """The metric of the model as it is; finds out which metric, and which way is better.

        Raises:
            DataError: the data does not fit the model, or the metric is no number.
            PlanError: there is no such metric, nobody knows which way is better, or a function gives no number.
        """
        if not callable(self.metric):
            try:
                found = self._evaluated(model)
            except Exception as error:  # whatever the backend raises
                first = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise DataError(f"{model.name} could not be evaluated on the data: {first}") from error
            self.name = _metric_name(found, self.metric, model)
        value = self(model)
        self.better = self._better or ("higher" if callable(self.metric) else _direction(model, self.name))
        if math.isnan(value):
            raise DataError(
                f"{self.name} of {model.name} is not a number before anything is pruned; is the data empty, or a "
                f"weight not finite?"
            )
        return value

    def __call__(self, model: keras.Model) -> float:
        if not callable(self.metric):
            return float(self._evaluated(model)[self.name])
        value = self.metric(model, self.data)
        if np.ndim(value) != 0 or not np.isreal(value):
            raise PlanError(f"metric must be a function that gives one number, and {value!r} came")
        return float(value)

    def _evaluated(self, model: keras.Model) -> dict[str, Any]:
        arrays = dict(zip(("x", "y", "sample_weight"), self.data, strict=False)) if _arrays(self.data) else None
        return model.evaluate(**(arrays or {"x": self.data}), **self.options, verbose=0, return_dict=True)


def _arrays(data: Any) -> bool:
    return isinstance(data, tuple | list)


def _check_data(data: Any, needs_labels: bool) -> None:
    """Raise `DataError` for data that cannot be swept over; it is not read."""
    if data is None:
        raise DataError("data must be given: (x, y) arrays or a data set, as for model.evaluate")
    if hasattr(data, "__next__"):
        raise DataError("data must be readable again and again, and an iterator came; give arrays or a data set")
    if needs_labels and isinstance(data, np.ndarray):
        raise DataError("data must hold labels: give (x, y), and an array came")
    if needs_labels and _arrays(data):
        _check_arrays(data)
    size = getattr(data, "cardinality", None) or getattr(data, "__len__", None)
    try:
        empty = size is not None and int(size()) == 0
    except TypeError:  # a data set that does not know its length
        return
    if empty:
        raise DataError(_EMPTY)


def _check_arrays(data: Sequence[Any]) -> None:
    if not 2 <= len(data) <= 3:
        raise DataError(f"data must be (x, y) or (x, y, sample_weight), and {len(data)} parts came")
    arrays = [array for array in keras.tree.flatten(data) if array is not None]
    wrong = [array for array in arrays if not np.shape(array)]
    if wrong:
        raise DataError(f"data must hold arrays, and {wrong[0]!r} came; make one of a list with numpy.array")
    lengths = [len(array) for array in arrays]
    if len(set(lengths)) > 1:
        raise DataError(f"the arrays of data must have equally many samples, and {lengths} came")
    if not lengths or lengths[0] == 0:
        raise DataError(_EMPTY)


_EMPTY = "data is empty: there is nothing to measure; give at least one batch"


def _metric_name(found: dict[str, Any], wanted: Any, model: keras.Model) -> str:
    """The metric that is measured: the wanted one, or the one that was compiled first."""
    if wanted is None:
        named = (name for metric in _compiled(model) for name in found if _is(name, metric))
        return next((name for name in named if not _is_loss(name)), "loss")
    if wanted not in found:
        raise PlanError(f"{model.name} has no metric {wanted!r}{nearest(wanted, found)}; it has {', '.join(found)}")
    return wanted


def _direction(model: keras.Model, name: str) -> Better:
    """Which way a compiled metric is better, from what Keras itself goes by in its callbacks."""
    if _is_loss(name):
        return "lower"
    alike = [metric for metric in _compiled(model) if _is(name, metric)]
    for metric in sorted(alike, key=lambda metric: metric.name != name):
        direction = getattr(metric, "_direction", None)
        if direction is not None:
            return "higher" if direction == "up" else "lower"
    raise PlanError(f"nobody knows whether a higher or a lower {name} is better; give better='higher' or 'lower'")


def _compiled(model: keras.Model) -> list[keras.metrics.Metric]:
    """A compiled model's metrics, in the order in which they were given."""
    return [one for metric in model.metrics for one in getattr(metric, "metrics", None) or [metric]]


def _is(name: str, metric: keras.metrics.Metric) -> bool:
    """Whether `evaluate` calls a metric so: with several outputs, the output's name comes first."""
    return name == metric.name or name.endswith(f"_{metric.name}")


def _is_loss(name: str) -> bool:
    return name == "loss" or name.endswith("_loss")


@contextlib.contextmanager
def _shown(progress: bool, total: int) -> Iterator[Callable[[str], None]]:
    """A bar on standard error; where nobody watches, a line a curve."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn()
    seen: set[str] = set()
    with Progress(*columns, console=console, disable=not (progress and console.is_terminal)) as bar:
        task = bar.add_task("sensitivity", total=total)

        def step(name: str) -> None:
            bar.update(task, advance=1, description=name)
            if progress and not console.is_terminal and name not in seen:
                console.print(f"sensitivity: {name}", highlight=False, soft_wrap=True)
            seen.add(name)

        yield step


__all__ = ["Curve", "Sensitivity", "sensitivity"]
