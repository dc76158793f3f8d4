"""ONNX in, a plain Keras model out, proved equal in onnxruntime before anyone sees it.

requires: an ONNX model of operators that `layers/` builds.
does:     goes through the nodes and calls Keras layers on Keras tensors; what is constant or computed from shapes is
          looked up in `onnx_graph.infer`, never computed here.
ensures:  the same outputs on random inputs; where the batch was fixed and is no longer, also those of a larger one.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import onnx

import tfprune.from_onnx.layers  # noqa: F401  (registers the operators)
from tfprune.errors import TfpruneError, TraceError, VerificationError
from tfprune.from_onnx.builder import Builder, LayerError
from tfprune.onnx_graph.infer import Known
from tfprune.onnx_graph.model import load
from tfprune.onnx_graph.run import random_inputs, tolerance_of
from tfprune.onnx_graph.run import run as run_onnx
from tfprune.onnx_graph.trace import check, nodes_of
from tfprune.verify import compare, run
from tfprune.verify import tolerance_of as tolerance_of_keras


def to_keras(model: Any) -> keras.Model:
    """Make an ONNX model a Keras model that computes the same, to train it, or to prune it while it trains.

    The result is a functional model of Keras' own layers and operations, so that it loads without tfprune. Kernels,
    biases and what BatchNormalization, LayerNormalization, PReLU and embeddings hold are weights, and trainable; other
    arrays, such as the constants that are added or multiplied, are written into the model. Convolutions run channels
    last; inputs and outputs keep the shapes and names they have in ONNX (characters that Keras refuses become `_`).

    A batch of fixed size becomes one of any size, if a larger batch then gives what onnxruntime gives for its parts;
    otherwise it stays fixed.

    Args:
        model: an `onnx.ModelProto`, or the path of a file. It is not changed.

    Returns:
        a `keras.Model`, not compiled.

    Raises:
        TraceError: the file is damaged, quantized, or has an operator that cannot be built, which is named.
        VerificationError: what was built computes something else than onnxruntime, by more than 1e-5 of the largest
            output (in float32). No model is returned.

    >>> import onnx, tfprune
    >>> net = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["" : 17]>
    ...     net (float[N, 3, 8, 8] x) => (float[N, 4, 4, 4] y) <float[4, 3, 3, 3] w = {WEIGHTS}>
    ...     {y = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, w)}'''.replace("WEIGHTS", ", ".join(["0.5"] * 108)))
    >>> model = tfprune.to_keras(net)
    >>> model.output_shape, [layer.name for layer in model.layers if layer.weights]
    ((None, 4, 4, 4), ['y_conv'])
    """
    proto = load(model)
    try:
        check(proto)
        nodes = nodes_of(proto)
        known = Known(proto, nodes)
        inputs = random_inputs(proto)
    except TfpruneError:
        raise
    except Exception as error:  # damaged attributes and sizes come out as whatever reads them first
        raise TraceError(f"the ONNX model cannot be followed: {type(error).__name__}: {error}") from error
    expected = run_onnx(proto, inputs)
    tolerance = tolerance_of(proto)
    if not _has_fixed_batch(proto, known):
        return _proved(_built(proto, known, True), inputs, expected, tolerance)
    try:
        built = _proved(_built(proto, known, True), inputs, expected, tolerance)
        _check_any_batch(proto, built, inputs, expected, tolerance)
        return built
    except (LayerError, VerificationError):
        return _proved(_built(proto, known, False), inputs, expected, tolerance)


def _built(proto: onnx.ModelProto, known: Known, free_batch: bool) -> keras.Model:
    try:
        return Builder(proto, known, free_batch).build()
    except TfpruneError:
        raise
    except Exception as error:  # what Keras says of inputs and outputs
        raise LayerError(f"the ONNX model cannot become a Keras model: {type(error).__name__}: {error}") from error


def _proved(built: keras.Model, inputs: list[np.ndarray], expected: list[np.ndarray], tolerance: float) -> keras.Model:
    what = "the Keras model made of the ONNX model"
    tolerance = max(tolerance, tolerance_of_keras(built))  # other backends than TensorFlow have less than float64
    compare(expected, _run(built, inputs), tolerance, len(inputs[0])).raise_if_different(what)
    return built


def _run(built: keras.Model, inputs: list[np.ndarray]) -> list[np.ndarray]:
    try:
        return run(built, inputs)
    except Exception as error:  # whatever the backend says of shapes that do not fit
        raise VerificationError(f"the Keras model made of the ONNX model does not run: {error}") from error


def _check_any_batch(
    proto: onnx.ModelProto, built: keras.Model, inputs: list[np.ndarray], expected: list[np.ndarray], tolerance: float
) -> None:
    """Raise a VerificationError unless two batches, one behind the other, give what ONNX gives for each."""
    if not all(map(np.ndim, expected)):
        raise VerificationError("an output has no batch axis")
    others = random_inputs(proto, seed=1)
    wanted = [np.concatenate(pair) for pair in zip(expected, run_onnx(proto, others), strict=True)]
    got = _run(built, [np.concatenate(pair) for pair in zip(inputs, others, strict=True)])
    what = "the Keras model made of the ONNX model, with a larger batch"
    tolerance = max(tolerance, tolerance_of_keras(built))
    compare(wanted, got, tolerance, len(wanted[0])).raise_if_different(what)


def _has_fixed_batch(proto: onnx.ModelProto, known: Known) -> bool:
    shapes = [known.shapes.get(value.name) for value in proto.graph.input if value.name not in known.initializers]
    return any(shape and shape[0] is not None for shape in shapes)
