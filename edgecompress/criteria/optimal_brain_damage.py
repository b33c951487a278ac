"""Optimal Brain Damage: weights whose removal would raise the loss least, to second order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from edgecompress.criteria.base import CRITERIA, Criterion


@CRITERIA.register("optimal-brain-damage")
@dataclass(frozen=True)
class OptimalBrainDamage(Criterion):
    """Scores a weight by the root of its saliency w^2 * h / 2, h its second derivative of the loss.

    At a minimum, where the gradient is 0, setting w to 0 raises the loss by w^2 * h / 2 if the
    Hessian is diagonal: LeCun, Denker and Solla, "Optimal brain damage" (1989), section 2. h is
    the mean of the squared gradients over all steps of the fit, the diagonal of the empirical
    Fisher matrix, which stands for the Hessian near a minimum of a log likelihood; it costs no
    second pass through the network. The score of a group of weights is the root of its summed
    saliencies. Unlike `taylor`, it multiplies a long mean with today's weights.

    Example:
        >>> from keras import ops
        >>> weights, gradient = ops.array([2.0, 0.1]), ops.array([0.5, -1.0])
        >>> seen = {"curvature": ops.zeros(2)}
        >>> seen = OptimalBrainDamage().observe(weights, gradient, seen, 0.0)
        >>> [round(float(score), 3) for score in OptimalBrainDamage().score(weights, seen)]
        [0.707, 0.071]
    """

    statistics: ClassVar[tuple[str, ...]] = ("curvature",)

    @property
    def loss_power(self) -> float | None:
        """The saliency is the score's square; see `Criterion.loss_power`."""
        return 2.0

    def observe(
        self, weights: Any, gradient: Any, statistics: Mapping[str, Any], step: Any
    ) -> Mapping[str, Any]:
        """Returns the mean of squared gradients after one more step; see `Criterion.observe`."""
        from keras import ops

        past, new = statistics["curvature"], ops.square(ops.cast(gradient, "float32"))
        return {"curvature": past + (new - past) / (step + 1.0)}

    def score(self, weights: Any, statistics: Mapping[str, Any]) -> Any:
        """Returns |w| * sqrt(h / 2); see `Criterion.score`."""
        from keras import ops

        return ops.abs(ops.cast(weights, "float32")) * ops.sqrt(statistics["curvature"] / 2)
