"""ONNX models become Keras models that compute the same, load without tfprune, train, and are pruned."""

from __future__ import annotations

import subprocess
import sys

import keras
import models
import numpy as np
import onnx
import pytest
import test_onnx_remove_layers as nets
from keras import layers
from onnx import helper
from onnx_models import Net

import tfprune
from tfprune.errors import TfpruneError, TraceError, VerificationError
from tfprune.from_onnx.builder import LayerError
from tfprune.onnx_graph.run import random_inputs, run


def assert_becomes(model, *kinds, spread=1e-3) -> keras.Model:
    """It becomes a Keras model of the same outputs, with layers of these kinds."""
    built = tfprune.to_keras(model)
    arrays = random_inputs(model, seed=5)
    expected = run(model, arrays)
    assert min(float(np.std(y)) for y in expected) >= spread
    got = [np.asarray(keras.ops.convert_to_numpy(y)) for y in keras.tree.flatten(built(arrays, training=False))]
    for a, b in zip(expected, got, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert np.abs(a - b).max() <= models.TOLERANCE.get(str(a.dtype), 1e-5) * np.abs(a).max()
    found = {type(layer).__name__ for layer in built.layers}
    assert {kind.__name__ for kind in kinds} <= found, found
    return built


def net_of(build, shape=("N", 6, 9, 10), opset=17, dtype=np.float32):
    """One operator, or a few, of one input."""
    net = Net(opset=opset, dtype=dtype)
    made = build(net)
    return net.model({"x": shape}, [made] if isinstance(made, str) else list(made))


# ---------------------------------------------------------------------- whole models


@pytest.mark.parametrize("build", nets.NETS, ids=lambda build: build.__name__)
def test_channels_first_models(build):
    built = assert_becomes(build())
    assert [tensor.name for tensor in built.inputs] == ["x"]
    # One Permute, at the image: what follows lies channels last, and Dense reads a Flatten in any order.
    assert sum(isinstance(layer, layers.Permute) for layer in built.layers) == 1
    assert tfprune.trace(built).opaque == ()


def test_what_keras_exports_comes_back(tmp_path):
    for build in (models.mini_net, models.residual_net, models.inverted_residual_net):
        model = models.shaken(build())
        path = tfprune.export(model, tmp_path / build.__name__, ("onnx",))["onnx"].path
        built = assert_becomes(path)
        arrays = models.arrays_for(model)
        for a, b in zip(models.outputs(model, arrays), models.outputs(built, arrays), strict=True):
            assert np.abs(a - b).max() <= 1e-5 * np.abs(a).max()
        assert [tensor.name for tensor in built.inputs] == [value.name for value in onnx.load(path).graph.input]


def test_a_fixed_batch_becomes_any():
    built = tfprune.to_keras(nets.densenet())
    assert built.input_shape == (None, 3, 16, 16) and built.output_shape == (None, 5)


def test_a_batch_that_is_mixed_stays_fixed():
    model = net_of(lambda net: net.add("Add", "x", net.add("ReduceSum", "x", net.ints(0))), (3, 4))
    assert tfprune.to_keras(model).input_shape == (3, 4)
    assert_becomes(model)


@pytest.mark.parametrize(("samples", "size", "batch"), [(2, 3, None), (1, 3, 1), (2, 2, 2)])
def test_a_batch_that_is_merged_with_positions_is_found_again(samples, size, batch):
    """With one sample, or as many as positions, which axis grows with the batch cannot be told: it stays fixed."""

    def build(net):
        x = net.add("Reshape", net.add("Transpose", "x", perm=[1, 0, 2]), net.ints(samples * size, 4))
        x = net.add("Reshape", net.dense(x, 4, 5), net.ints(size, samples, 5))
        return net.add("Transpose", x, perm=[1, 0, 2])

    built = assert_becomes(net_of(build, (samples, size, 4)))
    assert built.input_shape == (batch, size, 4)


def test_it_trains_is_pruned_and_stripped(tmp_path):
    built = tfprune.to_keras(nets.mobilenet())
    # Biases that a normalization follows have no gradient.
    kernels = [variable for variable in built.trainable_variables if len(variable.shape) > 1]
    before = [models.numbers(variable) for variable in kernels]
    built.compile("sgd", "mse", jit_compile=False)
    generator = np.random.default_rng(0)
    built.fit(generator.normal(size=(8, 3, 16, 16)), generator.normal(size=(8, 5)), epochs=1, verbose=0)
    assert all(not np.array_equal(a, models.numbers(b)) for a, b in zip(before, kernels, strict=True))
    plan = tfprune.select(built, "l1", ratio=0.5)
    tfprune.soft_prune(built, plan)
    result = tfprune.strip(built)
    assert result.model.count_params() < 0.6 * built.count_params()
    assert tfprune.verify(built, result.model).equal


def test_what_remove_layers_leaves_goes_in():
    for build in (nets.resnet, nets.vgg):
        assert_becomes(tfprune.remove_layers(build(), 50, seed=1).model)


def test_the_saved_file_needs_no_tfprune(tmp_path):
    net = Net()
    x = net.add("Relu", net.add("Add", net.conv("x", 3, 4), net.weight(1, 4, 1, 1)))
    x = net.add("Clip", net.add("Slice", x, net.ints(1), net.ints(7), net.ints(2)), net.constant(np.float32(-0.5)))
    model = net.model({"x": ("N", 3, 8, 8)}, [net.add("Flatten", net.add("Mul", x, net.constant(np.float32(2))))])
    built = assert_becomes(model)
    built.save(tmp_path / "model.keras")
    (array,) = random_inputs(model)
    np.save(tmp_path / "x.npy", array)
    code = (
        "import keras, numpy, sys; m = keras.models.load_model('model.keras');"
        "numpy.save('y.npy', m(numpy.load('x.npy'), training=False)); assert 'tfprune' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    (expected,) = run(model, [array])
    assert np.abs(np.load(tmp_path / "y.npy") - expected).max() <= 1e-5 * np.abs(expected).max()


def test_names_of_inputs_and_outputs():
    net = Net()
    made = net.add("Relu", net.conv("the input:0", 3, 4))
    model = net.model({"the input:0": ("N", 3, 8, 8)}, [made])
    model.graph.node[-1].output[0] = model.graph.output[0].name = "logits"
    built = assert_becomes(model)
    assert [tensor.name for tensor in built.inputs] == ["the_input_0"] and built.output_names == ["logits"]


# ---------------------------------------------------------------------- operators


def conv(**settings):
    kernel = settings.pop("shape", (8, 6, 3, 3))
    return lambda net: net.add("Conv", "x", net.weight(*kernel), net.weight(kernel[0]), **settings)


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({}, layers.Conv2D),
        ({"pads": [1, 0, 2, 1]}, layers.ZeroPadding2D),
        ({"strides": [2, 2], "pads": [1, 1, 1, 1]}, layers.ZeroPadding2D),
        ({"strides": [2, 1], "auto_pad": "SAME_UPPER"}, layers.Conv2D),
        ({"strides": [2, 2], "auto_pad": "SAME_LOWER"}, layers.ZeroPadding2D),
        ({"dilations": [2, 1], "pads": [2, 1, 2, 1]}, layers.Conv2D),
        ({"dilations": [2, 2], "strides": [2, 2], "pads": [2, 2, 2, 2]}, layers.Conv2D),
        ({"group": 2, "shape": (8, 3, 3, 3)}, layers.Conv2D),
        ({"group": 6, "shape": (12, 1, 3, 3), "pads": [1, 1, 1, 1]}, layers.DepthwiseConv2D),
        ({"group": 6, "shape": (6, 1, 3, 3), "strides": [2, 1]}, layers.Conv2D),
    ],
)
def test_convolutions(settings, kind):
    assert_becomes(net_of(conv(**settings)), kind)


def test_convolutions_of_other_ranks_and_types():
    assert_becomes(net_of(conv(shape=(8, 6, 3), pads=[1, 1], strides=[2]), (2, 6, 9)), layers.Conv1D)
    assert_becomes(net_of(conv(shape=(8, 6, 3, 3, 3), pads=[1, 0, 0] * 2), (2, 6, 5, 6, 7)), layers.Conv3D)


def test_double_precision():
    model = net_of(lambda net: net.dense(net.norm("x", 8), 8, 5), ("N", 8), dtype=np.float64)
    built = assert_becomes(model, layers.Dense)
    assert {variable.dtype for variable in built.weights} == {"float64"}


@pytest.mark.parametrize(
    "settings",
    [
        {"strides": [2, 2]},
        {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
        {"strides": [2, 3], "pads": [0, 1, 1, 0]},
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"strides": [2, 2], "output_shape": [18, 20]},
        {"dilations": [2, 2]},
        {"group": 2, "strides": [2, 2]},
        {"strides": [4, 4]},
    ],
)
def test_transposed_convolutions(settings):
    filters = 4 // settings.get("group", 1)

    def build(net):
        return net.add("ConvTranspose", "x", net.weight(6, filters, 3, 3), net.weight(4), **settings)

    assert_becomes(net_of(build), layers.Conv2DTranspose)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"strides": [2, 2]},
        {"strides": [2, 2], "pads": [1, 1, 1, 1]},
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"strides": [2, 2], "ceil_mode": 1},
        {"strides": [2, 2], "pads": [1, 0, 0, 1], "ceil_mode": 1},
        {"pads": [1, 1, 1, 1], "count_include_pad": 1},
        {"strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1, "count_include_pad": 1},
    ],
)
def test_pools(op, settings):
    settings = {key: value for key, value in settings.items() if op != "MaxPool" or key != "count_include_pad"}
    # The maxima are of negative numbers, which a border of zeros would change.
    start = (lambda net: net.add("Sub", "x", net.constant(np.float32(9)))) if op == "MaxPool" else lambda net: "x"
    assert_becomes(net_of(lambda net: net.add(op, start(net), kernel_shape=[3, 3], **settings)))


def test_a_flatten_that_somebody_else_reads_too():
    def build(net):
        flat = net.add("Flatten", net.conv("x", 6, 4))
        return net.add("Gemm", flat, net.weight(5, 360), net.weight(5), transB=1), flat

    built = assert_becomes(net_of(build), layers.Permute)
    assert built.output_shape == [(None, 5), (None, 360)]


def test_a_flatten_before_normalization_and_dense():
    def build(net):
        flat = net.norm(net.add("Relu", net.add("Reshape", net.conv("x", 6, 4), net.ints(0, -1))), 360)
        return net.dense(flat, 360, 5)

    built = assert_becomes(net_of(build))
    assert sum(isinstance(layer, layers.Permute) for layer in built.layers) == 1


def test_channel_shuffle_moves_no_axis_of_the_image():
    def build(net):
        x = net.add("Reshape", net.conv("x", 6, 8), net.ints(0, 2, 4, 9, 10))
        return net.add("Reshape", net.add("Transpose", x, perm=[0, 2, 1, 3, 4]), net.ints(0, 8, 9, 10))

    assert_becomes(net_of(build))


def test_attention_with_embeddings():
    net = Net()
    x = net.add("Gather", net.weight(11, 8), "tokens")
    x = net.add("LayerNormalization", x, net.positive(8), net.weight(8))
    heads = [net.add("Reshape", net.dense(x, 8, 8), net.ints(0, 0, 2, 4)) for _ in range(3)]
    q, v = (net.add("Transpose", head, perm=[0, 2, 1, 3]) for head in heads[::2])
    k = net.add("Transpose", heads[1], perm=[0, 2, 3, 1])
    scores = net.add("Softmax", net.add("Mul", net.add("MatMul", q, k), net.constant(np.float32(0.5))), axis=-1)
    y = net.add("Reshape", net.add("Transpose", net.add("MatMul", scores, v), perm=[0, 2, 1, 3]), net.ints(0, 0, 8))
    model = net.model({"tokens": (np.int64, ("N", 6))}, [net.add("Add", x, net.dense(y, 8, 8))])
    assert_becomes(model, layers.Embedding, layers.LayerNormalization, layers.Dense)


def test_a_class_token_is_joined_to_every_sample():
    net = Net()
    shape = net.add("Concat", net.add("Shape", "x", start=0, end=1), net.ints(1, 8), axis=0)
    token = net.add("Expand", net.weight(1, 1, 8), shape)
    model = net.model({"x": ("N", 5, 8)}, [net.add("Concat", token, "x", axis=1)])
    assert_becomes(model)


ONE = {
    "prelu": lambda net: net.add("PRelu", "x", net.weight(6, 1, 1)),
    "leaky": lambda net: net.add("LeakyRelu", "x", alpha=0.3),
    "elu": lambda net: net.add("Elu", "x", alpha=0.7),
    "selu": lambda net: net.add("Selu", "x"),
    "hard_sigmoid": lambda net: net.add("HardSigmoid", "x", alpha=0.3),
    "hard_swish": lambda net: net.add("HardSwish", "x"),
    "clip": lambda net: net.add("Clip", "x", net.constant(np.float32(-0.3)), net.constant(np.float32(0.7))),
    "softmax": lambda net: net.add("Softmax", net.conv("x", 6, 4), axis=1),
    "gelu": lambda net: net.add("Mul", "x", net.add("Erf", "x")),
    "scale": lambda net: net.add("Mul", net.conv("x", 6, 4), net.weight(4, 1, 1)),
    "columns": lambda net: net.add("Div", net.conv("x", 6, 4), net.positive(10)),
    "twice": lambda net: net.add("Max", net.conv("x", 6, 4), net.conv("x", 6, 4)),
    "gate": lambda net: net.add("Mul", "x", net.add("GlobalAveragePool", "x")),
    "mean": lambda net: net.add("Sub", net.conv("x", 6, 4), net.add("ReduceMean", "x", axes=[1])),
    "l2": lambda net: net.add("ReduceL2", "x", axes=[2], keepdims=0),
    "squeeze": lambda net: net.add("Squeeze", net.add("GlobalMaxPool", net.conv("x", 6, 4)), net.ints(2, 3)),
    "unsqueeze": lambda net: net.add("Unsqueeze", net.conv("x", 6, 4), net.ints(2)),
    "split": lambda net: net.add("Split", net.conv("x", 6, 4), net.ints(1, 3), outputs=2, axis=1),
    "gather": lambda net: net.add("Gather", net.conv("x", 6, 4), net.ints(2, 0, -1), axis=1),
    "one": lambda net: net.add("Gather", net.conv("x", 6, 4), net.constant(np.int64(2)), axis=3),
    "backwards": lambda net: net.add("Slice", "x", net.ints(-1), net.ints(-(1 << 62)), net.ints(3), net.ints(-2)),
    "reflect": lambda net: net.add("Pad", net.conv("x", 6, 4), net.ints(0, 0, 1, 2, 0, 0, 2, 1), mode="reflect"),
    "edge": lambda net: net.add("Pad", net.conv("x", 6, 4), net.ints(0, 0, 1, 2, 0, 0, 2, 1), mode="edge"),
    "wider": lambda net: net.add("Pad", net.conv("x", 6, 4), net.ints(0, 1, 0, 0, 0, 2, 0, 0)),
    "tile": lambda net: net.add("Tile", net.conv("x", 6, 4), net.ints(1, 2, 1, 3)),
    "instance": lambda net: net.add("InstanceNormalization", net.conv("x", 6, 4), net.positive(4), net.weight(4)),
    "depth_dcr": lambda net: net.add("DepthToSpace", net.conv("x", 6, 8), blocksize=2),
    "depth_crd": lambda net: net.add("DepthToSpace", net.conv("x", 6, 8), blocksize=2, mode="CRD"),
    "flat_in_columns": lambda net: net.add("Reshape", net.conv("x", 6, 4), net.ints(0, 4, -1)),
    "norm_of_flat": lambda net: net.norm(net.add("Flatten", "x"), 540),
    "product": lambda net: net.add("MatMul", net.conv("x", 6, 4), net.weight(10, 3)),
    "both": lambda net: net.add("MatMul", "x", net.add("Transpose", "x", perm=[0, 1, 3, 2])),
}  # fmt: skip


@pytest.mark.parametrize("name", ONE)
def test_operators(name):
    assert_becomes(net_of(ONE[name]))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("how", ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"])
@pytest.mark.parametrize("scale", [2.0, 1.5])
def test_resize(mode, how, scale):
    def build(net):
        scales = net.constant(np.array([1, 1, scale, scale], np.float32))
        settings = {"nearest_mode": "floor"} if how == "asymmetric" else {}
        return net.add("Resize", net.conv("x", 6, 4), "", scales, mode=mode, coordinate_transformation_mode=how,
                       **settings)  # fmt: skip

    assert_becomes(net_of(build, ("N", 6, 8, 10)))


@pytest.mark.parametrize("opset", [9, 11, 18, 21])
def test_opsets(opset):
    assert_becomes(nets.vgg(opset))


def test_equal_vectors_are_not_one_layer_and_equal_kernels_are():
    net = Net()
    vectors = [net.positive(6), net.weight(6), net.weight(6), net.positive(6)]
    x = net.add("BatchNormalization", net.add("BatchNormalization", "x", *vectors), *vectors)
    kernel = net.weight(6, 6, 1, 1)
    x = net.add("Conv", net.add("Relu", net.add("Conv", x, kernel)), kernel)
    built = assert_becomes(net.model({"x": ("N", 6, 4, 4)}, [x]))
    kinds = [type(layer).__name__ for layer in built.layers]
    assert kinds.count("BatchNormalization") == 2 and kinds.count("Conv2D") == 1


# ---------------------------------------------------------------------- what is refused


def test_an_unknown_operator_is_named():
    net = Net()
    model = net.model({"x": ("N", 6, 4, 4)}, [net.add("LRN", "x", size=3)])
    with pytest.raises(LayerError, match=r"LRN_1 is a LRN, of which no Keras layer is made.*builds\('LRN'\)"):
        tfprune.to_keras(model)


def test_a_kernel_that_is_computed_is_refused():
    model = net_of(lambda net: net.add("Conv", "x", net.add("Reshape", "x", net.ints(-1, 6, 3, 3))), (1, 6, 9, 10))
    with pytest.raises(LayerError, match=r"Conv_\d+ \(Conv\).*has to be constant"):
        tfprune.to_keras(model)


def test_what_is_no_model():
    with pytest.raises(TraceError, match="does not exist"):
        tfprune.to_keras("nothing.onnx")
    with pytest.raises(TfpruneError):
        tfprune.to_keras({})


def test_a_wrong_builder_hands_nothing_out(monkeypatch):
    monkeypatch.setattr("tfprune.from_onnx.layers.elementwise._ACTIVATIONS", {"Relu": "sigmoid", "Sigmoid": "tanh"})
    model = helper.make_model(
        ir_version=8,
        opset_imports=[helper.make_opsetid("", 17)],
        graph=onnx.parser.parse_graph("g (float[N, 4] x) => (float[N, 4] y) {y = Relu(x)}"),
    )
    with pytest.raises(VerificationError, match="the Keras model made of the ONNX model"):
        tfprune.to_keras(model)


def test_an_output_that_depends_on_nothing_is_refused():
    text = "g (float[N, 4] x) => (float[N, 4] y, float[1] z) {y = Relu(x) z = Constant<value_floats = [1.0]>()}"
    model = helper.make_model(
        ir_version=8, opset_imports=[helper.make_opsetid("", 17)], graph=onnx.parser.parse_graph(text)
    )
    with pytest.raises(LayerError, match="the output 'z' does not depend on the inputs"):
        tfprune.to_keras(model)


def test_images_of_any_size():
    net = Net()
    x = net.add("MaxPool", net.conv("x", 3, 8), kernel_shape=[2, 2], strides=[2, 2])
    x = net.add("Flatten", net.add("GlobalAveragePool", net.conv(x, 8, 8, strides=[2, 2])))
    built = assert_becomes(net.model({"x": ("N", 3, "H", "W")}, [net.dense(x, 8, 3)]))
    assert built.input_shape == (None, 3, None, None) and built.output_shape == (None, 3)
