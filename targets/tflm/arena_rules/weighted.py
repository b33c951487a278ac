"""Operators with weights, products of matrices and decoded weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgecompress.flatbuffers.coding import DECODE
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import Operator
from edgecompress.flatbuffers.tensors import Tensor
from edgecompress.targets.tflm.arena_rules.base import (
    EVAL_TENSOR_BYTES,
    RULES,
    OperatorMemory,
    Unmeasured,
    described_bytes,
    dims_bytes,
    input_of,
    output_of,
    require_rank,
    require_single_batch,
    require_type,
    round_up,
    step,
)

# sizeof() of a matrix product's multiplier, range and zero points.
_PRODUCT = 28


def _pad(size: int, out: int, kernel: int, stride: int, dilation: int = 1) -> int:
    """Padding before the first element, as TensorFlow Lite computes it (0 for VALID)."""
    return max(0, (out - 1) * stride + (kernel - 1) * dilation + 1 - size) // 2


# --- Convolutions ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Window:
    """A two-dimensional window: pairs are (height, width)."""

    size: tuple[int, int]
    channels: int
    out: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def pad(self) -> tuple[int, int]:
        """Padding before the first row and column."""
        vertical, horizontal = (
            _pad(self.size[i], self.out[i], self.kernel[i], self.stride[i], self.dilation[i])
            for i in (0, 1)
        )
        return vertical, horizontal

    @property
    def columns(self) -> int:
        """Values under one window of a convolution: kernel height * width * input channels."""
        return self.kernel[0] * self.kernel[1] * self.channels


def _window(model: FlatModel, operator: Operator) -> _Window:
    source = require_rank(input_of(model, operator, 0), 4, "input")
    weights = require_rank(input_of(model, operator, 1, "filter"), 4, "filter")
    out = require_rank(output_of(model, operator), 4, "output")
    require_single_batch(source)
    return _Window(
        (source[1], source[2]),
        source[3],
        (out[1], out[2]),
        (weights[1], weights[2]),
        (step(operator, "stride_h"), step(operator, "stride_w")),
        (step(operator, "dilation_h_factor"), step(operator, "dilation_w_factor")),
    )


def _conv_types(model: FlatModel, operator: Operator, int4: bool) -> tuple[Tensor, Tensor]:
    source, weights = input_of(model, operator, 0), input_of(model, operator, 1, "filter")
    require_type(source, ("INT8", "INT16"))
    narrow = ("INT8", "INT4") if int4 and source.type == "INT8" else ("INT8",)
    require_type(weights, narrow, "filter")
    bias = model.tensor(operator, 2)
    if source.type == "INT16" and bias is not None:
        require_type(bias, ("INT64",), "bias")
    return source, weights


def _one_row_scratch(window: _Window) -> int:
    """Scratch of arm_convolve_1_x_n_s8 on MVE: the padded ends of one row."""
    (_, width), (_, out), (_, kernel), (_, stride) = (
        window.size, window.out, window.kernel, window.stride,
    )  # fmt: skip
    channels, pad = window.channels, window.pad[1]
    # C's remainder has the sign of its left operand, and C's division truncates.
    uneven = int(math.fmod((out - 1) * stride + kernel - width, 2))
    right = max(1, int((pad + uneven + stride - 1) / stride)) if pad + uneven else 0
    left = max(1, (pad + stride - 1) // stride) if pad else 0
    if right + max(out - left - right, 0) + left != out:
        return 4 * round_up(window.columns)
    return max(
        (kernel + pad) * channels,
        (kernel - 1) * channels + (right if uneven else pad) * channels,
    )


def _conv_scratch(window: _Window, family: str, bits: int) -> int:
    """Scratch of CMSIS-NN's convolution: 0 for 1x1, else its im2col buffers."""
    if bits == 16:
        # The 16-bit scalar kernels were not measured and share no code with the others.
        if family == "scalar":
            raise Unmeasured("its input is INT16; sizes are not known on cores without DSP")
        return 8 * round_up(window.columns, 8) if family == "mve" else 4 * window.columns
    if window.kernel == (1, 1) and window.dilation == (1, 1) and window.pad == (0, 0):
        return 0
    if family != "mve":
        return 4 * round_up(window.columns, 4)
    one_row = window.size[0] == window.kernel[0] == window.dilation[1] == 1
    if one_row and window.stride[1] * window.channels % 4 == 0:
        return _one_row_scratch(window)
    return 4 * round_up(window.columns)


@RULES.register("CONV_2D")
def _conv_2d(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
    """Two buffers of 4 bytes per output channel; scratch for im2col.

    Scratch of CMSIS-NN, K = kernel height * width * input channels: int8 1x1 none; DSP 4*ceil4(K);
    MVE 4*ceil16(K) or the ends of one row for 1xN; int16 4*K (DSP), 8*ceil8(K) (MVE). The
    reference kernel unpacks int4 weights.
    """
    source, weights = _conv_types(model, operator, int4=True)
    window = _window(model, operator)
    if weights.shape[3] != window.channels:
        raise Unmeasured("it has groups; sizes are known for one group")
    channels = weights.shape[0]
    if family == "reference":
        scratch = weights.elements if weights.type == "INT4" else 0
    else:
        scratch = _conv_scratch(window, family, int(source.bits))
    return OperatorMemory(
        params=(28, 4),
        data=56 if family == "reference" else 60,
        persistent=(4 * channels, 4 * channels),
        scratch=(scratch,) if scratch else (),
        described=described_bytes(source, weights, output_of(model, operator)),
    )


def _depthwise_scratch(window: _Window, channels: int, family: str) -> int:
    taps = window.kernel[0] * window.kernel[1]
    if family == "mve" and window.channels == 1 and channels > 1:
        # Runs as a convolution with the filter transposed.
        return _conv_scratch(window, family, 8) + channels * taps
    if window.channels != channels or window.dilation != (1, 1):
        return 0
    if family == "mve":
        return 496 * taps
    if family == "scalar" or (window.kernel == (3, 3) and max(window.pad) <= 1):
        return 0
    return 2 * channels * taps


@RULES.register("DEPTHWISE_CONV_2D")
def _depthwise_conv_2d(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
    """Two buffers of 4 bytes per output channel; scratch if CMSIS-NN has a fast path.

    Scratch of CMSIS-NN for int8, multiplier 1 and dilation 1: DSP none for 3x3 with padding up to
    1, else 2*C*kh*kw; MVE 496*kh*kw. MVE with one input channel: a convolution's scratch and
    C*kh*kw. Otherwise none. The reference kernel unpacks int4 weights.
    """
    source, weights = _conv_types(model, operator, int4=family == "reference")
    window = _window(model, operator)
    channels = weights.shape[3]
    if weights.type == "INT4":
        scratch = weights.elements
    elif family == "reference" or source.type == "INT16":
        scratch = 0
    else:
        scratch = _depthwise_scratch(window, channels, family)
    return OperatorMemory(
        params=(28, 4),
        data=56 if family == "reference" else 60,
        persistent=(4 * channels, 4 * channels),
        scratch=(scratch,) if scratch else (),
        described=described_bytes(source, weights, output_of(model, operator)),
    )


@RULES.register("TRANSPOSE_CONV")
def _transpose_conv(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
    """Two buffers of 4 bytes per output channel; scratch for 32-bit sums or a reversed filter.

    The reference kernel sums in 4 bytes per output element. CMSIS-NN with strides up to 2 and more
    than 16 input channels runs a convolution: its im2col scratch and the filter reversed. Otherwise
    4*Cout*((W-1)*sw + max(kw, sh))*max(kh, sh), and a second buffer of 0 bytes.
    """
    weights = input_of(model, operator, 1, "filter")
    source = input_of(model, operator, 2)
    require_type(source, ("INT8",))
    require_type(weights, ("INT8",), "filter")
    _, _, width, depth = require_rank(source, 4, "input")
    channels, kernel_h, kernel_w, _ = require_rank(weights, 4, "filter")
    require_single_batch(source.shape)
    stride_h, stride_w = step(operator, "stride_h"), step(operator, "stride_w")
    if family == "reference":
        scratch: tuple[int, ...] = (4 * output_of(model, operator).elements,)
    elif max(stride_h, stride_w) <= 2 and depth > 16:
        columns = kernel_h * kernel_w * depth
        im2col = 4 * round_up(columns, 16 if family == "mve" else 4)
        scratch = (im2col, columns * channels)
    else:
        # Using the height's stride for the width is CMSIS-NN's own doing.
        row = (width - 1) * stride_w + max(kernel_w, stride_h)
        scratch = (4 * channels * row * max(kernel_h, stride_h), 0)
    return OperatorMemory(
        params=(16, 4),
        data=72 if family == "reference" else 76,
        persistent=(4 * channels, 4 * channels),
        scratch=scratch,
        described=described_bytes(source, weights, output_of(model, operator)),
    )


@RULES.register("FULLY_CONNECTED")
def _fully_connected(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
    """Per-channel: two buffers of 4 bytes per output; MVE: 4 bytes per output for weight sums.

    Sums of int8 weights are in the tail if weights and bias are constant, in scratch if one is
    decoded at run time. With more than two output dimensions and inputs in multiples of 4, CMSIS-NN
    runs a 1x1 convolution: no sums, but per-tensor scales are spread over the outputs in 8 bytes of
    scratch each. The reference kernel unpacks int4 weights.
    """
    source, weights = _conv_types(model, operator, int4=True)
    out = output_of(model, operator)
    units, depth = require_rank(weights, 2, "filter")
    per_channel = len(weights.scales) > 1
    persistent = [4 * units, 4 * units] if per_channel else []
    scratch: list[int] = []
    if family == "reference":
        scratch += [weights.elements] if weights.type == "INT4" else []
    elif source.type == weights.type == "INT8":
        if len(out.shape) > 2 and depth % 4 == 0:
            scratch += [] if per_channel else [8 * units]
        elif family == "mve":
            bias = model.tensor(operator, 2)
            stored = weights.is_constant and (bias is None or bias.is_constant)
            (persistent if stored else scratch).append(4 * units)
    return OperatorMemory(
        params=(5, 1),
        data=48 if family == "reference" else 72,
        persistent=tuple(persistent),
        scratch=tuple(scratch),
    )


@RULES.register("BATCH_MATMUL")
def _batch_matmul(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
    """A transposed copy of either matrix, in the tail, and the output's shape.

    The right one is transposed unless `adj_y` says that it is already, the left one if `adj_x` says
    so: a tensor of 12 bytes, its shape, its elements. Integers add a multiplier of 28 bytes; MVE
    sums int8 in 4 bytes of scratch per column of the output.
    """
    left, right = input_of(model, operator, 0), input_of(model, operator, 1)
    out = output_of(model, operator)
    require_type(left, ("INT8", "INT16", "FLOAT32"))
    require_type(right, (left.type,), "second input")
    most = 5 if family == "reference" else 4
    for tensor in (left, right):
        if not 2 <= len(tensor.shape) <= most:
            raise Unmeasured(f"its input has {len(tensor.shape)} dimensions")
    if len(out.shape) != max(len(left.shape), len(right.shape)):
        raise Unmeasured(f"its output has {len(out.shape)} dimensions")
    persistent = [dims_bytes(out)]
    for tensor, turned in (
        (left, operator.options.get("adj_x", False)),
        (right, not operator.options.get("adj_y", False)),
    ):
        if turned:
            persistent += [EVAL_TENSOR_BYTES, dims_bytes(tensor), tensor.bytes]
    if left.type != "FLOAT32":
        persistent.append(_PRODUCT)
    sums = family == "mve" and left.type == "INT8"
    return OperatorMemory(
        params=(3, 1),
        data=16 if family == "reference" else 36,
        persistent=tuple(persistent),
        scratch=(4 * out.shape[-1],) if sums else (),
    )


# --- Recurrent operators -----------------------------------------------------------------------


@RULES.register("SVDF")
def _svdf(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
    """Scratch of 4 bytes per filter and per unit; MVE keeps sums of 4 bytes per filter."""
    source, weights = input_of(model, operator, 0), input_of(model, operator, 1, "feature weights")
    state = input_of(model, operator, 4, "state")
    require_type(source, ("INT8",))
    require_type(weights, ("INT8",), "feature weights")
    require_type(state, ("INT8", "INT16"), "state")
    require_single_batch(require_rank(source, 2, "input"))
    filters, _ = require_rank(weights, 2, "feature weights")
    units = output_of(model, operator).elements
    return OperatorMemory(
        params=(8, 4),
        data=36 if family == "reference" else 40,
        persistent=(4 * filters,) if family == "mve" else (),
        scratch=(4 * filters, 4 * units),
    )


@RULES.register("UNIDIRECTIONAL_SEQUENCE_LSTM")
def _lstm(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
    """16-bit scratch of units * batch, 4 times (reference) or 3 times; CMSIS-NN keeps 8 sums."""
    source = input_of(model, operator, 0)
    state = input_of(model, operator, 18, "output state")
    require_type(source, ("INT8",))
    batch, units = require_rank(state, 2, "output state")
    reference = family == "reference"
    return OperatorMemory(
        params=(16, 4),
        data=688 if reference else 912,
        persistent=() if reference else (4 * units,) * 8,
        scratch=(2 * units * batch,) * (4 if reference else 3),
    )


@RULES.register(DECODE)
def _decode(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
    """A pointer per output, then a decoder: table 36 bytes, Huffman 28, pruned 40.

    The decoded tensor is an ordinary tensor of the head.
    """
    decoders = {0: 36, 1: 28, 2: 40}
    persistent = [4 * len(operator.outputs)]
    for position in range(len(operator.outputs)):
        ancillary = input_of(model, operator, 2 * position + 1, "ancillary tensor")
        kind = ancillary.raw[0] if ancillary.raw else None
        if kind not in decoders:
            raise Unmeasured(f"its decoder type {kind} is unknown; known are 0, 1 and 2")
        persistent.append(decoders[kind])
    return OperatorMemory(persistent=tuple(persistent))
