"""TensorFlow's frozen graphs and SavedModels as ONNX models, so that they are pruned and stripped like any other."""

from tfprune.from_tensorflow.convert import from_tensorflow

__all__ = ["from_tensorflow"]
