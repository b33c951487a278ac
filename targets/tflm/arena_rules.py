"""What each operator takes from the tensor arena: one rule per operator, in bytes.

The sizes hold for tflite-micro of August 2026 with CMSIS-NN 4ab83cc3, built by GCC 12.2 for 32-bit
Arm. A rule covers the types and shapes that were verified by measurements; for anything else it
raises `Unmeasured`. To add an operator, register a rule here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from edgecompress.core.registry import Registry
from edgecompress.flatbuffers.coding import DECODE
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import Operator
from edgecompress.flatbuffers.tensors import Tensor

# sizeof() of what describes a tensor, and of its quantization without the zero points.
TENSOR_BYTES, QUANTIZATION_BYTES = 32, 12
ALIGNMENT = 16


@dataclass(frozen=True)
class OperatorMemory:
    """What one operator takes from the arena, in bytes.

    Attributes:
        params: Size and alignment of its parsed options.
        data: The kernel's own structure, 16-byte aligned; 0 for none.
        persistent: Buffers in the tail that it requests while being prepared, each 16-byte aligned.
        scratch: Buffers in the head that live while it runs.
        described: Bytes that describe tensors a second time while it is prepared; each of its
            tensors is described once anyway. Only matters to the smallest arena of tiny models.
    """

    params: tuple[int, int] = (0, 1)
    data: int = 0
    persistent: tuple[int, ...] = ()
    scratch: tuple[int, ...] = ()
    described: int = 0


class Unmeasured(Exception):
    """A rule does not cover this use of its operator; the text is the reason."""


Rule = Callable[[FlatModel, Operator, str], OperatorMemory]

RULES: Registry[Rule] = Registry("operator")
"""Operator name -> rule (model, operator, family) -> OperatorMemory.

Families: `reference` for the reference kernels, `scalar`, `dsp` and `mve` for CMSIS-NN on cores
without DSP instructions, with them, and with MVE.
"""


def round_up(size: int, alignment: int = ALIGNMENT) -> int:
    """Returns the next multiple of `alignment`."""
    return -(-size // alignment) * alignment


# --- Reading operators -------------------------------------------------------------------------


def _input(model: FlatModel, operator: Operator, position: int, what: str = "") -> Tensor:
    tensor = model.tensor(operator, position)
    if tensor is None:
        raise Unmeasured(f"its {what or f'input {position}'} is left out")
    return tensor


def _output(model: FlatModel, operator: Operator) -> Tensor:
    if not operator.outputs:
        raise Unmeasured("it has no output")
    return model.output(operator)


def _step(operator: Operator, name: str) -> int:
    value = operator.options.get(name)
    if not isinstance(value, int) or value < 1:
        raise Unmeasured(f"its option {name} is {value}")
    return value


def _require_type(tensor: Tensor, types: tuple[str, ...], what: str = "input") -> None:
    if tensor.type not in types:
        raise Unmeasured(f"its {what} is {tensor.type}; sizes are known for {' and '.join(types)}")


def _require_rank(tensor: Tensor, rank: int, what: str) -> tuple[int, ...]:
    if len(tensor.shape) != rank:
        raise Unmeasured(f"its {what} has {len(tensor.shape)} dimensions instead of {rank}")
    return tensor.shape


def _require_single_batch(shape: tuple[int, ...]) -> None:
    if shape[0] != 1:
        raise Unmeasured(f"its batch is {shape[0]}; sizes are known for 1")


def _pad(size: int, out: int, kernel: int, stride: int, dilation: int = 1) -> int:
    """Padding before the first element, as TensorFlow Lite computes it (0 for VALID)."""
    return max(0, (out - 1) * stride + (kernel - 1) * dilation + 1 - size) // 2


def has_quantization(tensor: Tensor) -> bool:
    """Whether the interpreter keeps scales and zero points of a tensor."""
    return bool(
        tensor.scales and tensor.zero_points and not tensor.type.startswith(("FLOAT", "BFLOAT"))
    )


def described_bytes(*tensors: Tensor) -> int:
    """Returns the bytes of the structures that describe tensors while an operator is prepared."""
    zero_points = [4 + 4 * len(t.scales) for t in tensors if has_quantization(t)]
    return TENSOR_BYTES * len(tensors) + QUANTIZATION_BYTES * len(zero_points) + sum(zero_points)


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
    source = _require_rank(_input(model, operator, 0), 4, "input")
    weights = _require_rank(_input(model, operator, 1, "filter"), 4, "filter")
    out = _require_rank(_output(model, operator), 4, "output")
    _require_single_batch(source)
    return _Window(
        (source[1], source[2]),
        source[3],
        (out[1], out[2]),
        (weights[1], weights[2]),
        (_step(operator, "stride_h"), _step(operator, "stride_w")),
        (_step(operator, "dilation_h_factor"), _step(operator, "dilation_w_factor")),
    )


def _conv_types(model: FlatModel, operator: Operator, int4: bool) -> tuple[Tensor, Tensor]:
    source, weights = _input(model, operator, 0), _input(model, operator, 1, "filter")
    _require_type(source, ("INT8", "INT16"))
    narrow = ("INT8", "INT4") if int4 and source.type == "INT8" else ("INT8",)
    _require_type(weights, narrow, "filter")
    bias = model.tensor(operator, 2)
    if source.type == "INT16" and bias is not None:
        _require_type(bias, ("INT64",), "bias")
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
        described=described_bytes(source, weights, _output(model, operator)),
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
        described=described_bytes(source, weights, _output(model, operator)),
    )


@RULES.register("TRANSPOSE_CONV")
def _transpose_conv(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
    """Two buffers of 4 bytes per output channel; scratch for 32-bit sums or a reversed filter.

    The reference kernel sums in 4 bytes per output element. CMSIS-NN with strides up to 2 and more
    than 16 input channels runs a convolution: its im2col scratch and the filter reversed. Otherwise
    4*Cout*((W-1)*sw + max(kw, sh))*max(kh, sh), and a second buffer of 0 bytes.
    """
    weights = _input(model, operator, 1, "filter")
    source = _input(model, operator, 2)
    _require_type(source, ("INT8",))
    _require_type(weights, ("INT8",), "filter")
    _, _, width, depth = _require_rank(source, 4, "input")
    channels, kernel_h, kernel_w, _ = _require_rank(weights, 4, "filter")
    _require_single_batch(source.shape)
    stride_h, stride_w = _step(operator, "stride_h"), _step(operator, "stride_w")
    if family == "reference":
        scratch: tuple[int, ...] = (4 * _output(model, operator).elements,)
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
        described=described_bytes(source, weights, _output(model, operator)),
    )


@RULES.register("FULLY_CONNECTED")
def _fully_connected(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
    """Per-channel: two buffers of 4 bytes per output; MVE: 4 bytes per output for weight sums.

    Sums of int8 weights are in the tail if the weights are constant, in scratch if they are decoded
    at run time. With more than two output dimensions and inputs in multiples of 4 CMSIS-NN runs a
    1x1 convolution: no sums, but per-tensor scales are spread over the outputs in 8 bytes of
    scratch each. The reference kernel unpacks int4 weights.
    """
    source, weights = _conv_types(model, operator, int4=True)
    out = _output(model, operator)
    units, depth = _require_rank(weights, 2, "filter")
    per_channel = len(weights.scales) > 1
    persistent = [4 * units, 4 * units] if per_channel else []
    scratch: list[int] = []
    if family == "reference":
        scratch += [weights.elements] if weights.type == "INT4" else []
    elif source.type == weights.type == "INT8":
        if len(out.shape) > 2 and depth % 4 == 0:
            scratch += [] if per_channel else [8 * units]
        elif family == "mve":
            (persistent if weights.is_constant else scratch).append(4 * units)
    return OperatorMemory(
        params=(5, 1),
        data=48 if family == "reference" else 72,
        persistent=tuple(persistent),
        scratch=tuple(scratch),
    )


# --- Pooling and reductions --------------------------------------------------------------------


def _pool(model: FlatModel, operator: Operator) -> Tensor:
    source = _input(model, operator, 0)
    _require_type(source, ("INT8", "INT16"))
    _require_single_batch(_require_rank(source, 4, "input"))
    return source


@RULES.register("AVERAGE_POOL_2D")
def _average_pool(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
    """CMSIS-NN with DSP instructions sums in scratch: 4 bytes per channel."""
    channels = _pool(model, operator).shape[3]
    return OperatorMemory(
        params=(40, 4),
        data=32 if family == "reference" else 36,
        scratch=(4 * channels,) if family == "dsp" else (),
    )


@RULES.register("MAX_POOL_2D")
def _max_pool(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
    """No own buffers."""
    _pool(model, operator)
    return OperatorMemory(params=(40, 4), data=32 if family == "reference" else 36)


def _reduction(
    model: FlatModel, operator: Operator, types: tuple[str, ...] = ("INT8",)
) -> tuple[int, int]:
    """Scratch for the index over the input and for the resolved axes."""
    source, axes = _input(model, operator, 0), _input(model, operator, 1, "list of axes")
    _require_type(source, types)
    return 4 * len(source.shape), 4 * axes.elements


@RULES.register("MEAN")
@RULES.register("SUM")
def _sum(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
    """Three scratch buffers: 32-bit sums of the outputs, the index, the axes."""
    index, axes = _reduction(model, operator, ("INT8", "INT16"))
    sums = 4 * _output(model, operator).elements
    return OperatorMemory(params=(1, 1), data=44, scratch=(sums, index, axes))


@RULES.register("REDUCE_MAX")
def _reduce_max(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
    """Two scratch buffers: the index, the axes."""
    return OperatorMemory(params=(1, 1), data=44, scratch=_reduction(model, operator))


# --- Recurrent operators -----------------------------------------------------------------------


@RULES.register("SVDF")
def _svdf(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
    """Scratch of 4 bytes per filter and per unit; MVE keeps sums of 4 bytes per filter."""
    source, weights = _input(model, operator, 0), _input(model, operator, 1, "feature weights")
    state = _input(model, operator, 4, "state")
    _require_type(source, ("INT8",))
    _require_type(weights, ("INT8",), "feature weights")
    _require_type(state, ("INT8", "INT16"), "state")
    _require_single_batch(_require_rank(source, 2, "input"))
    filters, _ = _require_rank(weights, 2, "feature weights")
    units = _output(model, operator).elements
    return OperatorMemory(
        params=(8, 4),
        data=36 if family == "reference" else 40,
        persistent=(4 * filters,) if family == "mve" else (),
        scratch=(4 * filters, 4 * units),
    )


@RULES.register("UNIDIRECTIONAL_SEQUENCE_LSTM")
def _lstm(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
    """16-bit scratch of units * batch, 4 times (reference) or 3 times; CMSIS-NN keeps 8 sums."""
    source = _input(model, operator, 0)
    state = _input(model, operator, 18, "output state")
    _require_type(source, ("INT8",))
    batch, units = _require_rank(state, 2, "output state")
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
        ancillary = _input(model, operator, 2 * position + 1, "ancillary tensor")
        kind = ancillary.raw[0] if ancillary.raw else None
        if kind not in decoders:
            raise Unmeasured(f"its decoder type {kind} is unknown; known are 0, 1 and 2")
        persistent.append(decoders[kind])
    return OperatorMemory(persistent=tuple(persistent))


# --- Operators whose memory does not depend on their shapes ------------------------------------

_INT8 = ("INT8",)
_INT8_16 = ("INT8", "INT16")
# Operators that only move elements keep the same structures for every type.
_ANY = ("INT8", "INT16", "INT32", "INT64", "UINT8", "BOOL", "FLOAT32")


def _register_fixed(
    names: Iterable[str],
    params: tuple[int, int],
    data: int,
    types: tuple[str, ...],
    source: int = 0,
) -> None:
    def rule(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
        _require_type(_input(model, operator, source), types)
        return OperatorMemory(params, data)

    rule.__doc__ = f"Options of {params[0]} bytes, data of {data} bytes; no buffers."
    for name in names:
        RULES.register(name)(rule)


_register_fixed(("ADD",), (2, 1), 60, _INT8_16)
_register_fixed(("SUB",), (2, 1), 52, _INT8_16)
_register_fixed(("MUL",), (1, 1), 36, _INT8_16)
_register_fixed(("MAXIMUM", "MINIMUM"), (0, 1), 0, _INT8)
_register_fixed(("LOGISTIC",), (0, 1), 16, _INT8_16)
_register_fixed(("RELU",), (0, 1), 28, _INT8)
_register_fixed(("RELU6",), (0, 1), 8, _INT8)
_register_fixed(("LEAKY_RELU",), (4, 4), 24, _INT8_16)
_register_fixed(("HARD_SWISH",), (0, 1), 20, _INT8)
_register_fixed(("PRELU",), (0, 1), 28, _INT8)
_register_fixed(("QUANTIZE",), (0, 1), 32, ("INT8", "INT16", "UINT8", "FLOAT32"))
_register_fixed(("DEQUANTIZE",), (0, 1), 32, _INT8_16)
_register_fixed(("RESIZE_NEAREST_NEIGHBOR", "RESIZE_BILINEAR"), (2, 1), 0, _INT8)
_register_fixed(("PAD",), (0, 1), 56, _INT8_16)
_register_fixed(("CONCATENATION",), (8, 4), 24, _ANY)
_register_fixed(("RESHAPE", "SQUEEZE"), (36, 4), 0, _ANY)
_register_fixed(("SPLIT",), (4, 4), 0, _ANY, source=1)
_register_fixed(("STRIDED_SLICE",), (24, 4), 84, _ANY)
_register_fixed(("SLICE", "TRANSPOSE"), (0, 1), 0, _ANY)


@RULES.register("TANH")
def _tanh(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
    """Data of 16 bytes; no buffers."""
    source = _input(model, operator, 0)
    _require_type(source, _INT8_16)
    return OperatorMemory(data=16, described=described_bytes(source))


@RULES.register("SOFTMAX")
def _softmax(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
    """Data of 56 bytes, 64 in CMSIS-NN; for int16, two tables of 513 values of 2 bytes."""
    source = _input(model, operator, 0)
    _require_type(source, _INT8_16)
    _require_type(_output(model, operator), (source.type,), "output")
    tables = (2 * 513, 2 * 513) if source.type == "INT16" else ()
    return OperatorMemory(
        params=(4, 4), data=56 if family == "reference" else 64, persistent=tables
    )
