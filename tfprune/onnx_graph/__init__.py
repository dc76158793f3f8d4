"""ONNX and channels: tracing a model, and writing what is left of it."""
