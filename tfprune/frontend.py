"""What a model is written in, Keras or ONNX: the road into a channel graph and the road out of it.

Strip, selection, soft pruning and cost ask here, and know neither.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

from tfprune.channels.graph import ChannelGraph
from tfprune.channels.ops import Facts, Narrowing
from tfprune.channels.simplify import Replacement


def is_onnx(model: Any) -> bool:
    """Whether this is an ONNX model: a loaded `ModelProto`, or the path of a file.

    >>> is_onnx("model.onnx")
    True
    """
    return isinstance(model, str | os.PathLike) or type(model).__name__ == "ModelProto"


def trace(model: Any, inputs: Any = None) -> ChannelGraph:
    """Read a model as a graph of channels.

    Keras: nested models and shared layers are followed. So is a layer or model with Python code of its own, if its
    `call` works on symbolic tensors: it is run on some once, and left as it was.

    ONNX: every operator that has a rule is followed; others (custom domains, If, Loop) keep what they touch. Axes are
    counted with the batch axis.

    Args:
        model: a built Sequential or Functional Keras model, or one with a `call` of its own that has been called on
            data; or an ONNX model: an `onnx.ModelProto`, or the path of an .onnx file.
        inputs: for a Keras model with a `call` of its own that has not been called yet: `keras.Input`s, or shapes
            without the batch axis, in the structure it takes. They are remembered for the model, and build it if it is
            not built.

    Returns:
        a `ChannelGraph`; print it to see the channel groups, who writes and reads each, and whether it is prunable.

    Raises:
        TraceError: it is neither, is not built, has a `call` of its own that cannot be followed, or is a damaged file.

    >>> import keras, tfprune
    >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3), keras.layers.Flatten(),
    ...                           keras.layers.Dense(2)])
    >>> tfprune.trace(model).groups[0].width
    4
    """
    if is_onnx(model):
        return _home(model, "trace").trace(model)
    return _home(model, "trace").trace(model, inputs)


def rebuild(
    graph: ChannelGraph, facts: Facts, new: Narrowing, replacements: dict[int, Replacement] | None = None
) -> Any:
    """Build the smaller model; its `.model` is of the kind that was traced."""
    return _home(graph.model, "rebuild").rebuild(graph, facts, new, replacements)


def layers_of(model: Any) -> Any:
    """What finds a model's convolutions, and takes some of them out."""
    return _home(model, "remove_layers")


def _home(model: Any, module: str) -> Any:
    # Imported when used: a user of ONNX need not wait for Keras, nor have the other.
    folder = "onnx_graph" if is_onnx(model) else "keras_graph"
    return importlib.import_module(f"tfprune.{folder}.{module}")
