"""The group normal-Jeffreys prior, under which noise prunes whole groups of weights.

Louizos, Ullrich and Welling, Bayesian Compression for Deep Learning, 2017,
https://arxiv.org/abs/1705.08665, section 4.1. The weights of a group g share a scale z_g:

    p(z_g) ~ 1 / |z_g|,   p(w | z_g) = N(0, z_g ** 2)
    q(z_g) = N(m_g, s_g ** 2),   q(w | z_g) = N(z_g mean, z_g ** 2 variance)
"""

from __future__ import annotations

from typing import Any

from keras import ops

from edgecompress.variational.log_uniform import divergence as log_uniform_divergence
from edgecompress.variational.log_uniform import log_alpha


def divergence(
    mean: Any, log_variance: Any, scale_mean: Any, scale_log_variance: Any
) -> tuple[Any, Any]:
    """Returns the divergence of a posterior from the prior, in nats: of the scales, of the weights.

    Equations (8) and (9) of the paper: that of `variational.log_uniform` for each scale, and
    `(variance + mean ** 2 - log variance - 1) / 2`, from N(0, 1), for each weight, because z_g is
    the unit of both the prior and the posterior.

    Args:
        mean: Means of the weights in units of their scale, any shape.
        log_variance: Logarithms of their variances, of the same shape.
        scale_mean: Means of the scales, any shape.
        scale_log_variance: Logarithms of their variances, of the same shape.

    Example:
        >>> scales, weights = divergence(ops.zeros(4), ops.zeros(4), ops.ones(2), ops.zeros(2))
        >>> round(float(scales), 3), float(weights)
        (0.862, 0.0)
    """
    scales = ops.sum(log_uniform_divergence(log_alpha(scale_mean, scale_log_variance)))
    weights = 0.5 * ops.sum(ops.exp(log_variance) + ops.square(mean) - log_variance - 1.0)
    return scales, weights


def moments(
    mean: Any, log_variance: Any, scale_mean: Any, scale_log_variance: Any
) -> tuple[Any, Any]:
    """Returns the mean and the variance of weights over the noise of their scales, too.

    Section 4.3 of the paper: `E w = m mean` and `var w = m ** 2 variance + s ** 2 (mean ** 2 +
    variance)`.

    Args:
        mean: Means of the weights in units of their scale, any shape.
        log_variance: Logarithms of their variances.
        scale_mean: Means of the scales, broadcast against `mean`.
        scale_log_variance: Logarithms of their variances, likewise.

    Example:
        >>> mean, variance = moments(ops.array(2.0), ops.log(0.5), ops.array(3.0), ops.log(0.1))
        >>> round(float(mean), 3), round(float(variance), 3)
        (6.0, 4.95)
    """
    variance, spread = ops.exp(log_variance), ops.exp(scale_log_variance)
    total = ops.square(scale_mean) * variance + spread * (ops.square(mean) + variance)
    return scale_mean * mean, total
