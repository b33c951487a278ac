"""The int8 arithmetic against plain numpy formulas."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from edgecompress.core.errors import ArgumentError
from edgecompress.precisions.fake_quantization import (
    batch_range,
    fake_quantize,
    fake_quantize_weights,
    moving_range,
    nudged_range,
    passing,
    portable_fake_quantize,
    quantize_weights,
    rectified_fake_quantize,
    weight_scales,
)
from edgecompress.precisions.int8 import Int8


def numpy_weights(weights, axes, levels=127):
    """Rounds each channel on its own, in a loop."""
    weights = weights.astype(np.float64)
    axes = [a % weights.ndim for a in axes]
    result = np.empty_like(weights)
    for index in np.ndindex(*(weights.shape[a] for a in axes)):
        pick = [slice(None)] * weights.ndim
        for axis, i in zip(axes, index, strict=True):
            pick[axis] = i
        channel = weights[tuple(pick)]
        scale = max(np.abs(channel).max(), 1e-9) / levels
        result[tuple(pick)] = np.clip(np.rint(channel / scale), -levels, levels) * scale
    return result


def numpy_activations(values, low, high, bits=8):
    """Codes -128..127 with a zero point, then back."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max(high - low, 1e-9) / (2**bits - 1)
    lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    zero_point = np.rint(lowest - low / scale)
    codes = np.clip(np.rint(values / scale) + zero_point, lowest, highest)
    return (codes - zero_point) * scale, scale


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((20, 7), (-1,)), ((3, 3, 5, 6), (-1,)), ((3, 3, 5, 2), (-2, -1)), ((3, 3, 4, 5), (-2,))],
)
def test_weights_match_numpy(shape, axes):
    weights = np.random.normal(size=shape).astype("f4")
    weights[..., 0] *= 1e-3
    got = keras.ops.convert_to_numpy(fake_quantize_weights(weights, axes))
    np.testing.assert_allclose(got, numpy_weights(weights, axes), rtol=1e-5, atol=1e-7)
    exact = keras.ops.convert_to_numpy(quantize_weights(weights, axes))
    scales = keras.ops.convert_to_numpy(weight_scales(weights, axes))
    codes = exact / scales
    np.testing.assert_allclose(codes, np.rint(codes), atol=1e-3)
    # The largest weight of every channel has code 127 or -127: none is clipped.
    reduced = tuple(a for a in range(len(shape)) if a - len(shape) not in axes)
    np.testing.assert_allclose(np.abs(codes).max(axis=reduced), 127, atol=1e-3)


def test_a_channel_of_zeros_stays_zero():
    weights = np.zeros((4, 3), "f4")
    weights[:, 0] = [1, -2, 3, 4]
    got = keras.ops.convert_to_numpy(quantize_weights(weights, (-1,)))
    assert np.isfinite(got).all()
    assert not got[:, 1:].any()


def test_zeros_of_pruning_stay_zero():
    weights = np.random.normal(size=(50, 4)).astype("f4")
    weights[::2] = 0
    got = keras.ops.convert_to_numpy(fake_quantize_weights(weights, (-1,)))
    assert not got[::2].any()


def test_weight_gradient_passes_unchanged():
    weights = tf.Variable(np.random.normal(size=(5, 3)).astype("f4"))
    upstream = np.random.normal(size=(5, 3)).astype("f4")
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(fake_quantize_weights(weights, (-1,)) * upstream)
    np.testing.assert_array_equal(tape.gradient(loss, weights), upstream)


RANGES = [(-1.0, 2.0), (0.0, 6.0), (-3.0, 0.0), (0.5, 4.0), (-2.0, -0.5), (-0.013, 0.29)]


@pytest.mark.parametrize("function", [fake_quantize, portable_fake_quantize])
@pytest.mark.parametrize(("low", "high"), RANGES)
def test_activations_match_numpy(function, low, high):
    values = np.linspace(low - 1, high + 1, 1003).astype("f4")
    want, scale = numpy_activations(values.astype(np.float64), low, high)
    got = keras.ops.convert_to_numpy(function(values, low, high))
    # A tie may be rounded either way: one step, and seldom.
    assert np.abs(got - want).max() < scale * 1.01
    assert np.mean(np.abs(got - want) > scale * 0.01) < 0.01
    assert len(np.unique(np.rint(got / scale))) <= 256


@pytest.mark.parametrize("function", [fake_quantize, portable_fake_quantize])
def test_zero_is_exact(function):
    for low, high in RANGES:
        assert float(function(np.zeros(1, "f4"), low, high)[0]) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("function", [fake_quantize, portable_fake_quantize])
def test_activation_gradient_is_clipped(function):
    values = tf.Variable([-5.0, -0.9, 0.0, 0.3, 1.9, 7.0])
    low, high = tf.Variable(-1.0), tf.Variable(2.0)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(function(values, low, high) * [1.0, 2, 3, 4, 5, 6])
    gradient, *ranges = tape.gradient(loss, [values, low, high])
    np.testing.assert_array_equal(gradient, [0, 2, 3, 4, 5, 0])
    assert ranges == [None, None]  # ranges are observed, not trained


def test_gradients_where_the_range_follows_the_extremes():
    """They pass above the range, too; below zero ReLU stops them, from 6 on ReLU6."""
    values = tf.Variable([-5.0, -0.9, 0.0, 0.3, 1.9, 5.0, 7.0])
    upstream = np.array([1.0, 2, 3, 4, 5, 6, 7], "f4")
    cases = (
        (lambda x: passing(lambda v: fake_quantize(v, -1.0, 2.0), x), -1.0, 2.0, [1] * 7),
        (lambda x: rectified_fake_quantize(x, tf.constant(2.0)), 0.0, 2.0, [0, 0, 0, 1, 1, 1, 1]),
        (lambda x: rectified_fake_quantize(x, 4.0, maximum=6.0), 0.0, 4.0, [0, 0, 0, 1, 1, 1, 0]),
    )
    for function, low, high, passed in cases:
        with tf.GradientTape() as tape:
            found = function(values)
            loss = tf.reduce_sum(found * upstream)
        np.testing.assert_array_equal(found, fake_quantize(values, low, high))
        np.testing.assert_array_equal(tape.gradient(loss, values), upstream * passed)


@pytest.mark.parametrize("function", [fake_quantize, portable_fake_quantize])
def test_half_precision_keeps_its_type(function):
    values = tf.constant([0.1, 0.9], tf.float16)
    assert function(values, 0.0, 1.0).dtype == tf.float16


def test_an_empty_range_gives_zeros():
    for function in (fake_quantize, portable_fake_quantize):
        got = keras.ops.convert_to_numpy(function(np.array([0.0, 3.0], "f4"), 0.0, 0.0))
        np.testing.assert_allclose(got, 0, atol=1e-8)


def test_nudged_range_formula():
    low, high, scale = (float(v) for v in nudged_range(-1.0, 2.0))
    assert scale == pytest.approx(3 / 255)
    assert low == pytest.approx(-85 * scale)
    assert high == pytest.approx(170 * scale)


def test_moving_range_starts_at_the_first_batch():
    unseen = np.array([np.inf, -np.inf], "f4")
    first = batch_range(np.array([[1.0, -2.0], [3.0, 0.5]], "f4"))
    np.testing.assert_allclose(first, [-2, 3])
    np.testing.assert_allclose(moving_range(unseen, first, 0.9), [-2, 3])
    np.testing.assert_allclose(
        moving_range(first, np.array([-4.0, 13.0], "f4"), 0.9), [-2.2, 4.0], rtol=1e-6
    )


@pytest.mark.parametrize("momentum", [1.0, -0.1, float("nan"), "0.9", True, None])
def test_momentum_is_checked(momentum):
    with pytest.raises(ArgumentError, match="momentum` must be a number from 0"):
        Int8(momentum=momentum)
