"""Precisions of weights alone, with float activations: dynamic-range and float16."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from edgecompress.engines.registry import LCE, LEGACY, LITERT
from edgecompress.precisions.base import PRECISIONS, Precision


@dataclass(frozen=True)
class WeightsOnly(Precision):
    """A precision whose files compute with float inputs, outputs and activations.

    It needs neither training nor calibration.
    """

    activation_bits: ClassVar[int] = 32
    trains: ClassVar[bool] = False
    engines: ClassVar[tuple[str, ...]] = (LITERT, LEGACY, LCE)

    def fake_quantize_weights(self, weights: Any, channel_axes: Sequence[int]) -> Any:
        """Returns rounded weights with a straight-through gradient."""
        from keras import ops

        weights = ops.convert_to_tensor(weights)
        rounded = self.quantize_weights(ops.stop_gradient(weights), channel_axes)
        return weights + ops.stop_gradient(rounded - weights)

    def fake_quantize(self, values: Any, low: Any, high: Any) -> Any:
        """Returns the values unchanged."""
        return values

    def averaging(self, ranges: Any) -> tuple[Any, Any]:
        """Returns the old ranges: activations have none."""
        return ranges, 0.0


@PRECISIONS.register("dynamic-range")
@dataclass(frozen=True)
class DynamicRange(WeightsOnly):
    """int8 weights; each inference rounds the activations of each layer to its own range.

    Weights are rounded as in int8, with one scale for a Dense layer: with more, tflite-runtime 2.14
    computes zeros. Transposed convolutions stay in float32, as that runtime refuses them. The file
    takes about a quarter of the float file's size; it is for phones and computers, as TensorFlow
    Lite Micro does not run it.

    Example:
        >>> export(model, ["pixel-8"], precision="dynamic-range")  # doctest: +SKIP
    """

    name: ClassVar[str] = "dynamic-range"
    weight_bits: ClassVar[int] = 8
    dense_per_channel: ClassVar[bool] = False

    def quantize_weights(self, weights: Any, channel_axes: Sequence[int]) -> Any:
        """Returns rounded weights."""
        from edgecompress.precisions.fake_quantization import quantize_weights

        return quantize_weights(weights, channel_axes, self.weight_bits)

    def recipe(self) -> list[dict[str, Any]]:
        """Returns litert-quantizer's `dynamic_wi8_afp32`, changed for older runtimes."""
        from litert_quantizer import recipe

        (base,) = recipe.dynamic_wi8_afp32()
        dense: dict[str, Any] = copy.deepcopy(dict(base)) | {"operation": "FULLY_CONNECTED"}
        dense["op_config"]["weight_tensor_config"]["granularity"] = "TENSORWISE"
        transposed = {
            "regex": ".*",
            "operation": "CONV_2D_TRANSPOSE",
            "algorithm_key": "no_quantize",
            "op_config": {},
        }
        # An entry for all operators replaces earlier ones of the same expression.
        return [dict(base), dense, transposed]


@PRECISIONS.register("float16")
@dataclass(frozen=True)
class Float16(WeightsOnly):
    """Weights in float16, read as float32 or, on GPUs, as they are.

    The file takes half of the float file's size. Values above 65504 would overflow, so such weights
    are refused.

    Example:
        >>> export(model, ["pixel-8"], precision="float16")  # doctest: +SKIP
    """

    name: ClassVar[str] = "float16"
    weight_bits: ClassVar[int] = 16
    stored_bits: ClassVar[int] = 16

    def quantize_weights(self, weights: Any, channel_axes: Sequence[int]) -> Any:
        """Returns the weights rounded to float16."""
        from keras import ops

        weights = ops.convert_to_tensor(weights)
        return ops.cast(ops.cast(weights, "float16"), weights.dtype)

    def recipe(self) -> list[dict[str, Any]]:
        """Returns litert-quantizer's recipe for float16 weights."""
        return [
            {
                "regex": ".*",
                "operation": operation,
                "algorithm_key": "float_casting",
                "op_config": {
                    "weight_tensor_config": {"num_bits": 16, "dtype": "FLOAT"},
                    "compute_precision": "FLOAT",
                    "explicit_dequantize": True,
                },
            }
            for operation in (
                "FULLY_CONNECTED",
                "CONV_2D",
                "DEPTHWISE_CONV_2D",
                "CONV_2D_TRANSPOSE",
                "EMBEDDING_LOOKUP",
            )
        ]
