"""Rounding on backends without TensorFlow's operators: the same values, the same gradients."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from edgecompress.precisions import fake_quantization as rounding

VALUES = np.random.default_rng(3).normal(size=4000).astype("f4") * 2


def _with_gradient(function: Any, values: np.ndarray = VALUES) -> tuple[np.ndarray, np.ndarray]:
    inputs = tf.constant(values)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = function(inputs)
    return outputs.numpy(), tape.gradient(outputs, inputs).numpy()


def _both(function: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """Returns what TensorFlow's operators compute, and what keras.ops do in their place."""
    want = _with_gradient(function)
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    return want, _with_gradient(function)


@pytest.mark.parametrize(("low", "high"), [(-3.1, 2.7), (0.0, 4.2), (0.5, 3.0), (-1e-3, 5.0)])
def test_to_a_range(low: float, high: float, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = tf.constant(low), tf.constant(high)
    want, have = _both(lambda x: rounding.fake_quantize(x, *ends), monkeypatch)
    np.testing.assert_array_equal(have, want)
    assert 0 < want[1].mean() < 1


@pytest.mark.parametrize("maximum", [np.inf, 6.0])
def test_of_relu(maximum: float, monkeypatch: pytest.MonkeyPatch) -> None:
    high = tf.constant(4.2)
    want, have = _both(
        lambda x: rounding.rectified_fake_quantize(x, high, maximum=maximum), monkeypatch
    )
    np.testing.assert_array_equal(have, want)
    assert 0 < want[1].mean() < 1


@pytest.mark.parametrize("high", [1.7, 2.3, 0.9000001])
def test_the_ends_of_a_symmetric_range_pass_their_gradient(
    high: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.array([-2 * high, -high, 0.3, high, 2 * high], "f4")
    ends = tf.constant(-high), tf.constant(high)
    for backend in ("tensorflow", "jax"):
        monkeypatch.setattr(keras.backend, "backend", lambda backend=backend: backend)
        _, gradient = _with_gradient(lambda x: rounding.fake_quantize_symmetric(x, *ends), values)
        np.testing.assert_array_equal(gradient, [0, 1, 1, 1, 0])
