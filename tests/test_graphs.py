"""Pictures of graphs: every layer is there, what changed is marked, and nothing is written that is not whole."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import keras
import numpy as np
import onnx
import pytest
from keras import layers
from onnx_models import Net

import tfprune
from tfprune.__main__ import main
from tfprune.errors import ExportError, PlanError, TraceError
from tfprune.onnx_graph.model import save
from tfprune.report.graphs import CHANGED, KEPT, NEW, REMOVED, Edge, compared, diagram, draw

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def net():
    """x -> first (3 to 8) -> relu -> second (8 to 8) -> add with relu -> third (8 to 4, halves the image)."""
    net = Net()
    relu = net.add("Relu", net.conv("x", 3, 8))
    total = net.add("Add", relu, net.conv(relu, 8, 8))
    out = net.conv(total, 8, 4, strides=[2, 2])
    return net.model({"x": (1, 3, 8, 8)}, [out])


@pytest.fixture
def keras_pair():
    """A model with a nested model that is called twice; channels 1, 3 and 4 of 8 are 0, and stripped."""
    keras.utils.set_random_seed(0)
    inner = keras.Sequential([keras.Input((6, 6, 4)), layers.Conv2D(4, 1, name="inside")], name="inner")
    image = keras.Input((6, 6, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", name="first")(image)
    x = layers.Conv2D(4, 1, name="second")(layers.BatchNormalization(name="norm")(x))
    model = keras.Model(image, layers.Flatten(name="flat")(inner(inner(x))), name="net")
    kernel = model.get_layer("first").kernel.numpy()
    kernel[..., [1, 3, 4]] = 0
    model.get_layer("first").kernel.assign(kernel)
    model.get_layer("norm").moving_mean.assign(np.full(8, 0.1))
    return model, tfprune.strip(model).model


def texts(path):
    return [element.text for element in ElementTree.parse(path).iter(f"{SVG}text")]


def test_a_box_for_every_node_and_its_width_on_every_edge(net):
    drawn = diagram(tfprune.trace(net))
    assert {box.name for box in drawn.boxes.values()} == {"x", *(node.name for node in net.graph.node)}
    first, relu, second, add, third = (node.name for node in net.graph.node)
    assert {(start[0], end[0]): edge.width for (start, end, _), edge in drawn.edges.items()} == {
        ("x", first): "1x3x8x8",  # nothing says which axis of an image holds channels
        (first, relu): "8",
        (relu, second): "8",
        (relu, add): "8",
        (second, add): "8",
        (add, third): "8",
    }
    box = drawn.boxes[third, 0]
    assert (box.kind, box.shape, box.parameters) == ("Conv", "1x4x4x4", f"{4 * 8 * 9 + 4}")


def test_every_call_of_a_shared_layer_is_a_box(keras_pair):
    drawn = diagram(tfprune.trace(keras_pair[0]))
    names = ["image", "first", "norm", "second", "inner/inside", "inner/inside", "flat"]
    assert [box.name for box in drawn.boxes.values()] == names
    assert drawn.edges[("inner/inside", 0), ("inner/inside", 1), 0].width == "4"


def test_a_layer_that_reads_another_twice_has_two_edges():
    x = keras.Input((4,))
    y = layers.Dense(6, name="d")(x)
    drawn = diagram(tfprune.trace(keras.Model(x, layers.Multiply(name="square")([y, y]))))
    assert [edge.width for (start, *_), edge in drawn.edges.items() if start == ("d", 0)] == ["6", "6"]


def test_removed_layers_and_what_stands_in_their_place(net):
    first, relu, second, add, third = (node.name for node in net.graph.node)
    result = tfprune.remove_layers(net, names=[second, third])
    drawn = compared(diagram(tfprune.trace(net)), diagram(tfprune.trace(result.model)))
    states = {box.name: box.state for box in drawn.boxes.values()}
    assert {name for name, state in states.items() if state == REMOVED} == {second, third}
    new = {name for name, state in states.items() if state == NEW}
    assert f"{third}/AveragePool" in new and new.isdisjoint({first, relu, add})
    edges = {(start[0], end[0], number): edge for (start, end, number), edge in drawn.edges.items()}
    assert edges[relu, second, 0].state == edges[second, add, 0].state == REMOVED
    # Narrower: of the third only four channels were left, and what it read is added up before.
    assert (edges[relu, add, 0].state, edges[relu, add, 0].width) == (CHANGED, "8 → 4")


def test_widths_before_and_after(keras_pair):
    before, after = keras_pair
    drawn = compared(diagram(tfprune.trace(before)), diagram(tfprune.trace(after)))
    first, second = drawn.boxes["first", 0], drawn.boxes["second", 0]
    assert (first.state, first.shape, first.parameters) == (CHANGED, "6x6x8 → 6x6x5", "224 → 140")
    assert (second.state, second.shape, second.parameters) == (CHANGED, "6x6x4", "36 → 24")
    assert drawn.boxes["inner/inside", 1].state == KEPT
    assert drawn.boxes["norm", 0].parameters == "32 → 20"
    assert drawn.edges[("first", 0), ("norm", 0), 0].width == "8 → 5"
    assert drawn.edges[("second", 0), ("inner/inside", 0), 0].width == "4"


def test_the_width_of_an_axis_that_only_one_of_the_two_knows():
    edge = Edge((None, 8, 4, 4), (1,), (None, 6, 4, 4))
    assert edge.width == "8 → 6"
    assert Edge((None, 4), ()).width == "?x4"


def test_models_with_nothing_in_common(net, keras_pair, tmp_path):
    pytest.importorskip("pygraphviz")
    with pytest.raises(PlanError, match="no name of a layer is in both"):
        draw(net, tmp_path / "graph.svg", keras_pair[0])
    assert not list(tmp_path.iterdir())


def test_svg(net, tmp_path):
    pytest.importorskip("pygraphviz")
    removed = net.graph.node[2].name
    result = tfprune.remove_layers(net, names=[removed])
    path = draw(net, tmp_path / "graph.svg", result.model, title="mine")
    said = texts(path)
    assert said[:2] == ["mine: 6 layers before, 5 layers after", "red, dashed: removed (1 layer)"]
    for node in net.graph.node:
        assert f"{node.op_type} · {node.name}" in said
    dashed = [
        [element.text for element in group.iter(f"{SVG}text")]
        for group in ElementTree.parse(path).iter(f"{SVG}g")
        if group.get("class") == "node" and any(e.get("stroke-dasharray") for e in group.iter())
    ]
    assert [lines[0] for lines in dashed] == [f"Conv · {removed}"]
    assert [name.name for name in tmp_path.iterdir()] == ["graph.svg"]


@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG\r\n"), ("a.PNG", b"\x89PNG\r\n"), ("a.pdf", b"%PDF")])
def test_other_formats(net, tmp_path, name, start):
    pytest.importorskip("pygraphviz")
    assert draw(net, tmp_path / name).read_bytes().startswith(start)


def test_names_are_drawn_as_they_are(tmp_path):
    pytest.importorskip("pygraphviz")
    net = Net()
    model = net.model({"x": (1, 3, 8, 8)}, [net.add("Relu", net.conv("x", 3, 4))])
    names = ['<b>"\\N"&amp;</b>', "two\nlines\x01"]
    for node, name in zip(model.graph.node, names, strict=True):
        node.name = name
    said = texts(draw(model, tmp_path / "graph.svg"))
    assert f"Conv · {names[0]}" in said
    assert "Relu · two?lines?" in said


def test_mistakes_leave_what_was_there(net, tmp_path, monkeypatch):
    pygraphviz = pytest.importorskip("pygraphviz")
    path = tmp_path / "graph.svg"
    path.write_text("old")
    with pytest.raises(ExportError, match=r"\.svg, \.png, \.pdf, and .*graph\.gif"):
        draw(net, tmp_path / "graph.gif")
    with pytest.raises(TraceError):
        draw(tmp_path / "none.onnx", path)

    def broken(self, scratch, **settings):
        with open(scratch, "w") as file:
            file.write("half")
        raise ValueError("no more ink")

    monkeypatch.setattr(pygraphviz.AGraph, "draw", broken)
    with pytest.raises(ExportError, match="no more ink"):
        draw(net, path)
    monkeypatch.setitem(sys.modules, "pygraphviz", None)
    with pytest.raises(ExportError, match=r"pip install 'tfprune\[graphviz\]'"):
        draw(net, path)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["graph.svg"]


# -- the commands -----------------------------------------------------------------------------------------------------


@pytest.fixture
def netron(monkeypatch):
    """A Netron that notes what it is shown, instead of opening a browser."""
    shown = []

    def start(file, address=None, browse=True):
        if address == 1:
            raise OSError("Permission denied")
        model = onnx.load(file) if file.endswith(".onnx") else keras.saving.load_model(file)
        shown.append(SimpleNamespace(file=file, model=model, address=address, browse=browse, waited=False))
        return "localhost", address or 8080

    def wait():
        shown[-1].waited = True

    monkeypatch.setitem(sys.modules, "netron", SimpleNamespace(start=start, wait=wait))
    return shown


def test_draw_from_the_command_line(net, tmp_path, capsys, monkeypatch):
    pytest.importorskip("pygraphviz")
    monkeypatch.chdir(tmp_path)
    save(net, tmp_path / "a.onnx")
    save(tfprune.remove_layers(net, names=[net.graph.node[2].name]).model, tmp_path / "b.onnx")
    assert main(["draw", "--model=a.onnx", "--other=b.onnx", "--output=pictures/g.svg"]) == 0
    assert capsys.readouterr().out == "wrote pictures/g.svg\n"
    assert texts("pictures/g.svg")[0] == "a.onnx: 6 layers before, 5 layers after"
    assert main(["draw", "--model=a.onnx", "--output=g.jpeg"]) == 2
    assert "--output must end with .svg, .png, .pdf, and 'g.jpeg' came" in capsys.readouterr().err
    (tmp_path / "damaged.onnx").write_bytes((tmp_path / "a.onnx").read_bytes()[:300])
    assert main(["draw", "--model=damaged.onnx", "--output=g.svg"]) == 1
    assert "damaged.onnx" in capsys.readouterr().err and not (tmp_path / "g.svg").exists()


def test_view_a_file(net, netron, tmp_path, capsys):
    save(net, tmp_path / "a.onnx")
    assert main(["view", f"--model={tmp_path / 'a.onnx'}", "--port=9000", "--nobrowse"]) == 0
    (one,) = netron
    assert (one.file, one.address, one.browse, one.waited) == (str(tmp_path / "a.onnx"), 9000, False, True)
    assert "http://localhost:9000" in capsys.readouterr().out


@pytest.mark.parametrize("format_name", ["keras", "onnx"])
def test_view_a_function(netron, tmp_path, monkeypatch, format_name):
    (tmp_path / "mine_to_view.py").write_text(
        "import keras\n"
        "def build(): return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name='scores')])\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert main(["view", "--model=mine_to_view:build", f"--format={format_name}"]) == 0
    (one,) = netron
    assert one.file.endswith(f"model.{format_name}") and one.waited and one.address is None
    weights = (
        [onnx.numpy_helper.to_array(tensor) for tensor in one.model.graph.initializer]
        if format_name == "onnx"
        else one.model.get_weights()
    )
    assert (4, 3) in [np.shape(weight) for weight in weights]
    assert not Path(one.file).exists()  # was temporary


def test_view_says_what_it_needs(net, netron, tmp_path, capsys, monkeypatch):
    assert main(["view", "--model=none.onnx"]) == 1
    assert "'none.onnx' does not exist" in capsys.readouterr().err
    save(net, tmp_path / "a.onnx")
    assert main(["view", f"--model={tmp_path / 'a.onnx'}", "--port=1"]) == 1
    assert "(Permission denied); try another --port" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "netron", None)
    assert main(["view", "--model=a.onnx"]) == 1
    assert "pip install 'tfprune[netron]'" in capsys.readouterr().err
