"""A multi-spike-and-slab prior, under which weights gather at the levels of a codebook.

Achterhold, Koehler, Schmeink and Genewein, Variational Network Quantization, 2018,
https://openreview.net/forum?id=ry-TW-WAb: a mixture of log-uniform priors, one around each level,

    p(w) ~ sum_k a_k / |w - c_k|

here with the levels -c, 0 and c of a ternary codebook.
"""

from __future__ import annotations

from typing import Any

from keras import ops

from edgecompress.variational import log_uniform

# Width of a level's window divided by the level: the paper's 0.075 for levels of 0.2.
WIDTH = 0.375


def divergence(mean: Any, log_variance: Any, level: Any) -> Any:
    """Returns the divergence of each weight's posterior from the prior, in nats.

    The paper's approximation: near a level that is not zero, within a Gaussian window around it,
    the divergence from the log-uniform prior around that level, elsewhere from the one around zero,

        KL = sum_k window(mean - c_k) F(mean - c_k) + (1 - sum_k window(mean - c_k)) F(mean)

    with F of `variational.log_uniform` and `window(d) = exp(-d ** 2 / (2 (0.375 c) ** 2))`. The
    width follows the level without a gradient; the paper's is 0.075 throughout.

    Args:
        mean: Means of the weights, any shape.
        log_variance: Logarithms of their variances, of the same shape.
        level: c, greater than 0, a scalar.

    Example:
        >>> found = divergence(ops.array([0.0, 0.1, 0.2]), ops.full((3,), -9.0), ops.array(0.2))
        >>> [round(float(nats), 2) for nats in found]
        [0.2, 2.83, 0.0]
    """
    width = WIDTH * ops.stop_gradient(level)
    rest, total = ops.ones_like(mean), ops.zeros_like(mean)
    for center in (level, -level):
        window = ops.exp(-0.5 * ops.square((mean - center) / width))
        total = total + window * _around(mean - center, log_variance)
        rest = rest - window
    return total + rest * _around(mean, log_variance)


def nearest(weights: Any, level: Any) -> Any:
    """Returns the nearest of the levels -c, 0 and c for each weight.

    Args:
        weights: Any shape.
        level: c, greater than 0, a scalar.

    Example:
        >>> [round(float(w), 1) for w in nearest(ops.array([-0.3, 0.09, 0.11]), ops.array(0.2))]
        [-0.2, 0.0, 0.2]
    """
    return ops.where(weights > level / 2, level, ops.where(weights < -level / 2, -level, 0.0))


def _around(mean: Any, log_variance: Any) -> Any:
    return log_uniform.divergence(log_uniform.log_alpha(mean, log_variance))
