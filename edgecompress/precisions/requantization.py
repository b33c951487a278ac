"""How engines turn sums and products of integers into steps of an int8 output.

Both engines compute the same sums; they differ in how they scale them. XNNPACK (LiteRT) multiplies
in float32, TensorFlow Lite Micro by integers of 31 bits, which round twice. Pure functions over
keras.ops; the same arithmetic over numpy, for whole files, is in `edgecompress.simulation`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from keras import ops

# Bits by which TensorFlow Lite Micro shifts the terms of a sum left, to keep them precise.
_HEADROOM = 20


class Requantization(NamedTuple):
    """The arithmetic of an engine; all results are steps of the output that may exceed its codes.

    Attributes:
        engine: The engine's name.
        scaled: (sums, bias or None, input scale, weight scales, output scale) -> steps.
        added: (steps of a, steps of b, their scales, output scale) -> steps of a + b.
        multiplied: (steps of a, steps of b, their scales, output scale) -> steps of a * b.
    """

    engine: str
    scaled: Callable[[Any, Any, Any, Any, Any], Any]
    added: Callable[[Any, Any, tuple[Any, Any], Any], Any]
    multiplied: Callable[[Any, Any, tuple[Any, Any], Any], Any]


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
    one = ops.ones_like(factor.right)
    product = ops.right_shift(values * factor.left * factor.multiplier + 2**30, 31 * one)
    return shifted_right(ops.minimum(product, 2**31 - 1), factor.right)


def shifted_right(values: Any, bits: Any) -> Any:
    """Returns int64 values / 2^bits, halves away from zero."""
    one = ops.ones_like(bits)
    mask = ops.left_shift(one, bits) - 1
    rest = ops.bitwise_and(values, mask)
    threshold = ops.right_shift(mask, one) + _integers(values < 0)
    return ops.right_shift(values, bits) + _integers(rest > threshold)


# Engine -> its arithmetic.
REQUANTIZATIONS: Mapping[str, Requantization] = {
    "litert": Requantization("litert", _scaled_in_float, _added_by_xnnpack, _multiplied_in_float),
    "tflm": Requantization(
        "tflm", _scaled_by_integers, _added_by_integers, _multiplied_by_integers
    ),
}
