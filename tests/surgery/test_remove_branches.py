"""Branches of sums that hold a constant: which go, what becomes of the constant, what stays."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgecompress as ec
from edgecompress.converters import float32, int8
from edgecompress.converters.real_values import dequantize, quantized_inputs
from edgecompress.core.record import CompressionRecord, attach_record, record_of
from edgecompress.engines.run import run_engine
from edgecompress.surgery.remove_branches import RemoveBranches

keras = pytest.importorskip("keras")
kl = keras.layers

pytestmark = pytest.mark.slow

_X = np.random.default_rng(3).normal(size=(4, 8, 8, 3)).astype("f4")


def _random(model: Any, zero: tuple[str, ...] = ()) -> Any:
    """Draws all weights, statistics of BatchNormalization among them; some kernels are zero."""
    random = np.random.default_rng(1)
    for weight in model.weights:
        low, high = (0.5, 1.5) if "variance" in weight.path else (-0.6, 0.6)
        weight.assign(random.uniform(low, high, weight.shape))
    for name in zero:
        kernel = model.get_layer(name).kernel
        kernel.assign(np.zeros(kernel.shape))
    return model


def _conv_bn(x: Any, filters: int, size: int, name: str, stride: int = 1) -> Any:
    x = kl.Conv2D(filters, size, stride, padding="same", use_bias=False, name=name)(x)
    return kl.BatchNormalization(name=f"{name}_bn")(x)


def _block(x: Any, filters: int, name: str, project: bool = False) -> Any:
    stride = 2 if project else 1
    branch = kl.ReLU(name=f"{name}_relu")(_conv_bn(x, filters, 3, f"{name}1", stride))
    branch = _conv_bn(branch, filters, 3, f"{name}2")
    short = _conv_bn(x, filters, 1, f"{name}_short", stride) if project else x
    return kl.ReLU(name=f"{name}_out")(kl.Add(name=f"{name}_add")([short, branch]))


def _resnet(*zero: str) -> Any:
    inputs = keras.Input((8, 8, 3))
    x = kl.ReLU()(_conv_bn(inputs, 8, 3, "stem"))
    x = _block(x, 8, "a")
    x = _block(x, 12, "b", project=True)
    x = _block(x, 12, "c")
    outputs = kl.Dense(5, name="head")(kl.GlobalAveragePooling2D()(x))
    return _random(keras.Model(inputs, outputs), zero)


def _apart(one: Any, other: Any, x: Any = _X) -> float:
    first, second = (np.asarray(model(x), "f8") for model in (one, other))
    return float(np.abs(first - second).max() / np.abs(first).max())


def _names(model: Any) -> set[str]:
    return {layer.name for layer in model.layers}


def _behind(model: Any, name: str) -> np.ndarray:
    """What a BatchNormalization makes of 0, in plain numpy."""
    layer = model.get_layer(name)
    gamma, beta, mean, variance = (np.asarray(w, "f8") for w in layer.get_weights())
    return beta - gamma * mean / np.sqrt(variance + layer.epsilon)


# --- A residual network -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cut() -> tuple[Any, Any]:
    model = _resnet("a2", "b2")
    return model, ec.finalize(model)


def test_the_branch_goes_and_the_outputs_stay(cut: tuple[Any, Any]) -> None:
    model, small = cut
    gone = {"a1", "a1_bn", "a_relu", "a2", "a2_bn", "b1", "b1_bn", "b_relu", "b2", "b2_bn"}
    assert _names(model) - _names(small) == {*gone, "b_add"}
    assert _apart(model, small) <= 1e-5
    step = record_of(small).steps[0]
    assert step["technique"] == "remove-branches" and step["branches"] == ["a_add", "b_add"]
    assert set(step["removed_layers"]) == {*gone, "b_add"}


def test_the_constant_moves_into_the_layer_before_or_a_layer_of_its_own(
    cut: tuple[Any, Any],
) -> None:
    model, small = cut
    # Nothing else reads the projection, so that its beta takes the constant over.
    moved = np.subtract(*(np.array(m.get_layer("b_short_bn").beta) for m in (small, model)))
    np.testing.assert_allclose(moved, _behind(model, "b2_bn"), atol=1e-6)
    # The ReLU before the other block cannot.
    adding = small.get_layer("a_add")
    assert isinstance(adding, kl.BatchNormalization) and not adding.trainable
    np.testing.assert_allclose(adding.beta, _behind(model, "a2_bn"), atol=1e-6)
    notes = record_of(small).notes
    assert any("a_add: its branch was the same for any input" in note for note in notes)
    assert not any("b_add" in note for note in notes)


def test_the_frozen_layer_adds_the_same_in_training(cut: tuple[Any, Any]) -> None:
    adding = cut[1].get_layer("a_add")
    x = np.random.default_rng(0).normal(3.0, 2.0, (2, 4, 4, 8)).astype("f4")
    np.testing.assert_allclose(adding(x, training=True), x + np.array(adding.beta), atol=1e-6)


def test_a_branch_with_one_weight_stays() -> None:
    model = _resnet("a2")
    kernel = np.zeros((3, 3, 8, 8), "f4")
    kernel[1, 1, 0, 0] = 1e-3
    model.get_layer("a2").kernel.assign(kernel)
    small = ec.finalize(model)
    assert _names(small) == _names(model) and RemoveBranches().apply(model).model is model


def test_a_branch_of_zeros_leaves_nothing_behind() -> None:
    model = _resnet("c2")
    norm = model.get_layer("c2_bn")
    norm.set_weights([np.zeros(12), np.zeros(12), np.ones(12), np.ones(12)])
    norm.gamma.assign(np.ones(12))
    norm.moving_mean.assign(np.zeros(12))
    small = ec.finalize(model)
    assert "c_add" not in _names(small) and not {"c1", "c2"} & _names(small)
    assert _apart(model, small) <= 1e-5 and small.count_params() < model.count_params()


def test_a_constant_that_a_padded_layer_reads_stays() -> None:
    """At the border of c2, its input is not the constant but 0."""
    model = _resnet("c1")
    model.get_layer("c1_bn").beta.assign(np.full(12, 3.0))
    small = ec.finalize(model)
    assert "c2" in _names(small) and _apart(model, small) <= 1e-5
    assert any("c1: " in n and "border is padded with zeros" in n for n in record_of(small).notes)


# --- Other graphs -------------------------------------------------------------------------------


def test_the_constant_goes_through_activations_and_layers() -> None:
    inputs = keras.Input((6,))
    x = kl.Dense(5, "relu", name="stem")(inputs)
    branch = kl.BatchNormalization(name="norm")(kl.Dense(7, name="first")(x))
    branch = kl.Dense(5, "tanh", name="second")(kl.ReLU()(branch))
    model = keras.Model(inputs, kl.Dense(2)(kl.Add(name="sum")([x, branch])))
    _random(model, ("first",))
    norm, second = model.get_layer("norm"), model.get_layer("second")
    gamma, beta, mean, variance = (np.asarray(w, "f8") for w in norm.get_weights())
    bias = np.asarray(model.get_layer("first").bias, "f8")
    inner = np.maximum(gamma * (bias - mean) / np.sqrt(variance + norm.epsilon) + beta, 0)
    expected = np.tanh(inner @ np.asarray(second.kernel, "f8") + np.asarray(second.bias, "f8"))
    small = ec.finalize(model)
    np.testing.assert_allclose(small.get_layer("sum").beta, expected, atol=1e-6)
    assert (inner > 0).any() and (inner == 0).any()
    assert _apart(model, small, _X[:, :2, :3, 0].reshape(4, 6)) <= 1e-5


def test_a_layer_that_is_read_elsewhere_does_not_take_the_constant() -> None:
    inputs = keras.Input((4,))
    x = kl.Dense(4, name="stem")(inputs)
    total = kl.Add(name="sum")([x, kl.Dense(4, name="branch")(inputs)])
    model = _random(keras.Model(inputs, kl.Concatenate()([total, x])), ("branch",))
    small = RemoveBranches().apply(model).model
    assert isinstance(small.get_layer("sum"), kl.BatchNormalization)
    x = _X[0, :, :4, 0]
    np.testing.assert_allclose(small(x), model(x), rtol=1e-5, atol=1e-6)


def _nested(sequential: bool) -> Any:
    inner = keras.Input((4,))
    branch = kl.Dense(4, name="second")(kl.Dense(6, "relu", name="first")(inner))
    block = keras.Model(inner, kl.Add(name="sum")([inner, branch]), name="block")
    block.get_layer("second").kernel.assign(np.zeros((6, 4)))
    if sequential:
        return keras.Sequential(
            [keras.Input((3,)), kl.Dense(4), block, kl.ReLU(), kl.Dense(2)], name="outer"
        )
    inputs = keras.Input((3,), name="given")
    x = kl.Dense(4)(inputs)
    return keras.Model({"given": inputs}, {"made": kl.Dense(2)(block(block(x)))}, name="outer")


@pytest.mark.parametrize("sequential", [True, False])
def test_nested_models(sequential: bool) -> None:
    keras.utils.set_random_seed(2)
    model = _nested(sequential)
    model.get_layer("block").get_layer("second").bias.assign([1.0, -2.0, 0.0, 3.0])
    model.get_layer("block").trainable = False
    small = ec.finalize(model)
    assert type(small) is type(model) and small.name == "outer"
    block = small.get_layer("block")
    assert _names(block) & {"first", "second"} == set() and not block.trainable
    assert small.layers[0].trainable or not sequential
    x = _X[0, :, 0]
    given = x if sequential else {"given": x}
    one, other = (np.array(y if sequential else y["made"]) for y in (model(given), small(given)))
    np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5)


def test_a_sum_of_three_keeps_the_others_and_an_output_its_name() -> None:
    inputs = keras.Input((4,))
    parts = [kl.Dense(4, "relu", name=name)(inputs) for name in ("a", "b", "c")]
    outputs = [kl.Add(name="all")(parts), kl.Add(name="one")([inputs, parts[1]])]
    model = _random(keras.Model(inputs, outputs), ("b",))
    model.get_layer("b").bias.assign(np.array([-1.0, 0.0, 2.0, 0.0]))
    small = ec.finalize(model)
    assert small.output_names == model.output_names == ["all", "one"]
    x = _X[0, :, :4, 0]
    for one, other in zip(model(x), small(x), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)
    assert "b" not in _names(small)


def test_a_sum_that_is_constant_as_a_whole_is_named() -> None:
    inputs = keras.Input((4,))
    parts = [kl.Dense(4, name=name)(inputs) for name in ("a", "b")]
    model = keras.Model(inputs, kl.Concatenate()([kl.Add(name="sum")(parts), inputs]))
    small = ec.finalize(_random(model, ("a", "b")))
    assert any("'sum' (Add), which is a constant as a whole" in n for n in record_of(small).notes)


def test_learnt_ranges_keep_the_constant_where_it_was() -> None:
    """A projection that took it over would leave the range that was learnt for it."""
    model = _resnet("b2")
    record = CompressionRecord(ranges={"b_short_bn": (-1.0, 1.0)})
    attach_record(model, dataclasses.replace(record))
    small = ec.finalize(model)
    assert isinstance(small.get_layer("b_add"), kl.BatchNormalization)
    old, new = (np.array(m.get_layer("b_short_bn").beta) for m in (model, small))
    np.testing.assert_array_equal(new, old)


# --- To the file --------------------------------------------------------------------------------


def test_from_a_file_to_an_int8_file(cut: tuple[Any, Any], tmp_path: Path) -> None:
    model = cut[0]
    model.save(tmp_path / "model.keras")
    small = ec.finalize(keras.models.load_model(tmp_path / "model.keras"))
    small.save(tmp_path / "small.keras")
    again = keras.models.load_model(tmp_path / "small.keras")
    assert _apart(model, again) <= 1e-5
    x = np.random.default_rng(0).normal(size=(32, 8, 8, 3)).astype("f4")
    file = int8.strip_names(int8.convert(float32.convert(again), calibration=[x]))
    codes = run_engine("litert", file.data, quantized_inputs(file.flat, [x])).outputs[0]
    found = dequantize(codes, file.flat.tensors[file.flat.outputs[0]])
    expected = np.array(model(x))
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.99
    assert np.abs(found - expected).max() <= 0.1 * np.abs(expected).max()


def test_a_sum_that_is_an_output_keeps_its_name() -> None:
    inputs = keras.Input((4,))
    branch = kl.Dense(4, name="dead", use_bias=False)(inputs)
    model = keras.Model(inputs, kl.Add(name="sum")([kl.Dense(4, name="live")(inputs), branch]))
    model.get_layer("dead").kernel.assign(np.zeros((4, 4)))
    result = RemoveBranches().apply(model).model
    assert result.output_names == ["sum"]
    assert "dead" not in _names(result)
    x = _X.reshape(-1, 4)
    np.testing.assert_allclose(np.asarray(result(x)), np.asarray(model(x)), atol=1e-6)
