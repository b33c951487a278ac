"""Gate sensitivity: units whose output could be scaled without changing the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from edgecompress.criteria.base import CRITERIA, FilterCriterion, momentum_option, moving_average


@CRITERIA.register("gate-sensitivity")
@dataclass(frozen=True)
class GateSensitivity(FilterCriterion):
    """Scores a filter by |dL/da|, a gate of 1 on its output.

    Mozer and Smolensky, "Skeletonization: a technique for trimming the fat from a network via
    relevance assessment" (1988): relevance is an exponential moving average of the
    derivative over steps, here with w * dL/dw summed over the filter's weights. Derivatives of
    both signs cancel over time, unlike in `fisher`, which averages their squares.

    Args:
        momentum: Weight of the past in the moving average, 0 to 1; 0.8 in the paper.

    Example:
        >>> from keras import ops
        >>> filters, gradient = ops.array([[1.0, 2.0]]), ops.array([[-2.0, -1.0]])
        >>> seen = {"relevance": ops.zeros(1)}
        >>> seen = GateSensitivity().observe_filters(filters, gradient, seen, 0.0)
        >>> float(GateSensitivity().score_filters(filters, seen)[0])
        4.0
    """

    statistics: ClassVar[tuple[str, ...]] = ("relevance",)

    momentum: float = momentum_option(0.8)

    @property
    def loss_power(self) -> float | None:
        """The score itself; see `Criterion.loss_power`."""
        return 1.0

    def observe_filters(
        self, filters: Any, gradient: Any, statistics: Mapping[str, Any], step: Any
    ) -> Mapping[str, Any]:
        """Returns the moving average after one more step; see `FilterCriterion`."""
        from keras import ops

        slope = ops.sum(filters * gradient, axis=1)
        return {"relevance": moving_average(statistics["relevance"], slope, self.momentum, step)}

    def score_filters(self, filters: Any, statistics: Mapping[str, Any]) -> Any:
        """Returns the size of the derivative; see `FilterCriterion`."""
        from keras import ops

        return ops.abs(statistics["relevance"])
