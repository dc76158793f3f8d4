"""`Pruning`: the seed's steps, its files, and what happens to bad checkpoints."""

import json

import keras
import numpy as np
import pytest
from keras import layers

import tfprune
from tfprune.errors import CheckpointError, PlanError, TfpruneError
from tfprune.pruning import load


def network():
    """An inverted-residual block and a squeeze-and-excitation gate, randomly weighted."""
    keras.utils.set_random_seed(5)
    inputs = x = keras.Input((8, 8, 8))
    y = layers.Conv2D(24, 1, use_bias=False, name="block_expand")(x)
    y = layers.ReLU()(layers.BatchNormalization(name="block_bn")(y))
    y = layers.DepthwiseConv2D(3, padding="same", name="block_depthwise")(y)
    gate = layers.GlobalAveragePooling2D(keepdims=True)(y)
    gate = layers.Conv2D(8, 1, activation="relu", name="block_se_reduce")(gate)
    gate = layers.Conv2D(24, 1, activation="sigmoid", name="block_se_excite")(gate)
    y = layers.Conv2D(8, 1, name="block_project")(layers.Multiply()([y, gate]))
    x = layers.Add()([x, y])
    outputs = layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, outputs, name="net")
    generator = np.random.default_rng(0)
    for variable in model.weights:
        if "moving" not in variable.path:
            variable.assign(generator.normal(0, 0.5, variable.shape))
    return model


@pytest.fixture
def pruning(tmp_path):
    return tfprune.Pruning(network(), ["block_", "block_se_"], tmp_path, log=None)


def test_the_seeds_steps_one_by_one(pruning, tmp_path):
    assert pruning.get_pruning_params() == {
        "block_": ["block_expand", "block_depthwise", "block_se_reduce", "block_se_excite", "block_project"],
        "block_se_": ["block_se_reduce", "block_se_excite"],
    }
    assert pruning.bias_vars_dict["block_expand"][0].startswith("block_bn/")
    pruning.set_output_dir(tmp_path / "TH0.5")
    pruning.set_threshold(0.5)
    filters = pruning.get_pruning_filters()
    # Whole numbers of 4, chosen by redundancy > 0.5: at most the group's width less 4.
    assert set(filters) <= {"block_expand", "block_se_reduce"} and filters["block_expand"]
    checkpoint = pruning.get_pruning_ckpt()
    assert checkpoint == tmp_path / "TH0.5" / "Pruned_Dir" / "model.keras"
    kernel = np.asarray(load(checkpoint).get_layer("block_expand").kernel)
    assert np.flatnonzero(np.abs(kernel).sum((0, 1, 2)) == 0).tolist() == filters["block_expand"]

    retrained = load(checkpoint)
    moved = np.array(kernel)
    moved[..., filters["block_expand"][0]] = 1.0
    retrained.get_layer("block_expand").kernel.assign(moved)
    retrained.save(tmp_path / "TH0.5" / "trained.keras")
    assert pruning.get_retrained_ckpt() == tmp_path / "TH0.5" / "trained.keras"
    pruned = pruning.monitor
    rate = pruning.get_pruning_summary()
    assert pruned.history[-1].failed == 1
    assert rate == 1 / pruned.history[-1].pruned
    summary = (tmp_path / "TH0.5" / "Pruning_Summary.txt").read_text()
    assert f"failed_rate {rate:.6f}" in summary and "block_expand" in summary

    pruning.set_output_dir(tmp_path / "TH0.5_Repruned1")
    again = load(pruning.pruning_process(retrain=True))
    assert not np.asarray(again.get_layer("block_expand").kernel)[..., filters["block_expand"]].any()


def test_run_strip_export(pruning, tmp_path):
    calls = []
    monitor = pruning.run(lambda model, directory: calls.append(directory.name), thresholds=[0.6, 0.5])
    assert calls == ["TH0.6", "TH0.5"]
    assert len(monitor.history) == 2 and monitor.rate == 0.0
    result = pruning.strip()
    assert result.verification.equal and result.cost_after.macs < result.cost_before.macs
    path = pruning.get_strip_ckpt()
    assert path == tmp_path / "Stripped_Dir" / "model.keras" and pruning.export_pb_path.is_file()
    shapes = pruning.get_strip_params()
    left = 24 - len(pruning.pruning_filters_dict["block_expand"])
    assert shapes["block_expand/kernel"] == ((1, 1, 8, 24), (1, 1, 8, left))
    assert pruning.strip_nodes_dict["block_expand"] == (24, left)


def test_retries_zero_the_same_filters_and_end(pruning, tmp_path):
    seen = []

    def train(model, directory):
        seen.append((directory.name, json.loads(pruning.plan.to_json())["groups"]))
        kernel = model.get_layer("block_expand").kernel
        kernel.assign(np.ones(kernel.shape))

    pruning.run(train, thresholds=[0.5], max_failure_rate=0.1, max_retries=2)
    assert [name for name, _ in seen] == ["TH0.5", "TH0.5_Repruned1", "TH0.5_Repruned2"]
    assert seen[0][1] == seen[1][1] == seen[2][1]
    assert (tmp_path / "failure_rates.csv").is_file()


def test_train_may_return_a_model_or_a_path(pruning, tmp_path):
    def train(model, directory):
        copy = keras.models.clone_model(model)
        copy.set_weights([w * 2 for w in model.get_weights()])
        copy.save(directory / "mine.keras")
        return directory / "mine.keras" if directory.name == "TH0.6" else copy

    head = np.array(pruning.model.get_layer("head").kernel)
    pruning.run(train, thresholds=[0.6, 0.5])
    np.testing.assert_allclose(pruning.model.get_layer("head").kernel, head * 4, rtol=1e-6)


def test_filters_from_a_file(pruning, tmp_path):
    pruning.set_threshold(0.5)
    chosen = pruning.get_pruning_filters()
    other = tfprune.Pruning(network(), output_dir=tmp_path / "other", log=None)
    other.get_pruning_ckpt(pruning.pruning_filters_path)
    assert other.pruning_filters_dict == chosen


def test_weights_file_with_a_model(tmp_path):
    model = network()
    model.save_weights(tmp_path / "w.weights.h5")
    fresh = keras.models.clone_model(model)
    pruning = tfprune.Pruning(fresh, output_dir=tmp_path, input_ckpt_path=tmp_path / "w.weights.h5", log=None)
    np.testing.assert_array_equal(pruning.model.get_layer("head").kernel, model.get_layer("head").kernel)
    with pytest.raises(CheckpointError, match="weights alone"):
        tfprune.Pruning(tmp_path / "w.weights.h5", output_dir=tmp_path)


def test_missing_and_damaged_checkpoints(tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        tfprune.Pruning(tmp_path / "no.keras", output_dir=tmp_path)
    (tmp_path / "bad.keras").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(CheckpointError, match="damaged"):
        tfprune.Pruning(tmp_path / "bad.keras", output_dir=tmp_path)
    whole = tmp_path / "whole.keras"
    network().save(whole)
    (tmp_path / "half.keras").write_bytes(whole.read_bytes()[:-3000])
    with pytest.raises(CheckpointError, match="damaged"):
        tfprune.Pruning(tmp_path / "half.keras", output_dir=tmp_path)
    (tmp_path / "bad.h5").write_bytes(b"")
    with pytest.raises(CheckpointError, match="neither"):
        tfprune.Pruning(tmp_path / "bad.h5", output_dir=tmp_path)
    with pytest.raises(CheckpointError, match="needs a model"):
        tfprune.Pruning(output_dir=tmp_path)


def test_retrained_checkpoint_of_another_model(pruning, tmp_path):
    with pytest.raises(CheckpointError, match="holds no"):
        pruning.get_retrained_ckpt(tmp_path)
    keras.Sequential([keras.Input((4,)), layers.Dense(2)]).save(tmp_path / "other.keras")
    with pytest.raises(CheckpointError, match="other weights"):
        pruning.get_retrained_ckpt(tmp_path)


def test_bad_arguments(pruning, tmp_path):
    with pytest.raises(PlanError, match="set a threshold first"):
        pruning.get_pruning_filters()
    with pytest.raises(PlanError, match="choose filters first"):
        pruning.get_pruning_ckpt()
    with pytest.raises(PlanError, match="none were"):
        pruning.pruning_process(retrain=True)
    with pytest.raises(PlanError, match=r"\[0, 1\]"):
        pruning.set_threshold(80)
    with pytest.raises(PlanError, match=r"\[0, 1\]"):
        pruning.run(lambda model, directory: pytest.fail("trained before the ladder was checked"), [0.5, 1.5])
    with pytest.raises(PlanError, match="did you mean"):
        tfprune.Pruning(network(), ["blokc_"], tmp_path)
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(TfpruneError, match="cannot be written"):
        tfprune.Pruning(network(), output_dir=blocker / "below")


def test_an_interrupted_save_leaves_the_old_file(pruning, monkeypatch):
    pruning.set_threshold(0.5)
    path = pruning.pruning_process()
    before = path.read_bytes()

    def half(self, target, *args, **kwargs):
        target.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(type(pruning.model), "save", half)
    with pytest.raises(KeyboardInterrupt):
        pruning.get_pruning_ckpt()
    assert path.read_bytes() == before
    assert sorted(p.name for p in path.parent.iterdir()) == ["Pruned_Filters.txt", "model.keras"]
