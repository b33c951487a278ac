"""The 32-bit tensor arena of TensorFlow Lite Micro, computed to the byte from the flatbuffer.

An arena has two ends. The head holds what a greedy plan places there: every computed tensor and the
scratch buffers of the kernels. The tail holds what lives as long as the interpreter: its own
structures, each operator's parameters and data, variable tensors, the handles of inputs and outputs.

The sizes hold for tflite-micro of August 2026 with CMSIS-NN 4ab83cc3 built by GCC 12.2 for 32-bit
Arm; they were compared with that interpreter's own `arena_used_bytes` on Cortex-M4, M7, M33 and M55.
Two of them depend on the compiler: Arm Compiler 6 asks for more scratch in 1x1 convolutions and uses
another threshold for depthwise convolutions with one input channel on MVE cores. The interpreter on
a 64-bit host uses more (3 to 76 % on the MLPerf Tiny models), so its number is of no use here.

Each operator has one rule in `RULES`; an operator without a rule, or used in a way its rule does not
cover, makes the arena unknown. Nothing is guessed.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from edgecompress.core.errors import UnknownNameError
from edgecompress.core.flatbuffer import FlatModel, Operator, Tensor
from edgecompress.core.registry import Registry
from edgecompress.core.units import format_size

KERNELS = ("cmsis-nn", "reference")
# Which instructions CMSIS-NN is compiled for; Cortex-M33 with its optional DSP extension.
CORES = {
    "cortex-m0": "scalar",
    "cortex-m0plus": "scalar",
    "cortex-m3": "scalar",
    "cortex-m23": "scalar",
    "cortex-m4": "dsp",
    "cortex-m7": "dsp",
    "cortex-m33": "dsp",
    "cortex-m55": "mve",
    "cortex-m85": "mve",
}
_MEASURED_CORES = frozenset({"cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55"})

# sizeof() of the interpreter's structures on 32-bit Arm.
_FIXED_TAIL = (36, 44, 36, 8, 8)  # allocator, micro allocator, planner, data allocator, subgraph
_EVAL_TENSOR, _NODE, _TENSOR, _QUANTIZATION = 12, 32, 32, 12
_SCRATCH_REQUEST, _SCRATCH_HANDLE, _ALLOCATION_INFO, _PLANNER_BUFFER = 12, 4, 24, 40
# The interpreter keeps room for this many scratch requests beyond those already made.
_SCRATCH_SLACK = 12
_ALIGNMENT = 16


@dataclass(frozen=True)
class OperatorMemory:
    """What one operator takes from the arena, in bytes.

    Attributes:
        params: Size and alignment of its parsed options.
        data: The kernel's own structure, 16-byte aligned; 0 for none.
        persistent: Buffers in the tail that it asks for when it is prepared, each 16-byte aligned.
        scratch: Buffers in the head that live while it runs.
        prepares: How often its tensors are described at the same time while it is prepared.
    """

    params: tuple[int, int] = (0, 1)
    data: int = 0
    persistent: tuple[int, ...] = ()
    scratch: tuple[int, ...] = ()
    prepares: int = 1


@dataclass(frozen=True)
class Buffer:
    """One buffer of the head: a tensor or scratch.

    Attributes:
        index: The tensor's index; None for scratch.
        name: The tensor's name, or which operator's scratch it is.
        bytes: Its size; it occupies this rounded up to 16.
        offset: Where it lies, from the start of the arena.
        first: Operator that writes it first; -1 for a model input, which is there before.
        last: Operator that reads it last. A tensor that no operator uses has first = last = -2.
    """

    index: int | None
    name: str
    bytes: int
    offset: int
    first: int
    last: int

    @property
    def end(self) -> int:
        """First byte behind it."""
        return self.offset + _up(self.bytes)


@dataclass(frozen=True)
class UnknownOperator:
    """Why the arena cannot be computed.

    Attributes:
        index: The operator's position; None where the reason is the model as a whole.
        name: The operator's name, or `model`.
        reason: What is not covered.
    """

    index: int | None
    name: str
    reason: str

    def __str__(self) -> str:
        """One line."""
        where = self.name if self.index is None else f"operator {self.index} {self.name}"
        return f"{where}: {self.reason}"


@dataclass(frozen=True)
class Arena:
    """The tensor arena of one model on one core.

    Attributes:
        core: The core, e.g. `cortex-m4`.
        kernels: `cmsis-nn` or `reference`.
        used: What `arena_used_bytes()` returns: head + tail. None where it is unknown.
        head: Bytes of the plan: tensors and scratch. None where unknown.
        tail: Bytes that live as long as the interpreter. None where unknown.
        smallest: Smallest arena that allocates, a multiple of 16: planning needs memory of its own,
            which rules in very small models. Equal to the searched value on 2,277 of 2,347 models,
            16 bytes too low on 5, up to 544 too high on 65. None where unknown.
        peak_operator: Index of the operator at which the plan is highest; None where unknown.
        peak_operator_name: Its name.
        peak_tensors: The buffers alive there, largest first; scratch has no index.
        scratch: Scratch bytes of each operator.
        buffers: All of the head, in the order of tensors, then scratch: a memory map.
        unknown: Operators without a rule, with reasons; empty where the arena is known.
        at_least: A lower bound in bytes that holds even where the arena is unknown; None where not
            even that is known. Equal to `used` where that is known.
        verified: The rules were compared with this core and these kernels.
        notes: What the number stands on where it is not verified, one sentence each.
    """

    core: str
    kernels: str
    used: int | None = None
    head: int | None = None
    tail: int | None = None
    smallest: int | None = None
    peak_operator: int | None = None
    peak_operator_name: str = ""
    peak_tensors: tuple[Buffer, ...] = ()
    scratch: tuple[int, ...] = ()
    buffers: tuple[Buffer, ...] = field(default=(), repr=False)
    unknown: tuple[UnknownOperator, ...] = ()
    at_least: int | None = None
    verified: bool = True
    notes: tuple[str, ...] = ()

    @property
    def is_known(self) -> bool:
        """Whether the arena could be computed."""
        return self.used is not None

    def explain(self, tensors: int = 3) -> str:
        """Returns one line: where the peak is and which tensors live there, or what is unknown.

        Args:
            tensors: How many tensors to name; the rest is counted. Defaults to 3.

        Example:
            >>> compute_arena(model, "cortex-m4", "cmsis-nn").explain()  # doctest: +SKIP
            'The arena peaks at operator 3 ADD: conv2d_2/Relu 16.0 KiB, add/add 16.0 KiB and 1 more
            (1.0 KiB) live there; head 48.6 KiB + tail 5.1 KiB = 53.7 KiB.'
        """
        if self.used is None or self.head is None or self.tail is None:
            first, more = self.unknown[0], len(self.unknown) - 1
            also = f" ({more} more operators are unknown, too)" if more else ""
            return f"The arena is unknown: {first}{also}."
        sizes = (
            f"head {format_size(self.head)} + tail {format_size(self.tail)} "
            f"= {format_size(self.used)}"
        )
        if self.peak_operator is None:
            return f"The arena has no peak: no operator runs; {sizes}."
        named = [f"{b.name} {format_size(b.bytes)}" for b in self.peak_tensors[:tensors]]
        rest = self.peak_tensors[tensors:]
        tail = f" and {len(rest)} more ({format_size(sum(b.bytes for b in rest))})" if rest else ""
        return (
            f"The arena peaks at operator {self.peak_operator} {self.peak_operator_name}: "
            f"{', '.join(named)}{tail} live there; {sizes}."
        )


class _Unmeasured(Exception):
    """A rule meets a use of its operator that it does not cover; the text is the reason."""


Rule = Callable[[FlatModel, Operator, str], OperatorMemory]

RULES: Registry[Rule] = Registry("operator")
"""Operator name -> rule (model, operator, family) -> OperatorMemory.

Families: `reference` for the reference kernels, `scalar`, `dsp` and `mve` for CMSIS-NN on cores
without DSP instructions, with them, and with MVE.
"""


def _up(size: int, alignment: int = _ALIGNMENT) -> int:
    return -(-size // alignment) * alignment


# --- Reading operators -------------------------------------------------------------------------


def _input(model: FlatModel, operator: Operator, position: int, what: str = "") -> Tensor:
    tensor = model.tensor(operator, position)
    if tensor is None:
        raise _Unmeasured(f"its {what or f'input {position}'} is left out")
    return tensor


def _output(model: FlatModel, operator: Operator) -> Tensor:
    if not operator.outputs:
        raise _Unmeasured("it has no output")
    return model.output(operator)


def _option(operator: Operator, name: str) -> int:
    if name not in operator.options:
        raise _Unmeasured(f"its option {name} is missing")
    return int(operator.options[name])


def _require_type(tensor: Tensor, types: tuple[str, ...], what: str = "input") -> None:
    if tensor.type not in types:
        raise _Unmeasured(
            f"its {what} is {tensor.type}; sizes are known for {' and '.join(types)}"
        )


def _require_rank(tensor: Tensor, rank: int, what: str) -> tuple[int, ...]:
    if len(tensor.shape) != rank:
        raise _Unmeasured(f"its {what} has {len(tensor.shape)} dimensions instead of {rank}")
    return tensor.shape


def _require_single_batch(shape: tuple[int, ...]) -> None:
    if shape[0] != 1:
        raise _Unmeasured(f"its batch is {shape[0]}; sizes are known for 1")


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
    source = _require_rank(_input(model, operator, 0), 4, "input")
    weights = _require_rank(_input(model, operator, 1, "filter"), 4, "filter")
    out = _require_rank(_output(model, operator), 4, "output")
    _require_single_batch(source)
    return _Window(
        (source[1], source[2]),
        source[3],
        (out[1], out[2]),
        (weights[1], weights[2]),
        (_option(operator, "stride_h"), _option(operator, "stride_w")),
        (_option(operator, "dilation_h_factor"), _option(operator, "dilation_w_factor")),
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
    # The C remainder has the sign of its left side, and C division truncates.
    uneven = int(math.fmod((out - 1) * stride + kernel - width, 2))
    right = max(1, int((pad + uneven + stride - 1) / stride)) if pad + uneven else 0
    left = max(1, (pad + stride - 1) // stride) if pad else 0
    if right + max(out - left - right, 0) + left != out:
        return 4 * _up(window.columns)
    return max(
        (kernel + pad) * channels,
        (kernel - 1) * channels + (right if uneven else pad) * channels,
    )


def _conv_scratch(window: _Window, family: str, bits: int) -> int:
    """Scratch of CMSIS-NN's convolution: 0 for 1x1, else its im2col buffers."""
    if bits == 16:
        # The scalar kernels of 16 bit were not measured and share no code with the others.
        if family == "scalar":
            raise _Unmeasured("its input is INT16; sizes are not known on cores without DSP")
        return 8 * _up(window.columns, 8) if family == "mve" else 4 * window.columns
    if window.kernel == (1, 1) and window.dilation == (1, 1) and window.pad == (0, 0):
        return 0
    if family != "mve":
        return 4 * _up(window.columns, 4)
    one_row = window.size[0] == window.kernel[0] == window.dilation[1] == 1
    if one_row and window.stride[1] * window.channels % 4 == 0:
        return _one_row_scratch(window)
    return 4 * _up(window.columns)


@RULES.register("CONV_2D")
def _conv_2d(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
    """Two buffers of 4 bytes an output channel; scratch for im2col.

    Scratch of CMSIS-NN, K = kernel height * width * input channels: int8 1x1 none; DSP 4*ceil4(K);
    MVE 4*ceil16(K) or the ends of one row for 1xN; int16 4*K (DSP), 8*ceil8(K) (MVE). The
    reference kernel unpacks int4 weights.
    """
    source, weights = _conv_types(model, operator, int4=True)
    window = _window(model, operator)
    if weights.shape[3] != window.channels:
        raise _Unmeasured("it has groups; sizes are known for one group")
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
        prepares=2,
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
    """Two buffers of 4 bytes an output channel; scratch where CMSIS-NN has a fast path.

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
        prepares=2,
    )


@RULES.register("TRANSPOSE_CONV")
def _transpose_conv(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
    """Two buffers of 4 bytes an output channel; scratch for 32-bit sums or a reversed filter.

    The reference kernel sums in 4 bytes an output element. CMSIS-NN with strides up to 2 and more
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
    stride_h, stride_w = _option(operator, "stride_h"), _option(operator, "stride_w")
    if family == "reference":
        scratch: tuple[int, ...] = (4 * _output(model, operator).elements,)
    elif max(stride_h, stride_w) <= 2 and depth > 16:
        columns = kernel_h * kernel_w * depth
        im2col = 4 * _up(columns, 16 if family == "mve" else 4)
        scratch = (im2col, columns * channels)
    else:
        # The height's stride in the width is CMSIS-NN's own.
        row = (width - 1) * stride_w + max(kernel_w, stride_h)
        scratch = (4 * channels * row * max(kernel_h, stride_h), 0)
    return OperatorMemory(
        params=(16, 4),
        data=72 if family == "reference" else 76,
        persistent=(4 * channels, 4 * channels),
        scratch=scratch,
        prepares=2,
    )


@RULES.register("FULLY_CONNECTED")
def _fully_connected(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
    """Per-channel: two buffers of 4 bytes an output; MVE: 4 bytes an output for weight sums.

    Weight sums of int8 weights lie in the tail where the weights are constant, in scratch where
    they are decoded at run time. With more than two output dimensions and inputs in multiples of 4
    CMSIS-NN runs a 1x1 convolution: no sums, but per-tensor scales need two scratch buffers of
    4 bytes an output. The reference kernel unpacks int4 weights.
    """
    source, weights = _conv_types(model, operator, int4=True)
    out = _output(model, operator)
    if len(weights.shape) != 2:
        raise _Unmeasured(f"its filter has {len(weights.shape)} dimensions instead of 2")
    units, depth = weights.shape
    per_channel = len(weights.scales) > 1
    persistent = [4 * units, 4 * units] if per_channel else []
    scratch: list[int] = []
    if family == "reference":
        scratch += [weights.elements] if weights.type == "INT4" else []
    elif source.type == weights.type == "INT8":
        if len(out.shape) > 2 and depth % 4 == 0:
            scratch += [] if per_channel else [4 * units, 4 * units]
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
    """CMSIS-NN with DSP instructions sums in scratch: 4 bytes a channel."""
    channels = _pool(model, operator).shape[3]
    return OperatorMemory(
        params=(40, 4),
        data=32 if family == "reference" else 36,
        scratch=(4 * channels,) if family == "dsp" else (),
    )


@RULES.register("MAX_POOL_2D")
def _max_pool(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
    """No buffers of its own."""
    _pool(model, operator)
    return OperatorMemory(params=(40, 4), data=32 if family == "reference" else 36)


def _reduction(model: FlatModel, operator: Operator) -> tuple[int, int]:
    """Scratch for the index over the input and for the resolved axes."""
    source, axes = _input(model, operator, 0), _input(model, operator, 1, "list of axes")
    _require_type(source, ("INT8",))
    return 4 * len(source.shape), 4 * axes.elements


@RULES.register("MEAN")
@RULES.register("SUM")
def _sum(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
    """Three scratch buffers: 32-bit sums of the outputs, the index, the axes."""
    index, axes = _reduction(model, operator)
    sums = 4 * _output(model, operator).elements
    return OperatorMemory(params=(1, 1), data=44, scratch=(sums, index, axes))


@RULES.register("REDUCE_MAX")
def _reduce_max(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
    """Two scratch buffers: the index, the axes."""
    return OperatorMemory(params=(1, 1), data=44, scratch=_reduction(model, operator))


# --- Recurrent operators -----------------------------------------------------------------------


@RULES.register("SVDF")
def _svdf(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
    """Scratch of 4 bytes a filter and 4 bytes a unit; MVE keeps sums of 4 bytes a filter."""
    source, weights = _input(model, operator, 0), _input(model, operator, 1, "feature weights")
    state = _input(model, operator, 4, "state")
    _require_type(source, ("INT8",))
    _require_type(weights, ("INT8",), "feature weights")
    _require_type(state, ("INT8", "INT16"), "state")
    _require_single_batch(_require_rank(source, 2, "input"))
    filters, units = weights.shape[0], _output(model, operator).elements
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


@RULES.register("TFLM_DECODE")
def _decode(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
    """A pointer for each output, then a decoder: table 36 bytes, Huffman 28, pruned 40.

    The decoded tensor is an ordinary tensor of the head.
    """
    decoders = {0: 36, 1: 28, 2: 40}
    persistent = [4 * len(operator.outputs)]
    for position in range(len(operator.outputs)):
        ancillary = _input(model, operator, 2 * position + 1, "ancillary tensor")
        kind = ancillary.raw[0] if ancillary.raw else None
        if kind not in decoders:
            raise _Unmeasured(f"its decoder type {kind} is unknown; known are 0, 1 and 2")
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
    data_cmsis: int | None = None,
    source: int = 0,
) -> None:
    def rule(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
        _require_type(_input(model, operator, source), types)
        cmsis = data if data_cmsis is None else data_cmsis
        return OperatorMemory(params, data if family == "reference" else cmsis)

    rule.__doc__ = f"Options of {params[0]} bytes, data of {data} bytes; no buffers."
    for name in names:
        RULES.register(name)(rule)


_register_fixed(("ADD",), (2, 1), 60, _INT8_16)
_register_fixed(("SUB",), (2, 1), 52, _INT8_16)
_register_fixed(("MUL",), (1, 1), 36, _INT8_16)
_register_fixed(("MAXIMUM", "MINIMUM"), (0, 1), 0, _INT8)
_register_fixed(("LOGISTIC", "TANH"), (0, 1), 16, _INT8_16)
_register_fixed(("RELU",), (0, 1), 28, _INT8)
_register_fixed(("RELU6",), (0, 1), 8, _INT8)
_register_fixed(("LEAKY_RELU",), (4, 4), 24, _INT8_16)
_register_fixed(("HARD_SWISH",), (0, 1), 20, _INT8)
_register_fixed(("PRELU",), (0, 1), 28, _INT8)
_register_fixed(("QUANTIZE",), (0, 1), 32, ("INT8", "INT16", "INT32", "FLOAT32"))
_register_fixed(("DEQUANTIZE",), (0, 1), 32, _INT8_16)
_register_fixed(("RESIZE_NEAREST_NEIGHBOR", "RESIZE_BILINEAR"), (2, 1), 0, _INT8)
_register_fixed(("PAD",), (0, 1), 56, _INT8_16)
_register_fixed(("CONCATENATION",), (8, 4), 24, _ANY)
_register_fixed(("RESHAPE", "SQUEEZE"), (36, 4), 0, _ANY)
_register_fixed(("SPLIT",), (4, 4), 0, _ANY, source=1)
_register_fixed(("STRIDED_SLICE",), (24, 4), 84, _ANY)
_register_fixed(("SLICE", "TRANSPOSE"), (0, 1), 0, _ANY)


@RULES.register("SOFTMAX")
def _softmax(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
    """Data of 56 bytes, 64 in CMSIS-NN; no buffers for int8 to int8."""
    _require_type(_input(model, operator, 0), _INT8)
    _require_type(_output(model, operator), _INT8, "output")
    return OperatorMemory(params=(4, 4), data=56 if family == "reference" else 64)


# --- The two ends ------------------------------------------------------------------------------


def plan_offsets(sizes: Sequence[int], lifetimes: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Returns where the greedy planner of TensorFlow Lite Micro puts each buffer.

    Largest first, of equal ones the last first; each into the first gap, in the order of offsets,
    between buffers that live at the same time.

    Args:
        sizes: Bytes of each buffer.
        lifetimes: First and last operator of each buffer, both included.

    Example:
        >>> plan_offsets([32, 16, 16], [(0, 1), (0, 0), (2, 2)])
        (0, 32, 0)
    """
    offsets = [0] * len(sizes)
    placed: list[int] = []  # Ordered by offset; of equal ones the earlier placed first.
    places: list[int] = []
    for buffer in sorted(range(len(sizes)), key=lambda i: (-sizes[i], -i)):
        first, last = lifetimes[buffer]
        offset = 0
        for other in placed:
            if lifetimes[other][0] > last or first > lifetimes[other][1]:
                continue
            if offsets[other] - offset >= sizes[buffer]:
                break
            offset = max(offset, offsets[other] + sizes[other])
        offsets[buffer] = offset
        position = bisect.bisect_right(places, offset)
        placed.insert(position, buffer)
        places.insert(position, offset)
    return tuple(offsets)


def _lifetimes(model: FlatModel) -> dict[int, tuple[int, int]]:
    """First and last operator of every tensor that is planned in the head."""
    unused = (-2, -2)
    first: dict[int, int] = dict.fromkeys((*model.inputs, *model.outputs), -1)
    last = dict(first)
    for step, operator in enumerate(model.operators):
        for index in operator.outputs:
            first[index] = last[index] = step
        for index in operator.inputs:
            if index >= 0:
                last[index] = step
    for index in model.outputs:
        last[index] = len(model.operators) - 1
    return {
        t.index: (first.get(t.index, unused[0]), last.get(t.index, unused[1]))
        for t in model.tensors
        if not t.is_constant and not t.is_variable and t.bytes
    }


def _has_quantization(tensor: Tensor) -> bool:
    return bool(
        tensor.scales and tensor.zero_points and not tensor.type.startswith(("FLOAT", "BFLOAT"))
    )


class _Tail:
    """Grows downwards from the end of the arena."""

    def __init__(self) -> None:
        self.bytes = 0

    def add(self, size: int, alignment: int = _ALIGNMENT) -> None:
        """Allocates `size` bytes at a multiple of `alignment`."""
        self.bytes = _up(self.bytes + size, alignment)

    def add_handles(self, tensors: Iterable[Tensor]) -> None:
        """Allocates what describes the inputs or the outputs to the application."""
        tensors = list(tensors)
        self.add(4 * len(tensors))
        for tensor in tensors:
            self.add(_TENSOR, 4)
            if _has_quantization(tensor):
                self.add(_QUANTIZATION, 4)
                self.add(4 + 4 * len(tensor.scales), 4)


def _temporaries(model: FlatModel, operator: Operator) -> int:
    """Bytes that describe an operator's tensors while it is prepared."""
    indices = [i for i in (*operator.inputs, *operator.outputs) if i >= 0]
    total = 0
    for tensor in (model.tensors[i] for i in indices):
        total += _TENSOR
        if _has_quantization(tensor):
            total += _QUANTIZATION + 4 + 4 * len(tensor.scales)
    return total


def _tail(
    model: FlatModel, needs: Sequence[OperatorMemory], planned: int, head: int
) -> tuple[int, int]:
    """Returns the tail and the smallest arena that allocates."""
    tail = _Tail()
    for size in _FIXED_TAIL:
        tail.add(size, 4)
    tail.add(_EVAL_TENSOR * len(model.tensors), 4)
    tail.add(_NODE * len(model.operators), 4)
    for need in needs:
        if need.params[0]:
            tail.add(*need.params)
    for need in needs:
        if need.data:
            tail.add(need.data)
    scratches = prepare = 0
    for operator, need in zip(model.operators, needs, strict=True):
        for size in need.persistent:
            tail.add(size)
        requests = _SCRATCH_REQUEST * (_SCRATCH_SLACK + scratches)
        temporary = need.prepares * _temporaries(model, operator)
        prepare = max(prepare, tail.bytes + requests + temporary)
        scratches += len(need.scratch)
    if scratches:
        tail.add(_SCRATCH_HANDLE * scratches, 4)
    for tensor in model.tensors:
        if tensor.is_variable and tensor.bytes:
            tail.add(tensor.bytes)
    requests = _SCRATCH_REQUEST * (_SCRATCH_SLACK + scratches) + 4 * model.subgraphs
    infos = _ALLOCATION_INFO * (len(model.tensors) + scratches)
    plan = tail.bytes + _up(requests + infos) + _PLANNER_BUFFER * planned
    tail.add_handles(model.tensors[i] for i in model.inputs)
    tail.add_handles(model.tensors[i] for i in model.outputs)
    return tail.bytes, _up(max(head + tail.bytes, plan, prepare))


def _model_reasons(model: FlatModel) -> list[UnknownOperator]:
    """What no operator's rule can see."""
    reasons = []
    if model.subgraphs != 1:
        reasons.append(f"it has {model.subgraphs} subgraphs; sizes are known for one")
    for name in ("OfflineMemoryAllocation", "COMPRESSION_METADATA"):
        if name in model.metadata:
            reasons.append(f"its metadata {name} changes the plan")
    for tensor in model.tensors:
        if not tensor.is_constant and tensor.elements and (not tensor.bits or tensor.bits < 8):
            reasons.append(f"tensor {tensor.index} is {tensor.type}, whose size is not known")
            break
    return [UnknownOperator(None, "model", reason) for reason in reasons]


def _needs(
    model: FlatModel, family: str
) -> tuple[list[OperatorMemory], list[UnknownOperator]]:
    needs, unknown = [], []
    for operator in model.operators:
        rule = RULES.get(operator.name)
        if rule is None:
            reason = "no rule for this operator"
            unknown.append(UnknownOperator(operator.index, operator.name, reason))
            continue
        try:
            needs.append(rule(model, operator, family))
        except _Unmeasured as error:
            unknown.append(UnknownOperator(operator.index, operator.name, str(error)))
    return needs, unknown


def _lower_bound(model: FlatModel, lifetimes: dict[int, tuple[int, int]]) -> int:
    """What every plan needs: the tensors alive at one operator, and the known part of the tail."""
    changes = [0] * (len(model.operators) + 4)
    for index, (first, last) in lifetimes.items():
        size = _up(model.tensors[index].bytes)
        changes[first + 2] += size
        changes[last + 3] -= size
    alive = peak = 0
    for change in changes:
        alive += change
        peak = max(peak, alive)
    fixed = sum(_FIXED_TAIL) + _EVAL_TENSOR * len(model.tensors) + _NODE * len(model.operators)
    return peak + fixed


def _head(
    model: FlatModel, lifetimes: dict[int, tuple[int, int]], needs: Sequence[OperatorMemory]
) -> tuple[Buffer, ...]:
    rows: list[tuple[int | None, str, int, tuple[int, int]]] = []
    for index, lifetime in lifetimes.items():
        tensor = model.tensors[index]
        rows.append((index, tensor.name or f"tensor {index}", tensor.bytes, lifetime))
    for operator, need in zip(model.operators, needs, strict=True):
        label = f"scratch of {operator.name} {operator.index}"
        rows += [
            (None, label, size, (operator.index, operator.index)) for size in need.scratch
        ]
    offsets = plan_offsets([_up(row[2]) for row in rows], [row[3] for row in rows])
    return tuple(
        Buffer(index, name, size, offset, first, last)
        for (index, name, size, (first, last)), offset in zip(rows, offsets, strict=True)
    )


def _alive(buffers: Iterable[Buffer], step: int) -> list[Buffer]:
    return [b for b in buffers if b.first <= step <= b.last]


def _peak(model: FlatModel, buffers: Sequence[Buffer]) -> Operator | None:
    """The operator at which the plan is highest; of several the one with most alive."""

    def height(operator: Operator) -> tuple[int, int]:
        alive = _alive(buffers, operator.index)
        return max((b.end for b in alive), default=0), sum(b.bytes for b in alive)

    return max(model.operators, key=height, default=None)


def compute_arena(model: FlatModel, core: str, kernels: str = "cmsis-nn") -> Arena:
    """Returns the tensor arena that a model needs on a core, to the byte.

    Args:
        model: The .tflite file, read.
        core: `cortex-m4`, `cortex-m55`, ...; see `CORES`. CMSIS-NN needs other scratch on cores with
            DSP instructions, with MVE, and with neither.
        kernels: `cmsis-nn` or `reference`. Defaults to `cmsis-nn`.

    Raises:
        UnknownNameError: the core or the kernels are not known.

    Example:
        >>> model = read_tflite("kws_ref_model.tflite")  # doctest: +SKIP
        >>> compute_arena(model, "cortex-m4", "cmsis-nn").used  # doctest: +SKIP
        22820
    """
    if core not in CORES:
        raise UnknownNameError("core", core, CORES)
    if kernels not in KERNELS:
        raise UnknownNameError("kernels", kernels, KERNELS)
    family = "reference" if kernels == "reference" else CORES[core]
    verified = family == "reference" or core in _MEASURED_CORES
    notes: tuple[str, ...] = ()
    if family == "scalar":
        notes = (
            f"CMSIS-NN's scratch on {core} follows its sources for cores without DSP instructions; "
            "it was not compared with a run.",
        )
    elif not verified:
        notes = (f"{core} runs the same MVE kernels as cortex-m55, where the rules were compared.",)

    reasons = _model_reasons(model)
    lifetimes = _lifetimes(model)
    needs, unknown = _needs(model, family)
    if reasons or unknown:
        bound = None if reasons else _lower_bound(model, lifetimes)
        return Arena(
            core, kernels, unknown=(*reasons, *unknown), at_least=bound, verified=verified,
            notes=notes,
        )  # fmt: skip

    buffers = _head(model, lifetimes, needs)
    head = max((b.end for b in buffers), default=0)
    tail, smallest = _tail(model, needs, len(buffers), head)
    peak = _peak(model, buffers)
    alive = _alive(buffers, peak.index) if peak else []
    return Arena(
        core,
        kernels,
        used=head + tail,
        head=head,
        tail=tail,
        smallest=smallest,
        peak_operator=peak.index if peak else None,
        peak_operator_name=peak.name if peak else "",
        peak_tensors=tuple(sorted(alive, key=lambda b: -b.bytes)),
        scratch=tuple(sum(need.scratch) for need in needs),
        buffers=buffers,
        at_least=head + tail,
        verified=verified,
        notes=notes,
    )
