"""Ranges from the smallest to the largest value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from edgecompress.precisions.ranges.base import RANGES, RangeMethod


@dataclass(frozen=True)
class MovingAverage(RangeMethod):
    """The moving average of each batch's extremes; on calibration data, the extremes of all."""

    summary: ClassVar[str] = "moving average of the batches' extremes"
    extremes_only: ClassVar[bool] = True

    def batch_range(self, values: Any, steps: int, percentile: float, counts: Any = None) -> Any:
        """Returns the extremes of a batch."""
        from edgecompress.precisions.fake_quantization import batch_range

        return batch_range(values)


@dataclass(frozen=True)
class MinMax(RangeMethod):
    """From the largest weight to its negative: nothing is clipped."""

    summary: ClassVar[str] = "the largest weight"
    weights: ClassVar[bool] = True
    activations: ClassVar[bool] = False

    def limits(self, weights: Any, axes: Sequence[int], largest: int) -> Any:
        """Returns None: the largest weight."""
        return None


RANGES.register("minmax")(MinMax())
RANGES.register("moving-average")(MovingAverage())
