"""int2: weights of 2 bits in Dense layers, int8 activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from edgecompress.core.errors import ArgumentError
from edgecompress.core.options import Choice, option, whole
from edgecompress.engines.registry import LITERT
from edgecompress.precisions.base import PRECISIONS, Place, Precision
from edgecompress.precisions.int8 import Int8
from edgecompress.precisions.ranges.base import names_for
from edgecompress.precisions.uniform import Uniform


@PRECISIONS.register("int2")
@dataclass(frozen=True)
class Int2(Uniform):
    """Settings of int2 training: Dense layers of 2 bits, four weights in a byte; the rest as int8.

    Weights: codes -1, 0 and 1, with a scale for each unit. Only LiteRT runs them, and only in Dense
    layers; convolutions, and the first and the last layer with weights, keep 8 bits. With three
    levels the scale matters more than at other widths: the largest weight would round nearly all
    others to 0, so the default has the smallest squared error.

    Args:
        momentum: Share of the old range in the moving average, from 0 up to but not including 1.
            Defaults to 0.99.
        weight_ranges: How the scales of weights are chosen. Defaults to `"mse"`.

        edge_bits: Bits of the weights of the first and the last layer, 2 or 8. Defaults to 8.

    Raises:
        ArgumentError: a setting breaks its rule.

    Example:
        >>> QuantizationAwareTraining(Int2())  # doctest: +SKIP
    """

    name: ClassVar[str] = "int2"
    weight_bits: ClassVar[int] = 2
    stored_bits: ClassVar[int] = 2
    activation_bits: ClassVar[int] = 8
    fixed_ranges: ClassVar[Mapping[str, tuple[float, float]]] = Int8.fixed_ranges
    engines: ClassVar[tuple[str, ...]] = (LITERT,)

    weight_ranges: str = option(
        "mse",
        "How the scales of weights are chosen.",
        Choice("METHOD", names=lambda: names_for("weights")),
    )

    edge_bits: int = option(
        8, "Bits of the weights of the first and the last layer, 2 or 8.", whole(2, 8)
    )

    def __post_init__(self) -> None:
        """Refuses other widths."""
        super().__post_init__()
        if isinstance(self.edge_bits, bool) or self.edge_bits not in (2, 8):
            raise ArgumentError("edge_bits", "be 2 or 8", self.edge_bits)

    def weights_at(self, place: Place) -> Precision:
        """Returns int8 for all but Dense layers, and for the first and the last one."""
        edge = place.first or place.last
        if place.operator != "FULLY_CONNECTED" or (edge and self.edge_bits == 8):
            kept = ("momentum", "activation_ranges", "percentile")
            return Int8(**{name: getattr(self, name) for name in kept})
        return self

    def recipe(self) -> list[dict[str, Any]]:
        """Returns litert-quantizer's `static_wi8_ai8`; the converter narrows each filter's."""
        from litert_quantizer import recipe

        return list(recipe.static_wi8_ai8())
