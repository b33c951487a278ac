"""Heads of MultiHeadAttention, and the width of the layers behind it, as groups that go."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import edgecompress as ec
from edgecompress.callbacks.lasso_groups import FilterGroups
from edgecompress.core.record import record_of
from edgecompress.criteria.magnitude import Magnitude
from edgecompress.inspection import inspect_keras
from edgecompress.surgery.undone import undone_zeros
from edgecompress.surgery.zero_filters import zero_filters

_HEADS, _WIDTH = 4, 8
_random = np.random.default_rng(0)
_X = _random.normal(size=(32, 5, 3)).astype("float32")
_Y = _random.normal(size=(32, 2)).astype("float32")


def _encoder(use_bias: bool = True) -> Any:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((5, 3))
    x = layers.Dense(_WIDTH, name="embed")(inputs)
    y = layers.LayerNormalization(name="before")(x)
    y = layers.MultiHeadAttention(_HEADS, 3, value_dim=2, use_bias=use_bias, name="attention")(y, y)
    x = layers.Add()([x, y])
    y = layers.LayerNormalization(name="after")(x)
    y = layers.Dense(16, "gelu", name="up")(y)
    x = layers.Add()([x, layers.Dense(_WIDTH, name="down")(y)])
    x = layers.GlobalAveragePooling1D()(x)
    model = keras.Model(inputs, layers.Dense(2, name="classes")(x))
    for variable in model.trainable_variables:
        variable.assign(_random.normal(scale=0.5, size=variable.shape))
    return model


def _kernels(attention: Any) -> list[np.ndarray]:
    """Returns the weights of each head, (heads, weights), kernel by kernel."""
    found = []
    for name, axis in (("query", 1), ("key", 1), ("value", 1), ("output", 0)):
        kernel = np.array(getattr(attention, f"{name}_dense").kernel)
        found.append(np.moveaxis(kernel, axis, 0).reshape(_HEADS, -1))
    return found


def test_norms_and_penalty_of_heads_are_those_of_all_four_kernels() -> None:
    model = _encoder()
    groups = FilterGroups(model, ["attention"], Magnitude(), print)
    weights = np.concatenate(_kernels(model.get_layer("attention")), axis=1)
    norms = np.linalg.norm(weights, axis=1)
    assert groups.paths == ["attention:heads"]
    np.testing.assert_allclose(groups.found.scores(None)["attention:heads"], norms, rtol=1e-6)
    (penalized,) = groups.penalized
    assert penalized.size == weights.shape[1] == 3 * 8 * 2 + 2 * 8 * 2
    expected = 0.1 * penalized.size**0.5 * norms.sum()
    np.testing.assert_allclose(float(penalized.penalty(0.1)), expected, rtol=1e-6)


@pytest.mark.parametrize("use_bias", [True, False])
def test_silenced_heads_and_units_are_gone_and_nothing_changes(use_bias: bool) -> None:
    model = _encoder(use_bias)
    heads, units = np.arange(_HEADS) % 2 == 1, np.arange(16) < 9
    done = zero_filters(model, {"attention:heads": heads, "up": units})
    np.testing.assert_array_equal(done.filters["attention:heads"], heads)
    for weights in _kernels(model.get_layer("attention")):
        np.testing.assert_array_equal(~weights.any(axis=1), heads)
    small = ec.finalize(model)
    removed = record_of(small).removed_channels
    assert removed == {"attention:heads": (4, 2), "up": (16, 7)}
    attention = small.get_layer("attention")
    assert attention.query_dense.kernel.shape == (_WIDTH, 2, 3)
    np.testing.assert_allclose(model(_X), small(_X), atol=1e-5)


@pytest.fixture(scope="module")
def pruned() -> dict[str, Any]:
    """Models after each way of training, with the weights as zeros and finalized."""
    ways = {
        "lasso": ec.GroupLasso(1e-3, final_sparsity=0.5, layers=["attention", "up"], end_epoch=1),
        "budget": ec.ChannelPruning(
            ec.Budget(macs=0.7), "taylor", ["attention", "up"], per_layer={"attention:heads": 0.5},
            end_epoch=1, multiple=8,
        ),
        "proximal": ec.GroupLasso(5.0, layers=["attention"], method="proximal"),
    }  # fmt: skip
    found = {}
    for name, callback in ways.items():
        model = _encoder()
        # Heads 1 and 3 are weak.
        for part in ("query", "key", "value", "output"):
            kernel = getattr(model.get_layer("attention"), f"{part}_dense").kernel
            value = np.array(kernel)
            value[(slice(None), [1, 3]) if part != "output" else [1, 3]] *= 0.05
            kernel.assign(value)
        model.compile(keras.optimizers.SGD(0.01), "mse")
        model.fit(_X, _Y, epochs=3, verbose=0, shuffle=False, callbacks=[callback])
        found[name] = (model, ec.finalize(model))
    return found


@pytest.mark.parametrize("way", ["lasso", "budget", "proximal"])
def test_trained_heads_go(pruned: dict[str, Any], way: str) -> None:
    model, small = pruned[way]
    assert record_of(small).removed_channels["attention:heads"] == (4, 2)
    gone = [~weights.any(axis=1) for weights in _kernels(model.get_layer("attention"))]
    np.testing.assert_array_equal(gone, [[False, True, False, True]] * 4)
    np.testing.assert_allclose(model(_X), small(_X), atol=1e-5)


def test_a_budget_of_operations_is_met(pruned: dict[str, Any]) -> None:
    model, small = pruned["budget"]
    assert inspect_keras(small).macs <= 0.7 * inspect_keras(model).macs


def test_a_protected_attention_keeps_its_heads() -> None:
    model = _encoder()
    model.compile("sgd", "mse")
    pruning = ec.ChannelPruning(
        ec.Budget(macs=0.9), "magnitude", ["attention", "up"], per_layer={"attention:heads": 0},
    )  # fmt: skip
    model.fit(_X, _Y, verbose=0, callbacks=[pruning])
    assert list(record_of(ec.finalize(model)).removed_channels) == ["up"]


def test_criteria_of_output_channels_leave_heads_out_by_name() -> None:
    model = _encoder()
    model.compile("sgd", "mse")
    lasso = ec.GroupLasso(1e-3, final_sparsity=0.5, criterion="fisher")
    model.fit(_X, _Y, verbose=0, callbacks=[lasso])
    said = "attention:heads: macs belong to output channels, not to heads"
    assert any(said in note for note in record_of(model).notes)


def test_heads_that_grow_back_are_named() -> None:
    model = _encoder()
    model.compile("sgd", "mse")
    model.fit(_X, _Y, verbose=0, callbacks=[ec.GroupLasso(1e-3, final_sparsity=0.5)])
    assert undone_zeros(model, record_of(model)) == ()
    kernel = model.get_layer("attention").value_dense.kernel
    kernel.assign(np.ones(kernel.shape))
    assert "of which" in undone_zeros(model, record_of(model))[0]
