"""`Pruning`: the soft-to-hard process that a training loop drives, on Keras files, under the seed's names."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from tfprune.channels.graph import ChannelGraph
from tfprune.channels.ops import Affine, Contract, Depthwise
from tfprune.channels.plan import PruningPlan
from tfprune.criteria import Criterion, Sample, needs_of
from tfprune.errors import CheckpointError, DivergedError, PlanError, TfpruneError
from tfprune.files import atomic_path, output_directory, write_text
from tfprune.frontend import trace
from tfprune.monitor import ConvergenceMonitor, FailureReport
from tfprune.runs.checkpoints import lock, unlock
from tfprune.runs.finite import not_finite
from tfprune.runs.randomness import seed_epoch
from tfprune.runs.settings import described
from tfprune.selection import matches, select
from tfprune.soft import soft_prune
from tfprune.strip import StripResult, strip
from tfprune.trainings import Trainings

Train = Callable[[keras.Model, Path], Any]
_SUFFIXES = (".keras", ".weights.h5")


class Pruning:
    """Soft-prune over a ladder of thresholds, retrain, watch, strip, export.

    The short way is `run`, `strip`, `export`. The seed's steps are here one by one, for a loop of your own.

    Args:
        model: a Keras model, or the path of a checkpoint (then it is `input_ckpt_path`).
        input_ckpt_path: the checkpoint to start from: `.keras`, or `.weights.h5` with a model.
        scope_names: layer-name prefixes or patterns; groups that such layers write are pruned. "" is every layer.
        output_dir: where everything is written.
        criterion, round_to, layers, heads: see `tfprune.select`.
        data, loss: for a criterion that needs them, a small sample that can be read again and again: it is measured
            whenever filters are chosen. See docs/criteria.md.
        options: more arguments of `tfprune.select`: `ignore`, `scope`, `min_width`, `max_ratio`.
        max_failure_rate: a threshold has converged when at most this fraction of filters came back.
        slots: `"reset"` zeroes the optimizer's slots (momentum and the like) of what is zeroed, so that they do not
            bring filters back; `"keep"` leaves them, as the original did.
        log: called with one line at a time; None for silence.

    Attributes:
        model: the model as it is now.
        plan: what is zeroed now.
        monitor: the failure rates so far, a `ConvergenceMonitor`.
        scope_conv_dict: scope -> its convolutions' names.
        conv_vars_dict, bias_vars_dict: convolution -> the names of its kernels; of its bias and BatchNormalization.
        pruning_filters_dict: group -> indices of the filters that are zeroed.
        pruned_ckpt_path, retrained_ckpt_path, ckpt_to_strip, export_ckpt_path, export_pb_path: paths, once written.
        strip_vars_dict: weight -> (shape before, shape after), once stripped; strip_nodes_dict: layer -> its widths.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, or does not fit the model.
        PlanError: a scope matches no layer.

    Source: Tensorflow_Model_Pruning, whose steps and file names these are; JSON where it pickled.

    >>> import keras, tempfile, tfprune
    >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(8, 3, activation="relu"),
    ...                           keras.layers.Flatten(), keras.layers.Dense(2)])
    >>> pruning = tfprune.Pruning(model, output_dir=tempfile.mkdtemp(), log=None)
    >>> _ = pruning.run(lambda model, directory: None, thresholds=[0.5])
    >>> pruning.strip().cost_after.parameters < pruning.stripped.cost_before.parameters
    True
    """

    def __init__(
        self,
        model: keras.Model | str | os.PathLike | None = None,
        scope_names: str | Sequence[str] = ("",),
        output_dir: str | os.PathLike = "pruning",
        *,
        input_ckpt_path: str | os.PathLike | None = None,
        criterion: str | Criterion = "redundancy",
        round_to: int = 4,
        layers: bool = False,
        heads: bool = False,
        data: Any = None,
        loss: Any = None,
        max_failure_rate: float = 0.1,
        slots: Literal["keep", "reset"] = "reset",
        log: Callable[[str], None] | None = print,
        **options: Any,
    ):
        if isinstance(model, str | os.PathLike):
            model, input_ckpt_path = None, model
        self.input_ckpt_path = None if input_ckpt_path is None else Path(input_ckpt_path)
        if self.input_ckpt_path is not None:
            model = load(self.input_ckpt_path, model)
        if model is None:
            raise CheckpointError("Pruning needs a model or a checkpoint (input_ckpt_path=)")
        self.model: keras.Model = model
        self.scope_names = [scope_names] if isinstance(scope_names, str) else list(scope_names)
        self.criterion, self.round_to, self.slots, self.options = criterion, round_to, slots, options
        self.layers, self.heads, self.data, self.loss = layers, heads, data, loss
        self.monitor = ConvergenceMonitor(max_failure_rate)
        self._log = log or (lambda line: None)
        self.output_dir = output_directory(output_dir)
        self.threshold: float | None = None
        self.plan: PruningPlan | None = None
        self.stripped: StripResult | None = None
        self.scope_conv_dict: dict[str, list[str]] = {}
        self.conv_vars_dict: dict[str, list[str]] = {}
        self.bias_vars_dict: dict[str, list[str]] = {}
        self.pruning_filters_dict: dict[str, list[int]] = {}
        self.strip_nodes_dict: dict[str, tuple[int, int]] = {}
        self.strip_vars_dict: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        self.pruning_filters_path: Path | None = None
        self.pruned_ckpt_path: Path | None = None
        self.retrained_ckpt_path: Path | None = None
        self.ckpt_to_strip: Path | None = None
        self.export_ckpt_path: Path | None = None
        self.export_pb_path: Path | None = None
        self.get_pruning_params()

    # -- soft pruning, step by step -------------------------------------------------------------------------------

    def set_output_dir(self, dir_path: str | os.PathLike | None = None) -> Path:
        """Write what follows below `dir_path` (the directory given to `Pruning`, if None); it is created."""
        self.output_dir = output_directory(self.output_dir if dir_path is None else dir_path)
        return self.output_dir

    def get_pruning_params(self) -> dict[str, list[str]]:
        """Find the convolutions in each scope, with their weights.

        Returns:
            scope -> names of its convolutions; also `scope_conv_dict`, `conv_vars_dict` and `bias_vars_dict`.

        Raises:
            PlanError: a scope matches no layer.
        """
        graph = trace(self.model)
        needs_of(self.criterion, self.data)
        Sample.of(self.data).check_again()
        select(graph, _zeros, ratio=0.0, only=self.scope_names, **self.options)
        self.scope_conv_dict = {scope: [] for scope in self.scope_names}
        for op in graph.ops:
            if not isinstance(op, Contract | Depthwise):
                continue
            self.conv_vars_dict.setdefault(op.layer, []).append(op.kernel.key)
            own = [op.bias.key] if op.bias is not None else []
            after = [o for o in graph.ops if isinstance(o, Affine) and o.inputs == op.outputs]
            own += [weight.key for o in after for weight in o.weights()]
            self.bias_vars_dict.setdefault(op.layer, []).extend(own)
            for scope in self.scope_names:
                if matches(op.layer, scope) and op.layer not in self.scope_conv_dict[scope]:
                    self.scope_conv_dict[scope].append(op.layer)
        return self.scope_conv_dict

    @property
    def amount(self) -> dict[str, float]:
        """What `plan` was chosen by: `{"threshold": 0.8}`; empty before."""
        return {} if self.plan is None or self.threshold is None else {"threshold": self.threshold}

    def set_threshold(self, value: float) -> None:
        """Choose filters whose redundancy exceeds `value`, a fraction in [0, 1], from now on.

        Raises:
            PlanError: it is no number in [0, 1].
        """
        select(trace(self.model), _zeros, threshold=value)
        self.threshold = float(value)

    def get_pruning_filters(self) -> dict[str, list[int]]:
        """Choose the filters, and write them to `Pruning_Dict/pruning_filters.json`.

        Returns:
            group -> indices.

        Raises:
            PlanError: no threshold has been set.
        """
        if self.threshold is None:
            raise PlanError("set a threshold first: set_threshold(0.8)")
        self.plan = select(
            trace(self.model),
            self.criterion,
            threshold=self.threshold,
            round_to=self.round_to,
            only=self.scope_names,
            layers=self.layers,
            heads=self.heads,
            data=self.data,
            loss=self.loss,
            **self.options,
        )
        self.pruning_filters_dict = {name: list(indices) for name, indices in self.plan.channels.items()}
        path = self.output_dir / "Pruning_Dict" / "pruning_filters.json"
        self.pruning_filters_path = write_text(path, self.plan.to_json() + "\n")
        return self.pruning_filters_dict

    def get_pruning_ckpt(self, pruning_filters_path: str | os.PathLike | None = None) -> Path:
        """Zero the chosen filters in the model, and write `Pruned_Dir/model.keras` and `Pruned_Filters.txt` there.

        Args:
            pruning_filters_path: a file that `get_pruning_filters` wrote; None for what was chosen last.

        Returns:
            the checkpoint to retrain; also `pruned_ckpt_path`.

        Raises:
            PlanError: nothing was chosen, or it was chosen for another model.
        """
        if pruning_filters_path is not None:
            self.plan = PruningPlan.from_json(_read(pruning_filters_path), trace(self.model))
            self.pruning_filters_dict = {name: list(indices) for name, indices in self.plan.channels.items()}
        if self.plan is None:
            raise PlanError("choose filters first: get_pruning_filters()")
        soft_prune(self.model, self.plan, slots=self.slots)
        directory = output_directory(self.output_dir / "Pruned_Dir")
        self.pruned_ckpt_path = save(self.model, directory / "model.keras")
        write_text(directory / "Pruned_Filters.txt", f"{self.plan}\n")
        return self.pruned_ckpt_path

    def get_retrained_ckpt(self, path: str | os.PathLike | None = None) -> Path:
        """Load the newest `.keras` or `.weights.h5` below a directory (or the file itself) as the retrained model.

        Args:
            path: None for the output directory. What `Pruning` wrote itself is passed over.

        Raises:
            CheckpointError: there is none, or it is damaged or of another model.
        """
        place = Path(self.output_dir if path is None else path)
        if place.is_dir():
            own = ("Pruned_Dir", "Stripped_Dir")
            found = [p for p in place.rglob("*") if p.name.endswith(_SUFFIXES) and p.parent.name not in own]
            if not found:
                raise CheckpointError(f"{place} holds no .keras or .weights.h5 file; save the retrained model there")
            place = max(found, key=lambda p: p.stat().st_mtime_ns)
        retrained = load(place, self.model)
        _same_weights(retrained, self.model, place)
        self.model, self.retrained_ckpt_path = retrained, place
        return place

    def get_pruning_summary(self, epoch: int = -1) -> float:
        """How many of the zeroed filters training brought back; written to `Pruning_Summary.txt`.

        Returns:
            the failure rate, a fraction in [0, 1]; 0 when nothing was pruned.

        Raises:
            PlanError: nothing has been zeroed yet.
        """
        return self._summary(epoch).rate

    def _summary(self, epoch: int = -1) -> FailureReport:
        if self.plan is None:
            raise PlanError("nothing has been zeroed yet: pruning_process(retrain=False) comes first")
        report = self.monitor.measure(self.model, self.plan, epoch=epoch, threshold=self.threshold)
        widths = "\n".join(
            f"{group.name}: {group.width} -> {group.width - len(self.plan.channels.get(group.name, ()))}"
            for group in self.plan.graph.groups
            if group.name in self.plan.channels
        )
        write_text(
            self.output_dir / "Pruning_Summary.txt",
            f"threshold {self.threshold}\nfailed_rate {report.rate:.6f}\n\n{report}\n\nwidths\n{widths}\n",
        )
        return report

    def pruning_process(self, retrain: bool = False) -> Path:
        """Zero filters and write the checkpoint to train on.

        Args:
            retrain: False: choose filters by the threshold. True: the same filters as before, which came back.

        Returns:
            the checkpoint's path.

        Raises:
            PlanError: `retrain` before anything was chosen.
        """
        if retrain and self.plan is None:
            raise PlanError("pruning_process(retrain=True) zeroes the filters chosen before, and none were")
        if not retrain:
            self.get_pruning_filters()
        return self.get_pruning_ckpt()

    # -- strip, step by step --------------------------------------------------------------------------------------

    def get_rebuild_graph(self, ckpt_to_strip: str | os.PathLike | None = None) -> ChannelGraph:
        """Read the model that is to be stripped as a graph.

        Args:
            ckpt_to_strip: a checkpoint; None for the model as it is.
        """
        if ckpt_to_strip is not None:
            self.ckpt_to_strip = Path(ckpt_to_strip)
            self.model = load(self.ckpt_to_strip, self.model)
            if self.plan is not None:
                self.plan = PruningPlan.from_json(self.plan.to_json(), trace(self.model))
        return trace(self.model)

    def get_strip_params(self) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        """Strip, and say what became of each weight.

        Returns:
            weight -> (shape before, shape after); also `strip_vars_dict`.
        """
        result = self.strip()
        before = {weight.key: weight.shape for weight in trace(self.model).variables}
        after = {weight.key: weight.shape for weight in trace(result.model).variables}
        self.strip_vars_dict = {
            key: (shape, after.get(key, (0,))) for key, shape in before.items() if after.get(key) != shape
        }
        self.strip_nodes_dict = {
            key.rpartition("/")[0]: (old[-1], new[-1]) for key, (old, new) in self.strip_vars_dict.items()
        }
        return self.strip_vars_dict

    def get_strip_ckpt(self, output_nodes: str | Sequence[str] | None = None) -> Path:
        """Write the stripped model to `Stripped_Dir/`: `model.keras`, and a frozen `model.pb` for inference.

        Args:
            output_nodes: names for the .pb's outputs, a list or separated by commas; the model's own if None.

        Returns:
            the path of the stripped `.keras`; also `export_ckpt_path`, and `export_pb_path` for the .pb.
        """
        result = self.stripped or self.strip()
        names = output_nodes.split(",") if isinstance(output_nodes, str) else output_nodes
        report = _export(result.model, self.output_dir / "Stripped_Dir", ("keras", "pb"), output_nodes=names)
        paths = {row.format: Path(row.path) for row in report.rows}
        self.export_ckpt_path, self.export_pb_path = paths["keras"], paths["pb"]
        write_text(self.output_dir / "Stripped_Dir" / "Stripped_Summary.txt", f"{result}\n")
        return self.export_ckpt_path

    # -- the short way --------------------------------------------------------------------------------------------

    def run(
        self,
        train: Train,
        thresholds: Sequence[float] = (0.8, 0.7, 0.6, 0.55, 0.5),
        max_failure_rate: float | None = None,
        max_retries: int = 3,
        *,
        seed: int | None = 0,
        resume: bool = True,
    ) -> ConvergenceMonitor:
        """The threshold ladder: zero, train, and while too many filters came back, zero the same again and train.

        What is done is noted in `run.json` after each training. Killed at any moment, the same call goes on behind the
        last training that was finished, and ends with the same plan; one that had ended is loaded. A training that
        should itself go on in its middle takes `tfprune.Resume(directory / "checkpoints")` in `train`.

        Args:
            train: your function, called as `train(model, directory)`. It trains the model in place, or returns the
                trained model or the path of its checkpoint. The directory (`TH0.8`, `TH0.8_Repruned1`, ...) is its.
            thresholds: fractions in [0, 1], in the order in which they are used.
            max_failure_rate: go on to the next threshold when at most this fraction came back.
            max_retries: how often the same filters are zeroed again before going on all the same.
            seed: the global generators are seeded before each training, from this and its number, so that it is the
                same whether or not the run was killed before it. None: they are not.
            resume: False: begin anew, over what an earlier run has left in the directory.

        Returns:
            the monitor, with a report a training.

        Raises:
            PlanError: a threshold that is no number in [0, 1].
            CheckpointError: the directory holds a run with other settings (they are listed), or another process is at
                work there.
            DivergedError: a training made weights that are NaN or infinite; the run goes on from the one before.
        """
        for threshold in thresholds:
            self.set_threshold(threshold)
        limit = self.monitor.max_failure_rate if max_failure_rate is None else max_failure_rate
        home = self.output_dir
        lock(home)
        try:
            asked = {"thresholds": thresholds, "limit": limit, "retries": max_retries, "seed": seed}
            trainings, number = self._trainings(asked, resume), 0
            for threshold in thresholds:
                self.set_threshold(threshold)
                for attempt in range(max_retries + 1):
                    name = f"TH{threshold:g}" + (f"_Repruned{attempt}" if attempt else "")
                    self.set_output_dir(home / name)
                    report = trainings.past(number, self.monitor)
                    if report is None:
                        if seed is not None:
                            seed_epoch(seed, number)
                        report = self._rung(train, name, attempt)
                        trainings.add(name, self)
                    number += 1
                    if report.rate <= limit:
                        break
                else:
                    rate = self.monitor.rate
                    self._log(f"TH{threshold:g}: still {rate:.1%} after {max_retries} retries; going on")
        finally:
            self.output_dir = home
            if self.monitor.history:
                self.monitor.to_csv(home / "failure_rates.csv")
            unlock(home)
        return self.monitor

    def _rung(self, train: Train, name: str, attempt: int) -> FailureReport:
        """Zero, train, and look what came back."""
        checkpoint = self.pruning_process(retrain=attempt > 0)
        assert self.plan is not None
        self._log(f"{name}: {self.plan.pruned} channels zeroed, {checkpoint}")
        self._train(train, self.output_dir)
        report = self._summary(epoch=len(self.monitor.history))
        self._log(f"{name}: {report.failed} of {report.pruned} filters came back ({report.rate:.1%})")
        return report

    def _trainings(self, asked: dict[str, Any], resume: bool) -> Trainings:
        """What an earlier start of the same run has done, taken over."""
        own = {"scope_names": self.scope_names, "criterion": self.criterion, "round_to": self.round_to, **self.options}
        more = {"slots": self.slots, "layers": self.layers, "heads": self.heads, "data": self.data}
        weights = [list(weight.shape) for weight in self.model.weights]
        started = {**described({**asked, **own, **more}), "weights": weights}
        trainings = Trainings(self.output_dir, started, self._log, resume)
        plan = trainings.restore(self.model, self.monitor)
        if plan is not None:
            self.plan = PruningPlan.from_state(plan, trace(self.model))
            self.pruning_filters_dict = {name: list(indices) for name, indices in self.plan.channels.items()}
            self.retrained_ckpt_path = self.output_dir / trainings.records[-1]["name"] / "retrained.keras"
        return trainings

    def _train(self, train: Train, directory: Path) -> None:
        result = train(self.model, directory)
        if isinstance(result, str | os.PathLike):
            self.get_retrained_ckpt(result)
        elif isinstance(result, keras.Model):
            _same_weights(result, self.model, directory)
            self.model = result
        where = not_finite(self.model)
        if where:
            raise DivergedError(
                f"training in {str(directory)!r} made NaN or infinite weights, first in {where}; its result is not "
                f"kept. The same call goes on from the training before"
            )
        save(self.model, directory / "retrained.keras")
        self.retrained_ckpt_path = directory / "retrained.keras"

    def strip(self) -> StripResult:
        """Zero what came back of the last plan, and strip the model; see `tfprune.strip`."""
        if self.plan is not None:
            soft_prune(self.model, self.plan)
        self.stripped = strip(self.model)
        return self.stripped

    def export(
        self,
        directory: str | os.PathLike | None = None,
        formats: Sequence[str] = ("keras", "saved_model", "pb", "onnx"),
    ) -> Any:
        """Export the stripped model (it is stripped first if it was not); see `tfprune.export`."""
        result = self.stripped or self.strip()
        return _export(result.model, self.output_dir / "export" if directory is None else directory, formats)


def _zeros(weights: Any) -> np.ndarray:
    return np.ones(weights.width)


def _export(model: keras.Model, directory: str | os.PathLike, formats: Sequence[str], **options: Any) -> Any:
    # The exporters bring TensorFlow with them: not before they are asked for.
    from tfprune.export import export

    return export(model, directory, formats=tuple(formats), name="model", **options)


def save(model: keras.Model, path: str | os.PathLike) -> Path:
    """Save a `.keras` file, whole or not at all."""
    with atomic_path(path) as scratch:
        model.save(scratch)
    return Path(path)


def load(path: str | os.PathLike, model: keras.Model | None = None) -> keras.Model:
    """Load a checkpoint.

    Args:
        path: `.keras`, or `.weights.h5`, which needs `model`; its weights are then replaced.

    Raises:
        CheckpointError: it is missing, damaged, of another kind, or does not fit the model.
    """
    place = Path(path)
    if not place.is_file():
        raise CheckpointError(f"there is no checkpoint {str(place)!r}")
    try:
        if place.name.endswith(".weights.h5"):
            if model is None:
                raise CheckpointError(f"{place} holds weights alone; give the model they belong to as well")
            model.load_weights(place)
            return model
        if place.suffix != ".keras":
            raise CheckpointError(f"{place} is neither .keras nor .weights.h5; save it with model.save('x.keras')")
        return keras.models.load_model(place)
    except TfpruneError:
        raise
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, json.JSONDecodeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{place} is damaged, or not of this model: {first}") from error


def _read(path: str | os.PathLike) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _same_weights(model: keras.Model, expected: keras.Model, place: Any) -> None:
    shapes = [tuple(w.shape) for w in model.weights], [tuple(w.shape) for w in expected.weights]
    if shapes[0] != shapes[1]:
        raise CheckpointError(f"the model in {place} has other weights than the one that was pruned")


__all__ = ["Pruning", "load", "save"]
