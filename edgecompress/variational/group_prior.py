"""Weights of a group share a scale, and a prior of the scale decides which groups go.

    w = z_g * v,   p(v) = N(0, 1),   q(v) = N(mean, variance)

Louizos, Ullrich and Welling, Bayesian Compression for Deep Learning, 2017,
https://arxiv.org/abs/1705.08665, section 4. The weights' part of the divergence and their moments
are the same for every prior of the scales; see `normal_jeffreys` and `group_horseshoe`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from keras import ops

from edgecompress.core.registry import Registry

GROUP_PRIORS: Registry[type[GroupPrior]] = Registry("group prior")


class GroupPrior(ABC):
    """The prior of the scales of a layer's groups, and the family of their posterior.

    A group prior is a frozen dataclass; its fields are its options (`core.options.option`). All
    methods but `start` are pure functions over `keras.ops` of the posterior's parameters, by name.

    Attributes:
        threshold: Groups whose `weakness` is larger become zero, unless the user says otherwise.
    """

    threshold: ClassVar[float]

    @abstractmethod
    def start(self, groups: int, log_variance: float) -> dict[str, np.ndarray]:
        """Returns the parameters of scales of about 1.

        Args:
            groups: How many.
            log_variance: Logarithm of the variances that they start from.
        """

    @abstractmethod
    def divergence(self, values: Mapping[str, Any]) -> Any:
        """Returns the divergence of all scales' posterior from the prior, in nats; a scalar."""

    @abstractmethod
    def draw(self, values: Mapping[str, Any], noise: Any) -> Any:
        """Returns scales for standard normal numbers, (..., groups)."""

    @abstractmethod
    def moments(self, values: Mapping[str, Any]) -> tuple[Any, Any]:
        """Returns means and variances of the scales, (groups,) each."""

    @abstractmethod
    def weakness(self, values: Mapping[str, Any]) -> Any:
        """Returns a number that is larger for groups that carry less, (groups,)."""


def weights_divergence(mean: Any, log_variance: Any) -> Any:
    """Returns the divergence of weights in units of their scale from N(0, 1), in nats.

    Equation (9) of the paper, `(variance + mean ** 2 - log variance - 1) / 2` for each weight: z_g
    is the unit of both the prior and the posterior.

    Args:
        mean: Means, any shape.
        log_variance: Logarithms of their variances, of the same shape.

    Example:
        >>> float(weights_divergence(ops.array([0.0, 2.0]), ops.zeros(2)))
        2.0
    """
    return 0.5 * ops.sum(ops.exp(log_variance) + ops.square(mean) - log_variance - 1.0)


def moments(mean: Any, variance: Any, scale_mean: Any, scale_variance: Any) -> tuple[Any, Any]:
    """Returns the mean and the variance of weights over the noise of their scales, too.

    Section 4.3 of the paper: `E w = E z mean` and `var w = (E z) ** 2 variance + var z (mean ** 2 +
    variance)`.

    Args:
        mean: Means of the weights in units of their scale, any shape.
        variance: Their variances.
        scale_mean: Means of the scales, broadcast against `mean`.
        scale_variance: Their variances, likewise.

    Example:
        >>> mean, variance = moments(2.0, 0.5, 3.0, 0.1)
        >>> round(float(mean), 3), round(float(variance), 3)
        (6.0, 4.95)
    """
    total = scale_mean * scale_mean * variance + scale_variance * (mean * mean + variance)
    return scale_mean * mean, total
