"""Strip: remove what the weights prove removable, and prove the result equal."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfprune.carry import carry
from tfprune.channels.facts import prove, reasons, removable
from tfprune.channels.graph import ChannelGraph
from tfprune.channels.narrow import narrow
from tfprune.channels.ops import Facts, Narrowing
from tfprune.channels.plan import PruningPlan
from tfprune.channels.simplify import Replacement, simplify
from tfprune.channels.weights import Weight
from tfprune.cost import Cost, compare_table, cost
from tfprune.errors import PlanError, Refusal
from tfprune.frontend import is_onnx, rebuild, trace
from tfprune.soft import zeros_in
from tfprune.verify import Verification
from tfprune.verify import verify as verified

_LARGE = 1 << 26  # bytes


@dataclass(frozen=True)
class StripResult:
    """A smaller model and its proof.

    Attributes:
        model: plain Keras, which saves and loads where tfprune is not installed; or an `onnx.ModelProto`.
        plan: what was removed.
        removed_layers: layers that are gone altogether.
        refusals: what was zero, or asked for, and stayed, and why.
        verification: how far the outputs are from the model's with the same channels zeroed; None if not asked for.
        cost_before, cost_after: of the model given and of the stripped one.
        seconds: how long each step took.
        notes: what could not be carried over of an optimizer's state.
        moved: with a plan, how far the outputs are from the model's as it was given; None if not asked for.
    """

    model: Any
    plan: PruningPlan
    removed_layers: tuple[str, ...]
    refusals: tuple[Refusal, ...]
    verification: Verification | None
    cost_before: Cost
    cost_after: Cost
    seconds: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    moved: Verification | None = None

    @property
    def lossless(self) -> bool | None:
        """Whether the model computes what it did before: what went was zero, or not read. None if not verified."""
        proof = self.verification if self.moved is None else self.moved
        return None if proof is None else proof.equal

    def __str__(self) -> str:
        if not self.plan and not self.removed_layers:
            what = "nothing could be removed" if self.refusals else "there was nothing to remove"
            parts = [f"{self.cost_before.name}: {what}; the model is as it was"]
        else:
            parts = [compare_table(self.cost_before, self.cost_after)]
        if self.removed_layers:
            parts.append(f"layers removed: {', '.join(self.removed_layers)}")
        parts += [str(refusal) for refusal in self.refusals]
        parts += self.notes
        if self.verification is not None:
            parts.append(f"stripped against soft-pruned: {self.verification}")
        if self.moved is not None and not self.lossless:
            parts.append(f"not lossless: the outputs moved by {self.moved.relative:.2g} of the largest output")
        return "\n".join(parts)


def strip(
    model: Any,
    plan: PruningPlan | None = None,
    *,
    verify: bool = True,
    tolerance: float | None = None,
    samples: int = 2,
    seed: int = 0,
    carry_optimizer: bool = False,
) -> StripResult:
    """Rebuild a model without its zeros, or without a plan's channels.

    No memory of how the zeros came about is needed: the weights are read, channels that are provably constant or
    never read are found, and the model is built again without them. Constants other than 0 are folded into biases.
    Sums and products with a constant side disappear with the branch that fed them.

    Args:
        model: any model that `tfprune.trace` can follow, Keras or ONNX. It is not changed.
        plan: remove these channels and no others; as if `soft_prune(model, plan)` had come first. None: everything
            that is provably removable.
        verify: compare the outputs on random inputs before returning.
        tolerance: the largest difference allowed, a fraction of the largest output; by default 1e-5 for float32 and
            1e-12 for float64.
        samples, seed: of the random inputs.
        carry_optimizer: compile the stripped model as `model` is compiled, with what is left of its optimizer's state,
            so that training goes on: momentum and the like lose the slices that their variables lose; iterations and
            learning rate are kept. Otherwise the stripped model is not compiled. For Keras models.

    Returns:
        a `StripResult`; print it for the table. The model in it is Sequential where `model` is, functional otherwise,
        with inputs and outputs in the same order and structure; an `onnx.ModelProto` where `model` is ONNX, with the
        same names.

    Raises:
        TraceError: the model cannot be read as a graph.
        PlanError: the plan was made for another model, or an optimizer is to be carried over that ONNX does not have.
        VerificationError: the outputs differ. The wrong model is not returned.

    >>> import keras, tfprune
    >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(8, 3), keras.layers.Flatten(),
    ...                           keras.layers.Dense(2)])
    >>> tfprune.soft_prune(model, tfprune.select(model, "l1", ratio=0.5))
    >>> tfprune.strip(model).model.layers[0].filters
    4
    """
    clock = _Clock()
    if carry_optimizer and is_onnx(model):
        raise PlanError("carry_optimizer=True needs a Keras model: an ONNX model has no optimizer")
    original = trace(model)
    model = original.model  # where a path was given
    clock.lap("trace")
    left = outcome(original, plan)
    graph = left.graph
    clock.lap("plan")
    rebuilt = rebuild(graph, left.facts, left.new, left.replacements)
    stripped = rebuilt.model
    clock.lap("rebuild")
    verification = moved = None
    if verify:
        compared = functools.partial(verified, model, stripped, samples=samples, seed=seed, tolerance=tolerance)
        verification = compared(weights=() if plan is None else zeros_in(model, plan))
        verification.raise_if_different(f"stripping {original.name}")
        moved = None if plan is None else compared()
        clock.lap("verify")
    notes: tuple[str, ...] = ()
    if carry_optimizer:
        notes = carry(model, rebuilt)
        clock.lap("carry")
    smaller = trace(stripped)
    return StripResult(
        model=stripped,
        plan=PruningPlan(graph, ~left.keep, request="what is provably removable" if plan is None else plan.request),
        removed_layers=_removed_layers(original, smaller),
        refusals=_refusals(graph, {**reasons(graph, left.facts, left.asked & left.keep), **left.returned}),
        verification=verification,
        cost_before=cost(original),
        cost_after=cost(smaller),
        seconds=clock.laps,
        notes=notes,
        moved=moved,
    )


@dataclass(frozen=True)
class Outcome:
    """What stripping will leave, found before anything is rebuilt.

    Attributes:
        graph: without the sums and products that have a constant side, which `replacements` became.
        facts: what its weights prove.
        new: where everything is in the smaller model.
        keep: channel of `graph` -> whether it stays.
        asked: channel -> whether it was to go.
        returned: channel -> why it had to come back.
    """

    graph: ChannelGraph
    facts: Facts
    replacements: dict[int, Replacement]
    new: Narrowing
    keep: NDArray[np.bool_]
    asked: NDArray[np.bool_]
    returned: dict[int, str]


def outcome(original: ChannelGraph, plan: PruningPlan | None = None) -> Outcome:
    """Find what `strip` will leave of a model, with a plan or without one.

    Raises:
        PlanError: the plan was made for another model.
    """
    graph, facts, replacements = _simplified(original, plan)
    wanted = removable(graph, facts)
    asked = _asked(graph, facts) if plan is None else plan.onto(graph) | _whole(graph, plan.layers)
    if plan is not None:
        wanted &= asked
    new, returned = narrow(graph, ~wanted, facts.constant)
    keep = np.zeros(graph.channels, bool)
    keep[graph.channel_of[new.keep]] = True
    return Outcome(graph, facts, replacements, new, keep, asked, returned)


def _whole(graph: ChannelGraph, layers: tuple[str, ...]) -> NDArray[np.bool_]:
    """channel -> whether one of these layers writes it."""
    result = np.zeros(graph.channels, bool)
    for slot in graph.labels.slots.values():
        if slot.role == "write" and slot.weight.layer in layers:
            result[graph.channel_of[slot.labels.ravel()]] = True
    return result


def _simplified(graph: ChannelGraph, plan: PruningPlan | None) -> tuple[ChannelGraph, Facts, dict[int, Replacement]]:
    """The graph without sums and products that have a constant side, its facts, and what those became."""
    weight = _remembered(graph.weight if plan is None else _as_planned(graph, plan))
    facts = prove(graph, weight)
    replacements: dict[int, Replacement] = {}
    while plan is None or plan.layers:
        simple = simplify(graph, facts)
        if not simple.replacements:
            break
        replacements.update(simple.replacements)
        graph = simple.graph
        facts = prove(graph, simple.weight, facts.tables if simple.weight is facts.weight else None)
    return graph, facts, replacements


def _remembered(read: Callable[[Weight], NDArray]) -> Callable[[Weight], NDArray]:
    """Facts, constants and the rebuild all look at the same arrays; of large ones none is held between two looks."""
    held: dict[Weight, NDArray] = {}

    def weight(which: Weight) -> NDArray:
        if which in held:
            return held[which]
        array = read(which)
        if array.nbytes <= _LARGE:
            held[which] = array
        return array

    return weight


def _as_planned(graph: ChannelGraph, plan: PruningPlan) -> Callable[[Weight], NDArray]:
    """The weights as they are once the plan's slices are zeroed."""
    plan.onto(graph)
    own = {weight.key: weight for weight in plan.zeros_of}

    def weight(which: Weight) -> NDArray:
        array = graph.weight(which)
        return plan.zeroed(own[which.key], array) if which.key in own else array

    return weight


def _asked(graph: ChannelGraph, facts: Facts) -> NDArray[np.bool_]:
    """channel -> whether some layer's filter for it is all zeros, so that a user would expect it to go."""
    result = np.zeros(graph.channels, bool)
    for op in graph.ops:
        for kernel, dead in op.dead(facts).items():
            labels = graph.labels.slots[kernel, "write"].labels
            result[graph.channel_of[labels.ravel()[dead]]] = True
    return result


def _refusals(graph: ChannelGraph, found: dict[int, str]) -> tuple[Refusal, ...]:
    """One refusal a layer and reason, with the indices along the layer's filters."""
    grouped: dict[tuple[str, str], list[int]] = {}
    for slot in graph.labels.slots.values():
        if slot.role != "write":
            continue
        channels = graph.channel_of[slot.labels.ravel()].tolist()
        for index, channel in enumerate(channels):
            if channel in found:
                grouped.setdefault((slot.weight.layer, found[channel]), []).append(index)
    return tuple(Refusal(layer, tuple(indices), reason) for (layer, reason), indices in grouped.items())


def _removed_layers(before: ChannelGraph, after: ChannelGraph) -> tuple[str, ...]:
    left = {call.layer for call in after.calls}
    return tuple(dict.fromkeys(call.layer for call in before.calls if call.layer not in left))


class _Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._last = now
