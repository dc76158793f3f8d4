"""Reports and pictures of a run."""

import json

import keras
import numpy as np
import pytest
from keras import layers
from matplotlib.figure import Figure

import tfprune
from tfprune.errors import PlanError
from tfprune.report import pictures
from tfprune.report.stages import RunReport, Stage, accuracy, measure
from tfprune.schedules import Linear
from tfprune.sensitivity import TOGETHER, Curve, Sensitivity


@pytest.fixture(scope="module")
def pair():
    """An inverted residual block with 8 inner channels, 3 of them 0, and the same stripped."""
    keras.utils.set_random_seed(0)
    image = keras.Input((6, 6, 4))
    x = layers.Conv2D(8, 1, activation="relu", name="block_expand")(image)
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="block_depthwise")(x)
    x = layers.Conv2D(4, 1, name="block_project")(x)
    x = layers.Add(name="block_add")([image, x])
    model = keras.Model(image, layers.Dense(3, name="output")(layers.GlobalAveragePooling2D()(x)), name="net")
    kernel = model.get_layer("block_expand").kernel.numpy()
    kernel[..., [1, 3, 4]] = 0
    kernel[0, 0, 0, 0] = 0  # one weight of a filter that stays
    model.get_layer("block_expand").kernel.assign(kernel)
    return model, tfprune.strip(model).model


def is_png(path):
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 5000


@pytest.fixture
def drawn(monkeypatch):
    """The texts of the figure that was saved last."""
    texts = []
    save = Figure.savefig

    def read(figure, *arguments, **options):
        texts[:] = [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]
        return save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", read)
    return texts


def test_widths(pair, tmp_path, drawn):
    assert is_png(pictures.widths(*pair, tmp_path / "widths.png"))
    # The projection is added to the image, which keeps its channels: it is no width to choose.
    assert " 8 → 5" in drawn and "block_expand" in drawn and "block_project" not in drawn


def test_filters(pair, tmp_path, drawn):
    soft, stripped = pair
    names = ["block_expand", "block_depthwise", "block_project"]
    path = pictures.filters({"soft-pruned": soft, "stripped": stripped}, names, tmp_path / "filters.png")
    assert is_png(path)
    titles = {text for text in drawn if "filters" in text}
    assert titles == {
        "block_expand\nsoft-pruned: 8 filters, 3 zero",
        "block_expand\nstripped: 5 filters, 0 zero",
        "block_depthwise\nsoft-pruned: 8 filters, 0 zero",
        "block_depthwise\nstripped: 5 filters, 0 zero",
        "block_project\nsoft-pruned: 4 filters, 0 zero",
        "block_project\nstripped: 4 filters, 0 zero",
    }
    with pytest.raises(PlanError, match="'none'"):
        pictures.filters({"soft-pruned": soft}, ["none"], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_block(pair, tmp_path, drawn):
    assert is_png(pictures.block(*pair, "block_", tmp_path / "block.png"))
    assert {"expand · Conv2D", "6x6x8 · 40 parameters", "6x6x5 · 25 parameters", "input · 6x6x4"} <= set(drawn)
    with pytest.raises(PlanError, match="'blcok_'"):
        pictures.block(*pair, "blcok_", tmp_path / "none.png")


def test_failure_rates(pair, tmp_path, drawn):
    model, _ = pair
    monitor = tfprune.ConvergenceMonitor()
    plan = tfprune.select(model, "l1", ratio=0.5)
    for epoch, threshold in enumerate((0.8, 0.8, 0.5)):
        monitor.measure(model, plan, epoch=epoch, threshold=threshold)
    table = monitor.to_csv(tmp_path / "rates.csv")
    assert is_png(pictures.failure_rates(table, tmp_path / "rates.png"))
    zeroed = monitor.history[0].pruned
    labels = {text for text in drawn if text.startswith("threshold")}
    assert labels == {f"threshold {threshold}\n{zeroed} zeroed" for threshold in (0.8, 0.5)}
    (tmp_path / "empty.csv").write_text("epoch,threshold,layer,pruned,failed,rate\n")
    with pytest.raises(PlanError, match=r"empty\.csv"):
        pictures.failure_rates(tmp_path / "empty.csv", tmp_path / "none.png")


def test_sensitivity(tmp_path, drawn):
    curves = tuple(Curve(name, 8, (2, 4), (0.8, 0.5), (0.8, 0.5)) for name in ("first", "second"))
    result = Sensitivity(
        "net", "l1", "accuracy", "higher", 0.9, (0.25, 0.5), curves, Curve(TOGETHER, 16, (4, 8), (0.7, 0.2))
    )
    assert is_png(pictures.sensitivity(result, tmp_path / "sensitivity.png", max_drop=0.05))
    assert {
        "first",
        "second",
        TOGETHER,
        "accuracy",
        "net pruned by l1, without training (circles: really removed)",
    } <= set(drawn)


def test_schedules(tmp_path, drawn):
    ramps = {"up": Linear(0.0, 0.8, 4), "down": Linear(0.8, 0.0, 4), "three": Linear(0.1, 0.2, 3)}
    assert is_png(pictures.schedules(ramps, tmp_path / "schedules.png"))
    assert {"up", "down", "three", "epoch or step"} <= set(drawn)
    with pytest.raises(PlanError, match="at least one"):
        pictures.schedules({}, tmp_path / "none.png")


def test_measure(pair):
    model, _ = pair
    x = np.random.default_rng(0).standard_normal((20, 6, 6, 4)).astype(np.float32)
    right = np.argmax(model(x).numpy(), axis=1)
    labels = np.where(np.arange(20) < 15, right, (right + 1) % 3)
    assert accuracy(model, x, labels) == 0.75
    stage = measure("before", model, x, labels)
    # 4x8+8, 3x3x8, 8x4+4, 4x3+3
    assert (stage.parameters, stage.accuracy, stage.onnx_bytes) == (40 + 72 + 36 + 15, 0.75, None)


def test_report_as_json(tmp_path):
    report = RunReport("net", (Stage("before", 0.5, 10, 20, 2000, 0.25),), {"seed": 0}, ["a.onnx"])
    written = json.loads(report.to_json(tmp_path / "r.json").read_text())
    assert written["stages"][0] == {
        "name": "before", "accuracy": 0.5, "parameters": 10, "macs": 20, "onnx_bytes": 2000, "latency_ms": 0.25,
    }  # fmt: skip
    assert (written["settings"], written["files"]) == ({"seed": 0}, ["a.onnx"])
    assert "50.00%" in str(report) and "0.250" in str(report)
