"""int8: weights and activations as in LiteRT's int8 kernels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from edgecompress.core.errors import ArgumentError
from edgecompress.core.options import Number, option
from edgecompress.engines.registry import LCE, LEGACY, LITERT, TFLM
from edgecompress.precisions.base import PRECISIONS, Precision


@PRECISIONS.register("int8")
@dataclass(frozen=True)
class Int8(Precision):
    """Settings of int8 training: weights and activations as in LiteRT's int8 kernels.

    Weights: symmetric, per output channel, codes -127..127, `scale = max(|w_c|) / 127`.
    Activations: asymmetric, per-tensor, codes -128..127, range = moving average of each batch's
    minimum and maximum, starting at the first batch's.

    Args:
        momentum: Share of the old range in the moving average, from 0 up to but not including 1.
            Defaults to 0.99.

    Raises:
        ArgumentError: `momentum` is out of range.

    Example:
        >>> QuantizationAwareTraining(Int8(momentum=0.9))  # doctest: +SKIP
    """

    name: ClassVar[str] = "int8"
    weight_bits: ClassVar[int] = 8
    activation_bits: ClassVar[int] = 8
    fixed_ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "SOFTMAX": (0.0, 1.0),
        "LOGISTIC": (0.0, 1.0),
        "TANH": (-1.0, 1.0),
    }
    engines: ClassVar[tuple[str, ...]] = (LITERT, LEGACY, TFLM, LCE)

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

    def quantize_weights(self, weights: Any, channel_axes: Sequence[int]) -> Any:
        """Returns rounded weights."""
        from edgecompress.precisions.fake_quantization import quantize_weights

        return quantize_weights(weights, channel_axes, self.weight_bits)

    def fake_quantize(self, values: Any, low: Any, high: Any) -> Any:
        """Returns rounded activations with a clipped straight-through gradient."""
        from edgecompress.precisions.fake_quantization import fake_quantize

        return fake_quantize(values, low, high, self.activation_bits)

    def moving_range(self, old: Any, values: Any) -> Any:
        """Returns the range after a batch of values."""
        from edgecompress.precisions.fake_quantization import batch_range, moving_range

        return moving_range(old, batch_range(values), self.momentum)

    def recipe(self) -> list[dict[str, Any]]:
        """Returns litert-quantizer's `static_wi8_ai8`."""
        from litert_quantizer import recipe

        return list(recipe.static_wi8_ai8())
