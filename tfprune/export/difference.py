"""How far a file is from the model it was made of, and how far it may be.

A file that computes what the model computes differs by rounding: its largest difference is measured. Integers make an
error in every number, the largest of which says little: there the error's norm is measured against the output's, and
whether the largest output is still the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np

from tfprune.errors import VerificationError
from tfprune.verify import compare, tolerance_of


@dataclass(frozen=True)
class Difference:
    """What was measured.

    Attributes:
        largest: the largest difference, as a fraction of the largest output.
        noise: the norm of the difference, as a fraction of the outputs' norm.
        agreement: of how many samples (a fraction) the largest of an output's numbers is the same one; None where no
            output is a vector.
        samples: how many were compared.
    """

    largest: float
    noise: float
    agreement: float | None
    samples: int


@dataclass(frozen=True)
class Limits:
    """The largest that `Difference.largest` and `Difference.noise` may be, and the smallest that `agreement` may be."""

    largest: float = float("inf")
    noise: float = float("inf")
    agreement: float = 0.0

    @classmethod
    def of(cls, model: keras.Model) -> Limits:
        """By the coarsest type that the model computes in."""
        return cls(largest=tolerance_of(model))

    def instead(self, tolerance: float | None) -> Limits:
        """The user's number in place of the one that counts here."""
        if tolerance is None:
            return self
        return Limits(noise=tolerance) if np.isinf(self.largest) else Limits(largest=tolerance)

    def check(self, what: str, found: Difference) -> None:
        """Raise a VerificationError that names `what` if `found` is beyond a limit; NaN always is."""
        if not found.largest <= self.largest:
            raise VerificationError(
                f"{what}: outputs differ by {found.largest:.3g} of the largest output; at most {self.largest:g} was "
                f"allowed over {found.samples} inputs"
            )
        if not found.noise <= self.noise:
            raise VerificationError(
                f"{what}: outputs differ by {found.noise:.3g} of their norm; at most {self.noise:g} was allowed over "
                f"{found.samples} inputs"
            )
        if found.agreement is not None and not found.agreement >= self.agreement:
            raise VerificationError(
                f"{what}: the largest output is the same one for {found.agreement:.0%} of {found.samples} inputs; at "
                f"least {self.agreement:.0%} was asked for"
            )


def measure(reference: Sequence[np.ndarray], got: Sequence[np.ndarray]) -> Difference:
    """Compare two lists of output arrays.

    >>> measure([np.array([[3.0, 4.0]])], [np.array([[3.0, 3.5]])])
    Difference(largest=0.125, noise=0.1, agreement=1.0, samples=1)

    Raises:
        VerificationError: the lists differ in length, or a pair in shape.
    """
    samples = len(reference[0]) if reference and np.ndim(reference[0]) else 1
    largest = compare(reference, got, np.inf, samples).relative
    pairs = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in zip(reference, got, strict=True)]
    vectors = [(a, b) for a, b in pairs if a.ndim == 2 and a.shape[1] > 1]
    agreement = [float(np.mean(a.argmax(1) == b.argmax(1))) for a, b in vectors]
    return Difference(largest, max(_noise(a, b) for a, b in pairs), min(agreement, default=None), samples)


def _noise(a: np.ndarray, b: np.ndarray) -> float:
    with np.errstate(invalid="ignore"):
        apart = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, a - b)
    norm = float(np.linalg.norm(np.where(np.isfinite(a), a, 0.0)))
    return float(np.linalg.norm(apart)) / norm if norm else float(np.linalg.norm(apart))
