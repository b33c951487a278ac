"""Binary weights against numpy, and against the best scale there is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgecompress.core.errors import UnknownNameError
from edgecompress.precisions.binary import binarize, binary_gradient, binary_scale, is_binary

tf = pytest.importorskip("tensorflow")
_RNG = np.random.default_rng(0)
W = _RNG.normal(size=(3, 3, 4, 5)).astype("f4")
W[0, 0, 0, 0] = 0.0
G = _RNG.normal(size=W.shape).astype("f4")
AXES = [(-1,), (-2, -1), ()]


def reduced(axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a for a in range(4) if a not in {x % 4 for x in axes})


@pytest.mark.parametrize("axes", AXES)
def test_values_by_numpy(axes: tuple[int, ...]) -> None:
    alpha = np.abs(W).mean(reduced(axes), keepdims=True)
    signs = np.where(W >= 0, 1, -1)
    np.testing.assert_allclose(binarize(W, axes), alpha * signs, rtol=1e-6)
    np.testing.assert_array_equal(binarize(W, axes, "one"), signs)
    assert np.asarray(binarize(W, axes))[0, 0, 0, 0] > 0
    assert is_binary(np.asarray(binarize(W, axes)), axes) and not is_binary(W, axes)


def test_the_mean_is_the_closest_scale() -> None:
    """Equation 6 of XNOR-Net: no other alpha comes closer to W."""
    best = float(np.asarray(binary_scale(W, ())).ravel()[0])
    signs = np.where(W >= 0, 1, -1)
    errors = {s: ((W - s * best * signs) ** 2).sum() for s in (0.95, 0.99, 1.0, 1.01, 1.05)}
    assert min(errors, key=errors.__getitem__) == 1.0


@pytest.mark.parametrize("axes", AXES)
def test_gradient_by_numpy(axes: tuple[int, ...]) -> None:
    alpha = np.abs(W).mean(reduced(axes), keepdims=True)
    signs, inside = np.where(W >= 0, 1, -1), np.abs(W) <= 0.8
    added = signs * (G * signs).mean(reduced(axes), keepdims=True)
    want = alpha * G * inside + added
    np.testing.assert_allclose(binary_gradient(G, W, axes, clip=0.8), want, rtol=1e-4, atol=1e-6)
    found = binary_gradient(G, W, axes, "one", clip=0.8)
    np.testing.assert_array_equal(found, G * inside)
    assert np.abs(want - alpha * G * inside).max() > 1e-2  # The scale's own part is seen.


def test_gradient_of_the_scale_by_automatic_differentiation() -> None:
    weights = tf.constant(W[W != 0])
    above = tf.constant(G[W != 0])
    with tf.GradientTape() as tape:
        tape.watch(weights)
        alpha = tf.reduce_mean(tf.abs(weights))
        loss = tf.reduce_sum(above * alpha * tf.stop_gradient(tf.sign(weights)))
    want = tape.gradient(loss, weights)
    # Beyond the clip nothing but the scale's part is left.
    found = binary_gradient(above, weights, (), clip=1e-9)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-7)


def test_unknown_scales_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean mean"):
        binarize(W, (-1,), "meen")


@pytest.mark.parametrize(
    ("values", "axes", "binary"),
    [
        (np.zeros((4, 2)), (-1,), False),
        (np.array([[1.0, 0.0], [-1.0, 0.0]]), (-1,), True),  # A dead channel.
        (np.array([[1.0, 2.0], [-1.0, 0.0]]), (-1,), False),
        (np.array([[1.0, 2.0, -3.0]]), (-1,), False),  # One weight for each channel.
    ],
)
def test_what_counts_as_binary(values: Any, axes: tuple[int, ...], binary: bool) -> None:
    assert is_binary(values, axes) is binary
