"""k-means on a line against brute force, and against the best clustering there is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from edgecompress.core.errors import ArgumentError, UnknownNameError
from edgecompress.precisions.kmeans import INITIALIZATIONS, cluster, lloyd, nearest

NAMES = sorted(INITIALIZATIONS)
_RNG = np.random.default_rng(0)


def brute_force(values: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Lloyd with all distances, as every textbook has it."""
    centroids = centroids.astype(float).copy()
    for _ in range(500):
        labels = np.abs(values[:, None] - centroids).argmin(1)
        moved = [
            values[labels == i].mean() if (labels == i).any() else c
            for i, c in enumerate(centroids)
        ]
        if np.allclose(moved, centroids, rtol=0, atol=1e-15):
            break
        centroids = np.array(moved)
    return centroids


def squares(values: np.ndarray, centroids: np.ndarray) -> float:
    return float((np.abs(values[:, None] - centroids).min(1) ** 2).sum())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("clusters", [2, 5, 16])
def test_lloyd_by_brute_force(name: str, clusters: int) -> None:
    values = np.concatenate([_RNG.normal(size=200), _RNG.laplace(2, 0.3, size=100)])
    values = np.concatenate([values, values[:50]])  # Some weigh twice.
    distinct, counts = np.unique(values, return_counts=True)
    start = np.sort(INITIALIZATIONS[name](distinct, counts, clusters, np.random.default_rng(7)))
    want = brute_force(values, start)
    np.testing.assert_allclose(lloyd(distinct, counts, start), want, atol=1e-12)
    assert squares(values, want) < squares(values, start)


@pytest.mark.parametrize("name", NAMES)
def test_labels_name_the_nearest_centroid(name: str) -> None:
    values = _RNG.normal(size=(30, 20))
    found = cluster(values, 8, name)
    assert found.labels.shape == values.shape
    distances = np.abs(values[..., None] - found.centroids)
    np.testing.assert_array_equal(found.labels, distances.argmin(-1))
    assert sorted(set(found.labels.ravel())) == list(range(len(found.centroids)))
    assert np.all(np.diff(found.centroids) > 0)
    error = np.sqrt(((values - found.centroids[found.labels]) ** 2).sum() / (values**2).sum())
    assert found.error == pytest.approx(error)


def test_separated_groups_are_found_as_the_best_clustering() -> None:
    centres = np.array([-3.0, 0.5, 4.0])
    values = (centres[:, None] + _RNG.uniform(-0.2, 0.2, size=(3, 6))).ravel()
    ordered = np.sort(values)
    best = min(
        sum(((part - part.mean()) ** 2).sum() for part in np.split(ordered, cut))
        for cut in itertools.combinations(range(1, len(ordered)), 2)
    )
    for name in NAMES:
        found = cluster(values, 3, name)
        assert squares(values, found.centroids) == pytest.approx(best)


def test_linear_start_spans_the_range_and_density_the_ranks() -> None:
    values, ones = np.arange(1.0, 101.0) ** 2, np.ones(100, int)
    random = np.random.default_rng(0)
    start = INITIALIZATIONS["linear"](values, ones, 5, random)
    np.testing.assert_allclose(start, 1 + np.arange(5) * (1e4 - 1) / 4)
    start = INITIALIZATIONS["density"](values, ones, 5, random)
    np.testing.assert_array_equal(start, np.array([10.0, 30, 50, 70, 90]) ** 2)


def test_k_means_plus_plus_repeats_by_seed_and_never_chooses_a_value_twice() -> None:
    values, ones = np.sort(_RNG.normal(size=40)), np.ones(40, int)
    starts = [
        INITIALIZATIONS["k-means++"](values, ones, 10, np.random.default_rng(seed))
        for seed in (3, 3, 4)
    ]
    np.testing.assert_array_equal(starts[0], starts[1])
    assert not np.array_equal(starts[0], starts[2])
    assert len(set(starts[0])) == 10
    first = cluster(values, 10, "k-means++", seed=3)
    np.testing.assert_array_equal(
        first.centroids, cluster(values, 10, "k-means++", seed=3).centroids
    )


def test_zeros_stay_or_take_part_as_asked() -> None:
    values = np.array([0.0, -0.0, 0.1, 0.12, 0.9, 1.1])
    kept = cluster(values, 2)
    assert kept.labels.tolist() == [-1, -1, 0, 0, 1, 1]
    np.testing.assert_allclose(kept.centroids, [0.11, 1.0])
    mixed = cluster(values, 2, preserve_zeros=False)
    assert mixed.labels.tolist() == [0, 0, 0, 0, 1, 1]
    np.testing.assert_allclose(mixed.centroids, [0.055, 1.0])


def test_few_values_stay_exactly() -> None:
    values = np.float32([0.1, -0.3, 0.1, 0.0, 0.7])
    found = cluster(values, 3)
    np.testing.assert_array_equal(np.float32(found.centroids), np.float32([-0.3, 0.1, 0.7]))
    assert found.error == 0
    nothing = cluster(np.zeros((2, 2)), 3)
    assert len(nothing.centroids) == 0 and (nothing.labels == -1).all() and nothing.error == 0


@pytest.mark.parametrize("name", NAMES)
def test_no_centroid_is_wasted_on_a_gap(name: str) -> None:
    values = _RNG.normal(size=500)
    values = np.round(values[np.abs(values) > 1.0], 2)
    plain = lloyd(*np.unique(values, return_counts=True), np.linspace(-3, 3, 16))
    assert len(np.unique(nearest(values, plain))) < 16  # What a start alone would leave.
    found = cluster(values, 16, name)
    assert len(found.centroids) == len(np.unique(found.labels)) == 16
    assert squares(values, found.centroids) < squares(values, plain)
    np.testing.assert_allclose(found.centroids, brute_force(values, found.centroids), atol=1e-12)


def test_a_tie_goes_to_the_smaller_centroid() -> None:
    assert nearest(np.array([0.5, 1.5]), np.array([0.0, 1.0, 2.0])).tolist() == [0, 1]


def test_start_replaces_the_initialization() -> None:
    values = np.array([0.0, 1.0, 10.0, 11.0, 20.0, 21.0])
    found = cluster(values, 2, preserve_zeros=False, start=np.array([0.0, 15.0]))
    np.testing.assert_allclose(found.centroids, brute_force(values, np.array([0.0, 15.0])))
    assert found.labels.tolist() == [0, 0, 1, 1, 1, 1]


def test_mistakes_are_named() -> None:
    with pytest.raises(ArgumentError, match="`clusters` must be 1 or more. Got 0"):
        cluster(np.ones(3), 0)
    with pytest.raises(UnknownNameError, match="linear"):
        cluster(np.ones(3), 2, "linaer")
    with pytest.raises(ArgumentError, match="finite"):
        cluster(np.array([1.0, np.nan]), 2)
