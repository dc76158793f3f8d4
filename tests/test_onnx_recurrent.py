"""LSTM, GRU and RNN of ONNX: a zeroed unit goes with its gates and states; onnxruntime computes the same."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx_models import Net, numbers

import tfprune

INPUTS, UNITS, STEPS = 6, 8, 5
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def built(op, *, state=None, bias=True, batch="N", dense=True, lengths=False, outputs=1, last=False, **attributes):
    """A projection, the operator, a normalization of its sequence or its last step, and a projection."""
    net = Net()
    gates = GATES[op]
    x = net.dense("x", 4, INPUTS) if dense else "x"
    kernels = [net.weight(1, gates * UNITS, INPUTS if dense else 4), net.weight(1, gates * UNITS, UNITS)]
    given = [x, *kernels, net.weight(1, 2 * gates * UNITS) if bias else "", ""]
    inputs = {"x": (STEPS, batch, 4)}
    if lengths:
        given[4] = "lengths"
        inputs["lengths"] = (np.int32, (batch,))
    if state == "zeros":
        given.append(net.constant(np.zeros((1, 2, UNITS), np.float32)))
    elif state == "weights":
        given.append(net.weight(1, 2, UNITS))
    elif state == "computed":
        shape = net.add("Gather", net.add("Shape", "x"), net.ints(1))
        shape = net.add("Concat", net.ints(1), shape, net.ints(UNITS), axis=0)
        given.append(net.add("ConstantOfShape", shape))
    elif state == "made":
        given.append(net.dense(net.add("ReduceMean", "x", axes=[0], keepdims=1), 4, UNITS))
    y = net.add(op, *given, hidden_size=UNITS, outputs=2, **attributes)
    y = net.add("Squeeze", y[1] if last else y[0], net.ints(0 if last else 1))
    return net.model(inputs, [net.dense(y, UNITS, 3)])


CASES = {
    "plain": {},
    "without a bias": {"bias": False},
    "backwards": {"direction": "reverse"},
    "its last step": {"last": True},
    "from zeros": {"state": "zeros", "batch": 2},
    "from computed zeros": {"state": "computed"},
    "from weights": {"state": "weights", "batch": 2},
    "from what another layer makes": {"state": "made"},
    "of the model's input": {"dense": False},
    "some steps": {"lengths": True},
}


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("case", CASES)
def test_what_a_plan_takes_is_removed_and_the_rest_computes_the_same(case, op):
    model = built(op, **CASES[case])
    graph = tfprune.trace(model)
    assert not graph.opaque
    groups = {group.name: group for group in graph.groups if group.prunable}
    units = next(group for group in groups.values() if group.width == UNITS)
    plan = tfprune.PruningPlan.from_groups(graph, {units.name: [1, 2, 6]})
    result = tfprune.strip(model, plan)
    onnx.checker.check_model(result.model, full_check=True)
    assert result.verification.spread > 1e-3 and not result.lossless
    node = next(node for node in result.model.graph.node if node.op_type == op)
    assert next(a.i for a in node.attribute if a.name == "hidden_size") == UNITS - 3
    shapes = {tensor.name: list(tensor.dims) for tensor in result.model.graph.initializer}
    left, gates, width = UNITS - 3, GATES[op], INPUTS if CASES[case].get("dense", True) else 4
    assert shapes[node.input[1]] == [1, gates * left, width] and shapes[node.input[2]] == [1, gates * left, left]
    # And the same from the zeros alone.
    tfprune.soft_prune(model, plan)
    again = tfprune.strip(model)
    assert numbers(again.model) == numbers(result.model) and again.lossless
    tfprune.verify(result.model, again.model).raise_if_different("the two roads")


@pytest.mark.parametrize("op", GATES)
def test_inputs_and_units_are_chosen_and_go_together(op):
    model = built(op)
    plan = tfprune.select(model, "l1", ratio=0.5, round_to=1)
    result = tfprune.strip(model, plan)
    node = next(node for node in result.model.graph.node if node.op_type == op)
    shapes = {tensor.name: list(tensor.dims) for tensor in result.model.graph.initializer}
    assert shapes[node.input[1]] == [1, GATES[op] * UNITS // 2, INPUTS // 2]


def test_a_unit_that_is_not_quite_zero_stays():
    """The candidate's rows are zero and its bias is not; or the bias of the recurrent part alone is not."""
    for place in (3 * UNITS + 2, 4 * UNITS + 3 * UNITS + 2):
        model = built("LSTM")
        graph = tfprune.trace(model)
        units = next(group for group in graph.groups if group.prunable and group.width == UNITS)
        tfprune.soft_prune(model, tfprune.PruningPlan.from_groups(graph, {units.name: [2]}))
        node = next(node for node in model.graph.node if node.op_type == "LSTM")
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[3])
        bias = onnx.numpy_helper.to_array(tensor).copy()
        assert not bias[0, place]
        bias[0, place] = 0.5
        tensor.CopyFrom(onnx.numpy_helper.from_array(bias, tensor.name))
        # Its readers are zero: nobody reads it, so that it goes; with a reader it stays.
        assert numbers(tfprune.strip(model).model) < numbers(model)
        last = model.graph.node[-2]
        kernel = next(tensor for tensor in model.graph.initializer if tensor.name == last.input[1])
        rows = onnx.numpy_helper.to_array(kernel).copy()
        rows[2] = 1
        kernel.CopyFrom(onnx.numpy_helper.from_array(rows, kernel.name))
        result = tfprune.strip(model)
        assert numbers(result.model) == numbers(model) and result.lossless


def test_what_is_not_followed_stays_with_its_reason():
    net = Net()
    x = net.dense("x", 4, 6)
    both = net.add("LSTM", x, net.weight(2, 32, 6), net.weight(2, 32, 8), hidden_size=8, direction="bidirectional",
                   outputs=1)  # fmt: skip
    peeping = net.add(
        "LSTM", x, net.weight(1, 32, 6), net.weight(1, 32, 8), "", "", "", "", net.weight(1, 24), hidden_size=8
    )
    mixed = net.add("LSTM", x, net.weight(1, 32, 6), net.weight(1, 32, 8), hidden_size=8,
                    activations=["Sigmoid", "Tanh", "Relu"])  # fmt: skip
    odd = net.add("RNN", x, net.weight(1, 8, 6), net.weight(1, 8, 8), hidden_size=8, activations=["ScaledTanh"])
    model = net.model({"x": (5, "N", 4)}, [both, peeping, mixed, odd])
    reasons = [one.reason for one in tfprune.trace(model).opaque]
    for reason, text in zip(
        reasons, ("both directions", "peepholes", "different activations", "scaledtanh"), strict=True
    ):
        assert text in reason
    tfprune.strip(model)
