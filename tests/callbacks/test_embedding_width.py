"""The width of an Embedding as filters: it gets narrower, and scores are those of a Dense layer."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import edgecompress as ec
from edgecompress.core.record import record_of

_TOKENS, _WIDTH = 12, 8
_random = np.random.default_rng(0)
_X = _random.integers(1, _TOKENS, size=(64, 6))
_X[:, 4:] = 0
_Y = _random.normal(size=(64, 3)).astype("float32")


def _fitted(first: Any, inputs: Any, x: np.ndarray, callback: Any) -> Any:
    keras.utils.set_random_seed(1)
    body = layers.GRU(5, name="units")(first(inputs))
    model = keras.Model(inputs, layers.Dense(3, name="out")(body))
    table = np.random.default_rng(2).normal(size=(_TOKENS, _WIDTH)).astype("float32")
    first.weights[0].assign(table)
    model.compile(keras.optimizers.SGD(0.05), "mse")
    model.fit(x, _Y, batch_size=16, epochs=3, shuffle=False, verbose=0, callbacks=[callback])
    return model


def _callbacks() -> dict[str, Any]:
    budget = ec.Budget(parameters=0.7)
    names = ("taylor", "fisher:cost=false", "magnitude", "weight-change", "optimal-brain-damage")
    return {
        **{name: ec.ChannelPruning(budget, name, ["table"], end_epoch=1) for name in names},
        "lasso": ec.GroupLasso(1e-2, final_sparsity=0.5, layers=["table"], end_epoch=1),
        "proximal": ec.GroupLasso(
            0.2, final_sparsity=0.5, layers=["table"], method="proximal", end_epoch=1
        ),
    }


@pytest.mark.parametrize("name", _callbacks())
def test_a_table_is_pruned_as_a_dense_layer_of_one_hot_vectors(name: str) -> None:
    """Its gradient comes as the rows that were read; what a criterion sees is the whole table."""
    tokens = keras.Input((6,), dtype="int32")
    model = _fitted(layers.Embedding(_TOKENS, _WIDTH, name="table"), tokens, _X, _callbacks()[name])
    vectors = np.eye(_TOKENS, dtype="float32")[_X]
    dense = _fitted(
        layers.Dense(_WIDTH, use_bias=False, name="table"),
        keras.Input((6, _TOKENS)), vectors, _callbacks()[name],
    )  # fmt: skip
    found, expected = (np.array(m.get_layer("table").weights[0]) for m in (model, dense))
    np.testing.assert_array_equal((found == 0).all(axis=0), (expected == 0).all(axis=0))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    small = ec.finalize(model)
    before, after = record_of(small).removed_channels["table"]
    assert before == _WIDTH and 0 < after < _WIDTH
    assert small.get_layer("table").output_dim == after
    np.testing.assert_allclose(model(_X), small(_X), atol=1e-5)


def test_a_mask_goes_with_the_narrower_table() -> None:
    tokens = keras.Input((6,), dtype="int32")
    table = layers.Embedding(_TOKENS, _WIDTH, mask_zero=True, name="table")
    callback = ec.ChannelPruning(ec.Budget(parameters=0.6), end_epoch=1)
    model = _fitted(table, tokens, _X, callback)
    small = ec.finalize(model)
    assert {"table", "units"} <= set(record_of(small).removed_channels)
    np.testing.assert_allclose(model(_X), small(_X), atol=1e-5)
    # What stands where the mask is makes no difference to either.
    assert small.get_layer("table").mask_zero
    other = small(np.where(_X == 0, 1, _X))
    assert np.abs(np.array(other) - np.array(small(_X))).max() > 1e-4


def test_a_thinner_copy_has_a_thinner_table() -> None:
    tokens = keras.Input((6,), dtype="int32")
    x = layers.Embedding(_TOKENS, 16, name="table")(tokens)
    x = layers.LSTM(16, name="units")(x)
    model = keras.Model(tokens, layers.Dense(3, name="out")(x))
    small = ec.thinner_copy(model, macs=0.5, seed=1)
    assert 8 <= small.get_layer("table").output_dim == small.get_layer("units").units <= 13
