"""Pooling, and means over axes."""

from __future__ import annotations

import math

import numpy as np

from edgecompress.core.fixed_point import multiply, quantize_multiplier
from edgecompress.simulation.kernels import (
    LITERT,
    TFLM,
    Call,
    kernel,
    merged,
    scale,
    split,
    zero_point,
)
from edgecompress.simulation.windows import Window, padded, reduce_windows, window


def _windows(call: Call) -> tuple[Window, Window]:
    height, width = call.tensor(0).shape[1:3]
    padding = call.option("padding")
    return (
        window(height, call.option("filter_height"), call.option("stride_h", 1), 1, padding),
        window(width, call.option("filter_width"), call.option("stride_w", 1), 1, padding),
    )


@kernel("AVERAGE_POOL_2D")
def average_pool(call: Call) -> np.ndarray:
    """The mean code of the elements inside the map, halves away from zero, in both engines."""
    call.require_int8(call.tensor(0), call.output)
    call.require_same_scale(call.tensor(0))
    maps, windows = merged(call.value(0).astype(np.int32)), _windows(call)
    total = reduce_windows(padded(maps, windows, 0), windows, np.add)
    inside = np.ones_like(maps[:1, :, :, :1])
    count = reduce_windows(padded(inside, windows, 0), windows, np.add)
    # The codes themselves, not real values: halves of negative codes round down.
    rounded = np.sign(total) * ((np.abs(total) + count // 2) // count)
    return split(call.clamp(rounded), len(call.value(0)))


@kernel("MAX_POOL_2D")
def max_pool(call: Call) -> np.ndarray:
    """The largest code of the elements inside the map."""
    call.require_int8(call.tensor(0), call.output)
    call.require_same_scale(call.tensor(0))
    maps, windows = merged(call.value(0)), _windows(call)
    largest = reduce_windows(padded(maps, windows, -128), windows, np.maximum)
    return split(call.clamp(largest), len(call.value(0)))


def _summed(call: Call) -> tuple[np.ndarray, int]:
    """Returns the sums of codes over the reduced axes in the output's shape, and their count."""
    call.require_int8(call.tensor(0), call.output)
    shape = call.tensor(0).shape
    axes = {int(axis) % len(shape) for axis in call.constant(1).reshape(-1)}
    values = call.value(0).astype(np.int64)
    total = values.sum(tuple(axis + 1 for axis in sorted(axes)))
    return total.reshape(len(values), *call.output.shape), math.prod(shape[a] for a in axes)


def _reduced_by_xnnpack(call: Call, parts: int) -> np.ndarray:
    """Returns the sum of codes over axes, scaled and shifted in float32, halves to even.

    Args:
        call: The operator.
        parts: What the sum is divided by.
    """
    total, count = _summed(call)
    factor = scale(call.tensor(0)) / scale(call.output) * (np.float32(1) / np.float32(parts))
    offset = np.float32(zero_point(call.output))
    offset = offset - np.float32(count * zero_point(call.tensor(0))) * factor
    return call.clamp(np.rint(np.clip(total.astype(np.float32) * factor + offset, -128, 127)))


@kernel("MEAN", engines=(LITERT,))
def litert_mean(call: Call) -> np.ndarray:
    """XNNPACK's mean."""
    return _reduced_by_xnnpack(call, _summed(call)[1])


@kernel("SUM", engines=(LITERT,))
def litert_sum(call: Call) -> np.ndarray:
    """XNNPACK's sum."""
    return _reduced_by_xnnpack(call, 1)


@kernel("MEAN", engines=(TFLM,))
def tflm_mean(call: Call) -> np.ndarray:
    """TensorFlow Lite Micro's mean: an integer multiplier that holds 1 / count."""
    total, count = _summed(call)
    ratio = float(scale(call.tensor(0))) / float(scale(call.output))
    multiplier, shift = quantize_multiplier(ratio)
    bits = min(count.bit_length() - 1, 32, 31 + shift)
    mean = multiply(
        total - zero_point(call.tensor(0)) * count, (multiplier << bits) // count, shift - bits
    )
    return call.clamp(mean + zero_point(call.output))


@kernel("SUM", engines=(TFLM,))
def tflm_sum(call: Call) -> np.ndarray:
    """TensorFlow Lite Micro's sum: an integer multiplier."""
    found, count = _summed(call)
    factor = float(scale(call.tensor(0))) / float(scale(call.output))
    steps = multiply(found - zero_point(call.tensor(0)) * count, *quantize_multiplier(factor))
    return call.clamp(steps + zero_point(call.output))


@kernel("REDUCE_MAX", "REDUCE_MIN")
def extreme_over_axes(call: Call) -> np.ndarray:
    """The largest or smallest code over axes."""
    call.require_int8(call.tensor(0), call.output)
    call.require_same_scale(call.tensor(0))
    rank = len(call.tensor(0).shape)
    axes = tuple(sorted({int(axis) % rank + 1 for axis in call.constant(1).reshape(-1)}))
    values = call.value(0)
    found = values.max(axes) if call.operator.code == "REDUCE_MAX" else values.min(axes)
    return found.reshape(len(values), *call.output.shape)
