"""Ranges against numpy: clipping with the smallest error, percentiles, extremes."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import edgecompress as ec
from edgecompress.core.errors import ArgumentError
from edgecompress.precisions.fake_quantization import fake_quantize_weights
from edgecompress.precisions.ranges import RANGES
from edgecompress.precisions.ranges.base import names_for
from edgecompress.precisions.ranges.mean_squared_error import best_limits, best_range

RANDOM = np.random.default_rng(0)
NORMAL = RANDOM.normal(size=40_000).astype("f4")
LAPLACE = (RANDOM.laplace(size=40_000) / np.sqrt(2)).astype("f4")


def array(tensor: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def error(values: np.ndarray, low: float, high: float, steps: int) -> float:
    """Mean squared error of rounding to steps from `low` to `high`, with an exact zero."""
    scale = (high - low) / steps
    zero = np.rint(-low / scale)
    rounded = (np.clip(np.rint(values / scale) + zero, 0, steps) - zero) * scale
    return float(((rounded - values) ** 2).mean())


# Banner et al., Post-training 4-bit quantization of convolution networks, table 1: the best
# clipping in standard deviations for normal and Laplace distributions. Its steps are
# 2 limit / 2^bits, ours 2 limit / (2^bits - 2): at 4 bits, the best limit is a little lower.
@pytest.mark.parametrize(
    ("values", "largest", "published"),
    [(NORMAL, 7, 2.55), (LAPLACE, 7, 5.03 / np.sqrt(2))],
)
def test_limits_of_weights_are_the_published_ones(
    values: np.ndarray, largest: int, published: float
) -> None:
    limit = float(array(best_limits(values[:, None], (0,), largest))[0, 0])
    assert limit == pytest.approx(published, rel=0.06)
    tried = np.linspace(0.2, 1, 161) * np.abs(values).max()
    best = min(error(values, -x, x, 2 * largest) for x in tried)
    assert error(values, -limit, limit, 2 * largest) < 1.02 * best
    # Clipping nothing, and clipping more, are worse.
    for other in (np.abs(values).max(), 0.6 * limit):
        assert error(values, -other, other, 2 * largest) > 1.05 * best


def test_each_channel_has_a_limit_in_64ths_of_its_largest_weight() -> None:
    weights = RANDOM.normal(size=(300, 3)).astype("f4") * np.array([1, 10, 0], "f4")
    limits = array(best_limits(weights, (0,), 7))
    assert limits.shape == (1, 3) and limits[0, 2] == 0
    parts = 64 * limits[0, :2] / np.abs(weights).max(0)[:2]
    np.testing.assert_allclose(parts, np.rint(parts), atol=1e-4)
    assert (parts < 64).all() and limits[0, 1] > 5 * limits[0, 0]
    # Zeros of pruning err by nothing, so they do not count.
    pruned = np.concatenate([weights, np.zeros((300, 3), "f4")])
    np.testing.assert_array_equal(array(best_limits(pruned, (0,), 7)), limits)


@pytest.mark.parametrize("case", ["rectified", "skewed", "around zero", "negative"])
def test_ranges_of_activations_err_least(case: str) -> None:
    values = {
        "rectified": np.maximum(NORMAL, 0),
        "skewed": RANDOM.gamma(2, size=40_000).astype("f4") - 1,
        "around zero": LAPLACE,
        "negative": -np.abs(NORMAL),
    }[case]
    low, high = map(float, array(best_range(values, 15)))
    extremes = min(values.min(), 0.0), max(values.max(), 0.0)
    tried = [
        error(values, low, high, 15)
        for low in extremes[0] * np.linspace(0.1, 1, 19)
        for high in extremes[1] * np.linspace(0.1, 1, 19)
        if high > low
    ]
    assert error(values, low, high, 15) < 1.03 * min(tried)
    assert error(values, *extremes, 15) > 1.5 * min(tried)
    assert (low == 0) == (extremes[0] == 0) and (high == 0) == (extremes[1] == 0)
    # A histogram gives the same; zeros err by nothing.
    counts, edges = np.histogram(values[values != 0], 2048)
    centers = ((edges[1:] + edges[:-1]) / 2).astype("f4")
    np.testing.assert_allclose(
        array(best_range(centers, 15, counts)), [low, high], rtol=0.02, atol=0.02
    )


def test_percentiles_match_numpy() -> None:
    precision = ec.Int8(activation_ranges="percentile", percentile=99.0)
    want = np.percentile(NORMAL, [1, 99])
    np.testing.assert_allclose(array(precision.batch_range(NORMAL)), want, rtol=1e-3)
    counts, edges = np.histogram(NORMAL, 2048)
    centers = ((edges[1:] + edges[:-1]) / 2).astype("f4")
    np.testing.assert_allclose(precision.calibrated_range(centers, counts), want, rtol=0.01)
    wider = ec.Int8(activation_ranges="percentile", percentile=100.0)
    np.testing.assert_allclose(array(wider.batch_range(NORMAL)), [NORMAL.min(), NORMAL.max()])


def test_ranges_of_batches_are_averaged() -> None:
    precision = ec.Int4(momentum=0.9, activation_ranges="percentile", percentile=100.0)
    found = np.array([np.inf, -np.inf], "f4")
    for batch in ([-1.0, 2.0], [-0.5, 4.0]):
        found = array(precision.moving_range(found, np.array(batch, "f4")))
    np.testing.assert_allclose(found, [-0.95, 2.2], rtol=1e-6)


def test_a_clipped_weight_gets_a_share_of_its_gradient() -> None:
    import tensorflow as tf

    weights = tf.constant([[0.55], [-2.0], [1.0], [8.0]])
    with tf.GradientTape() as tape:
        tape.watch(weights)
        rounded = fake_quantize_weights(weights, (-1,), 4, tf.constant([[1 / 7]]))
        loss = tf.reduce_sum(rounded * tf.constant([[1.0], [2.0], [3.0], [4.0]]))
    np.testing.assert_allclose(array(rounded)[:, 0], [4 / 7, -1, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(array(tape.gradient(loss, weights))[:, 0], [1, 1, 3, 0.5], rtol=1e-6)


@pytest.mark.parametrize("name", sorted(RANGES))
def test_every_method_says_what_it_is_for(name: str) -> None:
    method = RANGES[name]
    assert method.weights or method.activations
    assert method.summary and not method.summary.endswith(".")
    for what, setting in (("weights", "weight_ranges"), ("activations", "activation_ranges")):
        if name in names_for(what):
            assert getattr(ec.Int4(**{setting: name}), setting) == name
        else:
            with pytest.raises(ArgumentError, match=setting):
                ec.Int4(**{setting: name})


def test_other_settings_are_refused() -> None:
    for setting in ({"percentile": 40}, {"percentile": "99"}, {"weight_ranges": "no-such"}):
        with pytest.raises(ArgumentError, match=next(iter(setting))):
            ec.Int8(**setting)
