"""Widths that a layer can only set as one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tfprune.channels.labels import Labels, Shape
from tfprune.channels.ops.base import Facts, Narrowing, Op


@dataclass(eq=False)
class Together(Op):
    """Two values whose channels along the last axis are kept or removed together; nothing is computed."""

    def obstacle(self, labels: Labels, shapes: dict[int, Shape]) -> str | None:
        a, b = (labels.of[value].shape[-1] for value in self.inputs)
        return None if a == b or 1 in (a, b) else f"{self.layer} has widths that do not match"

    def label(self, labels: Labels, shapes: dict[int, Shape]) -> None:
        a, b = (labels.of[value] for value in self.inputs)
        others = max(a.ndim, b.ndim)
        a, b = (array.reshape((1,) * (others - array.ndim) + array.shape) for array in (a, b))
        labels.tie(a, b)

    def forward(self, facts: Facts) -> None:
        pass

    def backward(self, facts: Facts) -> None:
        for value in self.inputs:
            facts.demand(value, np.zeros(facts.labels[value].shape, bool))

    def narrow(self, new: Narrowing) -> None:
        pass
