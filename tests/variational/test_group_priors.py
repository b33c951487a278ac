"""Group priors against integration and sampling."""

from __future__ import annotations

import numpy as np
import pytest
from keras import ops
from scipy import stats
from scipy.integrate import quad

from edgecompress.core.errors import ArgumentError
from edgecompress.variational import GROUP_PRIORS
from edgecompress.variational.group_horseshoe import (
    GroupHorseshoe,
    gamma_divergence,
    inverse_gamma_divergence,
)
from edgecompress.variational.group_prior import GroupPrior, moments, weights_divergence
from edgecompress.variational.normal_jeffreys import NormalJeffreys

every_prior = pytest.mark.parametrize("prior", [cls() for cls in GROUP_PRIORS.values()], ids=str)


def _divergence(posterior: object, prior: object) -> float:
    """Returns the divergence of a log-normal variable, integrated over its logarithm."""
    spread, center = posterior.kwds["s"], np.log(posterior.kwds["scale"])  # type: ignore[attr-defined]

    def nats(logarithm: float) -> float:
        x = np.exp(logarithm)
        share = stats.norm.pdf(logarithm, center, spread)
        return share * (posterior.logpdf(x) - prior.logpdf(x))  # type: ignore[attr-defined]

    return quad(nats, center - 12 * spread, center + 12 * spread, limit=200)[0]


@pytest.mark.parametrize(("log_mean", "deviation"), [(0.0, 1.0), (-1.5, 0.4), (0.7, 0.9)])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_divergences_of_the_horseshoe(log_mean: float, deviation: float, scale: float) -> None:
    posterior = stats.lognorm(s=deviation, scale=np.exp(log_mean))
    given = ops.array(log_mean), ops.log(ops.array(deviation**2))
    want = _divergence(posterior, stats.gamma(0.5, scale=scale**2))
    assert float(gamma_divergence(*given, scale)) == pytest.approx(want, rel=1e-4)
    want = _divergence(posterior, stats.invgamma(0.5))
    assert float(inverse_gamma_divergence(*given)) == pytest.approx(want, rel=1e-4)


def test_the_factors_make_a_half_cauchy_variable() -> None:
    random = np.random.default_rng(0)
    a, b = stats.gamma(0.5, scale=0.3**2), stats.invgamma(0.5)
    drawn = np.sqrt(a.rvs(20_000, random_state=random) * b.rvs(20_000, random_state=random))
    assert stats.kstest(drawn, stats.halfcauchy(scale=0.3).cdf).pvalue > 0.01
    assert stats.kstest(drawn, stats.halfcauchy(scale=0.4).cdf).pvalue < 0.01


def _horseshoe() -> tuple[GroupHorseshoe, dict[str, np.ndarray]]:
    values = {
        "local_log_mean": np.array([[0.3, -1.0], [0.1, -2.0]]),
        "local_log_variance": np.log([[0.2, 0.1], [0.3, 0.6]]),
        "global_log_mean": np.array([-0.5, 0.4]),
        "global_log_variance": np.log([0.05, 0.15]),
    }
    return GroupHorseshoe(0.5), {name: value.astype("f4") for name, value in values.items()}


def test_the_horseshoe_is_the_sum_over_its_factors() -> None:
    prior, values = _horseshoe()
    want = 0.0
    pairs = (("local", 0, stats.gamma(0.5)), ("local", 1, stats.invgamma(0.5)))
    pairs += (("global", 0, stats.gamma(0.5, scale=0.25)), ("global", 1, stats.invgamma(0.5)))
    for part, row, factor in pairs:
        means = np.ravel(values[f"{part}_log_mean"][row])
        spreads = np.exp(np.ravel(values[f"{part}_log_variance"][row]) / 2)
        for mean, spread in zip(means, spreads, strict=True):
            want += _divergence(stats.lognorm(s=spread, scale=np.exp(mean)), factor)
    assert float(prior.divergence(values)) == pytest.approx(want, rel=1e-4)


def test_scales_of_the_horseshoe_are_log_normal() -> None:
    """The product of the factors' square roots, by its density."""
    prior, values = _horseshoe()
    want = [
        stats.lognorm(s=np.sqrt(v), scale=np.exp(m)) for m, v in ((0.15, 0.175), (-1.55, 0.225))
    ]
    mean, variance = prior.moments(values)
    np.testing.assert_allclose(mean, [x.mean() for x in want], rtol=1e-5)
    np.testing.assert_allclose(variance, [x.var() for x in want], rtol=1e-5)
    near = [np.linspace(0.5, 1.5, 20_001) * x.median() for x in want]
    modes = [grid[np.argmax(x.pdf(grid))] for grid, x in zip(near, want, strict=True)]
    np.testing.assert_allclose(prior.weakness(values), -np.log(modes), atol=1e-4)


@every_prior
def test_moments_are_those_of_what_is_drawn(prior: GroupPrior) -> None:
    values = prior.start(3, log_variance=-3.0)
    drawn = np.array(prior.draw(values, np.random.default_rng(0).normal(size=(200_000, 3))))
    mean, variance = (np.array(x) for x in prior.moments(values))
    np.testing.assert_allclose(mean, drawn.mean(0), rtol=0.01)
    np.testing.assert_allclose(variance, drawn.var(0), rtol=0.02)
    assert mean.min() > 0.9 and mean.max() < 1.1
    assert float(ops.max(prior.weakness(values))) < prior.threshold
    assert np.isfinite(float(prior.divergence(values)))


@pytest.mark.parametrize(("mean", "variance", "scale"), [(0.5, 0.3, 1.0), (-2.0, 1.5, -0.4)])
def test_weights_in_units_of_their_scale(mean: float, variance: float, scale: float) -> None:
    """The divergence of q(w | z) from p(w | z) is the same for every z."""
    posterior = stats.norm(scale * mean, abs(scale) * np.sqrt(variance))
    prior = stats.norm(0, abs(scale))
    want = quad(
        lambda w: posterior.pdf(w) * (posterior.logpdf(w) - prior.logpdf(w)),
        posterior.mean() - 10 * posterior.std(),
        posterior.mean() + 10 * posterior.std(),
    )[0]
    found = weights_divergence(ops.array([mean]), ops.log(ops.array([variance])))
    assert float(found) == pytest.approx(want, rel=1e-5)


def test_moments_by_sampling() -> None:
    random = np.random.default_rng(0)
    scale = 0.7 + 0.4 * random.normal(size=1_000_000)
    weights = scale * (1.2 + 0.5 * random.normal(size=scale.size))
    values = {"scale_mean": np.array([0.7]), "scale_log_variance": np.log([0.16])}
    found = moments(1.2, 0.25, *NormalJeffreys().moments(values))
    assert [float(x[0]) for x in found] == pytest.approx([weights.mean(), weights.var()], rel=0.01)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_none_is_refused(scale: float) -> None:
    with pytest.raises(ArgumentError, match="greater than 0"):
        GroupHorseshoe(scale)
