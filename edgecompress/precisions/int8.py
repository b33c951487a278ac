"""int8: weights and activations as in LiteRT's int8 kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from edgecompress.core.options import Flag, option
from edgecompress.engines.registry import LCE, LEGACY, LITERT, TFLM
from edgecompress.precisions.base import PRECISIONS
from edgecompress.precisions.uniform import Uniform


@PRECISIONS.register("int8")
@dataclass(frozen=True)
class Int8(Uniform):
    """Settings of int8 training: weights and activations as in LiteRT's int8 kernels.

    Weights: symmetric, per output channel, codes -127..127, `scale = max(|w_c|) / 127`.
    Activations: asymmetric, per-tensor, codes -128..127, range = moving average of each batch's
    minimum and maximum, starting at the first batch's.

    Args:
        momentum: Share of the old range in the moving average, from 0 up to but not including 1.
            Defaults to 0.99.
        per_channel: Whether each output channel has a weight scale of its own; False for one scale
            per kernel, which some accelerators demand. Defaults to True.

    Raises:
        ArgumentError: `momentum` is out of range.

    Example:
        >>> QuantizationAwareTraining(Int8(momentum=0.9))  # doctest: +SKIP
    """

    per_channel: bool = option(True, "A weight scale for each output channel.", Flag())

    name: ClassVar[str] = "int8"
    weight_bits: ClassVar[int] = 8
    activation_bits: ClassVar[int] = 8
    fixed_ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "SOFTMAX": (0.0, 1.0),
        "LOGISTIC": (0.0, 1.0),
        "TANH": (-1.0, 1.0),
    }
    engines: ClassVar[tuple[str, ...]] = (LITERT, LEGACY, TFLM, LCE)

    @property
    def fuses_lstm(self) -> bool:
        """The operator is int8."""
        return True

    def weight_axes(self, channel_axes: tuple[int, ...], rank: int) -> tuple[int, ...]:
        """Returns the channel axes, or () with one scale per kernel."""
        return super().weight_axes(channel_axes, rank) if self.per_channel else ()

    def recipe(self) -> list[dict[str, Any]]:
        """Returns litert-quantizer's `static_wi8_ai8`."""
        from litert_quantizer import recipe

        return list(recipe.static_wi8_ai8())
