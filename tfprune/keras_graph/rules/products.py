"""Products of two tensors: Dot, matmul, einsum, and attention as an operation of `keras.ops`."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from tfprune.keras_graph.lowering import Lowering, Refused, register_operation, register_rule
from tfprune.keras_graph.rules.attention import unknown


@register_rule(layers.Dot)
def dot(layer, lower: Lowering):
    a, b = lower.inputs
    ranks = [len(lower.shape(value)) for value in (a, b)]
    axes = [layer.axes] * 2 if isinstance(layer.axes, int) else layer.axes
    first, second = (axis % (rank + 1) - 1 for axis, rank in zip(axes, ranks, strict=True))
    if -1 in (first, second):
        return Refused("it sums over the batch axis")
    if layer.normalize:
        a, b = (lower.normalize(value, [axis], centred=False) for value, axis in ((a, first), (b, second)))
    letters = list(string.ascii_letters[: sum(ranks)])
    left, right = letters[: ranks[0]], letters[ranks[0] :]
    right[second] = left[first]
    out = "".join(letter for letter in left + right if letter != left[first])
    shape = lower.output_shape
    y = lower.product(a, b, f"{''.join(left)},{''.join(right)}->{out}", shape if out else ())
    return y if out else lower.reshape(y, shape)


@register_operation("Matmul")
def matmul(operation, lower: Lowering):
    if len(lower.inputs) != 2:
        return Refused("one of its factors is written into the model")
    a, b = lower.inputs
    ranks = [len(lower.shape(value)) for value in (a, b)]
    if ranks[0] != ranks[1] or ranks[0] < 2:
        return Refused("its factors have different ranks, so that one's batch axis meets another's channels")
    batch, (n, k, m) = string.ascii_lowercase[: ranks[0] - 2], "NKM"
    return lower.product(a, b, f"{batch}{n}{k},{batch}{k}{m}->{batch}{n}{m}", lower.output_shape)


@register_operation("Einsum")
def einsum(operation, lower: Lowering):
    operands, arrow, output = operation.subscripts.replace(" ", "").partition("->")
    letters = operands.split(",")
    if len(letters) != 2 or len(lower.inputs) != 2 or not arrow:
        return Refused(f"{operation.subscripts} is not of two tensors")
    missing = {
        len(lower.shape(value)) + 1 - len(own.replace("...", ""))
        for own, value in zip(letters, lower.inputs, strict=True)
        if "..." in own
    }
    if len(missing) > 1 or ("..." in output and not missing):
        return Refused(f"its equation {operation.subscripts} has ellipses of different lengths")
    unused = [letter for letter in string.ascii_letters if letter not in operation.subscripts]
    spare = "".join(unused[: max(missing, default=0)])
    letters = [own.replace("...", spare) for own in letters]
    output = output.replace("...", spare)
    first = letters[0][:1]
    if any(own[:1] != first or len(set(own)) < len(own) for own in (*letters, output)):
        return Refused(f"its equation {operation.subscripts} moves the batch axis")
    return lower.product(*lower.inputs, f"{letters[0][1:]},{letters[1][1:]}->{output[1:]}", lower.output_shape)


@register_operation("DotProductAttention")
def dot_product_attention(operation, lower: Lowering):
    given = lower.arguments()
    q, k, v = (given[name] for name in ("query", "key", "value"))
    if not all(isinstance(value, int) for value in (q, k, v)) or len(lower.shape(q)) != 3:
        return Refused("its query, key and value are not three tensors")
    (queries, heads, width), (keys, shared, _) = lower.shape(q), lower.shape(k)
    if not heads or not shared or not width or heads % shared:
        return Refused("its heads are not known")
    if heads > shared:
        repeats = heads // shared
        k, v = (lower.gather(value, 1, lambda size: np.repeat(np.arange(size), repeats), heads) for value in (k, v))
    # The operation takes its output to be as wide as its query.
    lower.together(q, v)
    weights = lower.product(q, k, "thd,shd->hts", (heads, queries, keys))
    weights = _with(lower, weights, [given.get(name) for name in ("bias", "mask")])
    _keep_scale(operation, lower, q, given)
    return lower.product(weights, v, "hts,shd->thd", lower.output_shape, averages=given.get("mask") is None)


def _with(lower: Lowering, scores: int, others: Sequence[Any]) -> int:
    """Scores with biases and masks that are tensors, through softmax."""
    tensors = [value for value in others if isinstance(value, int)]
    if tensors:
        scores = lower.combine((scores, *tensors), "mask", unknown, lower.shape(scores))
    return lower.map(scores, unknown)


def _keep_scale(operation: Any, lower: Lowering, q: int, given: dict[str, Any]) -> None:
    """Without a scale of its own it divides by the square root of the width: say the old one."""
    old = lower.shape(q)[-1] or 1
    names = [name for name, value in given.items() if isinstance(value, int)]

    def write(new: Any, operation: Any, tensors: list[Any]) -> Any:
        arguments = {
            **given,
            "scale": given.get("scale") or 1 / math.sqrt(old),
            **dict(zip(names, tensors, strict=True)),
        }
        for name in ("key", "value"):
            # On TensorFlow a single key head is not repeated for all query heads.
            if arguments[name].shape[2] == 1:
                arguments[name] = keras.ops.repeat(arguments[name], arguments["query"].shape[2], axis=2)
        return keras.ops.dot_product_attention(
            **arguments,
            is_causal=operation.is_causal,
            flash_attention=operation.flash_attention,
            attn_logits_soft_cap=operation.attn_logits_soft_cap,
        )

    lower.rewrite(write)
