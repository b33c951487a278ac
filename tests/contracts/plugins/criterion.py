"""A toy plugin: weights are pruned in the order in which they stand."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgecompress.core.options import Number, option
from edgecompress.criteria.base import CRITERIA, Criterion


@CRITERIA.register("position")
@dataclass(frozen=True)
class Position(Criterion):
    """Scores a weight by its place in the kernel."""

    scale: float = option(1.0, "Score of one place.", Number(low=0.0))

    def score(self, weights: Any, statistics: Mapping[str, Any]) -> Any:
        """Returns 1, 2, 3, ... times the scale."""
        from keras import ops

        size = ops.size(weights)
        places = ops.arange(1, size + 1, dtype="float32") * self.scale
        return ops.reshape(places, ops.shape(weights))
