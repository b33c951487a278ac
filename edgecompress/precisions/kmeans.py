"""k-means on the weights of a layer: a few values shared by many weights, in plain numpy.

Han, Mao and Dally, Deep Compression, 2016, https://arxiv.org/abs/1510.00149, section 3. Weights
are numbers on a line, so Lloyd's iterations need no distances: a cluster is a run of the sorted
values, and its mean is a difference of running sums. One iteration costs k binary searches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgecompress.core.errors import ArgumentError
from edgecompress.core.registry import Registry

# Lloyd's iterations always end; this bounds the time on slowly converging kernels.
MAX_ITERATIONS = 1000

# Name -> function (distinct values ascending, how often each occurs, k, random) -> k centroids.
INITIALIZATIONS: Registry[
    Callable[[np.ndarray, np.ndarray, int, np.random.Generator], np.ndarray]
] = Registry("initialization")


@dataclass(frozen=True, eq=False)
class Clusters:
    """Values that share centroids.

    Attributes:
        centroids: The shared values, ascending, float64; a preserved zero is not among them.
        labels: For each value the index of its centroid, in the shape of the values; -1 for a
            preserved zero.
        error: Root of `sum (w - c(w))**2 / sum w**2`; 0 if no value changes.
    """

    centroids: np.ndarray
    labels: np.ndarray
    error: float


@INITIALIZATIONS.register("linear")
def linear(
    values: np.ndarray, counts: np.ndarray, clusters: int, random: np.random.Generator
) -> np.ndarray:
    """Returns centroids evenly spaced from the smallest value to the largest (section 3.2).

    `c_i = min + i * (max - min) / (k - 1)`: the rare large weights get centroids, too, which is
    why the paper finds it the most accurate.
    """
    return np.linspace(values[0], values[-1], clusters)


@INITIALIZATIONS.register("density")
def density(
    values: np.ndarray, counts: np.ndarray, clusters: int, random: np.random.Generator
) -> np.ndarray:
    """Returns centroids that cut the distribution into parts of equal weight (section 3.2).

    `c_i` is the smallest value whose cumulative share reaches `(i + 1/2) / k`.
    """
    shares = np.cumsum(counts) / counts.sum()
    return values[np.searchsorted(shares, (np.arange(clusters) + 0.5) / clusters)]


@INITIALIZATIONS.register("k-means++")
def k_means_plus_plus(
    values: np.ndarray, counts: np.ndarray, clusters: int, random: np.random.Generator
) -> np.ndarray:
    """Returns random centroids, each chosen with probability `D(w)**2 / sum D**2`.

    `D(w)` is the distance to the nearest centroid chosen before; the first is any value. Arthur
    and Vassilvitskii, k-means++: The Advantages of Careful Seeding, 2007, section 2.2.
    """
    chosen = [values[random.choice(len(values), p=counts / counts.sum())]]
    squares = (values - chosen[0]) ** 2
    for _ in range(clusters - 1):
        weights = counts * squares
        chosen.append(values[random.choice(len(values), p=weights / weights.sum())])
        squares = np.minimum(squares, (values - chosen[-1]) ** 2)
    return np.array(chosen)


def nearest(values: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Returns the index of the nearest centroid for each value; on a tie, the smaller one.

    Args:
        values: Numbers in any shape.
        centroids: Ascending.
    """
    return np.searchsorted((centroids[1:] + centroids[:-1]) / 2, values, side="left")


def lloyd(values: np.ndarray, counts: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Returns centroids after Lloyd's iterations, which end once no value changes its cluster.

    Each iteration assigns every value to its nearest centroid and moves each centroid to its
    members' mean, so that `sum_k sum_{w in cluster k} (w - c_k)**2` (equation 2 of the paper)
    never grows. A centroid without members stays where it is.

    Args:
        values: Distinct values, ascending, float64.
        counts: How often each occurs.
        centroids: k numbers to start from.
    """
    sums = np.concatenate([[0.0], np.cumsum(values * counts)])
    numbers = np.concatenate([[0], np.cumsum(counts)])
    centroids = np.sort(centroids)
    before = None
    for _ in range(MAX_ITERATIONS):
        middles = (centroids[1:] + centroids[:-1]) / 2
        bounds = np.concatenate(
            [[0], np.searchsorted(values, middles, side="right"), [len(values)]]
        )
        if before is not None and np.array_equal(bounds, before):
            break
        before = bounds
        members = numbers[bounds[1:]] - numbers[bounds[:-1]]
        totals = sums[bounds[1:]] - sums[bounds[:-1]]
        centroids = np.where(members > 0, totals / np.maximum(members, 1), centroids)
    return centroids


def _refilled(
    values: np.ndarray, counts: np.ndarray, centroids: np.ndarray, clusters: int
) -> np.ndarray:
    """Returns k centroids that all have members."""
    # Every round lowers the error; the bound is for values that rounding cannot distinguish.
    for _ in range(2 * clusters):
        centroids = centroids[np.unique(nearest(values, centroids))]
        if len(centroids) == clusters:
            break
        distances = np.abs(values - centroids[nearest(values, centroids)])
        worst = values[np.argmax(counts * distances**2)]
        centroids = lloyd(values, counts, np.append(centroids, worst))
    return centroids[np.unique(nearest(values, centroids))]


def cluster(
    values: np.ndarray,
    clusters: int,
    initialization: str = "linear",
    preserve_zeros: bool = True,
    seed: int = 0,
    start: np.ndarray | None = None,
) -> Clusters:
    """Assigns values to at most k shared ones by k-means.

    If there are at most k distinct values, they become the centroids unchanged, so a
    kernel that was clustered before is read back exactly. Otherwise a centroid that ends up without
    members, as in the gap that pruning leaves around zero, moves to the value whose occurrences add
    most to the error, and Lloyd's iterations continue; the paper leaves this case open.

    Args:
        values: Finite numbers in any shape, at least one.
        clusters: k, the maximum number of centroids, 1 or more; a preserved zero is extra.
        initialization: `"linear"`, `"density"` or `"k-means++"`. Defaults to `"linear"`.
        preserve_zeros: Whether zeros stay zeros and are not clustered. Defaults to True.
        seed: Of `"k-means++"`; the other two draw nothing. Defaults to 0.
        start: Centroids to start from instead of an initialization. Defaults to None.

    Raises:
        ArgumentError: `clusters` is less than 1 or a value is not finite.
        UnknownNameError: `initialization` is unknown.

    Example:
        >>> found = cluster(np.array([0.0, 1.0, 1.2, 5.0]), 2)
        >>> found.centroids.tolist(), found.labels.tolist()
        ([1.1, 5.0], [-1, 0, 0, 1])
    """
    initialize = INITIALIZATIONS[initialization]
    if clusters < 1:
        raise ArgumentError("clusters", "be 1 or more", clusters)
    values = np.asarray(values, np.float64)
    if not np.isfinite(values).all():
        raise ArgumentError("values", "be finite", "infinite or undefined weights")
    labels = np.full(values.shape, -1)
    members = values != 0 if preserve_zeros else np.ones(values.shape, bool)
    distinct, counts = np.unique(values[members], return_counts=True)
    if len(distinct) <= clusters:
        labels[members] = np.searchsorted(distinct, values[members])
        return Clusters(distinct, labels, 0.0)
    if start is None:
        start = initialize(distinct, counts, clusters, np.random.default_rng(seed))
    centroids = _refilled(distinct, counts, lloyd(distinct, counts, np.unique(start)), clusters)
    found = nearest(values[members], centroids)
    labels[members] = found
    error = float(np.sum((values[members] - centroids[found]) ** 2))
    return Clusters(centroids, labels, float(np.sqrt(error / np.sum(values**2))))
