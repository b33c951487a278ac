"""A Keras model that runs operator by operator on arrays, in float and quantized at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from edgecompress.core.errors import NotFiniteError
from edgecompress.core.fusion import analyse, source_of
from edgecompress.core.keras_graph import layers_by_name, run_graph
from edgecompress.core.layer_kinds import KernelAxes, int8_kernels
from edgecompress.core.operator_copy import rebuild
from edgecompress.precisions.base import Precision
from edgecompress.precisions.ranges.histogram import Histogram

_BATCH = 32

Ranges = Mapping[str, tuple[float, float]]


class Network:
    """A model taken apart into its operators.

    Args:
        model: A built Sequential or Functional model; not changed.

    Raises:
        UnsupportedModelError: as for `core.fusion.analyse`.
    """

    def __init__(self, model: Any) -> None:
        self.graph = analyse(model)
        self.taps = {tap.name: tap for tap in self.graph.taps}
        self._layers = layers_by_name(model)
        self._names: dict[int, str] = {}
        self._markers: dict[int, str] = {}
        self._rebuilt = rebuild(model, self._mark, operate=self._operate)

    def _mark(self, name: str, tensor: Any) -> Any:
        if name not in self.taps:
            return tensor
        marker = keras.layers.Identity()
        self._markers[id(marker)] = name
        return marker(tensor)

    def _operate(self, name: str, function: Callable[..., Any], *values: Any) -> Any:
        if isinstance(function, keras.layers.Layer):
            self._names[id(function)] = name
        return function(*values)

    def kernel_of(self, operator: str) -> tuple[str, KernelAxes]:
        """Returns the layer and the kernel of a weighted operator."""
        layer = operator if operator in self.graph.weights else operator.rpartition("/")[0]
        found = int8_kernels(self._layers[layer])
        return layer, found[0] if operator.endswith("/depthwise") else found[-1]

    def run(
        self,
        inputs: Sequence[Any],
        tap: Callable[[str, Any], Any],
        weighted: Callable[[str, Any, Any], Any] | None = None,
    ) -> list[Any]:
        """Runs the model on arrays; returns its outputs.

        Args:
            inputs: One array for each input.
            tap: `(name, values) -> values`, called where the int8 model rounds.
            weighted: `(operator, layer, values) -> outputs`, computes layers with kernels. Defaults
                to calling the layer.
        """

        def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
            marked = self._markers.get(id(layer))
            if marked is not None:
                return tap(marked, args[0])
            operator = self._names.get(id(layer), "")
            if weighted is not None and operator and int8_kernels(layer) and not kwargs:
                return weighted(operator, layer, *args)
            return layer(*args, **kwargs)

        tensors = [ops.convert_to_tensor(array) for array in inputs]
        return list(keras.tree.flatten(run_graph(self._rebuilt, tensors, call)))

    def ranges(
        self, samples: Sequence[np.ndarray], precision: Precision
    ) -> dict[str, tuple[float, float]]:
        """Returns the range of every tap over samples, prescribed ones included.

        Args:
            samples: One array for each input.
            precision: How ranges are chosen.

        Raises:
            NotFiniteError: a tap holds NaN or infinity; the text names the first one.
        """
        seen: dict[str, tuple[float, float]] = {}

        def observe(name: str, values: Any) -> Any:
            smallest, largest = float(ops.min(values)), float(ops.max(values))
            # NaN anywhere makes both NaN.
            if not (math.isfinite(smallest) and math.isfinite(largest)):
                raise NotFiniteError(
                    f"{name!r} holds NaN or infinity for calibration samples {start} to "
                    f"{min(start + _BATCH, len(samples[0])) - 1}. Check the data and the weights "
                    "of that layer."
                )
            low, high = seen.get(name, (math.inf, -math.inf))
            seen[name] = min(low, smallest), max(high, largest)
            return values

        for start in range(0, len(samples[0]), _BATCH):
            self.run([array[start : start + _BATCH] for array in samples], observe)
        if precision.clips_calibrated:
            seen = self._clipped(samples, precision, seen)
        sources = {name: source_of(tap, self.taps) for name, tap in self.taps.items()}
        return {
            name: seen[source.name] if source.fixed is None else source.fixed
            for name, source in sources.items()
        }

    def _clipped(
        self, samples: Sequence[np.ndarray], precision: Precision, extremes: Ranges
    ) -> dict[str, tuple[float, float]]:
        """Returns the ranges that leave rare values out."""
        found = {name: Histogram(*bounds) for name, bounds in extremes.items()}

        def count(name: str, values: Any) -> Any:
            found[name].add(np.asarray(values))
            return values

        for start in range(0, len(samples[0]), _BATCH):
            self.run([array[start : start + _BATCH] for array in samples], count)
        return {n: precision.calibrated_range(*counted.result()) for n, counted in found.items()}

    def judged(self) -> tuple[str, ...]:
        """Returns the taps whose values are compared: outputs, before a softmax or sigmoid."""
        found = []
        for name, tap in self.taps.items():
            linear = f"{name}/pre_activation"
            if tap.is_output:
                found.append(linear if tap.fixed is not None and linear in self.taps else name)
        return tuple(found)
