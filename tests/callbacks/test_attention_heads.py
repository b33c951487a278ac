"""Heads and channels of MultiHeadAttention, and widths around it, as groups that go."""

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


_STREAM = ("embed", "attention", "down")


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


# --- channels -------------------------------------------------------------------------------------


def _width(criterion: str = "taylor") -> ec.ChannelPruning:
    budget = ec.Budget(macs=0.7)
    return ec.ChannelPruning(budget, criterion, list(_STREAM), {".*heads": 0}, end_epoch=1)


@pytest.mark.parametrize("callback", [
    _width(), _width("fisher"), _width("magnitude"), _width("weight-change"),
    ec.GroupLasso(1e-3, final_sparsity=0.5, layers=list(_STREAM), end_epoch=1),
    ec.GroupLasso(1e-3, final_sparsity=0.5, layers=list(_STREAM), method="proximal", end_epoch=1),
], ids=["taylor", "fisher", "magnitude", "weight-change", "lasso", "proximal"])  # fmt: skip
@pytest.mark.parametrize("use_bias", [True, False])
def test_what_is_added_to_attention_gets_narrower_with_it(callback: Any, use_bias: bool) -> None:
    model = _encoder(use_bias)
    model.compile(keras.optimizers.SGD(0.01), "mse")
    model.fit(_X, _Y, epochs=3, verbose=0, callbacks=[callback])
    small = ec.finalize(model)
    removed = record_of(small).removed_channels
    widths = {removed[name] for name in _STREAM}
    assert len(widths) == 1 and widths != {(_WIDTH, _WIDTH)}
    assert small.get_layer("attention").output_dense.kernel.shape[-1] == widths.pop()[1]
    np.testing.assert_allclose(model(_X), small(_X), atol=1e-5)
    reloaded = keras.models.model_from_json(small.to_json())
    assert reloaded.count_params() == small.count_params() < model.count_params()


@pytest.mark.parametrize("layers", [["attention"], lambda layer: layer.name == "attention"])
def test_channels_stay_where_what_they_are_added_to_stays(layers: Any) -> None:
    model = _encoder()
    model.compile("sgd", "mse")
    model.fit(_X, _Y, verbose=0, callbacks=[ec.GroupLasso(1e-3, final_sparsity=0.5, layers=layers)])
    said = "group lasso skips attention: its channels are joined with those of embed, which is not"
    assert any(said in note for note in record_of(model).notes)
    assert record_of(ec.finalize(model)).removed_channels == {"attention:heads": (4, 2)}


def test_the_width_stays_where_nobody_asks_for_it() -> None:
    model = _encoder()
    model.compile("sgd", "mse")
    model.fit(_X, _Y, verbose=0, callbacks=[ec.GroupLasso(1e-3, final_sparsity=0.5)])
    said = "group lasso skips attention: before would pad its channels back with zeros"
    assert any(said in note for note in record_of(model).notes)
    assert set(record_of(ec.finalize(model)).removed_channels) == {"attention:heads", "up"}


@pytest.mark.parametrize("jit", [True, False])
def test_a_kernel_has_the_penalties_of_both_of_its_axes(jit: bool) -> None:
    """One update by SGD against the formula: the output kernel holds heads and channels."""
    rate, strength = 0.5, 0.01
    plain, penalized = _encoder(), _encoder()
    penalized.set_weights(plain.get_weights())
    attention = plain.get_layer("attention")
    heads = np.linalg.norm(np.concatenate(_kernels(attention), axis=1), axis=1)
    output = np.array(attention.output_dense.kernel)
    by_head = output / heads[:, None, None] * (3 * 8 * 2 + 2 * 8 * 2) ** 0.5
    by_channel = output / np.linalg.norm(output, axis=(0, 1)) * (_HEADS * 2) ** 0.5
    for model, callbacks in (
        (plain, []),
        (penalized, [ec.GroupLasso(strength, layers=["attention", *_STREAM])]),
    ):
        model.compile(keras.optimizers.SGD(rate), "mse", jit_compile=jit)
        model.fit(_X, _Y, batch_size=32, steps_per_epoch=1, verbose=0, callbacks=callbacks)
    found = [np.array(m.get_layer("attention").output_dense.kernel) for m in (plain, penalized)]
    expected = rate * strength * (by_head + by_channel)
    np.testing.assert_allclose(found[0] - found[1], expected, atol=1e-5)


def test_a_thinner_copy_is_thinner_beside_attention() -> None:
    model = _encoder()
    small = ec.thinner_copy(model, macs=0.4, seed=1)
    assert inspect_keras(small).macs <= 0.4 * inspect_keras(model).macs
    kernel = small.get_layer("attention").output_dense.kernel
    assert kernel.shape[0] < _HEADS and kernel.shape[-1] < _WIDTH


def test_heads_that_grow_back_are_named() -> None:
    model = _encoder()
    model.compile("sgd", "mse")
    model.fit(_X, _Y, verbose=0, callbacks=[ec.GroupLasso(1e-3, final_sparsity=0.5)])
    assert undone_zeros(model, record_of(model)) == ()
    kernel = model.get_layer("attention").value_dense.kernel
    kernel.assign(np.ones(kernel.shape))
    assert "of which" in undone_zeros(model, record_of(model))[0]
