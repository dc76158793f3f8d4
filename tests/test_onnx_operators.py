"""Every operator between two convolutions: what a plan takes is zeroed, stripped, and computes the same."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx_models import Net, numbers

import tfprune

W = 8  # channels in front of the operator under test


def unary(op, **attributes):
    return lambda net, x: (net.add(op, x, **attributes), W)


def with_vector(op, first=False):
    def build(net, x):
        v = net.positive(W, 1, 1)
        return net.add(op, *((v, x) if first else (x, v))), W

    return build


def with_value(op):
    return lambda net, x: (net.add(op, x, net.conv(x, W, W, 1)), W)


def behind(*steps):
    """Nodes one after the other: (operator, inputs after the first, attributes)."""

    def build(net, x, width=W):
        for op, inputs, attributes in steps:
            x = net.add(op, x, *(inputs(net) if callable(inputs) else inputs), **attributes)
        return x, width

    return build


def gate(net, x):
    y = net.add("GlobalAveragePool", x)
    y = net.add("Relu", net.conv(y, W, 4, 1))
    return net.add("Mul", x, net.add("HardSigmoid", net.conv(y, 4, W, 1))), W


def split(net, x):
    a, b = net.add("Split", x, outputs=2, axis=1) if net.opset >= 11 and net.opset != 18 else halves(net, x)
    return net.add("Concat", b, net.add("Relu", a), axis=1), W


def halves(net, x):
    return net.add("Split", x, net.ints(4, 4), outputs=2, axis=1)


def uneven(net, x):
    a, b, c = net.add("Split", x, net.ints(2, 5, 1), outputs=3, axis=1)
    return net.add("Concat", c, a, b, axis=1), W


def shuffle(net, x):
    y = net.add("Reshape", x, net.ints(0, 2, W // 2, 8, 8))
    y = net.add("Transpose", y, perm=[0, 2, 1, 3, 4])
    return net.add("Reshape", y, net.ints(0, W, 8, 8)), W


def computed_shape(net, x):
    """A Reshape whose target is put together from a Shape, as PyTorch writes `view`."""
    batch = net.add("Gather", net.add("Shape", x), net.ints(0), axis=0)
    flat = net.add("Reshape", x, net.add("Concat", batch, net.ints(W, 64), axis=0))
    y = net.add("Relu", flat)
    return net.add("Reshape", y, net.add("Concat", batch, net.ints(W, 8, 8), axis=0)), W


def scaled_by_its_width(net, x):
    """x / sqrt(width), the width asked of the model: it must stay the old one."""
    width = net.add("Gather", net.add("Shape", x), net.constant(np.array(1)), axis=0)
    root = net.add("Sqrt", net.add("Cast", width, to=1))
    return net.add("Div", x, root), W


def group_norm(net, x):
    y = net.add("Reshape", x, net.ints(0, 2, -1))
    y = net.add("InstanceNormalization", y, net.positive(2), net.weight(2))
    y = net.add("Reshape", y, net.add("Shape", x))
    y = net.add("Mul", y, net.positive(W, 1, 1))
    return net.add("Add", y, net.weight(W, 1, 1)), W


def channels_last(net, x):
    y = net.add("Transpose", x, perm=[0, 2, 3, 1])
    y = net.add("Relu", net.dense(y, W, 12))
    y = net.add("Mul", y, net.positive(12))
    return net.add("Transpose", y, perm=[0, 3, 1, 2]), 12


def tokens(net, x):
    y = net.add("Reshape", x, net.ints(0, W, 64))
    y = net.add("Transpose", y, perm=[0, 2, 1])
    y = net.add("Add", y, net.weight(1, 64, W))
    y = net.dense(y, W, W)
    y = net.add("Transpose", y, perm=[0, 2, 1])
    return net.add("Reshape", y, net.ints(0, W, 8, 8)), W


def class_token(net, x):
    y = net.add("Reshape", x, net.ints(0, W, 64))
    y = net.add("Transpose", y, perm=[0, 2, 1])
    batch = net.add("Slice", net.add("Shape", x), net.ints(0), net.ints(1))
    token = net.add("Expand", net.weight(1, 1, W), net.add("Concat", batch, net.ints(1, W), axis=0))
    y = net.add("Concat", token, y, axis=1)
    y = net.add("Slice", y, net.ints(1), net.ints(65), net.ints(1))
    y = net.add("Transpose", y, perm=[0, 2, 1])
    return net.add("Reshape", y, net.ints(0, W, 8, 8)), W


def attention(net, x):
    y = net.add("Transpose", net.add("Reshape", x, net.ints(0, W, 64)), perm=[0, 2, 1])
    q, k, v = (net.add("Reshape", net.dense(y, W, 16), net.ints(0, 64, 2, 8)) for _ in range(3))
    q, v = (net.add("Transpose", one, perm=[0, 2, 1, 3]) for one in (q, v))
    k = net.add("Transpose", k, perm=[0, 2, 3, 1])
    scores = net.add("Mul", net.add("MatMul", q, k), net.constant(np.float32(8**-0.5)))
    y = net.add("MatMul", net.add("Softmax", scores, axis=-1), v)
    y = net.add("Reshape", net.add("Transpose", y, perm=[0, 2, 1, 3]), net.ints(0, 64, 16))
    y = net.add("Transpose", net.dense(y, 16, W), perm=[0, 2, 1])
    return net.add("Reshape", y, net.ints(0, W, 8, 8)), W


def projection(net, x):
    """qkv in one matrix, taken apart by Gather, as PyTorch exports it."""
    y = net.add("Transpose", net.add("Reshape", x, net.ints(0, W, 64)), perm=[0, 2, 1])
    y = net.add("Reshape", net.dense(y, W, 48), net.ints(0, 64, 3, 2, 8))
    y = net.add("Transpose", y, perm=[2, 0, 3, 1, 4])
    q, k, v = (net.add("Gather", y, net.constant(np.array(i)), axis=0) for i in range(3))
    scores = net.add("MatMul", q, net.add("Transpose", k, perm=[0, 1, 3, 2]))
    y = net.add("MatMul", net.add("Softmax", scores, axis=-1), v)
    y = net.add("Reshape", net.add("Transpose", y, perm=[0, 2, 1, 3]), net.ints(0, 64, 16))
    y = net.add("Transpose", net.dense(y, 16, W), perm=[0, 2, 1])
    return net.add("Reshape", y, net.ints(0, W, 8, 8)), W


def shared(net, x):
    w, b = net.weight(W, W, 1, 1), net.weight(W)
    y = net.add("Relu", net.add("Conv", x, w, b))
    return net.add("Conv", y, w, b), W


def folded_weight(net, x):
    """A weight behind Identity, Cast and Transpose."""
    w = net.add("Identity", net.constant(net.generator.normal(0, 0.4, (1, 1, 12, W)).astype(np.float64)))
    w = net.add("Transpose", net.add("Cast", w, to=1), perm=[2, 3, 0, 1])
    return net.add("Conv", x, w), 12


def constant_node(net, x):
    value = onnx.numpy_helper.from_array(net.generator.normal(0, 0.4, (12, W, 1, 1)).astype(np.float32))
    return net.add("Conv", x, net.add("Constant", value=value)), 12


def einsum(net, x):
    return net.add("Einsum", x, net.weight(12, W), equation="bchw,dc->bdhw"), 12


def gemm(net, x):
    y = net.add("Flatten", x, axis=1)
    y = net.add("Gemm", y, net.weight(16, 64 * W), net.weight(16), transB=1)
    y = net.add("Gemm", net.add("Relu", y), net.weight(16, W), net.weight(W), alpha=0.5, beta=2.0)
    y = net.add("Unsqueeze", net.add("Unsqueeze", y, net.ints(2)), net.ints(3))
    return net.add("Expand", y, net.ints(1, 1, 8, 8)), W


def from_the_left(net, x):
    y = net.add("Reshape", x, net.ints(0, W, 64))
    y = net.add("MatMul", net.weight(12, W), y)
    return net.add("Reshape", y, net.ints(0, 12, 8, 8)), 12


def where(net, x):
    mask = net.add("Greater", x, net.constant(np.float32(0.1)))
    return net.add("Where", mask, x, net.constant(np.float32(-0.5))), W


def minmax(net, x):
    y = net.add("Max", x, net.conv(x, W, W, 1), net.constant(np.float32(0.1)))
    return net.add("Sum", net.add("Min", y, x), x, y), W


def resized(net, x):
    """Sizes as PyTorch writes them: the first two asked of the tensor, the others numbers."""
    first = net.add("Slice", net.add("Shape", x), net.ints(0), net.ints(2), net.ints(0))
    sizes = net.add("Concat", first, net.ints(16, 16), axis=0)
    return net.add("Resize", x, "", "", sizes, mode="nearest"), W


CASES = {
    **{op: unary(op) for op in "Relu Sigmoid Tanh Softplus Elu LeakyRelu HardSigmoid HardSwish Selu Erf Abs Exp Neg Sin"
       " Identity Softsign Celu".split()},
    "Clip": behind(("Clip", lambda net: [net.constant(np.float32(0)), net.constant(np.float32(6))], {})),
    "Dropout": behind(("Dropout", (), {})),
    "Cast": behind(("Cast", (), {"to": 11}), ("Cast", (), {"to": 1})),
    "PRelu": with_vector("PRelu"),
    **{f"{op} by a vector": with_vector(op) for op in "Add Sub Mul Div".split()},
    **{f"a vector {op}": with_vector(op, first=True) for op in "Sub Mul".split()},
    **{f"{op} of values": with_value(op) for op in "Add Sub Mul Max Min Mean Sum".split()},
    "Pow": behind(("Pow", lambda net: [net.constant(np.float32(2))], {})),
    "Where": where,
    "Max, Min and Sum of several": minmax,
    "BatchNormalization": lambda net, x: (net.norm(x, W), W),
    "InstanceNormalization": behind(("InstanceNormalization", lambda net: [net.positive(W), net.weight(W)], {})),
    "MaxPool": unary("MaxPool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "AveragePool": unary("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    "LpPool": unary("LpPool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "Resize": resized,
    "Resize by scales": behind(("Resize", lambda net: ["", net.constant(np.float32([1, 1, 2, 2]))], {})),
    "DepthToSpace": lambda net, x: (net.add("DepthToSpace", x, blocksize=2), 2),
    "DepthToSpace CRD": lambda net, x: (net.add("DepthToSpace", x, blocksize=2, mode="CRD"), 2),
    "SpaceToDepth": lambda net, x: (net.add("SpaceToDepth", x, blocksize=2), 4 * W),
    "Pad": behind(("Pad", lambda net: [net.ints(0, 0, 1, 1, 0, 0, 1, 1)], {})),
    "Pad with channels": lambda net, x: (net.add("Pad", x, net.ints(0, 1, 0, 0, 0, 2, 0, 0)), W + 3),
    "Pad by reflection": behind(("Pad", lambda net: [net.ints(0, 0, 1, 1, 0, 0, 1, 1)], {"mode": "reflect"})),
    "Slice of positions": behind(("Slice", lambda net: [net.ints(1), net.ints(7), net.ints(2)], {})),
    "Slice of channels": lambda net, x: (net.add("Slice", x, net.ints(1), net.ints(7), net.ints(1), net.ints(2)), 3),
    "Slice backward": behind(("Slice", lambda net: [net.ints(-1), net.ints(-99), net.ints(1), net.ints(-1)], {})),
    "Gather of channels": lambda net, x: (net.add("Gather", x, net.ints(5, 1, 1, 7), axis=1), 4),
    "Tile": lambda net, x: (net.add("Tile", x, net.ints(1, 2, 1, 1)), 2 * W),
    "Expand": behind(("GlobalAveragePool", (), {}), ("Expand", lambda net: [net.ints(1, W, 8, 8)], {})),
    "ReduceMean": behind(("ReduceMean", (), {"axes": [2, 3], "keepdims": 1})),
    "ReduceSum and back": behind(
        ("ReduceSum", lambda net: [net.ints(2, 3)], {"keepdims": 0}),
        ("Unsqueeze", lambda net: [net.ints(2, 3)], {}),
    ),
    "Split": split,
    "Split unevenly": uneven,
    "Channel shuffle": shuffle,
    "Reshape by a computed shape": computed_shape,
    "Width in a computed number": scaled_by_its_width,
    "GroupNormalization in parts": group_norm,
    "Channels last": channels_last,
    "Position embeddings": tokens,
    "Class token": class_token,
    "Attention": attention,
    "Attention with one projection": projection,
    "A gate": gate,
    "Depthwise": lambda net, x: (net.conv(x, W, W, group=W), W),
    "Depthwise with a multiplier": lambda net, x: (net.conv(x, W, 2 * W, group=W), 2 * W),
    "Grouped": lambda net, x: (net.conv(x, W, 12, group=4), 12),
    "ConvTranspose": lambda net, x: (net.add("ConvTranspose", x, net.weight(W, 12, 2, 2), net.weight(12)), 12),
    "ConvTranspose depthwise": lambda net, x: (net.add("ConvTranspose", x, net.weight(W, 1, 2, 2), group=W), W),
    "Shared convolution": shared,
    "Weight behind nodes": folded_weight,
    "Weight in a Constant": constant_node,
    "Einsum": einsum,
    "Gemm": gemm,
    "MatMul from the left": from_the_left,
}  # fmt: skip


def built(case, batch="N", **settings):
    net = Net(**settings)
    x = net.norm(net.conv("x", 3, W, bias=False), W)
    y, width = CASES[case](net, x)
    y = net.add("GlobalAveragePool", net.conv(y, width, 6))
    return net.model({"x": (batch, 3, 8, 8)}, [y])


def pruned(graph, seed=0):
    """A plan that takes about half of every prunable group, at random."""
    generator = np.random.default_rng(seed)
    prunable = [group for group in graph.groups if group.prunable]
    chosen = {group.name: generator.permutation(group.width)[: group.width // 2] for group in prunable}
    return tfprune.PruningPlan.from_groups(graph, {name: sorted(taken.tolist()) for name, taken in chosen.items()})


@pytest.mark.parametrize("batch", ["N", 2])
@pytest.mark.parametrize("case", CASES)
def test_what_a_plan_takes_is_removed_and_the_rest_computes_the_same(case, batch):
    model = built(case, batch)
    before = model.SerializeToString()
    graph = tfprune.trace(model)
    assert not graph.opaque
    stem = graph.group("Conv_2")
    assert stem.prunable, stem.reason
    plan = pruned(graph)
    result = tfprune.strip(model, plan)
    assert model.SerializeToString() == before
    onnx.checker.check_model(result.model, full_check=True)
    assert result.verification.spread > 1e-3
    if case == "GroupNormalization in parts":  # its groups go whole or not at all, and as many of each: one unit
        assert stem.width == 1
        return
    assert plan.channels["Conv_2"] and numbers(result.model) < 0.8 * numbers(model)
    # And the same from the zeros alone.
    tfprune.soft_prune(model, plan)
    again = tfprune.strip(model)
    onnx.checker.check_model(again.model, full_check=True)
    assert numbers(again.model) <= numbers(result.model)
