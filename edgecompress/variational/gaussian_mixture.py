"""A mixture of Gaussians as prior, learnt together with the weights, which gather at its means.

Ullrich, Meeds and Welling, Soft Weight-Sharing for Neural Network Compression, 2017,
https://arxiv.org/abs/1702.04008, after Nowlan and Hinton, 1992. Component 0 is a Gaussian around
zero; its mean and its share of the mixture are fixed.
"""

from __future__ import annotations

import math
from typing import Any

from keras import ops

# The Gamma prior of the components' precisions, as in the paper's release.
SHAPE, ZERO_SHAPE = 250.0, 5000.0


def log_terms(weights: Any, means: Any, log_variances: Any, logits: Any, zero_share: float) -> Any:
    """Returns `log(share_j N(w | mean_j, variance_j))` for each weight and component.

    Args:
        weights: (n,).
        means: Of the components but the one around zero, (k,).
        log_variances: Of all components, that of zero first, (k + 1,).
        logits: Logarithms of their shares of what zero leaves, up to a constant, (k,).
        zero_share: Share of the component around zero, 0 < s < 1.

    Returns:
        (n, k + 1).
    """
    zeros = ops.zeros((1,), dtype="float32")
    centers = ops.concatenate([zeros, means])
    others = ops.log_softmax(logits) + math.log(1 - zero_share)
    shares = ops.concatenate([zeros + math.log(zero_share), others])
    constants = shares - 0.5 * (log_variances + math.log(2 * math.pi))
    distances = ops.square(ops.expand_dims(weights, 1) - centers)
    return constants - 0.5 * distances * ops.exp(-log_variances)


def complexity(
    weights: Any, means: Any, log_variances: Any, logits: Any, zero_share: float, width: float
) -> Any:
    """Returns `-log p(weights) - log p(precisions)`, equation (5) of the paper with its prior.

    The precisions have Gamma priors, which keep components from collapsing onto single weights:
    shape 250, 5000 for zero, and a mean of `1 / width ** 2`.

    Args:
        weights: (n,).
        means: As in `log_terms`.
        log_variances: Likewise.
        logits: Likewise.
        zero_share: Likewise.
        width: Standard deviation of a component that the prior expects.

    Returns:
        A scalar, in nats, up to a constant.
    """
    terms = log_terms(weights, means, log_variances, logits, zero_share)
    data = ops.sum(ops.logsumexp(terms, axis=1))
    shapes = ops.concatenate([ops.full((1,), ZERO_SHAPE), ops.full((int(means.shape[0]),), SHAPE)])
    precisions = ops.exp(-log_variances)
    prior = ops.sum((1.0 - shapes) * log_variances - shapes * width**2 * precisions)
    return -data - prior


def assigned(weights: Any, means: Any, log_variances: Any, logits: Any, zero_share: float) -> Any:
    """Returns the mean of the component that is most responsible for each weight.

    Args:
        weights: (n,).
        means: As in `log_terms`.
        log_variances: Likewise.
        logits: Likewise.
        zero_share: Likewise.
    """
    best = ops.argmax(log_terms(weights, means, log_variances, logits, zero_share), axis=1)
    return ops.take(ops.concatenate([ops.zeros((1,), dtype="float32"), means]), best)
