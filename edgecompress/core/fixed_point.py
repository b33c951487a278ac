"""The fixed-point arithmetic of TensorFlow Lite's reference kernels, on numpy arrays of integers.

A number in Qm.n format is an int32 whose real value is raw / 2^n, with m + n = 31, or an int16 with
m + n = 15. All functions take and return int64 arrays that hold such values, so that products do
not overflow. `bits` is the sum m + n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_INT32_MAX = 2**31 - 1
_INT32_MIN = -(2**31)
# In 31 bits; 15 bits have the same constants, rounded.
# exp(-2^k) in Q0.31 for k = -2 ... 4.
_EXPONENTIALS = {
    -2: 1672461947, -1: 1302514674, 0: 790015084, 1: 290630308, 2: 39332535, 3: 720401, 4: 242
}  # fmt: skip
_EXP_OF_MINUS_1_8 = 1895147668  # exp(-1/8) in Q0.31
_THIRD = 715827883  # 1/3 in Q0.31
_HALF_ROOT_OF_2 = 1518500250  # sqrt(2)/2 in Q0.31
# First guess of Newton's division: 48/17 - 32/17 d, in Q2.29.
_GUESS, _SLOPE = 1515870810, -1010580540


def quantize_multiplier(factor: float) -> tuple[int, int]:
    """Returns a positive factor as (multiplier, shift): factor = multiplier * 2^(shift - 31).

    The multiplier has 31 bits, halves rounded away from zero; factors below 2^-32 become 0.

    Example:
        >>> quantize_multiplier(0.75)
        (1610612736, 0)
    """
    fraction, shift = math.frexp(factor)
    multiplier = math.floor(fraction * 2**31 + 0.5)
    if multiplier == 2**31:
        multiplier, shift = multiplier // 2, shift + 1
    return (0, 0) if shift < -31 else (multiplier, shift)


def quantize_multipliers(factors: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Returns multipliers and shifts of several factors, as int64 arrays."""
    pairs = [quantize_multiplier(float(factor)) for factor in factors]
    multipliers, shifts = zip(*pairs, strict=True)
    return np.array(multipliers, np.int64), np.array(shifts, np.int64)


def wrap(values: np.ndarray) -> np.ndarray:
    """Returns integers modulo 2^32 in the range of int32, as an int32 register holds them."""
    return values.astype(np.int64).astype(np.int32).astype(np.int64)


def high_product(a: np.ndarray, b: np.ndarray | int, bits: int = 31) -> np.ndarray:
    """Returns a * b / 2^bits, halves rounded up; -1 * -1 saturates."""
    product = (a * b + (1 << (bits - 1))) >> bits
    return np.minimum(product, (1 << bits) - 1)


def shift_right(values: np.ndarray, shift: np.ndarray | int) -> np.ndarray:
    """Returns values / 2^shift, halves rounded away from zero; shift is 0 or more."""
    mask = (1 << np.asarray(shift, np.int64)) - 1
    threshold = (mask >> 1) + (values < 0)
    return (values >> shift) + ((values & mask) > threshold)


def shift_right_up(values: np.ndarray, shift: np.ndarray | int) -> np.ndarray:
    """Returns values / 2^shift, halves rounded up; shift is 0 or more."""
    half = (1 << np.asarray(shift, np.int64)) >> 1
    rounded: np.ndarray = (values + half) >> shift
    return rounded


def rounds_up(operator: str, channels: int) -> np.ndarray:
    """Returns whether LiteRT's own kernel of a filter rounds halves up, by output channel.

    Its vector code does, on x86-64: matrix products and convolutions (Ruy) use it throughout,
    depthwise convolutions for 8 channels at a time, and plain code for the rest, which rounds
    halves away from zero.

    Args:
        operator: `CONV_2D`, `DEPTHWISE_CONV_2D` or `FULLY_CONNECTED`.
        channels: Output channels.
    """
    whole = channels - channels % 8 if operator == "DEPTHWISE_CONV_2D" else channels
    return np.arange(channels) < whole


def shift_left(values: np.ndarray, shift: int, bits: int = 31) -> np.ndarray:
    """Returns values * 2^shift, saturated."""
    return np.clip(values << shift, -(1 << bits), (1 << bits) - 1)


def _constant(value: int, bits: int) -> int:
    """Returns a constant of 31 bits in fewer: halves away from zero."""
    return int(shift_right(np.array(value), 31 - bits))


def multiply(
    values: np.ndarray,
    multiplier: np.ndarray | int,
    shift: np.ndarray | int,
    up: bool | np.ndarray = False,
) -> np.ndarray:
    """Returns values * multiplier * 2^(shift - 31), rounded twice.

    First the product is rounded to 31 bits (halves up), then shifted right (halves away from zero);
    a positive shift comes before the product. This is what TensorFlow Lite's kernels compute unless
    they are built with TFLITE_SINGLE_ROUNDING.

    Args:
        values: Integers.
        multiplier: Factors of 31 bits.
        shift: Powers of two.
        up: Where halves of the shift are rounded up instead, as LiteRT's vector code on x86-64
            does.
    """
    left = np.maximum(shift, 0)
    right = np.maximum(-np.asarray(shift), 0)
    product = high_product(wrap(values << left), multiplier)
    plain = shift_right(product, right)
    return np.where(up, shift_right_up(product, right), plain) if np.any(up) else plain


def exp_of_negative(values: np.ndarray, integer_bits: int, bits: int = 31) -> np.ndarray:
    """Returns exp(x) in Q0.`bits` of x <= 0.

    Args:
        values: x in Q`integer_bits`; in 31 bits, at most 5 of them.
        integer_bits: Integer bits of x.
        bits: Of x and the result, 31 or 15. Defaults to 31.
    """
    fraction_bits = bits - integer_bits
    quarter = 1 << (fraction_bits - 2)
    largest = (1 << bits) - 1
    # x = r - k / 4 with r in [-1/4, 0): a polynomial of r, then one factor for each bit of k.
    rest = (values & (quarter - 1)) - quarter
    x = shift_left(rest, integer_bits, bits) + (1 << (bits - 3))
    x2 = high_product(x, x, bits)
    x3, x4 = high_product(x2, x, bits), high_product(x2, x2, bits)
    cubic = high_product(shift_right(x4, 2) + x3, _constant(_THIRD, bits), bits) + x2
    series, start = x + shift_right(cubic, 1), _constant(_EXP_OF_MINUS_1_8, bits)
    result = np.minimum(start + high_product(series, start, bits), largest)
    quarters = rest - values
    for exponent, factor in _EXPONENTIALS.items():
        if integer_bits > exponent:
            bit = 1 << (fraction_bits + exponent)
            product = high_product(result, _constant(factor, bits), bits)
            result = np.where(quarters & bit, product, result)
    if integer_bits > 5:
        # The bits of k end at 16.
        result = np.where(values < -(32 << fraction_bits), 0, result)
    return np.where(values == 0, largest, result)


def _inverse_of_half_sum(values: np.ndarray, bits: int = 31) -> np.ndarray:
    """Returns 2 / (1 + x) in Q2 of x in [0, 1], Q0: three steps of Newton's division."""
    half_sum = (values + (1 << bits)) >> 1
    x = _constant(_GUESS, bits) + high_product(half_sum, _constant(_SLOPE, bits), bits)
    for _ in range(3):
        error = (1 << (bits - 2)) - high_product(half_sum, x, bits)
        x = x + shift_left(high_product(x, error, bits), 2, bits)
    return x


def one_over_one_plus(values: np.ndarray, bits: int = 31) -> np.ndarray:
    """Returns 1 / (1 + x) in Q0 of x in [0, 1], Q0."""
    return shift_left(_inverse_of_half_sum(values, bits), 1, bits)


def logistic(values: np.ndarray, integer_bits: int = 4, bits: int = 31) -> np.ndarray:
    """Returns 1 / (1 + exp(-x)) in Q0.`bits` of x in Q`integer_bits`."""
    positive = one_over_one_plus(exp_of_negative(-np.abs(values), integer_bits, bits), bits)
    result = np.where(values > 0, positive, (1 << bits) - 1 - positive)
    return np.where(values == 0, 1 << (bits - 1), result)


def tanh(values: np.ndarray, integer_bits: int = 4, bits: int = 31) -> np.ndarray:
    """Returns tanh(x) in Q0.`bits` of x in Q`integer_bits`."""
    # (1 - e) / (1 + e) = 2 / (1 + e) - 1 of e = exp(-2 |x|): the same bits are -2 |x| with one more
    # integer bit.
    exponential = exp_of_negative(-np.abs(values), integer_bits + 1, bits)
    one = 1 << (bits - 2)
    result = shift_left(_inverse_of_half_sum(exponential, bits) - one, 2, bits)
    return np.where(values == 0, 0, np.where(values < 0, -result, result))


def reciprocal(values: np.ndarray, integer_bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (r, bits): 1 / x = r / 2^31 / 2^bits of positive x in Q`integer_bits`."""
    leading_zeros = 32 - np.frexp(values.astype(np.float64))[1].astype(np.int64)
    fraction = (values << leading_zeros) - 2**31
    return one_over_one_plus(fraction), integer_bits - leading_zeros


def inverse_square_root(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (r, shift): 1 / sqrt(x) = r * 2^(shift - 31) of integers x of 1 or more.

    Five steps of Newton's method in Q3.28, from 1.
    """
    bits = np.frexp(values.astype(np.float64))[1].astype(np.int64)
    pairs = (31 - bits) // 2 - 1
    number = (values << (2 * pairs)) >> 1
    half = shift_right(number, 1)
    x = np.full_like(values, 1 << 28)
    for _ in range(5):
        cube = shift_left(high_product(high_product(x, x), x), 6)
        x = shift_left(high_product(x, 3 << 27) - high_product(half, cube), 3)
    x = high_product(x, _HALF_ROOT_OF_2)
    shift = pairs - 11
    # 1 itself would overflow.
    one = values <= 1
    found = np.where(one, _INT32_MAX, x << np.maximum(shift, 0))
    return found, np.where(one, 0, np.minimum(shift, 0))


def input_radius(integer_bits: int, shift: int) -> int:
    """Returns the largest |input| that does not leave Q`integer_bits` when shifted left."""
    return math.floor((2**integer_bits - 1) * 2 ** (31 - integer_bits) / 2**shift)
