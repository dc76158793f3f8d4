"""Every format and every trap of the ONNX road, on models small enough to convert in a blink.

The oracle is the Keras model itself, run here and not by `export`; where numbers matter more, numpy by hand.
"""

from __future__ import annotations

import io
import os
import tracemalloc
import zipfile
from collections import Counter

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest
from keras import layers

from tfprune.errors import ExportError, TfpruneError
from tfprune.export import Exporter, ExportReport, ExportRow, export, known_formats, onnx_latency, registry
from tfprune.export.names import functional, input_names, output_names

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("tf2onnx")

from tfprune.export import onnx_file, onnx_passes  # noqa: E402


def shake(model, seed=0):
    """Random weights everywhere, variances and scales positive: a fresh network outputs next to nothing."""
    generator = np.random.default_rng(seed)
    for variable in model.weights:
        if "seed_generator" in variable.path or "count" in variable.path:
            continue
        kind = variable.path.rpartition("/")[2]
        if kind in ("gamma", "moving_variance", "variance"):
            variable.assign(generator.uniform(0.5, 1.5, variable.shape))
        elif len(variable.shape) < 2:
            variable.assign(generator.normal(0, 0.5, variable.shape))
    return model


def data(model, batch=3, seed=5):
    generator = np.random.default_rng(seed)
    return [
        generator.integers(0, 5, (batch, *x.shape[1:])).astype(x.dtype)
        if "int" in x.dtype
        else generator.standard_normal((batch, *x.shape[1:])).astype(x.dtype)
        for x in model.inputs
    ]


def by_keras(model, arrays):
    return [np.asarray(y, "float64") for y in keras.tree.flatten(model(arrays if len(arrays) > 1 else arrays[0]))]


def by_onnxruntime(path, arrays):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip([x.name for x in session.get_inputs()], arrays, strict=True)))


def assert_same(expected, got, tolerance=1e-5):
    assert len(expected) == len(got)
    for a, b in zip(expected, got, strict=True):
        assert a.std() > 1e-3, "the model's output hardly varies, so that equality says nothing"
        assert np.shape(a) == np.shape(b)
        assert np.max(np.abs(a - b)) <= tolerance * np.max(np.abs(a))


def operators(path):
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def image(size=10, channels=4):
    return keras.Input((size, size, channels), name="image")


def head(x):
    return layers.Dense(3, name="scores")(layers.GlobalAveragePooling2D()(x))


def inverted_residual():
    x = inputs = image()
    x = layers.BatchNormalization()(layers.Conv2D(8, 1, use_bias=False)(x))
    x = layers.DepthwiseConv2D(3, strides=2, padding="same", use_bias=False)(layers.ReLU(6.0)(x))
    x = layers.Activation("hard_swish")(layers.BatchNormalization()(x))
    gate = layers.Conv2D(8, 1, activation="hard_sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = layers.Multiply()([x, gate])
    y = layers.BatchNormalization()(layers.Conv2D(8, 1, use_bias=False)(x))
    return keras.Model(inputs, head(layers.Add()([x, y])), name="inverted_residual")


def normalization():
    inputs = image()
    x = layers.Normalization(mean=[1.0, 2.0, 3.0, 4.0], variance=[1.0, 4.0, 9.0, 16.0])(inputs)
    return keras.Model(inputs, head(layers.Conv2D(4, 3)(layers.Rescaling(0.5, 1.0)(x))))


def gelu():
    inputs = image()
    x = layers.Conv2D(8, 3, activation="gelu")(inputs)
    return keras.Model(inputs, head(keras.ops.gelu(layers.Conv2D(6, 3)(x), approximate=True)))


def convnext():
    """Two blocks and the step between them, as ConvNeXt has them."""
    inputs = image(12)
    x = layers.LayerNormalization(epsilon=1e-6)(layers.Conv2D(8, 2, strides=2)(inputs))
    for _ in range(2):
        y = layers.LayerNormalization(epsilon=1e-6)(layers.Conv2D(8, 3, padding="same", groups=8)(x))
        y = layers.Dense(8)(layers.Activation("gelu")(layers.Dense(12)(y)))
        x = x + y * np.linspace(0.5, 1.5, 8).astype("float32")
    x = layers.Conv2D(6, 2, strides=2)(layers.LayerNormalization(epsilon=1e-6)(x))
    return keras.Model(inputs, head(x), name="convnext")


def dense_beside_convolutions():
    """Dense layers whose maps are read with the channels last: flattened, and by attention over rows."""
    x = layers.Conv2D(6, 3)(inputs := image())
    x = layers.Dense(5)(layers.LayerNormalization()(x))
    x = layers.MultiHeadAttention(2, 3, attention_axes=(1, 2))(x, x)
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(layers.Dense(2)(x))))


def erfc():
    inputs = keras.Input((6,))
    return keras.Model(inputs, 1.0 - keras.ops.erf(layers.Dense(4)(inputs)))


def grouped():
    inputs = image()
    return keras.Model(inputs, head(layers.Conv2D(8, 3, groups=2, activation="relu")(inputs)), name="grouped")


def depthwise_multiplier():
    inputs = image()
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same")(inputs)
    x = layers.SeparableConv2D(6, 3, dilation_rate=2)(x)
    return keras.Model(inputs, head(layers.Activation("sigmoid")(x)))


def hard_swish():
    x = inputs = image()
    for _ in range(3):
        x = layers.Conv2D(6, 3, use_bias=False)(x)
        x = x * keras.ops.relu6(x + 3.0) / 6.0
    return keras.Model(inputs, head(x))


def sequential():
    return keras.Sequential(
        [image(), layers.Conv2D(4, 3, activation="relu"), layers.Flatten(), layers.Dense(3, name="scores")], name="seq"
    )


def zero_padded_pool():
    inputs = image()
    x = layers.Conv2D(4, 3, bias_initializer=keras.initializers.Constant(-20.0))(inputs)
    x = layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D(1)(x))
    return keras.Model(inputs, layers.Flatten(name="scores")(x))


def dense_on_feature_map():
    inputs = image()
    x = layers.Dense(5, activation="gelu")(layers.LayerNormalization()(inputs))
    return keras.Model(inputs, layers.Dense(2, name="scores")(x))


def pre_activation():
    x = inputs = image()
    for _ in range(2):
        y = layers.Conv2D(4, 3, padding="same")(layers.ReLU()(layers.BatchNormalization()(x)))
        x = layers.Add()([x, y])
    return keras.Model(inputs, head(x))


def shared_convolution():
    inputs = image()
    conv = layers.Conv2D(4, 3, padding="same")
    x = layers.BatchNormalization()(conv(inputs))
    y = layers.BatchNormalization()(conv(layers.ReLU()(x)))
    return keras.Model(inputs, head(layers.Concatenate()([x, y])))


def transposed_and_upsampled():
    inputs = image(6)
    x = layers.Conv2DTranspose(4, 3, strides=2, padding="same")(inputs)
    return keras.Model(inputs, head(layers.UpSampling2D(2)(x)))


def one_dimensional():
    inputs = keras.Input((12, 4))
    x = layers.BatchNormalization()(layers.Conv1D(6, 3, use_bias=False)(inputs))
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(layers.DepthwiseConv1D(3)(x))))


def recurrent():
    inputs = keras.Input((5, 4))
    return keras.Model(inputs, layers.GRU(3)(layers.LSTM(4, return_sequences=True)(inputs)))


def attention():
    tokens = keras.Input((6,), dtype="int32", name="tokens")
    x = layers.Embedding(7, 8)(tokens)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x))
    return keras.Model(tokens, x)


def layer_norms():
    inputs = image()
    x = layers.LayerNormalization(epsilon=0.5)(layers.Conv2D(6, 3)(inputs))
    x = layers.LayerNormalization(center=False)(layers.Dense(5)(x))
    x = layers.LayerNormalization(scale=False, center=False)(layers.Activation("tanh")(x))
    return keras.Model(inputs, layers.LayerNormalization((1, 2), scale=False, center=False)(layers.Dense(4)(x)))


def nested():
    inner_in = keras.Input((10, 10, 4))
    inner = keras.Model(inner_in, layers.BatchNormalization()(layers.Conv2D(5, 3)(inner_in)), name="inner")
    inputs = image()
    return keras.Model(inputs, head(keras.Sequential([inner, layers.ReLU()], name="outer")(inputs)))


def two_of_each():
    left, right = keras.Input((4,), name="zebra"), keras.Input((6,), name="ant")
    joined = layers.Dense(5, name="joined")(layers.Concatenate()([left, right]))
    return keras.Model([left, right], [layers.Dense(2, name="a")(joined), joined, layers.Dense(3, name="b")(right)])


def output_is_input():
    inputs = keras.Input((4,), name="x")
    y = layers.Dense(3, name="y")(inputs)
    return keras.Model(inputs, [y, inputs, y])


def mapping_of_inputs():
    a, b = keras.Input((4,), name="b"), keras.Input((6,), name="a")
    return keras.Model({"b": a, "a": b}, {"z": layers.Dense(2, name="z")(a), "y": layers.Dense(2, name="y")(b)})


TRAPS = [
    inverted_residual, normalization, gelu, erfc, grouped, depthwise_multiplier, hard_swish, sequential,
    zero_padded_pool, dense_on_feature_map, pre_activation, shared_convolution, transposed_and_upsampled,
    convnext, dense_beside_convolutions,
    one_dimensional, recurrent, attention, layer_norms, nested, two_of_each, output_is_input,
]  # fmt: skip


@pytest.mark.parametrize("build", TRAPS, ids=lambda build: build.__name__)
def test_onnx_computes_what_keras_computes(build, tmp_path):
    model = shake(build())
    path = export(model, tmp_path, formats=["onnx"], name="m")["onnx"].path
    arrays = data(model)
    assert_same(by_keras(model, arrays), by_onnxruntime(path, arrays))
    onnx.checker.check_model(str(path), full_check=True)


@pytest.mark.parametrize("build", [grouped, two_of_each, output_is_input, mapping_of_inputs, sequential, recurrent])
def test_all_formats_agree_with_keras(build, tmp_path):
    model = shake(build())
    report = export(model, tmp_path, name="m")
    assert [row.format for row in report] == ["keras", "saved_model", "pb", "onnx"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.keras", "m.onnx", "m.pb", "m_export.json", "m_saved_model"]
    assert all(row.difference <= 1e-5 and row.bytes > 500 and row.path.exists() for row in report)


def test_the_report_prints_as_a_table(tmp_path):
    report = export(shake(sequential()), tmp_path, formats="keras")
    lines = str(report).splitlines()
    assert lines[1].split() == "format MB difference top 1 load ms run ms seconds path".split()
    assert lines[2].split()[0] == "keras" and lines[2].endswith("seq.keras")
    console = pytest.importorskip("rich.console").Console(width=200, record=True, file=io.StringIO())
    console.print(report)
    assert "seq.keras" in console.export_text()
    with pytest.raises(AttributeError):
        report.model = "other"


def test_a_model_never_called_exports(tmp_path):
    config = sequential().get_config()
    assert export(keras.Sequential.from_config(config), tmp_path, formats=["onnx"])["onnx"].path.exists()


def test_hard_swish_keeps_one_transpose(tmp_path):
    path = export(shake(hard_swish()), tmp_path, formats=["onnx"])["onnx"].path
    assert operators(path)["Transpose"] == 1
    path = export(shake(inverted_residual()), tmp_path, formats=["onnx"])["onnx"].path
    assert operators(path)["Transpose"] == 1


def test_batch_normalization_folds_into_the_convolution(tmp_path):
    model = shake(inverted_residual())
    path = export(model, tmp_path, formats=["onnx"])["onnx"].path
    before = sum(isinstance(layer, layers.BatchNormalization) for layer in model.layers)
    found = operators(path)
    assert before == 3 and found["BatchNormalization"] == 0
    # Add: the shortcut, and hard-swish's + 3 that TensorFlow has put into a normalisation's beta. Mul: hard-swish's
    # x * hard_sigmoid(x), and the gate's product.
    assert (found["Conv"], found["Add"], found["Mul"], found["HardSigmoid"]) == (4, 2, 2, 2)
    # Squeeze-and-excitation's (1, 1, C) is (C, 1, 1) with nothing to move.
    assert found["Reshape"] == 0


@pytest.mark.parametrize(
    "target, stays",
    [
        ([-1, 2, 1, 4], True),
        ([-1, 2, 4], False),
        ([-1, 2, 2, 2], False),
        ([3, 2, 1, -1], False),
        ([-1, 2, 1, 2], False),
    ],
)
def test_only_a_reshape_to_the_same_shape_is_dropped(target, stays):
    node = onnx.helper.make_node
    nodes = [node("Relu", ["x"], ["a"]), node("Reshape", ["a", "t"], ["b"]), node("Neg", ["b"], ["y"])]
    model = graph_of(nodes, {"t": np.array(target)})
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ("batch", 2, 1, 4))
    model.graph.input[0].CopyFrom(x)
    onnx_passes.drop_idle_reshapes(model, onnx_passes.take_constants(model))
    assert [n.op_type for n in model.graph.node] == (["Relu", "Neg"] if stays else ["Relu", "Reshape", "Neg"])
    assert model.graph.node[-1].input[0] == ("a" if stays else "b")


def test_dense_on_a_feature_map_computes_no_shapes(tmp_path):
    found = operators(export(shake(dense_on_feature_map()), tmp_path, formats=["onnx"])["onnx"].path)
    assert found["MatMul"] == 2 and not found["Shape"] and not found["Gather"]


def test_gelu_has_the_form_that_onnxruntime_fuses(tmp_path):
    path = export(shake(gelu()), tmp_path, formats=["onnx"], name="m")["onnx"].path
    assert operators(path)["Erf"] == operators(path)["Transpose"] == 1
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    fused = operators(tmp_path / "optimized.onnx")
    assert fused["Gelu"] == 1 and not fused["Erf"]


@pytest.mark.parametrize("opset", [13, 17, 18])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_dense_layers_between_convolutions_transpose_nothing(opset, layout, tmp_path):
    model = shake(convnext())
    path = export(model, tmp_path, formats=["onnx"], opset=opset, layout=layout)["onnx"].path
    found = operators(path)
    assert found["Transpose"] == (layout == "NHWC") and found["MatMul"] == 1  # the classifier
    # Stem, (depthwise, Dense, Dense) a block with LayerScale inside the last one, the step.
    assert found["Conv"] == 1 + 2 * 3 + 1
    # One a normalisation, and gamma only where no convolution follows; two a GELU.
    assert found["Mul"] == 4 + 1 + 2 * 2
    onnx.checker.check_model(str(path), full_check=True)


def test_a_layer_normalisation_before_an_unpadded_convolution_goes_into_it_by_hand():
    """Conv(2 x + 3) by a kernel of ones over two channels and 2 x 2 positions: 2 sum(x) + 3 * 8."""
    node, attributes = onnx.helper.make_node, {"kernel_shape": [2, 2]}
    nodes = [node("Mul", ["x", "two"], ["a"]), node("Add", ["a", "three"], ["b"])]
    constants = {
        "kernel": np.ones((1, 2, 2, 2), "float32"),
        "two": np.full((1, 2, 1, 1), 2, "float32"),
        "three": np.full((1, 2, 1, 1), 3, "float32"),
    }
    model = graph_of([*nodes, node("Conv", ["b", "kernel"], ["y"], **attributes)], constants)
    held = onnx_passes.take_constants(model)
    onnx_passes.fold_affine_behind(model, held)
    (conv,) = model.graph.node
    assert conv.input[0] == "x" and (held[conv.input[1]] == 2).all() and held[conv.input[2]].tolist() == [24.0]
    padded = graph_of([*nodes, node("Conv", ["b", "kernel"], ["y"], pads=[1, 1, 1, 1], **attributes)], constants)
    onnx_passes.fold_affine_behind(padded, onnx_passes.take_constants(padded))
    assert len(padded.graph.node) == 3


def test_layer_normalization_is_one_operator_where_it_is_over_the_last_axis(tmp_path):
    model = shake(layer_norms())
    assert operators(export(model, tmp_path, formats=["onnx"])["onnx"].path)["LayerNormalization"] == 3
    old = export(model, tmp_path, formats=["onnx"], opset=16)["onnx"].path
    assert operators(old)["LayerNormalization"] == 0
    assert_same(by_keras(model, data(model)), by_onnxruntime(old, data(model)))


def test_zero_padding_stays_outside_the_max_pool(tmp_path):
    """All values in front of the pool are near -20, so that every border window must give exactly 0."""
    model = zero_padded_pool()
    path = export(model, tmp_path, formats=["onnx"])["onnx"].path
    pooled = by_onnxruntime(path, data(model))[0].reshape(3, 4, 4, 4)
    assert (pooled[:, 0] == 0).all() and (pooled[:, :, 0] == 0).all() and (pooled[:, 1:-1, 1:-1] < -5).all()


def test_names_and_the_batch_axis(tmp_path):
    path = export(shake(two_of_each()), tmp_path, formats=["onnx"])["onnx"].path
    model = onnx.load(path)
    assert [x.name for x in model.graph.input] == ["zebra", "ant"]
    assert [y.name for y in model.graph.output] == ["a", "joined", "b"]
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
        assert value.type.tensor_type.shape.dim[1].dim_value > 0
    assert model.producer_name == "tfprune" and {p.key for p in model.metadata_props} == {
        *("model", "keras", "tfprune", "parameters", "macs")
    }
    assert [o.domain for o in model.opset_import] == [""] and model.opset_import[0].version == 17
    assert {"joined/kernel", "a/kernel", "b/kernel"} <= {tensor.name for tensor in model.graph.initializer}


def test_unknown_axes_are_named(tmp_path):
    inputs = keras.Input((None, None, 3), name="image")
    model = shake(keras.Model(inputs, head(layers.Conv2D(4, 3, padding="same", activation="relu")(inputs))))
    path = export(model, tmp_path, formats=["onnx"], name="m")["onnx"].path
    dims = onnx.load(path).graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == ["batch", "image_1", "image_2", 3]
    with pytest.raises(ExportError, match="image_1"):
        onnx_latency(path)
    assert onnx_latency(path, repeats=2, warmup=0, sizes={"image_1": 8, "image_2": 9}) > 0


def test_a_fixed_batch_stays(tmp_path):
    inputs = keras.Input(batch_shape=(4, 6), name="x")
    model = shake(keras.Model(inputs, layers.Dense(3)(inputs)))
    path = export(model, tmp_path, name="m")["onnx"].path
    assert onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 4


def test_mixed_precision(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = shake(grouped())
        assert len(export(model, tmp_path, formats=["keras", "saved_model", "onnx"]).rows) == 3
    finally:
        keras.config.set_dtype_policy("float32")


def test_float64_is_held_to_float64_tolerance(tmp_path):
    keras.config.set_dtype_policy("float64")
    try:
        inputs = keras.Input((5,), dtype="float64")
        model = shake(keras.Model(inputs, layers.Dense(3, activation="tanh")(inputs)))
        assert all(row.difference <= 1e-12 for row in export(model, tmp_path))
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("opset", [13, 18])
def test_the_oldest_and_the_newest_opset(opset, tmp_path):
    path = export(shake(inverted_residual()), tmp_path, formats=["onnx"], opset=opset)["onnx"].path
    assert onnx.load(path).opset_import[0].version == opset


@pytest.mark.parametrize("opset", [12, 19, 23])
def test_other_opsets_are_refused(opset, tmp_path):
    with pytest.raises(ExportError, match=f"13 to 18.*{opset}"):
        export(sequential(), tmp_path, formats=["onnx"], opset=opset)
    assert not list(tmp_path.iterdir())


@keras.saving.register_keras_serializable("tests")
class LogGamma(layers.Layer):
    def call(self, x):
        import tensorflow as tf

        return tf.math.lgamma(tf.abs(x) + 1.0)


def test_an_operator_that_onnx_lacks_is_named(tmp_path):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, LogGamma()(layers.Dense(3)(inputs)))
    with pytest.raises(ExportError, match="ONNX 17 lacks: Lgamma"):
        export(model, tmp_path, formats=["onnx"])
    assert not list(tmp_path.iterdir())
    assert len(export(shake(model), tmp_path, formats=["keras", "pb", "saved_model"]).rows) == 3


def test_pb_has_the_nodes_asked_for_and_nothing_but_constants(tmp_path):
    import tensorflow as tf

    model = shake(inverted_residual())
    path = export(model, tmp_path, formats=["pb"], output_nodes=["MobilenetV2/Predictions/Reshape_1"])["pb"].path
    graph_def = tf.compat.v1.GraphDef()
    graph_def.ParseFromString(path.read_bytes())
    assert [n.name for n in graph_def.node if n.op == "Placeholder"] == ["image"]
    kinds = {node.op for node in graph_def.node}
    assert not {kind for kind in kinds if "Variable" in kind or "PartitionedCall" in kind}
    assert not graph_def.library.function
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
    arrays = data(model)
    with tf.compat.v1.Session(graph=graph) as session:
        got = session.run("MobilenetV2/Predictions/Reshape_1:0", {"image:0": arrays[0]})
    assert_same(by_keras(model, arrays), [got])


def test_output_nodes_that_do_not_fit_are_refused(tmp_path):
    model = two_of_each()
    for names, what in ((["one"], "3 outputs"), (["x", "x", "y"], "different"), (["zebra", "x", "y"], "zebra")):
        with pytest.raises(ExportError, match=what):
            export(model, tmp_path, formats=["pb"], output_nodes=names)


def test_saved_model_serves_by_name_without_tfprune(tmp_path):
    import tensorflow as tf

    model = shake(two_of_each())
    path = export(model, tmp_path, formats=["saved_model"])["saved_model"].path
    signature = tf.saved_model.load(str(path)).signatures["serving_default"]
    assert set(signature.structured_input_signature[1]) == {"zebra", "ant"}
    assert set(signature.structured_outputs) == {"a", "joined", "b"}
    assert b"tfprune" not in (path / "saved_model.pb").read_bytes()


def test_keras_file_names_nothing_of_tfprune(tmp_path):
    path = export(shake(sequential()), tmp_path, formats=["keras"])["keras"].path
    assert b"tfprune" not in zipfile.ZipFile(path).read("config.json")


def fake(monkeypatch, error=0.5):
    """A format that writes numpy's .npy and reads back something else."""
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))
    known_formats()
    model = shake(sequential())

    def load(path, options):
        assert options.outputs == ("scores",)
        return lambda arrays: [by_keras(model, arrays)[0] + error]

    registry.register(Exporter("fake", ".npy", lambda model, path, options: np.save(path, np.zeros(3)), load))
    return model


def test_a_format_is_added_by_registering_it(tmp_path, monkeypatch):
    model = fake(monkeypatch, error=0.0)
    assert "fake" in known_formats()
    assert export(model, tmp_path, formats=["fake"])["fake"].path.name == "seq.npy"


def test_a_file_that_computes_something_else_is_not_kept_nor_its_company(tmp_path, monkeypatch):
    model = fake(monkeypatch)
    (tmp_path / "seq.npy").write_text("from yesterday")
    with pytest.raises(ExportError, match=r"fake export of 'seq'.*differ"):
        export(model, tmp_path, formats=["keras", "fake"])
    assert [p.name for p in tmp_path.iterdir()] == ["seq.npy"]
    assert (tmp_path / "seq.npy").read_text() == "from yesterday"
    assert export(model, tmp_path, formats=["fake"], tolerance=10.0)["fake"].difference > 0.01


def test_an_earlier_export_is_replaced(tmp_path):
    first, second = shake(sequential(), 1), shake(sequential(), 2)
    export(first, tmp_path, formats=["saved_model", "onnx"])
    path = export(second, tmp_path, formats=["saved_model", "onnx"])["onnx"].path
    assert_same(by_keras(second, data(second)), by_onnxruntime(path, data(second)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["seq.onnx", "seq_export.json", "seq_saved_model"]


def test_unknown_formats_missing_packages_and_bad_places(tmp_path, monkeypatch):
    with pytest.raises(ExportError, match=r"'tflight'.*keras, keras_int8, onnx, pb, saved_model"):
        export(sequential(), tmp_path, formats=["tflight"])
    with pytest.raises(ExportError, match="formats is empty"):
        export(sequential(), tmp_path, formats=[])
    with pytest.raises(ExportError, match="file name"):
        export(sequential(), tmp_path, name="a/b")
    (tmp_path / "file").write_text("")
    with pytest.raises(TfpruneError, match="cannot be written"):
        export(sequential(), tmp_path / "file" / "below", formats=["keras"])
    monkeypatch.setattr(registry, "_installed", lambda module: module not in ("tf2onnx", "onnxruntime"))
    with pytest.raises(ExportError, match="pip install tf2onnx onnxruntime"):
        export(sequential(), tmp_path, formats=["onnx"])


def test_a_subclassed_model_is_told_what_to_do():
    class Mine(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ExportError, match="call it once on data"):
        functional(Mine())


def test_the_model_and_tensorflow_are_left_as_they_were(tmp_path):
    import tensorflow as tf

    model = shake(grouped())
    before = [np.array(v) for v in model.weights]
    export(model, tmp_path)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.weights, strict=True))
    assert not tf.config.functions_run_eagerly()


def test_the_weights_are_not_in_the_traced_graph():
    """tf2onnx copies what it is given many times over, so a VGG16 must not be given to it."""
    from tfprune.export.trace import trace

    inputs = keras.Input((400,))
    model = keras.Model(inputs, layers.Dense(500)(inputs))
    traced = trace(functional(model), registry.Options(("x",), ("y",)), lower_control_flow=False)
    assert traced.graph_def.ByteSize() < 5000
    assert sum(v.value.numpy().nbytes for v in traced.weights.values()) == 4 * (400 * 500 + 500)


def test_functions_called_by_functions_are_kept():
    import tensorflow as tf

    from tfprune.export.trace import _used_functions

    inner = tf.function(lambda x: x + 1.0, autograph=False)
    outer = tf.function(lambda x: inner(x) * 2.0, autograph=False)
    whole = tf.function(lambda x: outer(x), autograph=False).get_concrete_function(tf.TensorSpec((2,)))
    graph_def = whole.graph.as_graph_def()
    names = {function.signature.name for function in graph_def.library.function}
    unused = graph_def.library.function.add()
    unused.CopyFrom(graph_def.library.function[0])
    unused.signature.name = "unused"
    assert len(names) == 2
    assert {function.signature.name for function in _used_functions(graph_def).function} == names


def test_names_are_unique_and_valid():
    x = keras.Input((2,), name="my input:0")
    model = keras.Model(x, [layers.Dense(1, name="y")(x), layers.Dense(1, name="y_1")(x), x])
    assert input_names(model) == ("my_input_0",)
    assert output_names(model) == ("y", "y_1", "my_input_0_1")


def test_the_plain_table_lines_up():
    rows = (ExportRow("onnx", "a.onnx", 12_000_000, 0.0, 1.0), ExportRow("saved_model", "b", 5, 1e-7, 12.34))
    lines = str(ExportReport("net", rows)).splitlines()
    assert lines[0].startswith("net: 2 formats")
    assert lines[2].split() == ["onnx", "12.00", "0.0e+00", "1.0", "a.onnx"]
    assert lines[3].split() == ["saved_model", "0.00", "1.0e-07", "12.3", "b"]
    assert lines[2].index("1.0") == lines[3].index("12.3") + 1 and len({line.rindex("  ") for line in lines[1:]}) == 1


# The ONNX passes, on graphs made by hand.


def graph_of(nodes, constants, inputs=("x",), outputs=("y",)):
    tensor = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "by_hand",
        [tensor(name, onnx.TensorProto.FLOAT, None) for name in inputs],
        [tensor(name, onnx.TensorProto.FLOAT, None) for name in outputs],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])


def test_check_refuses_foreign_operators_and_inputs():
    node = onnx.helper.make_node
    good = graph_of([node("Relu", ["x"], ["y"])], {})
    onnx_passes.check(good, 17, ("x",), ("y",))
    for bad, what in (
        (graph_of([node("Erfc", ["x"], ["y"])], {}), "Erfc"),
        (graph_of([node("Gelu", ["x"], ["y"])], {}), "Gelu"),  # ONNX has it from 20 on
        (graph_of([node("Relu", ["x"], ["y"], domain="ai.onnx.converters.tensorflow")], {}), "tensorflow.Relu"),
        (graph_of([node("Relu", ["x"], ["y"])], {}, inputs=("x", "mean/Sub/y:0")), "mean/Sub"),
    ):
        with pytest.raises(ExportError, match=what):
            onnx_passes.check(bad, 17, ("x",), ("y",))


def test_affine_folding_by_hand():
    """y = ((2 x + 1) * 3 + 5), then y = 6 x + 8; the kernel is 1x1 over one channel."""
    node = onnx.helper.make_node
    model = graph_of(
        [
            node("Conv", ["x", "kernel", "bias"], ["a"]),
            node("Mul", ["three", "a"], ["b"]),
            node("Add", ["b", "five"], ["y"]),
        ],
        {
            "kernel": np.full((1, 1, 1, 1), 2, "float32"),
            "bias": np.ones(1, "float32"),
            "three": np.full((1, 1, 1, 1), 3, "float32"),
            "five": np.full((1,), 5, "float32"),
        },
    )
    constants = onnx_passes.take_constants(model)
    onnx_passes.fold_affine(model, constants)
    onnx_passes.put_constants(model, constants)
    assert [n.op_type for n in model.graph.node] == ["Conv"] and model.graph.node[0].output[0] == "y"
    values = {t.name: onnx.numpy_helper.to_array(t).item() for t in model.graph.initializer}
    assert [values[name] for name in model.graph.node[0].input[1:]] == [6.0, 8.0]


def test_a_file_written_array_by_array_is_protobufs(tmp_path):
    """What protobuf reads back is what it would have written itself, whatever the shapes and types."""
    node = onnx.helper.make_node
    generator = np.random.default_rng(0)
    arrays = {
        "scalar": np.float32(3),
        "long name " + 200 * "x": generator.standard_normal((3, 1, 130)).astype("float32"),
        "turned": generator.standard_normal((4, 5)).T,
        "nothing": np.zeros((0, 3), "int64"),
        "half": np.arange(20_000, dtype="float16"),
        "truth": np.array([True, False]),
    }
    make = [node("Sum", ["x", *arrays], ["y"])]
    whole = graph_of(make, arrays)
    onnx.helper.set_model_props(whole, {"pruned": "no"})
    model = onnx.ModelProto.FromString(whole.SerializeToString())
    constants = {**onnx_passes.take_constants(model), "unread": np.ones(3)}
    onnx_file.write_model(model, constants, tmp_path / "model.onnx")
    assert onnx.load(tmp_path / "model.onnx") == whole and not constants


def test_a_file_that_no_protobuf_can_be_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "LIMIT", 4000)
    model = graph_of([onnx.helper.make_node("Add", ["x", "w"], ["y"])], {})
    with pytest.raises(ExportError, match="0.00 GiB, and can have less than 2"):
        onnx_file.write_model(model, {"w": np.zeros(1000, "float32")}, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_writing_copies_no_weight(tmp_path):
    """Of 16 MB of weights not 1 MB is asked of Python or numpy while the file is written."""
    inputs = keras.Input((2000,), name="x")
    model = keras.Model(inputs, layers.Dense(2000, name="y")(inputs))
    options = registry.Options(("x",), ("y",))
    write = registry.find("onnx").write
    write(model, tmp_path / "warm.onnx", options)  # imports and what is kept for the next time
    tracemalloc.start()
    write(model, tmp_path / "model.onnx", options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "model.onnx").stat().st_size > 16e6 > 16 * peak


def test_hard_sigmoid_by_hand():
    """Clip(x + 3, 0, 6) / 6 is one node, unless the factor or a reader is another."""
    node = onnx.helper.make_node
    number = {"three": np.float32(3), "zero": np.float32(0), "six": np.float32(6), "sixth": np.float32(1 / 6)}
    head = [node("Add", ["x", "three"], ["a"]), node("Clip", ["a", "zero", "six"], ["b"])]
    for last in (node("Mul", ["sixth", "b"], ["y"]), node("Div", ["b", "six"], ["y"])):
        model = graph_of([*head, last], number)
        onnx_passes.fuse_hard_sigmoid(model, onnx_passes.take_constants(model))
        (fused,) = model.graph.node
        values = {a.name: a.f for a in fused.attribute}
        assert (fused.op_type, fused.input[0], fused.output[0]) == ("HardSigmoid", "x", "y")
        assert values == {"alpha": pytest.approx(1 / 6), "beta": pytest.approx(0.5)}
    for rest in (
        [node("Mul", ["b", "six"], ["y"])],
        [node("Div", ["six", "b"], ["y"])],
        [node("Mul", ["b", "sixth"], ["c"]), node("Sub", ["c", "b"], ["y"])],
    ):
        model = graph_of([*head, *rest], number)
        onnx_passes.fuse_hard_sigmoid(model, onnx_passes.take_constants(model))
        assert len(model.graph.node) == 2 + len(rest)


def test_affine_folding_leaves_what_it_must():
    node = onnx.helper.make_node
    kernel = np.ones((2, 1, 1, 1), "float32")
    per_position = np.ones((1, 1, 1, 4), "float32")
    two_readers = [
        node("Conv", ["x", "k"], ["a"]),
        node("Relu", ["a"], ["b"]),
        node("Mul", ["a", "s"], ["c"]),
        node("Sub", ["b", "c"], ["y"]),
    ]
    for nodes, constants in (
        ([node("Conv", ["x", "k"], ["a"]), node("Mul", ["a", "s"], ["y"])], {"k": kernel, "s": per_position}),
        (two_readers, {"k": kernel, "s": np.ones((1, 2, 1, 1), "float32")}),
    ):
        model = graph_of(nodes, constants)
        onnx_passes.fold_affine(model, onnx_passes.take_constants(model))
        assert [n.op_type for n in model.graph.node] == [n.op_type for n in nodes]
