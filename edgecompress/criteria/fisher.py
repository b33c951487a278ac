"""Fisher pruning: filters that the loss does not miss, by what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from edgecompress.core.options import Flag, option
from edgecompress.criteria.base import CRITERIA, FilterCriterion, momentum_option, moving_average


@CRITERIA.register("fisher")
@dataclass(frozen=True)
class Fisher(FilterCriterion):
    """Scores a filter by the rise of the loss without it, to second order, for each operation.

    A gate of 1 on a filter's output has the gradient g = sum over its weights of w * dL/dw, and
    removing the filter raises the loss by g^2 / 2 in the Fisher approximation: Theis et al.,
    "Faster gaze prediction with dense networks and Fisher pruning" (2018,
    https://arxiv.org/abs/1801.05787), here with the gradients of batches instead of
    single samples. The mean over steps is an exponential moving average. With `cost`, the score is
    divided by the filter's multiply-accumulates, so that of two filters that the loss misses
    equally the more expensive goes first; the paper subtracts a multiple of the cost instead.
    Only `scope="global"` compares layers of different cost.

    Args:
        momentum: Weight of the past in the moving average, 0 to 1.
        cost: Whether scores are divided by multiply-accumulates.

    Example:
        >>> from keras import ops
        >>> filters, gradient = ops.array([[1.0, 2.0]]), ops.array([[2.0, 1.0]])
        >>> seen = Fisher().observe_filters(filters, gradient, {"fisher": ops.zeros(1)}, 0.0)
        >>> float(Fisher(cost=False).score_filters(filters, seen)[0])
        8.0
    """

    statistics: ClassVar[tuple[str, ...]] = ("fisher",)

    momentum: float = momentum_option(0.9)
    cost: bool = option(True, "Divide by the filter's multiply-accumulates.", Flag())

    @property
    def views(self) -> tuple[str, ...]:
        """As `Criterion.views`."""
        return ("macs",) if self.cost else ()

    @property
    def loss_power(self) -> float | None:
        """The score itself, unless the cost divides it; see `Criterion.loss_power`."""
        return None if self.cost else 1.0

    def observe_filters(
        self, filters: Any, gradient: Any, statistics: Mapping[str, Any], step: Any
    ) -> Mapping[str, Any]:
        """Returns the moving average after one more step; see `FilterCriterion`."""
        from keras import ops

        change = ops.square(ops.sum(filters * gradient, axis=1))
        return {"fisher": moving_average(statistics["fisher"], change, self.momentum, step)}

    def score_filters(self, filters: Any, statistics: Mapping[str, Any]) -> Any:
        """Returns g^2 / 2, by multiply-accumulate if asked; see `FilterCriterion`."""
        rise = statistics["fisher"] / 2
        return rise / statistics["macs"] if self.cost else rise
