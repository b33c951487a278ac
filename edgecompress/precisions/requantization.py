"""How engines turn sums and products of integers into steps of an int8 output.

Both engines compute the same sums; they differ in how they scale them. XNNPACK (LiteRT) multiplies
in float32, TensorFlow Lite Micro by integers of 31 bits, which round twice. Pure functions over
keras.ops; the same arithmetic over numpy, for whole files, is in `edgecompress.simulation`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from edgecompress.core.fixed_point import rounds_up

_HALF_ROOT_OF_2 = 1518500250  # sqrt(2)/2 in Q0.31
# Bits by which TensorFlow Lite Micro shifts the terms of a sum left, to keep them precise.
_HEADROOM = 20


class Requantization(NamedTuple):
    """The arithmetic of an engine; all results are steps of the output that may exceed its codes.

    Attributes:
        engine: The engine's name.
        scaled: (sums, bias or None, input scale, weight scales, output scale) -> steps.
        added: (steps of a, steps of b, their scales, output scale) -> steps of a + b.
        multiplied: (steps of a, steps of b, their scales, output scale) -> steps of a * b.
        matrices: (sums of products, grids of the matrices, output scale) -> steps.
        averaged: (sums of steps, their count, input grid, output grid) -> steps.
        leaky: (steps, slope, input scale, output scale) -> steps of leaky ReLU.
    """

    engine: str
    scaled: Callable[[Any, Any, Any, Any, Any], Any]
    added: Callable[[Any, Any, tuple[Any, Any], Any], Any]
    multiplied: Callable[[Any, Any, tuple[Any, Any], Any], Any]
    matrices: Callable[[Any, Any, Any], Any]
    averaged: Callable[[Any, int, Any, Any], Any]
    leaky: Callable[[Any, float, Any, Any], Any]


def _scaled_in_float(sums: Any, bias: Any, source: Any, scales: Any, target: Any) -> Any:
    """Returns `round(float32(sum) * (input scale * weight scale / output scale))`."""
    total = sums if bias is None else sums + bias
    return ops.round(total * (source * scales / target))


def _added_by_xnnpack(a: Any, b: Any, scales: tuple[Any, Any], target: Any) -> Any:
    """Returns a sum with multipliers of 21 bits, halves rounded up."""
    first, second = (ops.cast(steps, "float64") for steps in (a, b))
    ratios = [ops.cast(scale / target, "float64") for scale in scales]
    shift = 20 - ops.floor(ops.log2(ops.maximum(*ratios)))
    factors = [ops.round(ratio * 2.0**shift) for ratio in ratios]
    total = first * factors[0] + second * factors[1]
    return ops.cast(ops.floor(total / 2.0**shift + 0.5), "float32")


def _multiplied_in_float(a: Any, b: Any, scales: tuple[Any, Any], target: Any) -> Any:
    return ops.round(a * b * (scales[0] * scales[1] / target))


def _scaled_by_integers(sums: Any, bias: Any, source: Any, scales: Any, target: Any) -> Any:
    total = _integers(sums) if bias is None else _integers(sums) + _integers(bias)
    return _rescaled(total, _precise(source) * _precise(scales) / _precise(target))


def _scaled_by_own_kernel(
    operator: str, sums: Any, bias: Any, source: Any, scales: Any, target: Any
) -> Any:
    """As `_scaled_by_integers`, with the rounding of LiteRT's own kernel."""
    total = _integers(sums) if bias is None else _integers(sums) + _integers(bias)
    factor = multiplier_of(_precise(source) * _precise(scales) / _precise(target))
    one = ops.ones_like(factor.right)
    half = ops.right_shift(ops.left_shift(one, factor.right), one)
    product = _high(total, factor)
    steps = ops.where(
        rounds_up(operator, sums.shape[-1]),
        ops.right_shift(product + half, factor.right),
        shifted_right(product, factor.right),
    )
    return ops.cast(steps, "float32")


def _added_by_integers(a: Any, b: Any, scales: tuple[Any, Any], target: Any) -> Any:
    """Returns a sum of terms on a fine common grid."""
    precise = [_precise(scale) for scale in scales]
    common = 2 * ops.maximum(*precise)
    terms = [
        _multiplied(_integers(steps) * 2**_HEADROOM, scale / common)
        for steps, scale in zip((a, b), precise, strict=True)
    ]
    return _rescaled(terms[0] + terms[1], common / (2**_HEADROOM * _precise(target)))


def _multiplied_by_integers(a: Any, b: Any, scales: tuple[Any, Any], target: Any) -> Any:
    factor = _precise(scales[0]) * _precise(scales[1]) / _precise(target)
    return _rescaled(_integers(a) * _integers(b), factor)


def _matrices_by_xnnpack(sums: Any, sources: Any, target: Any) -> Any:
    """Returns steps of a product; of a second matrix with a zero point, LiteRT's own kernel's."""
    first, second = sources
    own = _rescaled(_integers(sums), _precise(first.scale * second.scale) / _precise(target))
    fast = ops.round(sums * (first.scale * second.scale / target))
    return ops.where(ops.equal(second.zero_point, 0), fast, own)


def _matrices_by_integers(sums: Any, sources: Any, target: Any) -> Any:
    factor = _precise(sources[0].scale) * _precise(sources[1].scale) / _precise(target)
    return _rescaled(_integers(sums), factor)


def _leaky_by_xnnpack(steps: Any, slope: float, source: Any, target: Any) -> Any:
    """Returns steps times multipliers of 8 fraction bits, halves rounded up."""
    ratio = source / target
    factors = (ratio, ratio * np.float32(slope))
    positive, negative = (ops.round(ops.cast(256 * factor, "float32")) for factor in factors)
    total = steps * ops.where(steps > 0, positive, negative)
    return ops.floor((total + 128) / 256)


def _leaky_by_integers(steps: Any, slope: float, source: Any, target: Any) -> Any:
    ratio = _precise(source) / _precise(target)
    return ops.where(
        steps >= 0,
        _rescaled(_integers(steps), ratio),
        _rescaled(_integers(steps), ratio * float(np.float32(slope))),
    )


def _averaged_in_float(total: Any, count: int, source: Any, target: Any) -> Any:
    """Returns the sum of codes scaled and moved in float32."""
    factor = source.scale / target.scale * (np.float32(1) / np.float32(count))
    codes = total + count * source.zero_point
    offset = target.zero_point - count * source.zero_point * factor
    return ops.round(codes * factor + offset) - target.zero_point


def _averaged_by_integers(total: Any, count: int, source: Any, target: Any) -> Any:
    """Returns the sum of steps by a multiplier that holds 1 / count."""
    factor = multiplier_of(_precise(source.scale) / _precise(target.scale))
    bits = ops.minimum(_integers(min(count.bit_length() - 1, 32)), 31 + factor.shift)
    shared = ops.floor_divide(ops.left_shift(factor.multiplier, bits), count)
    return ops.cast(multiplied(_integers(total), shifted(shared, factor.shift - bits)), "float32")


def difference_squared(a: Any, b: Any, scales: tuple[Any, Any], target: Any) -> Any:
    """Returns steps of (a - b)^2, in both engines."""
    precise = [_precise(scale) for scale in scales]
    common = 2 * ops.maximum(*precise)
    first, second = (
        _multiplied(_integers(steps) * 2**7, scale / common)
        for steps, scale in zip((a, b), precise, strict=True)
    )
    return _rescaled((first - second) ** 2, common**2 / (2**14 * _precise(target)))


def root_steps(steps: Any, source: Any, target: Any) -> Any:
    """Returns steps of 1 / sqrt(x) of positive steps, in both engines: Newton's method in Q3.28."""
    exact = ops.cast(steps, "float64")
    bits = ops.floor(ops.log2(exact)) + 1
    pairs = _integers(ops.floor((31 - bits) / 2) - 1)
    number = ops.right_shift(ops.left_shift(steps, 2 * pairs), ops.ones_like(steps))
    half = ops.right_shift(number + 1, ops.ones_like(steps))
    x = ops.full_like(steps, 2**28)
    for _ in range(5):
        cube = _high_product(_high_product(x, x), x) * 2**6
        x = (_high_product(x, 3 * 2**27) - _high_product(half, cube)) * 2**3
    x = _high_product(x, _HALF_ROOT_OF_2)
    shift = pairs - 11
    one = steps <= 1
    root = ops.where(one, 2**31 - 1, x * ops.left_shift(ops.ones_like(x), ops.maximum(shift, 0)))
    shift = ops.where(one, 0, ops.minimum(shift, 0))
    fine = multiplied(ops.ones_like(steps), shifted(root, shift + 20))
    factor = multiplier_of(1 / (ops.sqrt(_precise(source)) * _precise(target)))
    found = multiplied(fine, shifted(factor.multiplier, factor.shift - 20))
    return ops.cast(found, "float32")


def _high_product(a: Any, b: Any) -> Any:
    """Returns a * b / 2^31 of integers, halves rounded up; -1 * -1 saturates."""
    return ops.minimum(ops.floor_divide(a * b + 2**30, 2**31), 2**31 - 1)


def _precise(scale: Any) -> Any:
    return ops.cast(scale, "float64")


def _integers(values: Any) -> Any:
    return ops.cast(values, "int64")


def _rescaled(values: Any, factor: Any) -> Any:
    return ops.cast(_multiplied(values, factor), "float32")


def _multiplied(values: Any, factor: Any) -> Any:
    return multiplied(values, multiplier_of(factor))


class Multiplier(NamedTuple):
    """A factor as TensorFlow Lite's reference kernels hold it, as int64 tensors.

    Attributes:
        multiplier: 31 bits.
        left: The power of two that a value is multiplied by before.
        right: The bits that the product is shifted right by.
    """

    multiplier: Any
    left: Any
    right: Any

    @property
    def shift(self) -> Any:
        """The power of two as one number, as in `multiplier_of`."""
        powers = ops.cast(self.left, "float64")
        return _integers(ops.round(ops.log2(powers))) - self.right


def shifted(multiplier: Any, shift: Any) -> Multiplier:
    """Returns `multiplier * 2^(shift - 31)` of int64 tensors."""
    one = ops.ones_like(shift)
    return Multiplier(
        multiplier, ops.left_shift(one, ops.maximum(shift, 0)), ops.clip(-shift, 0, 31)
    )


def multiplier_of(factor: Any) -> Multiplier:
    """Returns positive factors, a float64 tensor, as multipliers: `multiplier * 2^(shift - 31)`."""
    shift = ops.floor(ops.log2(factor)) + 1
    # The logarithm of a number next to a power of two may be that of the power.
    shift = ops.where(factor >= 2.0**shift, shift + 1, shift)
    shift = ops.where(factor < 2.0 ** (shift - 1), shift - 1, shift)
    multiplier = ops.floor(factor / 2.0**shift * 2.0**31 + 0.5)
    full = multiplier >= 2.0**31
    multiplier, shift = ops.where(full, 2.0**30, multiplier), ops.where(full, shift + 1, shift)
    return Multiplier(
        _integers(ops.where(shift < -31, 0.0, multiplier)),
        _integers(2.0 ** ops.maximum(shift, 0.0)),
        _integers(ops.clip(-shift, 0.0, 31.0)),
    )


def multiplied(values: Any, factor: Multiplier) -> Any:
    """Returns int64 values times a factor as TensorFlow Lite's reference kernels compute it.

    The product is rounded to 31 bits, halves up, then shifted right, halves away from zero; a
    positive shift comes first.
    """
    return shifted_right(_high(values, factor), factor.right)


def _high(values: Any, factor: Multiplier) -> Any:
    """Returns the product rounded to 31 bits, before the shift to the right."""
    bits = 31 * ops.ones_like(factor.right)
    product = ops.right_shift(values * factor.left * factor.multiplier + 2**30, bits)
    return ops.minimum(product, 2**31 - 1)


def shifted_right(values: Any, bits: Any) -> Any:
    """Returns int64 values / 2^bits, halves away from zero."""
    one = ops.ones_like(bits)
    mask = ops.left_shift(one, bits) - 1
    rest = ops.bitwise_and(values, mask)
    threshold = ops.right_shift(mask, one) + _integers(values < 0)
    return ops.right_shift(values, bits) + _integers(rest > threshold)


# Engine -> its arithmetic.
REQUANTIZATIONS: Mapping[str, Requantization] = {
    "litert": Requantization(
        "litert",
        _scaled_in_float,
        _added_by_xnnpack,
        _multiplied_in_float,
        _matrices_by_xnnpack,
        _averaged_in_float,
        _leaky_by_xnnpack,
    ),
    "tflm": Requantization(
        "tflm",
        _scaled_by_integers,
        _added_by_integers,
        _multiplied_by_integers,
        _matrices_by_integers,
        _averaged_by_integers,
        _leaky_by_integers,
    ),
}


def for_filter(engine: Requantization, bits: int, operator: str, inputs: int) -> Requantization:
    """Returns the arithmetic in which an engine computes with a filter.

    XNNPACK takes weights of fewer than 8 bits only in matrices whose rows fill whole bytes. It
    leaves others to LiteRT's own kernels, which scale by integers.

    Args:
        engine: Of `REQUANTIZATIONS`.
        bits: Bits of a weight in the file.
        operator: `CONV_2D`, `DEPTHWISE_CONV_2D` or `FULLY_CONNECTED`.
        inputs: Weights in a row of a matrix; of other filters not used.
    """
    whole = operator == "FULLY_CONNECTED" and inputs * bits % 8 == 0
    if engine.engine != "litert" or bits >= 8 or whole:
        return engine
    return engine._replace(scaled=functools.partial(_scaled_by_own_kernel, operator))
