"""From an ONNX model to a Keras model that can be trained: `to_keras`."""

from tfprune.from_onnx.convert import to_keras

__all__ = ["to_keras"]
