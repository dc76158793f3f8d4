"""LiteRT (once TensorFlow Lite): .tflite files in float32, float16 and int8, for phones and microcontrollers."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfprune.export.device import lite_converter, lite_rt, process
from tfprune.export.difference import Limits
from tfprune.export.registry import Exporter, Options, on, register
from tfprune.export.trace import trace, with_constants

#: Of the largest output, what weights in half precision may make.
FLOAT16 = 1e-2
#: Of the outputs' norm, what int8 weights may make, and int8 weights with int8 activations.
DYNAMIC, FULL = 0.1, 0.25


def writer(kind: str) -> Any:
    """The `write` of one kind of .tflite file: float32, float16, dynamic or int8."""

    def write(model: keras.Model, path: Path, options: Options) -> None:
        """Convert the traced graph, all of whose weights are constants, with one signature of the names asked for."""
        host = process.prepare(lite_converter)
        options = dataclasses.replace(options, shapes=_fixed(model, options))
        with tempfile.TemporaryDirectory(prefix="tfprune-") as folder:
            _as_saved_model(model, folder, options)
            arguments: dict[str, Any] = {"source": folder, "target": str(path.resolve()), "kind": kind}
            if kind == "int8":
                arguments |= _calibration(Path(folder, "samples.npz"), options)
            process.call_in(host, lite_converter, "convert", **arguments)

    return write


def _calibration(path: Path, options: Options) -> dict[str, Any]:
    assert options.representative is not None and options.shapes is not None
    np.savez(path, *options.representative)
    size = options.shapes[0][0] or 1
    return {"data": str(path), "names": list(options.inputs), "size": size, "integer_io": options.integer_io}


def _fixed(model: keras.Model, options: Options) -> tuple[tuple[int | None, ...], ...]:
    """Batch 1 where nothing else was asked for: an unknown batch keeps LiteRT from planning its memory ahead."""
    if options.shapes is not None:
        return options.shapes
    return tuple((x.shape[0] or 1, *x.shape[1:]) for x in model.inputs)


def _as_saved_model(model: keras.Model, folder: str, options: Options) -> None:
    """The frozen graph as a SavedModel, from which the converter reads a signature.

    Straight from a Keras model (`from_keras_model`, `from_concrete_functions`) the weights may stay variables that
    nobody initialises: the file loads, runs and returns whatever was in memory.
    """
    import tensorflow as tf

    traced = trace(model, options, lower_control_flow=False)
    graph_def = with_constants(traced, set(traced.weights))

    def serve(*tensors: Any) -> dict[str, Any]:
        given = {f"{name}:0": tensor for name, tensor in zip(options.inputs, tensors, strict=True)}
        wanted = [f"{name}:0" for name in options.outputs]
        results = tf.graph_util.import_graph_def(graph_def, given, wanted, name="")
        return {name: tf.identity(y) for name, y in zip(options.outputs, results, strict=True)}

    assert options.shapes is not None
    specs = [
        tf.TensorSpec(shape, x.dtype, name)
        for shape, x, name in zip(options.shapes, model.inputs, options.inputs, strict=True)
    ]
    function = tf.function(serve, autograph=False).get_concrete_function(*specs)
    tf.saved_model.save(tf.Module(), folder, signatures={"serving_default": function})


def _limits(kind: str) -> Any:
    chosen = {"float16": Limits(largest=FLOAT16), "dynamic": Limits(noise=DYNAMIC), "int8": Limits(noise=FULL)}
    return lambda model, options: chosen.get(kind) or Limits.of(model)


for _kind in ("float32", "float16", "dynamic", "int8"):
    register(
        Exporter(
            "tflite" if _kind == "float32" else f"tflite_{_kind}",
            ".tflite" if _kind == "float32" else f".{_kind}.tflite",
            writer(_kind),
            on(lite_rt),
            requires={"tensorflow": "tensorflow", "ai_edge_litert": "ai-edge-litert"},
            device=lite_rt,
            limits=_limits(_kind),
            plain=True,
            calibrated=_kind == "int8",
        )
    )
