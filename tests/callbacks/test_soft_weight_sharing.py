"""Soft weight sharing: gradients by differences, values that are deployed."""

from __future__ import annotations

import re
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as kl
from scipy.stats import norm

from edgecompress.callbacks.soft_weight_sharing import SoftWeightSharing
from edgecompress.core.errors import ArgumentError
from edgecompress.core.record import record_of
from edgecompress.variational.gaussian_mixture import SHAPE, ZERO_SHAPE

_RNG = np.random.default_rng(0)
X = _RNG.normal(size=(64, 12)).astype("f4")
Y = np.tanh(X[:, :4] @ _RNG.normal(size=(4, 5))).astype("f4")


def _model(rate: float = 1e-3) -> keras.Model:
    keras.utils.set_random_seed(2)
    model = keras.Sequential([keras.Input((12,)), kl.Dense(5, name="only")])
    model.compile(keras.optimizers.SGD(rate), "mse")
    return model


def _fit(model: keras.Model, *callbacks: Any, **options: Any) -> dict[str, Any]:
    given = {"batch_size": 16, "shuffle": False, "verbose": 0} | options
    return model.fit(X, Y, callbacks=list(callbacks), **given).history


def _start(kernel: np.ndarray, clusters: int) -> dict[str, np.ndarray]:
    ends = np.linspace(kernel.min(), kernel.max(), clusters + 1)
    return {
        "mean": kernel,
        "means": (ends[1:] + ends[:-1]) / 2,
        "log_variances": np.full(clusters + 1, 2 * np.log((ends[1] - ends[0]) / 4)),
        "logits": np.zeros(clusters),
    }


def _nats(values: dict[str, np.ndarray], share: float, width: float) -> float:
    others = (1 - share) * np.exp(values["logits"]) / np.exp(values["logits"]).sum()
    variances = np.exp(values["log_variances"])
    parts = zip([share, *others], [0, *values["means"]], np.sqrt(variances), strict=True)
    data = sum(s * norm.pdf(values["mean"], m, d) for s, m, d in parts)
    shapes = np.array([ZERO_SHAPE, *[SHAPE] * len(others)])
    prior = (1 - shapes) * values["log_variances"] - shapes * width**2 / variances
    return float(-np.log(data).sum() - prior.sum())


def _slope(values: dict[str, np.ndarray], name: str, share: float, width: float) -> np.ndarray:
    found = np.zeros_like(values[name])
    for place in np.ndindex(*found.shape):
        ends = []
        for step in (1e-5, -1e-5):
            moved = values[name].copy()
            moved[place] += step
            ends.append(_nats({**values, name: moved}, share, width))
        found[place] = (ends[0] - ends[1]) / 2e-5
    return found


def test_a_step_follows_the_loss_and_the_mixture() -> None:
    model, rate, faster, strength = _model(), 1e-3, 0.1, 0.05
    mean, bias = (np.array(w, np.float64) for w in model.get_weights())
    values = _start(mean, 3)
    width = float(np.exp(values["log_variances"][0] / 2))
    weight = strength / 64
    error = X @ mean + bias - Y
    loss = (error**2).mean() + weight * _nats(values, 0.6, width)
    wanted = {
        name: values[name] - faster * rate * weight * _slope(values, name, 0.6, width)
        for name in ("means", "log_variances", "logits")
    }
    slope = 2 * X.T @ error / error.size + weight * _slope(values, "mean", 0.6, width)
    wanted["mean"] = mean - rate * slope
    sharing = SoftWeightSharing(64, 3, zero_share=0.6, strength=strength, rate=faster)
    history = _fit(model, sharing, batch_size=64)
    assert history["loss"][0] == pytest.approx(loss, rel=1e-4)
    parts = model._edgecompress_posterior["soft_weight_sharing"]["only"]
    for name, want in wanted.items():
        np.testing.assert_allclose(parts[name], want, rtol=1e-4, atol=1e-5, err_msg=name)
        moved, old = parts[name] - values[name], want - values[name]
        np.testing.assert_allclose(moved, old, rtol=0.05, atol=2e-6, err_msg=name)


def test_weights_gather_at_few_values_and_take_them() -> None:
    model = _model()
    model.compile(keras.optimizers.Adam(0.01), "mse")
    _fit(model, epochs=20)
    before = model.evaluate(X, Y, verbose=0)
    sharing = SoftWeightSharing(64, 4, zero_share=0.5, strength=0.01)
    history = _fit(model, sharing, epochs=60, validation_data=(X, Y))
    kernel = np.array(model.get_layer("only").kernel)
    parts = model._edgecompress_posterior["soft_weight_sharing"]["only"]
    values = [0.0, *parts["means"]]
    variances = np.exp(parts["log_variances"])
    others = 0.5 * np.exp(parts["logits"]) / np.exp(parts["logits"]).sum()
    densities = [
        share * norm.pdf(parts["mean"], value, np.sqrt(variance))
        for share, value, variance in zip([0.5, *others], values, variances, strict=True)
    ]
    np.testing.assert_allclose(kernel, np.array(values)[np.argmax(densities, 0)], rtol=1e-5)
    (step,) = record_of(model).steps
    book = step["codebooks"]["only"]
    assert 1 < len(book) == history["clusters"][-1] <= 4
    assert set(np.unique(kernel)) <= {0.0, *np.float32(book)}
    assert step["sparsity"] == np.mean(kernel == 0) > 0
    assert np.abs(parts["mean"] - kernel).max() < 0.25
    assert model.evaluate(X, Y, verbose=0) == pytest.approx(history["val_loss"][-1], rel=1e-4)
    assert history["val_loss"][-1] < before + 0.2


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"clusters": 0}, "`clusters` must be a whole number, 1 or more. Got 0."),
        ({"clusters": 4.0}, "`clusters` must be a whole number, 1 or more. Got 4.0."),
        ({"zero_share": 1}, "`zero_share` must lie between 0 and 1. Got 1."),
    ],
)
def test_mistakes_are_named(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(text)):
        SoftWeightSharing(64, **arguments)
