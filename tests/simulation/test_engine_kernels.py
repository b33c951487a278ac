"""Every simulated operator against the real engine, bit for bit, in files of one operator."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompress.core.errors import ArgumentError, UnsupportedModelError
from edgecompress.engines.run import run_engine
from edgecompress.flatbuffers.artifact import Artifact
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.simulation import EngineSimulation
from edgecompress.simulation.interpreter import run
from edgecompress.simulation.kernels import KERNELS

pytestmark = pytest.mark.slow

_PATH = Path(__file__).parents[2] / "benchmarks" / "operator_models.py"
_SPEC = importlib.util.spec_from_file_location("one_operator_models", _PATH)
models: Any = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = models
_SPEC.loader.exec_module(models)
T, Case = models.T, models.Case
SAME, VALID = 0, 1
NONE, RELU, RELU6 = 0, 1, 3
OTHER = {"litert": "tflm", "tflm": "litert"}
SAMPLES = 25


def t(shape, scale=0.05, zero_point=-3):
    return T("INT8", tuple(shape), None, (scale,), zero_point)


def ints(*values):
    return T("INT32", (len(values),), np.array(values))


def positions(length, size, stride, dilation, padding):
    reach = (size - 1) * dilation + 1
    return -(-length // stride) if padding == SAME else (length - reach) // stride + 1


def conv(shape, out, k, stride=1, dilation=1, padding=SAME, act=NONE, zp=(-3, 5), groups=1,
         steps=60.0):  # fmt: skip
    """A convolution with scales per channel; depthwise with `out` outputs per channel if k < 0."""
    depthwise, k = k < 0, abs(k)
    random = np.random.default_rng(k + out)
    channels = shape[3] * out if depthwise else out
    kernel = (1, k, k, channels) if depthwise else (out, k, k, shape[3] // groups)
    scales = tuple(np.exp(random.uniform(-7, -3, channels)).astype(np.float32))
    weights = random.integers(-127, 128, kernel)
    fan_in = k * k * (1 if depthwise else shape[3] // groups)
    output = 0.02 * np.median(scales) * 5500 * np.sqrt(fan_in) / steps
    sizes = (positions(n, k, stride, dilation, padding) for n in shape[1:3])
    return Case(
        "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D",
        (
            t(shape, 0.02, zp[0]),
            T("INT8", kernel, weights, scales, 0, 3 if depthwise else 0),
            T("INT32", (channels,), random.integers(-5000, 5000, channels),
              tuple(0.02 * s for s in scales), 0),
        ),
        (t((1, *sizes, channels), output, zp[1]),),
        {
            "strideH": stride, "strideW": stride, "dilationHFactor": dilation,
            "dilationWFactor": dilation, "padding": padding, "fusedActivationFunction": act,
            **({"depthMultiplier": out} if depthwise else {}),
        },
    )  # fmt: skip


def dense(inputs, outputs, per_channel, act=NONE, bias=True, rows=1):
    random = np.random.default_rng(inputs)
    count = outputs if per_channel else 1
    scales = tuple(np.exp(random.uniform(-7, -3, count)).astype(np.float32))
    weights = T("INT8", (outputs, inputs), random.integers(-127, 128, (outputs, inputs)), scales, 0)
    biases = T("INT32", (outputs,), random.integers(-5000, 5000, outputs),
               tuple(0.02 * s for s in scales), 0)  # fmt: skip
    output = 0.02 * np.median(scales) * 5500 * np.sqrt(inputs) / 60
    shape = (1, inputs) if rows == 1 else (1, rows, inputs)
    return Case(
        "FULLY_CONNECTED", (t(shape, 0.02, 11), weights, *([biases] if bias else [])),
        (t((*shape[:-1], outputs), output, -9),),
        {"fusedActivationFunction": act, "keepNumDims": rows > 1},
    )  # fmt: skip


def narrow(case, kind="INT4"):
    """The case with weights of fewer bits, and outputs as large in steps."""
    source, weights, biases = case.inputs
    largest = 7 if kind == "INT4" else 1
    codes = weights.values.astype(int) % (2 * largest + 1) - largest
    (output,) = case.outputs
    finer = output.scales[0] * largest / 127
    return dataclasses.replace(
        case,
        inputs=(
            source,
            dataclasses.replace(weights, type=kind, values=codes),
            dataclasses.replace(biases, values=biases.values * largest // 127),
        ),
        outputs=(dataclasses.replace(output, scales=(finer,)),),
    )


def binary(operator, scales, act=NONE, second=None):
    shape = (1, 5, 4, 6)
    other = t(second or shape, scales[1], 127)
    return Case(operator, (t(shape, scales[0], -128), other), (t(shape, scales[2], 7),),
                {"fusedActivationFunction": act})  # fmt: skip


def constant(operator, scales):
    values = np.arange(6) * 37 % 256 - 128
    case = binary(operator, scales)
    return Case(operator, (case.inputs[0], T("INT8", (6,), values, (scales[1],), 20)), case.outputs)


def pool(operator, size, stride, padding, act=NONE, shape=(1, 7, 9, 5)):
    sizes = (positions(n, size, stride, 1, padding) for n in shape[1:3])
    return Case(
        operator, (t(shape, 0.031, -60),), (t((1, *sizes, shape[3]), 0.031, -60),),
        {"filterHeight": size, "filterWidth": size, "strideH": stride, "strideW": stride,
         "padding": padding, "fusedActivationFunction": act},
    )  # fmt: skip


def mean(shape, axes, scale, keep=False):
    out = [1 if i in axes else n for i, n in enumerate(shape) if keep or i not in axes]
    return Case(
        "MEAN", (t(shape, 0.05, 30), ints(*axes)), (t(out, scale, -70),), {"keepDims": keep}
    )


def unary(operator, scale, zero_point, output=None, **options):
    shape = (1, 256)
    return Case(operator, (t(shape, scale, zero_point),), (t(shape, *(output or (0.04, -20))),),
                options)  # fmt: skip


def softmax(scale, classes):
    return Case("SOFTMAX", (t((1, classes), scale),), (t((1, classes), 1 / 256, -128),),
                {"beta": 1.0})  # fmt: skip


def transposed(shape, out, k, stride, padding, bias=True):
    case = conv((1, 8, 8, shape[3]), out, k)
    weights, biases = case.inputs[1:]
    sizes = [n * stride + (max(k - stride, 0) if padding == VALID else 0) for n in shape[1:3]]
    target = t((1, *sizes, out), case.outputs[0].scales[0], 4)
    return Case(
        "TRANSPOSE_CONV",
        (ints(*target.shape), weights, t(shape, 0.02, -40), *([biases] if bias else [])),
        (target,), {"strideH": stride, "strideW": stride, "padding": padding},
    )  # fmt: skip


def product(first, second, zero_point, adj_y=False):
    rows = second[-2] if adj_y else second[-1]
    return Case(
        "BATCH_MATMUL", (t(first, 0.03, -3), t(second, 0.02, zero_point)),
        (t((*first[:-1], rows), 0.07, 9),), {"adjY": adj_y},
    )  # fmt: skip


def biases_only(scale, output, values):
    """A matrix product whose sums are the biases: sums at which a factor's last bits count."""
    count = len(values)
    return Case(
        "FULLY_CONNECTED",
        (t((1, 2), 0.02), T("INT8", (count, 2), np.zeros((count, 2)), (scale,), 0),
         T("INT32", (count,), np.array(values), (0.02 * scale,), 0)),
        (t((1, count), output, 0),),
    )  # fmt: skip


def lstm(features, units, scale, cell_bits, time_major=False, batch=1, clip=0.0, **changes):
    """An LSTM over 7 time steps; `scale` is the largest of its weights' scales."""
    random = np.random.default_rng(features)
    shape = (7, batch) if time_major else (batch, 7)
    widths = [features] * 4 + [units] * 4
    scales = scale * np.linspace(0.5, 1, 8).astype(np.float32)
    matrices = [
        T("INT8", (units, width), random.integers(-127, 128, (units, width)), (factor,), 0)
        for width, factor in zip(widths, scales, strict=True)
    ]
    biases = [
        T("INT32", (units,), random.integers(-3000, 3000, units), (0.02 * factor,), 0)
        for factor in scales[:4]
    ]
    output = (0.0063, -17)
    states = [
        T("INT8", (batch, units), None, output[:1], output[1], variable=True),
        T("INT16", (batch, units), None, (2.0**-cell_bits,), 0, variable=True),
    ]
    inputs = [t((*shape, features), 0.02, 23), *matrices, *[None] * 3, *biases, None, None, *states]
    for position, other in changes.pop("replaced", {}).items():
        inputs[position] = other
    return Case(
        "UNIDIRECTIONAL_SEQUENCE_LSTM", (*inputs, *[None] * 4), (t((*shape, units), *output),),
        {"fusedActivationFunction": 4, "timeMajor": time_major, "cellClip": clip, **changes},
        (*[T("FLOAT32", (0,))] * 4, t((0,), *output)),
    )  # fmt: skip


_MAP = (1, 4, 6, 5)
EXACT = {
    "conv": conv((1, 9, 7, 5), 6, 3),
    "conv_stride": conv((1, 9, 8, 3), 17, 3, stride=2, act=RELU, zp=(127, -128)),
    "conv_valid": conv((1, 10, 6, 16), 8, 5, padding=VALID, act=RELU6, zp=(-128, -128)),
    "conv_dilated": conv((1, 11, 9, 4), 5, 3, dilation=2, steps=500),
    "conv_1x1": conv((1, 5, 5, 40), 33, 1, steps=20),
    "conv_1x1_stride": conv((1, 5, 6, 4), 3, 1, stride=2, padding=VALID),
    "conv_even": conv((1, 6, 7, 3), 4, 4, stride=3),
    "conv_groups": conv((1, 6, 6, 8), 12, 3, groups=2),
    "depthwise": conv((1, 9, 7, 6), 1, -3),
    "depthwise_stride": conv((1, 8, 9, 16), 1, -3, stride=2, act=RELU, zp=(-128, -128)),
    "depthwise_valid": conv((1, 9, 9, 3), 1, -5, padding=VALID, act=RELU6),
    "depthwise_dilated": conv((1, 9, 9, 4), 1, -3, dilation=2, steps=500),
    "depthwise_multiplier": conv((1, 6, 6, 4), 3, -3),
    "dense": dense(64, 10, per_channel=False),
    "dense_channels": dense(63, 10, per_channel=True, act=RELU),
    "dense_wide": dense(2000, 7, per_channel=False),
    "dense_one": dense(1, 3, per_channel=True),
    "dense_no_bias": dense(16, 5, per_channel=False, bias=False),
    "dense_rows": dense(12, 5, per_channel=True, rows=3),
    "dense_int4": Case(
        "FULLY_CONNECTED",
        (t((1, 30), 0.02, 11), T("INT4", (9, 30), np.arange(270) * 7 % 16 - 8, (0.1,), 0),
         T("INT32", (9,), np.arange(9) * 100, (0.002,), 0)),
        (t((1, 9), 0.03, -9),),
    ),
    # XNNPACK takes none of these.
    "dense_int4_odd": narrow(dense(63, 10, per_channel=False)),
    "conv_int4": narrow(conv((1, 9, 8, 6), 7, 3)),
    "conv_int4_relu": narrow(conv((1, 9, 8, 6), 7, 3, stride=2, padding=VALID, act=RELU)),
    "conv_int4_dilated": narrow(conv((1, 9, 9, 4), 5, 3, dilation=2)),
    "conv_int4_pointwise": narrow(conv((1, 6, 6, 16), 5, 1)),
    "depthwise_int4": narrow(conv((1, 9, 8, 6), 1, -3)),
    "depthwise_int4_multiplier": narrow(conv((1, 6, 6, 4), 3, -3)),
    "depthwise_int4_blocks": narrow(conv((1, 6, 6, 20), 1, -3)),
    "add": binary("ADD", (0.02, 0.03, 0.04)),
    "add_uneven": binary("ADD", (0.9, 0.004, 1.1), RELU),
    "add_relu6": binary("ADD", (0.02, 0.02, 0.02), RELU6),
    "add_broadcast": binary("ADD", (0.02, 0.03, 0.03), second=(1, 1, 1, 6)),
    "add_constant": constant("ADD", (0.02, 0.03, 0.04)),
    "subtract": binary("SUB", (0.02, 0.03, 0.04)),
    "subtract_constant": constant("SUB", (0.03, 0.02, 0.05)),
    "multiply": binary("MUL", (0.02, 0.03, 0.04)),
    "multiply_gate": binary("MUL", (0.02, 1 / 256, 0.013), second=(1, 1, 1, 6)),
    "multiply_constant": constant("MUL", (0.02, 0.03, 0.04)),
    "maximum": Case("MAXIMUM", (t(_MAP), t((1, 1, 1, 5))), (t(_MAP),)),
    "average_pool": pool("AVERAGE_POOL_2D", 2, 2, VALID),
    "average_pool_same": pool("AVERAGE_POOL_2D", 3, 2, SAME, RELU),
    "average_pool_all": pool("AVERAGE_POOL_2D", 7, 7, VALID, shape=(1, 7, 7, 3)),
    "max_pool": pool("MAX_POOL_2D", 2, 2, VALID),
    "max_pool_same": pool("MAX_POOL_2D", 3, 1, SAME, RELU6),
    # Ratios of scales that XNNPACK leaves to LiteRT's own kernels.
    "add_beyond": binary("ADD", (0.9, 0.0007, 1.1)),
    "subtract_beyond": binary("SUB", (0.9, 0.0007, 1.1)),
    "multiply_beyond": binary("MUL", (0.02, 0.001, 1.4)),
    "leaky_relu_beyond": unary("LEAKY_RELU", 0.05, 12, alpha=0.002),
    "requantize_beyond": unary("QUANTIZE", 0.9, 0, (0.006, 0)),
    "reduce_max": Case("REDUCE_MAX", (t(_MAP), ints(1, 2)), (t((1, 5)),)),
    "reduce_min": Case("REDUCE_MIN", (t(_MAP), ints(1, 2)), (t((1, 5)),)),
    "transposed": transposed((1, 5, 4, 3), 6, 3, 2, SAME),
    "transposed_valid": transposed((1, 4, 5, 6), 3, 4, 2, VALID),
    "transposed_gaps": transposed((1, 4, 4, 3), 5, 2, 3, SAME, bias=False),
    "product": product((1, 4, 6), (1, 6, 5), 20),
    "product_adjoint": product((1, 2, 4, 6), (1, 2, 5, 6), -128, adj_y=True),
    "product_symmetric": product((1, 4, 6), (1, 6, 5), 0),
    "squared_difference": Case("SQUARED_DIFFERENCE", (t(_MAP, 0.02), t(_MAP, 0.03)),
                               (t(_MAP, 0.06, -128),)),
    "squared_difference_mean": Case("SQUARED_DIFFERENCE", (t(_MAP), t((1, 4, 6, 1), 0.001)),
                                    (t(_MAP, 0.2, -100),)),
    "mean": mean((1, 7, 5, 16), (1, 2), 0.02),
    "mean_kept": mean((1, 4, 4, 3), (1, 2), 0.05, keep=True),
    "mean_time": mean((1, 9, 12), (1,), 0.031),
    "negate": Case("NEG", (T("FLOAT32", (1, 64)),), (T("FLOAT32", (1, 64)),)),
    "relu": unary("RELU", 0.03, 12),
    "relu6": unary("RELU6", 0.05, -12, (0.05, -12)),
    "leaky_relu": unary("LEAKY_RELU", 0.05, 12, alpha=0.1),
    "requantize": unary("QUANTIZE", 0.05, 90),
    "quantize": Case("QUANTIZE", (T("FLOAT32", (1, 64)),), (t((1, 64)),)),
    "dequantize": Case("DEQUANTIZE", (t((1, 64)),), (T("FLOAT32", (1, 64)),)),
    "logistic": unary("LOGISTIC", 0.05, 4, (1 / 256, -128)),
    "logistic_coarse": unary("LOGISTIC", 0.7, -128, (1 / 256, -128)),
    "logistic_fine": unary("LOGISTIC", 0.004, 0, (1 / 256, -128)),
    "tanh": unary("TANH", 0.03, -40, (1 / 128, 0)),
    "tanh_coarse": unary("TANH", 0.5, 127, (1 / 128, 0)),
    "hard_swish": unary("HARD_SWISH", 0.05, 4),
    "hard_swish_coarse": unary("HARD_SWISH", 0.4, -100, (0.39, -128)),
    "rsqrt": unary("RSQRT", 0.01, -128, (0.04, -120)),
    "rsqrt_coarse": unary("RSQRT", 1.7, -128, (0.004, -128)),
    "gelu": unary("GELU", 0.03, 12, (0.02, -110)),
    "gelu_approximate": unary("GELU", 0.05, -12, (0.03, -110), approximate=True),
    "softmax": softmax(0.05, 10),
    "softmax_coarse": softmax(0.9, 5),
    "softmax_wide": softmax(0.1, 100),
    # Scales whose factors differ in float32 and float64 by enough to change a code.
    "relu_precise": unary("RELU", 0.40623462200164795, -128, (0.7861544489860535, -128)),
    "leaky_relu_precise": unary("LEAKY_RELU", 0.07127214223146439, 127, (0.11198443174362183, 0),
                                alpha=0.3),
    "hard_swish_precise": unary("HARD_SWISH", 0.005149024073034525, -100,
                                (0.002697370480746031, -100)),
    "rsqrt_precise": unary("RSQRT", 0.012955058366060257, -128, (0.05449577048420906, -128)),
    "dense_precise": biases_only(0.007703397423028946, 0.01774776354432106,
                                 [-6162, 6162, 0, 500, -5000]),
    "lstm": lstm(9, 12, 0.002, 12),
    "lstm_batch": lstm(8, 5, 0.004, 13, batch=2),
    "lstm_time_major": lstm(8, 5, 0.004, 13, time_major=True),
    # Sums and cell states that saturate.
    "lstm_coarse": lstm(10, 7, 0.05, 15),
    "lstm_clip": lstm(7, 6, 0.01, 9, clip=1.7),
    "lstm_cell_14": lstm(6, 4, 0.004, 14),
    "lstm_cell_11": lstm(5, 4, 0.004, 11),
    "lstm_cell_10": lstm(4, 4, 0.004, 10),
    "reshape": Case("RESHAPE", (t(_MAP), ints(1, 120)), (t((1, 120)),)),
    "pad": Case("PAD", (t(_MAP), T("INT32", (4, 2), np.array([[0, 0], [1, 2], [0, 1], [0, 0]]))),
                (t((1, 7, 7, 5)),)),
    "pad_constant": Case(
        "PADV2", (t(_MAP), T("INT32", (4, 2), np.array([[0, 0], [1, 2], [0, 1], [0, 0]])),
                  T("INT8", (), np.array(100), (0.05,), -3)), (t((1, 7, 7, 5)),)),
    "expand": Case("EXPAND_DIMS", (t(_MAP), T("INT32", (), np.array(2))), (t((1, 4, 1, 6, 5)),)),
    "squeeze": Case("SQUEEZE", (t((1, 4, 1, 5)),), (t((1, 4, 5)),), {"squeezeDims": [2]}),
    "minimum": Case("MINIMUM", (t(_MAP), t(_MAP)), (t(_MAP),)),
    "part": Case("SLICE", (t(_MAP), ints(0, 1, 0, 2), ints(1, 2, -1, 3)), (t((1, 2, 6, 3)),)),
    "transpose": Case("TRANSPOSE", (t(_MAP), ints(0, 3, 1, 2)), (t((1, 5, 4, 6)),)),
    "concatenate": Case("CONCATENATION", (t(_MAP), t(_MAP)), (t((1, 4, 6, 10)),), {"axis": 3}),
    "pack": Case("PACK", (t(_MAP), t(_MAP)), (t((1, 2, 4, 6, 5)),), {"axis": 1, "valuesCount": 2}),
    "unpack": Case("UNPACK", (t((1, 2, 6)),), (t((1, 6)), t((1, 6))), {"axis": 1, "num": 2}),
    "split": Case("SPLIT", (T("INT32", (), np.array(3)), t((1, 2, 6, 4))),
                  (t((1, 2, 6, 2)), t((1, 2, 6, 2))), {"numSplits": 2}),
    "gather": Case("GATHER", (T("INT8", (9, 4), np.arange(36).reshape(9, 4), (0.05,), -3),
                              T("INT32", (1, 7))), (t((1, 7, 4)),)),
    "select": Case("SELECT_V2", (T("BOOL", (1, 4, 6), np.tri(4, 6, dtype=bool)[None]),
                                 t((1, 4, 6)), T("INT8", (), np.array(-128), (0.05,), -3)),
                   (t((1, 4, 6)),)),
    "cast": Case("CAST", (t((1, 60)),), (T("INT32", (1, 60)),)),
    "add_int32": Case("ADD", (T("INT32", (1, 60)), ints(128)), (T("INT32", (1, 60)),)),
    "sum": Case("SUM", (t(_MAP), ints(1, 2)), (t((1, 5), 0.4, 9),)),
    "sum_kept": Case("SUM", (t((1, 9, 12)), ints(2)), (t((1, 9, 1), 0.11, -90),),
                     {"keepDims": True}),
    "nearest": Case("RESIZE_NEAREST_NEIGHBOR", (t(_MAP), ints(8, 9)), (t((1, 8, 9, 5)),)),
    "nearest_half": Case("RESIZE_NEAREST_NEIGHBOR", (t(_MAP), ints(9, 15)), (t((1, 9, 15, 5)),),
                         {"halfPixelCenters": True}),
    "bilinear": Case("RESIZE_BILINEAR", (t(_MAP), ints(9, 8)), (t((1, 9, 8, 5)),)),
    "bilinear_half": Case("RESIZE_BILINEAR", (t(_MAP), ints(9, 15)), (t((1, 9, 15, 5)),),
                          {"halfPixelCenters": True}),
    "bilinear_smaller": Case("RESIZE_BILINEAR", (t(_MAP), ints(3, 4)), (t((1, 3, 4, 5)),),
                             {"halfPixelCenters": True}),
    "bilinear_corners": Case("RESIZE_BILINEAR", (t(_MAP), ints(9, 15)), (t((1, 9, 15, 5)),),
                             {"alignCorners": True}),
    "flip": Case("GATHER", (t((1, 5, 6)), ints(4, 3, 2, 1, 0)), (t((1, 5, 6)),), {"axis": 1}),
    "slice": Case("STRIDED_SLICE", (t(_MAP), ints(0, 1, 0, 0), ints(1, 4, 6, 5), ints(1, 2, 1, 1)),
                  (t((1, 2, 6, 5)),), {"beginMask": 4, "endMask": 8}),
}  # fmt: skip


@pytest.mark.parametrize("inputs", [60, 61, 62, 63])
def test_int2_matrices_are_computed_bit_for_bit(inputs: int) -> None:
    """XNNPACK takes those of 4 inputs in a byte; TensorFlow Lite Micro none."""
    data = narrow(dense(inputs, 24, per_channel=True), "INT2").data()
    flat = read_tflite(data)
    arrays = samples(flat, 200)
    expected = run_engine("litert", data, arrays).outputs[0]
    np.testing.assert_array_equal(run(flat, "litert", arrays)[0][0], expected)


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("conv_int4", 7),
        ("dense_int4_odd", 10),
        ("depthwise_int4", 0),
        ("depthwise_int4_blocks", 16),
    ],
)
def test_halves_are_rounded_up_in_the_vector_code_of_litert(name: str, whole: int) -> None:
    flat = read_tflite(EXACT[name].data())
    inputs = samples(flat, 200)
    first, second = (run(flat, engine, inputs)[0][0].astype(int) for engine in KERNELS)
    differ = first != second
    np.testing.assert_array_equal(first - second, differ)
    assert differ[..., :whole].any() == (whole > 0)
    assert not differ[..., whole:].any()
    # Above zero, both round halves up.
    assert not differ[first > flat.tensors[flat.outputs[0]].zero_points[0]].any()


def samples(flat, count=SAMPLES):
    """Random values over the whole range of each input."""
    random = np.random.default_rng(0)
    arrays = []
    for index in flat.inputs:
        shape = flat.tensors[index].shape
        shape = shape[1:] if shape[0] == 1 else shape
        if flat.tensors[index].type == "INT32":
            arrays.append(random.integers(0, 9, (count, *shape)).astype(np.int32))
        elif flat.tensors[index].type == "FLOAT32":
            arrays.append(random.normal(0, 3, (count, *shape)).astype(np.float32))
        else:
            arrays.append(random.integers(-128, 128, (count, *shape)).astype(np.int8))
    return arrays


@pytest.mark.parametrize("name", EXACT)
def test_an_operator_is_computed_bit_for_bit(name: str) -> None:
    data = EXACT[name].data()
    flat = read_tflite(data)
    inputs = samples(flat)
    for engine in KERNELS:
        if EXACT[name].operator not in KERNELS[engine]:
            continue
        real = run_engine(engine, data, inputs)
        found, _ = run(flat, engine, inputs)
        for own, expected in zip(found, real.outputs, strict=True):
            assert own.dtype == expected.dtype
            np.testing.assert_array_equal(own, expected, engine)
            assert len(np.unique(own)) > 1, "the case shows nothing"


@pytest.mark.parametrize("name", ["conv", "depthwise", "add", "multiply", "mean", "leaky_relu"])
def test_the_arithmetic_of_the_other_engine_differs(name: str) -> None:
    """By a step, in some values: the comparison above can fail."""
    flat = read_tflite(EXACT[name].data())
    inputs = samples(flat, 200)
    outputs = [run(flat, engine, inputs)[0][0].astype(int) for engine in KERNELS]
    steps = np.abs(outputs[0] - outputs[1])
    assert steps.max() == 1
    assert (steps > 0).mean() < 0.2


def test_every_kernel_has_a_case() -> None:
    tested = {case.operator for case in EXACT.values()}
    assert set().union(*KERNELS.values()) == tested
    # TensorFlow Lite Micro has no such kernel.
    assert set(KERNELS["litert"]) - set(KERNELS["tflm"]) == {"GELU"}


def simulation(case, engine="tflm"):
    return EngineSimulation(Artifact("int8", case.data(), "one operator"), engine)


def test_an_unknown_operator_is_named_before_anything_runs() -> None:
    with pytest.raises(UnsupportedModelError, match=r"LOG \(operator 0, 't1'\).*litert"):
        simulation(unary("LOG", 0.05, -128), "litert")


@pytest.mark.parametrize(
    ("case", "engine", "reason"),
    [
        (unary("LEAKY_RELU", 0.05, 0, alpha=-0.1), "tflm", "slope"),
        (Case("TRANSPOSE", (t(_MAP), ints(0, 3, 3, 1)), (t((1, 5, 5, 4)),)), "tflm", "do not fit"),
        (Case("RESHAPE", (t(_MAP), ints(1, 99)), (t((1, 99)),)), "litert", "do not fit"),
        (Case("ADD", (T("INT16", (1, 4)),) * 2, (T("INT16", (1, 4)),)), "tflm", "INT16"),
        (unary("LOGISTIC", 0.05, 0, (0.01, -128)), "tflm", "1/256"),
        (unary("HARD_SWISH", 0.0006, 0, (0.4, 0)), "tflm", "ratio"),
        (unary("RELU6", 0.05, 0, (0.06, 0)), "tflm", "different scales"),
        (lstm(4, 3, 0.01, 8), "tflm", "cell state"),
        (lstm(4, 3, 0.01, 12, fusedActivationFunction=1), "tflm", "not tanh"),
        (lstm(4, 3, 0.01, 12, replaced={9: T("INT16", (3,), np.ones(3))}), "tflm", "input 9"),
        (lstm(4, 3, 0.01, 12, replaced={1: None}), "litert", "no input 1"),
        (lstm(4, 3, 0.01, 12, replaced={2: T("INT16", (3, 4), np.ones((3, 4)))}), "tflm",
         "its weights"),
        (lstm(4, 3, 0.01, 12, replaced={18: T("INT8", (1, 3), None, (0.007,), 0, 0, True)}),
         "tflm", "different scales"),
        (lstm(4, 3, 0.01, 12, replaced={18: T("INT8", (1, 3), np.ones(3), (0.0063,), -17)}),
         "tflm", "variables"),
    ],
)  # fmt: skip
def test_a_form_that_is_not_known_is_refused(case, engine, reason) -> None:
    simulated = simulation(case, engine)
    shape = simulated.artifact.flat.tensors[0].shape
    inputs = [np.zeros(shape, np.int16 if "INT16" in reason else np.int8)]
    with pytest.raises(UnsupportedModelError, match=reason):
        simulated.codes(inputs * len(simulated.artifact.flat.inputs))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ArgumentError, match="'litert' or 'tflm'. Got 'lce'"):
        simulation(EXACT["relu"], "lce")
    simulated = simulation(EXACT["add"])
    one = np.zeros((2, 5, 4, 6), np.int8)
    for wrong in ([one], [one, one[:1]], [one, one[..., :5]]):
        with pytest.raises(ArgumentError, match="inputs"):
            simulated.codes(wrong)
