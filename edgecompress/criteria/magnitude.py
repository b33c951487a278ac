"""Magnitude: the smallest weights matter least."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from edgecompress.criteria.base import CRITERIA, Criterion


@CRITERIA.register("magnitude")
@dataclass(frozen=True)
class Magnitude(Criterion):
    """Scores a weight by |w|: Han et al., "Learning both weights and connections" (2015).

    The score of a group of weights is its L2 norm.

    Example:
        >>> from keras import ops
        >>> Magnitude().score(ops.array([0.5, -2.0]), {})
        <tf.Tensor: shape=(2,), dtype=float32, numpy=array([0.5, 2. ], dtype=float32)>
    """

    grows_with_weights: ClassVar[bool] = True

    def score(self, weights: Any, statistics: Mapping[str, Any]) -> Any:
        """Returns |w| as float32; see `Criterion.score`."""
        from keras import ops

        return ops.abs(ops.cast(weights, "float32"))
