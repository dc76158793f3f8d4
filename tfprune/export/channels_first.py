"""Dense layers and layer normalisations between convolutions, written with the channels first like the convolutions.

An ONNX convolution has its channels first, a matrix product last. A network that alternates (ConvNeXt) would transpose
every feature map twice a block. Here, while the graph is tf2onnx's and each convolution still stands between its two
Transposes:

1. A matrix product over the last of four axes, by a matrix that is a weight, is a convolution of 1x1.
2. A layer normalisation over the last of four axes is a mean, a sum of squares and a scale over axis 1.
3. Each is put between Transposes of its own, and tf2onnx's pass cancels those against the convolutions'.

It is done to a region (nodes of rank 4 that hand each other their maps, through what is elementwise) when more of its
borders are such Transposes than are anything else: otherwise it would add Transposes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from tfprune.export import layer_norm

TO_FIRST, TO_LAST = [0, 3, 1, 2], [0, 2, 3, 1]
#: What a Transpose passes, in tf2onnx's pass or in ours.
_ELEMENTWISE = frozenset(
    "Abs Add Cast Ceil Clip Div Elu Erf Exp Floor HardSigmoid HardSwish Identity LeakyRelu Log Max Min Mul Neg Pow "
    "Reciprocal Relu Selu Sigmoid Softplus Sqrt Sub Sum Tanh".split()
)


def spread(graph: Any) -> None:
    """Rewrite every region where it pays, in place."""
    nodes = graph.get_nodes()
    rewritable = {node.name: node for node in nodes if _rank(graph, node) == 4 and _kind(graph, node)}
    if not rewritable or not any(node.type == "Transpose" for node in nodes):
        return
    for region in _regions(graph, nodes, rewritable):
        if _pays(graph, region):
            for node in region:
                if node.name in rewritable:
                    _rewrite(graph, node)
    graph.topological_sort(graph.get_nodes())


def _kind(graph: Any, node: Any) -> str | None:
    if node.type == "MatMul":
        weight = node.inputs[1]
        return "MatMul" if len(graph.get_shape(node.input[1]) or ()) == 2 and _is_weight(weight) else None
    return node.type if node.type == layer_norm.KIND else None


def _is_weight(node: Any) -> bool:
    """A constant, or an input that stands for a weight."""
    while node.type in ("Identity", "Cast", "Transpose", "Reshape", "Squeeze"):
        node = node.inputs[0]
    return node.is_const() or (node.is_graph_input() and node.name.startswith("tfprune_weight_"))


def _rank(graph: Any, node: Any) -> int | None:
    shape = graph.get_shape(node.output[0]) if node.output else None
    return None if shape is None else len(shape)


def _regions(graph: Any, nodes: Iterable[Any], rewritable: dict[str, Any]) -> list[list[Any]]:
    """Nodes that are rewritable or elementwise, of rank 4, put together where one reads the other."""
    members = {
        node.name: node
        for node in nodes
        if node.name in rewritable or (node.type in _ELEMENTWISE and _rank(graph, node) == 4)
    }
    regions, seen = [], set()
    for name in rewritable:
        if name in seen:
            continue
        region, waiting = [], [name]
        seen.add(name)
        while waiting:
            node = members[waiting.pop()]
            region.append(node)
            near = [*node.inputs, *graph.find_output_consumers(node.output[0])]
            fresh = {one.name for one in near if one is not None and one.name in members} - seen
            seen |= fresh
            waiting.extend(sorted(fresh))
        regions.append(region)
    return regions


def _pays(graph: Any, region: list[Any]) -> bool:
    """Whether more borders are Transposes that would go than are others, where one would come."""
    inside = {node.name for node in region}
    borders: Counter[bool] = Counter()
    for node in region:
        data = node.input[:1] if node.type in ("MatMul", layer_norm.KIND) else node.input
        for name in data:
            source = graph.get_node_by_output(name)
            if (
                source is not None
                and source.name not in inside
                and len(graph.get_shape(name) or ()) == 4
                and not source.is_const()
            ):
                borders[_permutes(source, TO_LAST)] += 1
        for reader in graph.find_output_consumers(node.output[0]):
            if reader.name not in inside:
                borders[_permutes(reader, TO_FIRST)] += 1
    return borders[True] > borders[False]


def _permutes(node: Any, perm: list[int]) -> bool:
    return node.type == "Transpose" and list(node.get_attr_value("perm") or ()) == perm


def _rewrite(graph: Any, node: Any) -> None:
    output, source = node.output[0], node.input[0]
    shape, dtype = graph.get_shape(output), graph.get_dtype(output)
    first = _moved(graph, source, graph.get_shape(source), dtype, TO_FIRST)
    moved = [shape[axis] for axis in TO_FIRST]
    if node.type == "MatMul":
        kernel = graph.make_node("Transpose", [node.input[1]], attr={"perm": [1, 0]}).output[0]
        axes = graph.make_const(f"{node.name}__axes", np.array([2, 3], np.int64)).output[0]
        kernel = graph.make_node("Unsqueeze", [kernel, axes]).output[0]
        attributes = {"kernel_shape": [1, 1], "strides": [1, 1], "dilations": [1, 1], "group": 1}
        result = graph.make_node("Conv", [first, kernel], attr=attributes, shapes=[moved], dtypes=[dtype]).output[0]
    else:
        result = layer_norm.lowered(graph, node, first, moved, axis=1)
    graph.remove_node(node.name)
    attributes = {"perm": TO_LAST}
    graph.make_node(
        "Transpose", [result], attr=attributes, name=node.name, outputs=[output], shapes=[shape], dtypes=[dtype]
    )


def _moved(graph: Any, name: str, shape: list[int], dtype: int, perm: list[int]) -> str:
    wanted = [[shape[axis] for axis in perm]]
    return graph.make_node("Transpose", [name], attr={"perm": perm}, shapes=wanted, dtypes=[dtype]).output[0]
