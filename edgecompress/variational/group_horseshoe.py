"""The group horseshoe prior: scales are half-Cauchy, those of groups and that of the layer.

Louizos, Ullrich and Welling, Bayesian Compression for Deep Learning, 2017,
https://arxiv.org/abs/1705.08665, section 4.2:

    s ~ C+(0, t),   z_g ~ C+(0, 1),   w = s z_g v

A half-Cauchy variable of scale t is `sqrt(a b)` with `a ~ Gamma(1/2, t ** 2)` (shape and scale) and
`b ~ InverseGamma(1/2, 1)`. The posteriors of all a and b are log-normal, and so are those of the
scales.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from edgecompress.core.errors import ArgumentError
from edgecompress.core.options import Number, option
from edgecompress.variational.group_prior import GROUP_PRIORS, GroupPrior


@GROUP_PRIORS.register("group-horseshoe")
@dataclass(frozen=True)
class GroupHorseshoe(GroupPrior):
    """Half-Cauchy scales; a group goes when the mode of its scale is small.

    Args:
        global_scale: t, greater than 0. The paper's is 1e-5.

    Raises:
        ArgumentError: `global_scale` is not greater than 0.

    Example:
        >>> prior = GroupHorseshoe(global_scale=0.1)
        >>> scales, _ = prior.moments(prior.start(groups=2, log_variance=-9.0))
        >>> [round(float(scale), 3) for scale in scales]
        [1.0, 1.0]
    """

    threshold = 4.0
    global_scale: float = option(1e-5, "Scale of the layer's half-Cauchy scale.", Number())

    def __post_init__(self) -> None:
        """Checks the scale."""
        if not 0 < self.global_scale < math.inf:
            raise ArgumentError("global_scale", "be greater than 0", self.global_scale)

    def start(self, groups: int, log_variance: float) -> dict[str, np.ndarray]:
        """As `GroupPrior.start`: where the prior's heavy tail makes scales of 1 cheapest."""
        low = 2 * math.log(self.global_scale)
        local = np.stack([np.zeros(groups), np.full(groups, -low)])
        values = {
            "local_log_mean": local,
            "local_log_variance": np.full((2, groups), log_variance),
            "global_log_mean": np.array([low, 0.0]),
            "global_log_variance": np.full(2, log_variance),
        }
        return {name: value.astype("f4") for name, value in values.items()}

    def divergence(self, values: Mapping[str, Any]) -> Any:
        """As `GroupPrior.divergence`."""
        local = values["local_log_mean"], values["local_log_variance"]
        shared = values["global_log_mean"], values["global_log_variance"]
        return (
            ops.sum(gamma_divergence(local[0][0], local[1][0], 1.0))
            + ops.sum(inverse_gamma_divergence(local[0][1], local[1][1]))
            + gamma_divergence(shared[0][0], shared[1][0], self.global_scale)
            + inverse_gamma_divergence(shared[0][1], shared[1][1])
        )

    def draw(self, values: Mapping[str, Any], noise: Any) -> Any:
        """As `GroupPrior.draw`; the layer's scale is drawn for each group, too."""
        mean, variance = _logarithm(values)
        return ops.exp(mean + noise * ops.sqrt(variance))

    def moments(self, values: Mapping[str, Any]) -> tuple[Any, Any]:
        """As `GroupPrior.moments`: those of a log-normal variable."""
        mean, variance = _logarithm(values)
        expected = ops.exp(mean + 0.5 * variance)
        return expected, ops.square(expected) * ops.expm1(variance)

    def weakness(self, values: Mapping[str, Any]) -> Any:
        """As `GroupPrior.weakness`: the negative logarithm of the scale's mode (section 4.2)."""
        mean, variance = _logarithm(values)
        return variance - mean


def gamma_divergence(log_mean: Any, log_variance: Any, scale: float) -> Any:
    """Returns the divergence of a log-normal variable from Gamma(1/2, scale ** 2), in nats.

        log scale + exp(m + s ** 2 / 2) / scale ** 2 - (m + log s ** 2 + 1 + log 2) / 2

    Args:
        log_mean: m, mean of its logarithm, any shape.
        log_variance: log s ** 2, logarithm of the variance of its logarithm, of the same shape.
        scale: Greater than 0.

    Example:
        >>> round(float(gamma_divergence(ops.array(0.0), ops.array(0.0), 1.0)), 3)
        0.802
    """
    # In one exponential: scale ** -2 alone may be too large for float32.
    expected = ops.exp(log_mean + 0.5 * ops.exp(log_variance) - 2 * math.log(scale))
    return math.log(scale) + expected - 0.5 * (log_mean + log_variance + 1 + math.log(2))


def inverse_gamma_divergence(log_mean: Any, log_variance: Any) -> Any:
    """Returns the divergence of a log-normal variable from InverseGamma(1/2, 1), in nats.

    The inverse of such a variable is Gamma(1/2, 1), and that of a log-normal one log-normal.

    Args:
        log_mean: Mean of its logarithm, any shape.
        log_variance: Logarithm of the variance of its logarithm, of the same shape.

    Example:
        >>> round(float(inverse_gamma_divergence(ops.array(1.0), ops.array(0.0))), 3)
        0.26
    """
    return gamma_divergence(-log_mean, log_variance, 1.0)


def _logarithm(values: Mapping[str, Any]) -> tuple[Any, Any]:
    """Returns mean and variance of the logarithm of each group's scale, the layer's included."""
    means = ops.sum(values["local_log_mean"], axis=0) + ops.sum(values["global_log_mean"])
    local = ops.sum(ops.exp(values["local_log_variance"]), axis=0)
    return 0.5 * means, 0.25 * (local + ops.sum(ops.exp(values["global_log_variance"])))
