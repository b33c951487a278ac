"""Layer-adaptive magnitude: weights of all layers on one scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from edgecompress.criteria.base import CRITERIA, Criterion


@CRITERIA.register("layer-adaptive")
@dataclass(frozen=True)
class LayerAdaptive(Criterion):
    """Scores a weight by its part of what is left of its layer once the smaller ones are gone.

        S_u = |w_u| / sqrt(sum over v with |w_v| >= |w_u| of w_v^2)

    Lee et al., "Layer-adaptive sparsity for the magnitude-based pruning" (2021,
    https://arxiv.org/abs/2010.07611), equation (4), of which this is the square root. Inside a
    layer it ranks as `magnitude` does; with one threshold for all layers (`scope="global"`) it
    bounds what pruning changes of each layer's output, and the last weight of a layer scores 1.

    Example:
        >>> from keras import ops
        >>> scores = LayerAdaptive().score(ops.array([4.0, -3.0, 0.0]), {})
        >>> [round(float(score), 3) for score in scores]
        [1.0, 0.6, 0.0]
    """

    grows_with_weights: ClassVar[bool] = True

    def score(self, weights: Any, statistics: Mapping[str, Any]) -> Any:
        """Returns the scores as float32; see `Criterion.score`."""
        from keras import ops

        sizes = ops.abs(ops.cast(ops.reshape(weights, (-1,)), "float32"))
        largest = ops.max(sizes)
        squares = ops.square(sizes / ops.where(largest > 0, largest, 1.0))
        falling = ops.flip(ops.argsort(squares))
        rest = ops.cumsum(ops.take(squares, falling))
        parts = ops.sqrt(ops.take(squares, falling) / ops.where(rest > 0, rest, 1.0))
        return ops.reshape(ops.take(parts, ops.argsort(falling)), weights.shape)
