"""Quantization: the bits of weights, and whether training sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgecompress.searching.knobs import Knob
from edgecompress.searching.techniques.base import TECHNIQUES, Fit, Technique, Values


@TECHNIQUES.register("quantization")
class Quantization(Technique):
    """int8, or int4 weights in the layers that take them, with or without training for it."""

    def knobs(self) -> Sequence[Knob]:
        """Returns the number format, and whether the last half of training simulates it."""
        return (Knob("precision", "int8", ("int8", "int4")), Knob("aware", False, (False, True)))

    def callbacks(self, values: Values, fit: Fit) -> Sequence[Any]:
        """Returns the simulation; int4 weights are always trained for."""
        if not values["aware"] and values["precision"] == "int8":
            return ()
        from edgecompress.callbacks.quantization_aware_training import QuantizationAwareTraining
        from edgecompress.precisions import PRECISIONS

        precision = PRECISIONS[str(values["precision"])]()
        return [QuantizationAwareTraining(precision, begin_epoch=fit.epochs // 2)]

    def file(self, values: Values) -> Mapping[str, Any]:
        """Returns the format's option."""
        return {} if values["precision"] == "int8" else {"precision": values["precision"]}
