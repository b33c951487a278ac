"""int16x8: int8 weights, int16 activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from edgecompress.engines.registry import LCE, LEGACY, LITERT, TFLM
from edgecompress.precisions.base import PRECISIONS
from edgecompress.precisions.uniform import Uniform

# Softmax, sigmoid and tanh: scale 1/32768, zero point 0.
_UNIT = (-1.0, 32767 / 32768)


@PRECISIONS.register("int16x8")
@dataclass(frozen=True)
class Int16x8(Uniform):
    """Settings of int16x8 training: int8 weights, int16 activations, int64 biases.

    Weights: as in int8, except that a Dense layer has one scale, because TensorFlow Lite Micro
    refuses more with int16 activations. Activations: symmetric, per-tensor, codes
    -32768..32767, `scale = max(|minimum|, |maximum|) / 32767`; ranges as in int8.

    It suits models whose activations span more than 8 bits resolve: audio, regression, sums over
    time. The file is as small as int8's, its activations take twice the memory, and LiteRT has no
    fast kernels for it on phones.

    Args:
        momentum: Share of the old range in the moving average, from 0 up to but not including 1.
            Defaults to 0.99.

    Raises:
        ArgumentError: `momentum` is out of range.

    Example:
        >>> QuantizationAwareTraining(Int16x8())  # doctest: +SKIP
    """

    name: ClassVar[str] = "int16x8"
    weight_bits: ClassVar[int] = 8
    activation_bits: ClassVar[int] = 16
    dense_per_channel: ClassVar[bool] = False
    fixed_ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "SOFTMAX": _UNIT,
        "LOGISTIC": _UNIT,
        "TANH": _UNIT,
    }
    engines: ClassVar[tuple[str, ...]] = (LITERT, LEGACY, TFLM, LCE)

    def fake_quantize(self, values: Any, low: Any, high: Any) -> Any:
        """Returns rounded activations with a clipped straight-through gradient."""
        from edgecompress.precisions.fake_quantization import fake_quantize_symmetric

        return fake_quantize_symmetric(values, low, high, self.activation_bits)

    def fixed_range(self, low: float, high: float) -> tuple[float, float]:
        """Returns the range with the steps of 1/32768 that the kernels prescribe."""
        # Symmetric: the step is the largest magnitude / 32767, and with -1 it would be 1/32767.
        return -_UNIT[1], _UNIT[1]

    def recipe(self) -> list[dict[str, Any]]:
        """Returns litert-quantizer's `static_wi8_ai16`."""
        from litert_quantizer import recipe

        return list(recipe.static_wi8_ai16())
