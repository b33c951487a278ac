"""Ternary weights against numpy, and against the closest ternary weights there are."""

from __future__ import annotations

import numpy as np
import pytest

from edgecompress.precisions.ternary import (
    is_ternary,
    mean_beyond,
    ternarize,
    ttq_gradient,
    ttq_start,
    ttq_threshold,
    ttq_value_gradients,
    twn,
    twn_threshold,
)

tf = pytest.importorskip("tensorflow")
_RNG = np.random.default_rng(0)
W = _RNG.normal(size=(3, 3, 4, 5)).astype("f4")
G = _RNG.normal(size=W.shape).astype("f4")


@pytest.mark.parametrize("axes", [(-1,), (-2, -1), ()])
def test_twn_by_numpy(axes: tuple[int, ...]) -> None:
    channels = np.moveaxis(W, [a % 4 for a in axes], range(len(axes)))
    channels = channels.reshape(-1, W.size // int(np.prod(channels.shape[: len(axes)])))
    want = []
    for channel in channels.astype(np.float64):
        threshold = 0.7 * np.abs(channel).mean()
        alpha = np.abs(channel)[np.abs(channel) > threshold].mean()
        want.append(alpha * np.sign(channel) * (np.abs(channel) > threshold))
    found = np.moveaxis(np.asarray(twn(W, axes)), [a % 4 for a in axes], range(len(axes)))
    np.testing.assert_allclose(found.reshape(channels.shape), want, rtol=1e-5, atol=1e-7)
    assert is_ternary(np.asarray(twn(W, axes)), axes) and not is_ternary(W, axes)


def test_twn_is_close_to_the_closest_ternary_weights() -> None:
    """On normal weights 0.7 is within 1 % of the best threshold, found by trying all."""
    weights = np.sort(np.abs(_RNG.normal(size=4000)))[::-1]
    sums = np.cumsum(weights)
    gains = sums**2 / np.arange(1, len(weights) + 1)  # ||W||^2 - error, by number above.
    best = (weights**2).sum() - gains.max()
    found = np.asarray(twn(weights.astype("f4"), ()))
    error = ((weights - found) ** 2).sum()
    assert best <= error < 1.01 * best
    assert ((weights - np.asarray(twn(weights.astype("f4"), (), 0.2))) ** 2).sum() > 1.1 * best


def test_nothing_beyond_the_threshold() -> None:
    assert not np.asarray(twn(W, (), 100.0)).any()
    assert not np.asarray(twn(np.zeros((4, 2), "f4"), (-1,))).any()
    threshold = twn_threshold(W, (-1,), 100.0)
    assert np.asarray(mean_beyond(W, threshold, (-1,))).ravel().tolist() == [0] * 5


def test_ttq_by_numpy() -> None:
    threshold = np.asarray(ttq_threshold(W, 0.3))
    assert threshold == pytest.approx(0.3 * np.abs(W).max())
    above, below = threshold < W, -threshold > W
    positive, negative = (np.asarray(v) for v in ttq_start(W, threshold))
    assert positive == pytest.approx(W[above].mean()) and positive.shape == ()
    assert negative == pytest.approx(-W[below].mean())
    found = np.asarray(ternarize(W, threshold, 2.0, 3.0))
    np.testing.assert_array_equal(found, np.where(above, 2, np.where(below, -3, 0)))
    gradients = ttq_value_gradients(G, W, threshold)
    np.testing.assert_allclose(gradients, (G[above].sum(), -G[below].sum()), rtol=1e-4)
    latent = ttq_gradient(G, W, threshold, 2.0, 3.0)
    np.testing.assert_allclose(latent, G * np.where(above, 2, np.where(below, 3, 1)), rtol=1e-6)


def test_ttq_value_gradients_by_automatic_differentiation() -> None:
    positive, negative = tf.constant(0.5), tf.constant(0.8)
    with tf.GradientTape() as tape:
        tape.watch([positive, negative])
        loss = tf.reduce_sum(G * ternarize(W, 0.4, positive, negative))
    want = tape.gradient(loss, [positive, negative])
    np.testing.assert_allclose(ttq_value_gradients(G, W, 0.4), want, rtol=1e-4)


def test_ttq_starts_with_an_empty_side() -> None:
    positive, negative = (float(np.asarray(v)) for v in ttq_start(np.abs(W), 0.1))
    assert positive == negative > 0


def test_what_counts_as_ternary() -> None:
    kernel = np.array([[1.0, 0.0], [-2.0, 0.0], [0.0, 0.0]])
    assert is_ternary(kernel, (-1,)) and is_ternary(kernel, ())
    assert not is_ternary(np.zeros((3, 2)), (-1,))
    assert not is_ternary(np.array([[1.0, 3.0], [-2.0, 1.0], [0.0, 2.0]]), (-1,))
    assert not is_ternary(kernel[:2], (-1,))  # Two weights always are.
