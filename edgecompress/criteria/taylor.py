"""First-order Taylor expansion: weights whose removal would change the loss least."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from edgecompress.criteria.base import CRITERIA, Criterion, momentum_option, moving_average


@CRITERIA.register("taylor")
@dataclass(frozen=True)
class Taylor(Criterion):
    """Scores a weight by the root mean square of w * dL/dw over the steps of training.

    Setting w to 0 changes the loss by w * dL/dw to first order; its square is equation (8) of
    Molchanov et al., "Importance estimation for neural network pruning" (2019,
    https://arxiv.org/abs/1906.10771). The mean over steps is an exponential moving average,

        s <- momentum * s + (1 - momentum) * (w * dL/dw)^2,

    starting at the first step's value. The score of a group of weights is the root of the sum of
    squares. Before the first step of a fit the masks stay as they are.

    Args:
        momentum: Weight of the past in the moving average, 0 to 1. The default looks back about
            ten steps.

    Example:
        >>> from keras import ops
        >>> weights, gradient = ops.array([2.0, 0.1]), ops.array([0.5, -1.0])
        >>> seen = Taylor().observe(weights, gradient, {"taylor": ops.zeros(2)}, 0.0)
        >>> [round(float(score), 3) for score in Taylor().score(weights, seen)]
        [1.0, 0.1]
    """

    statistics: ClassVar[tuple[str, ...]] = ("taylor",)

    momentum: float = momentum_option(0.9)

    @property
    def loss_power(self) -> float | None:
        """The score itself; see `Criterion.loss_power`."""
        return 1.0

    def observe(
        self, weights: Any, gradient: Any, statistics: Mapping[str, Any], step: Any
    ) -> Mapping[str, Any]:
        """Returns the moving average after one more step; see `Criterion.observe`."""
        from keras import ops

        change = ops.square(ops.cast(weights, "float32") * ops.cast(gradient, "float32"))
        return {"taylor": moving_average(statistics["taylor"], change, self.momentum, step)}

    def score(self, weights: Any, statistics: Mapping[str, Any]) -> Any:
        """Returns the root of the moving average; see `Criterion.score`."""
        from keras import ops

        return ops.sqrt(statistics["taylor"])
