"""Instructions of one inference on a Cortex-M, from the flatbuffer alone.

Each operator is described by a few numbers (pixels, channels, multiply-accumulates, ...); a formula
for its kernel turns them into instructions. The formulas (`instruction_formulas`) were fitted on
9,400 single-operator models that ran in a counting simulator (TensorFlow Lite Micro 90b983c2b,
CMSIS-NN 4ab83cc3, GCC 12.2 at -O2); they give whole networks within about 4 percent on kernels of
the same version. A case that was not counted has no number. They count instructions, not cycles:
`latency` turns them into time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgecompress.core.errors import EdgeCompressError
from edgecompress.core.registry import Registry
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import Operator
from edgecompress.flatbuffers.tensors import Tensor
from edgecompress.targets.tflm.instruction_formulas import evaluate, formulas
from edgecompress.targets.tflm.instructions_decode import (
    DECODE_ERROR,
    UnknownCode,
    decode_instructions,
)

# Kernel sets: CMSIS-NN on cores with the DSP extension (M4, M7, M33), CMSIS-NN on cores with vector
# registers (M55, M85), and the reference kernels of TensorFlow Lite Micro.
KERNEL_SETS = ("dsp", "mve", "reference")

# Instructions that the interpreter spends around an inference and around each operator.
PER_INFERENCE = 69
PER_OPERATOR = 56

_BYTES = {"INT8": 1, "UINT8": 1, "INT16": 2, "INT32": 4, "FLOAT32": 4, "BOOL": 1}
# Of an operator below all counted sizes: such a number says how much it may be, not how little.
_LARGEST_ERROR = 0.9
# Instructions an output that a bias takes at most: fetch it, add it, step on. What was counted has
# one; where the formulas do not tell them apart, a number without is that much less certain.
_BIAS = 5
_SUFFIX = {("INT8", "INT8"): "", ("INT16", "INT8"): "_s16", ("INT8", "INT4"): "_w4"}


class Unmodelled(EdgeCompressError):
    """An operator has no instruction formula; the text says which part of it."""


@dataclass(frozen=True)
class Count:
    """Instructions of one operator.

    Attributes:
        instructions: The prediction.
        error: Its largest relative error: prediction / truth - 1 lies within plus or minus this.
    """

    instructions: float
    error: float


@dataclass(frozen=True)
class Geometry:
    """One operator in numbers; everything a formula may depend on.

    Shapes are padded with ones on the left to (n, h, w, c); what an operator does not have keeps
    its default.

    Attributes:
        code: The operator's code, e.g. `CONV_2D`.
        in_type: Type of the first input, e.g. `INT8`.
        weight_type: Type of the filter; `INT8` where there is none.
        n: Batch, h: input rows, w: input columns, ci: input channels.
        oh: Output rows, ow: output columns, co: output channels.
        in_elements: Elements of all data inputs.
        out_elements: Elements of all outputs.
        kh: Filter rows, kw: filter columns, sh and sw: strides, dh and dw: dilations.
        pad_h: Padding above, pad_w: padding on the left.
        same: Whether the padding is SAME.
        multiplier: Outputs of one input channel in a depthwise convolution.
        bias: Whether there is a bias.
        per_channel: Whether the filter has a scale for each channel.
        constant_weights: Whether the filter is in the file as it is, not decoded while running.
        batch: Rows of a fully connected operator, ni: its inputs, no: its outputs.
        rank: Dimensions of the output.
        broadcast: `""`, `"channel"` or `"scalar"`.
        copies: Blocks of memory that a concatenation or split copies.
        n_inputs: Number of data inputs.
        axes: Axes of a reduction or the order of a transpose, on the padded shape.
        in_scale: Scale of the input.
        pad_c: Padding along the channels.
        stride_c: Stride along the channels.
        steps: Time steps of a recurrent operator.
        filters: Filters of an SVDF, memory: its memory, state_type: type of its state.
        out_type: Type of the first output.
        same_scale: Whether input and output have one scale, and zero points of the same meaning.
    """

    code: str
    in_type: str = "INT8"
    weight_type: str = "INT8"
    n: int = 1
    h: int = 1
    w: int = 1
    ci: int = 1
    oh: int = 1
    ow: int = 1
    co: int = 1
    in_elements: int = 1
    out_elements: int = 1
    kh: int = 1
    kw: int = 1
    sh: int = 1
    sw: int = 1
    dh: int = 1
    dw: int = 1
    pad_h: int = 0
    pad_w: int = 0
    same: bool = False
    multiplier: int = 1
    bias: bool = True
    per_channel: bool = False
    constant_weights: bool = True
    batch: int = 1
    ni: int = 1
    no: int = 1
    rank: int = 4
    broadcast: str = ""
    copies: int = 1
    n_inputs: int = 1
    axes: tuple[int, ...] = ()
    in_scale: float = 0.0
    pad_c: int = 0
    stride_c: int = 1
    steps: int = 1
    filters: int = 1
    memory: int = 1
    state_type: str = "INT8"
    out_type: str = "INT8"
    same_scale: bool = False


# ---------------------------------------------------------------------------------------------
# What formulas may use. `pix` is output pixels, `out` output elements, `K` taps times input
# channels, `mac4` multiply-accumulates with K rounded down to whole groups of 4, `kr` the rest of
# K, `taps` pairs of an output pixel and a filter tap inside the input, `g4` whole groups of 4
# pixels and `r` the rest.
# ---------------------------------------------------------------------------------------------


def _up(value: int, group: int) -> int:
    return -(-value // group)


# Of one dimension; no more than a damaged file names.
_MOST_TAPS = 1 << 14


def _inside(outputs: int, inputs: int, taps: int, stride: int, dilation: int, pad: int) -> int:
    """Counts the pairs of an output position and a filter tap that lie inside the input.

    Of tap t the positions p with `0 <= p * stride - pad + t * dilation < inputs` lie inside.
    """
    if stride < 1 or taps > _MOST_TAPS:
        raise Unmodelled(f"A window of {taps} taps, stride {stride}, has no instruction formula")
    count = 0
    for tap in range(taps):
        offset = pad - tap * dilation
        first, end = _up(offset, stride), _up(inputs + offset, stride)
        count += max(0, min(end, outputs) - max(first, 0))
    return count


# Each reader below names the kernel that runs and the numbers its formula may use.
_Case = tuple[str, dict[str, float]]
_CASES: Registry[Callable[[Geometry, str], _Case]] = Registry("operator")


def _window(g: Geometry) -> dict[str, float]:
    """Numbers shared by everything that slides a window over an image."""
    rows_inside = _inside(g.oh, g.h, g.kh, g.sh, g.dh, g.pad_h)
    columns_inside = _inside(g.ow, g.w, g.kw, g.sw, g.dw, g.pad_w)
    pix = g.n * g.oh * g.ow
    k = g.kh * g.kw
    return {
        "pix": pix,
        "out": pix * g.co,
        "out4": pix * g.co // 4,
        "outr": pix * g.co % 4,
        "k": k,
        "kh": g.kh,
        "ci": g.ci,
        "c": g.co,
        "co": g.co,
        "c4": g.co // 4,
        "cr": g.co % 4,
        "c8": _up(g.ci, 8),
        "c16": _up(g.ci, 16),
        "co_r": g.co % 4,
        "rows": g.n * g.oh,
        "taps": g.n * rows_inside * columns_inside,
        "alltaps": pix * k,
        "taprows": g.n * rows_inside * g.ow,
        "g4": pix // 4,
        "r": pix % 4,
        "g4_row": g.n * g.oh * (g.ow // 4),
        "r_row": g.n * g.oh * (g.ow % 4),
        "oddpix": pix % 2,
        "oddpix_row": g.n * g.oh * (g.ow % 2),
        "oddco": g.co % 2,
        "dilated": int(g.dh > 1 or g.dw > 1),
    }


def _suffix(g: Geometry) -> str:
    try:
        return _SUFFIX[g.in_type, g.weight_type]
    except KeyError:
        with_weights = "" if g.weight_type == "INT8" else f" and {g.weight_type} weights"
        raise Unmodelled(
            f"{g.code} with {g.in_type} input{with_weights} has no instruction formula"
        ) from None


def _runs_as_1xn(g: Geometry) -> bool:
    """Whether CMSIS-NN on vector cores takes its path for convolutions along one axis.

    It splits a row into left edge, middle and right edge and takes the path only where the three
    add up to the row (arm_convolve_1_x_n_s8 and its wrapper).
    """
    if not (g.h == 1 and g.kh == 1 and g.kw > 1 and g.dw == 1 and g.sw * g.ci % 4 == 0):
        return False
    total = (g.ow - 1) * g.sw + g.kw - g.w
    extra = int(math.fmod(total, 2))
    right = max(1, (g.pad_w + extra + g.sw - 1) // g.sw) if g.pad_w + extra else 0
    left = max(1, (g.pad_w + g.sw - 1) // g.sw) if g.pad_w else 0
    return right + max(g.ow - left - right, 0) + left == g.ow


@_CASES.register("CONV_2D")
def _conv(g: Geometry, kernels: str) -> _Case:
    suffix = _suffix(g)
    size = g.kh * g.kw * g.ci
    values = _window(g)
    out = values["out"]
    values |= {
        "K": size,
        "kr": size % 4,
        "mac": out * size,
        "mac4": out * (size - size % 4),
        "slowmac": out * max(0, size - 512),
        "im2col": values["alltaps"] * g.ci,
        "K8": _up(min(size, 512), 8),
        "K16": _up(size, 16),
        "wbytes": g.co * size,
    }
    pointwise = g.kh == g.kw == 1 and g.pad_h == g.pad_w == 0 and g.dh == g.dw == 1
    name = "conv"
    if kernels != "reference" and suffix != "_s16":
        if pointwise and (g.sh == g.sw == 1 or suffix):
            name = "conv1x1"
        elif pointwise:
            name = "conv1x1_strided"
        elif kernels == "mve" and not suffix and _runs_as_1xn(g):
            name = "conv1xn"
    return name + suffix, values


@_CASES.register("DEPTHWISE_CONV_2D")
def _depthwise(g: Geometry, kernels: str) -> _Case:
    suffix = _suffix(g)
    values = _window(g)
    # Channels go in blocks of 124; a damaged file may have any number of them.
    whole, rest = divmod(g.co, 124)
    size = g.kh * g.kw
    values |= {
        "im2col": values["taps"] * g.ci,
        "K16": _up(size, 16),
        "cb4": whole * _up(124, 4) + _up(rest, 4),
        "cb16": whole * _up(124, 16) + _up(rest, 16),
        "blocks": whole + (rest > 0),
    }
    undilated = not values["dilated"]
    single = g.multiplier == 1 and undilated
    if kernels == "reference" or suffix:
        name = "dw"
    elif kernels == "mve":
        name = "dw" if single else "dw_generic"
        if g.ci == 1 and g.co > 1:
            name = "dw_as_conv"
    elif single:
        small = g.kh == g.kw == 3 and g.pad_h <= 1 and g.pad_w <= 1
        name = "dw3x3" if small else "dw_opt"
    else:
        name = "dw_mult4" if g.multiplier % 4 == 0 and undilated else "dw_generic"
    return name + suffix, values


@_CASES.register("FULLY_CONNECTED")
def _fully_connected(g: Geometry, kernels: str) -> _Case:
    suffix = _suffix(g)
    out = g.batch * g.no
    as_conv = kernels != "reference" and not suffix and g.rank > 2 and g.ni % 4 == 0
    # As a 1x1 convolution the rows are the pixels; else the outputs of a row go in groups of 4.
    groups, rest = (
        (g.batch // 4, g.batch % 4) if as_conv else (g.batch * (g.no // 4), g.batch * (g.no % 4))
    )
    values: dict[str, float] = {
        "out": out,
        "no": g.no,
        "ni": g.ni,
        "co": g.no,
        "pix": g.batch,
        "K": g.ni,
        "kr": g.ni % 4,
        "mac": out * g.ni,
        "mac4": out * (g.ni - g.ni % 4),
        "fastmac": out * min(g.ni, 512),
        "slowmac": out * max(0, g.ni - 512),
        "oddno": g.batch * (g.no % 2),
        "oddslow": g.batch * (g.no % 2) * max(0, g.ni - 512),
        "oddpix": g.batch % 2,
        "oddco": g.no % 2,
        "g4": groups,
        "r": rest,
        "K8": _up(min(g.ni, 512), 8),
        "K16": _up(g.ni, 16),
        # Sums over the weights: computed once from constants, else in every inference.
        "sums": 0 if g.constant_weights else g.no * _up(g.ni, 16),
    }
    if as_conv:
        return "fc1x1", values
    # Several rows are a case of their own: the same formula, less exact.
    rows = "_rows" if g.batch > 1 and not suffix else ""
    return "fc" + ("_pc" if g.per_channel and not suffix else "") + rows + suffix, values


def _pool(name: str) -> Callable[[Geometry, str], _Case]:
    def case(g: Geometry, kernels: str) -> _Case:
        return name + _suffix(g), _window(g)

    return case


_CASES.register("AVERAGE_POOL_2D")(_pool("avgpool"))
_CASES.register("MAX_POOL_2D")(_pool("maxpool"))


def _elements(g: Geometry) -> dict[str, float]:
    """Numbers shared by everything that walks over elements."""
    pix = g.n * g.oh * g.ow
    return {
        "n": g.in_elements,
        "in": g.in_elements,
        "out": g.out_elements,
        "out4": g.out_elements // 4,
        "pix": pix,
        "rows": g.n * g.oh,
        "inpix": g.n * g.h * g.w,
        "inrows": g.n * g.h,
        "padpix": pix - g.n * g.h * g.w,
        "bytes": g.out_elements * _BYTES.get(g.in_type, 1),
        "copies": g.copies,
        "n_in": g.n_inputs,
        "bcrows": g.out_elements / g.co if g.broadcast == "channel" else 0,
        "sc_out": g.out_elements if g.broadcast == "scalar" else 0,
    }


def _simple(name: str) -> Callable[[Geometry, str], _Case]:
    def case(g: Geometry, kernels: str) -> _Case:
        return name + _suffix(g), _elements(g)

    return case


for _code, _name in {
    "SUM": "sum",
    "REDUCE_MAX": "reduce_max",
    "LOGISTIC": "logistic",
    "TANH": "tanh",
    "RELU": "relu",
    "RELU6": "relu6",
    "LEAKY_RELU": "leaky_relu",
    "HARD_SWISH": "hard_swish",
    "PRELU": "prelu",
    "DEQUANTIZE": "dequantize",
    "RESIZE_NEAREST_NEIGHBOR": "resize_nn",
    "RESIZE_BILINEAR": "resize_bilinear",
    "SLICE": "slice",
}.items():
    _CASES.register(_code)(_simple(_name))


def _copying(name: str) -> Callable[[Geometry, str], _Case]:
    """A kernel that moves bytes."""

    def case(g: Geometry, kernels: str) -> _Case:
        return name, _elements(g)

    return case


_CASES.register("CONCATENATION")(_copying("concat"))
_CASES.register("SPLIT")(_copying("split"))
_CASES.register("RESHAPE")(_copying("reshape"))


def _arithmetic(name: str) -> Callable[[Geometry, str], _Case]:
    def case(g: Geometry, kernels: str) -> _Case:
        return name + ("_bc" if g.broadcast else "") + _suffix(g), _elements(g)

    return case


for _code in ("ADD", "SUB", "MUL", "MAXIMUM", "MINIMUM"):
    _CASES.register(_code)(_arithmetic(_code.lower()))


@_CASES.register("MEAN")
def _mean(g: Geometry, kernels: str) -> _Case:
    return ("mean_hw" if g.axes == (1, 2) else "mean") + _suffix(g), _elements(g)


@_CASES.register("SOFTMAX")
def _softmax(g: Geometry, kernels: str) -> _Case:
    values = _elements(g)
    values["rows"] = g.in_elements // g.ci
    # Elements far below the maximum are skipped; this bounds how many are not.
    exponent = math.frexp(g.in_scale * 2**26)[1]
    values["n_act"] = g.in_elements * min(1.0, 31 * 2.0 ** (26 - exponent) / 255)
    return "softmax" + _suffix(g), values


@_CASES.register("PAD")
def _pad(g: Geometry, kernels: str) -> _Case:
    return ("pad_c" if g.pad_c else "pad") + _suffix(g), _elements(g)


@_CASES.register("QUANTIZE")
def _quantize(g: Geometry, kernels: str) -> _Case:
    return f"quantize_{g.in_type.lower()}", _elements(g)


@_CASES.register("STRIDED_SLICE")
def _strided_slice(g: Geometry, kernels: str) -> _Case:
    return ("strided_slice_cstride" if g.stride_c > 1 else "strided_slice") + _suffix(g), _elements(
        g
    )


@_CASES.register("TRANSPOSE")
def _transpose(g: Geometry, kernels: str) -> _Case:
    order = "" if kernels == "reference" else "_" + "".join(map(str, g.axes))
    return "transpose" + order + _suffix(g), _elements(g)


@_CASES.register("TRANSPOSE_CONV")
def _transpose_conv(g: Geometry, kernels: str) -> _Case:
    k, pin, pout = g.kh * g.kw, g.n * g.h * g.w, g.n * g.oh * g.ow
    size = k * g.ci
    reverse = kernels != "reference" and g.sh <= 2 and g.sw <= 2 and g.ci > 16
    width = (g.w - 1) * g.sw + max(g.kw, g.sw)
    # A tap of an input pixel reaches an output pixel where a convolution over the output would.
    inside = _inside(g.h, g.oh, g.kh, g.sh, 1, g.pad_h) * _inside(g.w, g.ow, g.kw, g.sw, 1, g.pad_w)
    values: dict[str, float] = {
        "k": k,
        "pin": pin,
        "pout": pout,
        "ci": g.ci,
        "co": g.co,
        "out": pout * g.co,
        "rows": g.n * g.oh,
        "mac": (pout if reverse else pin) * g.co * size,
        "vmac": g.n * inside * g.ci * g.co,
        "im2col": pout * size,
        "wtaps": g.co * k,
        "vtaps": pin * k,
        "bias": int(g.bias),
        "bufbias": (g.h * g.sh + g.kh) * width if g.bias else 0,
        "co4": _up(g.co, 4),
        "c16": _up(g.ci, 16),
        "g4": pout // 4,
        "K16": _up(size, 16),
    }
    name = "tconv" if kernels == "reference" else "tconv_rev" if reverse else "tconv_col"
    return name + _suffix(g), values


@_CASES.register("SVDF")
def _svdf(g: Geometry, kernels: str) -> _Case:
    values: dict[str, float] = {
        "nf": g.filters,
        "ni": g.ni,
        "no": g.no,
        "mem": g.memory,
        "ni16": _up(g.ni, 16),
        "mem8": _up(g.memory, 8),
        "state8": _up(g.filters * g.memory, 8),
    }
    return {"INT8": "svdf", "INT16": "svdf_s16"}.get(g.state_type, "svdf_float"), values


@_CASES.register("UNIDIRECTIONAL_SEQUENCE_LSTM")
def _lstm(g: Geometry, kernels: str) -> _Case:
    values: dict[str, float] = {
        "T": g.steps,
        "T1": g.steps - 1,
        "n": g.no,
        "m": g.ni,
        "m16": _up(g.ni, 16),
        "n16": _up(g.no, 16),
        "nr": g.no % 4,
        "mac": 4 * g.steps * g.no * (g.ni + g.no),
    }
    return "lstm" + _suffix(g), values


def count(g: Geometry, kernels: str, core: str | None = None) -> Count:
    """Returns the instructions of one operator.

    Args:
        g: The operator in numbers.
        kernels: One of KERNEL_SETS.
        core: The core, e.g. `cortex-m7`, whose compiled kernels may take more or fewer instructions
            than those of the core that was fitted. Defaults to that core.

    Raises:
        Unmodelled: no formula covers this operator, type or shape; the text says what is missing.
    """
    case = _CASES.get(g.code)
    if case is None:
        raise Unmodelled(f"{g.code} has no instruction formula")
    try:
        name, values = case(g, kernels)
    except ZeroDivisionError as error:
        raise Unmodelled(f"{g.code} on an empty tensor has no instruction formula") from error
    formula = formulas(kernels).get(name)
    if formula is None:
        raise Unmodelled(f"{g.code} of this kind ({name}) has no instruction formula")
    missing = formula.domain.missing(g)
    if missing is not None:
        raise Unmodelled(f"{g.code} {missing}")
    fit = formula.on(core)
    instructions = fit.ratio * evaluate(formula.text, values)
    share = fit.error
    if formula.domain.is_smaller(g):
        share = max(share, formula.slack / max(1.0, instructions))
    if not g.bias and "bias" not in formula.domain.kinds:
        share += _BIAS * g.out_elements / max(1.0, instructions)
    return Count(instructions, min(_LARGEST_ERROR, share))


# ---------------------------------------------------------------------------------------------
# From the flatbuffer to the numbers.
# ---------------------------------------------------------------------------------------------

_READERS: Registry[Callable[[FlatModel, Operator], dict[str, Any]]] = Registry("operator")


def _shape4(tensor: Tensor) -> tuple[int, int, int, int]:
    """Returns a shape as (n, h, w, c); more than four dimensions are joined into n."""
    h, w, c = (1, 1, 1, *tensor.shape)[-3:]
    return math.prod(tensor.shape[:-3]), h, w, c


def _needed(model: FlatModel, operator: Operator, position: int) -> Tensor:
    tensor = model.tensor(operator, position)
    if tensor is None:
        raise Unmodelled(f"{operator.name} lacks its input {position}")
    return tensor


def _constant(model: FlatModel, operator: Operator, position: int) -> list[int]:
    tensor = _needed(model, operator, position)
    if not tensor.is_constant:
        raise Unmodelled(f"{operator.name} computes its input {position} while the model runs")
    if not tensor.elements:
        raise Unmodelled(f"{operator.name} has an empty input {position}")
    return [int(value) for value in tensor.values().reshape(-1)]


def _padding(same: bool, outputs: int, inputs: int, taps: int, stride: int, dilation: int) -> int:
    """Returns the padding before the first element, as the kernels compute it."""
    if not same:
        return 0
    return max((outputs - 1) * stride + (taps - 1) * dilation + 1 - inputs, 0) // 2


def _spatial(operator: Operator, found: dict[str, Any]) -> dict[str, Any]:
    """Adds strides, dilations and paddings to what is known of a window's size."""
    options = operator.options
    found["same"] = options.get("padding", 0) == 0
    found["sh"], found["sw"] = int(options.get("stride_h", 1)), int(options.get("stride_w", 1))
    found["dh"] = int(options.get("dilation_h_factor", 1))
    found["dw"] = int(options.get("dilation_w_factor", 1))
    return found


def _pads(found: dict[str, Any]) -> dict[str, Any]:
    same = found["same"]
    for axis, size, out, taps in (("h", "h", "oh", "kh"), ("w", "w", "ow", "kw")):
        found[f"pad_{axis}"] = _padding(
            same, found[out], found[size], found[taps], found[f"s{axis}"], found[f"d{axis}"]
        )
    return found


def _images(source: Tensor, output: Tensor) -> dict[str, Any]:
    return {
        "in_type": source.type,
        **dict(zip(("n", "h", "w", "ci"), _shape4(source), strict=True)),
        **dict(zip(("oh", "ow", "co"), _shape4(output)[1:], strict=True)),
        "in_elements": source.elements,
        "out_elements": output.elements,
        "rank": len(output.shape),
        "in_scale": source.scales[0] if source.scales else 0.0,
        "out_type": output.type,
        "same_scale": _same_scale(source, output),
    }


def _same_scale(source: Tensor, output: Tensor) -> bool:
    """Whether a number has the same bits in both, the highest left out between int8 and uint8."""
    offset = {"INT8": 128}
    zeros = [
        t.zero_points[0] + offset.get(t.type, 0) if t.zero_points else 0 for t in (source, output)
    ]
    return source.scales == output.scales and zeros[0] == zeros[1]


def _plain(model: FlatModel, operator: Operator) -> dict[str, Any]:
    return _images(_needed(model, operator, 0), model.output(operator))


@_READERS.register("CONV_2D")
def _read_conv(model: FlatModel, operator: Operator) -> dict[str, Any]:
    weights = _needed(model, operator, 1)
    found = _spatial(operator, _plain(model, operator))
    _, found["kh"], found["kw"], channels = _shape4(weights)
    if channels != found["ci"]:
        raise Unmodelled("CONV_2D in groups has no instruction formula")
    found["weight_type"] = weights.type
    found["bias"] = model.tensor(operator, 2) is not None
    return _pads(found)


@_READERS.register("DEPTHWISE_CONV_2D")
def _read_depthwise(model: FlatModel, operator: Operator) -> dict[str, Any]:
    weights = _needed(model, operator, 1)
    found = _spatial(operator, _plain(model, operator))
    _, found["kh"], found["kw"], _ = _shape4(weights)
    found["multiplier"] = max(1, found["co"] // max(1, found["ci"]))
    found["weight_type"] = weights.type
    found["bias"] = model.tensor(operator, 2) is not None
    return _pads(found)


@_READERS.register("AVERAGE_POOL_2D")
@_READERS.register("MAX_POOL_2D")
def _read_pool(model: FlatModel, operator: Operator) -> dict[str, Any]:
    found = _spatial(operator, _plain(model, operator))
    found["kh"] = int(operator.options.get("filter_height", 1))
    found["kw"] = int(operator.options.get("filter_width", 1))
    return _pads(found)


@_READERS.register("FULLY_CONNECTED")
def _read_fully_connected(model: FlatModel, operator: Operator) -> dict[str, Any]:
    weights = _needed(model, operator, 1)
    found = _plain(model, operator)
    found["no"], found["ni"] = _shape4(weights)[2:]
    found["batch"] = found["out_elements"] // max(1, found["no"])
    found["weight_type"] = weights.type
    found["per_channel"] = len(weights.scales) > 1
    found["constant_weights"] = weights.is_constant
    found["bias"] = model.tensor(operator, 2) is not None
    return found


@_READERS.register("TRANSPOSE_CONV")
def _read_transpose_conv(model: FlatModel, operator: Operator) -> dict[str, Any]:
    weights, source = _needed(model, operator, 1), _needed(model, operator, 2)
    found = _spatial(operator, _images(source, model.output(operator)))
    _, found["kh"], found["kw"], _ = _shape4(weights)
    found["weight_type"] = weights.type
    found["bias"] = model.tensor(operator, 3) is not None
    # The padding is that of the convolution which leads from the output back to the input.
    for axis in "hw":
        found[f"pad_{axis}"] = _padding(
            found["same"], found[axis], found[f"o{axis}"], found[f"k{axis}"], found[f"s{axis}"], 1
        )
    return found


@_READERS.register("ADD")
@_READERS.register("SUB")
@_READERS.register("MUL")
@_READERS.register("MAXIMUM")
@_READERS.register("MINIMUM")
def _read_arithmetic(model: FlatModel, operator: Operator) -> dict[str, Any]:
    first, second = _needed(model, operator, 0), _needed(model, operator, 1)
    output = model.output(operator)
    large, small = (first, second) if first.elements >= second.elements else (second, first)
    found = _images(large, output)
    if small.type != large.type:
        raise Unmodelled(
            f"{operator.name} of {first.type} and {second.type} has no instruction formula"
        )
    if small.elements == large.elements == output.elements:
        return found
    # One element over one channel is a vector of channels: the inner loop has one step.
    if small.elements == found["co"] == _shape4(small)[-1] and large.elements == output.elements:
        found["broadcast"] = "channel"
    elif small.elements == 1 and large.elements == output.elements:
        found["broadcast"] = "scalar"
    else:
        raise Unmodelled(
            f"{operator.name} of shapes {first.shape} and {second.shape} has no instruction formula"
        )
    return found


@_READERS.register("CONCATENATION")
def _read_concatenation(model: FlatModel, operator: Operator) -> dict[str, Any]:
    found = _plain(model, operator)
    output = model.output(operator)
    axis = int(operator.options.get("axis", 0)) % max(1, len(output.shape))
    found["n_inputs"] = len(operator.inputs)
    found["copies"] = math.prod(output.shape[:axis]) * len(operator.inputs)
    return found


@_READERS.register("SPLIT")
def _read_split(model: FlatModel, operator: Operator) -> dict[str, Any]:
    axis, source = _constant(model, operator, 0)[0], _needed(model, operator, 1)
    found = _images(source, model.output(operator))
    found["out_elements"] = source.elements
    outer = math.prod(source.shape[: axis % max(1, len(source.shape))])
    found["copies"] = outer * len(operator.outputs)
    return found


@_READERS.register("PRELU")
def _read_prelu(model: FlatModel, operator: Operator) -> dict[str, Any]:
    found = _plain(model, operator)
    slopes = _needed(model, operator, 1)
    found["broadcast"] = "channel" if slopes.elements == _shape4(slopes)[-1] == found["co"] else ""
    return found


@_READERS.register("MEAN")
@_READERS.register("SUM")
@_READERS.register("REDUCE_MAX")
def _read_mean(model: FlatModel, operator: Operator) -> dict[str, Any]:
    found = _plain(model, operator)
    rank = len(_needed(model, operator, 0).shape)
    axes = (axis % max(1, rank) + max(0, 4 - rank) for axis in _constant(model, operator, 1))
    found["axes"] = tuple(sorted(axes))
    return found


@_READERS.register("TRANSPOSE")
def _read_transpose(model: FlatModel, operator: Operator) -> dict[str, Any]:
    found = _plain(model, operator)
    order = _constant(model, operator, 1)
    missing = max(0, 4 - len(order))
    found["axes"] = (*range(missing), *(axis % len(order) + missing for axis in order))
    return found


@_READERS.register("PAD")
def _read_pad(model: FlatModel, operator: Operator) -> dict[str, Any]:
    found = _plain(model, operator)
    found["pad_c"] = sum(_constant(model, operator, 1)[-2:])
    return found


@_READERS.register("STRIDED_SLICE")
def _read_strided_slice(model: FlatModel, operator: Operator) -> dict[str, Any]:
    found = _plain(model, operator)
    strides = (1, 1, 1, *_constant(model, operator, 3))
    found["sh"], found["sw"], found["stride_c"] = strides[-3:]
    return found


@_READERS.register("SVDF")
def _read_svdf(model: FlatModel, operator: Operator) -> dict[str, Any]:
    found = _plain(model, operator)
    feature, time = _needed(model, operator, 1), _needed(model, operator, 2)
    found["filters"], found["ni"] = _shape4(feature)[2:]
    found["memory"] = _shape4(time)[-1]
    found["no"] = found["co"]
    found["state_type"] = _needed(model, operator, 4).type
    return found


# Inputs that Keras never fills.
_LSTM_EXTRAS = {
    **dict.fromkeys((9, 10, 11), "peepholes"),
    **dict.fromkeys((16, 17), "a projection"),
    **dict.fromkeys((20, 21, 22, 23), "normalized gates"),
}


@_READERS.register("UNIDIRECTIONAL_SEQUENCE_LSTM")
def _read_lstm(model: FlatModel, operator: Operator) -> dict[str, Any]:
    source, weights = _needed(model, operator, 0), _needed(model, operator, 2)
    found = _images(source, model.output(operator))
    first, second = _shape4(source)[1:3]
    time_major = bool(operator.options.get("time_major", False))
    found["steps"], batch = (first, second) if time_major else (second, first)
    if batch != 1:
        raise Unmodelled("UNIDIRECTIONAL_SEQUENCE_LSTM of a batch has no instruction formula")
    for position, part in _LSTM_EXTRAS.items():
        if model.tensor(operator, position) is not None:
            raise Unmodelled(f"{operator.name} with {part} was not counted")
    if model.tensor(operator, 1) is None:
        raise Unmodelled(f"{operator.name} without an input gate was not counted")
    found["no"], found["ni"] = _shape4(weights)[2:]
    found["weight_type"] = weights.type
    return found


def geometry(model: FlatModel, operator: Operator) -> Geometry:
    """Returns an operator in numbers.

    Args:
        model: The file.
        operator: One of its operators.

    Raises:
        Unmodelled: its cost depends on what is only known while the model runs.
    """
    if not operator.outputs:
        raise Unmodelled(f"{operator.name} has no output")
    reader = _READERS.get(operator.code) or _plain
    return Geometry(operator.name, **reader(model, operator))


def operator_instructions(
    model: FlatModel, operator: Operator, kernels: str, core: str | None = None
) -> Count:
    """Returns the instructions of one operator of a file.

    Args:
        model: The file.
        operator: One of its operators.
        kernels: One of KERNEL_SETS.
        core: As in `count`.

    Raises:
        Unmodelled: no formula covers this operator, type or shape; the text says what is missing.
    """
    if operator.name == "TFLM_DECODE":
        try:
            return Count(decode_instructions(model, operator, kernels), DECODE_ERROR)
        except UnknownCode as error:
            raise Unmodelled(f"TFLM_DECODE: {error}") from error
    if operator.name not in _CASES:
        raise Unmodelled(f"{operator.name} has no instruction formula")
    return count(geometry(model, operator), kernels, core)
