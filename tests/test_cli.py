"""The command line: what commands do, what mistakes are told, and the exit status."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tfprune.__main__ import main
from tfprune.cli.command import Command, Flag, UsageError, commands

_SMALL = """
import keras
from keras import layers

def small(input_shape=(6, 6, 1), classes=3):
    image = keras.Input(input_shape, name="image")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="first")(image)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    x = layers.Conv2D(8, 3, activation="relu", name="second")(x)
    return keras.Model(image, layers.Dense(classes, name="scores")(layers.Flatten()(x)), name="small")

def fails(): raise RuntimeError("no such thing")
def nothing(): return None

class Own(keras.Model):
    def call(self, x): return x

def own(): return Own()
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A directory with a module of models, a data set and a model with zeroed channels."""
    (tmp_path / "user_models.py").write_text(_SMALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("user_models", None)


@pytest.fixture
def arrays(here):
    generator = np.random.default_rng(0)
    x, y = generator.random((30, 6, 6, 1)).astype(np.float32), np.arange(30) % 3
    np.savez(here / "mine.npz", x_train=x, y_train=y, x_test=x[:9], y_test=y[:9])
    return here / "mine.npz"


@pytest.fixture
def zeroed(here):
    """A .keras file in which channels 0, 2, 5 and 6 of the first convolution are 0."""
    import keras

    sys.path.insert(0, os.getcwd())
    from user_models import small

    keras.utils.set_random_seed(1)
    model = small()
    generator = np.random.default_rng(1)
    for weight in model.weights:
        weight.assign(generator.uniform(0.3, 1.5, weight.shape))
    kernel, (gamma, beta, mean, variance) = (
        model.get_layer("first").get_weights()[0],
        model.get_layer("norm").get_weights(),
    )
    kernel[..., [0, 2, 5, 6]] = 0
    gamma[[0, 2, 5, 6]] = beta[[0, 2, 5, 6]] = 0
    model.get_layer("first").set_weights([kernel])
    model.get_layer("norm").set_weights([gamma, beta, mean, variance])
    model.save(here / "zeroed.keras")
    return "zeroed.keras"


def failure(capsys, *arguments):
    """The status and the one line on standard error; nothing else is printed."""
    status = main(arguments)
    printed = capsys.readouterr()
    assert printed.err.startswith("tfprune: error: ") and printed.err.count("\n") == 1, printed.err
    return status, printed.err


# -- help and mistakes ------------------------------------------------------------------------------------------------


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    for name in ("inspect", "prune", "strip", "export", "cost", "sensitivity", "verify"):
        assert f"  {name}" in printed
    assert main([]) == 2


@pytest.mark.parametrize("name", sorted(commands()))
def test_help_of_a_command_names_every_flag(capsys, name):
    assert main([name, "--help"]) == 0
    printed = capsys.readouterr().out
    assert all(flag.usage in printed for flag in commands()[name].flags)
    for line in commands()[name].example.splitlines():
        arguments = line.split()
        assert arguments[0] == "tfprune"
        commands()[arguments[1]].parse(arguments[2:])  # the example is a valid command line


def test_help_and_mistakes_do_not_import_keras():
    code = (
        "import sys; from tfprune.__main__ import main\n"
        "assert main(['--help']) == 0 and main(['prune', '--help']) == 0 and main(['prune', '--ratio=2']) == 2\n"
        "assert not {'keras', 'tensorflow', 'onnx', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=os.path.dirname(__file__) + "/..")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prnue"], "did you mean prune?"),
        (["--model=x"], "the command comes first"),
        (["cost", "--modle=x"], "Did you mean: model ?"),
        (["cost"], "--model=PATH|module:function|NAME must be given"),
        (["cost", "--model=x", "y"], "unexpected argument 'y'"),
        (["strip", "--model=x.keras"], "--output_dir=DIR must be given"),
        (["export", "--model=x.keras", "--output_dir=y", "--opset=30"], "opset"),
        (["prune", "--model=x", "--output_dir=y", "--ratio=1.5"], "1.5"),
        (["prune", "--model=x", "--output_dir=y", "--thresholds=0.8,x"], "'x' is not one of"),
        (["prune", "--model=x", "--output_dir=y", "--thresholds=0.8,2"], "'2' is not one of"),
        (["prune", "--model=x", "--output_dir=y", "--ratio=0.5", "--thresholds=0.8"], "not both"),
        (["prune", "--model=x", "--output_dir=y", "--macs=0.5", "--thresholds=0.8"], "not both"),
        (["prune", "--model=x", "--output_dir=y", "--macs=0.5", "--ratio=0.8"], "not both"),
        (["prune", "--model=x", "--output_dir=y", "--scope=here"], "scope"),
        (["prune", "--model=x", "--output_dir=y", "--dataset=digits", "--data=a:b"], "not both"),
        (["prune", "--model=x", "--output_dir=y", "--slots=maybe"], "maybe"),
        (["sensitivity", "--model=x", "--output_dir=y", "--ratios=0.5,1.5"], "'1.5' is not one of"),
        (["sensitivity", "--model=x", "--output_dir=y", "--dataset=digits", "--data=a:b"], "not both"),
        (["prune", "--model=x", "--output_dir=y", "--ratio=0.5", "--schedule=cosin"], "did you mean 'cosine'"),
        (["prune", "--model=x", "--output_dir=y", "--schedule=cosine"], "--ratio"),
        (["prune", "--model=x", "--output_dir=y", "--macs=0.5", "--latency_table=t.json"], "--latency"),
    ],
)
def test_wrong_command_lines(capsys, arguments, message):
    status, printed = failure(capsys, *arguments)
    assert status == 2 and message in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cost", "--model=none.keras"], "'none.keras' does not exist"),
        (["cost", "--model=damaged.keras"], "could not be loaded"),
        (["cost", "--model=x.weights.h5"], "does not exist"),
        (["cost", "--model=MobileNetV22"], "did you mean MobileNetV2"),
        (["cost", "--model=user_models:none"], "no function 'none'"),
        (["cost", "--model=no_such_module:f"], "could not be imported"),
        (["cost", "--model=user_models:fails"], "RuntimeError: no such thing"),
        (["cost", "--model=user_models:nothing"], "returned a NoneType"),
        (["cost", "--model=user_models:own"], "user_models:own"),
        (["cost", "--model=user_models:small", "--input_shape=a,b"], "whole numbers"),
        (["inspect", "--model=user_models:own"], "Own"),
        (["strip", "--model=user_models:small", "--output_dir=s", "--plan=none.json"], "'none.json' cannot be read"),
        (["strip", "--model=user_models:small", "--output_dir=s", "--plan=user_models.py"], "not a pruning plan"),
        (["strip", "--model=user_models:small", "--output_dir=user_models.py"], "cannot be written"),
        (["export", "--model=user_models:small", "--output_dir=user_models.py"], "cannot be written"),
        (["export", "--model=user_models:small", "--output_dir=e", "--formats=keras,tflight"], "unknown export format"),
        (["verify", "--model=user_models:small", "--other=none.onnx"], "'none.onnx' does not exist"),
        (["verify", "--model=user_models:small", "--other=user_models.py"], "is no .keras, .onnx or .pb file"),
        (["prune", "--model=user_models:small", "--output_dir=p", "--dataset=cifar11"], "unknown data set"),
        (["prune", "--model=user_models:small", "--output_dir=p", "--dataset=none.npz"], "does not exist"),
        (["prune", "--model=zeroed.keras", "--output_dir=p"], r"(6, 6, 1)"),
        (["prune", "--model=user_models:small", "--output_dir=p", "--dataset=mine.npz", "--only=bolck_"], "bolck_"),
        (["prune", "--model=user_models:small", "--output_dir=p", "--dataset=mine.npz", "--criterion=l3"], "l3"),
        (
            ["prune", "--model=user_models:small", "--output_dir=p", "--dataset=mine.npz", "--formats=x"],
            "unknown export",
        ),
        (
            [
                "prune",
                "--model=user_models:small",
                "--output_dir=p",
                "--dataset=mine.npz",
                "--latency=0.5",
                "--latency_table=user_models.py",
            ],
            "not a latency table",
        ),
        (["prune", "--model=user_models:small", "--output_dir=user_models.py"], "cannot be written"),
        (["sensitivity", "--model=user_models:small", "--dataset=mine.npz", "--output_dir=s", "--ratios=1"], "ratio 1"),
    ],
)
def test_bad_input_is_one_line_and_status_1(capsys, here, arrays, zeroed, arguments, message):
    (here / "damaged.keras").write_bytes((here / zeroed).read_bytes()[:1000])
    before = set(os.listdir(here))
    if arguments[1].endswith(":own"):
        message = ""  # the model's own wording is tested with trace
    status, printed = failure(capsys, *arguments)
    assert status == 1 and message in printed
    left = {name for name in set(os.listdir(here)) - before if name not in ("__pycache__", "p", "e", "s")}
    assert not left and not any(os.listdir(here / name) for name in ("p", "e", "s") if (here / name).exists())


def test_class_count_that_does_not_fit(capsys, here, arrays):
    (here / "five.py").write_text("from user_models import small\ndef build(): return small(classes=5)\n")
    status, printed = failure(capsys, "prune", "--model=five:build", "--output_dir=p", f"--dataset={arrays}")
    assert status == 1 and "(5,)" in printed and "3 classes" in printed


# -- what commands do -------------------------------------------------------------------------------------------------


def test_inspect(capsys):
    assert main(["inspect", "--model=user_models:small"]) == 0
    printed = capsys.readouterr().out
    assert "first" in printed and "second" in printed and "prunable" in printed


def test_cost(capsys):
    # 3x3x1x8 = 72 and 4x8 = 32; 3x3x8x8 + 8 = 584; 4x4x8x3 + 3 = 387
    assert main(["cost", "--model=user_models:small"]) == 0
    assert "1,075 parameters" in capsys.readouterr().out
    # 10 classes more: 128 weights and a bias each
    assert main(["cost", "--model=user_models:small", "--classes=13"]) == 0
    assert f"{1075 + 10 * 129:,} parameters" in capsys.readouterr().out
    # An image of another size changes the last kernel alone: 6x6x8x3.
    assert main(["cost", "--model=user_models:small", "--input_shape=8,8,1"]) == 0
    assert f"{1075 + (36 - 16) * 8 * 3:,} parameters" in capsys.readouterr().out


def test_strip_then_verify(capsys, zeroed):
    import keras

    assert main(["strip", f"--model={zeroed}", "--output_dir=out"]) == 0
    assert "equal" in capsys.readouterr().out
    assert keras.saving.load_model("out/model.keras").get_layer("first").filters == 4
    assert main(["verify", f"--model={zeroed}", "--other=out/model.keras"]) == 0
    assert main(["cost", f"--model={zeroed}", "--after=out/model.keras"]) == 0
    # 9 weights and 4 numbers of BatchNormalization a channel, and 9x8 of the reader
    assert f"1,075 -> {1075 - 4 * (9 + 4 + 72):,}" in capsys.readouterr().out

    other = keras.saving.load_model(zeroed)
    other.get_layer("scores").bias.assign_add([0.0, 1e-2, 0.0])
    other.save("other.keras")
    capsys.readouterr()
    assert main(["verify", f"--model={zeroed}", "--other=other.keras", "--tolerance=1e-9"]) == 1
    assert "DIFFERENT" in capsys.readouterr().out


def test_strip_with_a_plan(capsys, zeroed):
    import keras

    import tfprune

    model = keras.saving.load_model(zeroed)
    plan = tfprune.select(model, "l1", ratio=0.5, only="second")
    with open("plan.json", "w") as file:
        file.write(plan.to_json())
    assert main(["strip", f"--model={zeroed}", "--output_dir=planned", "--plan=plan.json"]) == 0
    stripped = keras.saving.load_model("planned/model.keras")
    assert [stripped.get_layer(name).filters for name in ("first", "second")] == [8, 4]


def test_sensitivity(capsys, arrays, zeroed):
    arguments = [f"--model={zeroed}", f"--dataset={arrays}", "--output_dir=s", "--ratios=0.5,0.25", "--max_drop=0.5"]
    assert main(["sensitivity", *arguments, "--remove", "--only=first"]) == 0
    printed = capsys.readouterr()
    assert "first" in printed.out and "all together" in printed.out and "sensitivity: first" in printed.err
    assert sorted(os.listdir("s")) == ["ratios.json", "sensitivity.json", "sensitivity.png"]
    with open("s/sensitivity.json") as written, open("s/ratios.json") as ratios:
        result, ratios = json.load(written), json.load(ratios)
    curve = result["curves"][0]
    # What is zero already goes first, and costs nothing.
    assert (result["swept"], curve["pruned"], curve["values"]) == ([0.25, 0.5], [2, 4], [result["baseline"]] * 2)
    assert curve["removed"] == curve["values"] and ratios == {"first": 0.5}


def test_export_and_verify_other_formats(capsys, zeroed):
    assert main(["export", f"--model={zeroed}", "--output_dir=e", "--formats=onnx,pb", "--name=net"]) == 0
    assert sorted(os.listdir("e")) == ["net.onnx", "net.pb", "net_export.json"]
    assert main(["verify", f"--model={zeroed}", "--other=e/net.onnx"]) == 0
    assert main(["verify", f"--model={zeroed}", "--other=e/net.pb"]) == 0
    assert main(["verify", "--model=user_models:small", "--other=e/net.onnx"]) == 1


@pytest.mark.parametrize(
    "amount", [["--thresholds=0.6,0.5", "--criterion=taylor"], ["--ratio=0.5", "--schedule=linear"]], ids=" ".join
)
def test_prune(capsys, arrays, amount):
    import keras

    arguments = [
        "--model=user_models:small",
        f"--dataset={arrays}",
        "--output_dir=run",
        "--train_epochs=1",
        "--epochs=2",
    ]
    assert main(["prune", *arguments, *amount, "--formats=keras", "--max_retries=0"]) == 0
    printed = capsys.readouterr()
    with open("run/results.json") as file:
        results = json.load(file)
    before, soft, stripped = results["stages"]
    assert [stage["name"] for stage in results["stages"]] == ["before", "soft-pruned", "stripped"]
    assert before["parameters"] == soft["parameters"] == 1075 > stripped["parameters"]
    assert soft["accuracy"] == stripped["accuracy"] and 0 <= stripped["accuracy"] <= 1
    model = keras.saving.load_model("run/stripped/model.keras")
    assert model.count_params() == stripped["parameters"]
    assert os.path.exists("run/failure_rates.csv") and "epoch 2/2" in printed.err and "accuracy" in printed.out


def test_advice_goes_into_a_latency_budget(capsys, arrays, zeroed, monkeypatch):
    """`bench --advise` writes the model's kernels, and `prune` keeps to the budget that these say."""
    from tfprune.bench import advice
    from tfprune.latency import LatencyTable, OnnxClock

    curve = advice.Curve("1x1", {width: float(width) for width in range(1, 65)})
    monkeypatch.setattr(advice, "advise", lambda runtime, threads: advice.Advice(runtime, threads, (curve,)))
    monkeypatch.setattr(OnnxClock, "__init__", lambda clock, threads: None)
    monkeypatch.setattr(OnnxClock, "__call__", lambda clock, kernel: float(kernel.read[0] * kernel.written[0]))
    monkeypatch.setattr("tfprune.latency._total", lambda graph, threads: None)
    assert main(["bench", f"--models={zeroed}", "--advise", "--output_dir=out", "--turns=1", "--threads=1"]) == 0
    assert "latency.json" in capsys.readouterr().out
    by_layer = sorted(times.ms[-1][-1] for times in LatencyTable.load("out/latency.json").times.values())
    assert by_layer == [1 * 8, 8 * 8, 128 * 3]

    monkeypatch.setattr(LatencyTable, "measure", None)  # or it would not be the table
    arguments = ["--model=user_models:small", f"--dataset={arrays}", "--output_dir=run", "--train_epochs=0"]
    budget = ["--latency=0.7", "--latency_table=out/latency.json", "--scope=global", "--round_to=1"]
    assert main(["prune", *arguments, *budget, "--epochs=1", "--criterion=l1", "--formats=keras"]) == 0
    said = capsys.readouterr().out
    assert "456" in next(line for line in said.splitlines() if "latency" in line)


def test_prune_says_when_nothing_goes(capsys, arrays):
    arguments = [
        "--model=user_models:small",
        f"--dataset={arrays}",
        "--output_dir=run",
        "--train_epochs=0",
        "--epochs=1",
    ]
    status, printed = failure_after_training(capsys, "prune", *arguments, "--ratio=0.1", "--formats=keras")
    assert status == 1 and "prunes no channel" in printed


def failure_after_training(capsys, *arguments):
    status = main(arguments)
    return status, capsys.readouterr().err.splitlines()[-1]


def test_interrupted(capsys, monkeypatch):
    from tfprune.cli import models

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "load", interrupt)
    status, printed = failure(capsys, "cost", "--model=x.keras")
    assert status == 130 and "interrupted" in printed


@pytest.mark.slow
def test_interrupted_by_a_signal_leaves_no_half_file(here, arrays):
    command = [sys.executable, "-m", "tfprune", "prune", "--model=user_models:small", f"--dataset={arrays}"]
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(os.path.abspath(__file__)))}
    process = subprocess.Popen(
        [*command, "--output_dir=run", "--train_epochs=100000"], stderr=subprocess.PIPE, text=True, env=environment
    )
    with contextlib.suppress(AttributeError):
        process.stderr.readline()  # the first epoch has passed
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in printed and "interrupted" in printed
    assert os.listdir("run") == []


# -- how flags are read -----------------------------------------------------------------------------------------------


def test_flags():
    numbers = Flag("numbers", "", kind="numbers", low=0, high=1)
    command = Command(
        "c",
        "",
        "",
        "",
        (numbers, Flag("yes", "", kind="boolean", default=True), Flag("word", "", "a|b", "a", "choice")),
        print,
    )
    options = command.parse(["--numbers=0.5, 1", "--noyes", "--word=b"])
    assert (options.numbers, options.yes, options.word) == ((0.5, 1.0), False, "b")
    assert command.parse([]).numbers is None
    for wrong in ("--numbers=", "--numbers=nan", "--word=c", "--yes=perhaps"):
        with pytest.raises(UsageError):
            command.parse([wrong])
