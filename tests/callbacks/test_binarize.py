"""Binary training against a numpy training loop."""

from __future__ import annotations

import re
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as kl

from edgecompress.callbacks.binarize import Binarize
from edgecompress.core.errors import ArgumentError, UnknownNameError
from edgecompress.core.record import record_of

_RNG = np.random.default_rng(0)
X = _RNG.normal(size=(64, 12)).astype("f4")
Y = _RNG.normal(size=(64, 5)).astype("f4")
CLIP = 0.25


def _model(momentum: float) -> keras.Model:
    keras.utils.set_random_seed(2)
    model = keras.Sequential([keras.Input((12,)), kl.Dense(5, use_bias=False, name="only")])
    model.compile(keras.optimizers.SGD(0.3, momentum=momentum), "mse")
    return model


def _binary(latent: np.ndarray, scale: str, axis: Any) -> tuple[np.ndarray, np.ndarray, Any]:
    signs = np.where(latent >= 0, 1.0, -1.0)
    alpha = np.abs(latent).mean(axis, keepdims=True) if scale == "mean" else 1.0
    return alpha * signs, signs, alpha


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("scale", ["mean", "one"])
def test_training_by_numpy(scale: str, per_channel: bool) -> None:
    """Twelve steps of SGD with momentum on a linear model; latent weights meet the clip."""
    model = _model(momentum=0.9)
    axis = 0 if per_channel else (0, 1)
    latent = np.array(model.get_layer("only").kernel, np.float64)
    latent = np.clip(latent, -CLIP, CLIP)
    velocity, flips, met = np.zeros_like(latent), [], False
    for step in range(12):
        if step % 4 == 0:
            flips.append(_binary(latent, scale, axis)[1])
        batch = slice(16 * (step % 4), 16 * (step % 4) + 16)
        weights, signs, alpha = _binary(latent, scale, axis)
        errors = X[batch] @ weights - Y[batch]
        above = 2 * X[batch].T @ errors / errors.size
        gradient = alpha * above * (np.abs(latent) <= CLIP)
        if scale == "mean":
            gradient += signs * (above * signs).mean(axis, keepdims=True)
        velocity = 0.9 * velocity - 0.3 * gradient
        latent = np.clip(latent + velocity, -CLIP, CLIP)
        met = met or np.abs(latent).max() == CLIP
    weights, signs, alpha = _binary(latent, scale, axis)
    flips.append(signs)

    callback = Binarize(scale, first_and_last=True, per_channel=per_channel, clip=CLIP)
    history = model.fit(
        X, Y, batch_size=16, epochs=3, shuffle=False, verbose=0, callbacks=[callback]
    ).history
    found = np.array(model.get_layer("only").kernel)
    np.testing.assert_allclose(found, weights, rtol=1e-4, atol=1e-6)
    assert met  # Latent weights did reach the clip.
    changed = [(a != b).mean() for a, b in zip(flips[:-1], flips[1:], strict=True)]
    assert max(changed) > 0.1
    np.testing.assert_allclose(history["binary_flips"], changed)
    np.testing.assert_allclose(history["binary_flips/only"], changed)
    (step,) = record_of(model).steps
    want = np.broadcast_to(np.ravel(alpha), 5 if per_channel else 1)
    np.testing.assert_allclose(step["scales"]["only"], want, rtol=1e-4)


def test_clipped_starts_are_named() -> None:
    model = _model(0.0)
    model.get_layer("only").kernel.assign(np.linspace(-2, 2, 60).reshape(12, 5))
    model.fit(X, Y, verbose=0, callbacks=[Binarize(first_and_last=True)])
    assert "only: 50.0% of the latent weights were clipped" in " ".join(record_of(model).notes)


@pytest.mark.parametrize("clip", [0, -1.0, float("nan"), "1", True])
def test_mistakes_are_named(clip: Any) -> None:
    with pytest.raises(ArgumentError, match=re.escape("`clip` must be a number greater than 0.")):
        Binarize(clip=clip)
    with pytest.raises(UnknownNameError, match="Did you mean one"):
        Binarize(scale="ones")
