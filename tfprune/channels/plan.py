"""PruningPlan: what goes from which weight, and why other channels stay. Printed before anything happens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfprune.channels.forecast import Forecast
from tfprune.channels.graph import ChannelGraph, ChannelGroup
from tfprune.channels.ops import Affine, Contract
from tfprune.channels.parts import Loss, Part, as_table, parts, total
from tfprune.channels.weights import Slot, Weight
from tfprune.errors import PlanError, Refusal, nearest
from tfprune.tables import listed, table


def zeroable(graph: ChannelGraph) -> list[Slot]:
    """Where channels live in weights that soft pruning zeroes: all but statistics and slopes."""
    return [slot for slot in graph.labels.slots.values() if is_zeroed(slot)]


def is_zeroed(slot: Slot) -> bool:
    """Whether soft pruning zeroes what lives in a slot: what statistics and slopes act on is 0 already."""
    return not slot.role.startswith(("statistic", "slope"))


@dataclass(frozen=True)
class PruningPlan:
    """Which channels of a graph go, and which whole layers are zeroed.

    Made by `tfprune.select`; applied by `tfprune.soft_prune` (zeroes them) and `tfprune.strip` (removes them).

    Attributes:
        graph: the traced model.
        gone: channel -> whether it goes.
        layers: convolutions that are zeroed whole.
        refusals: groups that stay although they were in scope, and why.
        request: what was asked for, in words.
        forecast: what stripping will leave, where a budget was asked for.
    """

    graph: ChannelGraph
    gone: NDArray[np.bool_]
    layers: tuple[str, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    request: str = ""
    redundancies: dict[str, NDArray] = field(default_factory=dict, repr=False)
    forecast: Forecast | None = None

    @cached_property
    def channels(self) -> dict[str, tuple[int, ...]]:
        """group name -> indices that go, along the group's width; groups that lose nothing are left out."""
        of_unit = np.zeros(self.graph.units, bool)
        # What went with its head says nothing of the width of the other heads.
        outer, inner = self.graph.contained
        alone = self.gone.copy()
        alone[inner[self.gone[outer]]] = False
        of_unit[self.graph.unit_of[alone[self.graph.channel_of]]] = True
        found = {group.name: tuple(np.flatnonzero(of_unit[group.units]).tolist()) for group in self.graph.groups}
        return {name: indices for name, indices in found.items() if indices}

    @property
    def pruned(self) -> int:
        """How many channels go, counted once a group."""
        return sum(map(len, self.channels.values()))

    @cached_property
    def parts(self) -> list[Part]:
        """What each layer loses, in the order of the model; what stays where it is for lack of a slot is not here."""
        return parts(self.losses())

    @property
    def parameters(self) -> int:
        """How many trained numbers go with the channels."""
        return sum(part.parameters for part in self.parts)

    @property
    def statistics(self) -> int:
        """How many moving means and variances go with them."""
        return sum(part.statistics for part in self.parts)

    def losses(self) -> Iterator[Loss]:
        """(slot, which of its flat labels go), for every weight that loses something, moving statistics among them."""
        whole = self._whole_weights()
        for slot in self.graph.labels.slots.values():
            gone = self.gone[self.graph.channel_of[slot.labels.ravel()]]
            if slot.weight in whole and slot.role != "read":
                gone = np.ones_like(gone)
            if gone.any():
                yield slot, gone

    def __bool__(self) -> bool:
        return bool(self.gone.any() or self.layers)

    def zeros(self) -> Iterator[tuple[Slot, NDArray[np.bool_]]]:
        """(slot, which of its flat labels are zeroed), for every weight the plan touches.

        Kernels (both sides), biases, BatchNormalization's gamma and beta. Statistics and slopes stay: what they act on
        is 0.
        """
        return ((slot, gone) for slot, gone in self.losses() if is_zeroed(slot))

    def _whole_weights(self) -> set[Weight]:
        """The weights of whole layers: the kernel and bias, and the scale and shift right behind them."""
        found: set[Weight] = set()
        readers: dict[int, list] = {}
        for op in self.graph.ops:
            for value in op.inputs:
                readers.setdefault(value, []).append(op)
        for op in self.graph.ops:
            if not isinstance(op, Contract) or op.layer not in self.layers:
                continue
            found.update(op.weights())
            after = readers.get(op.output, [])
            while len(after) == 1 and isinstance(after[0], Affine):
                found.update(w for w, role in after[0].parameters if role in ("scale", "shift"))
                after = readers.get(after[0].output, [])
        return found

    def zeroed(self, weight: Weight, array: NDArray) -> NDArray:
        """A copy of a weight with the plan's slices zeroed; the array itself where there are none."""
        slots = self.zeros_of.get(weight, ())
        if slots:
            array = array.copy()
        for slot, gone in slots:
            np.copyto(array.reshape(slot.split), 0, where=slot.mask(gone))
        return array

    @cached_property
    def zeros_of(self) -> dict[Weight, list[tuple[Slot, NDArray[np.bool_]]]]:
        """weight -> (slot, zeroed labels) of each of its slots."""
        found: dict[Weight, list[tuple[Slot, NDArray[np.bool_]]]] = {}
        for slot, gone in self.zeros():
            found.setdefault(slot.weight, []).append((slot, gone))
        return found

    def onto(self, graph: ChannelGraph) -> NDArray[np.bool_]:
        """channel of another graph of the same weights -> whether the plan takes it.

        Raises:
            PlanError: a weight the plan touches is missing there, or has another shape.
        """
        if graph is self.graph:
            return self.gone
        slots = {(slot.weight.key, slot.role): slot for slot in graph.labels.slots.values()}
        shapes = {weight.key: weight.shape for weight in graph.weights}
        result = np.zeros(graph.channels, bool)
        for own in self.graph.labels.slots.values():
            gone = self.gone[self.graph.channel_of[own.labels.ravel()]]
            if not gone.any():
                continue
            if shapes.get(own.weight.key) != own.weight.shape:
                raise PlanError(
                    f"the plan was made for another model: there {own.weight.key} has shape {own.weight.shape}, in "
                    f"{graph.name} {shapes.get(own.weight.key, 'it does not exist')}; "
                    f"make a new plan with tfprune.select"
                )
            other = slots.get((own.weight.key, own.role))
            if other is None:  # what read it is gone with a branch
                continue
            result[graph.channel_of[other.labels.ravel()[gone]]] = True
        return graph.with_containers(graph.with_contents(result))

    def to_json(self) -> str:
        """The plan as JSON: group names and channel indices; read back by `from_json` with the same model."""
        return json.dumps(
            {
                "request": self.request,
                "groups": {name: list(indices) for name, indices in self.channels.items()},
                "widths": {group.name: group.width for group in self.graph.groups if group.name in self.channels},
                "layers": list(self.layers),
            }
        )

    @classmethod
    def from_groups(
        cls, graph: ChannelGraph, groups: dict[str, list[int]], layers: tuple[str, ...] = (), request: str = ""
    ) -> PruningPlan:
        """A plan from group names and channel indices.

        Raises:
            PlanError: a group does not exist or has no such channels.
        """
        gone = np.zeros(graph.channels, bool)
        named = {group.name: group for group in graph.groups}
        units = []
        for name, indices in groups.items():
            group = named.get(name)
            if group is None:
                try:
                    group = graph.group(name)
                except KeyError as error:
                    raise PlanError(f"{graph.name} has no channel group {name!r}") from error
            wrong = [index for index in indices if not 0 <= index < group.width]
            if wrong:
                raise PlanError(f"channel group {name!r} has channels 0 to {group.width - 1}; the plan names {wrong}")
            if indices and not group.prunable:
                raise PlanError(f"channel group {name!r} stays: {group.reason}")
            units.append(group.units[np.asarray(indices, np.intp)])
        if units:
            gone = graph.channels_of(np.concatenate(units))
        return cls(graph, gone, tuple(layers), request=request)

    @classmethod
    def from_layers(cls, graph: ChannelGraph, wanted: Mapping[str, Sequence[int]]) -> PruningPlan:
        """A plan from names of layers (or groups) and channels; see `ChannelGraph.plan`.

        Raises:
            PlanError: there is no such layer or channel, one is named twice or may not go, or nothing would be left.
        """
        if not wanted:
            raise PlanError("name at least one layer and its channels: graph.plan('conv1', channels=[2, 6, 9])")
        owners = {int(unit): group for group in graph.groups for unit in group.units}
        chosen: dict[str, set[int]] = {}
        for name, channels in wanted.items():
            candidates = _units_of(graph, name)
            for unit in np.unique(candidates[checked(name, channels, len(candidates))]).tolist():
                group = owners.get(unit)
                if group is None or not group.prunable:
                    reason = group.reason if group else "no layer's filters write them"
                    raise PlanError(f"the channels of {name!r} stay: {reason}")
                chosen.setdefault(group.name, set()).add(unit)
        for name, units in chosen.items():
            _something_left(graph.group(name), units)
        gone = graph.channels_of(np.array(sorted(set().union(*chosen.values())), np.intp))
        request = ", ".join(f"{name} [{listed([str(c) for c in channels], 8)}]" for name, channels in wanted.items())
        return cls(graph, gone, request=request)

    @classmethod
    def from_json(cls, text: str, graph: ChannelGraph) -> PruningPlan:
        """Read a plan that `to_json` wrote, for the same model.

        Raises:
            PlanError: it is damaged, or was made for another model.
        """
        try:
            data = json.loads(text)
            groups, layers = dict(data["groups"]), tuple(data["layers"])
        except (ValueError, KeyError, TypeError) as error:
            raise PlanError(f"this is not a pruning plan: {error}") from error
        for name, width in data.get("widths", {}).items():
            found = {group.name: group.width for group in graph.groups}.get(name)
            if found != width:
                raise PlanError(f"the plan was made for another model: group {name!r} had width {width}, here {found}")
        return cls.from_groups(graph, groups, layers, data.get("request", ""))

    def to_state(self) -> dict[str, Any]:
        """The plan as JSON for another start of the same program: group names and layers count by their place."""
        return {**json.loads(self.to_json()), "names": _names(self.graph)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], graph: ChannelGraph) -> PruningPlan:
        """Read what `to_state` gave, for the same model.

        Its layers may have other names: in one process, Keras numbers those without a name on.

        Raises:
            PlanError: it was made for another model.
        """
        now, renamed = _names(graph), dict(state)
        for kind, was in renamed.pop("names").items():
            if len(was) != len(now[kind]):
                raise PlanError(f"the plan is of a model with {len(was)} {kind}, and {graph.name} has {len(now[kind])}")
            found = dict(zip(was, now[kind], strict=True))
            if kind == "layers":
                renamed["layers"] = [found[name] for name in state["layers"]]
            else:
                renamed |= {part: {found[k]: v for k, v in state[part].items()} for part in ("groups", "widths")}
        return cls.from_json(json.dumps(renamed), graph)

    def __str__(self) -> str:
        rows = []
        for group in self.graph.groups:
            gone = self.channels.get(group.name, ())
            if gone:
                shown = listed([str(index) for index in gone], most=8)
                rows.append((group.name, group.width, group.width - len(gone), shown))
        title = f"{self.graph.name}: {self.pruned} channels go" + (f" ({self.request})" if self.request else "")
        lines = [table(title, ("group", "width", "left", "channels that go"), rows)] if rows else []
        lines = lines or [f"{title}: nothing is pruned"]
        if self:
            layers = len({part.layer for part in self.parts})
            short = f"{total(self.parts)}, from {layers} layers; plan.details() lists them"
            lines.append(f"\n{self.details()}" if len(self.parts) <= _FEW else short)
        lines += [f"{layer}: zeroed whole; what only it reads goes with it when stripped" for layer in self.layers]
        lines += [] if self.forecast is None else [str(self.forecast)]
        lines += [str(refusal) for refusal in self.refusals]
        return "\n".join(lines)

    def details(self) -> str:
        """Every layer and weight that the plan touches, how many parameters go from each, and the sum."""
        if not self:
            return "nothing is pruned"
        passing = self._passing()
        through = f"\nlayers without weights that they pass through: {', '.join(passing)}" if passing else ""
        return as_table("", self.parts) + through

    def _passing(self) -> list[str]:
        """The layers that have the channels as inputs or outputs, and no weights for them."""
        known = {part.layer for part in self.parts}
        found = {}
        for call in self.graph.calls:
            labels = [self.graph.labels.of[value].ravel() for value in (*call.inputs, *call.outputs)]
            if any(self.gone[self.graph.channel_of[own]].any() for own in labels):
                found[call.layer] = call.layer in known or any(part.startswith(f"{call.layer}/") for part in known)
        return [layer for layer, weighs in found.items() if not weighs]


def _names(graph: ChannelGraph) -> dict[str, list[str]]:
    """Of a graph's channel groups and layers, in order."""
    groups = [group.name for group in graph.groups]
    return {"groups": groups, "layers": list(dict.fromkeys(op.layer for op in graph.ops))}


_FEW = 24  # so many rows are printed with the plan itself


def checked(name: str, channels: Sequence[int], width: int) -> NDArray[np.intp]:
    """Indices of channels that exist, each named once.

    Raises:
        PlanError: one does not exist, or is named twice, or none are named.
    """
    numbers = list(channels) if isinstance(channels, Iterable) and not isinstance(channels, str) else [channels]
    if not numbers or channels is None:
        raise PlanError(f"name the channels of {name!r} that go; none came")
    for number in numbers:
        if isinstance(number, bool | np.bool_) or not isinstance(number, int | np.integer):
            raise PlanError(f"the channels of {name!r} are a list of whole numbers, and {number!r} came")
    wrong = [int(number) for number in numbers if not 0 <= number < width]
    if wrong:
        raise PlanError(f"{name!r} has channels 0 to {width - 1}, and {wrong} came")
    twice = sorted({int(n) for n in numbers if numbers.count(n) > 1})
    if twice:
        raise PlanError(f"the channels {twice} of {name!r} are named twice")
    return np.array(numbers, np.intp)


def slots_of(graph: ChannelGraph, layer: str) -> list[Slot]:
    """Where channels live in a layer's weights, those of the layers inside of it among them (an LSTM's cell)."""
    used = {weight for op in graph.ops if op.layer == layer for weight in op.weights()}
    return [slot for slot in graph.labels.slots.values() if slot.weight.layer == layer or slot.weight in used]


def _own_slot(graph: ChannelGraph, layer: str) -> Slot | None:
    """Where the channels that a layer writes, or has numbers of its own for, live in its weights; None if nowhere.

    Raises:
        PlanError: it writes several widths, as attention does.
    """
    own = slots_of(graph, layer)
    for kinds in (("write",), ("depthwise", "scale", "shift", "statistic", "slope")):
        found = [slot for slot in own if slot.kind in kinds]
        widths = {graph.unit_of[slot.labels.ravel()].tobytes() for slot in found}
        if len(widths) > 1:
            names = ", ".join(dict.fromkeys(slot.weight.layer for slot in found))
            raise PlanError(f"{layer!r} writes several widths; name one of {names}")
        if found:
            return found[0]
    return None


def _units_of(graph: ChannelGraph, name: str) -> NDArray[np.intp]:
    """The unit of each of a layer's output channels, or of a group's channels.

    Raises:
        PlanError: there is no such layer or group, or the layer has no channels of its own.
    """
    slot = _own_slot(graph, name)
    if slot is not None:
        return graph.unit_of[slot.labels.ravel()]
    for group in graph.groups:
        if group.name == name:
            return group.units
    known = list(dict.fromkeys(call.layer for call in graph.calls))
    if name in known:
        raise PlanError(f"{name!r} has no channels of its own; name the layer whose filters write them")
    names = dict.fromkeys([*known, *(group.name for group in graph.groups)])
    raise PlanError(f"{graph.name} has no layer or channel group {name!r}{nearest(str(name), names)}")


def _something_left(group: ChannelGroup, units: set[int]) -> None:
    if len(units) == group.width:
        raise PlanError(
            f"the plan would take all {group.width} channels of {group.name!r}; leave at least one, or zero a whole "
            f"layer with tfprune.select(..., layers=True)"
        )
