"""ONNX: one .onnx file of standard operators for onnxruntime and its like."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from tfprune.errors import ExportError
from tfprune.export import onnx_passes, tf_to_onnx
from tfprune.export.device import onnx_runtime
from tfprune.export.difference import Limits
from tfprune.export.onnx_file import write_model
from tfprune.export.registry import Exporter, Options, on, register
from tfprune.export.trace import TO_NCHW, nchw, numbers, trace

#: tf2onnx 1.17 refuses 19 and above; below 13, Squeeze and others have another form.
OPSETS = range(13, 19)
#: Of the largest output, what a file in half precision may be off by.
HALF = 1e-2


def write(model: keras.Model, path: Path, options: Options) -> None:
    """Convert by tf2onnx, put the weights in, and check that the file is standard ONNX.

    Keras' own weights go to the file, in another order of axes at most; what is computed from them is held beside them.

    Raises:
        ExportError: the opset is not one of 13 to 18, or the model cannot be converted.
    """
    if options.opset not in OPSETS:
        raise ExportError(
            f"opset must be {OPSETS[0]} to {OPSETS[-1]}, which is what tf2onnx can write; got {options.opset}"
        )
    channels_first = options.layout == "NCHW"
    traced = trace(model, options, lower_control_flow=False, channels_first=channels_first)
    onnx_model, open_weights = tf_to_onnx.convert(traced, options)
    constants = onnx_passes.take_constants(onnx_model)
    for value in [value for value in onnx_model.graph.input if value.name in open_weights]:
        onnx_model.graph.input.remove(value)
    for name in sorted(open_weights):
        constants[name] = numbers(traced.weights[name])
    origins = onnx_passes.fold_constants(onnx_model, constants)
    paths = {
        name: traced.weights[origins.get(name, name)].path
        for name in constants
        if origins.get(name, name) in open_weights
    }
    onnx_passes.rename_constants(onnx_model, constants, paths)
    onnx_passes.simplify(onnx_model, constants)
    shapes = options.shapes or tuple(tuple(x.shape) for x in model.inputs)
    if channels_first:
        shapes = tuple(nchw(shape) if len(shape) == 4 else shape for shape in shapes)
    onnx_passes.finish(
        onnx_model,
        list(zip(options.inputs, shapes, strict=True)),
        list(zip(options.outputs, (x.shape for x in model.outputs), strict=True)),
        options.metadata,
    )
    if options.precision == "float16":
        onnx_passes.put_constants(onnx_model, constants)
        onnx_model = onnx_passes.halved(onnx_model)
    onnx_passes.check(onnx_model, options.opset, options.inputs, options.outputs)
    write_model(onnx_model, constants, path)


def feed(arrays: Sequence[np.ndarray], options: Options) -> list[np.ndarray]:
    """The inputs in the file's layout."""
    moved = options.layout == "NCHW"
    return [np.ascontiguousarray(a.transpose(TO_NCHW)) if moved and a.ndim == 4 else a for a in arrays]


def limits(model: keras.Model, options: Options) -> Limits:
    """As far as the model's own type goes, or half precision's."""
    return Limits(largest=HALF) if options.precision == "float16" else Limits.of(model)


register(
    Exporter(
        "onnx",
        ".onnx",
        write,
        on(onnx_runtime),
        device=onnx_runtime,
        limits=limits,
        feed=feed,
        plain=True,
        requires={"tensorflow": "tensorflow", "tf2onnx": "tf2onnx", "onnx": "onnx", "onnxruntime": "onnxruntime"},
    )
)
