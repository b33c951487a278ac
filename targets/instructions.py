"""Instructions of one inference on a Cortex-M, from the flatbuffer alone.

Each operator is described by a few numbers (pixels, channels, multiply-accumulates, ...); a formula
for its kernel turns them into instructions. The formulas were fitted on 9,400 single-operator
models that ran in a counting simulator (TensorFlow Lite Micro 90b983c2b, CMSIS-NN 4ab83cc3, GCC
12.2 at -O2); they give whole networks within about 4 percent on kernels of the same version. They
count instructions, not cycles: `latency` turns them into time.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgecompress.core.errors import EdgeCompressError
from edgecompress.core.flatbuffer import FlatModel, Operator, Tensor
from edgecompress.core.registry import Registry
from edgecompress.targets.instructions_decode import UnknownCode, decode_instructions

# Kernel sets: CMSIS-NN on cores with the DSP extension (M4, M7, M33), CMSIS-NN on cores with vector
# registers (M55, M85), and the reference kernels of TensorFlow Lite Micro.
KERNEL_SETS = ("dsp", "mve", "reference")

# Instructions that the interpreter spends around an inference and around each operator.
PER_INFERENCE = 69
PER_OPERATOR = 56

_BYTES = {"INT8": 1, "UINT8": 1, "INT16": 2, "INT32": 4, "FLOAT32": 4, "BOOL": 1}
_SUFFIX = {("INT8", "INT8"): "", ("INT16", "INT8"): "_s16", ("INT8", "INT4"): "_w4"}


class Unmodelled(EdgeCompressError):
    """An operator has no instruction formula; the text says which part of it."""


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


# ---------------------------------------------------------------------------------------------
# Formulas. `pix` is output pixels, `out` output elements, `K` taps times input channels, `mac4`
# multiply-accumulates with K rounded down to whole groups of 4, `kr` the rest of K, `taps` pairs of
# an output pixel and a filter tap inside the input, `g4` whole groups of 4 pixels and `r` the rest.
# ---------------------------------------------------------------------------------------------

_DSP = {
    "conv": "1.63*mac4 + 3.06*out*kr + 45.0*out + 2.90*im2col + 38.8*alltaps + 148*pix"
    " + 1.14*oddpix*co*K + 0.25*oddco*pix*K + 836",
    "conv1x1": "1.44*mac4 + 2.58*out*kr + 41.8*out + 2.89*co*K + 0.46*oddpix*co*K"
    " + 4.64*oddco*pix*K + 39.1*co + 429",
    "conv1x1_strided": "1.43*mac4 + 2.23*out*kr + 42.2*out + 2.79*rows*co*K"
    " + 0.61*oddpix_row*co*K + 3.46*oddco*pix*K + 45.2*rows*co + 247*rows",
    "dw3x3": "10.0*taps*c4 + 14.9*taprows*c4 + 157*pix*c4 + 0.49*taps*cr + 15.3*taprows*cr"
    " + 72.5*pix*cr + 68.4*pix + 597",
    "dw_mult4": "3.76*taps*co + 4.45*taprows*co + 43.0*out + 94.1*pix + 787",
    "dw_generic": "12.3*taps*co + 21.9*taprows*co + 94.9*out + 31.5*dilated*out + 2429",
    "dw_opt": "20.8*alltaps*c4 + 166*pix*c4 + 9.72*alltaps*cr + 55.1*pix*cr + 2.35*im2col"
    " + 33.4*alltaps + 138*pix",
    "fc": "1.88*mac4 + 5.92*out*kr + 50.1*out + 0.49*oddno*ni + 426",
    "fc_pc": "1.88*mac4 + 5.91*out*kr + 58.6*out + 0.52*oddno*ni + 441",
    "fc1x1": "1.42*mac + 43.7*out + 3.17*co*K + 0.23*oddpix*co*K + 4.38*oddco*pix*K + 451",
    "avgpool": "6.02*taps*c + 12.3*taps + 12.9*out + 87.3*pix + 381",
    "maxpool": "30.2*taps*c4 + 6.78*taps*cr + 16.5*taps + 13.5*out4 + 6.67*outr + 79.5*pix + 414",
    "mean": "120*in + 46.9*out + 977",
    "mean_hw": "132*in + 23.6*out + 1150",
    "sum": "124*in + 41.3*out + 920",
    "reduce_max": "126*in + 515",
    "add": "81.1*out + 700",
    "add_bc": "102*out + 59.7*bcrows + 2.30*sc_out + 1071",
    "add_bc_s16": "104*out + 55.2*bcrows + 3.66*sc_out + 952",
    "add_s16": "78.4*out + 694",
    "mul": "35.9*out + 746",
    "mul_bc": "51.2*out + 45.5*bcrows + 1167",
    "mul_s16": "31.2*out + 745",
    "mul_bc_s16": "51.9*out + 59.2*bcrows + 888",
    "sub_bc": "101*out + 55.9*bcrows + 1065",
    "sub": "90.4*out + 692",
    "sub_bc_s16": "102*out + 3.20*sc_out + 1055",
    "sub_s16": "85.5*out + 737",
    "concat": "0.55*bytes + 33.9*copies + 128*n_in + 313",
    "reshape": "0.53*bytes + 176",
    "softmax": "99.3*n + 461*rows + 404*n_act + 41.2",
    "logistic": "357*n",
    "logistic_s16": "22.7*n + 140",
    "tanh": "357*n + 630",
    "tanh_s16": "25.2*n + 217",
    "relu": "49.4*n + 204",
    "relu6": "13.4*n + 203",
    "leaky_relu": "50.8*n + 251",
    "hard_swish": "83.0*n + 440",
    "prelu": "47.5*n + 59.4*pix + 48.4*rows + 546",
    "pad": "0.45*out + 0.09*in + 92.3*inrows + 1.32*padpix + 415",
    "pad_c": "0.54*out + 103*pix + 42.0*rows + 394",
    "quantize_float32": "32.6*n + 221",
    "quantize_int16": "44.5*n + 150",
    "quantize_int8": "44.4*n + 157",
    "quantize_uint8": "5.00*n + 155",
    "dequantize": "108*n + 202",
    "dequantize_s16": "108*n + 194",
    "tconv_rev": "1.62*mac + 40.4*out + 2.90*im2col + 19.4*pout*k + 76.3*wtaps + 348*pout",
    "tconv_col": "25.3*bufbias + 7.38*co*rows + 2.26*mac + 12.2*pin*k*co + 8.17*pin*k + 41.4*out"
    " + 5.83*pout + 32.7*pin*co + 1009",
    "resize_nn": "0.57*out + 73.3*pix + 28.6*rows + 460",
    "resize_bilinear": "64.0*out + 70.0*pix + 58.2*rows + 443",
    "strided_slice_cstride": "17.0*out + 32.0*pix + 30.1*rows + 721",
    "strided_slice": "0.68*out + 54.7*pix + 27.0*rows + 736",
    "slice": "4.00*out + 8.05*pix + 10.3*rows + 494",
    "split": "4.01*bytes + 38.9*copies + 195",
    "svdf": "1.89*nf*ni + 7.21*nf*mem + 84.7*nf + 34.3*no + 634",
    "svdf_s16": "1.85*nf*ni + 11.3*nf*mem + 82.8*nf + 26.9*no + 662",
    "lstm": "7.44*T*n*m + 7.20*T1*n*n + 374*T*n + 201*T1*n + 1560*T + 0.33*n*m + 0.33*n*n + 762",
    "transpose_0312": "5.14*n + 994",
    "transpose_0321": "6.72*n + 634",
    "transpose_0213": "5.01*n + 14.4*pix + 699",
    "transpose_0231": "5.62*n + 31.1*rows + 685",
    "transpose_0132": "5.04*n + 184*rows",
    "maximum": "8.00*out + 543",
    "minimum": "8.00*out + 544",
    "conv_s16": "1.64*slowmac + 1.84*mac + 50.2*out + 2.46*out*kr + 1.13*im2col + 42.6*alltaps"
    " + 70.7*pix + 4546",
    "dw_s16": "12.0*taps*co + 114*out + 28.2*taprows*co + 38.9*pix + 773",
    "fc_s16": "3.50*slowmac + 2.38*fastmac + 2.86*out*kr + 0.39*oddno*ni + 1.55*oddslow + 57.0*out"
    " + 332",
    "avgpool_s16": "6.01*taps*c + 11.8*taps + 13.0*out + 80.9*pix + 412",
    "maxpool_s16": "8.68*taps*c + 15.4*taps + 2.11*out + 90.2*pix + 387",
    "conv_w4": "3.53*mac + 47.0*out + 2.41*im2col + 37.6*alltaps + 177*pix",
    "fc_w4": "4.91*mac + 47.5*out + 495",
    "conv1x1_w4": "3.11*mac + 46.0*out + 1506",
}

_MVE = {
    "conv": "11.0*g4*co*K16 + 56.3*g4*co + 5.09*r*co*K16 + 27.2*r*co + 59.8*co_r*r + 433*g4"
    " + 2.92*taps*c16 + 18.0*alltaps + 635",
    "conv1xn": "11.5*g4*co*K16 + 65.0*g4*co + 6.16*r*co*K16 + 12.1*r*co + 128*co_r*r + 1224",
    "conv1x1": "11.0*g4*co*K16 + 56.0*g4*co + 4.99*r*co*K16 + 26.9*r*co + 43.0*co_r*r + 42.2*g4"
    " + 17.7*r + 432",
    "conv1x1_strided": "11.0*g4_row*co*K16 + 56.2*g4_row*co + 5.02*r_row*co*K16 + 27.1*r_row*co"
    " + 89.5*rows + 43.3*g4_row + 41.7*co_r*r_row + 402",
    "dw": "15.8*g4*cb4*k + 105*g4*cb4 + 7.14*r*cb4*k + 47.3*r*cb4 + 2.96*alltaps*cb16"
    " + 15.7*alltaps*blocks + 97.7*pix*blocks + 654",
    "dw_as_conv": "8.96*g4*co*K16 + 60.4*g4*co + 25.7*r*co*K16 + 32.1*r*co + 22.1*alltaps"
    " + 82.5*pix + 1365",
    "dw_generic": "9.43*taps*co + 30.9*taprows*co + 91.2*out + 36.6*dilated*out + 2560",
    "fc": "30.2*g4*K16 + 52.2*g4 + 12.9*r*K16 + 73.9*r + 7.6*sums + 419",
    "fc_pc": "30.2*g4*K16 + 70.6*g4 + 12.7*r*K16 + 74.6*r + 7.6*sums + 420",
    "fc1x1": "11.0*g4*co*K16 + 57.6*g4*co + 5.02*r*co*K16 + 27.2*r*co + 3.41*no + 594",
    "avgpool": "21.1*taps*c16 + 181*pix*c16 + 15.9*taprows*c16 + 35.1*pix + 398",
    "maxpool": "16.8*taps*c16 + 15.6*taps + 1.95*taprows*c16 + 45.2*pix + 424",
    "mean": "128*in + 46.9*out + 950",
    "mean_hw": "134*in + 25.6*out + 1118",
    "sum": "130*in + 45.0*out + 855",
    "reduce_max": "123*in + 473",
    "add": "55.0*out4 + 712",
    "add_bc": "105*out + 63.1*bcrows + 2.35*sc_out + 1092",
    "add_bc_s16": "106*out + 57.4*bcrows + 4.19*sc_out + 974",
    "add_s16": "41.0*out4 + 694",
    "mul": "27.0*out4 + 744",
    "mul_bc": "50.2*out + 46.6*bcrows + 1187",
    "mul_s16": "23.0*out4 + 738",
    "mul_bc_s16": "52.0*out + 58.3*bcrows + 898",
    "sub_bc": "103*out + 56.6*bcrows + 1079",
    "sub": "389*out4 + 711",
    "sub_bc_s16": "104*out + 3.77*sc_out + 1082",
    "sub_s16": "344*out4 + 773",
    "concat": "0.58*bytes + 34.0*copies + 127*n_in + 332",
    "reshape": "0.56*bytes + 182",
    "softmax": "113*n + 491*rows + 427*n_act + 33.0",
    "logistic": "367*n",
    "logistic_s16": "24.4*n + 145",
    "tanh": "380*n + 662",
    "tanh_s16": "22.7*n + 231",
    "relu": "49.4*n + 212",
    "relu6": "10.4*n + 214",
    "leaky_relu": "49.3*n + 257",
    "hard_swish": "81.8*n + 439",
    "prelu": "47.5*n + 57.5*pix + 46.6*rows + 561",
    "pad": "0.12*out + 0.06*in + 0.97*rows + 30.8*inrows + 0.04*inpix + 353",
    "pad_c": "0.18*in + 29.5*pix + 29.4*rows + 344",
    "quantize_float32": "14.0*n + 223",
    "quantize_int16": "44.5*n + 150",
    "quantize_int8": "44.4*n + 166",
    "quantize_uint8": "4.00*n + 162",
    "dequantize": "8.00*n + 220",
    "dequantize_s16": "8.00*n + 215",
    "tconv_rev": "11.1*g4*co*K16 + 53.1*g4*co + 3.85*pout*k + 2.47*pout*k*c16 + 27.6*wtaps"
    " + 574*g4 + 0.78*vtaps*c16 + 10.3*vtaps",
    "tconv_col": "12.0*bias*pout + 52.0*pout*co4 + 6.82*pin*k*co*c16 + 16.3*pin*k*co + 1.73*out"
    " + 70.9*pin + 0.01*mac + 2129",
    "resize_nn": "0.64*out + 49.7*pix + 28.0*rows + 415",
    "resize_bilinear": "62.5*out + 65.0*pix + 55.3*rows + 441",
    "strided_slice_cstride": "17.0*out + 32.0*pix + 29.9*rows + 776",
    "strided_slice": "0.72*out + 54.6*pix + 26.9*rows + 790",
    "slice": "3.00*out + 7.93*pix + 12.5*rows + 510",
    "split": "3.01*bytes + 37.8*copies + 201",
    "svdf": "7.50*nf*ni16 + 33.5*nf + 0.73*no + 33.6*state8 + 725",
    "svdf_s16": "10.2*nf*ni16 + 3.71*nf*mem8 + 47.1*nf + 32.0*state8 + 670",
    "lstm": "27.9*T*n*m16 + 27.7*T1*n*n16 + 50.3*T1*n + 28.6*T*nr*m16 + 28.6*T1*nr*n16"
    " + 205*T*n + 1796*T + 212*T*nr + 277",
    "transpose_0312": "4.14*n + 1000",
    "transpose_0321": "5.69*n + 656",
    "transpose_0213": "4.01*n + 13.5*pix + 728",
    "transpose_0231": "4.58*n + 29.4*rows + 713",
    "transpose_0132": "1.21*n + 21.8*pix + 83.1*rows + 212",
    "maximum": "4.49*out4 + 555",
    "minimum": "4.50*out4 + 559",
    "conv_s16": "3.52*slowmac + 10.1*g4*co*K8 + 127*g4*co + 8.11*r*co*K8 + 389*g4 + 39.2*r*co"
    " + 2.94*taps*c8 + 20.9*alltaps + 796",
    "dw_s16": "10.1*taps*co + 110*out + 26.9*taprows*co + 37.3*pix + 899",
    "fc_s16": "4.01*slowmac + 25.0*g4*K8 + 197*g4 + 12.8*r*K8 + 51.8*r + 364",
    "avgpool_s16": "1.88*taps*c + 0.19*taps + 11.7*out + 111*pix + 627",
    "maxpool_s16": "1.53*taps*c + 17.7*taps + 1.08*out + 117*pix + 422",
    "conv_w4": "13.6*g4*co*K16 + 89.9*g4*co + 219*r*co + 32.7*alltaps + 0.09*mac + 677",
    "fc_w4": "5.86*out*K16 + 31.5*out + 537",
    "conv1x1_w4": "18.5*g4*co*K16 + 88.9*g4*co + 155*r*co + 11.3*alltaps + 476",
}

_REFERENCE = {
    "conv": "6.00*taps*ci*co + 30.0*taps*co + 7.93*alltaps*co + 15.4*kh*out + 82.2*out"
    " + 25.8*pix + 564",
    "dw": "21.2*taps*co + 6.95*alltaps*co + 13.8*kh*out + 84.2*out + 31.5*pix*ci + 1233",
    "fc": "7.00*mac + 57.7*out + 423",
    "fc_pc": "6.00*mac + 61.1*out + 415",
    "avgpool": "6.01*taps*c + 51.1*out + 8.72*taprows*c + 295",
    "maxpool": "7.98*taps*c + 54.6*out + 13.2*taprows*c + 271",
    "add": "90.4*out + 693",
    "add_bc": "102*out + 59.5*bcrows + 2.28*sc_out + 1178",
    "add_bc_s16": "104*out + 55.1*bcrows + 3.66*sc_out + 1052",
    "add_s16": "86.5*out + 720",
    "mul": "48.0*out + 672",
    "mul_s16": "49.5*out + 605",
    "softmax": "77.2*n + 487*rows + 359*n_act + 156",
    "pad": "21.7*out + 14.2*in + 13.4*pix + 56.8*inrows + 387",
    "pad_c": "31.4*out + 6.55*in + 21.7*pix + 45.7*rows + 323",
    "tconv": "33.9*vmac + 10.0*mac + 19.7*pin*ci*k + 69.7*out + 52.4*pin*ci",
    "svdf": "8.99*nf*ni + 12.0*nf*mem + 71.9*nf + 60.9*no + 453",
    "svdf_s16": "9.01*nf*ni + 15.0*nf*mem + 74.4*nf + 60.6*no + 481",
    "lstm": "9.99*mac + 789*T*n + 3014*T + 737",
    "transpose": "5.00*n + 36.0*pix + 42.0*rows + 386",
    "maximum": "10.00*out + 415",
    "minimum": "10.00*out + 415",
    "conv_s16": "10.0*taps*ci*co + 26.1*taps*co + 13.7*alltaps*co + 23.3*kh*out + 116*out"
    " + 22.5*pix",
    "dw_s16": "22.8*taps*co + 9.54*alltaps*co + 15.3*kh*out + 83.4*out + 26.3*pix*ci + 1063",
    "fc_s16": "9.00*mac + 64.1*out + 420",
    "avgpool_s16": "4.89*taps*c + 27.7*out + 13.4*taprows*c + 398",
    "maxpool_s16": "7.74*taps*c + 48.0*out + 10.4*taprows*c + 311",
    "conv_w4": "6.00*taps*ci*co + 30.6*taps*co + 7.59*alltaps*co + 14.6*kh*out + 83.0*out"
    " + 31.1*pix + 4.75*wbytes",
    "fc_w4": "11.5*mac + 57.6*out + 498",
}
# CMSIS-NN has no kernel of its own for these: both builds run the same code.
_SHARED = (
    "mean mean_hw sum reduce_max mul_bc mul_bc_s16 sub_bc sub sub_bc_s16 sub_s16 concat reshape"
    " logistic logistic_s16 tanh tanh_s16 relu relu6 leaky_relu hard_swish prelu quantize_float32"
    " quantize_int16 quantize_int8 quantize_uint8 dequantize dequantize_s16 resize_nn"
    " resize_bilinear strided_slice_cstride strided_slice slice split"
)
FORMULAS: Mapping[str, Mapping[str, str]] = {
    "dsp": _DSP,
    "mve": _MVE,
    "reference": {**_REFERENCE, **{name: _DSP[name] for name in _SHARED.split()}},
}


@functools.cache
def terms(formula: str) -> tuple[tuple[float, tuple[str, ...]], ...]:
    """Returns a formula's terms as (coefficient, names to multiply it with).

    Example:
        >>> terms("1.5*out*K + 20")
        ((1.5, ('out', 'K')), (20.0, ()))
    """
    parts = (term.split("*") for term in formula.split(" + "))
    return tuple((float(first), tuple(names)) for first, *names in parts)


def evaluate(formula: str, values: Mapping[str, float]) -> float:
    """Returns a formula's value for the given numbers.

    Example:
        >>> evaluate("1.5*out*K + 20", {"out": 4, "K": 9})
        74.0
    """
    return sum(
        coefficient * math.prod(values[name] for name in names)
        for coefficient, names in terms(formula)
    )


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
    blocks = [124] * (g.co // 124) + ([g.co % 124] if g.co % 124 else [])
    size = g.kh * g.kw
    values |= {
        "im2col": values["taps"] * g.ci,
        "K16": _up(size, 16),
        "cb4": sum(_up(block, 4) for block in blocks),
        "cb16": sum(_up(block, 16) for block in blocks),
        "blocks": len(blocks),
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
    return ("fc_pc" if g.per_channel and not suffix else "fc" + suffix), values


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
    """A kernel that moves bytes, whatever their type."""

    def case(g: Geometry, kernels: str) -> _Case:
        if g.in_type not in _BYTES:
            raise Unmodelled(f"{g.code} with {g.in_type} input has no instruction formula")
        return name, _elements(g)

    return case


_CASES.register("CONCATENATION")(_copying("concat"))
_CASES.register("SPLIT")(_copying("split"))
_CASES.register("RESHAPE")(_copying("reshape"))
_CASES.register("SQUEEZE")(_copying("reshape"))


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


def count(g: Geometry, kernels: str) -> float:
    """Returns the instructions of one operator.

    Args:
        g: The operator in numbers.
        kernels: One of KERNEL_SETS.

    Raises:
        Unmodelled: no formula covers this operator, type or shape.
    """
    case = _CASES.get(g.code)
    if case is None:
        raise Unmodelled(f"{g.code} has no instruction formula")
    name, values = case(g, kernels)
    formula = FORMULAS[kernels].get(name)
    if formula is None:
        raise Unmodelled(f"{g.code} of this kind ({name}) has no instruction formula")
    return evaluate(formula, values)


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
    }


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
    return _pads(found)


@_READERS.register("DEPTHWISE_CONV_2D")
def _read_depthwise(model: FlatModel, operator: Operator) -> dict[str, Any]:
    weights = _needed(model, operator, 1)
    found = _spatial(operator, _plain(model, operator))
    _, found["kh"], found["kw"], _ = _shape4(weights)
    found["multiplier"] = max(1, found["co"] // max(1, found["ci"]))
    found["weight_type"] = weights.type
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
    if small.elements == large.elements == output.elements:
        return found
    if small.elements == 1:
        found["broadcast"] = "scalar"
    elif small.elements == found["co"] == _shape4(small)[-1] and large.elements == output.elements:
        found["broadcast"] = "channel"
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


@_READERS.register("MEAN")
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
    found["stride_c"] = _constant(model, operator, 3)[-1]
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


@_READERS.register("UNIDIRECTIONAL_SEQUENCE_LSTM")
def _read_lstm(model: FlatModel, operator: Operator) -> dict[str, Any]:
    source, weights = _needed(model, operator, 0), _needed(model, operator, 2)
    found = _images(source, model.output(operator))
    first, second = _shape4(source)[1:3]
    time_major = bool(operator.options.get("time_major", False))
    found["steps"], batch = (first, second) if time_major else (second, first)
    if batch != 1:
        raise Unmodelled("UNIDIRECTIONAL_SEQUENCE_LSTM of a batch has no instruction formula")
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


def operator_instructions(model: FlatModel, operator: Operator, kernels: str) -> float:
    """Returns the instructions of one operator of a file.

    Args:
        model: The file.
        operator: One of its operators.
        kernels: One of KERNEL_SETS.

    Raises:
        Unmodelled: no formula covers this operator, type or shape.
    """
    if operator.name == "TFLM_DECODE":
        try:
            return decode_instructions(model, operator, kernels)
        except UnknownCode as error:
            raise Unmodelled(f"TFLM_DECODE: {error}") from error
    if operator.name not in _CASES:
        raise Unmodelled(f"{operator.name} has no instruction formula")
    return count(geometry(model, operator), kernels)
