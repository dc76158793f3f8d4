"""Convolutions taken out of an ONNX model: what stands in their place keeps every shape behind them.

requires: a traced model, and names of Conv nodes.
does:     a convolution that changes the spatial size becomes an average over the same windows, strides and pads; one
          that has fewer channels than it reads passes some of them on; one that has more gets channels of zeros.
ensures:  a valid model with the same shapes everywhere. The channels of zeros are then taken out of the neighbours'
          weights by strip, as far as residual additions and concatenations let them go.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from tfprune.channels.graph import ChannelGraph
from tfprune.errors import TfpruneError
from tfprune.onnx_graph.lowering import free
from tfprune.onnx_graph.model import LARGEST, Node, copied, tensor_of, weights_in_bytes
from tfprune.onnx_graph.trace import Body, as_inputs

_WINDOW = ("kernel_shape", "strides", "pads", "auto_pad")


def convolutions(graph: ChannelGraph) -> list[str]:
    """The Conv nodes by name, in the order of the model."""
    return [call.layer for call in graph.calls if isinstance(call.origin, Node) and call.origin.op == "Conv"]


def replaceable(graph: ChannelGraph) -> list[str]:
    """Those of them whose channels are known, so that something can stand in their place."""
    body: Body = graph.body
    found = []
    for call in graph.calls:
        node = call.origin
        if not isinstance(node, Node) or node.op != "Conv":
            continue
        shapes = [body.known.shapes.get(name) for name in (node.inputs[0], node.outputs[0])]
        if all(shape is not None and len(shape) > 2 and shape[1] for shape in shapes):
            found.append(call.layer)
    return found


def without(graph: ChannelGraph, names: Sequence[str]) -> tuple[onnx.ModelProto, list[str]]:
    """The model without some convolutions, one after the other, and the nodes that add channels of zeros."""
    body: Body = graph.body
    model = copied(graph.model)
    taken = {name for node in body.nodes for name in (*node.inputs, *node.outputs)} | set(body.known.initializers)
    by_name = {node.name: node for node in body.nodes}
    instead: dict[int, list[onnx.NodeProto]] = {}
    pads = []
    for name in names:
        node = by_name[name]
        instead[node.index] = nodes = _in_its_place(body, node, taken, model.graph)
        pads += [made.name for made in nodes if made.op_type == "Pad"]
    kept = [made for node in body.nodes for made in instead.get(node.index, [model.graph.node[node.index]])]
    copies = [onnx.NodeProto.FromString(made.SerializeToString()) for made in kept]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    _drop_unread(model)
    return model, pads


def _in_its_place(body: Body, node: Node, taken: set[str], graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    before, after = (body.known.shapes[name] for name in (node.inputs[0], node.outputs[0]))
    assert before is not None and after is not None
    steps: list[tuple[str, list[str], dict]] = []
    opset = node.opset
    window = _window(body, node)
    if window:
        # Before opset 19 only maxima skip positions.
        dilated = any(size > 1 for size in node.attributes.get("dilations", ()))
        steps.append(("MaxPool", [], {**window, "dilations": node.attributes["dilations"]}) if dilated
                     else ("AveragePool", [], window))  # fmt: skip
    channels, filters = before[1] or 1, after[1] or 1

    def numbers(hint: str, *values: int) -> str:
        name = free(f"{node.name}/{hint}", taken)
        taken.add(name)
        graph.initializer.append(tensor_of(np.array(values, np.int64), name))
        return name

    if channels > filters:
        # From all over, so that each part of a concatenation is still read.
        taken_from = np.linspace(0, channels - 1, filters).round().astype(np.int64).tolist()
        steps.append(("Gather", [numbers("channels", *taken_from)], {"axis": 1}))
    elif channels < filters:
        sizes = [0] * 2 * len(before)
        sizes[len(before) + 1] = filters - channels
        steps.append(("Pad", [], {"pads": sizes}) if opset < 11 else ("Pad", [numbers("pads", *sizes)], {}))
    if not steps:
        steps.append(("Identity", [], {}))
    nodes, source = [], node.inputs[0]
    for number, (op, inputs, attributes) in enumerate(steps):
        out = node.outputs[0]
        if number < len(steps) - 1:
            out = free(f"{node.name}/{op}", taken)
            taken.add(out)
        nodes.append(onnx.helper.make_node(op, [source, *inputs], [out], name=f"{node.name}/{op}", **attributes))
        source = out
    return nodes


def _window(body: Body, node: Node) -> dict:
    """The attributes of a pool that moves as the convolution did; none if that changes no size."""
    sizes = [[shapes[name][2:] for shapes in body.known.sizes] for name in (node.inputs[0], node.outputs[0])]
    if sizes[0] == sizes[1]:
        return {}
    found = {name: node.attributes[name] for name in _WINDOW if name in node.attributes}
    return {"kernel_shape": body.known.sizes[0][node.inputs[1]][2:], **found}


def _drop_unread(model: onnx.ModelProto) -> None:
    read = {name for node in model.graph.node for name in node.input}
    read |= {value.name for value in model.graph.output}
    unread = {tensor.name for tensor in model.graph.initializer} - read
    for items in (model.graph.initializer, model.graph.input):
        kept = [item for item in items if item.name not in unread]
        del items[:]
        items.extend(kept)


def tidied(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without Identity nodes, and Pads that add nothing any more."""
    arrays = {tensor.name: tensor for tensor in model.graph.initializer}
    outputs = {value.name for value in model.graph.output}
    alias: dict[str, str] = {}
    kept = []
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = alias.get(name, name)
        nothing = node.op_type == "Identity"
        if node.op_type == "Pad":
            pads = [a.ints for a in node.attribute if a.name == "pads"]
            given = list(pads[0]) if pads else onnx.numpy_helper.to_array(arrays[node.input[1]]).tolist() if (
                node.input[1] in arrays) else [1]  # fmt: skip
            nothing = not any(given)
        if nothing and node.output[0] not in outputs and "/" in node.name:
            alias[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    _drop_unread(model)
    return model


def check(model: onnx.ModelProto) -> None:
    """Have ONNX's checker infer every shape once more; of weights of more than 2 GB it sees none.

    Raises:
        TfpruneError: a shape does not fit another.
    """
    try:
        onnx.checker.check_model(model if weights_in_bytes(model) < LARGEST else as_inputs(model), full_check=True)
    except Exception as error:
        text = " ".join(str(error).split())[:400]
        raise TfpruneError(f"what is left of {model.graph.name} is not valid, please report it: {text}") from error


def walk(graph: ChannelGraph) -> str:
    """The model layer by layer: each node's operator and the shape of what it makes, without the batch axis."""
    lines: list[str] = []
    for call in graph.calls:
        node = call.origin
        if isinstance(node, Node):
            shape = [size if size is not None else "?" for size in graph.shapes[call.outputs[0]][1:]]
            lines.append(f"After Layer {len(lines):3}: layer type: {node.op}, shape is: {shape}")
    return "\n".join(lines)
