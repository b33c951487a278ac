"""The divergence of variational dropout against numerical integration."""

from __future__ import annotations

import numpy as np
import pytest
from keras import ops
from scipy.integrate import quad
from scipy.stats import norm

from edgecompress.variational.log_uniform import divergence, log_alpha


def _integrated(alpha: float) -> float:
    """KL of N(1, alpha) from 1 / |w|, up to the constant that makes it 0 for pure noise.

    E log|e| - log(alpha) / 2 for e = N(1, alpha) rises from -infinity to E log|N(0, 1)|.
    """
    deviation = np.sqrt(alpha)

    def integrand(z: float) -> float:
        return float(norm.pdf(z) * np.log(np.abs(1 + deviation * z)))

    # The logarithm has no value where the weight is 0: the ends of both integrals.
    zero = max(-12.0, -1 / deviation)
    expected = quad(integrand, -12, zero)[0] + quad(integrand, zero, 12, limit=200)[0]
    noise = -(np.euler_gamma + np.log(2)) / 2
    return expected - 0.5 * np.log(alpha) - noise


@pytest.mark.parametrize("log_alphas", np.linspace(-6, 6, 13))
def test_the_approximation_is_as_near_as_the_paper_says(log_alphas: float) -> None:
    found = float(divergence(ops.convert_to_tensor(np.float32(log_alphas))))
    assert found == pytest.approx(_integrated(float(np.exp(log_alphas))), abs=0.01)


def test_more_noise_is_cheaper() -> None:
    values = np.array(divergence(ops.convert_to_tensor(np.linspace(-10, 10, 401, dtype="f4"))))
    assert (np.diff(values) < 0).all()
    assert 0 < values[-1] < 1e-4


def test_alpha_is_variance_by_squared_mean() -> None:
    means = np.array([0.5, -2.0, 0.0], "f4")
    found = np.array(log_alpha(means, np.log(np.array([0.25, 1.0, 1.0], "f4"))))
    np.testing.assert_allclose(found[:2], [0.0, np.log(0.25)], atol=1e-6)
    assert np.isfinite(found).all()
    assert found[2] > 30
