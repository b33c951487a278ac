"""Operators of .tflite files: what their weights are, and how much they compute."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from edgecompress.flatbuffers.tensors import Tensor

WEIGHTED = frozenset(
    {
        "CONV_2D",
        "DEPTHWISE_CONV_2D",
        "FULLY_CONNECTED",
        "TRANSPOSE_CONV",
        "CONV_3D",
        "SVDF",
        "BATCH_MATMUL",
        "UNIDIRECTIONAL_SEQUENCE_LSTM",
    }
)
# Operators whose input 1 is a filter with output channels.
FILTER_READERS = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"})
# The binary convolution of Larq Compute Engine: filters and activations are bits, 32 of a pixel's
# channels in one int32, 1 for negative.
BINARY_CONV = "LceBconv2d"
WORD_BITS = 32


@dataclass(frozen=True)
class Operator:
    """One operator of a flatbuffer.

    Attributes:
        index: Position in the order of execution.
        code: `CONV_2D`, ... as in the schema; `CUSTOM` for custom ones.
        custom_name: Name of a custom operator, else "".
        version: Version of the operator that the file asks for.
        inputs: Tensor indices, -1 for an optional input left out.
        outputs: Tensor indices.
        options: The operator's options in snake_case, enumerations as their numbers, e.g.
            `stride_w`, `padding` (0 SAME, 1 VALID), `fused_activation_function` (0 none, 1 RELU,
            2 RELU_N1_TO_1, 3 RELU6), `depth_multiplier`, `dilation_w_factor`. Those of Larq Compute
            Engine's operators are read too (`channels_in`, `stride_width`, `pad_values`, ...).
        intermediates: Tensor indices of intermediate results (LSTM).
        has_custom_options: Whether custom options are present.
    """

    index: int
    code: str
    custom_name: str
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    intermediates: tuple[int, ...] = ()
    has_custom_options: bool = False

    @property
    def name(self) -> str:
        """The custom name if there is one, else the code."""
        return self.custom_name or self.code


class Graph(Protocol):
    """Provides the tensors of an operator, as `FlatModel` does."""

    @property
    def tensors(self) -> Sequence[Tensor]:
        """All tensors, by index."""

    def tensor(self, operator: Operator, position: int) -> Tensor | None:
        """Returns an operator's input tensor by position; None if it was left out."""

    def output(self, operator: Operator, position: int = 0) -> Tensor:
        """Returns an operator's output tensor by position."""


def channel_axis(operator: Operator) -> int:
    """Returns the axis of a filter's output channels."""
    return 3 if operator.code == "DEPTHWISE_CONV_2D" else 0


def operator_macs(model: Graph, operator: Operator) -> int:
    """Returns an operator's multiply-accumulates; 0 for operators without a weighted sum.

    Padding counts as work, as in published counts (MLPerf Tiny, Keras summaries).
    """
    weights = model.tensor(operator, 1)
    if operator.code not in WEIGHTED or weights is None:
        return 0
    out = model.output(operator).elements
    if operator.code == "CONV_2D":
        return out * math.prod(weights.shape[1:])
    if operator.code == "DEPTHWISE_CONV_2D":
        return out * math.prod(weights.shape[1:3])
    if operator.code == "FULLY_CONNECTED":
        return out * weights.shape[-1]
    if operator.code == "TRANSPOSE_CONV":
        source = model.tensor(operator, 2)
        return 0 if source is None else source.elements * math.prod(weights.shape[:-1])
    if operator.code == "BATCH_MATMUL":
        adjoint = bool(operator.options.get("adj_y", False))
        return out * (1, *weights.shape)[-1 if adjoint else -2]
    if operator.code == "CONV_3D":
        return out * math.prod(weights.shape[:-1])
    if operator.code == "SVDF":
        time = model.tensor(operator, 2)
        return weights.elements + (0 if time is None else time.elements)
    # LSTM: every gate matrix is used once in each time step.
    source = model.tensor(operator, 0)
    gates = [model.tensor(operator, position) for position in range(1, 9)]
    if source is None or len(source.shape) < 3:
        return 0
    time_major = bool(operator.options.get("time_major", False))
    steps, batch = source.shape[:2] if time_major else (source.shape[1], source.shape[0])
    return steps * batch * sum(gate.elements for gate in gates if gate is not None)


def binary_kernel_shape(model: Graph, operator: Operator) -> tuple[int, int, int, int]:
    """Returns the shape of a binary convolution's filter before packing: (out, h, w, in)."""
    out, height, width, stored = model.tensors[operator.inputs[1]].shape
    channels = int(operator.options["channels_in"])
    # Grouped filters hold the channels of one group, a multiple of 32.
    return out, height, width, channels if words(channels) == stored else stored * WORD_BITS


def operator_binary_macs(model: Graph, operator: Operator) -> int:
    """Returns an operator's multiply-accumulates of bits; 0 for all but binary convolutions."""
    if operator.name != BINARY_CONV:
        return 0
    # The output may be packed, with words as its last dimension; the filter has the channels.
    positions = math.prod(model.output(operator).shape[:-1])
    return positions * math.prod(binary_kernel_shape(model, operator))


def words(channels: int) -> int:
    """Returns the int32 words that hold one bit for each channel."""
    return -(-channels // WORD_BITS)
