"""Signs: values, and the gradients of their papers, against formulas in numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from edgecompress.core.errors import UnknownNameError
from edgecompress.precisions.sign import SIGNS, hard_sign

POINTS = np.concatenate(
    [np.linspace(-3, 3, 121), [0.0, -0.0, 1.0, -1.0, 1 + 1e-6, -1 - 1e-6, 40.0, -40.0, 200.0]]
).astype(np.float32)


def clipped_identity(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) <= 1, 1.0, 0.0)


def triangle(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) <= 1, 2 - 2 * np.abs(x), 0.0)


def sign_swish(x: np.ndarray) -> np.ndarray:
    """Derivative of 2 sigmoid(bx) (1 + bx (1 - sigmoid(bx))) - 1, as BNN+ defines SignSwish."""
    b = 5.0
    s = 1 / (1 + np.exp(-b * x))
    return 2 * b * s * (1 - s) * (2 + b * x * (1 - 2 * s))


FORMULAS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "ste_sign": clipped_identity,
    "approx_sign": triangle,
    "swish_sign": sign_swish,
}


def gradient(name: str, x: np.ndarray, above: np.ndarray) -> np.ndarray:
    variable = tf.Variable(x)
    with tf.GradientTape() as tape:
        total = ops.sum(SIGNS[name](variable) * above)
    return tape.gradient(total, variable).numpy()


def test_every_quantizer_has_a_formula_here() -> None:
    assert set(FORMULAS) == set(SIGNS)


@pytest.mark.parametrize("name", SIGNS)
def test_values_are_signs_and_zero_is_positive(name: str) -> None:
    signs = np.asarray(SIGNS[name](POINTS))
    np.testing.assert_array_equal(signs, np.where(POINTS < 0, -1.0, 1.0))
    assert signs.dtype == np.float32
    assert np.asarray(SIGNS[name](np.float32([-0.0])))[0] == 1


@pytest.mark.parametrize("name", SIGNS)
def test_gradients_are_those_of_the_papers(name: str) -> None:
    above = np.random.default_rng(0).normal(size=POINTS.shape).astype(np.float32)
    expected = FORMULAS[name](POINTS.astype(np.float64)) * above
    found = gradient(name, POINTS, above)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SIGNS)
def test_half_precision_stays_half_precision(name: str) -> None:
    x = np.array([-2, -0.25, 0, 0.5, 60], np.float16)
    assert np.asarray(SIGNS[name](x)).dtype == np.float16
    assert np.isfinite(gradient(name, x, np.ones(5, np.float16))).all()


def test_swish_pulls_back_beyond_half_and_the_others_never_do() -> None:
    x = np.array([0.6], np.float32)
    one = np.ones(1, np.float32)
    assert gradient("swish_sign", x, one)[0] < 0
    assert gradient("ste_sign", x, one)[0] == 1
    assert gradient("approx_sign", x, one)[0] == pytest.approx(0.8)


def test_the_plain_sign_has_no_gradient() -> None:
    variable = tf.Variable(POINTS)
    with tf.GradientTape() as tape:
        total = ops.sum(hard_sign(variable))
    assert tape.gradient(total, variable) is None


def test_an_unknown_quantizer_offers_its_neighbours() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean ste_sign"):
        SIGNS["ste_sing"]
