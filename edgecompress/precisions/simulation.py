"""The trained arithmetic as a Keras model: what the exported file is compared with."""

from __future__ import annotations

import re
from typing import Any

import keras
from keras import ops

from edgecompress.core.errors import ArgumentError
from edgecompress.core.fusion import Tap, analyse, source_of
from edgecompress.core.layer_kinds import KernelAxes
from edgecompress.core.learnt_ranges import settled_record, valid_record
from edgecompress.core.operator_copy import rebuild
from edgecompress.core.record import CompressionRecord
from edgecompress.precisions.base import PRECISIONS, Precision, trained_precision
from edgecompress.precisions.int8 import Int8
from edgecompress.precisions.mixed import (
    assign,
    kernel_name,
    places_of,
    scale_axes,
    trained_kernels,
)


@keras.saving.register_keras_serializable(package="edgecompress")
class FakeQuantize(keras.layers.Layer):
    """Rounds its input to what a tensor with a fixed range holds in a precision.

    Args:
        low: Minimum of the range.
        high: Maximum of the range.
        precision: Name in `PRECISIONS`. Defaults to `"int8"`.
    """

    def __init__(self, low: float, high: float, precision: str = "int8", **kwargs: Any) -> None:
        """Keeps the range."""
        # Files of earlier versions store the bits: 8, for int8.
        kwargs.pop("bits", None)
        super().__init__(**kwargs)
        self.low, self.high, self.precision = float(low), float(high), precision

    def call(self, inputs: Any) -> Any:
        """Returns the rounded input."""
        return PRECISIONS[self.precision]().fake_quantize(inputs, self.low, self.high)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the input's shape."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments."""
        own = {"low": self.low, "high": self.high, "precision": self.precision}
        return {**super().get_config(), **own}


def simulate(
    model: keras.Model,
    record: CompressionRecord | None = None,
    quantizer: Precision | None = None,
) -> keras.Model:
    """Returns a Keras model that computes what the quantized file will compute.

    Kernels hold the rounded weights, and every tap rounds with its learnt range. Predictions differ
    from those of the exported file only where float and integer rounding break a tie differently,
    and where the record's notes say "not simulated".

    Args:
        model: A trained Sequential or Functional model; not changed.
        record: Holds the ranges. Defaults to the record attached to `model`, if its weights are
            still those with which the ranges were learnt.
        quantizer: The precision. Defaults to the one the record says it was trained in, else int8.

    Returns:
        A model of new layers with the current weights; it can be saved and loaded.

    Raises:
        ArgumentError: the record has no range for a tap of the model.
        UnsupportedModelError: the model is subclassed or has no input shape.

    Example:
        >>> model.fit(x, y, callbacks=[QuantizationAwareTraining()])  # doctest: +SKIP
        >>> simulate(model).evaluate(x_test, y_test)  # doctest: +SKIP
    """
    record = valid_record(model, settled_record(model)) if record is None else record
    trained = trained_precision(record)
    quantizer = quantizer or trained or Int8()
    graph = analyse(model)
    if trained is not None and quantizer == trained:
        kernels = trained_kernels(record)
    else:
        kernels = assign(places_of(model, graph), quantizer)
    taps = {tap.name: tap for tap in graph.taps}
    ranges = {name: _range_of(tap, taps, record, quantizer) for name, tap in taps.items()}

    def insert(name: str, tensor: Any) -> Any:
        if name not in ranges:
            return tensor
        layer_name = re.sub(r"[/:]", "_", name) + f"_{quantizer.name}"
        return FakeQuantize(*ranges[name], quantizer.name, name=layer_name)(tensor)

    def weights(layer: str, kernel: KernelAxes, values: Any) -> Any:
        precision = kernels.get(kernel_name(layer, kernel.attribute), quantizer)
        axes = precision.weight_axes(kernel.outputs, values.ndim)
        axes = scale_axes(values, axes, precision)
        return ops.convert_to_numpy(precision.quantize_weights(values, axes))

    return rebuild(model, insert, weights)


def _range_of(
    tap: Tap, taps: dict[str, Tap], record: CompressionRecord, quantizer: Precision
) -> tuple[float, float]:
    tap = source_of(tap, taps)
    if tap.fixed is not None:
        return quantizer.fixed_range(*tap.fixed)
    if tap.name not in record.ranges:
        raise ArgumentError(
            "record",
            f"hold an activation range for {tap.name!r}",
            sorted(record.ranges),
            "Its weights changed after training learnt it: train quantization-aware again."
            if tap.name in record.outdated
            else "Train with QuantizationAwareTraining, or pass the record of this model.",
        )
    return record.ranges[tap.name]
