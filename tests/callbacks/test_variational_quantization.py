"""Variational quantization: gradients by differences, levels that are deployed, their file."""

from __future__ import annotations

import re
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as kl
from keras import ops

from edgecompress.callbacks.variational_quantization import VariationalQuantization
from edgecompress.core.errors import ArgumentError
from edgecompress.core.record import record_of
from edgecompress.variational import spikes

_RNG = np.random.default_rng(0)
X = _RNG.normal(size=(64, 12)).astype("f4")
Y = np.tanh(X[:, :4] @ _RNG.normal(size=(4, 5))).astype("f4")


def _model(rate: float = 0.05) -> keras.Model:
    keras.utils.set_random_seed(2)
    model = keras.Sequential([keras.Input((12,)), kl.Dense(5, name="only")])
    model.compile(keras.optimizers.SGD(rate), "mse")
    return model


def _fit(model: keras.Model, *callbacks: Any, **options: Any) -> dict[str, Any]:
    given = {"batch_size": 16, "shuffle": False, "verbose": 0} | options
    return model.fit(X, Y, callbacks=list(callbacks), **given).history


class _Still(VariationalQuantization):
    """Draws no noise."""

    def noise(self, shape: Any, dtype: Any) -> Any:
        return ops.zeros(shape, dtype)


def test_a_step_follows_the_loss_and_the_divergence() -> None:
    """By differences: without noise, only the divergence moves variances and levels."""
    model, rate, strength = _model(), 0.05, 20.0
    mean, bias = (np.array(w, np.float64) for w in model.get_weights())
    logs, level = np.full(mean.shape, -6.0), np.log(0.3)

    def nats(mean: Any, logs: Any, level: Any) -> Any:
        tensors = (ops.convert_to_tensor(np.float64(x)) for x in (mean, logs, np.exp(level)))
        mean, logs, level = tensors
        width = spikes.WIDTH * 0.3
        total, rest = 0.0, 1.0
        for center in (level, -level):
            # The width has no gradient.
            window = np.exp(-0.5 * (np.array(mean - center) / width) ** 2)
            total = total + window * np.array(spikes._around(mean - center, logs))
            rest = rest - window
        return total + rest * np.array(spikes._around(mean, logs))

    found, small = nats(mean, logs, level), 1e-5
    slopes = [
        (nats(mean + small, logs, level) - nats(mean - small, logs, level)) / (2 * small),
        (nats(mean, logs + small, level) - nats(mean, logs - small, level)) / (2 * small),
        (nats(mean, logs, level + small) - nats(mean, logs, level - small)) / (2 * small),
    ]
    error = X @ mean + bias - Y
    weight = strength / 64
    quantization = _Still(
        64, strength=strength, initial_log_variance=-6.0, initial_level=0.3, threshold=9.0
    )
    history = _fit(model, quantization, batch_size=64)
    parts = model._edgecompress_posterior["variational_quantization"]["only"]
    assert history["loss"][0] == pytest.approx((error**2).mean() + weight * found.sum(), rel=1e-4)
    above = 2 * X.T @ error / error.size
    wanted = {
        "mean": mean - rate * (above + weight * slopes[0]),
        "log_variance": logs - rate * weight * slopes[1],
        "log_level": level - rate * weight * slopes[2].sum(),
    }
    assert abs(wanted["log_level"] - level) > 0.01
    for name, want in wanted.items():
        np.testing.assert_allclose(parts[name], want, rtol=2e-3, atol=1e-4, err_msg=name)
    deployed = np.array(model.get_layer("only").kernel)
    levels = np.array([-1, 0, 1]) * np.exp(parts["log_level"])
    nearest = levels[np.abs(parts["mean"][..., None] - levels).argmin(-1)]
    np.testing.assert_allclose(deployed, nearest, rtol=1e-5)


def test_weights_gather_at_three_levels_and_take_them() -> None:
    model = _model()
    model.compile(keras.optimizers.Adam(0.01), "mse")
    _fit(model, epochs=10)
    before = model.evaluate(X, Y, verbose=0)
    quantization = VariationalQuantization(
        64, warm_up_epochs=15, rate=2.0, initial_log_variance=-8.0
    )
    history = _fit(model, quantization, epochs=60, validation_data=(X, Y))
    kernel = np.array(model.get_layer("only").kernel)
    level = float(kernel.max())
    np.testing.assert_allclose(np.unique(kernel), [-level, 0, level])
    assert history["quantization_distance"][-1] < 0.5 * history["quantization_distance"][0]
    assert model.evaluate(X, Y, verbose=0) == pytest.approx(history["val_loss"][-1], rel=1e-4)
    assert history["val_loss"][-1] < before + 0.2
    (step,) = record_of(model).steps
    assert step["levels"] == {"only": pytest.approx(level)}
    assert step["sparsity"] == history["posterior_sparsity"][-1] == np.mean(kernel == 0)


def test_noise_prunes_and_the_level_starts_as_that_of_ternary_weight_networks() -> None:
    model = _model(0.0)
    kernel = np.array(model.get_layer("only").kernel)
    magnitudes = np.abs(kernel)
    want = magnitudes[magnitudes > 0.7 * magnitudes.mean()].mean()
    quantization = VariationalQuantization(64, initial_log_variance=np.log(0.09).item() + 2)
    _fit(model, quantization)
    pruned = magnitudes**2 < 0.09
    found = np.array(model.get_layer("only").kernel)
    assert found.max() == pytest.approx(want, rel=1e-5)
    np.testing.assert_array_equal(found[pruned], 0)
    assert (found[~pruned & (magnitudes > want / 2)] != 0).all()
    assert (pruned & (magnitudes > want / 2)).any()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"initial_level": 0.0}, "`initial_level` must be a number greater than 0. Got 0.0."),
        ({"threshold": None}, "`threshold` must be a finite number. Got None."),
    ],
)
def test_mistakes_are_named(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(text)):
        VariationalQuantization(64, **arguments)
