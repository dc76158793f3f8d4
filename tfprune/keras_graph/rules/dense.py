"""Dense."""

from __future__ import annotations

from keras import layers

from tfprune.keras_graph.lowering import Lowering, register_rule
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
