"""Dense, EinsumDense, and Embedding, which is a kernel that is looked up."""

from __future__ import annotations

import math
import string

import numpy as np
from keras import layers

from tfprune.keras_graph.lowering import Lowering, Refused, register_rule
from tfprune.keras_graph.rules.activations import activated
from tfprune.keras_graph.rules.convolutions import positions, variable


@register_rule(layers.Dense)
def dense(layer, lower: Lowering) -> int:
    x = lower.inputs[0]
    last = len(lower.shape(x)) - 1
    y = lower.contract(
        x,
        variable(layer, "kernel"),
        read=[(last, 0)],
        write=[(last, 1)],
        shape=lower.output_shape,
        bias=layer.bias if layer.use_bias else None,
        positions=positions(lower.output_shape, last),
    )
    lower.settings(lambda new: {"units": new.shape(y)[last]})
    return activated(layer, lower, y)


def _expanded(equation: str, rank: int) -> tuple[str, str, str]:
    """The letters of input, kernel and output, the batch axis in front; an ellipsis becomes letters."""
    operands, _, output = equation.replace(" ", "").partition("->")
    source, _, kernel = operands.partition(",")
    missing = rank - len(source.replace("...", ""))
    spare = "".join(letter for letter in string.ascii_letters if letter not in equation)[:missing]
    return source.replace("...", spare), kernel, output.replace("...", spare)


@register_rule(layers.EinsumDense)
def einsum_dense(layer, lower: Lowering):
    x = lower.inputs[0]
    source, kernel, output = _expanded(layer.equation, len(lower.shape(x)) + 1)
    shape = lower.output_shape
    if source[:1] != output[:1] or source[:1] in kernel or len(set(source + kernel)) < len({*source, *kernel}):
        return Refused(f"its equation {layer.equation} moves the batch axis")
    read = [(source.index(k) - 1, i) for i, k in enumerate(kernel) if k in source and k not in output]
    write = [(output.index(k) - 1, i) for i, k in enumerate(kernel) if k in output and k not in source]
    both = [(k, i) for i, k in enumerate(kernel) if k in source and k in output]
    common = [(source.index(k) - 1, i, output.index(k) - 1) for k, i in both]
    passed = [letter for letter in source if letter not in kernel]
    same = passed == [letter for letter in output if letter not in kernel]
    if not same or len(read) + len(write) + len(common) != len(kernel):
        return Refused(f"its equation {layer.equation} does more than to multiply by a kernel")
    written = [output[axis + 1] for axis in sorted(axis for axis, _ in write) or [axis for *_, axis in common]]
    if layer.bias_axes and "".join(written) != layer.bias_axes:
        return Refused(f"its bias {layer.bias_axes} has other axes than what it writes ({''.join(written)})")
    y = lower.contract(
        x,
        variable(layer, "kernel"),
        read=sorted(read),
        write=sorted(write),
        shape=shape,
        bias=layer.bias,
        pads=bool(common),
        # What the kernel does not name is how often it is applied.
        positions=_product([lower.shape(x)[source.index(letter) - 1] for letter in passed[1:]]),
        foldable=layer.bias is not None,
        along=common,
    )
    given = layer.partial_output_shape
    kept = len(given) if "..." in layer.equation else len(shape)
    lower.settings(lambda new: {"output_shape": new.shape(y)[len(shape) - kept :]})
    return activated(layer, lower, y)


def _product(sizes: list[int | None]) -> int:
    return 0 if None in sizes else math.prod(sizes)  # type: ignore[arg-type]


@register_rule(layers.Embedding)
def embedding(layer, lower: Lowering) -> int:
    x = lower.inputs[0]
    last = len(lower.shape(x))
    y = lower.contract(
        x, variable(layer, "embeddings"), read=[], write=[(last, 1)], shape=lower.output_shape, pads=True
    )
    lower.settings(lambda new: {"output_dim": new.shape(y)[last]})
    return y


def reversible_embedding(layer, lower: Lowering):
    """The same table looked up, and transposed to give logits."""
    reverse = lower.arguments().get("reverse", False)
    if not reverse:
        return embedding(layer, lower)
    x = lower.inputs[0]
    last = len(lower.shape(x)) - 1
    # Its other call says what the settings are.
    if layer.tie_weights:
        table, read, write, roles = variable(layer, "embeddings"), [(last, 1)], [(last, 0)], ("write", "read")
    else:
        table, read, write, roles = layer.reverse_embeddings, [(last, 0)], [(last, 1)], ("read", "write")
    y = lower.contract(
        x,
        table,
        read=read,
        write=write,
        shape=lower.output_shape,
        positions=positions(lower.output_shape, last),
        foldable=False,
        roles=roles,
    )
    lower.settings(lambda new: {"output_dim": new.shape(x)[last], "input_dim": new.shape(y)[last]})
    if layer.logit_soft_cap is None:
        return y
    cap = layer.logit_soft_cap
    return lower.map(y, lambda constant: np.tanh(constant / cap) * cap)


if hasattr(layers, "ReversibleEmbedding"):
    register_rule(layers.ReversibleEmbedding)(reversible_embedding)
