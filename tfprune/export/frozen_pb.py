"""A frozen TensorFlow 1 GraphDef, one .pb file: for C++ and mobile runtimes that want nodes by name."""

from __future__ import annotations

from pathlib import Path

import keras

from tfprune.export.registry import Exporter, Options, Runner, register
from tfprune.export.trace import trace, with_constants


def write(model: keras.Model, path: Path, options: Options) -> None:
    """Write the graph with all weights as constants, and the inputs and outputs as nodes of the names asked for."""
    traced = trace(model, options, lower_control_flow=True)
    graph_def = with_constants(traced, set(traced.weights))
    path.write_bytes(graph_def.SerializeToString(deterministic=True))


def load(path: Path, options: Options) -> Runner:
    """Import into a fresh `tf.Graph` and run it in a TensorFlow 1 session."""
    import tensorflow as tf

    graph_def = tf.compat.v1.GraphDef()
    graph_def.ParseFromString(path.read_bytes())
    graph = tf.Graph()
    with graph.as_default():
        tf.import_graph_def(graph_def, name="")
    del graph_def

    def run(arrays):
        feed = {f"{name}:0": array for name, array in zip(options.inputs, arrays, strict=True)}
        with tf.compat.v1.Session(graph=graph) as session:
            outputs = session.run([f"{name}:0" for name in options.outputs], feed)
        return [_numpy(output) for output in outputs]

    return run


def _numpy(array):
    """numpy reads bfloat16 only through an extension type: compare it as float32, as `verify.run` does."""
    return array.astype("float32") if array.dtype.name == "bfloat16" else array


register(Exporter("pb", ".pb", write, load, requires={"tensorflow": "tensorflow"}))
