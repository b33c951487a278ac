"""The parts of layers that are several operators, in a model that is being trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from keras import ops

from edgecompress.core.composites import Computing
from edgecompress.precisions.base import Precision


class Arithmetic(Protocol):
    """What computes and rounds the operators of a model in training."""

    quantizer: Precision

    @property
    def in_training(self) -> bool:
        """Whether the call that is being traced is one of training."""

    def operate(self, name: str, function: Callable[..., Any], *values: Any) -> Any:
        """Computes an operator without weights."""

    def weigh(self, owner: str, name: str, attribute: str, layer: Any, values: Any) -> Any:
        """Computes an EinsumDense layer without its activation."""

    def insert(self, name: str, values: Any) -> Any:
        """Rounds behind a tap."""


class TrainedParts(Computing):
    """Computes the operators of a layer as the quantized file will.

    Args:
        name: Of the layer's use.
        layer: The layer.
        call: Its own `call`.
        arithmetic: What computes the operators.
    """

    def __init__(
        self, name: str, layer: Any, call: Callable[..., Any], arithmetic: Arithmetic
    ) -> None:
        """Keeps the layer."""
        super().__init__(name)
        self._layer, self._call, self._arithmetic = layer, call, arithmetic

    def compute(self, operator: str, function: Callable[..., Any], *tensors: Any) -> Any:
        """As `Computing.compute`."""
        return self._arithmetic.operate(operator, function, *tensors)

    def insert(self, tap: str, values: Any) -> Any:
        """As `Computing.insert`."""
        return self._arithmetic.insert(tap, values)

    def rounded(self, values: Any, like: Any) -> tuple[Any, tuple[Any, Any]]:
        """As `Computing.rounded`."""
        constant = ops.cast(ops.convert_to_tensor(values), like.dtype)
        precise = ops.stop_gradient(ops.cast(constant, "float32"))
        low, high = ops.minimum(ops.min(precise), 0.0), ops.maximum(ops.max(precise), 0.0)
        # The file holds a single number exactly.
        if len(constant.shape):
            constant = self._arithmetic.quantizer.fake_quantize(constant, low, high)
        return constant, (low, high)

    def weigh(self, operator: str, kernel: str, layer: Any, values: Any) -> Any:
        """As `Computing.weigh`."""
        return self._arithmetic.weigh(self._layer.name, operator, kernel, layer, values)

    def looked_up(self, layer: Any, *values: Any, forces: bool = True) -> Any:
        """As `Parts.looked_up`."""
        return self._call(*values)

    def statistics(self, layer: Any, values: Any) -> tuple[Any, Any]:
        """As `Parts.statistics`: of the batch in training, which moves the layer's own."""
        moving = (
            ops.convert_to_tensor(layer.moving_mean),
            ops.convert_to_tensor(layer.moving_variance),
        )
        if not self._arithmetic.in_training or not layer.trainable:
            return moving
        self._call(values, training=True)  # Moves the statistics.
        axes = [i for i in range(len(values.shape)) if i != layer.axis % len(values.shape)]
        mean, variance = ops.moments(ops.cast(values, "float32"), axes)
        return mean, variance
