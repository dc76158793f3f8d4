"""What a data sample says about a model: one forward and backward pass a batch, for all groups and criteria at once."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.src.trainers.compile_utils import CompileLoss  # has no public name
from numpy.typing import NDArray

from tfprune.channels.graph import ChannelGraph, ChannelGroup
from tfprune.channels.weights import Weight
from tfprune.criteria.features import At, Feature, FeatureMap, Gradient, feature_maps
from tfprune.criteria.gradients import differentiated, tapped
from tfprune.criteria.sample import Sample
from tfprune.errors import DataError, PlanError, TfpruneError
from tfprune.keras_graph.arrays import numbers

Need = Feature | Gradient
Key = tuple[int, int]
_DIFFERENTIATED = ("write", "depthwise", "read", "scale")
COMPILE_FROM = 4  # batches: building a graph costs about as much as a few batches


class Evidence:
    """What was measured on a sample. Made by `gather`.

    Attributes:
        samples: how many there were.
        loss: their mean loss; None if no gradients were asked for.
        needs: what was measured.
    """

    def __init__(self, graph: ChannelGraph, needs: frozenset[Need]):
        self.graph, self.needs = graph, needs
        self.samples = 0
        self.loss: float | None = None
        self.maps: dict[At, dict[Weight, list[FeatureMap]]] = {}
        self.measured: dict[tuple[Key, Feature], NDArray[np.float64]] = {}
        self.gradients: dict[Gradient, dict[Weight, NDArray]] = {}

    def feature(self, group: ChannelGroup, feature: Feature) -> list[NDArray[np.float64]]:
        """What was measured of each of the group's feature maps; arrays of shape (width,)."""
        channel_of = self.graph.channel_of
        maps: dict[Key, tuple[FeatureMap, NDArray]] = {}
        for member in group.members:
            if member.role != "write":
                continue
            for one in self.maps[feature.at].get(member.slot.weight, ()):
                _, owner = maps.setdefault(one.key, (one, np.full(self.graph.channels, -1)))
                owner[channel_of[member.slot.labels.ravel()[member.positions]]] = member.channels
        found = []
        for key, (one, owner) in maps.items():
            channels = owner[channel_of[one.labels.ravel()]]
            inside = channels >= 0
            if not inside.any() or (key, feature) not in self.measured:
                continue
            sums = np.bincount(channels[inside], self.measured[key, feature][inside], group.width)
            found.append(sums / np.maximum(1, np.bincount(channels[inside], minlength=group.width)))
        return found

    def gradient(self, weight: Weight, gradient: Gradient) -> NDArray:
        """The mean (or mean square) gradient with respect to a weight; zeros for what has none."""
        known = self.gradients[gradient].get(weight)
        return np.zeros(weight.shape, np.float32) if known is None else known


def gather(graph: ChannelGraph, needs: Iterable[Any], data: Any, loss: Any = None) -> Evidence:
    """Run a model over a sample and measure what criteria need, all in one pass.

    The model is run as in inference (see `Sample`), and nothing of it changes: neither weights and statistics nor
    metrics, seeds and `trainable`. The loss is that of the samples: regularization is not part of it.

    Args:
        graph: from `tfprune.trace`.
        needs: criteria, or what they need (`Feature`s and `Gradient`s).
        data: a `Sample`, or what it takes.
        loss: a Keras loss, its name, a function of (labels, outputs), or a list or dictionary of these, one an output;
            by default the one the model was compiled with.

    Returns:
        an `Evidence`, which `data=` takes in place of the sample.

    Raises:
        PlanError: no criterion that needs data.
        DataError: the sample is empty, has no labels where gradients need them, or does not fit the model; there is no
            loss; the loss is not finite.
    """
    wanted = frozenset(
        need for one in needs for need in ([one] if isinstance(one, Feature | Gradient) else getattr(one, "needs", ()))
    )
    if not wanted:
        raise PlanError("none of the criteria needs data")
    try:
        return _Pass(graph, wanted, Sample.of(data), loss).run()
    except TfpruneError:
        raise
    except Exception as error:
        raise DataError(f"{graph.name} cannot be run on data=: {type(error).__name__}: {error}") from error


class _Pass:
    """One run over a sample."""

    def __init__(self, graph: ChannelGraph, needs: frozenset[Need], sample: Sample, loss: Any):
        self.graph, self.model, self.sample = graph, graph.model, sample
        self.evidence = Evidence(graph, needs)
        # What is measured of each feature map on the way forward, and on the way back.
        self.forward: dict[Key, list[Feature]] = {}
        self.backward: dict[Key, list[Feature]] = {}
        self.maps: dict[int, dict[Key, FeatureMap]] = {}
        for feature in sorted((need for need in needs if isinstance(need, Feature)), key=repr):
            maps = self.evidence.maps.setdefault(feature.at, feature_maps(graph, feature.at))
            for key, one in {one.key: one for found in maps.values() for one in found}.items():
                self.maps.setdefault(id(one.operation), {}).setdefault(key, one)
                (self.backward if feature.gradient else self.forward).setdefault(key, []).append(feature)
        self.gradients = [need for need in needs if isinstance(need, Gradient)]
        self.weights = _differentiable(graph) if self.gradients else []
        variables = [graph.variables[weight] for weight in self.weights]
        known = {id(variable) for variable in variables}
        self.variables = [*variables, *(one for one in self.model.variables if id(one) not in known)]
        self.differentiates = bool(self.gradients or self.backward)
        self.given_loss = loss
        self.loss: Callable[[Any, Any, Any], Any] | None = None
        self.calls: Counter[Key] = Counter()

    def run(self) -> Evidence:
        batches = self.sample.batches()
        ahead = list(itertools.islice(batches, COMPILE_FROM))
        if not ahead:
            raise DataError("data= holds no samples; a generator can be read only once, so give what can be read again")
        if self.differentiates and ahead[0].y is None:
            raise DataError("gradients need labels: give data=(x, y), or batches of (x, y)")
        self.loss = _loss(self.model, self.given_loss) if self.differentiates else None
        if isinstance(self.loss, CompileLoss):
            self.loss.build(ahead[0].y, self.graph.body.outputs_struct)
        values = [variable.value for variable in self.variables]
        count = len(self.weights)
        probes = [ops.zeros((len(found), self._map(key).labels.size)) for key, found in self.backward.items()]
        step = differentiated(self.function, len(ahead) == COMPILE_FROM)
        sums = _Sums(self.gradients)
        for batch in itertools.chain(ahead, batches):
            tensors = keras.tree.map_structure(lambda a: None if a is None else ops.convert_to_tensor(a), tuple(batch))
            loss, forward, gradients = step([*values[:count], *probes], values[count:], tensors)
            sums.add(batch.samples, loss, [*forward, *gradients[count:]], gradients[:count])
        return self._evidence(sums)

    def function(self, parameters: list[Any], state: list[Any], batch: Any) -> tuple[Any, list[Any]]:
        """The loss, summed over samples, and what is measured on the way forward."""
        x, y, sample_weight = batch
        count = len(self.weights)
        probes = dict(zip(self.backward, parameters[count:], strict=True))
        found: dict[Key, Any] = {}
        mapping = list(zip(self.variables, [*parameters[:count], *state], strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            with self._tapping(probes, found):
                predictions = self.model(x, training=self.sample.training)
            loss = ops.zeros(())
            if self.loss is not None:
                samples = keras.tree.flatten(x)[0].shape[0]
                loss = ops.cast(self.loss(y, predictions, sample_weight), "float32") * samples
        missed = [key for key in (*self.forward, *self.backward) if not self.calls[key]]
        if missed:
            name = self._map(missed[0]).operation.name
            raise TfpruneError(f"the feature map of {name!r} was not met when the model ran; this is a bug of tfprune")
        return loss, [found[key] for key in self.forward]

    @contextlib.contextmanager
    def _tapping(self, probes: dict[Key, Any], found: dict[Key, Any]) -> Iterator[None]:
        """Look at what the layers give out. (Every layer and operation is called through `Operation.__call__`.)"""
        original = keras.Operation.__call__
        self.calls.clear()

        def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
            outputs = original(operation, *args, **kwargs)
            maps = self.maps.get(id(operation))
            if maps is None:
                return outputs
            flat = keras.tree.flatten(outputs)
            for key, one in maps.items():
                self.calls[key] += 1
                z = flat[one.index]
                if key in self.forward:
                    measured = _measured(one, self.forward[key], z, None)
                    found[key] = found[key] + measured if key in found else measured
                if key in self.backward:
                    measure = functools.partial(_measured, one, self.backward[key])
                    flat[one.index] = tapped(z, probes[key], measure)
            return keras.tree.pack_sequence_as(outputs, flat)

        keras.Operation.__call__ = call
        try:
            yield
        finally:
            keras.Operation.__call__ = original

    def _map(self, key: Key) -> FeatureMap:
        return self.maps[key[0]][key]

    def _evidence(self, sums: _Sums) -> Evidence:
        evidence = self.evidence
        evidence.samples = sums.samples
        if self.differentiates:
            evidence.loss = sums.loss / sums.samples
            if not np.isfinite(evidence.loss):
                raise DataError(f"the mean loss of the sample is {evidence.loss}; are its numbers in the right range?")
        keys = [(key, features) for kind in (self.forward, self.backward) for key, features in kind.items()]
        for (key, features), measured in zip(keys, sums.measured, strict=True):
            for feature, row in zip(features, measured, strict=True):
                evidence.measured[key, feature] = row / (sums.samples * self.calls[key])
        for gradient in self.gradients:
            arrays = (numbers(total) / sums.samples for total in sums.totals[gradient])
            evidence.gradients[gradient] = dict(zip(self.weights, arrays, strict=True))
        return evidence


class _Sums:
    """Totals over batches: of each channel for feature maps, of each entry for weights."""

    def __init__(self, gradients: Sequence[Gradient]):
        self.samples, self.loss = 0, 0.0
        self.measured: list[NDArray[np.float64]] = []
        self.totals: dict[Gradient, list[Any]] = {gradient: [] for gradient in gradients}

    def add(self, samples: int, loss: Any, measured: list[Any], gradients: list[Any]) -> None:
        self.samples += samples
        self.loss += float(numbers(loss))
        arrays = [np.asarray(numbers(one), np.float64) for one in measured]
        self.measured = [a + b for a, b in zip(self.measured, arrays, strict=True)] if self.measured else arrays
        for gradient, before in self.totals.items():
            powers = [one * one for one in gradients] if gradient.power == 2 else gradients
            self.totals[gradient] = [a + b for a, b in zip(before, powers, strict=True)] if before else powers


def _measured(one: FeatureMap, features: Sequence[Feature], z: Any, gradient: Any) -> Any:
    """(features, labels): sums over the samples of a batch."""
    z = ops.cast(z, "float32")
    gradient = None if gradient is None else ops.cast(gradient, "float32")
    return ops.stack([ops.sum(feature.of(z, gradient, one.mean), axis=0) for feature in features])


def _differentiable(graph: ChannelGraph) -> list[Weight]:
    """The weights that hold channels."""
    weights = dict.fromkeys(slot.weight for slot in graph.labels.slots.values() if slot.kind in _DIFFERENTIATED)
    return [weight for weight in weights if "float" in str(graph.variables[weight].dtype)]


def _loss(model: Any, loss: Any) -> Callable[[Any, Any, Any], Any]:
    """(labels, outputs, weights of samples) -> a number; without touching what the model was compiled with."""
    weights = None
    if loss is None:
        if getattr(model, "compiled", False) and type(model).compute_loss is not keras.Model.compute_loss:
            return lambda y, outputs, weight: model.compute_loss(None, y, outputs, weight)
        loss = getattr(model, "loss", None)
        weights = getattr(getattr(model, "_compile_loss", None), "_user_loss_weights", None)
    if loss is None:
        raise DataError(f"gradients need a loss: give loss=, or compile {model.name} with one")
    try:
        known = keras.tree.map_structure(lambda one: keras.losses.get(one) if isinstance(one, str) else one, loss)
    except ValueError as error:
        raise DataError(f"there is no loss {loss!r}: {str(error).splitlines()[0]}") from error
    if not all(one is None or callable(one) for one in keras.tree.flatten(known)):
        raise DataError(f"loss= is a Keras loss, its name, a function, or one of these an output, and {loss!r} came")
    return CompileLoss(loss, weights, output_names=getattr(model, "output_names", None))
