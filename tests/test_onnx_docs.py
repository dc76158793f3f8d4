"""The page about ONNX: what it says to type works."""

from __future__ import annotations

import re
from pathlib import Path

from onnx_models import Net
from test_from_tensorflow import tf1_graph

import tfprune
from tfprune.onnx_graph.model import save


def test_the_page_runs(tmp_path, monkeypatch, capsys):
    net = Net()
    x = net.add("Relu", net.conv("x", 3, 8))
    x = net.add("Relu", net.conv(x, 8, 8))
    model = net.model({"x": ("N", 3, 8, 8)}, [net.add("GlobalAveragePool", net.conv(x, 8, 4))])
    save(model, tmp_path / "model.onnx")
    (tmp_path / "frozen.pb").write_bytes(tf1_graph().SerializeToString())
    monkeypatch.chdir(tmp_path)
    text = (Path(tfprune.__file__).parent.parent / "docs" / "onnx.md").read_text()
    scope: dict = {}
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(compile(block, "onnx.md", "exec"), scope)
    assert tfprune.cost("small.onnx").parameters < tfprune.cost("model.onnx").parameters
    assert "After Layer   0: layer type: Conv" in capsys.readouterr().out
