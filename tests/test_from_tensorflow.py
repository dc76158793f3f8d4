"""Frozen graphs and SavedModels in: converted, compared with TensorFlow's own run, pruned and stripped as ONNX."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import test_export as exported
from models import inverted_residual_net, shaken
from onnx_models import numbers

import tfprune
from tfprune.__main__ import main
from tfprune.errors import TraceError, VerificationError
from tfprune.from_tensorflow.convert import convert
from tfprune.onnx_graph.run import random_inputs, run


def tf1_graph(layout="NHWC", sizes=(16, 16)):
    """A residual network in the style of TensorFlow 1's slim, its variables frozen."""
    import tensorflow as tf

    tf1 = tf.compat.v1
    generator = np.random.default_rng(0)
    first, channels = layout == "NCHW", {"NHWC": 3, "NCHW": 1}[layout]

    def variable(name, *shape, low=None):
        array = generator.normal(0, 0.3, shape) if low is None else generator.uniform(low, 1.5, shape)
        return tf1.get_variable(name, initializer=array.astype(np.float32))

    def conv(x, filters, stride, scope):
        with tf1.variable_scope(scope):
            kernel = variable("weights", 3, 3, x.shape[channels], filters)
            strides = [1, 1, stride, stride] if first else [1, stride, stride, 1]
            x = tf1.nn.conv2d(x, kernel, strides, "SAME", data_format=layout, name="Conv2D")
            with tf1.variable_scope("BatchNorm"):
                scale, shift = variable("gamma", filters, low=0.5), variable("beta", filters)
                mean, variance = variable("moving_mean", filters), variable("moving_variance", filters, low=0.5)
                x, _, _ = tf1.nn.fused_batch_norm(
                    x, scale, shift, mean, variance, is_training=False, data_format=layout, name="FusedBatchNorm"
                )
            return tf1.nn.relu6(x, name="Relu6")

    with tf.Graph().as_default() as graph:
        shape = (None, 3, *sizes) if first else (None, *sizes, 3)
        image = tf1.placeholder(tf.float32, shape, name="input")
        scale = tf1.placeholder_with_default(np.float32(0.5), (), name="scale")
        x = y = conv(image * scale, 16, 2, "MobilenetV1/Conv2d_0")
        x = tf1.add(x, conv(y, 16, 1, "MobilenetV1/Conv2d_1"), name="MobilenetV1/add")
        x = conv(x, 24, 2, "MobilenetV1/Conv2d_2")
        x = tf1.reduce_mean(x, [2, 3] if first else [1, 2], name="MobilenetV1/pool")
        x = tf1.nn.bias_add(tf1.matmul(x, variable("Logits/weights", 24, 6)), variable("Logits/biases", 6), name="out")
        half, _ = tf1.split(x, 2, axis=1, name="halves")
        tf1.nn.softmax(half, name="Softmax")
        with tf1.Session() as session:
            session.run(tf1.global_variables_initializer())
            return tf1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), ["Softmax", "out"])


@pytest.fixture(scope="module", params=["NHWC", "NCHW"])
def frozen(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("graphs") / f"{request.param}.pb"
    path.write_bytes(tf1_graph(request.param).SerializeToString())
    return path


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    path = tmp_path_factory.mktemp("graphs") / "graph.pb"
    path.write_bytes(tf1_graph().SerializeToString())
    return path


def names(model):
    return [value.name for value in model.graph.input], [value.name for value in model.graph.output]


# ---------------------------------------------------------------------- frozen graphs


def test_a_graph_of_tensorflow_1_is_pruned_and_stripped(frozen):
    before = frozen.read_bytes()
    made = convert(frozen, ["input:0"], ["out:0", "Softmax"])
    assert names(made.model) == (["input"], ["out", "Softmax"]) and "guessed" not in made.taken
    assert made.verification.equal and made.verification.spread > 1e-3
    onnx.checker.check_model(made.model, full_check=True)
    graph = tfprune.trace(made.model)
    assert sorted(group.width for group in graph.groups if group.prunable) == [16, 24]
    plan = tfprune.select(graph, "l1", ratio=0.5, round_to=1)
    tfprune.soft_prune(made.model, plan)
    result = tfprune.strip(made.model)
    assert result.verification.equal
    # Two convolutions of 8 and one of 12 filters are left, and half of the logits' rows; counted by hand.
    kernels = [list(t.dims) for t in result.model.graph.initializer if len(t.dims) == 4]
    assert sorted(kernels) == [[8, 3, 3, 3], [8, 8, 3, 3], [12, 8, 3, 3]]
    assert result.cost_after.macs == 8 * 8 * 27 * 8 + 8 * 8 * 72 * 8 + 4 * 4 * 72 * 12 + 12 * 6
    assert frozen.read_bytes() == before


def test_inputs_and_outputs_are_guessed_and_told(graph):
    made = convert(graph)
    assert names(made.model) == (["input"], ["Softmax"])
    assert made.taken == (
        "inputs input:0; outputs Softmax:0 (inputs and outputs guessed; --inputs and --outputs say otherwise)"
    )


def test_any_tensor_may_be_an_end(graph):
    model = tfprune.from_tensorflow(graph, ["MobilenetV1/Conv2d_0/Relu6"], ["halves:1", "out", "halves:0"])
    assert names(model) == (["MobilenetV1/Conv2d_0/Relu6"], ["halves_1", "out", "halves"])
    outputs = run(model, random_inputs(model))
    assert np.array_equal(np.concatenate([outputs[2], outputs[0]], 1), outputs[1])
    # A placeholder that has a default is an input where it is named.
    assert names(tfprune.from_tensorflow(graph, ["input", "scale"], ["out"]))[0] == ["input", "scale"]


@pytest.mark.parametrize("build", [inverted_residual_net, exported.grouped, exported.transposed_and_upsampled])
def test_what_export_wrote_is_what_it_writes_as_onnx(build, tmp_path):
    model = shaken(build())
    tfprune.soft_prune(model, tfprune.select(model, "l1", ratio=0.5, round_to=1))
    files = tfprune.export(model, tmp_path, ("pb", "saved_model", "onnx"), name="net")
    direct = tfprune.strip(str(files["onnx"].path)).model
    for kind in ("pb", "saved_model"):
        assert main(["strip", f"--model={files[kind].path}", f"--output_dir={tmp_path / kind}"]) == 0
        through = onnx.load(tmp_path / kind / "model.onnx")
        assert names(through) == names(direct)
        assert tfprune.cost(through).macs == tfprune.cost(direct).macs < tfprune.cost(str(files["onnx"].path)).macs
        tfprune.verify(direct, through).raise_if_different("the two roads")


# ---------------------------------------------------------------------- SavedModels


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two signatures, one of which takes what it returns; a grouped convolution, which Keras compiles by XLA."""
    import keras
    import tensorflow as tf

    folder = tmp_path_factory.mktemp("saved") / "net"
    x = keras.Input((8, 8, 4), name="x")
    model = shaken(keras.Model(x, keras.layers.Conv2D(8, 3, groups=2)(keras.layers.Conv2D(4, 3)(x))))
    root = tf.Module()
    root.model = model

    @tf.function(input_signature=[tf.TensorSpec((None, 8, 8, 4), name="b"), tf.TensorSpec((None, 8, 8, 4), name="a")])
    def both(b, a):
        return {"difference": model(a) - model(b), "a": a}

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 4), name="x")])
    def one(x):
        return {"y": model(x)}

    tf.saved_model.save(root, str(folder), {"both": both, "one": one})
    return folder


def test_a_signature_of_a_saved_model(saved):
    model = tfprune.from_tensorflow(saved, signature="both")
    assert names(model) == (["a", "b"], ["a_output", "difference"])
    assert all(node.op_type in ("Conv", "Identity", "Sub", "Transpose") for node in model.graph.node)
    swapped = tfprune.from_tensorflow(saved / "saved_model.pb", ["b", "a"], ["difference"], signature="both")
    assert names(swapped) == (["b", "a"], ["difference"])
    a, b = random_inputs(model)
    assert np.array_equal(run(model, [a, b])[1], run(swapped, [b, a])[0])


def test_a_saved_model_of_tensorflow_1(tmp_path):
    import tensorflow as tf

    tf1 = tf.compat.v1
    with tf.Graph().as_default(), tf1.Session() as session:
        x = tf1.placeholder(tf.float32, (None, 8, 8, 3), name="images")
        kernel = tf1.get_variable("w", (3, 3, 3, 8))
        y = tf1.nn.relu(tf1.nn.conv2d(x, kernel, 1, "SAME"), name="features")
        session.run(tf1.global_variables_initializer())
        tf1.saved_model.simple_save(session, str(tmp_path / "old"), {"image": x}, {"features": y})
    made = convert(tmp_path / "old")
    assert names(made.model) == (["image"], ["features"]) and numbers(made.model) == 3 * 3 * 3 * 8
    assert made.taken == "signature serving_default: inputs image; outputs features"


# ---------------------------------------------------------------------- shapes


def test_open_sizes_stay_open_or_are_given(saved, tmp_path):
    import tensorflow as tf

    model = tfprune.from_tensorflow(saved, signature="one")
    assert [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim] == [
        "batch", "x_1", "x_2", 4
    ]  # fmt: skip
    model = tfprune.from_tensorflow(saved, signature="one", shapes=(None, 8, 8, 4))
    assert [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim] == [0, 8, 8, 4]
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, name="x")
        tf.nn.conv2d(x, tf.ones((3, 3, 2, 4)), 1, "SAME", name="y")
    path = tmp_path / "open.pb"
    path.write_bytes(graph.as_graph_def().SerializeToString())
    with pytest.raises(TraceError, match=r"'x' has no shape in the file.* shapes={'x': \(None, 224, 224, 3\)}"):
        tfprune.from_tensorflow(path)
    assert tfprune.cost(tfprune.from_tensorflow(path, shapes={"x:0": (1, 5, 5, 2)})).macs == 25 * 9 * 2 * 4
    assert main(["cost", f"--model={path}", "--input_shape=5,5,2"]) == 0
    for wrong, text in (
        ({"z": (1,)}, "no input 'z'"),
        ((None, 5, 5), "cannot become an ONNX model"),
        ({"x": (1, 5, 5, 3)}, "cannot become an ONNX model"),
    ):
        with pytest.raises(TraceError, match=text):
            tfprune.from_tensorflow(path, shapes=wrong)


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "settings, text",
    [
        (
            {"inputs": ["imput:0"]},
            r"no input 'imput:0'; did you mean 'input', .*; its placeholders are input:0 \(None, 16",
        ),
        ({"outputs": ["Softmax:1"]}, "no output 'Softmax:1'.*its ends are Softmax:0 "),
        ({"inputs": ["MobilenetV1/Conv2d_0/Relu6"], "outputs": ["input"]}, "need 'input' too"),
        ({"inputs": ["input", "halves:1"], "outputs": ["out"]}, "do not depend on the input 'halves_1'"),
        ({"signature": "serving_default"}, "a frozen graph, which has no signatures"),
        ({"opset": 22}, "opset must be 13 to 18"),
        ({"shapes": (None, 8, 8, 3)}, r"'input' has shape \(None, 16, 16, 3\), and \(None, 8, 8, 3\) came"),
    ],
)
def test_names_and_settings_that_do_not_fit(graph, settings, text):
    with pytest.raises(TraceError, match=text):
        tfprune.from_tensorflow(graph, **settings)


def test_files_that_are_none(graph, saved, tmp_path):
    import tensorflow as tf

    (tmp_path / "text.pb").write_text("node { name: 'x' }")
    (tmp_path / "empty.pb").write_bytes(b"")
    (tmp_path / "cut.pb").write_bytes(graph.read_bytes()[:-100])
    with tf.Graph().as_default() as unfrozen:
        x = tf.compat.v1.placeholder(tf.float32, (1, 2), name="x")
        tf.matmul(x, tf.compat.v1.get_variable("w", (2, 2)), name="y")
    (tmp_path / "unfrozen.pb").write_bytes(unfrozen.as_graph_def().SerializeToString())
    unknown = tf.compat.v1.GraphDef()
    unknown.node.add(name="x", op="OfMyOwn")
    (tmp_path / "unknown.pb").write_bytes(unknown.SerializeToString())
    for name, text in {
        "none.pb": "does not exist",
        "text.pb": "no frozen TensorFlow graph",
        "empty.pb": "no nodes",
        "cut.pb": "no frozen TensorFlow graph, or is damaged",
        "unfrozen.pb": "not frozen: it reads the variable 'w'",
        "unknown.pb": "TensorFlow cannot read the graph.*OfMyOwn",
        ".": "no SavedModel: there is no saved_model.pb",
    }.items():
        with pytest.raises(TraceError, match=text):
            tfprune.from_tensorflow(tmp_path / name)
    for settings, text in (
        ({}, "2 signatures .* and none is serving_default"),
        ({"signature": "ome"}, "no signature 'ome'; did you mean 'one'"),
        ({"signature": "one", "inputs": ["y"]}, "no argument 'y'; there are x"),
        ({"signature": "both", "inputs": ["a"]}, "takes 'b' too"),
        ({"signature": "one", "outputs": ["z"]}, "no result 'z'; there are y"),
    ):
        with pytest.raises(TraceError, match=text):
            tfprune.from_tensorflow(saved, **settings)
    # Where an ONNX model is meant, the way is told.
    for path in (graph, saved):
        with pytest.raises(TraceError, match=r"tfprune.from_tensorflow\(path\) makes one"):
            tfprune.trace(str(path))


def test_a_graph_that_tf2onnx_cannot_write_or_gets_wrong(graph, tmp_path, monkeypatch):
    import tensorflow as tf

    with tf.Graph().as_default() as spectrum:
        x = tf.compat.v1.placeholder(tf.float32, (None, 4), name="x")
        tf.math.lgamma(x, name="y")
    path = tmp_path / "spectrum.pb"
    path.write_bytes(spectrum.as_graph_def().SerializeToString())
    with pytest.raises(TraceError, match="cannot become an ONNX model.*Lgamma"):
        tfprune.from_tensorflow(path)
    from tfprune.export import onnx_passes

    folded = onnx_passes.simplify

    def wrong(model, constants):
        folded(model, constants)
        kernel = next(name for name, array in constants.items() if array.ndim == 4)
        constants[kernel] = constants[kernel] * np.float32(1.001)

    monkeypatch.setattr(onnx_passes, "simplify", wrong)
    with pytest.raises(VerificationError, match="converted to ONNX: outputs differ"):
        tfprune.from_tensorflow(graph)


# ---------------------------------------------------------------------- the command line


def test_commands_take_them_where_they_take_onnx(graph, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ends = [f"--model={graph}", "--inputs=input:0", "--outputs=out:0"]
    assert main(["cost", *ends]) == 0
    assert "inputs input:0; outputs out:0; ONNX against TensorFlow equal" in capsys.readouterr().out
    assert main(["inspect", f"--model={graph}"]) == 0
    assert "inputs and outputs guessed" in capsys.readouterr().out
    assert main(["prune", *ends, "--ratio=0.5", "--criterion=l1", "--output_dir=pruned"]) == 0
    assert tfprune.cost("pruned/model.onnx").parameters < tfprune.cost(tfprune.from_tensorflow(graph)).parameters / 2
    assert main(["remove_layers", *ends, "--percent=34", "--output_dir=fewer"]) == 0
    assert sum(node.op_type == "Conv" for node in onnx.load("fewer/model.onnx").graph.node) == 2
    assert main(["verify", *ends, f"--other={graph}"]) == 0
    assert main(["verify", *ends, "--other=pruned/model.onnx"]) == 1
    assert main(["to_keras", *ends, "--output_dir=keras"]) == 0
    assert main(["verify", "--model=keras/model.keras", f"--other={graph}"]) == 0
    capsys.readouterr()
    assert main(["strip", f"--model={graph}", "--inputs=imput", "--output_dir=s"]) == 1
    assert "did you mean 'input'" in capsys.readouterr().err
    assert main(["cost", "--model=pruned/model.onnx", "--inputs=x"]) == 2
    assert "--inputs is for a frozen .pb or a SavedModel" in capsys.readouterr().err


def test_to_keras_and_remove_layers_commands(tmp_path, capsys, monkeypatch):
    import keras
    from onnx_models import Net

    monkeypatch.chdir(tmp_path)
    net = Net()
    x = net.add("Relu", net.conv("x", 3, 8))
    model = net.model({"x": ("N", 3, 8, 8)}, [net.add("GlobalAveragePool", net.conv(x, 8, 4))])
    onnx.save(model, "model.onnx")
    assert main(["to_keras", "--model=model.onnx", "--output_dir=keras"]) == 0
    made = keras.saving.load_model("keras/model.keras", compile=False)
    tfprune.verify(model, made).raise_if_different("the file that was written")
    assert main(["remove_layers", "--model=keras/model.keras", "--percent=50", "--output_dir=fewer"]) == 0
    left = keras.saving.load_model("fewer/model.keras", compile=False)
    assert sum(isinstance(layer, keras.layers.Conv2D) for layer in left.layers) == 1
    for percent, code in ((0, 0), (100, 1)):
        arguments = [f"--percent={percent}", f"--output_dir=p{percent}"]
        assert main(["remove_layers", "--model=model.onnx", *arguments]) == code
    assert onnx.load("p0/model.onnx") == model
    assert "at most 1 can be removed (50 %)" in capsys.readouterr().err
    assert main(["to_keras", "--model=keras/model.keras", "--output_dir=k"]) == 2
