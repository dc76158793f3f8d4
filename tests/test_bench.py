"""Models timed side by side: what is counted and compared. No test asserts a time."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
from keras import layers

from tfprune.bench import bench
from tfprune.bench.advice import Advice, Curve, advise
from tfprune.bench.layers import LayerTimes, NodeTime, layer_times
from tfprune.bench.report import BenchReport, BenchRow
from tfprune.errors import ExportError
from tfprune.export import export
from tfprune.export.device import process

pytest.importorskip("onnxruntime")
pytest.importorskip("ai_edge_litert")


def model(width, name):
    inputs = keras.Input((12, 12, 3), name="image")
    x = layers.Conv2D(width, 3, activation="relu", name="first")(inputs)
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(16, 1, name="second")(x))
    return keras.Model(inputs, layers.Dense(4, name="scores")(x), name=name)


def macs(width):
    """Counted by hand."""
    return 100 * 27 * width + 64 * 9 * width + 64 * width * 16 + 64


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for width in (32, 16):  # whole blocks of onnxruntime's
        export(model(width, f"w{width}"), folder, ["keras", "onnx", "tflite", "saved_model"])
    return folder


def test_runtimes_side_by_side(files):
    report = bench([model(32, "w32"), files / "w16.keras"], ["onnxruntime", "litert"], threads=1, batch=2, turns=3)
    assert [(row.model, row.runtime) for row in report.rows] == [
        (name, runtime) for runtime in ("onnxruntime", "litert") for name in ("w32", "w16")
    ]
    for first, second in (report.rows[:2], report.rows[2:]):
        assert (first.macs, second.macs) == (macs(32), macs(16)) and first.speedup == first.macs_ratio == 1.0
        assert second.macs_ratio == macs(32) / macs(16) and second.kept == second.speedup / second.macs_ratio
        assert all(
            row.ms > 0 and row.load_ms > 0 and row.spread[0] <= row.ms <= row.spread[1] for row in (first, second)
        )
        assert second.bytes < first.bytes


def test_files_of_the_runtimes(files):
    report = bench([files / "w32.onnx", str(files / "w16.onnx")], turns=2)
    assert [(row.model, row.macs) for row in report.rows] == [("w32", macs(32)), ("w16", macs(16))]
    assert bench([files / "w16.tflite"], ["litert"], turns=2).rows[0].macs is None
    (row,) = bench([files / "w16_saved_model"], ["tensorflow"], turns=2, batch=3).rows
    assert row.ms > 0 and row.bytes > 1000


def test_times_are_compared_run_by_run(monkeypatch):
    """The machine is twice as slow in every other turn; the ratio is 2 throughout."""
    fast = np.array([1.0, 2.0, 1.0, 2.0])

    def in_turns(host, device, files, turns, warm, threads):
        assert (len(files), turns, threads) == (2, 4, 5)
        return np.stack([2 * fast, fast]) / 1e3

    monkeypatch.setattr(process, "run_in_turns", in_turns)
    monkeypatch.setattr(process, "run_in", lambda *given, **more: process.Measured([], 0.5, None, "process", 3_000_000))
    first, second = bench([model(16, "a"), model(8, "b")], threads=5, turns=4).rows
    assert (first.ms, first.spread, second.ms) == (3.0, (2.0, 4.0), 1.5)
    assert (second.speedup, second.speedup_spread) == (2.0, (2.0, 2.0))
    assert (second.load_ms, second.memory) == (500.0, 3_000_000)


def test_the_report_prints_and_saves(tmp_path):
    rows = (
        BenchRow("a", "onnxruntime", 2.0, (1.9, 2.2), 1.0, (1.0, 1.0), 4_000_000, 1.0, 3.0, 5_000_000, 1_000_000),
        BenchRow("b", "onnxruntime", 1.0, (0.9, 1.1), 2.0, (1.8, 2.2), 1_000_000, 4.0, 3.0, 0, 500_000),
    )
    report = BenchReport(rows, threads=2, batch=1, turns=9)
    lines = str(report).splitlines()
    assert lines[0].startswith("2 threads, batch 1, 9 runs")
    assert lines[-1].split() == "b onnxruntime 1 [0.9 1.1] 2.00 [1.80 2.20] 1.0 4.00 0.50 3.0 0.5".split()
    said = json.loads(report.save(tmp_path / "bench.json").read_text())
    assert said["rows"][1]["kept"] == 0.5 and said["threads"] == 2

    from tfprune.report.latency import curves, speedups

    assert speedups(report, tmp_path / "bench.png").stat().st_size > 1000
    curve = Curve("1x1", {width: float(width) for width in range(1, 65)})
    assert curves(Advice("litert", 1, (curve,)), tmp_path / "curves.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "arguments, what",
    [
        (([],), "needs models"),
        ((["a.keras"], ["tflow"]), "unknown runtime tflow.*litert"),
        ((["a.keras"], []), "none given"),
        ((["a.onnx"],), "does not exist"),
        ((["a.tflite"],), "no .keras or .onnx"),
        ((["a.keras"],), "could not be loaded"),
    ],
)
def test_what_cannot_be_timed_is_named(arguments, what):
    with pytest.raises(ExportError, match=what):
        bench(*arguments)


def test_nodes_carry_their_work(files):
    times = layer_times(files / "w32.onnx", runs=3)
    by_hand = {"first": 100 * 27 * 32, "depthwise": 64 * 9 * 32, "second": 64 * 32 * 16, "scores": 64}
    for layer, work in by_hand.items():
        (node,) = [one for one in times.nodes if layer in one.node and one.macs]
        assert node.macs == work and node.ms >= 0
    assert [node.ms for node in times.nodes] == sorted((node.ms for node in times.nodes), reverse=True)
    assert sum(node.macs for node in times.nodes) == macs(32)
    text = times.compared(layer_times(files / "w16.onnx", runs=3))
    assert "w32 -> w16" in text and text.count("2.00") >= 3  # half the multiply-adds


def test_nodes_by_hand():
    before = LayerTimes("a", (NodeTime("conv", "Conv", 4.0, 8_000_000, ""), NodeTime("gone", "Relu", 1.0, 0, "")))
    after = LayerTimes("b", (NodeTime("conv", "Conv", 2.0, 2_000_000, ""), NodeTime("new", "Relu", 1.0, 0, "")))
    assert before.nodes[0].rate == 2.0 and after.nodes[1].rate is None
    line = next(line for line in before.compared(after).splitlines() if line.lstrip().startswith("conv"))
    assert line.split() == ["conv", "Conv", "4.000", "2.000", "2.00", "4.00", "0.50"]
    assert "100" not in str(before) and "80.0%" in str(before)


@pytest.mark.parametrize("multiple", [1, 2, 4, 8, 16, 32])
def test_the_step_of_a_staircase_is_found(multiple):
    generator = np.random.default_rng(0)
    stairs = {width: -(-width // multiple) * multiple * generator.uniform(1, 1.01) for width in range(2, 65)}
    assert Curve("1x1", stairs).round_to == multiple
    curves = [Curve("1x1", stairs), Curve("3x3", stairs), Curve("5x5", {w: float(w) for w in range(2, 65)})]
    assert Advice("onnxruntime", 1, tuple(curves)).round_to == multiple


def test_the_least_width_of_use():
    assert Curve("1x1", {width: max(16.0, width) for width in (2, 4, 8, 16, 32, 64)}).least == 16
    assert Curve("1x1", {width: float(width) for width in (2, 4, 8, 16, 32, 64)}).least == 2


def test_advice_measures_each_width():
    with pytest.raises(ExportError, match="unknown runtime"):
        advise("abacus")


@pytest.mark.slow
def test_advice_from_measurement():
    advice = advise("onnxruntime", sizes=(7,), read=8, turns=3)
    assert len(advice.curves) == 3 and all(len(curve.ms) == 37 for curve in advice.curves)
    assert advice.round_to in (1, 2, 4, 8, 16, 32) and "round widths to" in str(advice)
