"""Uniform grids for weights and activations: what int8, int16x8 and int4 have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgecompress.core.errors import ArgumentError
from edgecompress.core.options import Number, option
from edgecompress.precisions.base import Precision


@dataclass(frozen=True)
class Uniform(Precision):
    """A precision with uniform steps and a moving average of ranges.

    Args:
        momentum: Share of the old range in the moving average, from 0 up to but not including 1.
            Defaults to 0.99.

    Raises:
        ArgumentError: `momentum` is out of range.
    """

    momentum: float = option(
        0.99,
        "Share of the old activation range in the moving average of training, 0 to below 1.",
        Number("SHARE", "be a number from 0 up to but not including 1", 0.0, 1.0),
    )

    def __post_init__(self) -> None:
        """Refuses a momentum that would never move or never settle."""
        number = isinstance(self.momentum, (int, float)) and not isinstance(self.momentum, bool)
        if not number or not math.isfinite(self.momentum) or not 0 <= self.momentum < 1:
            raise ArgumentError(
                "momentum", "be a number from 0 up to but not including 1", self.momentum
            )

    def fake_quantize_weights(self, weights: Any, channel_axes: Sequence[int]) -> Any:
        """Returns rounded weights with a straight-through gradient."""
        from edgecompress.precisions.fake_quantization import fake_quantize_weights

        return fake_quantize_weights(weights, channel_axes, self.weight_bits)

    def weight_codes(self, weights: Any, channel_axes: Sequence[int]) -> tuple[Any, Any] | None:
        """Returns codes and scales of weights."""
        from edgecompress.precisions.fake_quantization import weight_codes

        return weight_codes(weights, channel_axes, self.weight_bits)

    def quantize_weights(self, weights: Any, channel_axes: Sequence[int]) -> Any:
        """Returns rounded weights."""
        from edgecompress.precisions.fake_quantization import quantize_weights

        return quantize_weights(weights, channel_axes, self.weight_bits)

    def fake_quantize(self, values: Any, low: Any, high: Any) -> Any:
        """Returns rounded activations with a clipped straight-through gradient."""
        from edgecompress.precisions.fake_quantization import fake_quantize

        return fake_quantize(values, low, high, self.activation_bits)

    def averaging(self, ranges: Any) -> tuple[Any, Any]:
        """Returns the terms of the exponential moving average."""
        from edgecompress.precisions.fake_quantization import averaging

        return averaging(ranges, self.momentum)
