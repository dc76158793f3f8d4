"""The core by itself: labels, ops and the narrowing walk, on numpy arrays alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tfprune
from tfprune.channels.facts import prove, removable
from tfprune.channels.graph import Call, ChannelGraph
from tfprune.channels.labels import Labels, along, components, expand, varies
from tfprune.channels.narrow import narrow
from tfprune.channels.ops import (
    Affine,
    Combine,
    Concatenate,
    Contract,
    Depthwise,
    Map,
    Opaque,
    Permute,
    Reshape,
    Source,
    Spatial,
    reshape_blocks,
)
from tfprune.channels.plan import PruningPlan
from tfprune.channels.take import take
from tfprune.channels.weights import Slot, Weight

PACKAGE = Path(tfprune.__file__).parent
# Each may import from what stands to its left; those in one entry may import from each other.
FLOW = (
    {"errors", "files", "tables", "events"},
    {"channels", "processes"},
    {"keras_graph", "onnx_graph"},
    {"frontend"},
    {"criteria"},
    {
        "schedules",
        "runs",
        "soft",
        "monitor",
        "strip",
        "remove_layers",
        "from_onnx",
        "verify",
        "cost",
        "carry",
        "distillation",
        "data",
    },
    {"export"},
    {"from_tensorflow"},
    {"latency", "bench"},
    {"selection", "soft_pruning", "sensitivity", "sparse", "trackers"},
    {"pruning", "resume", "trainings"},
    {"recipes"},
    {"report"},
    {"cli"},
    {"__main__", "__init__"},
)


def modules():
    return [path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts]


def imports(path: Path, *, at_import: bool = False):
    """The modules that a file imports, as dotted names; with `at_import`, only those outside functions."""
    tree = ast.parse(path.read_text())
    hidden = set()
    for node in ast.walk(tree):
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if typing_only or (at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            hidden.update(id(inner) for inner in ast.walk(node))
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def level(part: str) -> int:
    found = [number for number, parts in enumerate(FLOW) if part in parts]
    assert found, f"{part} has no place in the flow"
    return found[0]


# ---------------------------------------------------------------------- what may import what


def test_a_module_imports_only_from_what_stands_above_it():
    wrong = []
    for path in modules():
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for name in imports(path, at_import=own == "__main__"):
            parts = name.split(".")
            if parts[0] != "tfprune" or len(parts) < 2 or not parts[1]:
                continue
            if not ((PACKAGE / parts[1]).is_dir() or (PACKAGE / f"{parts[1]}.py").exists()):
                continue
            if level(parts[1]) > level(own):
                wrong.append(f"{own} imports {name}")
    assert not wrong


def test_channels_import_numpy_and_scipy_alone():
    allowed = {"numpy", "scipy", "tfprune", *sys.stdlib_module_names}
    for path in (PACKAGE / "channels").rglob("*.py"):
        assert {name.split(".")[0] for name in imports(path)} <= allowed, path


def test_channels_load_without_a_framework():
    code = (
        "import sys, tfprune, tfprune.channels.graph, tfprune.channels.plan, tfprune.channels.simplify, "
        "tfprune.channels.take, tfprune.channels.narrow, tfprune.channels.facts, tfprune.channels.removal, "
        "tfprune.channels.parts, tfprune.channels.pieces\n"
        "bad = {'tensorflow', 'keras', 'onnx', 'torch', 'jax'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)


def test_only_one_folder_knows_the_inside_of_keras_graphs():
    for path in modules():
        if path.relative_to(PACKAGE).parts[0] in ("keras_graph", "export"):
            continue
        text = path.read_text()
        assert "_nodes_by_depth" not in text and "_inbound_nodes" not in text, path


# ---------------------------------------------------------------------- labels


def test_components_number_in_the_order_of_first_labels():
    def pair(a, b):
        return np.array(a), np.array(b)

    assert components([], 3).tolist() == [0, 1, 2]
    assert components([pair([4], [1]), pair([1, 3], [2, 3])], 6).tolist() == [0, 1, 1, 2, 1, 3]
    generator = np.random.default_rng(0)
    for _ in range(20):
        a, b = generator.integers(0, 30, (2, 12))
        assert components([(a, b)], 30).tolist() == by_hand(a, b, 30)


def by_hand(a, b, count):
    """Components by repeated relabelling."""
    name = list(range(count))
    for _ in range(count):
        for x, y in zip(a, b, strict=True):
            name[x] = name[y] = min(name[x], name[y])
    order = {label: rank for rank, label in enumerate(dict.fromkeys(name))}
    return [order[label] for label in name]


def test_ties_broadcast():
    labels = Labels()
    a, b = labels.fresh(3).reshape(1, 1, 3), labels.fresh(1).reshape(1, 1, 1)
    labels.tie(a, b)
    assert len(set(labels.channels().tolist())) == 1


def test_lockstep_is_for_selection_only():
    labels = Labels()
    a = labels.fresh(4).reshape(2, 2)
    labels.lockstep(a, a[:1])
    assert labels.channels().tolist() == [0, 1, 2, 3]
    assert labels.units().tolist() == [0, 1, 0, 1]


def test_along_ties_what_a_weight_cannot_tell_apart():
    labels = Labels()
    grid = labels.fresh(6).reshape(1, 2, 3)
    assert along(labels, grid, (5, 2, 3), (2,)).tolist() == [0, 1, 2]
    assert labels.channels().tolist() == [0, 1, 2, 0, 1, 2]


def test_expand_and_varies():
    array = np.arange(3).reshape(1, 1, 3)
    assert expand(array, (7, 5, 3), (0, 1)).shape == (7, 5, 3)
    assert expand(array, (None, 5, 3), (0, 1)).shape == (1, 5, 3)
    assert varies(array) and varies(array, (2,)) and not varies(array, (0, 1))


def test_a_second_call_of_a_layer_ties_its_labels_to_the_first():
    labels, weight = Labels(), Weight("conv/kernel", (4,))
    first, second = labels.fresh(4), labels.fresh(4)
    slot = labels.bind(weight, "read", first, (4,), (0,))
    assert labels.bind(weight, "read", second, (4,), (0,)) is slot
    assert labels.channels().tolist() == [0, 1, 2, 3] * 2


@pytest.mark.parametrize(
    ("old", "new", "blocks"),
    [
        ((7, 7, 64), (7, 7, 8, 8), (((0,), (0,)), ((1,), (1,)), ((2,), (2, 3)))),
        ((7, 7, 64), (49, 64), (((0, 1), (0,)), ((2,), (1,)))),
        ((7, 7, 64), (3136,), (((0, 1, 2), (0,)),)),
        ((6, 4), (4, 6), (((0, 1), (0, 1)),)),
        ((64,), (1, 1, 64), (((0,), (0, 1, 2)),)),
        ((1, 1, 64), (64,), (((0, 1, 2), (0,)),)),
        ((None, 8), (None, 2, 4), (((0,), (0,)), ((1,), (1, 2)))),
        ((None, None, 8), (None, 8), (((0, 1), (0,)), ((2,), (1,)))),
        ((), (1,), (((), (0,)),)),
    ],
)
def test_reshape_blocks(old, new, blocks):
    found = reshape_blocks(old, new)
    # Axes of size 1 may stand in either of the blocks beside them: what counts is that positions are the same.
    assert [axis for inputs, _ in found for axis in inputs] == list(range(len(old)))
    assert [axis for _, outputs in found for axis in outputs] == list(range(len(new)))
    for inputs, outputs in found:
        sizes = [[shape[axis] for axis in axes] for shape, axes in ((old, inputs), (new, outputs))]
        assert np.prod([s or 1 for s in sizes[0]]) == np.prod([s or 1 for s in sizes[1]])
        assert (None in sizes[0]) == (None in sizes[1])
    assert len(found) >= len(blocks)


# ---------------------------------------------------------------------- weights


def test_slot_rows_and_mask_agree():
    """A grouped kernel (k, inputs of a group, groups, outputs of a group): rows are what the mask zeroes."""
    slot = Slot(Weight("c/kernel", (3, 2, 8)), "read", np.arange(8).reshape(4, 2), (3, 2, 4, 2), (2, 1))
    array = np.arange(48.0).reshape(3, 2, 8) + 1
    keep = np.ones(8, bool)
    keep[5] = False  # group 2, input 1
    zeroed = np.where(slot.mask(keep), array.reshape(slot.split), 0).reshape(array.shape)
    assert np.flatnonzero(zeroed.reshape(3, 2, 4, 2)[:, 1, 2].ravel()).size == 0
    assert (zeroed == 0).sum() == 3 * 2
    assert (slot.rows(zeroed)[5] == 0).all() and (slot.rows(zeroed) == 0).sum() == 6


# ---------------------------------------------------------------------- graphs built by hand


class Net:
    """A graph written op by op; kernels are (inputs, outputs)."""

    def __init__(self, *sizes: int):
        self.shapes, self.calls, self.arrays = {}, [], {}
        self.inputs = [self.add(Source, (), shape=(size,)) for size in sizes]

    def value(self, shape):
        self.shapes[len(self.shapes)] = shape
        return len(self.shapes) - 1

    def add(self, kind, inputs, *arguments, shape, name=None):
        out = self.value(shape)
        name = name or f"{kind.__name__.lower()}{len(self.calls)}"
        self.calls.append(
            Call(name, kind.__name__, tuple(inputs), (out,), (kind(name, tuple(inputs), (out,), *arguments),))
        )
        return out

    def weight(self, key, array):
        weight = Weight(key, np.shape(array))
        self.arrays[weight] = np.asarray(array, np.float64)
        return weight

    def dense(self, x, kernel, bias=None, name="dense", **more):
        kernel = np.asarray(kernel, np.float64)
        weights = [self.weight(f"{name}/kernel", kernel)]
        weights += [None if bias is None else self.weight(f"{name}/bias", bias)]
        out = self.value((kernel.shape[1],))
        op = Contract(name, (x,), (out,), weights[0], ((0, 0),), ((0, 1),), weights[1], **more)
        self.calls.append(Call(name, "Dense", (x,), (out,), (op,)))
        return out

    def graph(self, *outputs):
        return ChannelGraph("net", self.calls, self.shapes, self.inputs, outputs)


def facts_of(net, graph):
    facts = prove(graph, net.arrays.__getitem__)
    return facts, removable(graph, facts)


def test_a_zero_filter_is_its_bias_and_the_reader_takes_it():
    net = Net(2)
    kernel = np.array([[1.0, 0, 2], [1, 0, 3]])
    hidden = net.dense(net.inputs[0], kernel, [0.5, 0.25, 0.5], "hidden")
    out = net.dense(hidden, np.ones((3, 2)), None, "out")
    graph = net.graph(out)
    facts, gone = facts_of(net, graph)
    np.testing.assert_array_equal(facts.constant[hidden], [np.nan, 0.25, np.nan])
    assert gone[graph.channel_of[graph.labels.of[hidden]]].tolist() == [False, True, False]


def test_constants_cross_no_padding():
    net = Net(2)
    hidden = net.dense(net.inputs[0], [[1.0, 0, 0], [1, 0, 0]], [0.5, 0.25, 0.0], "hidden")
    out = net.dense(hidden, np.ones((3, 2)), None, "out", pads=True)
    graph = net.graph(out)
    _, gone = facts_of(net, graph)
    # 0.25 would be 0 where the padding is; 0 is 0 there too.
    assert gone[graph.channel_of[graph.labels.of[hidden]]].tolist() == [False, False, True]


def test_what_nobody_reads_goes_all_the_way_back():
    net = Net(1)
    a = net.dense(net.inputs[0], np.ones((1, 2)), None, "a")
    b = net.dense(a, [[1.0, 0], [0, 1]], None, "b")
    out = net.dense(b, [[1.0], [0]], None, "out")
    graph = net.graph(out)
    _, gone = facts_of(net, graph)
    assert gone[graph.channel_of[graph.labels.of[a]]].tolist() == [False, True]
    assert gone[graph.channel_of[graph.labels.of[b]]].tolist() == [False, True]


def test_zero_absorbs_in_a_product_and_its_gate_is_not_read():
    net = Net(2)
    x = net.dense(net.inputs[0], [[1.0, 0], [1, 0]], None, "x")
    gate = net.dense(net.inputs[0], np.ones((2, 2)), None, "gate")
    y = net.add(Combine, (x, gate), "multiply", np.multiply, shape=(2,))
    out = net.dense(y, np.ones((2, 1)), None, "out")
    facts, gone = facts_of(net, graph := net.graph(out))
    assert facts.read[gate].tolist() == [True, False]
    assert gone[graph.channel_of[graph.labels.of[gate]]].tolist() == [False, True]


def test_a_sum_keeps_what_one_side_writes():
    net = Net(2)
    x = net.dense(net.inputs[0], [[1.0, 0], [1, 0]], None, "x")
    y = net.dense(net.inputs[0], np.ones((2, 2)), None, "y")
    out = net.dense(net.add(Combine, (x, y), "add", np.add, shape=(2,)), np.ones((2, 1)), None, "out")
    _, gone = facts_of(net, graph := net.graph(out))
    assert not gone[graph.channel_of[graph.labels.of[x]]].any()


def test_gamma_zero_makes_a_constant_whatever_comes_in():
    net = Net(1)
    x = net.dense(net.inputs[0], np.ones((1, 2)), None, "x")
    scale, shift = net.weight("bn/gamma", [0.0, 1]), net.weight("bn/beta", [3.0, 0])
    y = net.add(Affine, (x,), 0, ((scale, "scale"), (shift, "shift")), lambda s, t: (s, t), shape=(2,))
    y = net.add(Map, (y,), lambda c: c * 2, shape=(2,))
    out = net.dense(y, np.ones((2, 1)), None, "out")
    facts, _ = facts_of(net, net.graph(out))
    np.testing.assert_array_equal(facts.constant[y], [6, np.nan])
    assert facts.read[x].tolist() == [False, True]


def test_facts_are_what_perturbing_shows():
    """Brute force: what is called constant does not move with the input, what varies and is unread moves no output."""
    generator = np.random.default_rng(3)
    for _ in range(30):
        kernels = [generator.normal(size=shape) * generator.integers(0, 2, shape) for shape in ((2, 4), (4, 4), (4, 1))]
        biases = [generator.normal(size=4) * generator.integers(0, 2, 4) for _ in range(2)]
        net = Net(2)
        a = net.dense(net.inputs[0], kernels[0], biases[0], "a")
        b = net.dense(net.add(Map, (a,), lambda c: np.maximum(c, 0), shape=(4,)), kernels[1], biases[1], "b")
        s = net.add(Combine, (a, b), "multiply", np.multiply, shape=(4,))
        out = net.dense(s, kernels[2], None, "out")
        facts, _ = facts_of(net, net.graph(out))

        def run(x, nudge_a=0.0, nudge_b=0.0, kernels=kernels, biases=biases):
            a = x @ kernels[0] + biases[0] + nudge_a
            b = np.maximum(a, 0) @ kernels[1] + biases[1] + nudge_b
            return a, b, (a * b) @ kernels[2]

        x = generator.normal(size=(50, 2))
        values = run(x)
        for value, array in zip((a, b), values[:2], strict=True):
            for channel, constant in enumerate(facts.constant[value]):
                if np.isfinite(constant):
                    np.testing.assert_allclose(array[:, channel], constant, atol=1e-12)
        for name, value in (("nudge_a", a), ("nudge_b", b)):
            # A product of two constant zeros reads neither; that they are constant is what makes it so.
            for channel in np.flatnonzero(~facts.read[value] & np.isnan(facts.constant[value])):
                nudged = run(x, **{name: np.eye(4)[channel]})[2]
                np.testing.assert_allclose(nudged, values[2], atol=1e-12)


def kept(graph, value, gone):
    keep = np.ones(graph.channels, bool)
    keep[graph.channel_of[graph.labels.of[value].ravel()[list(gone)]]] = False
    return narrow(graph, keep)


def test_narrowing_finds_the_order_again_after_a_shuffle():
    """Groups that lost different channels: (a, a, a | b, b, b) shuffled is not the old shuffle with gaps."""
    net = Net(1)
    x = net.dense(net.inputs[0], np.ones((1, 6)), None, "x")
    y = net.add(Reshape, (x,), reshape_blocks((6,), (2, 3)), shape=(2, 3))
    y = net.add(Permute, (y,), (1, 0), shape=(3, 2))
    y = net.add(Reshape, (y,), reshape_blocks((3, 2), (6,)), shape=(6,))
    out = net.dense(y, np.ones((6, 1)), None, "out")
    graph = net.graph(out)
    new, returned = kept(graph, x, [0, 4])
    left = np.array([1, 2, 3, 5])  # of x, flat
    shuffled = np.arange(6).reshape(2, 3).T.ravel()  # which channel of x stands where in y
    expected = left.reshape(2, 2).T.ravel()
    assert shuffled[new.kept[y]].tolist() == expected.tolist()
    assert not returned


def test_narrowing_matches_occurrences_of_a_label_that_comes_twice():
    net = Net(1)
    x = net.dense(net.inputs[0], np.ones((1, 3)), None, "x")
    y = net.add(Concatenate, (x, x), 0, shape=(6,))
    out = net.dense(y, np.arange(6.0).reshape(6, 1), None, "out")
    graph = net.graph(out)
    new, _ = kept(graph, x, [1])
    assert new.kept[y].tolist() == [0, 2, 3, 5]
    kernel = next(weight for weight in net.arrays if weight.key == "out/kernel")
    slots = [slot for (weight, _), slot in graph.labels.slots.items() if weight is kernel]
    assert take(net.arrays[kernel], slots, new).ravel().tolist() == [0, 2, 3, 5]


def grouped(net, x, kernel, groups, name="grouped"):
    return net.dense(x, kernel, None, name, groups=groups)


def test_uneven_groups_get_channels_back():
    net = Net(1)
    x = net.dense(net.inputs[0], np.ones((1, 6)), None, "x")
    y = grouped(net, x, np.ones((3, 4)), 2)
    out = net.dense(y, np.ones((4, 1)), None, "out")
    graph = net.graph(out)
    new, returned = kept(graph, x, [0, 1, 3])  # group 0 would keep one input, group 1 two
    assert sorted(new.kept[x].tolist()) == [0, 2, 4, 5]
    assert list(returned.values()) == ["grouped's groups would have uneven inputs"]


def test_a_group_nobody_writes_goes_with_its_outputs():
    net = Net(1)
    x = net.dense(net.inputs[0], np.ones((1, 4)), None, "x")
    y = grouped(net, x, np.ones((2, 4)), 2)
    out = net.dense(y, np.ones((4, 1)), None, "out")
    graph = net.graph(out)
    keep = np.ones(graph.channels, bool)
    for value, gone in ((x, [0, 1]), (y, [0, 1])):
        keep[graph.channel_of[graph.labels.of[value][gone]]] = False
    new, returned = narrow(graph, keep)
    assert new.kept[y].tolist() == [2, 3] and not returned
    assert list(new.groups.values()) == [1]


def test_nothing_left_to_read_brings_one_channel_back():
    net = Net(1)
    x = net.dense(net.inputs[0], np.ones((1, 4)), None, "x")
    out = net.dense(x, np.ones((4, 2)), None, "out")
    graph = net.graph(out)
    new, returned = kept(graph, x, range(4))
    assert new.kept[x].tolist() == [0]
    assert list(returned.values()) == ["out would have nothing left to read"]


def test_a_depthwise_kernel_follows_its_channel():
    net = Net(1)
    x = net.dense(net.inputs[0], np.ones((1, 3)), None, "x")
    kernel = net.weight("dw/kernel", np.ones((3, 2)))
    y = net.add(Depthwise, (x,), kernel, 0, (3, 2), (0, 1), shape=(6,), name="dw")
    out = net.dense(y, np.ones((6, 1)), None, "out")
    new, _ = kept(net.graph(out), x, [1])
    assert new.kept[y].tolist() == [0, 1, 4, 5]


def test_opaque_protects_both_sides_and_says_so():
    net = Net(1)
    x = net.dense(net.inputs[0], np.ones((1, 3)), None, "x")
    y = net.add(Opaque, (x,), "magic is not followed", shape=(3,), name="magic")
    graph = net.graph(net.dense(y, np.ones((3, 1)), None, "out"))
    assert {graph.protected[c] for c in graph.channel_of[graph.labels.of[x]].tolist()} == {"magic is not followed"}
    assert graph.group("x").reason == "magic is not followed"
    assert [op.reason for op in graph.opaque] == ["magic is not followed"]


def test_an_op_that_moves_an_axis_with_channels_is_opaque():
    net = Net(1)
    x = net.dense(net.inputs[0], np.ones((1, 3)), None, "x")
    y = net.add(Spatial, (x,), None, (0,), shape=(2,), name="pool")
    graph = net.graph(y)
    assert graph.group("x").reason == "pool works along an axis that holds channels"


def test_a_plan_names_groups_and_counts_channels_once():
    net = Net(1)
    x = net.dense(net.inputs[0], np.ones((1, 4)), None, "x")
    graph = net.graph(net.dense(x, np.ones((4, 1)), None, "out"))
    plan = PruningPlan.from_groups(graph, {"x": [1, 3]})
    assert plan.channels == {"x": (1, 3)} and plan.pruned == 2 and plan
    assert not PruningPlan.from_groups(graph, {})
    weights = {(slot.weight.key, slot.role): gone.tolist() for slot, gone in plan.zeros()}
    assert weights == {("x/kernel", "write"): [False, True] * 2, ("out/kernel", "read"): [False, True] * 2}
    assert "x" in str(plan) and "2 channels go" in str(plan)
