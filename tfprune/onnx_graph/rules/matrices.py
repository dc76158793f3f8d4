"""Gemm, MatMul and Einsum: by a constant they are kernels, of two values they are products."""

from __future__ import annotations

import string
from typing import Any

import numpy as np

from tfprune.onnx_graph.lowering import Lowering, Refused, register_node


@register_node("Gemm")
def gemm(lower: Lowering) -> Any:
    if lower.fixed(0) or not lower.fixed(1) or (lower.has(2) and not lower.fixed(2)):
        return Refused("it multiplies by something else than a constant matrix")
    x, kernel = lower.value(0), lower.kernel(1)
    if lower.attribute("transA", 0):
        x = lower.permute(x, (1, 0))
    flipped = bool(lower.attribute("transB", 0))
    alpha, beta = float(lower.attribute("alpha", 1.0)), float(lower.attribute("beta", 1.0))
    width = kernel.shape[0 if flipped else 1]
    shape = lower.constant_shape(2) if lower.has(2) else ()
    is_vector = lower.has(2) and int(np.prod(shape)) == width and shape[-1:] == (width,)
    plain = alpha == 1 and beta == 1 and (is_vector or not lower.has(2))
    y = lower.contract(
        x,
        kernel,
        read=[(1, 1 if flipped else 0)],
        write=[(1, 0 if flipped else 1)],
        shape=lower.output_shape,
        bias=lower.beside(2, 1, "bias") if plain and lower.has(2) else None,
        positions=lower.positions(without=(1,)),
        foldable=plain,
    )
    if plain:
        return y
    if alpha != 1:
        y = lower.map(y, lambda constant: constant * alpha)
    if not lower.has(2):
        return y
    if is_vector:
        parameters = [(lower.beside(2, 1, "bias"), "shift")]
        return lower.affine(y, axis=1, parameters=parameters, coefficients=lambda b: (np.ones(1), beta * b))
    return lower.with_arrays(y, [None, (lower.own(2, "bias"), "shift")], "add", lambda a, b: a + beta * b)


@register_node("MatMul")
def matmul(lower: Lowering) -> Any:
    if lower.fixed(0) and not lower.fixed(1):
        return _from_the_left(lower)
    ranks = [len(lower.constant_shape(i)) if lower.fixed(i) else len(lower.shape(lower.value(i))) for i in (0, 1)]
    if lower.fixed(1):
        return _from_the_right(lower, *ranks)
    if min(ranks) < 2:
        return Refused("one of its factors is a vector")
    batch = string.ascii_lowercase[: max(ranks) - 2]
    first, second = batch[len(batch) - ranks[0] + 2 :] + "NK", batch[len(batch) - ranks[1] + 2 :] + "KM"
    return lower.product(
        lower.value(0), lower.value(1), f"{first},{second}->{batch}NM", lower.output_shape, averages=lower.averages(0)
    )


def _from_the_right(lower: Lowering, rank: int, kernel_rank: int) -> Any:
    """x @ W"""
    x, kernel = lower.value(0), lower.kernel(1)
    if rank == 1:
        return Refused("it multiplies a vector")
    if kernel_rank == 1:
        return lower.contract(
            x, kernel, read=[(rank - 1, 0)], write=[], shape=lower.output_shape, positions=lower.positions()
        )
    lead = kernel.shape[:-2]
    ones = all(size == 1 for size in lead)
    common = []
    if not ones:
        # A matrix of its own for each of what lies along some axes, as for heads.
        if rank < kernel_rank or any(lower.shape(x)[axis - kernel_rank] != size for axis, size in enumerate(lead)):
            return Refused("its constant matrices are stretched over its input")
        common = [(rank - kernel_rank + axis, axis, rank - kernel_rank + axis) for axis in range(len(lead))]
    elif rank < kernel_rank:
        return Refused("its constant adds axes")
    return lower.contract(
        x,
        kernel,
        read=[(rank - 1, kernel_rank - 2)],
        write=[(rank - 1, kernel_rank - 1)],
        shape=lower.output_shape,
        positions=lower.positions(without=(-1, *(axis for axis, *_ in common))),
        pads=bool(common),
        foldable=not common,
        along=common,
    )


def _from_the_left(lower: Lowering) -> Any:
    """W @ x: sums over the last axis but one."""
    x, kernel = lower.value(1), lower.kernel(0)
    rank = len(lower.shape(x))
    if len(kernel.shape) != 2 or rank < 2:
        return Refused("it multiplies by constants that are no matrix")
    return lower.contract(
        x,
        kernel,
        read=[(rank - 2, 1)],
        write=[(rank - 2, 0)],
        shape=lower.output_shape,
        positions=lower.positions(without=(-2,)),
        foldable=False,
    )


@register_node("Einsum")
def einsum(lower: Lowering) -> Any:
    equation = lower.attribute("equation").replace(" ", "")
    operands, arrow, output = equation.partition("->")
    letters = operands.split(",")
    if "." in equation or not arrow or len(letters) != 2 or any(len(set(o)) < len(o) for o in (*letters, output)):
        return Refused(f"its equation {equation} is not of two tensors with all axes named once")
    if not any(map(lower.fixed, (0, 1))):
        return lower.product(lower.value(0), lower.value(1), equation, lower.output_shape)
    which = 1 if lower.fixed(1) else 0
    if lower.fixed(1 - which):
        return Refused("both of its factors are constants")
    x, kernel, source, own = lower.value(1 - which), lower.kernel(which), letters[1 - which], letters[which]
    read = [(source.index(k), i) for i, k in enumerate(own) if k in source and k not in output]
    write = [(output.index(k), i) for i, k in enumerate(own) if k in output and k not in source]
    common = [(source.index(k), i, output.index(k)) for i, k in enumerate(own) if k in source and k in output]
    same = [k for k in source if k not in own] == [k for k in output if k not in own]
    if not same or len(read) + len(write) + len(common) != len(own):
        return Refused(f"its equation {equation} does more than to multiply by a kernel")
    return lower.contract(
        x,
        kernel,
        read=sorted(read),
        write=sorted(write),
        shape=lower.output_shape,
        pads=bool(common),
        positions=lower.positions(without=[axis for axis, _ in write] + [axis for *_, axis in common]),
        foldable=False,
        along=common,
    )
