"""Sparsity by layer: tables of shares, protected layers."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import edgecompress as ec
from edgecompress.core.errors import ArgumentError
from edgecompress.core.record import record_of

keras = pytest.importorskip("keras")

_X = np.random.default_rng(0).normal(size=(64, 10)).astype("f4")
_Y = np.random.default_rng(1).normal(size=(64, 10)).astype("f4")


def _model() -> keras.Model:
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(10, name=name) for name in ("stem", "mid_1", "mid_2", "a", "b")]
    layers[-1].kernel_initializer = keras.initializers.RandomNormal(stddev=0.01)
    model = keras.Sequential([keras.Input((10,)), *layers])
    model.compile(keras.optimizers.SGD(1e-6), "mse")
    return model


def _fit(model: keras.Model, pruning: ec.Pruning, epochs: int = 2) -> dict[str, float]:
    model.fit(_X, _Y, batch_size=8, epochs=epochs, verbose=0, callbacks=[pruning])
    return {layer.name: float(np.mean(layer.kernel.numpy() == 0)) for layer in model.layers}


def test_layers_reach_their_own_shares() -> None:
    """The others are compared with each other alone; a second fit begins without a warning."""
    model = _model()
    shares = {"stem": 0, "mid_.": 0.9, "mid_2": 0.1}
    schedule = ec.PolynomialDecay(0.6, 0, 16, frequency=8)
    pruning = ec.Pruning(schedule, scope="global", per_layer=shares)
    found = _fit(model, pruning)
    assert (found["stem"], found["mid_1"], found["mid_2"]) == pytest.approx((0, 0.9, 0.9))
    assert found["b"] > 0.95 and (found["a"] + found["b"]) / 2 == pytest.approx(0.6, abs=0.01)
    assert record_of(model).steps[0]["per_layer"] == {"stem": 0.0, "mid_.": 0.9, "mid_2": 0.1}
    assert not any("below the schedule" in note for note in pruning.notes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = ec.Pruning(
            ec.ConstantSparsity(0.6, begin_step=1, frequency=1),
            layers=["stem", "a"], per_layer={"stem": 0.0},
        )  # fmt: skip
        assert _fit(model, again, 1)["stem"] == 0


def test_all_layers_may_be_in_the_table() -> None:
    pruning = ec.MagnitudePruning(ec.OneShotSparsity(0.5, 2), scope="global", per_layer={".*": 0.3})
    assert all(share == pytest.approx(0.3) for share in _fit(_model(), pruning, 1).values())


@pytest.mark.parametrize(
    "shares, rule",
    [
        ({"(": 0.5}, "valid regular expressions"),
        ({"a": 1.0}, "below 1"),
        ({"a": True}, "shares"),
        ({"a": float("nan")}, "shares"),
        (["a"], "map names"),
        ({"a": 0.8}, "at most 0.5"),
    ],
)
def test_a_broken_table_is_refused(shares: Any, rule: str) -> None:
    with pytest.raises(ArgumentError, match=rule) as error:
        ec.Pruning(ec.ConstantSparsity(0.5), pattern="n-of-m", per_layer=shares)
    assert "per_layer" in str(error.value) and "\n" not in str(error.value)


def test_a_name_that_matches_nothing_is_refused() -> None:
    pruning = ec.Pruning(ec.ConstantSparsity(0.5, 1), per_layer={"mid": 0.3})
    with pytest.raises(ArgumentError, match="whole name of a pruned layer .*mid_1"):
        _fit(_model(), pruning, 1)


def test_nothing_is_in_proportion_to_zero() -> None:
    with pytest.raises(ArgumentError, match="ends at a sparsity of 0"):
        ec.Pruning(ec.ConstantSparsity(0.0), per_layer={"mid": 0.3})
