"""Two models, the same inputs, the difference."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from tfprune.errors import VerificationError
from tfprune.frontend import is_onnx
from tfprune.keras_graph.arrays import numbers
from tfprune.keras_graph.expand import input_structure, readers, whole

# Of the largest output. float64 networks agree to rounding; float32 ones to what a sum in another order costs.
TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 5e-2, "float16": 5e-3}
# What TensorFlow computes in float32 in part, whatever the type of its inputs: attention's scale, interpolation.
PARTLY_SINGLE = frozenset(
    "MultiHeadAttention GroupedQueryAttention DotProductAttention UpSampling2D Resizing Resize AffineTransform".split()
)
ROUGH = 1e-6


@dataclass(frozen=True)
class Verification:
    """How far two models are apart on the same inputs.

    Attributes:
        difference: the largest absolute difference over all samples, of the output that agrees least.
        largest: the largest absolute number in that output of the reference model.
        spread: the largest standard deviation of any number in that output from one sample to the next; near 0,
            agreement says little, and the text says so.
        tolerance: the largest `relative` that counts as equal, a fraction of the largest output.
        samples: how many random inputs were compared.
    """

    difference: float
    largest: float
    spread: float
    tolerance: float
    samples: int

    @property
    def relative(self) -> float:
        """The difference as a fraction of the largest output (the difference itself if all outputs are 0)."""
        return self.difference / self.largest if self.largest > 0 else self.difference

    @property
    def equal(self) -> bool:
        """Whether the two models agree; NaN never agrees."""
        return bool(self.relative <= self.tolerance)

    def raise_if_different(self, what: str) -> Verification:
        """Return self, or raise `VerificationError` naming `what` was compared."""
        if not self.equal:
            raise VerificationError(
                f"{what}: outputs differ by {self.difference:.3g}, which is {self.relative:.3g} of the largest output "
                f"({self.largest:.3g}); at most {self.tolerance:g} was allowed over {self.samples} random inputs."
            )
        return self

    def __str__(self) -> str:
        verdict = "equal" if self.equal else "DIFFERENT"
        text = f"{verdict}: {self.relative:.2g} of the largest output (tolerance {self.tolerance:g})"
        if self.samples > 1 and self.spread <= 10 * self.tolerance * self.largest:
            text += f"; the outputs hardly vary with the inputs (by {self.spread:.2g}), so that this says little"
        return text


def compare(
    reference: Sequence[np.ndarray], other: Sequence[np.ndarray], tolerance: float, samples: int = 1
) -> Verification:
    """Compare two lists of output arrays, pairwise.

    >>> compare([np.array([1.0, -2.0])], [np.array([1.0, -2.0])], tolerance=1e-5).equal
    True
    >>> compare([np.array([1.0, -2.0])], [np.array([1.0, -2.1])], tolerance=1e-5).relative
    0.05...

    Raises:
        VerificationError: the lists differ in length, or a pair in shape.
    """
    shapes = [np.shape(a) for a in reference], [np.shape(b) for b in other]
    if shapes[0] != shapes[1]:
        raise VerificationError(f"output shapes differ: {shapes[0]} became {shapes[1]}")
    if not reference:
        raise VerificationError("there are no outputs to compare")
    pairs = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in zip(reference, other, strict=True)]
    # An infinity or NaN that both have at the same place is agreement; one that only one has is not.
    with np.errstate(invalid="ignore"):
        differences = [np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b)) for a, b in pairs]
    found = []
    for (a, _), difference in zip(pairs, differences, strict=True):
        finite = a[np.isfinite(a)]
        largest = float(np.max(np.abs(finite), initial=0.0))
        # A network that is all but constant agrees with anything: what counts is how it varies with its input.
        spread = float(np.max(np.std(np.where(np.isfinite(a), a, 0.0), axis=0), initial=0.0)) if a.ndim else 0.0
        found.append(Verification(float(np.max(difference, initial=0.0)), largest, spread, tolerance, samples))
    # The worst output speaks for all, each against its own scale; a NaN is worse than any number.
    return max(found, key=lambda one: (np.isnan(one.relative), one.relative))


def random_inputs(model: keras.Model, samples: int = 2, seed: int = 0, size: int | None = None) -> list[np.ndarray]:
    """Standard normal arrays that fit the model's inputs, flat: in the order of `model.inputs`.

    Unknown axes other than the batch get `size` entries; by default 32, and 8 in models with integer inputs, whose
    tables of positions may be short. Integer inputs get non-negative integers: below the smallest
    vocabulary of the embeddings that read them, and 0 or 1 if anything else reads them.
    """
    generator = np.random.default_rng(seed)
    arrays = []
    tensors = keras.tree.flatten(input_structure(model))
    size = size or (8 if any("int" in tensor.dtype for tensor in tensors) else 32)
    for place, tensor in enumerate(tensors):
        batch = samples if tensor.shape[0] is None else tensor.shape[0]
        shape = (batch, *(size if axis is None else axis for axis in tensor.shape[1:]))
        if "int" in tensor.dtype:
            arrays.append(generator.integers(0, _vocabulary(model, place), shape).astype(tensor.dtype))
        elif tensor.dtype == "bool":
            arrays.append(generator.integers(0, 2, shape).astype(bool))
        else:
            arrays.append(generator.standard_normal(shape).astype(tensor.dtype))
    return arrays


def _vocabulary(model: keras.Model, place: int) -> int:
    """How many different integers an input may hold."""
    body = whole(model)
    return max(2, min((getattr(one, "input_dim", 2) for one in readers(body, body.inputs[place])), default=2))


def run(
    model: keras.Model, inputs: Sequence[np.ndarray], weights: Sequence[tuple[keras.Variable, np.ndarray]] = ()
) -> list[np.ndarray]:
    """The outputs of `model` at inference, flat, in the order of `model.outputs`.

    Args:
        inputs: flat, in the order of `random_inputs`.
        weights: (variable, array), to compute with other arrays than the variables hold, which are not changed.
    """
    packed = keras.tree.pack_sequence_as(input_structure(model), list(inputs))
    held = [*weights, *((state, keras.ops.zeros_like(state.value)) for state in _states(model))]
    with keras.StatelessScope(state_mapping=held) if held else contextlib.nullcontext():
        outputs = model(packed, training=False)
    return [numbers(keras.ops.cast(y, _comparable(y.dtype))) for y in keras.tree.flatten(outputs)]


def _states(model: keras.Model) -> list[keras.Variable]:
    """What stateful recurrent layers carry from one batch to the next; a comparison starts from zeros."""
    layers = [layer for layer in model._flatten_layers() if getattr(layer, "stateful", False)]
    states = [state for layer in layers for state in keras.tree.flatten(getattr(layer, "states", None))]
    return [state for state in states if isinstance(state, keras.Variable)]


def _comparable(dtype) -> str:
    """numpy has no bfloat16: read it as float32."""
    name = keras.backend.standardize_dtype(dtype)
    return "float32" if name == "bfloat16" else name


def tolerance_of(model: keras.Model) -> float:
    """The tolerance of the coarsest dtype that anything in the model computes in."""
    layers = list(model._flatten_layers())
    dtypes = {str(getattr(layer, "compute_dtype", "float32")) for layer in layers}
    used = {type(operation) for layer in layers for operation in (layer, *getattr(layer, "operations", ()))}
    # Keras' type promotion makes 64 bits 32 on other backends: a float64 Dense computes in float32 there.
    single = keras.backend.backend() != "tensorflow" or any(kind.__name__ in PARTLY_SINGLE for kind in used)
    return max(ROUGH if single else 0.0, *(TOLERANCE.get(dtype, 0.0) for dtype in dtypes))


def _runner(model: Any) -> Any:
    """Where `random_inputs`, `run` and `tolerance_of` for this kind of model are."""
    return importlib.import_module("tfprune.onnx_graph.run" if is_onnx(model) else __name__)


def verify(
    reference: Any,
    other: Any | Callable[[list[np.ndarray]], Sequence[np.ndarray]],
    *,
    samples: int = 2,
    seed: int = 0,
    tolerance: float | None = None,
    inputs: Sequence[np.ndarray] | None = None,
    weights: Sequence[tuple[keras.Variable, np.ndarray]] = (),
) -> Verification:
    """Run both models on the same random inputs and report how far apart they are.

    Args:
        reference: a built Keras model, or an ONNX model (a `ModelProto` or the path of a file).
        other: a model with the same inputs, or a function from a list of input arrays to a list of outputs.
        samples: the batch of random inputs.
        seed: of the random inputs.
        tolerance: a fraction of the largest output; by default 1e-5 for float32 and 1e-12 for float64 (1e-6 where
            TensorFlow computes in float32 all the same).
        inputs: arrays to use instead of random ones, flat, in the order of `reference.inputs`.
        weights: (variable, array): what the reference computes with instead of what its variables hold.

    Returns:
        A `Verification`; ask it `.equal`, or call `.raise_if_different(what)`.
    """
    own = _runner(reference)
    arrays = list(own.random_inputs(reference, samples, seed) if inputs is None else inputs)
    expected = own.run(reference, arrays, weights)
    known = isinstance(other, keras.Model) or is_onnx(other)
    got = _runner(other).run(other, arrays) if known else list(other(arrays))
    limit = own.tolerance_of(reference) if tolerance is None else tolerance
    return compare(expected, got, limit, samples=len(arrays[0]))
