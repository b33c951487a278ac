"""Copies to train from scratch: new weights, the same architecture or a thinner one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import edgecompress as ec
from edgecompress.core.errors import EdgeCompressError
from edgecompress.inspection.keras_models import inspect_keras

keras = pytest.importorskip("keras")

pytestmark = pytest.mark.slow
kl = keras.layers


def _model() -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((8, 8, 3))
    x = first = kl.Conv2D(16, 3, padding="same", activation="sigmoid")(x)
    x = kl.ReLU()(kl.BatchNormalization()(kl.Conv2D(16, 3, padding="same")(x)))
    x = kl.GlobalAveragePooling2D()(kl.Add()([x, first]))
    return keras.Model(inputs, kl.Dense(5)(kl.Dense(24, "relu")(x)))


def test_a_fresh_copy_has_new_weights() -> None:
    model = _model()
    before = [w.copy() for w in model.get_weights()]
    one, same, other = (ec.fresh_copy(model, seed) for seed in (1, 1, 2))
    for weights, again, different, old in zip(
        one.get_weights(), same.get_weights(), other.get_weights(), before, strict=True
    ):
        np.testing.assert_array_equal(weights, again)
        assert weights.shape == old.shape
        if old.ndim > 1:
            assert not np.allclose(weights, old) and not np.allclose(weights, different)
    for weights, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weights, old)


def test_a_thinner_copy_meets_the_cost() -> None:
    model, macs = _model(), 0.4
    thin = ec.thinner_copy(model, macs, seed=3)
    reached = inspect_keras(thin).macs / inspect_keras(model).macs
    assert 0.75 * macs < reached <= macs
    shares = [
        small.kernel.shape[-1] / large.kernel.shape[-1]
        for small, large in zip(thin.layers, model.layers, strict=True)
        if hasattr(large, "kernel")
    ]
    assert shares[-1] == 1 and max(shares[:-1]) - min(shares[:-1]) <= 1 / 16
    assert np.isfinite(thin(np.ones((1, 8, 8, 3)))).all()
    assert np.std(thin.layers[1].kernel) > 0.01


def test_layers_with_gates_or_normalized_channels_become_thinner_too() -> None:
    x = inputs = keras.Input((6, 8))
    x = keras.layers.Dense(12, activation="gelu", name="first")(x)
    x = keras.layers.LayerNormalization()(x)
    x = keras.layers.LSTM(12, name="units")(x)
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    small = ec.thinner_copy(model, macs=0.5, seed=1)
    assert inspect_keras(small).macs <= 0.5 * inspect_keras(model).macs
    assert small.get_layer("first").units == small.get_layer("units").units < 12


@pytest.mark.parametrize("macs", [0.0, 1.0, True, "half", float("nan")])
def test_a_cost_that_is_no_share_is_refused(macs: Any) -> None:
    with pytest.raises(EdgeCompressError, match="between 0 and 1"):
        ec.thinner_copy(_model(), macs)


def test_what_cannot_be_met_is_said() -> None:
    with pytest.raises(EdgeCompressError, match="thinnest copy") as error:
        ec.thinner_copy(_model(), 0.0001)
    assert "\n" not in str(error.value)


def test_hidden_graphs_are_refused() -> None:
    class Hidden(keras.Model):
        def call(self, x: Any) -> Any:
            return x

    for make in (ec.fresh_copy, lambda model: ec.thinner_copy(model, 0.5)):
        with pytest.raises(EdgeCompressError, match="Hidden"):
            make(Hidden())
