"""Costs that a Keras graph shows: multiply-accumulates and parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from edgecompress.core.errors import UnsupportedModelError
from edgecompress.core.keras_graph import named_layers
from edgecompress.costs import Cost, cost
from edgecompress.inspection.keras_models import layer_macs

if TYPE_CHECKING:
    import numpy as np


@cost("macs")
class Macs(Cost):
    """Multiply-accumulates of one inference."""

    unit: ClassVar[str] = "MACs"
    # In every family, each weight of a matrix is used equally often.
    exact_shares: ClassVar[bool] = True

    def measure(self, model: Any, target: str | None = None) -> float:
        """Returns the sum over all layers; see `Cost.measure`."""
        found, notes = layer_macs(model)
        if None in found.values():
            raise UnsupportedModelError(" ".join(notes) or "The model shows no shapes.")
        return sum(macs for macs in found.values() if macs is not None)

    def by_layer(self, model: Any, target: str | None = None) -> Mapping[str, float]:
        """Returns each layer's; see `Cost.by_layer`."""
        return {path: macs for path, macs in layer_macs(model)[0].items() if macs}


@cost("parameters")
class Parameters(Cost):
    """Everything learnt, biases and normalization included."""

    unit: ClassVar[str] = "parameters"
    exact_shares: ClassVar[bool] = True

    def measure(self, model: Any, target: str | None = None) -> float:
        """Returns the sum over all layers; see `Cost.measure`."""
        return int(model.count_params())

    def by_layer(self, model: Any, target: str | None = None) -> Mapping[str, float]:
        """Returns each layer's; see `Cost.by_layer`."""
        sizes = {
            path: sum(math.prod(variable.shape) for variable in layer.weights)
            for path, layer in named_layers(model)
        }
        return {path: size for path, size in sizes.items() if size}

    def left_over(
        self, before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], outputs: float
    ) -> float:
        """Returns the share of all its weights; see `Cost.left_over`."""
        sizes = [sum(value.size for value in x.values()) for x in (before, after)]
        return sizes[1] / sizes[0] if sizes[0] else 1.0
