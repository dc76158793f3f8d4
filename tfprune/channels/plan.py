"""PruningPlan: what goes from which weight, and why other channels stay. Printed before anything happens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tfprune.channels.graph import ChannelGraph, listed
from tfprune.channels.ops import Affine, Contract
from tfprune.channels.weights import Slot, Weight
from tfprune.errors import PlanError, Refusal
from tfprune.tables import table


def zeroable(graph: ChannelGraph) -> list[Slot]:
    """Where channels live in weights that soft pruning zeroes: all but statistics and slopes."""
    return [slot for slot in graph.labels.slots.values() if not slot.role.startswith(("statistic", "slope"))]


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
    """

    graph: ChannelGraph
    gone: NDArray[np.bool_]
    layers: tuple[str, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    request: str = ""
    redundancies: dict[str, NDArray] = field(default_factory=dict, repr=False)

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

    def __bool__(self) -> bool:
        return bool(self.gone.any() or self.layers)

    def zeros(self) -> Iterator[tuple[Slot, NDArray[np.bool_]]]:
        """(slot, which of its flat labels are zeroed), for every weight the plan touches.

        Kernels (both sides), biases, BatchNormalization's gamma and beta. Statistics and slopes stay: what they act on
        is 0.
        """
        whole = self._whole_weights()
        for slot in zeroable(self.graph):
            gone = self.gone[self.graph.channel_of[slot.labels.ravel()]]
            if slot.weight in whole and slot.role != "read":
                gone = np.ones_like(gone)
            if gone.any():
                yield slot, gone

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

    def __str__(self) -> str:
        rows = []
        for group in self.graph.groups:
            gone = self.channels.get(group.name, ())
            if gone:
                shown = listed([str(index) for index in gone], most=8)
                rows.append((group.name, group.width, group.width - len(gone), shown))
        title = f"{self.graph.name}: {self.pruned} channels go" + (f" ({self.request})" if self.request else "")
        parts = [table(title, ("group", "width", "left", "channels that go"), rows)] if rows else []
        parts = parts or [f"{title}: nothing is pruned"]
        parts += [f"{layer}: zeroed whole" for layer in self.layers]
        parts += [str(refusal) for refusal in self.refusals]
        return "\n".join(parts)
