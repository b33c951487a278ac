"""Which neurons of a layer are nearly the same: pure numpy, no data.

Srinivas and Babu, "Data-free parameter pruning for deep neural networks" (BMVC 2015,
https://arxiv.org/abs/1507.06149). If two neurons have the same weights, one can go and the other
takes over its outgoing weights. If they differ by eps_ij, this changes the output by no more than
the saliency (their equation 8)

    s_ij = <a_j^2> ||eps_ij||^2

with a_j the outgoing weights of the neuron j that goes. Unlike there, weights may also agree up to
a factor: behind a ReLU, h(c w x) = c h(w x) for c > 0, so that eps_ij = w_j - c w_i with the c that
makes it smallest, and neuron i takes over c a_j.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Merge:
    """One neuron that another takes over.

    Attributes:
        kept: The neuron that stays.
        removed: The neuron that goes.
        scale: By how much the removed neuron's outgoing weights are multiplied when they are added.
        saliency: s_ij, 0 if the outputs do not change.
    """

    kept: int
    removed: int
    scale: float
    saliency: float


def merge_order(weights: np.ndarray, outgoing: np.ndarray, scaled: bool) -> list[Merge]:
    """Returns all merges of a layer, each the least salient of those left.

    Args:
        weights: Weights of each neuron, its bias among them, (neurons, weights).
        outgoing: Weights that read each neuron, (neurons, readers).
        scaled: Whether weights may agree up to a positive factor: the activation h has h(c x) =
            c h(x) for c > 0.

    Returns:
        At most neurons - 1 merges; fewer if the neurons left point in opposite directions.

    Example:
        >>> merge_order(np.array([[1.0, 2.0], [2.0, 4.0]]), np.ones((2, 1)), scaled=True)
        [Merge(kept=1, removed=0, scale=0.5, saliency=0.0)]
    """
    weights, outgoing = weights.astype(np.float64), outgoing.astype(np.float64).copy()
    distances, scales = _distances(weights, scaled)
    nearest = distances.argmin(axis=0)
    alive = np.ones(len(weights), dtype=bool)
    read = (outgoing**2).mean(axis=1)
    merges: list[Merge] = []
    while alive.sum() > 1:
        # An infinite distance times no outgoing weight would not be a number.
        apart = distances[nearest, np.arange(len(nearest))]
        saliency = np.where(alive & np.isfinite(apart), read * apart, np.inf)
        removed = int(saliency.argmin())
        if not np.isfinite(saliency[removed]):
            break
        kept = int(nearest[removed])
        scale = float(scales[kept, removed])
        merges.append(Merge(kept, removed, scale, float(saliency[removed])))
        outgoing[kept] += scale * outgoing[removed]
        read[kept] = (outgoing[kept] ** 2).mean()
        alive[removed] = False
        distances[removed] = np.inf
        lost = np.flatnonzero(alive & (nearest == removed))
        nearest[lost] = distances[:, lost].argmin(axis=0)
    return merges


def _distances(weights: np.ndarray, scaled: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns ||w_j - c_ij w_i||^2 and c_ij, (kept i, removed j); infinite where i cannot be j."""
    products = weights @ weights.T
    squares = np.diag(products)
    if scaled:
        scales = (
            np.where(products > 0, products, 0.0) / np.where(squares > 0, squares, 1.0)[:, None]
        )
    else:
        scales = np.ones_like(products)
    distances = np.empty_like(products)
    for kept, row in enumerate(scales):
        # Differences first: those of squares would be rounding where weights are nearly the same.
        distances[kept] = ((weights - row[:, None] * weights[kept]) ** 2).sum(axis=1)
    distances[scales <= 0] = np.inf
    np.fill_diagonal(distances, np.inf)
    return distances, scales
