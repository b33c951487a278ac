"""Rounding the large kernels of a model at the start of a training step, in one operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras

from edgecompress.callbacks.fused import fused, is_large
from edgecompress.precisions.base import Precision
from edgecompress.precisions.fake_quantization import fake_quantize_together, quantize_weights
from edgecompress.precisions.mixed import kernel_name
from edgecompress.precisions.uniform import Uniform

_Place = tuple[str, str, tuple[int, ...], int]


class FusedRounding:
    """Rounds the large kernels whose scales follow from their largest weights.

    Args:
        model: The model being trained.
        layers: Name -> layer.
        precision_of: Returns the precision of a layer's kernel, by the names of both.
    """

    def __init__(
        self,
        model: keras.Model,
        layers: Mapping[str, Any],
        precision_of: Callable[[str, str], Precision],
    ) -> None:
        """Compiles nothing yet."""
        self._model, self._layers, self._precision_of = model, layers, precision_of
        self._compiled: dict[tuple[_Place, ...], Callable[..., Any]] = {}

    def rounded(self, axes: Mapping[str, Mapping[str, tuple[int, ...]]]) -> dict[str, Any]:
        """Returns rounded kernels, `<layer>/<attribute>` -> tensor; those left out are none of it.

        Args:
            axes: Layer -> kernel's attribute -> the axes with separate scales.
        """
        # Half precision reads kernels in the type of their layer.
        if self._model.compute_dtype != "float32":
            return {}
        places = tuple(
            (layer, attribute, channels, self._precision_of(layer, attribute).weight_bits)
            for layer, kernels in axes.items()
            for attribute, channels in kernels.items()
            if self._fits(layer, attribute)
        )
        if not places:
            return {}
        kernels = [getattr(self._layers[layer], attribute) for layer, attribute, _, _ in places]
        if places not in self._compiled:

            def quantize(*values: Any) -> tuple[Any, ...]:
                return tuple(
                    quantize_weights(value, channels, bits)
                    for value, (_, _, channels, bits) in zip(values, places, strict=True)
                )

            self._compiled[places] = fused(quantize, self._model, kernels)
        values = [kernel.value for kernel in kernels]
        found = fake_quantize_together(values, self._compiled[places])
        names = [kernel_name(layer, attribute) for layer, attribute, _, _ in places]
        return dict(zip(names, found, strict=True))

    def _fits(self, layer: str, attribute: str) -> bool:
        precision = self._precision_of(layer, attribute)
        return (
            is_large(self._model, getattr(self._layers[layer], attribute))
            and self._layers[layer].compute_dtype == "float32"
            and isinstance(precision, Uniform)
            and type(precision).fake_quantize_weights is Uniform.fake_quantize_weights
            and precision.weight_ranges == "minmax"
        )
