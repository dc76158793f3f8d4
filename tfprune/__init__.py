"""tfprune: structured pruning that makes Keras 3 models smaller and faster.

Names are imported when they are first used, so that `tfprune --help` does not wait for a backend.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfprune.channels.graph import ChannelGraph
    from tfprune.channels.plan import PruningPlan
    from tfprune.cost import cost
    from tfprune.errors import TfpruneError
    from tfprune.export import export
    from tfprune.from_onnx import to_keras
    from tfprune.from_tensorflow import from_tensorflow
    from tfprune.frontend import trace
    from tfprune.keras_graph.lowering import register_rule
    from tfprune.monitor import ConvergenceMonitor
    from tfprune.pruning import Pruning
    from tfprune.remove_layers import remove_layers
    from tfprune.resume import Resume
    from tfprune.selection import select
    from tfprune.sensitivity import sensitivity
    from tfprune.soft import soft_prune
    from tfprune.soft_pruning import SoftPruning
    from tfprune.strip import StripResult, strip
    from tfprune.verify import verify

_HOMES = {
    "ChannelGraph": "channels.graph",
    "ConvergenceMonitor": "monitor",
    "Pruning": "pruning",
    "PruningPlan": "channels.plan",
    "Resume": "resume",
    "SoftPruning": "soft_pruning",
    "StripResult": "strip",
    "TfpruneError": "errors",
    "cost": "cost",
    "export": "export",
    "from_tensorflow": "from_tensorflow",
    "register_rule": "keras_graph.lowering",
    "remove_layers": "remove_layers",
    "select": "selection",
    "sensitivity": "sensitivity",
    "soft_prune": "soft",
    "strip": "strip",
    "to_keras": "from_onnx",
    "trace": "frontend",
    "verify": "verify",
}

__all__ = [
    "ChannelGraph",
    "ConvergenceMonitor",
    "Pruning",
    "PruningPlan",
    "Resume",
    "SoftPruning",
    "StripResult",
    "TfpruneError",
    "cost",
    "export",
    "from_tensorflow",
    "register_rule",
    "remove_layers",
    "select",
    "sensitivity",
    "soft_prune",
    "strip",
    "to_keras",
    "trace",
    "verify",
]
__version__ = "0.1.0"
_MODULES = ("recipes", "schedules", "sparse", "trackers")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"tfprune.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'tfprune' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"tfprune.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(types.ModuleType):
    """`tfprune.strip` is the function even after somebody has imported the module `tfprune.strip`."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
