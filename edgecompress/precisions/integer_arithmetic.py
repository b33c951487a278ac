"""int8 inference as the engines compute it, in float tensors that hold integers.

Pure functions over keras.ops for validation during training: real values on a tensor's grid go in
and come out, `scale * (code - zero point)`; in between are the integers of the kernels. Sums of
products are exact in float32 up to 2^24, and each sum is requantized as an engine does
(`precisions.requantization`). `edgecompress.simulation` computes files in numpy and covers every
operator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from edgecompress.precisions.fake_quantization import SMALLEST_RANGE
from edgecompress.precisions.requantization import (
    REQUANTIZATIONS,
    Requantization,
    difference_squared,
    root_steps,
)

# What functions compute unless told otherwise.
LITERT = REQUANTIZATIONS["litert"]

# A range narrower than this belongs to a tensor that never left zero: the file has (0, 1).
_DEAD = 1e-6
_LOWEST, _HIGHEST = -128.0, 127.0


class Grid(NamedTuple):
    """The values of an int8 tensor, as float32 scalars.

    Attributes:
        scale: Distance of neighbouring values.
        zero_point: The code of 0.
        lowest: Lowest code - zero point.
        highest: Highest code - zero point.
    """

    scale: Any
    zero_point: Any
    lowest: Any
    highest: Any


class Affine(NamedTuple):
    """What is folded into an operator: factor and offset of each output channel, or None."""

    factor: Any
    offset: Any


def grid_of(low: Any, high: Any) -> Grid:
    """Returns the grid that the file gives a tensor with a range.

    Args:
        low: Minimum, a number or a tensor; values above 0 count as 0.
        high: Maximum, a number or a tensor; values below 0 count as 0. Of two numbers, the grid
            holds numbers, otherwise tensors.
    """
    numbers = isinstance(low, (int, float)) and isinstance(high, (int, float))
    functions: Any = np if numbers else ops
    zero, one = (np.float32(v) if numbers else v for v in (0.0, 1.0))
    low, high = (np.float32(v) if numbers else ops.cast(v, "float32") for v in (low, high))
    low, high = functions.minimum(low, zero), functions.maximum(high, zero)
    dead = high - low <= _DEAD
    low, high = functions.where(dead, zero, low), functions.where(dead, one, high)
    scale = (high - low) / np.float32(_HIGHEST - _LOWEST)
    zero_point = functions.round(np.float32(_LOWEST) - low / scale)
    return Grid(
        scale, zero_point, np.float32(_LOWEST) - zero_point, np.float32(_HIGHEST) - zero_point
    )


def grids_of(ranges: Any) -> list[Grid]:
    """Returns the grid of each row [minimum, maximum] of a tensor."""
    low, high = ops.unstack(ranges, axis=1)
    return [Grid(*parts) for parts in zip(*map(ops.unstack, grid_of(low, high)), strict=True)]


def steps_of(values: Any, grid: Grid) -> Any:
    """Returns code - zero point of values that are on a grid."""
    return ops.round(values / grid.scale)


def clamped(steps: Any, grid: Grid) -> Any:
    """Returns the real values of rounded steps, saturated to the codes of the grid."""
    return ops.minimum(ops.maximum(steps, grid.lowest), grid.highest) * grid.scale


def on_grid(values: Any, grid: Grid) -> Any:
    """Returns real values rounded to a grid: halves to even, saturated."""
    return clamped(ops.round(values / grid.scale), grid)


def folded(affine: Affine, gamma: Any, beta: Any, mean: Any, variance: Any, epsilon: float) -> Any:
    """Returns `affine` followed by a BatchNormalization in inference.

    Args:
        affine: What was folded before.
        gamma: Factor of each channel, or None.
        beta: Offset of each channel, or None.
        mean: Moving mean.
        variance: Moving variance.
        epsilon: Added to the variance.
    """
    factor = ops.rsqrt(variance + epsilon)
    factor = factor if gamma is None else factor * gamma
    offset = (-mean if affine.offset is None else affine.offset - mean) * factor
    return Affine(
        factor if affine.factor is None else affine.factor * factor,
        offset if beta is None else offset + beta,
    )


def weighted(
    sums: Callable[[Any], Any],
    values: Any,
    source: Grid,
    target: Grid,
    scales: Any,
    affine: Affine,
    engine: Requantization = LITERT,
) -> Any:
    """Returns a convolution or matrix product, requantized as an engine does.

    The bias is part of the sum, as an integer of the scale `input scale * weight scale`.

    Args:
        sums: Computes the products of integers: steps of the input -> sums with the kernel's codes.
        values: The input, on its grid.
        source: The input's grid.
        target: The output's grid.
        scales: Scales of the kernel: one for each output channel, or one.
        affine: Factor of the weights and bias of each output channel.
        engine: Its arithmetic. Defaults to LiteRT's.
    """
    # Rounded: some float convolutions compute integers with fractions in between.
    total, bias = ops.round(sums(steps_of(values, source))), None
    if affine.factor is not None:
        # A scale is positive: a negative factor changes the signs of the codes.
        scales = ops.maximum(ops.abs(scales * affine.factor), SMALLEST_RANGE / _HIGHEST)
        total = ops.sign(affine.factor) * total
    if affine.offset is not None:
        bias = ops.round(affine.offset / (source.scale * scales))
        bias = ops.minimum(ops.maximum(bias, -(2.0**31)), 2.0**31 - 256)
    return clamped(engine.scaled(total, bias, source.scale, scales, target.scale), target)


def add(
    a: Any,
    b: Any,
    sources: Sequence[Grid],
    target: Grid,
    sign: int = 1,
    engine: Requantization = LITERT,
) -> Any:
    """Returns a + b or, with `sign` -1, a - b."""
    first, second = (steps_of(v, grid) for v, grid in zip((a, b), sources, strict=True))
    scales = sources[0].scale, sources[1].scale
    return clamped(
        engine.added(first, second if sign > 0 else -second, scales, target.scale), target
    )


def multiply(
    a: Any, b: Any, sources: Sequence[Grid], target: Grid, engine: Requantization = LITERT
) -> Any:
    """Returns a * b."""
    first, second = (steps_of(v, grid) for v, grid in zip((a, b), sources, strict=True))
    scales = sources[0].scale, sources[1].scale
    return clamped(engine.multiplied(first, second, scales, target.scale), target)


def product(
    multiply_matrices: Callable[..., Any],
    values: Sequence[Any],
    sources: Sequence[Grid],
    target: Grid,
    engine: Requantization = LITERT,
) -> Any:
    """Returns a product of two computed matrices.

    Args:
        multiply_matrices: Computes it in float; its sums of integers are exact.
        values: The matrices, on their grids.
        sources: Their grids.
        target: The output's grid.
        engine: Its arithmetic. Defaults to LiteRT's.
    """
    steps = [steps_of(v, grid) for v, grid in zip(values, sources, strict=True)]
    return clamped(engine.matrices(multiply_matrices(*steps), sources, target.scale), target)


def mean(
    average_of: Callable[[Any], Any],
    count: int,
    values: Any,
    source: Grid,
    target: Grid,
    engine: Requantization = LITERT,
) -> Any:
    """Returns a mean over axes with a grid of its own.

    Args:
        average_of: Computes it in float.
        count: How many elements it is of.
        values: The input, on its grid.
        source: Its grid.
        target: The output's grid.
        engine: Its arithmetic. Defaults to LiteRT's.
    """
    total = ops.round(average_of(steps_of(values, source)) * count)
    return clamped(engine.averaged(total, count, source, target), target)


def squared_difference(a: Any, b: Any, sources: Sequence[Grid], target: Grid) -> Any:
    """Returns (a - b)^2 by integer multipliers, as both engines do."""
    return clamped(
        difference_squared(
            steps_of(a, sources[0]),
            steps_of(b, sources[1]),
            (sources[0].scale, sources[1].scale),
            target.scale,
        ),
        target,
    )


def inverse_root(values: Any, source: Grid, target: Grid) -> Any:
    """Returns 1 / sqrt(x) in the fixed point of both engines; 0 gives the largest code."""
    steps = ops.maximum(ops.cast(steps_of(values, source), "int64"), 1)
    found = root_steps(steps, source.scale, target.scale)
    zero = steps_of(values, source) <= 0
    return clamped(ops.where(zero, target.highest, found), target)


def softmax(values: Any, source: Grid, target: Grid) -> Any:
    """Returns a softmax over the last axis as LiteRT computes it.

    Args:
        values: The input, on its grid; masked values may be below it.
        source: Its grid.
        target: The output's grid.
    """
    steps = ops.maximum(steps_of(values, source), source.lowest)
    below = steps - ops.max(steps, axis=-1, keepdims=True)
    # A table of the function in float32; its last bit may differ.
    terms = ops.cast(ops.exp(ops.cast(below * source.scale, "float64")), "float32")
    share = terms * (1.0 / (ops.sum(terms, axis=-1, keepdims=True) * target.scale))
    return clamped(ops.floor(share + 0.5), target)


def leaky(
    values: Any, slope: float, source: Grid, target: Grid, engine: Requantization = LITERT
) -> Any:
    """Returns leaky ReLU."""
    steps = steps_of(values, source)
    return clamped(engine.leaky(steps, slope, source.scale, target.scale), target)


def average(pool: Callable[[Any], Any], values: Any, grid: Grid) -> Any:
    """Returns the mean codes of windows on the input's own grid, halves away from zero.

    Args:
        pool: Averages a tensor.
        values: The input, on its grid.
        grid: Of the input and the output.
    """
    mean = pool(steps_of(values, grid) + grid.zero_point)
    # The codes themselves, not real values. A half is exact up to the last bits of the division.
    codes = ops.sign(mean) * ops.floor(ops.abs(mean) + 0.5001)
    return clamped(codes - grid.zero_point, grid)


def enlarged(values: Any, size: tuple[int, int], grid: Grid) -> Any:
    """Returns maps resized bilinearly, with half-pixel centers, as XNNPACK does.

    Args:
        values: The input (samples, height, width, channels), on its grid.
        size: Height and width of the output.
        grid: Of the input and the output.
    """
    found = ops.cast(steps_of(values, grid) + grid.zero_point, "int32")
    # Along the width, then along the height; weights of 11 bits, rounded once.
    for axis, new in ((2, size[1]), (1, size[0])):
        old = values.shape[axis]
        ratio = np.float32(old) / np.float32(new)
        places = np.arange(new, dtype=np.float32) * ratio
        places = places + (np.float32(0.5) * ratio - np.float32(0.5))
        places = np.clip(places, np.float32(0), np.float32(old - 1))
        lower = places.astype(np.int32)
        weights = np.rint((places - lower.astype(np.float32)) * np.float32(2048)).astype(np.int32)
        low = ops.take(found, lower, axis=axis)
        high = ops.take(found, np.minimum(lower + 1, old - 1), axis=axis)
        found = low * 2048 + (high - low) * weights.reshape(-1, *(1,) * (3 - axis))
    codes = (found + 2**21) // 2**22
    return clamped(ops.cast(codes, "float32") - grid.zero_point, grid)


def hard_swish(values: Any, source: Grid, target: Grid) -> Any:
    """Returns x * relu6(x + 3) / 6 in the 16-bit fixed point of both engines.

    Args:
        values: The input, on its grid.
        source: The input's grid.
        target: The output's grid.
    """
    multiplier, shift = _fixed(source.scale / target.scale / 128)
    gate_multiplier, gate_shift = _fixed(source.scale / np.float32(3.0) * 256)
    steps = ops.cast(steps_of(values, source), "float64") * 128
    # The gate, relu6(x + 3) / 6, on a grid where 2^15 stands for 3.
    gate = _int16(steps * 2.0 ** ops.maximum(gate_shift - 1, 0.0))
    gate = _high_product(gate, gate_multiplier)
    gate = ops.where(
        gate_shift > 0, _int16(gate * 2), _shift_right(gate, ops.maximum(-gate_shift, 0.0))
    )
    gate = ops.floor((gate + 2**15) / 2)
    product = gate * _high_product(steps, multiplier)
    # Rounded towards zero here, to cancel the bias of the roundings before.
    product = ops.sign(product) * ops.floor(ops.abs(product) / 2**15)
    rounded = _shift_right(product, ops.maximum(-shift, 0.0))
    return clamped(ops.cast(rounded, "float32"), target)


def _fixed(factor: Any) -> tuple[Any, Any]:
    """Returns a positive factor as a 16-bit multiplier and a shift: multiplier * 2^(shift - 15)."""
    factor = ops.cast(factor, "float64")
    shift = ops.floor(ops.log2(factor)) + 1
    # The logarithm of a power of two may fall below it.
    shift = ops.where(factor >= 2.0**shift, shift + 1, shift)
    wide = ops.floor(factor / 2.0**shift * 2**31 + 0.5)
    return ops.minimum(ops.floor((wide + 2**15) / 2**16), 2.0**15 - 1), shift


def _int16(values: Any) -> Any:
    return ops.clip(values, -(2.0**15), 2.0**15 - 1)


def _high_product(a: Any, b: Any) -> Any:
    """Returns a * b / 2^15, halves rounded up; -1 * -1 saturates."""
    return ops.minimum(ops.floor((a * b + 2**14) / 2**15), 2.0**15 - 1)


def _shift_right(values: Any, shift: Any) -> Any:
    """Returns values / 2^shift, halves rounded away from zero."""
    return ops.sign(values) * ops.floor(ops.abs(values) / 2.0**shift + 0.5)
