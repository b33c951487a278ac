"""Geometric median: filters that the others of their layer can stand in for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgecompress.criteria.base import CRITERIA, FilterCriterion


@CRITERIA.register("geometric-median")
@dataclass(frozen=True)
class GeometricMedian(FilterCriterion):
    """Scores a filter by the sum of its distances to the others of its layer.

        S_c = sum over j of ||w_c - w_j||_2

    He et al., "Filter pruning via geometric median for deep convolutional neural networks
    acceleration" (2019, https://arxiv.org/abs/1811.00250), section 3.3: filters near the geometric
    median are redundant, however large they are. Each update takes filters^2 * weights of a filter
    multiply-accumulates.

    Example:
        >>> from keras import ops
        >>> scores = GeometricMedian().score_filters(ops.array([[0.0], [1.0], [4.0]]), {})
        >>> [float(score) for score in scores]
        [5.0, 4.0, 7.0]
    """

    def score_filters(self, filters: Any, statistics: Mapping[str, Any]) -> Any:
        """Returns the summed distances; see `FilterCriterion`."""
        from keras import ops

        squares = ops.sum(ops.square(filters), axis=1)
        products = ops.matmul(filters, ops.transpose(filters))
        distances = ops.expand_dims(squares, 0) + ops.expand_dims(squares, 1) - 2 * products
        # Rounding leaves a filter at a small distance from itself, whose root is not small.
        others = 1 - ops.eye(filters.shape[0])
        return ops.sum(ops.sqrt(ops.maximum(distances, 0.0)) * others, axis=1)
