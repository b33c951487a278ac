"""The log-uniform prior `p(|w|) ~ 1 / |w|`, under which noise prunes weights.

Kingma, Salimans and Welling, Variational Dropout and the Local Reparameterization Trick, 2015,
https://arxiv.org/abs/1506.02557; Molchanov, Ashukha and Vetrov, Variational Dropout Sparsifies Deep
Neural Networks, 2017, https://arxiv.org/abs/1701.05369.
"""

from __future__ import annotations

from typing import Any

from keras import ops

# Equation (14) of Molchanov et al.
_K1, _K2, _K3 = 0.63576, 1.87320, 1.48695
# Keeps the logarithm of a mean of zero finite; far below the square of any weight that counts.
_TINY = 1e-16


def log_alpha(mean: Any, log_variance: Any) -> Any:
    """Returns `log(variance / mean ** 2)`, the logarithm of the noise by the signal.

    Args:
        mean: Means of the weights, any shape.
        log_variance: Logarithms of their variances, broadcast with `mean`.

    Example:
        >>> round(float(log_alpha(ops.array(0.5), ops.log(0.25))), 5)
        0.0
    """
    return log_variance - ops.log(ops.square(mean) + _TINY)


def divergence(log_alphas: Any) -> Any:
    """Returns the divergence of each weight's posterior from the log-uniform prior, in nats.

    Equation (14) of Molchanov et al., which approximates it within 0.009 nats:

        KL = k1 - k1 sigmoid(k2 + k3 log alpha) + log(1 + 1 / alpha) / 2

    The prior is improper; its constant is chosen such that the divergence of pure noise is 0.

    Args:
        log_alphas: Of `log_alpha`, any shape.

    Example:
        >>> [round(float(x), 3) for x in divergence(ops.array([-8.0, 0.0, 8.0]))]
        [4.636, 0.431, 0.0]
    """
    return _K1 * ops.sigmoid(-(_K2 + _K3 * log_alphas)) + 0.5 * ops.softplus(-log_alphas)
