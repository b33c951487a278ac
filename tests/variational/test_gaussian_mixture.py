"""The mixture of Gaussians against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from keras import ops
from scipy.stats import gamma, norm

from edgecompress.variational.gaussian_mixture import SHAPE, ZERO_SHAPE, assigned, complexity

_RNG = np.random.default_rng(0)
WEIGHTS = _RNG.normal(0, 0.1, 50)
MEANS, VARIANCES = np.array([-0.1, 0.2]), np.array([4e-4, 9e-4, 1e-3])
LOGITS, ZERO, WIDTH = np.array([0.5, -0.5]), 0.8, 0.03


def _tensors() -> list[object]:
    values = (WEIGHTS, MEANS, np.log(VARIANCES), LOGITS)
    return [ops.convert_to_tensor(value.astype("f4")) for value in values]


def _densities() -> np.ndarray:
    """Share times density, for each weight and component."""
    others = (1 - ZERO) * np.exp(LOGITS) / np.exp(LOGITS).sum()
    parts = zip([ZERO, *others], [0, *MEANS], np.sqrt(VARIANCES), strict=True)
    return np.stack([share * norm.pdf(WEIGHTS, m, s) for share, m, s in parts], axis=1)


def test_complexity_by_scipy() -> None:
    """Up to a constant, so two mixtures are compared."""
    shapes = np.array([ZERO_SHAPE, SHAPE, SHAPE])

    def want(variances: np.ndarray) -> float:
        return -gamma.logpdf(1 / variances, shapes, scale=1 / (shapes * WIDTH**2)).sum()

    weights, means, logs, logits = _tensors()
    found = float(complexity(weights, means, logs, logits, ZERO, WIDTH))
    constant = np.sum(gamma.logpdf(1, shapes, scale=1 / (shapes * WIDTH**2)) + shapes * WIDTH**2)
    data = -np.log(_densities().sum(1)).sum()
    assert found == pytest.approx(data + want(VARIANCES) + constant, rel=1e-4)


def test_each_weight_takes_the_mean_of_its_component() -> None:
    found = np.array(assigned(*_tensors(), ZERO))
    want = np.array([0, *MEANS])[_densities().argmax(1)]
    np.testing.assert_allclose(found, want, rtol=1e-6)
    assert len(set(want)) == 3
