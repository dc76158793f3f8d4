"""A frozen TensorFlow 1 GraphDef, one .pb file: for C++ and mobile runtimes that want nodes by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras

from tfprune.export.device import tf_graph
from tfprune.export.registry import Exporter, Options, on, register
from tfprune.export.trace import TracedGraph, trace, with_constants


def write(model: keras.Model, path: Path, options: Options) -> None:
    """Write the graph with all weights as constants, and the inputs and outputs as nodes of the names asked for."""
    traced = trace(model, options, lower_control_flow=True)
    _split_grouped(traced)
    graph_def = with_constants(traced, set(traced.weights))
    path.write_bytes(graph_def.SerializeToString(deterministic=True))


def _split_grouped(traced: TracedGraph) -> None:
    """Write a grouped Conv2D as one Conv2D a group between a Split and a Concat, in place.

    A session on a CPU fuses a convolution with the bias behind it and then finds that its fused kernel knows no
    groups; Keras itself compiles such layers by XLA, which an old runtime does not have.
    """
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        tf.import_graph_def(traced.graph_def, name="")
    nodes = list(traced.graph_def.node)
    result: list[Any] = []
    for node in nodes:
        groups = _groups(graph.get_operation_by_name(node.name)) if node.op == "Conv2D" else 1
        result.extend(_group_nodes(node, groups) if groups > 1 else [node])
    if len(result) != len(nodes):
        result = [type(node).FromString(node.SerializeToString()) for node in result]
        del traced.graph_def.node[:]
        traced.graph_def.node.extend(result)


def _groups(conv: Any) -> int:
    data, kernel = (tensor.shape for tensor in conv.inputs)
    channels = data[1] if conv.get_attr("data_format") == b"NCHW" else data[-1]
    return 1 if channels is None or not kernel[2] else channels // kernel[2]


def _group_nodes(conv: Any, groups: int) -> Iterator[Any]:
    import tensorflow as tf

    name, kind = conv.name, conv.attr["T"].type
    channel_axis = 1 if conv.attr["data_format"].s == b"NCHW" else 3

    def node(op: str, suffix: str, *inputs: str) -> Any:
        made = tf.compat.v1.NodeDef(name=name + suffix, op=op, input=inputs)
        if op == "Const":
            made.attr["dtype"].type = tf.int32.as_datatype_enum
        else:
            made.attr["T"].type = kind
        return made

    for suffix, axis in (("/channels", channel_axis), ("/filters", 3)):
        constant = node("Const", suffix)
        constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(axis, tf.int32))
        yield constant
    for suffix, along, source in (("/split", "/channels", conv.input[0]), ("/kernels", "/filters", conv.input[1])):
        split = node("Split", suffix, name + along, source)
        split.attr["num_split"].i = groups
        yield split
    for group in range(groups):
        one = type(conv).FromString(conv.SerializeToString())
        one.name = f"{name}/group_{group}"
        one.input[:] = [f"{name}/split:{group}", f"{name}/kernels:{group}", *conv.input[2:]]
        yield one
    whole = node("ConcatV2", "", *(f"{name}/group_{group}" for group in range(groups)), f"{name}/channels")
    whole.attr["N"].i = groups
    whole.attr["Tidx"].type = tf.int32.as_datatype_enum
    yield whole


register(
    Exporter("pb", ".pb", write, on(tf_graph), requires={"tensorflow": "tensorflow"}, device=tf_graph),
)
