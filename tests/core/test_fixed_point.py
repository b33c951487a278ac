"""Fixed-point functions against the functions they approximate, and rounding against fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from edgecompress.core import fixed_point as fp


def test_multipliers_have_31_bits_and_stand_for_their_factor() -> None:
    for factor in (1.0, 0.5, 0.75, 1 / 3, 1e-7, 123.456, 1 - 2**-40):
        multiplier, shift = fp.quantize_multiplier(factor)
        assert 2**30 <= multiplier < 2**31
        assert multiplier * 2.0 ** (shift - 31) == pytest.approx(factor, rel=2**-31)
    # Rounding carries into the next power of two.
    assert fp.quantize_multiplier(1 - 2**-40) == (2**30, 1)
    assert fp.quantize_multiplier(2.0**-40) == (0, 0)


def test_products_are_rounded_twice() -> None:
    values = np.arange(-3000, 3000, dtype=np.int64)
    multiplier, shift = fp.quantize_multiplier(0.0123)
    expected = []
    for value in values.tolist():
        # The product rounds halves up, the shift rounds halves away from zero.
        high = math.floor(Fraction(value * multiplier, 2**31) + Fraction(1, 2))
        part = Fraction(high, 2**-shift)
        expected.append(int(math.copysign(math.floor(abs(part) + Fraction(1, 2)), part)))
    assert fp.multiply(values, multiplier, shift).tolist() == expected
    once = [
        math.floor(Fraction(v * multiplier, 2 ** (31 - shift)) + Fraction(1, 2)) for v in values
    ]
    assert once != expected


def test_the_result_of_minus_one_times_minus_one_saturates() -> None:
    least = np.array([-(2**31)])
    assert fp.high_product(least, -(2**31)).tolist() == [2**31 - 1]
    assert fp.wrap(np.array([2**31, -(2**31) - 1])).tolist() == [-(2**31), 2**31 - 1]


@pytest.mark.parametrize("integer_bits", [4, 5])
def test_exp(integer_bits: int) -> None:
    real = -np.linspace(0, 2**integer_bits - 0.01, 999)
    raw = np.rint(real * 2.0 ** (31 - integer_bits)).astype(np.int64)
    found = fp.exp_of_negative(raw, integer_bits) / 2**31
    assert np.abs(found - np.exp(real)).max() < 2**-22
    assert np.abs(found - np.exp(real * 1.001)).max() > 2**-13


@pytest.mark.parametrize(
    ("function", "truth"),
    [(fp.logistic, lambda x: 1 / (1 + np.exp(-x))), (fp.tanh, np.tanh)],
)
def test_sigmoid_and_tanh(function, truth) -> None:
    real = np.linspace(-15, 15, 1001)
    raw = np.rint(real * 2**27).astype(np.int64)
    assert np.abs(function(raw) / 2**31 - truth(real)).max() < 2**-22


def test_reciprocal() -> None:
    real = np.array([1.0, 1.25, 3.0, 10.7, 500.0, 4000.0])
    share, bits = fp.reciprocal(np.rint(real * 2**19).astype(np.int64), 12)
    assert share / 2**31 / 2.0**bits == pytest.approx(1 / real, rel=1e-6)


@pytest.mark.parametrize("integer_bits", [3, 5, 7])
def test_exp_in_16_bits(integer_bits: int) -> None:
    raw = -np.arange(2**15, dtype=np.int64)
    found = fp.exp_of_negative(raw, integer_bits, 15) / 2**15
    truth = np.exp(raw / 2 ** (15 - integer_bits))
    assert np.abs(found - truth).max() < 2**-12
    assert np.abs(found - truth**1.01).max() > 2**-9
