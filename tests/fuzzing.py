"""What must hold of every model that is stripped, however it got its zeros."""

from __future__ import annotations

import keras
import numpy as np
from models import difference, numbers, outputs, parameters
from random_models import Builder, flat_layers

import tfprune
from tfprune.channels.facts import prove, removable
from tfprune.channels.ops.contract import OverPositions
from tfprune.verify import tolerance_of


def snapshot(model: keras.Model) -> tuple:
    """Weights and graph, to see whether anything has changed."""
    nodes = [(layer.name, len(layer._inbound_nodes), len(layer._outbound_nodes)) for layer in model._operations]
    return [numbers(v) for v in model.weights], nodes


def assert_untouched(model: keras.Model, before: tuple) -> None:
    weights, nodes = snapshot(model)
    assert nodes == before[1], "the model's graph has changed"
    assert all(np.array_equal(a, b) for a, b in zip(weights, before[0], strict=True)), (
        "the model's weights have changed"
    )


def assert_complete(
    builder: Builder, model: keras.Model, result: tfprune.StripResult, expected: list[np.ndarray]
) -> None:
    """What the rules prove removable is removed or refused; how often they miss what perturbing shows is counted."""
    graph = tfprune.trace(model)
    wanted = removable(graph, prove(graph, graph.weight))
    left = {
        (slot.weight.key, index)
        for slot in result.plan.graph.labels.slots.values()
        if slot.role == "write"
        for index in np.flatnonzero(~result.plan.gone[result.plan.graph.channel_of[slot.labels.ravel()]]).tolist()
    }
    refused = {(refusal.layer, index) for refusal in result.refusals for index in refusal.channels}
    slots = [slot for slot in graph.labels.slots.values() if slot.role == "write"]
    for slot in slots:
        for index in np.flatnonzero(wanted[graph.channel_of[slot.labels.ravel()]]).tolist():
            proved = (slot.weight.key, index) not in left or (slot.weight.layer, index) in refused
            assert proved, f"{slot.weight.key} {index} is provably removable, stays, and nobody says why"
    for _ in range(2):
        slot = slots[builder.draw(len(slots))]
        index = builder.draw(slot.labels.size)
        if (slot.weight.key, index) in left and not moves(graph, model, expected, slot, index):
            channel = graph.channel_of[slot.labels.ravel()[index]]
            told = (slot.weight.layer, index) in refused
            found = "missed, with a reason" if told else "missed"
            builder.outcome[found] = builder.outcome.get(found, 0) + 1
            assert told or not wanted[channel], "provable, without effect, and still there"


def may_find_more(model: keras.Model, result: tfprune.StripResult) -> bool:
    """Whether a second strip may find what the first could not know."""
    # With one group left, what was a depthwise convolution is a plain one, whose filters can go one by one; and with
    # one channel left, a kernel over positions is a plain one.
    several = [layer for layer in flat_layers(model) if getattr(layer, "groups", 1) > 1 and hasattr(layer, "kernel")]
    grouped = any(layer.kernel.shape[-2] == 1 and layer.filters != layer.groups for layer in several)
    positions = any(isinstance(op, OverPositions) for op in tfprune.trace(model).ops)
    # What had to come back may go another way once all else is gone; and what read channels together, and is gone now,
    # had kept them.
    return grouped or positions or chose(result) or bool(result.removed_layers)


def chose(result: tfprune.StripResult) -> bool:
    """Whether some came back where others could have: for a product with a side lost, for a split that must be even."""
    return any(part in refusal.reason for refusal in result.refusals for part in ("nothing left", "cannot rearrange"))


def moves(graph, model: keras.Model, before: list[np.ndarray], slot, index: int) -> bool:
    """Whether any output moves when what writes a channel is perturbed."""
    variable = graph.variables[slot.weight]
    array = numbers(variable)
    mask = slot.mask(np.arange(slot.labels.size) == index)
    variable.assign((array.reshape(slot.split) + mask * 0.37).reshape(array.shape))
    after = outputs(model)
    variable.assign(array)
    return any((a != b).any() for a, b in zip(before, after, strict=True))


def check(builder: Builder, steps: int = 6) -> None:
    """Build a model, zero something in it, and strip it."""
    builder.outcome = {}
    model = builder.model(steps)
    if not all(np.isfinite(y).all() and np.abs(y).max() < 1e100 for y in outputs(model)):
        builder.outcome = {"overflow": 1}
        return
    kind = builder.pick("zeros", "plan", "plan and layers", "plan and zeros")
    plan = None
    if kind != "zeros":
        amount = {"ratio": 0.25 * (1 + builder.draw(3))} if builder.pick(True, False) else {"threshold": 0.5}
        plan = tfprune.select(
            model,
            builder.pick("l1", "l2", "redundancy"),
            round_to=builder.pick(1, 4),
            layers=kind == "plan and layers",
            **amount,
        )
        builder.note(f"plan {dict(plan.channels)} {plan.layers}")
        direct = tfprune.strip(model, plan, verify=False)
        tfprune.soft_prune(model, plan)
        assert difference(model, direct.model) <= tolerance_of(model), "strip(model, plan) is not the soft-pruned model"
    if kind in ("zeros", "plan and zeros"):
        builder.zero(model)
    before, expected = snapshot(model), outputs(model)
    try:
        result = tfprune.strip(model, verify=False)
    finally:
        assert_untouched(model, before)
    far = difference(model, result.model, expected)
    assert far <= tolerance_of(model), f"stripped differs by {far:.2g}"
    assert_complete(builder, model, result, expected)
    assert all(refusal.reason and refusal.layer and refusal.channels for refusal in result.refusals)
    if kind in ("plan and layers", "plan") and not chose(result):  # and it need not be what the plan left
        assert parameters(result.model) <= parameters(direct.model), "the weights prove less than the plan removes"
    again = tfprune.strip(result.model, verify=False)
    if not may_find_more(model, result):
        assert parameters(again.model) == parameters(result.model), "a second strip finds more"
    assert difference(model, again.model, expected) <= tolerance_of(model)
    removed = parameters(model) - parameters(result.model)
    builder.outcome |= {kind: 1, "smaller": int(removed > 0), "refused": int(bool(result.refusals))}
