"""Functions of one value, as tables of the 256 codes, and softmax."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from edgecompress.core import fixed_point
from edgecompress.core.fixed_point import (
    exp_of_negative,
    high_product,
    input_radius,
    multiply,
    quantize_multiplier,
    shift_right,
)
from edgecompress.simulation.kernels import (
    LITERT,
    TFLM,
    Call,
    NotSimulated,
    kernel,
    scale,
    zero_point,
)

_CODES = np.arange(-128, 128)


def _looked_up(call: Call, table: np.ndarray) -> np.ndarray:
    """Returns the table's entry of every code."""
    return call.clamp(table[call.value(0).astype(np.int64) + 128])


def _float_table(call: Call, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """XNNPACK's table: the function of the real value in float32, halves rounded to even."""
    call.require_int8(call.tensor(0), call.output)
    real = (_CODES - zero_point(call.tensor(0))).astype(np.float32) * scale(call.tensor(0))
    inverse = np.float32(1) / scale(call.output)
    steps = function(real).astype(np.float32) * inverse + np.float32(zero_point(call.output))
    return np.clip(np.rint(steps), -128, 127).astype(np.int64)


@kernel("LOGISTIC", engines=(LITERT,))
def litert_logistic(call: Call) -> np.ndarray:
    """XNNPACK's sigmoid, computed in float64."""

    def sigmoid(real: np.ndarray) -> np.ndarray:
        exponential = np.exp(np.clip(real.astype(np.float64), -100, 100))
        result: np.ndarray = exponential / (1 + exponential)
        return result

    return _looked_up(call, _float_table(call, sigmoid))


@kernel("TANH", engines=(LITERT,))
def litert_tanh(call: Call) -> np.ndarray:
    """XNNPACK's tanh; float32 there, whose last bit may decide a tie: one step, rarely."""
    return _looked_up(call, _float_table(call, lambda real: np.tanh(real.astype(np.float64))))


def _fixed_table(
    call: Call, function: Callable[[np.ndarray], np.ndarray], bits: int, offset: int
) -> np.ndarray:
    """TensorFlow Lite Micro's sigmoid and tanh: fixed point, the input in Q4.27.

    Args:
        call: The operator.
        function: From Q4.27 to Q0.31.
        bits: Fraction bits of the output.
        offset: Zero point of the output.
    """
    call.require_int8(call.tensor(0), call.output)
    if (float(scale(call.output)), zero_point(call.output)) != (2.0**-bits, offset):
        raise NotSimulated(
            f"its output does not have the scale 1/{2**bits} that the kernel assumes"
        )
    multiplier, shift = quantize_multiplier(float(scale(call.tensor(0))) * 2**27)
    radius = input_radius(4, shift) if shift >= 0 else 256
    values = _CODES.astype(np.int64) - zero_point(call.tensor(0))
    inside = np.abs(values) < radius
    raw = function(multiply(np.where(inside, values, 0), multiplier, shift))
    codes = np.clip(shift_right(raw, 31 - bits) + offset, -128, 127)
    return np.where(inside, codes, np.where(values < 0, -128, 127))


@kernel("LOGISTIC", engines=(TFLM,))
def tflm_logistic(call: Call) -> np.ndarray:
    """TensorFlow Lite Micro's sigmoid."""
    return _looked_up(call, _fixed_table(call, fixed_point.logistic, 8, -128))


@kernel("TANH", engines=(TFLM,))
def tflm_tanh(call: Call) -> np.ndarray:
    """TensorFlow Lite Micro's tanh."""
    return _looked_up(call, _fixed_table(call, fixed_point.tanh, 7, 0))


def _int16(values: np.ndarray) -> np.ndarray:
    return np.clip(values, -(2**15), 2**15 - 1)


@kernel("HARD_SWISH")
def hard_swish(call: Call) -> np.ndarray:
    """x * relu6(x + 3) / 6 in 16-bit fixed point, in both engines."""
    call.require_int8(call.tensor(0), call.output)
    source, target = call.precise_scale(call.tensor(0)), call.precise_scale(call.output)
    # Division by a power of two is exact in either type.
    multiplier, shift = _halved(float(source / target) / 128)
    gate_multiplier, gate_shift = _halved(float(source / np.float32(3)) * 256)
    if shift > 0 or min(shift, gate_shift) < -15:
        # Shifts of 16 and more leave the kernel's 16 bits.
        raise NotSimulated("the ratio of its scales is outside what the kernel is made for")
    values = (_CODES.astype(np.int64) - zero_point(call.tensor(0))) << 7
    # The gate, relu6(x + 3) / 6, on a grid where 2^15 stands for 3; the last left shift saturates.
    gate = _int16(values << max(gate_shift - 1, 0))
    gate = high_product(gate, gate_multiplier, 15)
    gate = _int16(gate << 1) if gate_shift > 0 else shift_right(gate, -gate_shift)
    gate = (gate + 2**15) >> 1
    product = gate * high_product(values, multiplier, 15)
    # Rounded towards zero here, to cancel the bias of the roundings before.
    steps = np.sign(product) * (np.abs(product) >> 15)
    return _looked_up(call, shift_right(steps, -shift) + zero_point(call.output))


def _halved(factor: float) -> tuple[int, int]:
    """Returns a factor as a 16-bit multiplier and a shift."""
    multiplier, shift = quantize_multiplier(factor)
    return min((multiplier + 2**15) >> 16, 2**15 - 1), shift


@kernel("RSQRT")
def inverse_root(call: Call) -> np.ndarray:
    """1 / sqrt(x) in fixed point, in both engines; 0 gives the largest code."""
    call.require_int8(call.tensor(0), call.output)
    if (call.value(0) < zero_point(call.tensor(0))).any():
        raise NotSimulated("its input is negative, which the kernel refuses")
    values = np.maximum(_CODES.astype(np.int64) - zero_point(call.tensor(0)), 1)
    root, shift = fixed_point.inverse_square_root(values)
    fine = multiply(np.ones_like(values), root, shift + 20)
    root_scale = np.sqrt(call.precise_scale(call.tensor(0)))
    factor = 1 / float(root_scale * call.precise_scale(call.output))
    multiplier, factor_shift = quantize_multiplier(factor)
    codes = multiply(fine, multiplier, factor_shift - 20) + zero_point(call.output)
    return _looked_up(call, np.where(zero_point(call.tensor(0)) == _CODES, 127, codes))


@kernel("GELU", engines=(LITERT,))
def litert_gelu(call: Call) -> np.ndarray:
    """LiteRT's own GELU: a table of the function in float32, halves rounded away from zero."""
    call.require_int8(call.tensor(0), call.output)
    real = scale(call.tensor(0)) * (_CODES - zero_point(call.tensor(0))).astype(np.float32)
    if call.option("approximate"):
        inner = np.sqrt(2 / np.pi) * (real + 0.044715 * real.astype(np.float64) ** 3)
        gate = 1 + np.tanh(inner)
    else:
        gate = 1 + np.array([math.erf(value / math.sqrt(2)) for value in real.tolist()])
    steps = (0.5 * real * gate).astype(np.float32) * (np.float32(1) / scale(call.output))
    rounded = np.trunc(steps.astype(np.float64) + np.copysign(0.5, steps))
    return _looked_up(call, rounded.astype(np.int64) + zero_point(call.output))


def _softmax(call: Call) -> tuple[np.ndarray, float]:
    """Returns how far each code is below the largest of its row, and beta."""
    call.require_int8(call.tensor(0), call.output)
    if (float(scale(call.output)), zero_point(call.output)) != (2.0**-8, -128):
        raise NotSimulated("its output does not have the scale 1/256 that the kernel assumes")
    values = call.value(0).astype(np.int64)
    return values.max(-1, keepdims=True) - values, float(call.operator.options["beta"])


@kernel("SOFTMAX", engines=(LITERT,))
def litert_softmax(call: Call) -> np.ndarray:
    """LiteRT's own softmax: a float32 table of exp, summed in order (on x86-64)."""
    below, beta = _softmax(call)
    factor = -scale(call.tensor(0)) * np.float32(beta)
    # expf rounds correctly in nearly all cases; numpy's float32 exp does not.
    table = np.exp((factor * np.arange(256, dtype=np.float32)).astype(np.float64))
    terms = table.astype(np.float32)[below]
    total = np.add.accumulate(terms, -1)[..., -1:]
    inverse = np.float32(1) / (total * scale(call.output))
    steps = (terms * inverse).astype(np.float64)
    return call.clamp(np.floor(steps + 0.5).astype(np.int64) - 128)


@kernel("SOFTMAX", engines=(TFLM,))
def tflm_softmax(call: Call) -> np.ndarray:
    """TensorFlow Lite Micro's softmax: exp in Q0.31, the sum in Q12.19."""
    below, beta = _softmax(call)
    factor = min(beta * float(scale(call.tensor(0))) * 2**26, 2.0**31 - 1)
    multiplier, shift = quantize_multiplier(factor)
    radius = input_radius(5, shift)
    steps = np.arange(256, dtype=np.int64)
    inside = steps <= radius
    scaled = high_product(np.where(inside, -steps, 0) << shift, multiplier)
    exponentials = np.where(inside, exp_of_negative(scaled, 5), 0)
    total = shift_right(exponentials, 12)[below].sum(-1, keepdims=True)
    inverse, bits = fixed_point.reciprocal(total, 12)
    shares = shift_right(high_product(exponentials[below], inverse), bits + 31 - 8)
    return call.clamp(np.where(inside[below], shares, 0) - 128)
