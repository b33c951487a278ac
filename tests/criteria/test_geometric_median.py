"""Geometric median against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from edgecompress.criteria.geometric_median import GeometricMedian

keras = pytest.importorskip("keras")


def test_scores_are_summed_distances() -> None:
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 7)).astype("f4")
    filters = np.moveaxis(kernel, -1, 0).reshape(7, -1)
    expected = [sum(np.linalg.norm(one - other) for other in filters) for one in filters]
    np.testing.assert_allclose(GeometricMedian().group_scores(kernel, -1), expected, rtol=1e-5)


def test_a_filter_between_the_others_goes_before_a_small_one() -> None:
    """The fourth filter is the mean of the others, and twice as large as the smallest."""
    others = np.array([[1.0, 0, 0], [0, 4.0, 0], [0, 0, 4.0]], "f4")
    filters = np.vstack([others, others.mean(0)])
    assert np.linalg.norm(filters, axis=1).argmin() == 0
    assert GeometricMedian().group_scores(filters, 0).argmin() == 3
