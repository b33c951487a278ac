"""Bits that the uncertainty of weights allows."""

from __future__ import annotations

import numpy as np
import pytest

from edgecompress.variational.precision import allowed_bits


def _counted(means: np.ndarray, variances: np.ndarray) -> int:
    """The rule of the paper's release, one weight at a time, with sign and integer bits."""
    fractions = [sum(2 * v < 2.0**-t for t in range(1, 24)) for v in variances.ravel()]
    whole = 0
    while np.abs(means).max() >= 2.0**whole:
        whole += 1
    return 1 + whole + int(np.ceil(np.mean(fractions)))


@pytest.mark.parametrize("largest", [0.1, 0.99, 1.0, 3.9, 4.0])
def test_against_counting(largest: float) -> None:
    random = np.random.default_rng(0)
    means = random.uniform(-largest, largest, (7, 5))
    means[0, 0] = largest
    variances = np.exp(random.uniform(-20, 0, (7, 5)))
    assert allowed_bits(means, variances) == _counted(means, variances)


@pytest.mark.parametrize(("variance", "bits"), [(1.0, 1), (0.25, 1), (0.2, 2), (1e-12, 24)])
def test_more_certainty_needs_more_bits(variance: float, bits: int) -> None:
    assert allowed_bits(np.array([0.5]), np.array([variance])) == bits


def test_a_layer_of_zeros_needs_its_sign() -> None:
    assert allowed_bits(np.zeros(3), np.ones(3)) == 1
