"""Change of weights: those that training had no reason to move matter least."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from edgecompress.criteria.base import CRITERIA, Criterion


@CRITERIA.register("weight-change")
@dataclass(frozen=True)
class WeightChange(Criterion):
    """Scores a weight by the work that training has put into it.

        |sum over steps of dw^2| * |w| / |w - w_0|,

    dw the change of a step and w_0 the weight at the start of the fit: Karnin, "A simple procedure
    for pruning back-propagation trained neural networks" (1990), but for its learning
    rate, which is the same for all weights of a plain gradient descent. The sum estimates
    by how much the loss fell on the way from 0 to w. A weight that never moved scores 0. Fits
    without momentum or with Adam count their own changes.

    Example:
        >>> from keras import ops
        >>> seen = {name: ops.zeros(1) for name in WeightChange.statistics}
        >>> for step, weight in enumerate([1.0, 2.0, 4.0]):
        ...     seen = WeightChange().observe(ops.array([weight]), None, seen, float(step))
        >>> round(float(WeightChange().score(ops.array([4.0]), seen)[0]), 3)
        6.667
    """

    statistics: ClassVar[tuple[str, ...]] = ("first", "last", "travelled")

    def observe(
        self, weights: Any, gradient: Any, statistics: Mapping[str, Any], step: Any
    ) -> Mapping[str, Any]:
        """Returns the weights at the start and now, and the summed squares of their changes."""
        from keras import ops

        weights = ops.cast(weights, "float32")
        begun = step > 0
        moved = ops.where(begun, ops.square(weights - statistics["last"]), 0.0)
        return {
            "first": ops.where(begun, statistics["first"], weights),
            "last": weights,
            "travelled": statistics["travelled"] + moved,
        }

    def score(self, weights: Any, statistics: Mapping[str, Any]) -> Any:
        """Returns the work put into each weight; see `Criterion.score`."""
        from keras import ops

        weights = ops.cast(weights, "float32")
        distance = ops.abs(weights - statistics["first"])
        # The last update is not in `travelled` yet.
        travelled = statistics["travelled"] + ops.square(weights - statistics["last"])
        still = distance <= 0
        share = ops.where(still, 0.0, ops.abs(weights) / ops.where(still, 1.0, distance))
        return travelled * share
