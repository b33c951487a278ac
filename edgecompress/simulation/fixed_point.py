"""The fixed-point arithmetic of TensorFlow Lite's reference kernels, on numpy arrays of integers.

A number in Qm.n format is an int32 whose real value is raw / 2^n, with m + n = 31. All functions
take and return int64 arrays that hold int32 values, so that products do not overflow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_INT32_MAX = 2**31 - 1
_INT32_MIN = -(2**31)
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


def shift_left(values: np.ndarray, shift: int) -> np.ndarray:
    """Returns values * 2^shift, saturated to int32."""
    return np.clip(values << shift, _INT32_MIN, _INT32_MAX)


def multiply(
    values: np.ndarray, multiplier: np.ndarray | int, shift: np.ndarray | int
) -> np.ndarray:
    """Returns values * multiplier * 2^(shift - 31), rounded twice.

    First the product is rounded to 31 bits (halves up), then shifted right (halves away from zero);
    a positive shift comes before the product. This is what TensorFlow Lite's kernels compute unless
    they are built with TFLITE_SINGLE_ROUNDING.
    """
    left = np.maximum(shift, 0)
    right = np.maximum(-np.asarray(shift), 0)
    return shift_right(high_product(wrap(values << left), multiplier), right)


def exp_of_negative(values: np.ndarray, integer_bits: int) -> np.ndarray:
    """Returns exp(x) in Q0.31 of x <= 0.

    Args:
        values: x in Q`integer_bits`, at most 5 integer bits.
        integer_bits: Integer bits of x.
    """
    fraction_bits = 31 - integer_bits
    quarter = 1 << (fraction_bits - 2)
    # x = r - k / 4 with r in [-1/4, 0): a polynomial of r, then one factor for each bit of k.
    rest = (values & (quarter - 1)) - quarter
    x = shift_left(rest, integer_bits) + (1 << 28)
    x2 = high_product(x, x)
    x3, x4 = high_product(x2, x), high_product(x2, x2)
    cubic = high_product(shift_right(x4, 2) + x3, _THIRD) + x2
    series = x + shift_right(cubic, 1)
    result = _EXP_OF_MINUS_1_8 + high_product(series, _EXP_OF_MINUS_1_8)
    quarters = rest - values
    for exponent, factor in _EXPONENTIALS.items():
        if integer_bits > exponent:
            bit = 1 << (fraction_bits + exponent)
            result = np.where(quarters & bit, high_product(result, factor), result)
    return np.where(values == 0, _INT32_MAX, result)


def _inverse_of_half_sum(values: np.ndarray) -> np.ndarray:
    """Returns 2 / (1 + x) in Q2.29 of x in [0, 1], Q0.31: three steps of Newton's division."""
    half_sum = (values + 2**31) >> 1
    x = _GUESS + high_product(half_sum, _SLOPE)
    for _ in range(3):
        error = (1 << 29) - high_product(half_sum, x)
        x = x + shift_left(high_product(x, error), 2)
    return x


def one_over_one_plus(values: np.ndarray) -> np.ndarray:
    """Returns 1 / (1 + x) in Q0.31 of x in [0, 1], Q0.31."""
    return shift_left(_inverse_of_half_sum(values), 1)


def logistic(values: np.ndarray) -> np.ndarray:
    """Returns 1 / (1 + exp(-x)) in Q0.31 of x in Q4.27."""
    positive = one_over_one_plus(exp_of_negative(-np.abs(values), 4))
    result = np.where(values > 0, positive, _INT32_MAX - positive)
    return np.where(values == 0, 1 << 30, result)


def tanh(values: np.ndarray) -> np.ndarray:
    """Returns tanh(x) in Q0.31 of x in Q4.27."""
    # (1 - e) / (1 + e) = 2 / (1 + e) - 1 of e = exp(-2 |x|): the same bits are -2 |x| in Q5.26.
    inverse = _inverse_of_half_sum(exp_of_negative(-np.abs(values), 5))
    result = shift_left(inverse - (1 << 29), 2)
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
