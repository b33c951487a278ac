"""Instructions of one inference on a Cortex-M, from the flatbuffer alone.

Each operator is described by a few numbers (pixels, channels, multiply-accumulates, ...); a formula
for its kernel turns them into instructions. The formulas (`instruction_formulas`) were fitted on
9,400 single-operator models that ran in a counting simulator (TensorFlow Lite Micro 90b983c2b,
CMSIS-NN 4ab83cc3, GCC 12.2 at -O2); they predict whole networks within about 4 percent for kernels
of the same version. A case that was not counted has no prediction. They count instructions, not
cycles: `latency` turns them into time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from edgecompress.core.registry import Registry
from edgecompress.flatbuffers.coding import DECODE
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import Operator
from edgecompress.targets.tflm.geometry import (
    TYPE_BYTES,
    Geometry,
    Unmodelled,
    geometry,
    round_up,
    taps_inside,
)
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
# For an operator below all counted sizes: such a number is an upper bound, not a lower one.
_LARGEST_ERROR = 0.9
# Maximum instructions per output for a bias: fetch it, add it, advance. Counted operators have one;
# where the formulas do not distinguish, a number without a bias is that much less certain.
_BIAS = 5
_SUFFIX = {("INT8", "INT8"): "", ("INT16", "INT8"): "_s16", ("INT8", "INT4"): "_w4"}


@dataclass(frozen=True)
class Count:
    """Instructions of one operator.

    Attributes:
        instructions: The prediction.
        error: Its largest relative error: prediction / truth - 1 lies within plus or minus this.
    """

    instructions: float
    error: float


# Each reader below returns the kernel that runs and the numbers its formula may use.
_Case = tuple[str, dict[str, float]]
_CASES: Registry[Callable[[Geometry, str], _Case]] = Registry("operator")


def _window(g: Geometry) -> dict[str, float]:
    """Numbers shared by everything that slides a window over an image."""
    rows_inside = taps_inside(g.oh, g.h, g.kh, g.sh, g.dh, g.pad_h)
    columns_inside = taps_inside(g.ow, g.w, g.kw, g.sw, g.dw, g.pad_w)
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
        "c8": round_up(g.ci, 8),
        "c16": round_up(g.ci, 16),
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
    """Whether CMSIS-NN on vector cores takes its path for one-axis convolutions.

    It splits a row into left edge, middle and right edge, and takes the path only if the three add
    up to the row (arm_convolve_1_x_n_s8 and its wrapper).
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
        "K8": round_up(min(size, 512), 8),
        "K16": round_up(size, 16),
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
    # Channels are processed in blocks of 124; a damaged file may have any number of them.
    whole, rest = divmod(g.co, 124)
    size = g.kh * g.kw
    values |= {
        "im2col": values["taps"] * g.ci,
        "K16": round_up(size, 16),
        "cb4": whole * round_up(124, 4) + round_up(rest, 4),
        "cb16": whole * round_up(124, 16) + round_up(rest, 16),
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
    # As a 1x1 convolution, rows are pixels; otherwise the outputs of a row go in groups of 4.
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
        "K8": round_up(min(g.ni, 512), 8),
        "K16": round_up(g.ni, 16),
        # Sums over the weights: computed once from constants, else in every inference.
        "sums": 0 if g.constant_weights else g.no * round_up(g.ni, 16),
    }
    if as_conv:
        return "fc1x1", values
    # Several rows are a separate case: the same formula, less exact.
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
        "bytes": g.out_elements * TYPE_BYTES.get(g.in_type, 1),
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
    # A tap of an input pixel reaches the output pixels that a convolution over the output would
    # read.
    inside = taps_inside(g.h, g.oh, g.kh, g.sh, 1, g.pad_h) * taps_inside(
        g.w, g.ow, g.kw, g.sw, 1, g.pad_w
    )
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
        "co4": round_up(g.co, 4),
        "c16": round_up(g.ci, 16),
        "g4": pout // 4,
        "K16": round_up(size, 16),
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
        "ni16": round_up(g.ni, 16),
        "mem8": round_up(g.memory, 8),
        "state8": round_up(g.filters * g.memory, 8),
    }
    return {"INT8": "svdf", "INT16": "svdf_s16"}.get(g.state_type, "svdf_float"), values


@_CASES.register("UNIDIRECTIONAL_SEQUENCE_LSTM")
def _lstm(g: Geometry, kernels: str) -> _Case:
    values: dict[str, float] = {
        "T": g.steps,
        "T1": g.steps - 1,
        "n": g.no,
        "m": g.ni,
        "m16": round_up(g.ni, 16),
        "n16": round_up(g.no, 16),
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
    if operator.name == DECODE:
        try:
            return Count(decode_instructions(model, operator, kernels), DECODE_ERROR)
        except UnknownCode as error:
            raise Unmodelled(f"{DECODE}: {error}") from error
    if operator.name not in _CASES:
        raise Unmodelled(f"{operator.name} has no instruction formula")
    return count(geometry(model, operator), kernels, core)
