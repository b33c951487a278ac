"""Ternary training against numpy training loops."""

from __future__ import annotations

import re
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as kl

from edgecompress.callbacks.ternarize import Ternarize
from edgecompress.core.errors import ArgumentError, UnknownNameError
from edgecompress.core.record import record_of

_RNG = np.random.default_rng(0)
X = _RNG.normal(size=(64, 12)).astype("f4")
Y = _RNG.normal(size=(64, 5)).astype("f4")
RATE = 0.1


def _model(optimizer: Any = None) -> keras.Model:
    keras.utils.set_random_seed(2)
    model = keras.Sequential([keras.Input((12,)), kl.Dense(5, use_bias=False, name="only")])
    model.compile(optimizer or keras.optimizers.SGD(RATE, momentum=0.9), "mse")
    return model


def _fit(model: keras.Model, *callbacks: Any, epochs: int = 2) -> dict[str, Any]:
    return model.fit(
        X, Y, batch_size=16, epochs=epochs, shuffle=False, verbose=0, callbacks=list(callbacks)
    ).history


def _above(step: int, weights: np.ndarray) -> np.ndarray:
    batch = slice(16 * (step % 4), 16 * (step % 4) + 16)
    errors = X[batch] @ weights - Y[batch]
    return 2 * X[batch].T @ errors / errors.size


@pytest.mark.parametrize("per_channel", [True, False])
def test_twn_by_numpy(per_channel: bool) -> None:
    model = _model()
    axis = 0 if per_channel else (0, 1)
    latent = np.array(model.get_layer("only").kernel, np.float64)
    velocity = np.zeros_like(latent)

    def ternary() -> np.ndarray:
        beyond = np.abs(latent) > 0.7 * np.abs(latent).mean(axis, keepdims=True)
        scale = (np.abs(latent) * beyond).sum(axis, keepdims=True) / beyond.sum(axis, keepdims=True)
        return scale * np.sign(latent) * beyond

    signs = []
    for step in range(8):
        if step % 4 == 0:
            signs.append(np.sign(ternary()))
        velocity = 0.9 * velocity - RATE * _above(step, ternary())
        latent = latent + velocity
    history = _fit(model, Ternarize(per_channel=per_channel, first_and_last=True))
    found = np.array(model.get_layer("only").kernel)
    np.testing.assert_allclose(found, ternary(), rtol=1e-4, atol=1e-6)
    signs.append(np.sign(ternary()))
    flips = [(a != b).mean() for a, b in zip(signs[:-1], signs[1:], strict=True)]
    assert max(flips) > 0
    np.testing.assert_allclose(history["ternary_flips"], flips)
    np.testing.assert_allclose(history["ternary_sparsity"], [(s == 0).mean() for s in signs[1:]])
    (step,) = record_of(model).steps
    assert step["sparsity"] == step["layer_sparsity"]["only"] == history["ternary_sparsity"][-1]
    assert len(step["scales"]["only"]["positive"]) == (5 if per_channel else 1)


def test_ttq_by_numpy() -> None:
    """W_p and W_n move by the optimizer's rule, momentum included."""
    model = _model()
    latent = np.array(model.get_layer("only").kernel, np.float64)
    threshold = 0.3 * np.abs(latent).max()
    pair = np.array([latent[latent > threshold].mean(), -latent[latent < -threshold].mean()])
    start, velocity, pair_velocity = pair, np.zeros_like(latent), np.zeros(2)
    for step in range(8):
        threshold = 0.3 * np.abs(latent).max()
        positive, negative = latent > threshold, latent < -threshold
        above = _above(step, pair[0] * positive - pair[1] * negative)
        factors = np.where(positive, pair[0], np.where(negative, pair[1], 1.0))
        velocity = 0.9 * velocity - RATE * above * factors
        sums = np.array([above[positive].sum(), -above[negative].sum()])
        pair_velocity = 0.9 * pair_velocity - RATE * sums
        latent, pair = latent + velocity, np.maximum(pair + pair_velocity, 1e-6)
    threshold = 0.3 * np.abs(latent).max()
    want = pair[0] * (latent > threshold) - pair[1] * (latent < -threshold)
    _fit(model, Ternarize("ttq", threshold=0.3, first_and_last=True))
    found = np.array(model.get_layer("only").kernel)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-6)
    assert np.abs(pair - start).min() > 1e-3  # Both did move.
    (step,) = record_of(model).steps
    scales = step["scales"]["only"]
    np.testing.assert_allclose([scales["positive"][0], scales["negative"][0]], pair, rtol=1e-4)


def test_trained_values_follow_the_learning_rate() -> None:
    """A schedule that is over, or a rate set by a callback, stops W_p and W_n, too."""
    over = keras.optimizers.schedules.PiecewiseConstantDecay([0], [0.1, 0.0])
    stop = keras.callbacks.LearningRateScheduler(lambda epoch: 0.0)
    found = []
    for rate, callbacks in ((over, []), (0.1, [stop]), (0.1, [])):
        model = _model(keras.optimizers.SGD(rate))
        model.optimizer.build(model.trainable_variables)
        model.optimizer.iterations.assign(1)
        before = np.array(model.get_layer("only").kernel)
        _fit(model, Ternarize("ttq", first_and_last=True), *callbacks, epochs=1)
        kernel = np.array(model.get_layer("only").kernel)
        want = before[before > 0.05 * np.abs(before).max()].mean()
        found.append(kernel.max() == pytest.approx(want, rel=1e-5))
    assert found == [True, True, False]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"threshold": -0.1}, "`threshold` must be a number, 0 or more. Got -0.1."),
        ({"threshold": float("inf")}, "`threshold` must be a number"),
        ({"threshold": True}, "`threshold` must be a number"),
        ({"method": "ttq", "threshold": 1}, "`threshold` must be less than 1 for ttq"),
        ({"method": "ttq", "per_channel": True}, "`per_channel` must be False for ttq"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(text)):
        Ternarize(**arguments)


def test_names_are_checked() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean twn"):
        Ternarize(method="twm")
