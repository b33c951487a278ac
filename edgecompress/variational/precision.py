"""How many bits the uncertainty of weights leaves worth storing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

# A float32 has no more.
_MOST = 23


def allowed_bits(means: Any, variances: Any) -> int:
    """Returns the bits of a fixed-point format that posteriors of weights allow.

    Louizos, Ullrich and Welling, Bayesian Compression for Deep Learning, 2017,
    https://arxiv.org/abs/1705.08665, section 4.3: the mean variance of a layer's weights gives the
    unit round-off that is lost in their noise anyway. As in the authors' release, weight i needs
    the number of fraction bits t with `2 ** -t > 2 * variance_i`, at most 23, and the layer the
    mean over its weights, rounded up. A sign bit is added, and integer bits where weights exceed 1.

    Args:
        means: Means of the weights that are kept, at least one; any shape.
        variances: Their variances, of the same shape.

    Example:
        >>> allowed_bits(np.array([0.3, -0.2]), np.array([1e-3, 1e-3]))
        9
    """
    limits = 2.0 ** -np.arange(1, _MOST + 1)
    doubled = 2 * np.ravel(np.asarray(variances, np.float64))
    # Limits above each number: those before its place in descending order.
    places = np.searchsorted(-limits, -doubled, side="left")
    largest = float(np.abs(np.asarray(means)).max())
    whole = max(0, math.floor(math.log2(largest)) + 1) if largest > 0 else 0
    return 1 + whole + math.ceil(float(places.mean()))
