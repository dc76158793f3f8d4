"""Files in their own runtimes: LiteRT, int8, what the user chooses, and that nothing wrong is kept.

The oracle is the Keras model run here, and the file run by the test itself where that says more.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import layers
from test_export import (
    assert_same,
    attention,
    by_keras,
    by_onnxruntime,
    data,
    gelu,
    grouped,
    hard_swish,
    head,
    image,
    inverted_residual,
    mapping_of_inputs,
    nested,
    one_dimensional,
    operators,
    recurrent,
    sequential,
    shake,
    transposed_and_upsampled,
    two_of_each,
    zero_padded_pool,
)

from tfprune.errors import ExportError, TfpruneError
from tfprune.export import export
from tfprune.export.device import process
from tfprune.export.difference import Limits, measure
from tfprune.export.variant import in_float32, with_shapes

onnx = pytest.importorskip("onnx")
litert = pytest.importorskip("ai_edge_litert.interpreter")


def by_litert(path, arrays, names):
    runner = litert.Interpreter(str(path)).get_signature_runner("serving_default")
    got = [
        runner(**{name: array[i : i + 1] for name, array in zip(names, arrays, strict=True)})
        for i in range(len(arrays[0]))
    ]
    return {name: np.concatenate([one[name] for one in got]) for name in got[0]}


LITE = [
    inverted_residual, grouped, recurrent, attention, two_of_each, gelu, mapping_of_inputs, nested, one_dimensional,
    transposed_and_upsampled, zero_padded_pool,
]  # fmt: skip


@pytest.mark.parametrize("build", LITE, ids=lambda build: build.__name__)
def test_tflite_computes_what_keras_computes(build, tmp_path):
    model = shake(build())
    row = export(model, tmp_path, ["tflite"], name="m", samples=3)["tflite"]
    assert row.path.name == "m.tflite" and row.where == "process" and row.difference <= 1e-5


def test_tflite_keeps_the_names_and_runs_without_us(tmp_path):
    model = shake(two_of_each())
    report = export(model, tmp_path, ["tflite"], input_nodes=["left", "right"], output_nodes=["p", "q", "r"])
    arrays = data(model)
    got = by_litert(report["tflite"].path, arrays, ["left", "right"])
    assert_same(by_keras(model, arrays), [got[name] for name in "pqr"])


def wide():
    inputs = image(12)
    x = layers.Conv2D(32, 3, activation="relu")(inputs)
    return shake(keras.Model(inputs, head(layers.Conv2D(64, 3, activation="relu")(x)), name="wide"))


def test_the_smaller_files_are_smaller_and_still_agree(tmp_path):
    model, samples = wide(), np.random.default_rng(1).standard_normal((40, 12, 12, 4)).astype("float32")
    formats = ["tflite", "tflite_float16", "tflite_dynamic", "tflite_int8"]
    report = export(model, tmp_path, formats, name="m", representative=samples)
    sizes = [report[format].bytes for format in formats]
    assert sizes[1] < 0.6 * sizes[0] and max(sizes[2:]) < 0.4 * sizes[0]
    assert report["tflite"].difference < 1e-5 < report["tflite_float16"].difference < 1e-2
    for format in formats[2:]:
        got = by_litert(report[format].path, [samples[:8]], ["image"])["scores"]
        (expected,) = by_keras(model, [samples[:8]])
        assert 0 < np.linalg.norm(got - expected) / np.linalg.norm(expected) < 0.1
        # Two classes may be as good as equal in one of 16 samples.
        assert 0 < report[format].noise < 0.1 and report[format].agreement >= 0.9


def test_integers_in_and_out(tmp_path):
    samples = np.random.default_rng(1).standard_normal((40, 12, 12, 4)).astype("float32")
    path = export(wide(), tmp_path, ["tflite_int8"], representative=samples, integer_io=True)["tflite_int8"].path
    details = litert.Interpreter(str(path)).get_signature_runner("serving_default").get_input_details()
    assert details["image"]["dtype"] is np.int8


@pytest.mark.parametrize(
    "samples", [None, np.zeros((9, 12, 12, 3), "float32"), [np.zeros((9, 12, 12, 4))] * 2, np.zeros((0, 12, 12, 4))]
)
def test_data_that_does_not_calibrate_is_refused_before_anything_is_written(samples, tmp_path):
    with pytest.raises(ExportError, match="representative"):
        export(wide(), tmp_path, ["keras", "tflite_int8"], representative=samples)
    assert not list(tmp_path.iterdir())


def test_a_converter_that_dies_takes_nobody_with_it(tmp_path):
    """TensorFlow 2.21 crashes while it calibrates recurrent layers."""
    model = shake(recurrent())
    with pytest.raises(ExportError, match="tflite_int8 export of"):
        export(model, tmp_path, ["tflite_int8"], representative=data(model, 20))
    assert not list(tmp_path.iterdir())
    assert export(model, tmp_path, ["tflite"])["tflite"].difference < 1e-5


def test_keras_int8(tmp_path):
    inputs = keras.Input((64,), name="x")
    x = layers.Dense(128, activation="relu")(inputs)
    model = shake(keras.Model(inputs, layers.Dense(5)(x), name="mlp"))
    before = [np.array(v) for v in model.weights]
    report = export(model, tmp_path, ["keras", "keras_int8"])
    loaded = keras.models.load_model(report["keras_int8"].path)
    assert str(loaded.layers[1]._kernel.dtype) == "int8" and report["keras_int8"].noise < 0.1
    assert report["keras_int8"].bytes < 0.7 * report["keras"].bytes
    assert all(np.array_equal(a, b) for a, b in zip(before, model.weights, strict=True))
    with pytest.raises(ExportError, match=r"none of them.*Conv2D.*tflite_int8"):
        export(zero_padded_pool(), tmp_path, ["keras_int8"])


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16"])
def test_low_precision_models_become_float32_or_float16(policy, tmp_path):
    keras.config.set_dtype_policy(policy)
    try:
        inner_in = keras.Input((8, 8, 4))
        inner = keras.Model(inner_in, layers.BatchNormalization()(layers.Conv2D(4, 3)(inner_in)), name="inner")
        inputs = keras.Input((8, 8, 4), name="image")
        x = layers.TimeDistributed(layers.Dense(4))(layers.Conv2D(4, 3, groups=2, padding="same")(inner(inputs)) * 0.5)
        model = shake(keras.Model(inputs, head(layers.Activation("gelu")(x))))
    finally:
        keras.config.set_dtype_policy("float32")
    exact = in_float32(model)
    assert {layer.compute_dtype for layer in exact._flatten_layers()} == {"float32"}
    array = np.random.default_rng(0).standard_normal((3, 8, 8, 4)).astype("float32")
    expected = by_keras(exact, [array])
    assert_same(expected, [np.asarray(keras.ops.cast(model(array), "float32"), "float64")], 0.05)
    path = export(model, tmp_path, ["onnx"], name="m")["onnx"].path
    assert_same(expected, by_onnxruntime(path, [array]))
    row = export(model, tmp_path, ["onnx"], name="half", precision="float16")["onnx"]
    kinds = {tensor.data_type for tensor in onnx.load(row.path).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds and onnx.TensorProto.FLOAT not in kinds
    assert 0 < row.difference < 1e-2 and [x.dtype for x in by_onnxruntime(row.path, [array])] == ["float32"]
    assert export(model, tmp_path, ["tflite"])["tflite"].difference < 1e-5


@pytest.mark.parametrize("build", [hard_swish, inverted_residual, zero_padded_pool])
def test_channels_first_inputs_need_no_transpose(build, tmp_path):
    model = shake(build())
    path = export(model, tmp_path, ["onnx"], layout="NCHW")["onnx"].path
    arrays = data(model)
    assert_same(by_keras(model, arrays), by_onnxruntime(path, [arrays[0].transpose(0, 3, 1, 2)]))
    assert operators(path)["Transpose"] == (build is zero_padded_pool)  # which flattens NHWC
    dims = onnx.load(path).graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == ["batch", 4, 10, 10]


def test_fixed_and_unknown_shapes(tmp_path):
    inputs = image()
    model = shake(keras.Model(inputs, head(layers.Conv2D(4, 3, padding="same", activation="relu")(inputs))))
    dims = {}
    for name, shape in (("fixed", (1, 16, 12, 4)), ("free", (None, None, None, 4))):
        path = export(model, tmp_path, ["onnx"], name=name, shapes={"image": shape})["onnx"].path
        arrays = [np.random.default_rng(2).standard_normal((1, 16, 12, 4)).astype("float32")]
        assert_same(by_keras(with_shapes(model, {"image": shape}, ["image"]), arrays), by_onnxruntime(path, arrays))
        declared = onnx.load(path).graph.input[0].type.tensor_type.shape.dim
        dims[name] = [d.dim_param or d.dim_value for d in declared]
    assert dims == {"fixed": [1, 16, 12, 4], "free": ["batch", "image_1", "image_2", 4]}
    row = export(model, tmp_path, ["tflite"], shapes={"image": (4, 16, 12, 4)})["tflite"]
    assert litert.Interpreter(str(row.path)).get_input_details()[0]["shape"].tolist() == [4, 16, 12, 4]


@pytest.mark.parametrize(
    "shapes, what",
    [
        ({"picture": (1, 10, 10, 4)}, "picture.*image"),
        ({"image": (1, 10, 4)}, "4 axes"),
        ({"image": (1, 10, 10, 5)}, "take"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes, what, tmp_path):
    with pytest.raises(ExportError, match=what):
        export(sequential(), tmp_path, ["onnx"], shapes=shapes)
    assert not list(tmp_path.iterdir())


def test_the_file_says_what_it_was_pruned_from(tmp_path):
    small, large = shake(sequential()), wide()
    path = export(small, tmp_path, ["onnx"], original=large)["onnx"].path
    said = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert said["pruned_from"] == "wide" and said["tfprune"] and said["model"] == "seq"
    # Convolution 8 x 8 x (3 x 3 x 4 x 4), Dense 256 x 3.
    assert int(said["macs"]) == 64 * 144 + 768 < int(said["pruned_from_macs"])
    assert int(said["parameters"]) == 144 + 4 + 768 + 3


def test_the_report_lies_beside_the_files_and_grows(tmp_path):
    model = shake(sequential())
    export(model, tmp_path, ["onnx"], inputs=data(model, 5)[0])
    export(model, tmp_path, ["keras"])
    said = json.loads((tmp_path / "seq_export.json").read_text())
    rows = {row["format"]: row for row in said["files"]}
    assert list(rows) == ["onnx", "keras"] and said["inputs"] == ["image"] and said["outputs"] == ["scores"]
    assert rows["onnx"]["samples"] == 2 + 5 and rows["onnx"]["bytes"] == (tmp_path / "seq.onnx").stat().st_size
    assert all(row["load_ms"] > 0 and row["latency_ms"] > 0 and row["where"] == "process" for row in rows.values())


def test_the_users_inputs_count(tmp_path, monkeypatch):
    """Random normal numbers never reach 100, where this runtime goes wrong."""
    model = shake(sequential())
    plain = process.run_in

    def wrong(host, device, path, names, arrays, *rest, **more):
        measured = plain(host, device, path, names, arrays, *rest, **more)
        return process.Measured([y + (np.max(arrays[0]) > 99) for y in measured.outputs], 0.0)

    monkeypatch.setattr(process, "run_in", wrong)
    assert export(model, tmp_path, ["onnx"])
    with pytest.raises(ExportError, match="does not compute"):
        export(model, tmp_path / "other", ["onnx"], inputs=np.full((1, 10, 10, 4), 100.0))
    assert not list((tmp_path / "other").iterdir())
    with pytest.raises(ExportError, match=r"inputs must be arrays of shapes.*\(None, 10, 10, 4\)"):
        export(model, tmp_path, ["onnx"], inputs=np.zeros((1, 9, 10, 4)))


def test_a_directory_with_something_else_in_it_is_left_alone(tmp_path):
    for name in ("seq_saved_model", "seq.onnx"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("dear")
    for format in ("saved_model", "onnx"):
        with pytest.raises(ExportError, match=r"something else in it"):
            export(sequential(), tmp_path, [format])
    assert (tmp_path / "seq_saved_model" / "thesis.txt").read_text() == "dear"


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    from tfprune.export import onnx as onnx_format

    def full(model):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx_format.onnx_passes, "take_constants", full)
    with pytest.raises(TfpruneError, match="No space left"):
        export(sequential(), tmp_path, ["keras", "onnx"])
    assert not list(tmp_path.iterdir())


def test_choices_are_named():
    for wrong, what in (({"layout": "CHWN"}, "NHWC or NCHW"), ({"precision": "int4"}, "float32 or float16")):
        with pytest.raises(ExportError, match=what):
            export(sequential(), "nowhere", ["onnx"], **wrong)
    assert not os.path.exists("nowhere")


def test_the_process_has_no_tfprune_and_survives_errors(tmp_path):
    script = tmp_path / "device.py"
    script.write_text(
        "def runtime(): pass\n"
        "def load(path, inputs, outputs, threads=None):\n"
        "    print('noise on standard output')\n"
        "    if path.endswith('bad'): raise ValueError('no such thing')\n"
        "    if path.endswith('dead'): import os; os._exit(3)\n"
        "    try: import tfprune\n"
        "    except ImportError: return lambda arrays: [2 * arrays[0]]\n"
    )
    device, host = SimpleNamespace(__file__=str(script)), process.Process()
    run = lambda name: process.run_in(host, device, tmp_path / name, (["x"], ["y"]), [np.arange(3.0)], 0.01)  # noqa: E731
    assert run("good").outputs[0].tolist() == [0, 2, 4] and run("good").latency_ms > 0
    with pytest.raises(ExportError, match="ValueError: no such thing"):
        run("bad")
    assert run("good").outputs and host.alive
    with pytest.raises(ExportError, match="ended with status 3"):
        run("dead")
    assert not host.alive
    host.close()


def test_device_modules_import_nothing_of_tfprune():
    folder = os.path.dirname(process.__file__)
    for name in sorted(os.listdir(folder)):
        if name.endswith(".py") and name not in ("__init__.py", "process.py"):
            text = Path(folder, name).read_text()
            assert "tfprune." not in text.replace("`tfprune.", "") and "import tfprune" not in text, name


def test_saved_model_serves_a_layer_whose_code_is_elsewhere(tmp_path):
    """A custom layer: the .keras file needs its class, the SavedModel does not."""

    class Halve(layers.Layer):
        def call(self, x):
            return x / 2

    inputs = keras.Input((4,), name="x")
    model = shake(keras.Model(inputs, Halve()(layers.Dense(3, name="y")(inputs)), name="halved"))
    report = export(model, tmp_path, ["saved_model", "keras"], output_nodes=["y"])
    assert [row.where for row in report] == ["process", "here"]
    code = (
        "import sys; sys.modules['tfprune'] = sys.modules['keras'] = None\n"
        "import tensorflow as tf\n"
        f"f = tf.saved_model.load({str(report['saved_model'].path)!r}).signatures['serving_default']\n"
        "print(f(x=tf.ones((2, 4)))['y'].numpy().ravel().tolist())"
    )
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    expected = by_keras(model, [np.ones((2, 4), "float32")])[0].ravel()
    assert np.allclose(json.loads(done.stdout), expected, rtol=1e-5)


def test_difference_by_hand():
    found = measure([np.array([[3.0, 4.0], [0.0, 0.0]])], [np.array([[3.0, 4.0], [0.0, -5.0]])])
    assert (found.largest, found.noise, found.agreement, found.samples) == (1.25, 1.0, 1.0, 2)
    with pytest.raises(TfpruneError, match="norm"):
        Limits(noise=0.5).check("it", found)
    with pytest.raises(TfpruneError, match="largest output"):
        Limits(largest=0.5).check("it", measure([np.ones(2)], [np.array([1.0, np.nan])]))
    with pytest.raises(TfpruneError, match="50%"):
        Limits(agreement=0.9).check("it", measure([np.eye(2)], [np.array([[1.0, 0.0], [1.0, 0.0]])]))
