"""Pictures of graphs: a box a layer, on each edge the width that flows along it; and what another model has made of it.

Graphviz lays them out. pygraphviz brings it along, so that no `dot` need be installed.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tfprune.channels.graph import ChannelGraph
from tfprune.channels.labels import Shape
from tfprune.errors import ExportError, PlanError
from tfprune.files import atomic_path
from tfprune.frontend import trace

ENDINGS = (".svg", ".png", ".pdf")
KEPT, CHANGED, REMOVED, NEW = "kept", "changed", "removed", "new"
_LEGEND = {REMOVED: "red, dashed: removed", CHANGED: "blue: changed", NEW: "green: new"}
_COLOURS = {KEPT: "#57606a", CHANGED: "#0550ae", REMOVED: "#cf222e", NEW: "#1a7f37"}
_FILLS = {KEPT: "#f6f8fa", CHANGED: "#ddf4ff", REMOVED: "#ffebe9", NEW: "#dafbe1"}

_LARGE = 4_000_000  # bytes; tens of millions of pixels, which are not worth another look

Key = tuple[str, int]  # a layer's name, and which of its calls it is


@dataclass(frozen=True)
class Box:
    """One call of a layer.

    Attributes:
        name: of the layer, `outer/inner` in nested models.
        kind: its class, or an ONNX node's operator.
        shape: of what it makes, an entry a tensor; `?` where a size is not fixed. `4x64 → 4x32` if it changed.
        parameters: numbers in its weights, likewise.
        state: `kept`, `changed` (its class, shape or parameters), `removed` or `new`.
    """

    name: str
    kind: str
    shape: str
    parameters: str = "0"
    state: str = KEPT


@dataclass(frozen=True)
class Edge:
    """What flows from one call to another.

    Attributes:
        shape: of the tensor; None for a size that is not fixed.
        axes: those that hold channels, as far as that is known: not for images.
        became: the shape in the other model.
        state: as of a box.
    """

    shape: Shape
    axes: tuple[int, ...] = ()
    became: Shape | None = None
    state: str = KEPT

    @property
    def width(self) -> str:
        """How many channels; where none are known, the shape. `64 → 32` if it changed."""
        old = _sizes(self.shape, self.axes)
        new = old if self.became is None else _sizes(self.became, self.axes)
        return old if old == new else f"{old} → {new}"


@dataclass(frozen=True)
class Diagram:
    """What is drawn.

    Attributes:
        title: what stands above it.
        boxes: by layer and call, in the order of the model.
        edges: by start, end and, where one reads the other twice, a number.
    """

    title: str
    boxes: dict[Key, Box] = field(default_factory=dict)
    edges: dict[tuple[Key, Key, int], Edge] = field(default_factory=dict)


def draw(model: Any, path: str | os.PathLike, other: Any = None, title: str | None = None) -> Path:
    """Draw a model as a graph, or what has become of it in another.

    Layers are told apart by name. With `other`, what is gone is red and dashed, what is new is green, and what has
    another shape is blue, with the shapes and widths before and after.

    Args:
        model: a Keras model, an `onnx.ModelProto` or the path of an .onnx file.
        path: of the picture; .svg, .png or .pdf is the format. Large models are readable as .svg only.
        other: what the model became, by `strip` or `remove_layers`; of the same kind.
        title: what stands above; by default the model's name.

    Returns:
        the path.

    Raises:
        ExportError: the file's ending is none of the three, pygraphviz is not installed, or it fails.
        TraceError: a model cannot be read as a graph.
        PlanError: the two models have no layer in common.
        TfpruneError: the file cannot be written.
    """
    target = Path(path)
    if target.suffix.lower() not in ENDINGS:
        raise ExportError(f"a picture's name ends with {', '.join(ENDINGS)}, and {os.fspath(path)!r} came")
    pygraphviz = _pygraphviz()
    drawn = diagram(trace(model), title)
    if other is not None:
        drawn = compared(drawn, diagram(trace(other)))
    with atomic_path(target) as scratch:
        try:
            _laid_out(pygraphviz, drawn).draw(str(scratch), format=target.suffix[1:].lower(), prog="dot")
        except (ValueError, RuntimeError) as error:
            raise ExportError(f"Graphviz could not draw {drawn.title!r}: {error}; try an .svg file") from error
        if target.suffix.lower() == ".png":
            _fewer_colours(scratch)
    return target


def diagram(graph: ChannelGraph, title: str | None = None) -> Diagram:
    """A box a call, and an edge wherever one reads what another made.

    >>> import keras, tfprune
    >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, name="a"),
    ...                           keras.layers.Conv2D(2, 3, name="b")])
    >>> drawn = diagram(tfprune.trace(model))
    >>> drawn.boxes["a", 0].shape, drawn.edges[("a", 0), ("b", 0), 0].width
    ('6x6x4', '4')
    """
    seen: Counter[str] = Counter()
    met: Counter[tuple[Key, Key]] = Counter()
    made_by: dict[int, Key] = {}
    drawn = Diagram(f"{title or graph.name}: {_counted(len(graph.calls))}")
    for call in graph.calls:
        key = (call.layer, seen[call.layer])
        seen[call.layer] += 1
        shape = ", ".join(_sizes(graph.shapes[value]) for value in call.outputs)
        weights = {weight.key: weight.size for op in call.ops for weight in op.weights()}
        drawn.boxes[key] = Box(call.layer, call.kind, shape, f"{sum(weights.values()):,}")
        for value in call.inputs:
            if value in made_by:
                start = made_by[value]
                axes = tuple(np.flatnonzero(np.array(graph.labels.of[value].shape) > 1).tolist())
                drawn.edges[start, key, met[start, key]] = Edge(graph.shapes[value], axes)
                met[start, key] += 1
        made_by.update(dict.fromkeys(call.outputs, key))
    return drawn


def compared(before: Diagram, after: Diagram) -> Diagram:
    """Both in one: what is gone, what is new and what has changed is marked.

    Raises:
        PlanError: no layer but inputs is in both.
    """
    if not any(box.kind != "Input" for key, box in before.boxes.items() if key in after.boxes):
        raise PlanError(
            f"{before.title} and {after.title}: no name of a layer is in both, so that nothing can be compared; give a "
            f"model and what strip or remove_layers made of it, or draw each by itself"
        )
    drawn = Diagram(f"{before.title} before, {_counted(len(after.boxes))} after")
    for key, box in before.boxes.items():
        drawn.boxes[key] = _box(box, after.boxes.get(key))
    for place, edge in before.edges.items():
        drawn.edges[place] = _edge(edge, after.edges.get(place))
    for key, box in after.boxes.items():
        drawn.boxes.setdefault(key, replace(box, state=NEW))
    for place, edge in after.edges.items():
        drawn.edges.setdefault(place, replace(edge, state=NEW))
    return drawn


def _box(old: Box, new: Box | None) -> Box:
    if new is None:
        return replace(old, state=REMOVED)
    pairs = {name: (getattr(old, name), getattr(new, name)) for name in ("kind", "shape", "parameters")}
    changed = {name: f"{was} → {now}" for name, (was, now) in pairs.items() if was != now}
    return replace(old, **changed, state=CHANGED) if changed else old


def _edge(old: Edge, new: Edge | None) -> Edge:
    if new is None:
        return replace(old, state=REMOVED)
    alike = len(old.shape) == len(new.shape)
    axes = (old.axes or new.axes) if alike else ()
    return replace(old, axes=axes, became=new.shape, state=KEPT if old.shape == new.shape else CHANGED)


def _counted(layers: int) -> str:
    return f"{layers} layer{'s' if layers != 1 else ''}"


def _sizes(shape: Shape, axes: Sequence[int] = ()) -> str:
    """A shape, or how many entries some of its axes have together."""
    if axes and None not in (sizes := [shape[axis] for axis in axes]):
        return str(math.prod(size or 1 for size in sizes))
    return "x".join("?" if size is None else str(size) for size in shape) or "scalar"


def _pygraphviz() -> Any:
    try:
        import pygraphviz
    except ImportError as error:
        raise ExportError(
            f"pictures of graphs need pygraphviz 2 or newer: pip install 'tfprune[graphviz]' ({error})"
        ) from error
    return pygraphviz


def _laid_out(pygraphviz: Any, drawn: Diagram) -> Any:
    """The diagram as Graphviz takes it."""
    graph = pygraphviz.AGraph(directed=True, strict=False)
    font = {"fontname": "Helvetica", "fontcolor": "#24292f"}
    title = _lines(drawn.title, *_legend(drawn))
    graph.graph_attr.update(label=title, labelloc="t", fontsize=13, nodesep=0.25, ranksep=0.22, bgcolor="white", **font)
    graph.node_attr.update(shape="box", style="filled,rounded", fontsize=10, margin="0.1,0.04", height=0.3, **font)
    graph.edge_attr.update(fontsize=9, arrowsize=0.6, **font)
    if len(drawn.boxes) > 300:  # the finest layout of thousands of boxes would take minutes
        graph.graph_attr.update(nslimit=2, nslimit1=2, mclimit=0.5)
    names = {key: f"layer{number}" for number, key in enumerate(drawn.boxes)}
    for key, box in drawn.boxes.items():
        parameters = f" · {box.parameters} parameters" if box.parameters != "0" else ""
        label = _lines(f"{box.kind} · {box.name}", f"{box.shape}{parameters}")
        graph.add_node(names[key], label=label, **_look(box))
    for number, ((start, end, _), edge) in enumerate(drawn.edges.items()):
        colour = _COLOURS[edge.state]
        style = "dashed" if edge.state == REMOVED else "solid"
        label = _lines(f" {edge.width}")
        graph.add_edge(names[start], names[end], key=number, label=label, color=colour, fontcolor=colour, style=style)
    return graph


def _fewer_colours(path: Path) -> None:
    """Write a PNG with a palette: a quarter of the size."""
    from PIL import Image

    if path.stat().st_size < _LARGE:
        with Image.open(path) as image:
            small = image.convert("RGB").quantize(256)
        small.save(path, optimize=True)


def _legend(drawn: Diagram) -> list[str]:
    boxes = Counter(box.state for box in drawn.boxes.values())
    edges = {edge.state for edge in drawn.edges.values()}
    return [
        f"{text} ({_counted(boxes[state])})" if boxes[state] else text
        for state, text in _LEGEND.items()
        if boxes[state] or state in edges
    ]


def _look(box: Box) -> dict[str, str]:
    look = {"color": _COLOURS[box.state], "fillcolor": _FILLS[box.state]}
    if box.state == KEPT and box.parameters != "0":
        look["fillcolor"] = "#d8dee4"
    if box.state == REMOVED:
        look |= {"style": "filled,rounded,dashed", "fontcolor": _COLOURS[REMOVED]}
    return look


def _lines(*lines: str) -> str:
    """Text that Graphviz takes as it is: no escape sequences or entities, nothing that XML has no place for."""
    printable = ("".join(c if c.isprintable() else "?" for c in line) for line in lines)
    return "\\n".join(line.replace("\\", "\\\\").replace("&", "&amp;") for line in printable)
