"""Precisions: what training and conversion need to know about a number format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from edgecompress.core.options import named, options_of
from edgecompress.core.record import CompressionRecord
from edgecompress.core.registry import Registry

PRECISIONS: Registry[type[Precision]] = Registry("precision")

# The names of quantization-aware training and of `quantize` in records.
QAT = "quantization_aware_training"
POST_TRAINING = "post_training_quantization"
QUANTIZED_BY = (QAT, POST_TRAINING)


@dataclass(frozen=True)
class Place:
    """Where in a model a kernel is; some precisions round it more finely in some places.

    Attributes:
        layer: The layer's name.
        operator: The operator that reads the kernel in a file, e.g. `CONV_2D`.
        first: Whether it is the first kernel of the model.
        last: Whether it is the last one.
        grouped: Whether it belongs to a grouped convolution.
        recurrent: Whether it multiplies the state of a recurrent layer.
        fused: Whether it belongs to an LSTM that can be one operator, which has int8 weights.
    """

    layer: str
    operator: str
    first: bool = False
    last: bool = False
    grouped: bool = False
    recurrent: bool = False
    fused: bool = False

    def __str__(self) -> str:
        """The layer, and what makes its place special: `conv (first layer)`."""
        kinds = {
            "DEPTHWISE_CONV_2D": "depthwise",
            "TRANSPOSE_CONV": "transposed convolution",
            "UNIDIRECTIONAL_SEQUENCE_LSTM": "one operator",
        }
        traits = [
            "first layer" if self.first else "",
            "last layer" if self.last else "",
            kinds.get(self.operator, ""),
            "grouped convolution" if self.grouped else "",
            "recurrent" if self.recurrent else "",
        ]
        text = ", ".join(filter(None, traits))
        return f"{self.layer} ({text})" if text else self.layer


class Precision(ABC):
    """A number format for weights and activations: how training simulates it and how files get it.

    A precision is a frozen dataclass; its fields are its options (`core.options.option`). The
    arithmetic is pure functions over `keras.ops` that run inside the compiled train step: the
    gradient of every rounding is a straight-through estimate. What training simulates must be what
    the files' kernels compute.

    Attributes:
        name: Its name in `PRECISIONS`, used in files and records.
        weight_bits: Bits of a weight.
        stored_bits: Bits of a weight in the file.
        activation_bits: Bits of an activation; 32 for float activations.
        trains: Whether QuantizationAwareTraining can simulate it.
        dense_per_channel: Whether the weights of a Dense layer may have a scale for each unit, as
            those of a convolution have for each output channel.
        fixed_ranges: Operator of a .tflite file -> range of its output, if the kernels prescribe
            it.
        engines: The engines (`engines.run.ENGINES`) that run such files.
        fuses_lstm: Whether its files may have LSTM layers as one operator, which has int8 weights
            and activations.

    Example:
        >>> from edgecompress.precisions import PRECISIONS
        >>> PRECISIONS["int8"]().weight_bits
        8
    """

    name: ClassVar[str]
    weight_bits: ClassVar[int]
    stored_bits: ClassVar[int] = 8
    activation_bits: ClassVar[int]
    trains: ClassVar[bool] = True
    dense_per_channel: ClassVar[bool] = True
    fixed_ranges: ClassVar[Mapping[str, tuple[float, float]]] = {}
    engines: ClassVar[tuple[str, ...]]

    @property
    def fuses_lstm(self) -> bool:
        """Whether its files may have LSTM layers as one operator."""
        return False

    @abstractmethod
    def quantize_weights(self, weights: Any, channel_axes: Sequence[int]) -> Any:
        """Returns the values that the codes of weights stand for, in the type of `weights`.

        Args:
            weights: A kernel of any shape.
            channel_axes: Axes whose indices have separate scales; () for a single scale.
        """

    def weight_codes(self, weights: Any, channel_axes: Sequence[int]) -> tuple[Any, Any] | None:
        """Returns the codes of weights and their scales, or None where weights have none.

        With them, validation computes what the int8 kernels compute; otherwise in float.

        Args:
            weights: A kernel of any shape.
            channel_axes: As in `quantize_weights`.

        Returns:
            Whole numbers and scales as float32 tensors; their product is the rounded kernel.
        """
        return None

    def weight_scales(self, weights: Any, channel_axes: Sequence[int]) -> Any | None:
        """Returns the scales of weights; None where those of the largest weights are used.

        Args:
            weights: A kernel of any shape.
            channel_axes: As in `quantize_weights`.
        """
        return None

    @abstractmethod
    def fake_quantize_weights(self, weights: Any, channel_axes: Sequence[int]) -> Any:
        """Returns what `quantize_weights` returns, with a straight-through gradient."""

    @abstractmethod
    def fake_quantize(self, values: Any, low: Any, high: Any) -> Any:
        """Returns rounded and clipped activations, with a straight-through gradient.

        Args:
            values: A float tensor of any shape.
            low: Minimum of the range, a scalar.
            high: Maximum of the range, a scalar.
        """

    def batch_range(self, values: Any) -> Any:
        """Returns [minimum, maximum] for a batch of activations, in float32, without gradient."""
        from edgecompress.precisions.fake_quantization import batch_range

        return batch_range(values)

    @abstractmethod
    def averaging(self, ranges: Any) -> tuple[Any, Any]:
        """Returns how ranges move to those of a batch: `start + share * (batch's - start)`.

        Args:
            ranges: [minimum, maximum] along the last axis, of one activation or of many; [inf,
                -inf] where nothing has been seen yet.

        Returns:
            (start, share); they broadcast against `ranges`.
        """

    def moving_range(self, old: Any, values: Any) -> Any:
        """Returns a range after one more batch.

        Args:
            old: [minimum, maximum]; [inf, -inf] if nothing has been seen yet.
            values: The batch's activations.
        """
        start, share = self.averaging(old)
        return start + share * (self.batch_range(values) - start)

    @property
    def clips_calibrated(self) -> bool:
        """Whether ranges measured on calibration data leave rare values out."""
        return False

    def calibrated_range(self, values: Any, counts: Any) -> tuple[float, float]:
        """Returns the range that calibration data give an activation, if `clips_calibrated`.

        Args:
            values: The values of a histogram, ascending.
            counts: How often each occurred.
        """
        raise NotImplementedError

    def fixed_range(self, low: float, high: float) -> tuple[float, float]:
        """Returns the range that the kernels prescribe where those of int8 prescribe this one."""
        return low, high

    def weights_at(self, place: Place) -> Precision:
        """Returns the precision whose rounding the kernel in a place gets."""
        return self

    def weight_axes(self, channel_axes: tuple[int, ...], rank: int) -> tuple[int, ...]:
        """Returns the axes along which a kernel has separate scales.

        Args:
            channel_axes: Axes that count output channels.
            rank: The kernel's number of dimensions; a Dense layer's has 2.
        """
        return channel_axes if self.dense_per_channel or rank > 2 else ()

    @abstractmethod
    def recipe(self) -> list[dict[str, Any]]:
        """Returns litert-quantizer's recipe for the file."""


def trained_precision(record: CompressionRecord | None) -> Precision | None:
    """Returns the precision that a model was last trained or quantized in; None for float.

    Raises:
        UnknownNameError: the record names a precision that is not registered here.
        ArgumentError: a setting in the record breaks its rule.
    """
    for step in reversed(() if record is None else record.steps):
        if step.get("technique") in QUANTIZED_BY and "quantizer" in step:
            name = step["quantizer"]
            known = (item.name for item in options_of(PRECISIONS[name]))
            # Records of earlier versions name no method.
            settings = {"weight_ranges": "minmax", **step}
            config = {key: settings[key] for key in known if key in settings}
            found: Precision = named(PRECISIONS, {"name": name, "config": config}, "precision")
            return found
    return None
