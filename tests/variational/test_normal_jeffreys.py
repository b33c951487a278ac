"""The group normal-Jeffreys prior against integration and sampling."""

from __future__ import annotations

import numpy as np
import pytest
from keras import ops
from scipy.integrate import quad
from scipy.stats import norm

from edgecompress.variational.normal_jeffreys import divergence, moments


@pytest.mark.parametrize(("mean", "variance", "scale"), [(0.5, 0.3, 1.0), (-2.0, 1.5, -0.4)])
def test_weights_in_units_of_their_scale(mean: float, variance: float, scale: float) -> None:
    """The divergence of q(w | z) from p(w | z) is the same for every z."""
    posterior = norm(scale * mean, abs(scale) * np.sqrt(variance))
    prior = norm(0, abs(scale))
    want = quad(
        lambda w: posterior.pdf(w) * (posterior.logpdf(w) - prior.logpdf(w)),
        posterior.mean() - 10 * posterior.std(),
        posterior.mean() + 10 * posterior.std(),
    )[0]
    _, found = divergence(
        ops.array([mean]), ops.log(ops.array([variance])), ops.array([scale]), ops.zeros(1)
    )
    assert float(found) == pytest.approx(want, rel=1e-5)


def test_moments_by_sampling() -> None:
    random = np.random.default_rng(0)
    scale = 0.7 + 0.4 * random.normal(size=1_000_000)
    weights = scale * (1.2 + 0.5 * random.normal(size=scale.size))
    parameters = np.array([1.2, 2 * np.log(0.5), 0.7, 2 * np.log(0.4)], "f4")
    found = moments(*(ops.convert_to_tensor(x) for x in parameters))
    assert [float(x) for x in found] == pytest.approx([weights.mean(), weights.var()], rel=0.01)
