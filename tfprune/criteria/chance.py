"""Chance: what any criterion has to beat."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tfprune.criteria.base import GroupView, register_criterion
from tfprune.errors import PlanError


@dataclass(frozen=True)
class Random:
    """Uniform in [0, 1): the same for the same seed and group name, whatever else is scored.

    Attributes:
        seed: a whole number of at least 0.

    Raises:
        PlanError: it is none.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int | np.integer) or self.seed < 0:
            raise PlanError(f"a seed is a whole number of at least 0, and {self.seed!r} came")

    def __call__(self, view: GroupView) -> NDArray[np.float64]:
        return np.random.default_rng([self.seed, zlib.crc32(view.group.name.encode())]).random(view.width)


register_criterion("random")(Random())
