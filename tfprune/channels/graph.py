"""ChannelGraph: what each channel of each tensor is, who writes it and who reads it."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tfprune.channels.labels import Indices, Labels, Shape
from tfprune.channels.ops import Contract, Narrowing, Op, Opaque, Recurrent
from tfprune.channels.parts import STATISTIC, named, share, side_of
from tfprune.channels.weights import Slot, Weight
from tfprune.tables import listed, table

if TYPE_CHECKING:
    from tfprune.channels.plan import PruningPlan


@dataclass(eq=False)
class Call:
    """One call of a layer (or ONNX node): what it was lowered to, and how it looks when it is narrower.

    Attributes:
        layer: its name, `outer/inner` in nested models.
        kind: its class.
        ops: the channel ops, in order.
        origin: the node of the model; the calls of a nested model that is called twice share it.
        arrays: argument number -> value, for arrays written into the model.
        configure: from where everything is in the smaller model to what changes in the layer's settings.
        rewrite: how the call is written where it cannot stay as it is: from the smaller model's positions, the
            operation and its new tensors to the result; None there says that it can stay.
        factors: weight -> by how much it is multiplied in the smaller model.
        masked: whether its output may carry a mask of positions, which would change if one of its inputs went.
    """

    layer: str
    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    ops: tuple[Op, ...]
    origin: Any = None
    configure: Callable[[Narrowing], dict[str, Any]] | None = None
    arrays: dict[int, int] = field(default_factory=dict)
    rewrite: Callable[..., Any] | None = None
    factors: dict[Weight, Callable[[Narrowing], float]] = field(default_factory=dict)
    masked: bool = False


@dataclass(frozen=True)
class Boundary:
    """A nested model's or composite layer's call: all its inputs and outputs exist if any output is needed.

    Attributes:
        body: the calls it consists of, as the rebuild walks them.
    """

    layer: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    origin: Any = None
    body: Any = None


class Member(NamedTuple):
    """The part of one weight that a channel group owns.

    Attributes:
        slot: where.
        positions: the slot's (flat) labels that belong to the group.
        channels: which of the group's channels each of them is.
    """

    slot: Slot
    positions: Indices
    channels: Indices

    @property
    def layer(self) -> str:
        return self.slot.weight.layer

    @property
    def role(self) -> str:
        """`write`, `read`, `depthwise`, `bias`, `scale`, `shift` or `statistic`."""
        return self.slot.kind


@dataclass(eq=False)
class ChannelGroup:
    """Channels that always go together across layers: one width of the model.

    Attributes:
        name: the first layer that writes them (with `#2`, ... where a layer writes several groups).
        units: which of the graph's units they are; a unit is what selection chooses as one.
        reason: why none of them may go; empty if they may.
        members: their parts of the weights.
        holds: the groups whose channels are inside of these: widths inside of attention heads.
    """

    name: str
    units: Indices
    reason: str
    members: list[Member] = field(default_factory=list)
    holds: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """How many channels there are to choose from."""
        return len(self.units)

    @property
    def prunable(self) -> bool:
        return not self.reason

    @property
    def writers(self) -> tuple[str, ...]:
        """The layers whose filters write the channels."""
        return self._layers("write")

    @property
    def readers(self) -> tuple[str, ...]:
        """The layers whose kernels read the channels."""
        return self._layers("read")

    @property
    def carriers(self) -> tuple[str, ...]:
        """The layers with weights of their own for each channel: depthwise convolutions, BatchNormalization."""
        return self._layers("depthwise", "scale", "shift", "statistic")

    def _layers(self, *roles: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(member.layer for member in self.members if member.slot.kind in roles))

    def __repr__(self) -> str:
        return f"<ChannelGroup {self.name}, width {self.width}, {self._state}>"

    def __str__(self) -> str:
        """What depends on the channels: each layer and weight, and how many numbers each channel has there."""
        sides: dict[tuple[str, str], list[Member]] = {}
        for member in self.members:
            sides.setdefault((member.layer, side_of(member.slot)), []).append(member)
        rows = []
        for (layer, side), members in sides.items():
            moving = [member for member in members if member.role == STATISTIC]
            trained = [member for member in members if member.role != STATISTIC]
            weights = list(dict.fromkeys(member.slot.weight for member in trained + moving))
            rows.append((layer, side, named(weights), self._numbers(trained), self._numbers(moving) or None))
        header = ("layer", "side", "in", "parameters a channel", "statistics")
        return table(f"{self.name}: {self.width} channels, {self._state}", header, rows)

    def _numbers(self, members: Sequence[Member]) -> float:
        """How many numbers one channel has in them."""
        numbers = sum(share(member.slot) * len(member.positions) for member in members) / self.width
        return int(numbers) if numbers == int(numbers) else numbers

    @property
    def _state(self) -> str:
        return "prunable" if self.prunable else f"stays: {self.reason}"


class ChannelGraph:
    """The channels of a model: values, the ops between them, and the groups they fall into.

    Built by `tfprune.trace`; printing it lists its channel groups.

    Attributes:
        name: the model's name.
        calls: the layers' calls, in an order in which they can run.
        shapes: value -> shape without the batch axis.
        inputs, outputs: the model's values.
        labels: value -> label array (`labels.of`), and where channels live in weights (`labels.slots`).
        channel_of: label -> channel: what strip keeps or removes as one.
        unit_of: label -> unit: what selection chooses as one (coarser for grouped convolutions).
        model: the traced model; `variables` finds a weight's variable in it.
        body: the calls it consists of, as the rebuild walks them.
        vectors_anywhere: whether the model can be given a scale or shift along any axis, or the last alone.
    """

    def __init__(
        self,
        name: str,
        calls: Sequence[Call],
        shapes: dict[int, Shape],
        inputs: Sequence[int],
        outputs: Sequence[int],
        boundaries: Sequence[Boundary] = (),
        model: Any = None,
        variables: dict[Weight, Any] | None = None,
        body: Any = None,
        read: Callable[[Any], NDArray] = np.asarray,
        vectors_anywhere: bool = False,
    ):
        self.vectors_anywhere = vectors_anywhere
        self.read = read
        self.name, self.shapes, self.model, self.variables, self.body = name, shapes, model, variables or {}, body
        self.inputs, self.outputs, self.boundaries = tuple(inputs), tuple(outputs), tuple(boundaries)
        self.calls = list(calls)
        self.labels = Labels()
        self.ops: list[Op] = []
        self._label()
        self.channel_of = self.labels.channels()
        self.unit_of = self.labels.units()
        self._protect_containers()

    def _label(self) -> None:
        kernels = Counter(op.kernel for call in self.calls for op in call.ops if isinstance(op, Contract | Recurrent))
        for call in self.calls:
            for op in call.ops:
                reason = op.obstacle(self.labels, self.shapes)
                if reason is not None:
                    op = Opaque(op.layer, op.inputs, op.outputs, reason)
                elif isinstance(op, Contract | Recurrent):
                    op.shared = kernels[op.kernel] > 1
                op = op.settled(self.labels, self.shapes)
                op.label(self.labels, self.shapes)
                self.ops.append(op)
        for value in self.outputs:
            self.labels.protect(self.labels.of[value], "it is an output of the model")

    def _protect_containers(self) -> None:
        """A head stays if anything inside must, or is inside of another that stays."""
        for outer, inner in self.labels.contained:
            channels, units = self.channel_of[inner], self.unit_of[outer]
            least, most = np.full(self.channels, self.units), np.full(self.channels, -1)
            np.minimum.at(least, channels, units)
            np.maximum.at(most, channels, units)
            torn = least[channels] < most[channels]
            if torn.any():
                self.labels.protect(outer[torn], "what it contains is the same channel in each of its like")
            reason_of = np.full(self.channels, -1)
            for number, (labels, _) in reversed(list(enumerate(self.labels.protections))):
                reason_of[self.channel_of[labels]] = number
            reasons = reason_of[channels]
            for number in np.unique(reasons[reasons >= 0]).tolist():
                self.labels.protect(outer[reasons == number], self.labels.protections[number][1])

    def weight(self, weight: Weight) -> NDArray:
        """A weight's array, read from the traced model."""
        return self.read(self.variables[weight])

    @cached_property
    def weights(self) -> tuple[Weight, ...]:
        """Every weight of the model, in the order of its layers."""
        return tuple(dict.fromkeys([*(w for op in self.ops for w in op.weights()), *self.variables]))

    @cached_property
    def producer(self) -> dict[int, Op]:
        """value -> the op that makes it."""
        return {value: op for op in self.ops for value in op.outputs}

    @cached_property
    def protected(self) -> dict[int, str]:
        """channel -> why it may not go."""
        reasons: dict[int, str] = {}
        for labels, reason in self.labels.protections:
            for channel in np.unique(self.channel_of[labels]).tolist():
                reasons.setdefault(channel, reason)
        return reasons

    @cached_property
    def opaque(self) -> tuple[Opaque, ...]:
        """The ops that could not be followed."""
        return tuple(op for op in self.ops if isinstance(op, Opaque))

    def channels_of(self, units: Indices) -> NDArray[np.bool_]:
        """The mask over channels of some units."""
        chosen = np.zeros(self.units, bool)
        chosen[units] = True
        result = np.zeros(self.channels, bool)
        result[self.channel_of] = chosen[self.unit_of]
        return self.with_contents(result)

    def with_contents(self, gone: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """A mask over channels, with all channels inside of those that go."""
        outer, inner = self.contained
        gone = gone.copy()
        while len(inner) and not gone[inner[gone[outer]]].all():
            gone[inner[gone[outer]]] = True
        return gone

    def with_containers(self, gone: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """A mask over channels, with those (attention heads) of which nothing inside is left."""
        outer, inner = self.contained
        if not len(outer):
            return gone
        emptied = np.zeros(self.channels, bool)
        emptied[outer] = True
        emptied[outer[~gone[inner]]] = False
        return gone | emptied

    @cached_property
    def contained(self) -> tuple[Indices, Indices]:
        """(outer, inner) channels, pairwise: the inner one goes when the outer one does."""
        pairs = [np.zeros((2, 0), np.intp), *(np.stack(pair) for pair in self.labels.contained)]
        outer, inner = self.channel_of[np.unique(np.concatenate(pairs, axis=1), axis=1)]
        return outer, inner

    @cached_property
    def channels(self) -> int:
        """How many channels there are."""
        return int(self.channel_of.max(initial=-1)) + 1

    @cached_property
    def units(self) -> int:
        """How many units there are."""
        return int(self.unit_of.max(initial=-1)) + 1

    @cached_property
    def groups(self) -> list[ChannelGroup]:
        """The channel groups that some layer writes, in the order of their first writers."""
        group_of, reasons = self._group_units()
        order = np.argsort(group_of, kind="stable")
        bounds = np.searchsorted(group_of[order], np.arange(len(reasons) + 1))
        within = np.empty(self.units, np.intp)
        within[order] = np.arange(self.units) - bounds[group_of[order]]
        groups = [
            ChannelGroup("", order[start:stop], reason)
            for start, stop, reason in zip(bounds[:-1], bounds[1:], reasons, strict=True)
        ]
        for slot in self.labels.slots.values():
            units = self.unit_of[slot.labels.ravel()]
            owners = group_of[units]
            for positions in _runs(owners):
                groups[owners[positions[0]]].members.append(Member(slot, positions, within[units[positions]]))
        holds = self._contents(groups, group_of, within)
        names = {int(group_of[self.unit_of[label]]): name for label, name in reversed(self.labels.names.items())}
        for number, group in enumerate(groups):
            group.name = names.get(number, "")
        named = _named([group for group in groups if group.writers])
        for number, inside in holds.items():
            groups[number].holds = tuple(groups[other].name for other in inside if groups[other].writers)
        return named

    def _contents(self, groups: list[ChannelGroup], group_of: Indices, within: Indices) -> dict[int, list[int]]:
        """Add to groups of heads the weights of the channels inside; group -> the groups inside."""
        outer, inner = (self._unit_of_channel[part] for part in self.contained)
        holds: dict[int, list[int]] = {}
        for number in np.unique(group_of[outer]).tolist():
            mine = group_of[outer] == number
            holds[number] = np.unique(group_of[inner[mine]]).tolist()
            head_of = np.full(self.channels, -1)
            head_of[self.contained[1][mine]] = within[outer[mine]]
            for slot in self.labels.slots.values():
                heads = head_of[self.channel_of[slot.labels.ravel()]]
                positions = np.flatnonzero(heads >= 0)
                if len(positions):
                    groups[number].members.append(Member(slot, positions, heads[positions]))
        return holds

    @cached_property
    def _unit_of_channel(self) -> Indices:
        result = np.zeros(self.channels, np.intp)
        result[self.channel_of] = self.unit_of
        return result

    def _group_units(self) -> tuple[Indices, list[str]]:
        """unit -> group, and each group's reason to stay.

        Units with labels from the same blocks and the same protection form a group. A block's mark is a random
        64-bit number (seeded) and a unit's the sum of its blocks', so that equal sets get equal sums.
        """
        blocks = np.searchsorted(self.labels.blocks, np.arange(self.labels.count), side="right") - 1
        reasons = [""] * self.units
        for labels, reason in self.labels.protections:
            for unit in np.unique(self.unit_of[labels]).tolist():
                reasons[unit] = reasons[unit] or reason
        texts = {text: index for index, text in enumerate(dict.fromkeys(reasons))}
        generator = np.random.default_rng(0)
        top = np.iinfo(np.uint64).max
        marks = generator.integers(0, top, len(self.labels.blocks), np.uint64)
        text_marks = generator.integers(0, top, len(texts), np.uint64)
        sums = text_marks[[texts[reason] for reason in reasons]]
        np.add.at(sums, self.unit_of, marks[blocks])
        _, first, inverse = np.unique(sums, return_index=True, return_inverse=True)
        rank = np.argsort(np.argsort(first))
        return rank[inverse], [reasons[index] for index in np.sort(first)]

    def group(self, name: str) -> ChannelGroup:
        """The group with this name, or that this layer writes first.

        Raises:
            KeyError: there is none.
        """
        named = [group for group in self.groups if group.name == name]
        for group in named or [group for group in self.groups if name in group.writers]:
            return group
        raise KeyError(name)

    def plan(self, layer: str | Mapping[str, Sequence[int]], channels: Sequence[int] | None = None) -> PruningPlan:
        """A plan that takes these channels, and with them whatever depends on them; nothing is changed.

        Args:
            layer: the name of a layer, whose output channels are counted, or of a channel group. For several at once a
                dictionary from names to channels.
            channels: which go, counted from 0.

        Returns:
            a `PruningPlan`; print it to see every layer and weight it touches, and how many parameters go.

        Raises:
            PlanError: there is no such layer or channel, one is named twice or may not go, or nothing would be left.

        >>> import keras, tfprune
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(8, 3, name="a"),
        ...                           keras.layers.Conv2D(4, 3, name="b")], name="two")
        >>> print(tfprune.trace(model).plan("a", channels=[2, 6]).details())
         layer   loses                    of                       parameters
         ────────────────────────────────────────────────────────────────────
         a       output channels [2, 6]   kernel 3x3x3x8, bias 8           56
         b       input channels [2, 6]    kernel 3x3x8x4                   72
        128 parameters go
        """
        from tfprune.channels.plan import PruningPlan  # which is made of this module

        return PruningPlan.from_layers(
            self, {layer: () if channels is None else channels} if isinstance(layer, str) else layer
        )

    def replaced(self, replacements: dict[int, tuple[Op, ...]]) -> ChannelGraph:
        """The same graph with other ops for some calls (by number), and without what nobody needs any more."""
        calls = [copy.copy(call) for call in self.calls]
        for index, call in enumerate(calls):
            call.ops = replacements.get(index, call.ops)
            call.inputs = (
                tuple(value for op in call.ops for value in op.inputs) if index in replacements else call.inputs
            )
        needed = needed_values(calls, self.outputs, self.boundaries)
        alive = [call for call in calls if not call.inputs or any(value in needed for value in call.outputs)]
        for call in alive:
            call.ops = tuple(copy.copy(op) for op in call.ops)
        boundaries = [b for b in self.boundaries if any(value in needed for value in b.outputs)]
        return ChannelGraph(
            self.name,
            alive,
            self.shapes,
            self.inputs,
            self.outputs,
            boundaries,
            self.model,
            self.variables,
            self.body,
            self.read,
            self.vectors_anywhere,
        )

    def __str__(self) -> str:
        rows = [
            (group.name, group.width, listed(group.writers), listed(group.readers), group.reason or "prunable")
            for group in self.groups
        ]
        prunable = sum(group.prunable for group in self.groups)
        title = f"{self.name}: {len(rows)} channel groups, {prunable} prunable"
        parts = [table(title, ("group", "width", "written by", "read by", ""), rows)]
        parts += [f"opaque: {op.reason}" for op in self.opaque]
        return "\n".join(parts)

    def __repr__(self) -> str:
        prunable = sum(group.prunable for group in self.groups)
        return f"<ChannelGraph of {self.name}: {len(self.calls)} calls, {len(self.groups)} groups, {prunable} prunable>"


def needed_values(calls: Iterable[Call], outputs: Sequence[int], boundaries: Sequence[Boundary]) -> set[int]:
    """The values that the outputs depend on."""
    ordered = list(calls)
    needed = set(outputs)
    size = -1
    while size != len(needed):
        size = len(needed)
        for call in reversed(ordered):
            if any(value in needed for value in call.outputs):
                needed.update(call.inputs)
        for boundary in boundaries:
            if any(value in needed for value in boundary.outputs):
                needed.update(boundary.inputs, boundary.outputs)
    return needed


def _runs(owners: Indices) -> list[Indices]:
    """The positions of each different entry, ascending."""
    positions = np.arange(len(owners))
    cuts = [0, *(np.flatnonzero(owners[1:] != owners[:-1]) + 1).tolist(), len(owners)]
    if len(cuts) == 2:
        return [positions]
    # Concatenation puts groups behind each other: a run each.
    if len(set(owners[cuts[:-1]].tolist())) < len(cuts) - 1:
        positions = np.argsort(owners, kind="stable")
        cuts = [0, *(np.flatnonzero(np.diff(owners[positions])) + 1).tolist(), len(owners)]
    return [positions[start:stop] for start, stop in itertools.pairwise(cuts)]


def _named(groups: list[ChannelGroup]) -> list[ChannelGroup]:
    seen: Counter[str] = Counter()
    for group in groups:
        writer = group.name or group.writers[0]
        seen[writer] += 1
        group.name = writer if seen[writer] == 1 else f"{writer}#{seen[writer]}"
    return groups
