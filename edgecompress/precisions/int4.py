"""int4: weights of 4 bits, int8 activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from edgecompress.core.errors import ArgumentError
from edgecompress.core.options import Flag, option, whole
from edgecompress.engines.registry import LCE, LEGACY, LITERT, TFLM
from edgecompress.precisions.base import PRECISIONS, Place, Precision
from edgecompress.precisions.int8 import Int8
from edgecompress.precisions.uniform import Uniform

_BITS = (4, 8)


@PRECISIONS.register("int4")
@dataclass(frozen=True)
class Int4(Uniform):
    """Settings of int4 training: weights of 4 bits, two in a byte; activations as in int8.

    Weights: symmetric, codes -7..7, `scale = max(|w|) / 7`; convolutions have a scale for each
    output channel, Dense layers one, because TensorFlow Lite Micro refuses more. The first and the
    last layer with weights and depthwise layers keep 8 bits: they hold few weights and lose most
    accuracy. So do transposed and grouped convolutions, which some kernels lack or compute wrongly.
    An LSTM that can be one operator (`core.lstm_layers`) keeps 8 bits, too: the operator has no
    others, and the operators of every time step take several times what 4 bits save.

    The weights take half of int8's flash; kernels unpack them, which takes time. Training recovers
    most of the accuracy that rounding to 4 bits costs.

    Args:
        momentum: Share of the old range in the moving average, from 0 up to but not including 1.
            Defaults to 0.99.
        edge_bits: Bits of the weights of the first and the last layer, 4 or 8. Defaults to 8.
        depthwise_bits: Bits of the weights of depthwise layers, 4 or 8. Defaults to 8.
        recurrent_bits: Bits of the kernels that multiply the state of GRU, SimpleRNN and unrolled
            LSTM layers at every time step, 4 or 8; with 4, every LSTM is unrolled. Defaults to
            None: 4, and LSTM layers that can be one operator keep 8.
        scale_per_unit: Gives Dense layers of 4 bits a scale for each unit: more accurate, but
            TensorFlow Lite Micro refuses the file. Defaults to False.

    Raises:
        ArgumentError: a setting breaks its rule.

    Example:
        >>> QuantizationAwareTraining(Int4())  # doctest: +SKIP
    """

    name: ClassVar[str] = "int4"
    weight_bits: ClassVar[int] = 4
    stored_bits: ClassVar[int] = 4
    activation_bits: ClassVar[int] = 8
    fixed_ranges: ClassVar[Mapping[str, tuple[float, float]]] = Int8.fixed_ranges
    engines: ClassVar[tuple[str, ...]] = (LITERT, LEGACY, TFLM, LCE)

    edge_bits: int = option(
        8, "Bits of the weights of the first and the last layer, 4 or 8.", whole(4, 8)
    )
    depthwise_bits: int = option(8, "Bits of the weights of depthwise layers, 4 or 8.", whole(4, 8))
    recurrent_bits: int | None = option(
        None,
        "Bits of the weights of recurrent kernels, 4 or 8; with 4, every LSTM is unrolled.",
        whole(4, 8),
        unset="4, and 8 in LSTM layers that can be one operator",
    )
    scale_per_unit: bool = option(
        False, "A scale for each unit of Dense layers; not on microcontrollers.", Flag()
    )

    def __post_init__(self) -> None:
        """Refuses other widths."""
        super().__post_init__()
        for name in ("edge_bits", "depthwise_bits", "recurrent_bits"):
            value = getattr(self, name)
            if value is None and name == "recurrent_bits":
                continue
            if isinstance(value, bool) or value not in _BITS:
                raise ArgumentError(name, "be 4 or 8", value)

    @property
    def fuses_lstm(self) -> bool:
        """With recurrent kernels of 4 bits, none is."""
        return self.recurrent_bits != 4

    def weights_at(self, place: Place) -> Precision:
        """Returns int8 for the places that keep 8 bits."""
        edge = place.first or place.last
        depthwise = place.operator == "DEPTHWISE_CONV_2D"
        if (
            (edge and self.edge_bits == 8)
            or (depthwise and self.depthwise_bits == 8)
            or (place.recurrent and self.recurrent_bits == 8)
            or (place.fused and self.fuses_lstm)
            or place.grouped
            or place.operator not in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
        ):
            kept = ("momentum", "activation_ranges", "weight_ranges", "percentile")
            return Int8(**{name: getattr(self, name) for name in kept})
        return self

    def weight_axes(self, channel_axes: tuple[int, ...], rank: int) -> tuple[int, ...]:
        """Returns the channel axes; none for a Dense layer unless `scale_per_unit`."""
        return channel_axes if self.scale_per_unit or rank > 2 else ()

    def recipe(self) -> list[dict[str, Any]]:
        """Returns litert-quantizer's `static_wi8_ai8`; the converter narrows each filter's."""
        from litert_quantizer import recipe

        return list(recipe.static_wi8_ai8())
