"""Uniform grids for weights and activations: what int8, int16x8 and int4 have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgecompress.core.errors import ArgumentError
from edgecompress.core.options import Choice, Number, option
from edgecompress.precisions.base import Precision
from edgecompress.precisions.ranges import RANGES, RangeMethod
from edgecompress.precisions.ranges.base import names_for


@dataclass(frozen=True)
class Uniform(Precision):
    """A precision with uniform steps.

    Args:
        momentum: Share of the old range in the moving average, from 0 up to but not including 1.
            Defaults to 0.99.
        activation_ranges: How training, or a calibration, chooses the ranges of activations: a name
            in `ranges.RANGES`. Defaults to `"moving-average"`: on calibration data the smallest and
            the largest value.
        weight_ranges: How the scales of weights are chosen. Defaults to `"minmax"`.
        percentile: What `activation_ranges="percentile"` keeps, 50 to 100. Defaults to 99.99.

    Raises:
        ArgumentError: a setting breaks its rule.
    """

    momentum: float = option(
        0.99,
        "Share of the old activation range in the moving average of training, 0 to below 1.",
        Number("SHARE", "be a number from 0 up to but not including 1", 0.0, 1.0),
    )
    activation_ranges: str = option(
        "moving-average",
        "How the ranges of activations are chosen.",
        Choice("METHOD", names=lambda: names_for("activations")),
    )
    weight_ranges: str = option(
        "minmax",
        "How the scales of weights are chosen.",
        Choice("METHOD", names=lambda: names_for("weights")),
    )
    percentile: float = option(
        99.99,
        "What the activation ranges of the method percentile keep, 50 to 100.",
        Number("PERCENT", "be a number from 50 to 100", 50.0, 100.0),
    )

    def __post_init__(self) -> None:
        """Refuses a momentum that would never move or never settle, and unknown methods."""
        if not _is_number(self.momentum) or not 0 <= self.momentum < 1:
            raise ArgumentError(
                "momentum", "be a number from 0 up to but not including 1", self.momentum
            )
        if not _is_number(self.percentile) or not 50 <= self.percentile <= 100:
            raise ArgumentError("percentile", "be a number from 50 to 100", self.percentile)
        for name, what in (("activation_ranges", "activations"), ("weight_ranges", "weights")):
            value, known = getattr(self, name), names_for(what)
            if value not in known:
                raise ArgumentError(name, f"be {', '.join(known)}", value)

    @property
    def activation_method(self) -> RangeMethod:
        """How ranges of activations are chosen."""
        return RANGES[self.activation_ranges]

    @property
    def weight_method(self) -> RangeMethod:
        """How the scales of weights are chosen."""
        return RANGES[self.weight_ranges]

    def weight_scales(self, weights: Any, channel_axes: Sequence[int]) -> Any | None:
        """Returns the scales of weights; None where the largest weights decide.

        Args:
            weights: A kernel of any shape.
            channel_axes: Axes whose indices have separate scales.
        """
        if self.weight_ranges == "minmax":
            return None
        from edgecompress.precisions.fake_quantization import weight_scales

        return weight_scales(weights, channel_axes, self.weight_bits, self.weight_method)

    def fake_quantize_weights(
        self, weights: Any, channel_axes: Sequence[int], scales: Any = None
    ) -> Any:
        """Returns rounded weights with a straight-through gradient."""
        from edgecompress.precisions.fake_quantization import fake_quantize_weights

        scales = self.weight_scales(weights, channel_axes) if scales is None else scales
        return fake_quantize_weights(weights, channel_axes, self.weight_bits, scales)

    def weight_codes(
        self, weights: Any, channel_axes: Sequence[int], scales: Any = None
    ) -> tuple[Any, Any] | None:
        """Returns codes and scales of weights."""
        from edgecompress.precisions.fake_quantization import weight_codes

        scales = self.weight_scales(weights, channel_axes) if scales is None else scales
        return weight_codes(weights, channel_axes, self.weight_bits, scales)

    def quantize_weights(
        self, weights: Any, channel_axes: Sequence[int], scales: Any = None
    ) -> Any:
        """Returns rounded weights."""
        from edgecompress.precisions.fake_quantization import quantize_weights

        scales = self.weight_scales(weights, channel_axes) if scales is None else scales
        return quantize_weights(weights, channel_axes, self.weight_bits, scales)

    def fake_quantize(self, values: Any, low: Any, high: Any) -> Any:
        """Returns rounded and clipped activations with a clipped straight-through gradient."""
        from edgecompress.precisions.fake_quantization import fake_quantize

        return fake_quantize(values, low, high, self.activation_bits)

    def batch_range(self, values: Any) -> Any:
        """Returns [minimum, maximum] for a batch of activations, by `activation_ranges`."""
        steps = 2**self.activation_bits - 1
        return self.activation_method.batch_range(values, steps, self.percentile)

    def averaging(self, ranges: Any) -> tuple[Any, Any]:
        """Returns the terms of the exponential moving average."""
        from edgecompress.precisions.fake_quantization import averaging

        return averaging(ranges, self.momentum)

    @property
    def clips_calibrated(self) -> bool:
        """Whether the method leaves rare values out."""
        return not self.activation_method.calibrated.extremes_only

    def calibrated_range(self, values: Any, counts: Any) -> tuple[float, float]:
        """Returns the range of a histogram."""
        steps = 2**self.activation_bits - 1
        method = self.activation_method.calibrated
        low, high = method.batch_range(values, steps, self.percentile, counts)
        return float(low), float(high)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
