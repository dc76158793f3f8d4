"""From an ONNX model to its ChannelGraph."""

from __future__ import annotations

from typing import Any

from tfprune.channels.graph import ChannelGraph
from tfprune.errors import TraceError
from tfprune.onnx_graph.model import load


def trace(model: Any) -> ChannelGraph:
    """Read an ONNX model as a graph of channels."""
    load(model)
    raise TraceError("ONNX models cannot be traced yet")
