"""The kernels of a model that is being trained, as the quantized file will hold them."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import keras
from keras import ops

from edgecompress.callbacks.fused_rounding import FusedRounding
from edgecompress.callbacks.learnt_bounds import LearntBounds, limits_allowed
from edgecompress.core.fusion import FusedGraph
from edgecompress.core.inner_kernels import InnerKernel
from edgecompress.core.layer_kinds import KernelAxes
from edgecompress.precisions.base import Precision
from edgecompress.precisions.mixed import kernel_name, scale_axes
from edgecompress.precisions.ranges.learnt import learnt_fake_quantize_weights
from edgecompress.precisions.uniform import Uniform


class RoundedKernels:
    """Rounds kernels, and chooses or learns their scales.

    Args:
        model: The model being trained.
        graph: Its kernels.
        quantizer: The precision.
        by_name: The layers of the model.
        layers: Names of those whose weights are rounded.
        kernels: Kernels with a precision of their own.
        scales: Learnt scales to continue from.
        bounds: Trains learnt scales.
    """

    def __init__(
        self,
        model: keras.Model,
        graph: FusedGraph,
        quantizer: Precision,
        by_name: Mapping[str, Any],
        layers: Collection[str],
        kernels: Mapping[str, Precision],
        scales: Mapping[str, Sequence[float]],
        bounds: LearntBounds,
    ) -> None:
        """Chooses the scales."""
        self._graph, self._quantizer, self._by_name = graph, quantizer, by_name
        self._layers, self._kernels, self._bounds = set(layers), dict(kernels), bounds
        # Layer -> attribute of a kernel -> the axes with separate scales.
        self.axes: dict[str, dict[str, tuple[int, ...]]] = {}
        self.choose_scales()
        self._limits = self._learnt_limits(scales)
        self._together = FusedRounding(model, by_name, self.precision_of)
        self._ready: dict[str, Any] = {}

    @contextmanager
    def rounded_together(self) -> Iterator[None]:
        """Rounds kernels at once, for a call of the model in training."""
        self._ready = self._together.rounded(self.axes)
        try:
            yield
        finally:
            self._ready = {}

    @property
    def limits(self) -> list[keras.Variable]:
        """The variables that hold learnt scales."""
        return list(self._limits.values())

    @property
    def one_scale(self) -> list[str]:
        """The layers with a kernel that has a single scale because its weights share few values."""
        return [
            name
            for name, axes in self.axes.items()
            if any(
                not axes[kernel.attribute] and self._given_axes(name, kernel)
                for kernel in self._graph.weights[name]
            )
        ]

    def choose_scales(self) -> bool:
        """Gives kernels that now share values a single scale, all others per-channel scales.

        Returns:
            Whether a kernel's scales have changed: the train function must be rebuilt.
        """
        before = self.axes
        self.axes = {
            name: {kernel.attribute: self._scale_axes(name, kernel) for kernel in kernels}
            for name, kernels in self._graph.weights.items()
            if name in self._layers
        }
        return self.axes != before

    def precision_of(self, layer: str, attribute: str) -> Precision:
        """Returns the precision of a kernel."""
        return self._kernels.get(kernel_name(layer, attribute), self._quantizer)

    def _given_axes(self, name: str, kernel: KernelAxes) -> tuple[int, ...]:
        rank = len(kernel.of(self._by_name[name]).shape)
        return self.precision_of(name, kernel.attribute).weight_axes(kernel.outputs, rank)

    def _scale_axes(self, name: str, kernel: KernelAxes) -> tuple[int, ...]:
        values = ops.convert_to_numpy(ops.cast(kernel.of(self._by_name[name]), "float32"))
        axes = self._given_axes(name, kernel)
        return scale_axes(values, axes, self.precision_of(name, kernel.attribute))

    def _learnt_limits(self, scales: Mapping[str, Sequence[float]]) -> dict[str, keras.Variable]:
        """Returns the limits of the kernels whose scales have gradients."""
        found = {}
        for layer, kernels in self.axes.items():
            for attribute, axes in kernels.items():
                precision = self.precision_of(layer, attribute)
                if not isinstance(precision, Uniform) or not precision.weight_method.learnt:
                    continue
                name = kernel_name(layer, attribute)
                values = ops.cast(getattr(self._by_name[layer], attribute), "float32")
                start: Any = precision.weight_scales(values, axes)
                if math.prod(start.shape) == len(scales.get(name, ())):
                    start = ops.reshape(ops.convert_to_tensor(scales[name], "float32"), start.shape)
                limits = limits_allowed(ops.convert_to_numpy(start * _largest(precision)))
                found[name] = keras.Variable(
                    limits, dtype="float32", autocast=False, trainable=False, name="weight_limits"
                )
                self._bounds.add(name, found[name], limits_allowed)
        return found

    def learnt_scales(self, layer: str, attribute: str) -> Any | None:
        """Returns the learnt scales of a kernel as a tensor; None if it has none."""
        limits = self._limits.get(kernel_name(layer, attribute))
        if limits is None:
            return None
        return limits.value / _largest(self.precision_of(layer, attribute))

    def weight_scales(self) -> dict[str, list[float]]:
        """Returns the learnt scales of kernels, in the order of their channels."""
        found = {}
        for name, limits in self._limits.items():
            layer, _, attribute = name.rpartition("/")
            scales = ops.convert_to_numpy(limits) / _largest(self.precision_of(layer, attribute))
            found[name] = scales.ravel().tolist()
        return found

    def rounded_inner(self, layer: str, kernel: InnerKernel) -> Any:
        """Returns an inner kernel of a layer, rounded."""
        precision = self.precision_of(layer, kernel.name)
        axes = precision.weight_axes(kernel.outputs, 2)
        rounded = [
            precision.fake_quantize_weights(part, axes)
            for part in kernel.split(kernel.variable.value)
        ]
        return rounded[0] if len(rounded) == 1 else ops.concatenate(rounded, -1)

    def rounded(self, layer: Any, attribute: str, values: Any) -> Any:
        """Returns the values of a layer's kernel, rounded."""
        precision = self.precision_of(layer.name, attribute)
        name = kernel_name(layer.name, attribute)
        if name in self._ready:
            return self._ready[name]
        if name in self._limits:
            return learnt_fake_quantize_weights(
                ops.convert_to_tensor(values),
                self._limits[name].value,
                precision.weight_bits,
                functools.partial(self._bounds.found, name),
            )
        return precision.fake_quantize_weights(values, self.axes[layer.name][attribute])

    def inner_axes(self, owner: str, inner: InnerKernel) -> tuple[int, ...]:
        """Returns the axes along which an inner kernel of a layer has separate scales."""
        precision = self.precision_of(owner, inner.name)
        return precision.weight_axes(inner.outputs, 2)


def _largest(precision: Precision) -> int:
    """Returns the largest code of a weight."""
    return int(2 ** (precision.weight_bits - 1) - 1)
