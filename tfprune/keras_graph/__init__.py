"""Keras <-> channels: the only folder that touches Keras' graph internals."""
