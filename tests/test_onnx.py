"""ONNX in, ONNX out: whole models against the Keras road, what is kept, and what is refused."""

from __future__ import annotations

import sys

import numpy as np
import onnx
import pytest
import test_export as exported
from models import inverted_residual_net, mini_net, residual_net, shaken
from onnx import TensorProto, helper
from onnx_models import Net, numbers

import tfprune
from tfprune.errors import PlanError, TfpruneError, TraceError
from tfprune.onnx_graph.model import array, save, write_large

ARCHITECTURES = [
    mini_net,
    residual_net,
    inverted_residual_net,
    exported.grouped,
    exported.depthwise_multiplier,
    exported.transposed_and_upsampled,
    exported.one_dimensional,
    exported.dense_on_feature_map,
    exported.attention,
]


def as_onnx(model, folder, name):
    return str(tfprune.export(model, folder, ("onnx",), name=name)["onnx"].path)


def same_both_ways(model, folder):
    """Strip in Keras and export, or export and strip: the same file size and the same outputs."""
    shaken(model)
    plan = tfprune.select(model, "l1", ratio=0.5, round_to=1)
    assert plan
    tfprune.soft_prune(model, plan)
    before = as_onnx(model, folder, "soft_pruned")
    in_keras = as_onnx(tfprune.strip(model).model, folder, "stripped")
    result = tfprune.strip(before)
    onnx.checker.check_model(result.model, full_check=True)
    assert numbers(result.model) == numbers(onnx.load(in_keras))
    assert tfprune.cost(result.model).macs == tfprune.cost(in_keras).macs
    tfprune.verify(in_keras, result.model).raise_if_different("the two roads")


@pytest.mark.parametrize("build", ARCHITECTURES, ids=lambda build: build.__name__)
def test_export_then_strip_is_strip_then_export(build, tmp_path):
    same_both_ways(build(), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, size",
    [
        ("VGG16", 32),
        ("ResNet50", 32),
        ("ResNet50V2", 32),
        ("MobileNetV2", 32),
        ("MobileNetV3Small", 32),
        ("DenseNet121", 32),
        ("InceptionV3", 75),
        ("Xception", 71),
        ("EfficientNetB0", 32),
        ("ConvNeXtTiny", 32),
    ],
)
def test_applications_export_then_strip(name, size, tmp_path):
    import keras

    build = getattr(keras.applications, name)
    settings = {"include_preprocessing": False} if name in ("MobileNetV3Small", "ConvNeXtTiny") else {}
    same_both_ways(build(weights=None, input_shape=(size, size, 3), classes=10, **settings), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("dynamo", [False, True])
def test_what_pytorch_exports(dynamo, tmp_path):
    torch = pytest.importorskip("torch")
    if dynamo:
        pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    path = tmp_path / "model.onnx"
    model = torch_model(torch).eval()
    settings = {"external_data": False} if dynamo else {}
    torch.onnx.export(model, (torch.randn(2, 3, 16, 16),), path, dynamo=dynamo, input_names=["x"], **settings)
    proto = onnx.load(path)
    graph = tfprune.trace(proto)
    assert not graph.opaque
    before = numbers(proto)
    plan = tfprune.select(graph, "l1", ratio=0.5, round_to=1)
    tfprune.soft_prune(proto, plan)
    result = tfprune.strip(proto)
    onnx.checker.check_model(result.model, full_check=True)
    assert result.verification.spread > 1e-3
    assert numbers(result.model) < 0.5 * before


def torch_model(torch):
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.inner = nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.SiLU(),
                nn.Conv2d(width, width, 3, padding=1, groups=2), nn.ChannelShuffle(2), nn.Conv2d(width, width, 1),
            )  # fmt: skip
            self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width, 1), nn.Hardsigmoid())

        def forward(self, x):
            y = self.inner(x)
            return x + y * self.gate(y)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU())
            self.block = Block(16)
            self.project = nn.Conv2d(16, 12, 1)
            self.attention = nn.MultiheadAttention(12, 2, batch_first=True)
            self.head = nn.Linear(12, 5)

        def forward(self, x):
            x = self.project(self.block(self.stem(x)))
            x = x.flatten(2).transpose(1, 2)
            y, _ = self.attention(x, x, x, need_weights=False)
            return self.head((x + y).mean(1))

    model = Model()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.uniform_(parameter, 0.2, 1.0)
    return model


# ---------------------------------------------------------------------- what is kept


def small(**settings):
    net = Net(**settings)
    x = net.norm(net.conv("x", 3, 8, bias=False), 8)
    y = net.add("Relu", x)
    z = net.add("Add", net.conv(y, 8, 8), y)
    y = net.add("GlobalAveragePool", net.conv(z, 8, 4))
    return net.model({"x": ("N", 3, 8, 8)}, [y])


def halved(model):
    plan = tfprune.select(model, "l1", ratio=0.5, round_to=1)
    return tfprune.strip(model, plan)


def test_names_metadata_opset_and_shapes_are_kept():
    model = small(opset=13)
    model.doc_string, model.producer_name, model.model_version = "a model", "somebody", 7
    helper.set_model_props(model, {"classes": "cat, dog"})
    model.graph.doc_string = "a graph"
    model.graph.initializer[0].doc_string = "a kernel"
    model.graph.node[0].doc_string = "a convolution"
    shaped = onnx.shape_inference.infer_shapes(model)
    result = halved(shaped).model
    assert (result.doc_string, result.producer_name, result.model_version) == ("a model", "somebody", 7)
    assert result.metadata_props[0].value == "cat, dog" and result.graph.doc_string == "a graph"
    assert result.opset_import == model.opset_import and result.ir_version == model.ir_version
    assert result.graph.input == model.graph.input and result.graph.output == shaped.graph.output
    assert [node.name for node in result.graph.node] == [node.name for node in model.graph.node]
    assert [t.name for t in result.graph.initializer if t.name == model.graph.initializer[0].name]
    assert result.graph.node[0].doc_string == "a convolution"
    kernel = next(t for t in result.graph.initializer if t.name == model.graph.initializer[0].name)
    assert kernel.doc_string == "a kernel" and kernel.dims[0] == 4
    # What the file says of the shapes in between is what is inferred anew.
    said = {value.name: value.type for value in result.graph.value_info}
    bare = onnx.ModelProto()
    bare.CopyFrom(result)
    del bare.graph.value_info[:]
    inferred = {value.name: value.type for value in onnx.shape_inference.infer_shapes(bare).graph.value_info}
    assert said and said == {name: inferred[name] for name in said}


def test_a_zeroed_branch_disappears():
    model = small()
    for tensor in model.graph.initializer:
        if tensor.name in model.graph.node[3].input:  # the convolution inside the residual block
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros(tensor.dims, np.float32), tensor.name))
    result = tfprune.strip(model)
    assert [node.op_type for node in result.model.graph.node] == [
        "Conv", "BatchNormalization", "Relu", "Conv", "GlobalAveragePool",
    ]  # fmt: skip
    assert result.removed_layers and result.lossless


def test_a_constant_behind_a_matrix_without_a_bias_is_added():
    net = Net()
    y = net.add("Sigmoid", net.dense("x", 6, 8))
    model = net.model({"x": ("N", 6)}, [net.dense(y, 8, 4, bias=False)])
    plan = tfprune.select(model, "l1", ratio=0.5, round_to=1)
    for tensor in model.graph.initializer[:2]:  # what writes is zeroed, what reads is not: sigmoid(0) is 0.5
        array = onnx.numpy_helper.to_array(tensor).copy()
        array[..., [0, 3]] = 0
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    assert plan
    result = tfprune.strip(model)
    assert [node.op_type for node in result.model.graph.node] == ["MatMul", "Add", "Sigmoid", "MatMul", "Add"]
    sizes = {tensor.name: list(tensor.dims) for tensor in result.model.graph.initializer}
    assert result.verification.equal and sizes[model.graph.initializer[0].name] == [6, 6]


def test_equal_vectors_that_an_exporter_wrote_once_tie_nothing_together():
    net = Net()
    ones = net.positive(8)
    x = net.add("BatchNormalization", net.conv("x", 3, 8), ones, ones, ones, ones)
    y = net.add("BatchNormalization", net.conv(x, 8, 8), ones, ones, ones, ones)
    model = net.model({"x": ("N", 3, 8, 8)}, [net.add("GlobalAveragePool", net.conv(y, 8, 4))])
    graph = tfprune.trace(model)
    assert [group.width for group in graph.groups] == [8, 8, 4]
    plan = tfprune.PruningPlan.from_groups(graph, {graph.groups[0].name: [1, 2], graph.groups[1].name: [4, 5, 6]})
    assert tfprune.strip(model, plan).verification.equal
    tfprune.soft_prune(model, plan)
    result = tfprune.strip(model)
    assert [group.width for group in tfprune.trace(result.model).groups] == [6, 5, 4]


def test_weights_are_inputs_too_in_old_files():
    model = small(opset=9)
    model.ir_version = 3
    model.graph.input.extend(
        helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        for tensor in model.graph.initializer
    )
    result = halved(model)
    onnx.checker.check_model(result.model, full_check=True)
    assert numbers(result.model) < numbers(model)


@pytest.mark.parametrize("opset", [9, 11, 12, 13, 15, 17, 18, 21, 22])
def test_opsets(opset):
    result = halved(small(opset=opset))
    assert result.verification.equal and result.model.opset_import[0].version == opset


def test_float64_agrees_to_1e_12():
    net = Net(dtype=np.float64)
    y = net.add("Relu", net.dense("x", 6, 8))
    result = halved(net.model({"x": ("N", 6)}, [net.dense(y, 8, 4)]))
    assert result.verification.tolerance == 1e-12 and result.verification.equal


def test_what_is_not_known_stays():
    net = Net()
    x = net.conv("x", 3, 8)
    y = net.add("Relu", net.add("Mystery", x, domain="my.domain"))
    model = net.model({"x": ("N", 3, 8, 8)}, [net.conv(y, 8, 4)])
    graph = tfprune.trace(model)
    assert "Mystery" in str(graph) and not any(group.prunable for group in graph.groups)


def test_a_branch_that_is_chosen_at_run_time_keeps_what_it_reads():
    net = Net()
    x = net.conv("x", 3, 8)
    bodies = [
        helper.make_graph([helper.make_node(op, [x], [f"{op}_out"])], op, [], [
            helper.make_tensor_value_info(f"{op}_out", TensorProto.FLOAT, ["N", 8, 8, 8])])
        for op in ("Relu", "Tanh")
    ]  # fmt: skip
    condition = net.constant(np.array(True))
    y = net.add("If", condition, then_branch=bodies[0], else_branch=bodies[1])
    y = net.add("GlobalAveragePool", net.conv(net.conv(y, 8, 6), 6, 4))
    model = net.model({"x": ("N", 3, 8, 8)}, [y])
    graph = tfprune.trace(model)
    assert [group.prunable for group in graph.groups] == [False, True, False]
    assert halved(model).verification.equal


# ---------------------------------------------------------------------- selection, soft pruning, cost


def test_criteria_budgets_and_layers_work_as_on_keras(tmp_path):
    model = small()
    graph = tfprune.trace(model)
    for criterion in ("l1", "l2", "redundancy"):
        assert tfprune.select(graph, criterion, ratio=0.5, round_to=1).pruned == 4
    plan = tfprune.select(model, "l1", ratio=0.5, round_to=1)
    path = save(model, tmp_path / "model.onnx")
    again = tfprune.PruningPlan.from_json(plan.to_json(), tfprune.trace(str(path)))
    assert again.channels == plan.channels
    with pytest.raises(PlanError, match=r"onnx\.load"):
        tfprune.soft_prune(str(path), plan)
    other = onnx.load(path)
    tfprune.soft_prune(other, plan)
    assert other != model and onnx.load(path) == model
    assert numbers(tfprune.strip(other).model) == numbers(tfprune.strip(str(path), plan).model)
    with pytest.raises(PlanError, match="optimizer"):
        tfprune.strip(model, carry_optimizer=True)


def test_cost_by_hand():
    count = tfprune.cost(small())
    assert count.parameters == 3 * 8 * 9 + 4 * 8 + 8 * 8 * 9 + 8 + 8 * 4 * 9 + 4
    assert count.macs == 64 * 9 * (3 * 8 + 8 * 8 + 8 * 4)
    assert count.bytes == 4 * count.parameters


# ---------------------------------------------------------------------- files


def test_weights_beside_the_file(tmp_path, monkeypatch):
    model = small()
    write_large(model, tmp_path / "large.onnx", "large.weights")
    assert halved(str(tmp_path / "large.onnx")).verification.equal
    monkeypatch.setattr("tfprune.onnx_graph.model.LARGEST", 1 << 20)
    monkeypatch.setattr("tfprune.onnx_graph.run.LARGEST", 1 << 20)
    save(halved(model).model, tmp_path / "small.onnx")
    assert (tmp_path / "small.onnx.data").stat().st_size >= 4 * 400
    tfprune.verify(halved(model).model, str(tmp_path / "small.onnx")).raise_if_different("the saved file")


def test_large_weights_stay_in_their_file_until_they_are_asked_for(tmp_path, monkeypatch):
    model, path = small(), tmp_path / "large.onnx"
    write_large(model, path, "weights")
    roads = (
        lambda model: tfprune.strip(model).model,
        lambda model: halved(model).model,
        lambda model: tfprune.remove_layers(model, 40, seed=1).model,
    )
    expected = [road(model) for road in roads]
    for module in ("model", "run", "remove_layers"):
        monkeypatch.setattr(f"tfprune.onnx_graph.{module}.LARGEST", 1 << 10)
    for place in ("onnx_graph.infer", "onnx_graph.rebuild"):
        monkeypatch.setattr(f"tfprune.{place}.LARGE", 0)
    monkeypatch.setattr(sys.modules["tfprune.strip"], "_LARGE", 0)
    kernels = [tensor for tensor in tfprune.trace(str(path)).model.graph.initializer if len(tensor.dims) == 4]
    assert len(kernels) == 3 and not any(tensor.raw_data for tensor in kernels)
    assert np.array_equal(array(kernels[0]), array(model.graph.initializer[0]))
    for road, wanted in zip(roads, expected, strict=True):
        held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in road(str(path)).graph.initializer}
        assert sorted(held) == sorted(tensor.name for tensor in wanted.graph.initializer)
        for tensor in wanted.graph.initializer:
            assert np.array_equal(held[tensor.name], onnx.numpy_helper.to_array(tensor)), tensor.name


def test_what_is_refused_at_the_door(tmp_path):
    model = small()
    path = tmp_path / "model.onnx"
    data = model.SerializeToString()

    def refused(message, changed=None, raw=None):
        path.write_bytes(changed.SerializeToString() if raw is None else raw)
        with pytest.raises(TraceError, match=message):
            tfprune.trace(str(path))

    refused("damaged", raw=b"nonsense" * 20)
    refused("empty or damaged", raw=b"")
    for cut in (10, len(data) // 2, len(data) - 3):
        path.write_bytes(data[:cut])
        with pytest.raises(TfpruneError):
            tfprune.strip(str(path))
    with pytest.raises(TraceError, match="does not exist"):
        tfprune.trace(str(tmp_path / "nothing.onnx"))

    changed = onnx.ModelProto.FromString(data)
    changed.graph.node.insert(0, changed.graph.node.pop())
    refused("sorted", changed)
    changed = onnx.ModelProto.FromString(data)
    changed.graph.node[0].input[0] = changed.graph.node[3].output[0]
    refused("sorted", changed)
    changed = onnx.ModelProto.FromString(data)
    changed.graph.node[2].op_type = "Nonsense"
    refused("Nonsense", changed)
    changed = onnx.ModelProto.FromString(data)
    changed.graph.node[2].op_type = "DynamicQuantizeLinear"
    refused("quantized.*prune the float model first", changed)
    changed = onnx.ModelProto.FromString(data)
    changed.graph.initializer[0].raw_data = b"\0" * 8
    refused("damaged", changed)


def test_weights_outside_of_the_folder_are_not_read(tmp_path):
    folder = tmp_path / "inner"
    folder.mkdir()
    model = small()
    write_large(model, folder / "model.onnx", "weights")
    light = onnx.load(folder / "model.onnx", load_external_data=False)
    (folder / "weights").rename(tmp_path / "weights")
    with pytest.raises(TraceError, match="needs 'weights' beside it"):
        tfprune.trace(str(folder / "model.onnx"))
    for tensor in [tensor for tensor in light.graph.initializer if tensor.external_data]:
        next(entry for entry in tensor.external_data if entry.key == "location").value = "../weights"
    (folder / "model.onnx").write_bytes(light.SerializeToString())
    with pytest.raises(TraceError, match="outside of the model's folder"):
        tfprune.trace(str(folder / "model.onnx"))
    with pytest.raises(TraceError, match="still in another file"):
        tfprune.trace(light)


def test_damaged_files_raise_nothing_else(tmp_path, monkeypatch):
    import sys
    from pathlib import Path

    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    import onnx_fuzz

    results = [onnx_fuzz.one(number) for number in range(120)]
    assert not [result for result in results if result.startswith("FAILED")]
    assert {"stripped", "TraceError"} <= set(results)
    sys.modules.pop("onnx_fuzz", None)


# ---------------------------------------------------------------------- the command line


def test_commands_take_onnx_files(tmp_path, capsys):
    from tfprune.__main__ import main

    path = str(save(small(), tmp_path / "model.onnx"))
    assert main(["inspect", f"--model={path}"]) == 0
    assert "Conv_2" in capsys.readouterr().out
    folder = tmp_path / "pruned"
    command = ["prune", f"--model={path}", "--criterion=l1", "--round_to=1", f"--output_dir={folder}"]
    assert main(command) == 2
    assert "--ratio" in capsys.readouterr().err
    assert main([*command, "--ratio=0.5"]) == 0
    assert "equal" in capsys.readouterr().out
    assert main(["cost", f"--model={path}", f"--after={folder / 'model.onnx'}"]) == 0
    assert "fewer" in capsys.readouterr().out
    assert main(["strip", f"--model={folder / 'model.onnx'}", f"--output_dir={tmp_path / 'again'}"]) == 0
    same = ["verify", f"--model={folder / 'model.onnx'}", f"--other={tmp_path / 'again' / 'model.onnx'}"]
    assert main(same) == 0
    assert main(["verify", f"--model={path}", f"--other={folder / 'model.onnx'}"]) == 1
