"""Quantization: the bits of weights, in which layers, and whether training sees them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from edgecompress.searching.knobs import Knob
from edgecompress.searching.techniques.base import TECHNIQUES, Fit, Technique, Values

# The layers with few bits -> which of those that take them keep 8, of so many.
_KEPT = {
    "all": lambda count: slice(0, 0),
    "early": lambda count: slice(count // 2, None),
    "late": lambda count: slice(0, count // 2),
}


@TECHNIQUES.register("quantization")
class Quantization(Technique):
    """int8, or int4 weights in the layers that take them, with or without training for it.

    Of the layers that take 4 bits, all have them, or the early or the late half. The half is found
    by their order alone, so that a layer's bits do not depend on how wide it is.
    """

    def knobs(self) -> Sequence[Knob]:
        """Returns the number format, its layers, and whether the last half of training sees it."""
        found = [Knob("precision", "int8", ("int8", "int4")), Knob("aware", False, (False, True))]
        if len(_narrow_layers(self.subject.model, "int4")) > 1:
            found.append(Knob("layers", "all", tuple(_KEPT)))
        return found

    def callbacks(self, values: Values, fit: Fit) -> Sequence[Any]:
        """Returns the simulation; int4 weights are always trained for."""
        if not values["aware"] and values["precision"] == "int8":
            return ()
        from edgecompress.callbacks.quantization_aware_training import QuantizationAwareTraining
        from edgecompress.precisions import PRECISIONS

        options = self.file(values, fit.model)
        wide = {names: PRECISIONS[name]() for names, name in options.get("per_layer", {}).items()}
        precision = PRECISIONS[str(values["precision"])]()
        return [QuantizationAwareTraining(precision, begin_epoch=fit.epochs // 2, per_layer=wide)]

    def file(self, values: Values, model: Any) -> Mapping[str, Any]:
        """Returns the format's options."""
        name = str(values["precision"])
        if name == "int8":
            return {}
        narrow = _narrow_layers(model, name)
        wide = narrow[_KEPT[str(values.get("layers", "all"))](len(narrow))]
        exceptions = {"|".join(re.escape(layer) for layer in wide): "int8"} if wide else {}
        return {"precision": name, **({"per_layer": exceptions} if exceptions else {})}


def _narrow_layers(model: Any, name: str) -> list[str]:
    """Returns the layers whose kernels have the few bits of a precision, in the model's order."""
    from edgecompress.core.fusion import analyse
    from edgecompress.precisions import PRECISIONS
    from edgecompress.precisions.mixed import places_of

    precision = PRECISIONS[name]()
    places = places_of(model, analyse(model)).values()
    return list(dict.fromkeys(p.layer for p in places if precision.weights_at(p) == precision))
