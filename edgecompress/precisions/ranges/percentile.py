"""Ranges that leave the rarest values out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from edgecompress.precisions.ranges.base import RANGES, RangeMethod


@dataclass(frozen=True)
class Percentile(RangeMethod):
    """From the (100 - p)-th to the p-th percentile of the values; in training, averaged as above.

    Sorting takes time: a training step on large maps takes several times as long.
    """

    summary: ClassVar[str] = "all but the rarest values"

    def batch_range(self, values: Any, steps: int, percentile: float, counts: Any = None) -> Any:
        """Returns both percentiles of a batch."""
        from keras import ops

        values = ops.reshape(ops.cast(ops.stop_gradient(values), "float32"), (-1,))
        shares = [1 - percentile / 100, percentile / 100]
        if counts is None:
            return ops.quantile(values, ops.convert_to_tensor(shares, "float32"))
        reached = ops.cumsum(ops.cast(counts, "float32"))
        total = reached[-1]
        low = ops.argmax(ops.cast(reached > shares[0] * total, "int32"))
        high = ops.argmax(ops.cast(reached >= shares[1] * total, "int32"))
        return ops.take(values, ops.stack([low, high]))


RANGES.register("percentile")(Percentile())
