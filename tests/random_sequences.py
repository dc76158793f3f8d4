"""Random models over sequences of vectors: attention, recurrent layers, products, normalization, slices.

The steps of `random_models` work on feature maps; these on (positions, channels). Zeros come about in the same ways.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers, ops
from models import shaken
from random_models import Builder


class SequenceBuilder(Builder):
    """Grows a model of (positions, channels) values step by step."""

    def width(self, x: Any) -> int:
        return x.shape[-1]

    # ------------------------------------------------------------------ one step each

    def dense(self, x):
        units, bias, activation = self.pick(8, 4, 6, 12), self.pick(True, False), self.activation()
        self.note(f"dense {units} bias={bias} {activation}")
        return layers.Dense(units, activation=activation, use_bias=bias)(x)

    def conv1d(self, x):
        kernel, padding = self.pick((1, "valid"), (3, "same"), (3, "causal"))
        groups = self.pick(1, 1, 2)
        groups = 1 if self.width(x) % groups else groups
        self.note(f"conv1d k{kernel} {padding} g{groups}")
        return layers.Conv1D(self.pick(8, 4), kernel, padding=padding, groups=groups, use_bias=self.pick(True, False))(
            x
        )

    def multi_head(self, x):
        heads, width = self.pick(2, 3, 1), self.pick(4, 3)
        settings = {
            "value_dim": self.pick(None, 5),
            "use_bias": self.pick(True, False),
            "dropout": self.pick(0.1, 0.0),
            "output_shape": self.pick(None, 7),
        }
        kind = self.pick("itself", "another", "causal")
        self.note(f"attention {heads}x{width} {settings} to {kind}")
        other = layers.Dense(6)(x) if kind == "another" else x
        return layers.MultiHeadAttention(heads, width, **settings)(x, other, use_causal_mask=kind == "causal")

    def grouped_query(self, x):
        heads, shared = self.pick((4, 2), (2, 2), (3, 1))
        self.note(f"grouped-query attention {heads}/{shared}")
        return layers.GroupQueryAttention(4, heads, shared, use_bias=self.pick(True, False), dropout=0.1)(x, x)

    def by_hand(self, x):
        """Heads split off Dense layers, in the ways that people write it."""
        positions, heads, width = x.shape[1], self.pick(2, 3), self.pick(4, 2)
        form = self.pick("einsum", "matmul", "one kernel", "linear")
        self.note(f"heads by hand {heads}x{width} {form}")
        if form == "one kernel":
            both = ops.reshape(layers.Dense(3 * heads * width)(x), (-1, positions, 3, heads, width))
            q, k, v = (both[:, :, number] for number in range(3))
        else:
            q, k, v = (ops.reshape(layers.Dense(heads * width)(x), (-1, positions, heads, width)) for _ in range(3))
        if form == "linear":
            y = ops.einsum("bqhd,bhde->bqhe", q, ops.einsum("bkhd,bkhe->bhde", ops.sigmoid(k), v))
        elif form == "matmul":
            q, k, v = (ops.transpose(part, (0, 2, 1, 3)) for part in (q, k, v))
            weights = ops.softmax(ops.matmul(q, ops.transpose(k, (0, 1, 3, 2))) * 0.5, axis=-1)
            y = ops.transpose(ops.matmul(weights, v), (0, 2, 1, 3))
        else:
            y = ops.einsum("bhqk,bkhd->bqhd", ops.softmax(ops.einsum("bqhd,bkhd->bhqk", q, k), axis=-1), v)
        return ops.reshape(y, (-1, positions, heads * width))

    def plain_attention(self, x):
        cls = self.pick(layers.Attention, layers.AdditiveAttention)
        self.note(cls.__name__)
        q, k, v = layers.Dense(6)(x), layers.Dense(6)(x), layers.Dense(self.pick(5, 8))(x)
        return cls(use_scale=self.pick(True, False))([q, v, k])

    def dot(self, x):
        a, b = layers.Dense(6, use_bias=self.pick(True, False))(x), layers.Dense(6, activation=self.activation())(x)
        form = self.pick("dot", "normalized", "over positions", "einsum", "gate")
        self.note(f"dot {form}")
        if form == "einsum":
            return ops.einsum("btc,btc->btc", a, b)
        if form == "gate":
            return a * ops.sigmoid(b)
        return layers.Dot(1 if form == "over positions" else 2, normalize=form == "normalized")([a, b])

    def recurrent(self, x):
        cls = self.pick(layers.LSTM, layers.GRU, layers.SimpleRNN)
        settings = {"use_bias": self.pick(True, False), "go_backwards": self.pick(False, True)}
        if cls is layers.GRU:
            settings["reset_after"] = self.pick(True, False)
        layer = cls(self.pick(6, 4), return_sequences=True, **settings)
        kind = self.pick("alone", "both ways", "states")
        self.note(f"{cls.__name__} {settings} {kind}")
        if kind == "both ways":
            layer.go_backwards = False
            return layers.Bidirectional(layer, merge_mode=self.pick("concat", "sum", "mul", "ave"))(x)
        if kind == "states":
            y, *states = cls(6, return_sequences=True, return_state=True)(x)
            return cls(6, return_sequences=True)(y, initial_state=states)
        return layer(x)

    def normalize(self, x):
        channels = self.width(x)
        kind = self.pick("batch", "layer", "rms", "unit", "group", "instance", "positions")
        if kind == "positions" and keras.backend.backend() == "torch":  # fails in Keras itself
            kind = "layer"
        self.note(f"{kind} normalization")
        return {
            "batch": lambda: layers.BatchNormalization()(x),
            "layer": lambda: layers.LayerNormalization(center=self.pick(True, False))(x),
            "rms": lambda: layers.RMSNormalization()(x),
            "unit": lambda: layers.UnitNormalization()(x),
            "group": lambda: layers.GroupNormalization(2 if channels % 2 == 0 else 1)(x),
            "instance": lambda: layers.GroupNormalization(-1)(x),
            "positions": lambda: layers.LayerNormalization(axis=1)(x),
        }[kind]()

    def einsum_dense(self, x):
        positions = x.shape[1]
        form = self.pick("plain", "ellipsis", "scale", "by position", "heads", "blocks")
        self.note(f"EinsumDense {form}")
        if form == "plain":
            return layers.EinsumDense("abc,cd->abd", (positions, 6), bias_axes="d")(x)
        if form == "ellipsis":
            return layers.EinsumDense("...c,cd->...d", (6,), activation=self.activation())(x)
        if form == "scale":
            return layers.EinsumDense("...c,c->...c", (self.width(x),), bias_axes=self.pick("c", None))(x)
        if form == "by position":
            return layers.EinsumDense("abc,bcd->abd", (positions, 5))(x)
        y = layers.EinsumDense("abc,cde->abde", (positions, 2, 4), bias_axes=self.pick("de", None))(x)
        if form == "blocks":
            y = layers.EinsumDense("abde,def->abdf", (positions, 2, 3))(y)
            return layers.Reshape((positions, 6))(y)
        return layers.EinsumDense("abde,def->abf", (positions, 7), bias_axes="f")(layers.Activation("relu")(y))

    def residual(self, x):
        self.note("residual {")
        y = x
        for _ in range(self.pick(1, 2)):
            y = self.pick(self.dense, self.normalize, self.multi_head, self.mix_positions, self.recurrent)(y)
        if y.shape[1:] != x.shape[1:]:
            y = layers.Dense(self.width(x), use_bias=self.pick(True, False))(y)
        if y.shape[1:] != x.shape[1:]:
            return y
        kind = self.pick("+", "Add", "-", "*", "Maximum")
        self.note(f"}} {kind}")
        if kind in ("Add", "Maximum"):
            return getattr(layers, kind)()([x, y])
        return x + y if kind == "+" else x - y if kind == "-" else x * ops.tanh(y)

    def mix_positions(self, x):
        self.note("mix positions")
        y = layers.Permute((2, 1))(x)
        y = layers.Dense(x.shape[1], use_bias=self.pick(True, False))(layers.Dense(4, activation=self.activation())(y))
        return layers.Permute((2, 1))(y)

    def slices(self, x):
        channels, positions = self.width(x), x.shape[1]
        kind = self.pick("halves", "glu", "slice", "step", "positions", "roll", "flip", "uneven", "take", "unstack")
        if channels < 4 or positions < 3:
            return x
        self.note(f"slices {kind}")
        if kind in ("halves", "glu", "uneven"):
            cut = 1 if kind == "uneven" else channels // 2
            a, b = ops.split(x[..., : 2 * (channels // 2)], [cut], axis=-1)
            return a * ops.sigmoid(b) if kind == "glu" else ops.concatenate([b, a], axis=-1)
        if kind == "unstack":
            return ops.stack(list(ops.unstack(x, axis=-1))[::-1], axis=-1)
        return {
            "slice": lambda: x[..., 1 : channels - 1],
            "step": lambda: x[..., ::2],
            "positions": lambda: x[:, 1:],
            "roll": lambda: ops.roll(x, self.pick(1, 2), axis=-1),
            "flip": lambda: ops.flip(x, axis=-1),
            "take": lambda: ops.take(x, [0, 2, 1, channels - 1, 2], axis=-1),
        }[kind]()

    def repeats(self, x):
        channels = self.width(x)
        kind = self.pick("tile", "repeat", "stack", "pad", "pad positions", "with itself")
        if channels > 12:
            return x
        self.note(f"repeats {kind}")
        if kind == "stack":
            return ops.reshape(ops.stack([x, ops.relu(x)], axis=-1), (-1, x.shape[1], 2 * channels))
        return {
            "tile": lambda: ops.tile(x, (1, 1, 2)),
            "repeat": lambda: ops.repeat(x, 2, axis=-1),
            "pad": lambda: ops.pad(x, ((0, 0), (0, 0), (1, 2))),
            "pad positions": lambda: ops.pad(x, ((0, 0), (1, 0), (0, 0))),
            "with itself": lambda: ops.concatenate([x, x], axis=-1),
        }[kind]()

    def reductions(self, x):
        """What is read of all channels together comes back as a gate or as one more channel."""
        kind = self.pick("mean", "max", "sum", "min", "softmax", "positions", "logsumexp", "std")
        self.note(f"reduction {kind}")
        if kind == "softmax":
            return x * ops.softmax(x, axis=1)
        if kind == "positions":
            return x - ops.mean(x, axis=1, keepdims=True)
        found = getattr(ops, kind)(x, axis=-1, keepdims=True)
        return ops.concatenate([x, found], axis=-1) if self.pick(True, False) else x * ops.sigmoid(found)

    def distributed(self, x):
        self.note("TimeDistributed")
        return layers.TimeDistributed(layers.Dense(self.pick(6, 4), activation=self.activation()))(x)

    def composite(self, x):
        self.note("composite layer")
        return Block(self.pick(4, 6), self.activation())(x)

    def step(self, x):
        options = (
            self.dense, self.normalize, self.activate, self.residual, self.multi_head, self.recurrent, self.slices,
            self.conv1d, self.by_hand, self.repeats, self.reductions, self.einsum_dense, self.plain_attention, self.dot,
            self.grouped_query, self.mix_positions, self.distributed, self.composite, self.share_dense,
        )  # fmt: skip
        y = self.pick(*options)(x)
        # Products over positions may give other shapes; sizes stay small.
        return layers.Dense(8)(y) if self.width(y) > 24 or y.shape[1] > 12 else y

    def activate(self, x):
        name = self.activation()
        self.note(name)
        return layers.Activation(name)(x)

    def share_dense(self, x):
        self.note("shared dense")
        layer = layers.Dense(self.width(x), activation="relu", use_bias=self.pick(True, False))
        return layer(layer(x)) if self.pick(True, False) else layer(x) + layer(layers.Dense(self.width(x))(x))

    def head(self, x):
        kind = self.pick("mean", "flatten", "first", "map", "last state", "two")
        self.note(f"head {kind}")
        if kind == "mean":
            return layers.Dense(3)(layers.GlobalAveragePooling1D()(x))
        if kind == "flatten":
            return layers.Dense(3)(layers.Flatten()(x))
        if kind == "first":
            return layers.Dense(3)(x[:, 0])
        if kind == "last state":
            return layers.Dense(3)(layers.LSTM(4)(x))
        if kind == "two":
            return [layers.Dense(3)(layers.GlobalMaxPooling1D()(x)), layers.Dense(2)(x)]
        return layers.Dense(2)(x)

    def model(self, most_steps: int = 6) -> keras.Model:
        if self.pick(False, True):
            self.note("token ids")
            inputs = keras.Input((self.pick(5, 6),), dtype="int32")
            x = layers.Embedding(7, 8, mask_zero=self.pick(False, True))(inputs)
        else:
            inputs = keras.Input((self.pick(5, 6), 3))
            x = layers.Dense(self.pick(8, 4, 6), use_bias=self.pick(True, False))(inputs)
        for _ in range(1 + self.draw(most_steps)):
            x = self.step(x)
        return shaken(keras.Model(inputs, self.head(x)), seed=self.draw(1000))

    def _zero(self, array: np.ndarray, variable: Any, kind: str) -> None:
        # Kernels of attention have heads before the last axis; a whole head goes along the second to last.
        if array.ndim == 3 and kind == "single weights":
            array[:, self.draw(array.shape[1])] = 0
        else:
            super()._zero(array, variable, kind)


@keras.saving.register_keras_serializable("tests")
class Block(layers.Layer):
    """A layer made of layers, with a residual connection of its own."""

    def __init__(self, units: int, activation: str, **settings):
        super().__init__(**settings)
        self.units, self.activation = units, activation

    def build(self, shape):
        self.narrow = layers.Dense(self.units, activation=self.activation, name="narrow")
        self.wide = layers.Dense(shape[-1], name="wide")
        self.narrow.build(shape)
        self.wide.build((*shape[:-1], self.units))
        self.built = True

    def call(self, x):
        return x + self.wide(ops.relu(self.narrow(x)))

    def get_config(self):
        return {**super().get_config(), "units": self.units, "activation": self.activation}
