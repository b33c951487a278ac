"""Scales that are powers of two, which fixed-point weights need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from edgecompress.precisions.ranges.base import RANGES, RangeMethod


@dataclass(frozen=True)
class PowerOfTwo(RangeMethod):
    """The smallest power of two as scale that clips no weight of the channel.

    Weights that are multiples of a power of two within the width of the codes, as after
    `FixedPointTraining`, keep their exact values.
    """

    summary: ClassVar[str] = "the largest weight, rounded up to a scale that is a power of two"
    weights: ClassVar[bool] = True
    activations: ClassVar[bool] = False

    def limits(self, weights: Any, axes: Sequence[int], largest: int) -> Any:
        """Returns `largest` times a power of two for each channel."""
        from keras import ops

        most = ops.max(ops.abs(weights), axis=tuple(axes), keepdims=True)
        # A logarithm may miss a power of two by a rounding: a comparison decides.
        exponents = ops.ceil(ops.log(ops.maximum(most, 2.0**-100) / largest) / math.log(2) - 0.5)
        scales = ops.power(2.0, exponents)
        return largest * ops.where(most > largest * scales, 2.0 * scales, scales)


RANGES.register("power-of-two")(PowerOfTwo())
