"""The low-level way: one side of one layer at a time, each by itself valid or refused, and together a plan.

`graph.plan("conv1", channels=[2, 6, 9])` finds whatever depends on a channel. Here the user says it piece by piece:

| to remove | write |
|---|---|
| filters of a convolution or Dense layer | `outputs(graph, "conv1", [2, 6, 9])` |
| channels of BatchNormalization or a depthwise convolution | `carried(graph, "bn1", [2, 6, 9])` |
| the kernel slices of a layer that reads them | `inputs(graph, "conv2", [2, 6, 9])` |

A `Piece` can be printed, and gives the arrays that are left (`piece.arrays()`). `assemble` makes a `PruningPlan` of
pieces that belong together, or says which are missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tfprune.channels.graph import ChannelGraph
from tfprune.channels.parts import CARRIED, INPUTS, OUTPUTS, Loss, Part, parts, side_of
from tfprune.channels.plan import PruningPlan, checked, slots_of
from tfprune.channels.weights import Slot
from tfprune.errors import PlanError, nearest


@dataclass(frozen=True)
class Piece:
    """Channels of one side of one layer.

    Attributes:
        graph: the traced model.
        layer: whose.
        side: `output channels`, `input channels` or `channels`.
        losses: where they are in the layer's weights.
    """

    graph: ChannelGraph
    layer: str
    side: str
    losses: tuple[Loss, ...]

    @property
    def part(self) -> Part:
        """What goes, counted."""
        return parts(self.losses)[0]

    def arrays(self) -> dict[str, NDArray]:
        """The weights that lose something, without it: name -> array. The model is not changed.

        Raises:
            PlanError: the channels lie along several axes of a weight, and what is left is no block.
        """
        found: dict[str, NDArray] = {}
        for slot, gone in self.losses:
            array = found.get(slot.weight.name)
            array = self.graph.weight(slot.weight) if array is None else array
            found[slot.weight.name] = _without(slot, gone, array)
        return found

    def __str__(self) -> str:
        return str(self.part)


def outputs(graph: ChannelGraph, layer: str, channels: Sequence[int]) -> Piece:
    """Filters of a layer, with their biases.

    Args:
        graph: from `tfprune.trace`.
        layer: a convolution, Dense layer or the like.
        channels: which of its output channels go, counted from 0.

    Raises:
        PlanError: there is no such layer or channel, one is named twice or may not go, or none would be left.

    >>> import keras, tfprune
    >>> graph = tfprune.trace(keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, name="a"),
    ...                                         keras.layers.Dense(2)]))
    >>> print(outputs(graph, "a", [1, 5]))
    a loses output channels [1, 5]: 10 parameters of kernel 4x8, bias 8
    """
    return _piece(graph, layer, OUTPUTS, channels)


def carried(graph: ChannelGraph, layer: str, channels: Sequence[int]) -> Piece:
    """Channels of a layer that has numbers of its own for each: BatchNormalization, a depthwise convolution, PReLU.

    Arguments and errors are those of `outputs`.
    """
    return _piece(graph, layer, CARRIED, channels)


def inputs(graph: ChannelGraph, layer: str, channels: Sequence[int]) -> Piece:
    """The slices of a layer's kernel that read some channels, counted along the kernel's input axis.

    Behind a Flatten every position of a channel is an input of its own. Arguments and errors are those of `outputs`.
    """
    return _piece(graph, layer, INPUTS, channels)


def assemble(pieces: Iterable[Piece]) -> PruningPlan:
    """A plan of pieces that belong together, for `soft_prune` and `strip`.

    Raises:
        PlanError: something that depends on the channels is in no piece; the message lists it.

    >>> import keras, tfprune
    >>> graph = tfprune.trace(keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, name="a"),
    ...                                         keras.layers.Dense(2, name="b")]))
    >>> assemble([outputs(graph, "a", [1, 5]), inputs(graph, "b", [1, 5])]).parameters
    14
    >>> assemble([outputs(graph, "a", [1, 5])])
    Traceback (most recent call last):
    tfprune.errors.PlanError: these pieces do not fit together; ...b loses input channels [1, 5]...
    """
    given = list(pieces)
    if not given:
        raise PlanError("a plan needs at least one piece; see tfprune.channels.pieces")
    graph = given[0].graph
    if any(piece.graph is not graph for piece in given):
        raise PlanError("the pieces are of different graphs; make them from one tfprune.trace(model)")
    have: dict[int, NDArray[np.bool_]] = {}
    labels = []
    for slot, gone in (loss for piece in given for loss in piece.losses):
        have[id(slot)] = have.get(id(slot), np.zeros(slot.labels.size, bool)) | gone
        labels.append(slot.labels.ravel()[gone])
    units = np.unique(graph.unit_of[np.concatenate(labels)])
    names = ", ".join(f"{piece.layer} {piece.side}" for piece in given)
    plan = PruningPlan(graph, graph.channels_of(units), request=f"pieces: {names}")
    nothing = np.zeros(1, bool)
    missing = [(slot, gone & ~have.get(id(slot), nothing)) for slot, gone in plan.losses()]
    left = parts([(slot, gone) for slot, gone in missing if gone.any()])
    if left:
        lines = "\n".join(f"  {part}" for part in left)
        raise PlanError(f"these pieces do not fit together; add what else depends on the channels:\n{lines}")
    return plan


def _piece(graph: ChannelGraph, layer: str, side: str, channels: Sequence[int]) -> Piece:
    slots = _slots(graph, layer, side)
    main = next((slot for slot in slots if slot.kind != "bias"), slots[0])
    size = main.labels.size
    gone = np.zeros(size, bool)
    gone[checked(layer, channels, size)] = True
    if gone.all():
        raise PlanError(f"all {size} {side} of {layer!r} would go; leave at least one")
    labels = main.labels.ravel()[gone]
    for channel in np.unique(graph.channel_of[labels]).tolist():
        if channel in graph.protected:
            raise PlanError(f"the {side} of {layer!r} stay: {graph.protected[channel]}")
    _even(main, gone, layer, side)
    # The layer's other weights carry the same labels: a bias, gamma beside beta, the gates of an LSTM.
    losses = tuple((slot, gone if slot is main else np.isin(slot.labels.ravel(), labels)) for slot in slots)
    return Piece(graph, layer, side, tuple(loss for loss in losses if loss[1].any()))


def _slots(graph: ChannelGraph, layer: str, side: str) -> list[Slot]:
    """Where the channels of one side of a layer live.

    Raises:
        PlanError: there is no such layer, or it has no such side.
    """
    own = slots_of(graph, layer)
    sides = list(dict.fromkeys(side_of(slot) for slot in own if slot.kind != "bias"))
    if side in sides:
        # A depthwise convolution's bias belongs to its channels, not to filters that it does not have.
        wanted = (CARRIED, OUTPUTS) if side == CARRIED and OUTPUTS not in sides else (side,)
        return [slot for slot in own if side_of(slot) in wanted]
    known = list(dict.fromkeys(call.layer for call in graph.calls))
    if not own and layer not in known:
        raise PlanError(f"{graph.name} has no layer {layer!r}{nearest(str(layer), known)}")
    has = f"it has {' and '.join(sides)}" if sides else "it has no weights for channels"
    raise PlanError(f"{layer!r} has no {side} with weights of their own; {has}")


def _even(slot: Slot, gone: NDArray[np.bool_], layer: str, side: str) -> None:
    """Groups of a grouped convolution (heads of attention) must lose equally many."""
    if slot.labels.ndim > 1:
        counts = gone.reshape(len(slot.labels), -1).sum(axis=1)
        if len(set(counts.tolist())) > 1:
            raise PlanError(
                f"{layer!r} has {len(counts)} groups of {side}, which must lose equally many; these would lose "
                f"{counts.tolist()}"
            )


def _without(slot: Slot, gone: NDArray[np.bool_], array: NDArray) -> NDArray:
    """A weight without some labels of one slot."""
    rank, first, last = array.ndim, slot.axes[0], slot.axes[-1]
    merged = (*slot.split[:first], gone.size, *slot.split[last + 1 :])
    if slot.axes == tuple(range(first, last + 1)) and merged[: rank - 1] == array.shape[: rank - 1]:
        left = np.delete(array.reshape(merged), np.flatnonzero(gone), axis=first)
        return left.reshape(*left.shape[: rank - 1], -1)  # an LSTM's gates are one axis again
    raise PlanError(f"the channels of {slot.weight.key} lie along several axes; use graph.plan and tfprune.strip")
