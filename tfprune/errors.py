"""The errors tfprune raises, and the reason it gives when it leaves a channel where it is.

One root, `TfpruneError`: catching it catches everything tfprune says on purpose. A message says what was
needed, what came, where (the layer's name) and what to do about it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


class TfpruneError(Exception):
    """The root of every error that tfprune raises on purpose."""


class TraceError(TfpruneError):
    """The model cannot be read as a graph of layers."""


class PlanError(TfpruneError):
    """What was asked for (a ratio, a threshold, a scope, a plan) does not fit the model."""


class VerificationError(TfpruneError):
    """Two models that must agree do not. The wrong one is never handed over."""


class ExportError(TfpruneError):
    """A file could not be written, or does not compute what the Keras model computes."""


class CheckpointError(TfpruneError):
    """A checkpoint, plan or run directory is missing, damaged, or belongs to something else."""


class DivergedError(TfpruneError):
    """Training made numbers that are NaN or infinite."""


class DataError(TfpruneError):
    """A data set does not hold what training needs."""


class ProcessError(TfpruneError):
    """The processes that train one model together do not hold the same."""


@dataclass(frozen=True)
class Refusal:
    """Channels that stay although they were asked for, or look prunable, and why.

    Attributes:
        layer: the layer that writes the channels, as `outer/inner` for nested models.
        channels: their indices along that layer's output channels.
        reason: one sentence.
    """

    layer: str
    channels: tuple[int, ...]
    reason: str

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.channels[:8])) + (", ..." if len(self.channels) > 8 else "")
        count = f"{len(self.channels)} channel{'s' if len(self.channels) != 1 else ''}"
        return f"{self.layer}: {count} [{shown}] stay: {self.reason}"


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean ...?`, or nothing.

    >>> nearest("conv2", ["conv1", "stem"])
    "; did you mean 'conv1'?"
    """
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {', '.join(map(repr, close))}?" if close else ""
