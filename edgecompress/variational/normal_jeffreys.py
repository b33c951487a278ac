"""The group normal-Jeffreys prior, under which noise prunes whole groups of weights.

Louizos, Ullrich and Welling, Bayesian Compression for Deep Learning, 2017,
https://arxiv.org/abs/1705.08665, section 4.1: `p(z) ~ 1 / |z|`, `q(z) = N(m, s ** 2)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from edgecompress.variational import log_uniform
from edgecompress.variational.group_prior import GROUP_PRIORS, GroupPrior


@GROUP_PRIORS.register("normal-jeffreys")
@dataclass(frozen=True)
class NormalJeffreys(GroupPrior):
    """Log-uniform scales; a group goes when the noise of its scale exceeds the scale.

    Example:
        >>> values = {"scale_mean": ops.ones(2), "scale_log_variance": ops.zeros(2)}
        >>> round(float(NormalJeffreys().divergence(values)), 3)
        0.862
    """

    threshold = 0.0

    def start(self, groups: int, log_variance: float) -> dict[str, np.ndarray]:
        """As `GroupPrior.start`."""
        spread = np.full(groups, log_variance, "f4")
        return {"scale_mean": np.ones(groups, "f4"), "scale_log_variance": spread}

    def divergence(self, values: Mapping[str, Any]) -> Any:
        """As `GroupPrior.divergence`: equation (8), as approximated by `log_uniform`."""
        return ops.sum(log_uniform.divergence(self.weakness(values)))

    def draw(self, values: Mapping[str, Any], noise: Any) -> Any:
        """As `GroupPrior.draw`."""
        return values["scale_mean"] + noise * ops.exp(0.5 * values["scale_log_variance"])

    def moments(self, values: Mapping[str, Any]) -> tuple[Any, Any]:
        """As `GroupPrior.moments`."""
        return values["scale_mean"], ops.exp(values["scale_log_variance"])

    def weakness(self, values: Mapping[str, Any]) -> Any:
        """As `GroupPrior.weakness`: log alpha of the scale, `log(s ** 2 / m ** 2)`."""
        return log_uniform.log_alpha(values["scale_mean"], values["scale_log_variance"])
