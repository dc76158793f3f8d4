"""Attention: queries, keys and values are kernels that write heads; scores and their average are products."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import layers

from tfprune.keras_graph.lowering import Lowering, Refused, register_rule
from tfprune.keras_graph.rules.convolutions import positions


def unknown(*constants: np.ndarray) -> np.ndarray:
    """Nothing is known of the result, whatever the constants."""
    return np.full(np.broadcast_shapes(*(np.shape(constant) for constant in constants)), np.nan)


@dataclass(frozen=True)
class _Heads:
    """The values inside of an attention layer; `weights` are those of the average, and `result` what it returns."""

    query: int
    q: int
    v: int
    weights: int
    output: int
    result: Any


def _attention(layer: Any, lower: Lowering, repeats: int = 1) -> _Heads | Refused:
    """What MultiHeadAttention and GroupedQueryAttention have in common.

    Args:
        repeats: how many query heads share a key head.
    """
    if lower.is_within:
        return Refused("attention inside of another layer is not followed")
    given = lower.arguments()
    query, value, mask = given["query"], given["value"], given.get("attention_mask")
    key = value if given.get("key") is None else given["key"]
    if not all(isinstance(tensor, int) for tensor in (query, value, key)):
        return Refused("its query, key or value is no tensor of the model")
    if any(given.get(f"{name}_mask") is not None for name in ("query", "value", "key")):
        return Refused("masks are given to it by hand; attention_mask is followed")
    q = _projected(lower, layer._query_dense, query)
    k = _projected(lower, layer._key_dense, key)
    v = _projected(lower, layer._value_dense, value)
    if repeats > 1:
        k, v = (
            lower.gather(
                heads,
                len(lower.shape(heads)) - 2,
                lambda size: np.repeat(np.arange(size), repeats),
                layer.num_query_heads,
            )
            for heads in (k, v)
        )
    # The batch axis is the first letter of every operand.
    dot, combine = (text.replace(text[0], "") for text in (layer._dot_product_equation, layer._combine_equation))
    operands, _, scored = dot.partition("->")
    letters = operands.split(",")
    # The query has the letters of what comes out.
    pair = (q, k) if letters[0][:-1] == combine.partition("->")[2][:-1] else (k, q)
    sizes = dict(zip("".join(letters), (size for heads in pair for size in lower.shape(heads)), strict=True))
    weights = lower.product(*pair, dot, tuple(sizes[letter] for letter in scored))
    if isinstance(mask, int):
        weights = lower.combine((weights, mask), "mask", unknown, lower.shape(weights))
    weights = lower.map(weights, unknown)
    # A row that is masked throughout averages nothing.
    masked = mask is not None or lower.masked
    shape = (*lower.shape(q)[:-1], lower.shape(v)[-1])
    mixed = lower.product(weights, v, combine, shape, averages=not masked)
    if getattr(layer, "_gate_dense", None) is not None:
        gate = _projected(lower, layer._gate_dense, query)
        mixed = lower.combine((mixed, gate), "multiply", np.multiply, shape)
    output = _projected(lower, layer._output_dense, mixed)
    result = (output, weights) if given.get("return_attention_scores") else output
    return _Heads(query, q, v, weights, output, result)


def _projected(lower: Lowering, inner: Any, value: int) -> int:
    shape = tuple(inner.compute_output_shape((None, *lower.shape(value)))[1:])
    result = lower.within(inner, (value,), (shape,))
    assert not isinstance(result, Refused), result
    return result[0]


def _keep_scale(layer: Any, lower: Lowering, q: int) -> None:
    """Scores are divided by the square root of the key width: the query's weights make up for its change."""
    old = lower.shape(q)[-1]
    assert old is not None

    def factor(new: Any) -> float:
        return math.sqrt((new.shape(q)[-1] or old) / old)

    for variable in layer._query_dense.weights:
        lower.compensate(variable, factor)


@register_rule(layers.MultiHeadAttention)
def multi_head_attention(layer, lower: Lowering):
    heads = _attention(layer, lower)
    if isinstance(heads, Refused):
        return heads
    _keep_scale(layer, lower, heads.q)
    rank = len(lower.shape(heads.output)) - len(lower.shape(heads.query)) + 1
    lower.settings(
        lambda new: {
            "num_heads": new.shape(heads.q)[-2],
            "key_dim": new.shape(heads.q)[-1],
            "value_dim": new.shape(heads.v)[-1],
            "output_shape": new.shape(heads.output)[-rank:],
        }
    )
    return heads.result


@register_rule(layers.GroupQueryAttention)
def grouped_query_attention(layer, lower: Lowering):
    repeats = layer.num_query_heads // layer.num_key_value_heads
    heads = _attention(layer, lower, repeats)
    if isinstance(heads, Refused):
        return heads
    _keep_scale(layer, lower, heads.q)
    # One width for keys and values; one for what comes in and what goes out.
    lower.together(heads.q, heads.v)
    lower.together(heads.query, heads.output)
    lower.settings(
        lambda new: {
            "num_query_heads": new.shape(heads.q)[-2],
            "num_key_value_heads": new.shape(heads.q)[-2] // repeats,
            "head_dim": new.shape(heads.q)[-1],
        }
    )
    return heads.result


@register_rule(layers.Attention, layers.AdditiveAttention)
def attention(layer, lower: Lowering):
    if lower.is_within or len(lower.node.input_tensors) not in (2, 3):
        return Refused("it is not called on [query, value] or [query, value, key]")
    q, v, k = (*lower.inputs, lower.inputs[1])[:3]
    if any(len(lower.shape(value)) != 2 for value in (q, v, k)):
        return Refused("its query, value and key have more than two axes")
    (queries, _), (keys, width) = lower.shape(q), lower.shape(k)
    if getattr(layer, "score_mode", "dot") == "dot" and not isinstance(layer, layers.AdditiveAttention):
        scores = lower.product(q, k, "tc,sc->ts", (queries, keys))
    else:
        shape = (queries, keys, width)
        wide = lower.reshape(q, (queries, 1, width)), lower.reshape(k, (1, keys, width))
        summed = lower.map(lower.combine(wide, "add", np.add, shape), np.tanh)
        vector = layer.scale if isinstance(layer, layers.AdditiveAttention) else None
        if vector is None:
            # Only what is 0 adds nothing to the sum.
            scores = lower.reduce(
                summed, (2,), False, lambda constant, count: np.where(constant == 0, 0, np.nan), np.sum
            )
        else:
            scores = lower.contract(
                summed, vector, read=[(2, 0)], write=[], shape=(queries, keys), positions=positions(shape, 2)
            )
    weights = lower.map(scores, unknown)
    given = lower.arguments()
    masked = given.get("mask") is not None or lower.masked
    y = lower.product(weights, v, "ts,sd->td", (queries, lower.shape(v)[1]), averages=not masked)
    return (y, weights) if given.get("return_attention_scores") else y
