"""Kernels whose weights share few values: whether a single int8 scale keeps the codes few.

With per-channel scales, one value becomes a different code in every channel, so the k values of a
clustered kernel become many more codes. With a per-tensor scale there are at most k codes, which is
what makes tables and Huffman codes effective. Training, simulation and conversion all use this
module, so that they agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

# The maximum number of values in a table of the compressed file (7 bits).
MOST_VALUES = 128
# This many weights of an ordinary kernel have more than MOST_VALUES values: no need to sort it.
_PROBE = 4096
# Weights that are compared at a time.
_AT_ONCE = 1 << 16
# Folding multiplies float32 numbers, at most twice.
_FOLDING = 1e-5


def shares_values(kernel: np.ndarray) -> bool:
    """Returns whether the non-zero weights share few values, as after clustering.

    Few means at most 128, and at most half the number of weights: a small or heavily pruned kernel
    has few values without sharing any.

    Args:
        kernel: Float weights of any shape.

    Example:
        >>> shares_values(np.tile([0.5, -1.0], 8)), shares_values(np.arange(1.0, 9.0))
        (True, False)
    """
    weights = np.ravel(kernel)
    if len(np.unique(weights[:_PROBE])) > MOST_VALUES + 1:
        return False
    weights = weights[weights != 0]
    values = len(np.unique(weights))
    return 0 < values <= MOST_VALUES and 2 * values <= len(weights)


def codes(kernel: np.ndarray, channel_axes: Sequence[int], bits: int = 8) -> np.ndarray:
    """Returns the codes of weights, `round(w / s)` with `s = max(|w|) / (2 ** (bits - 1) - 1)`.

    Args:
        kernel: Float weights of any shape.
        channel_axes: Axes whose indices have separate scales; none for a single scale.
        bits: Width of the codes. Defaults to 8: -127 to 127.

    Example:
        >>> codes(np.array([[1.0, 0.1], [0.5, -0.1]]), ()).tolist()
        [[127, 13], [64, -13]]
        >>> codes(np.array([[1.0, 0.1], [0.5, -0.1]]), (-1,)).tolist()
        [[127, 127], [64, -127]]
    """
    weights = np.asarray(kernel, np.float32)
    channels = {axis % weights.ndim for axis in channel_axes}
    others = tuple(axis for axis in range(weights.ndim) if axis not in channels)
    largest = np.abs(weights).max(axis=others, keepdims=True)
    scales = largest / np.float32(2 ** (bits - 1) - 1)
    return np.rint(weights / np.where(scales > 0, scales, 1)).astype(np.int32)


def per_tensor(kernel: np.ndarray, channel_axes: Sequence[int], bits: int = 8) -> bool:
    """Returns whether a kernel shares values and has fewer codes with one scale than per channel.

    Binary and ternary kernels with a factor for each channel, `a_c * {-1, 0, 1}`, have at most
    three codes with per-channel scales, which they keep.

    Args:
        kernel: Float weights of any shape, without BatchNormalization folded in.
        channel_axes: Axes whose indices have separate scales otherwise.
        bits: Width of the codes. Defaults to 8.

    Example:
        >>> kernel = np.repeat([[1.0, 0.5], [0.3, 0.3], [0.1, 0.1]], 4, axis=0)
        >>> per_tensor(kernel, (-1,)), per_tensor(kernel, ())
        (True, False)
        >>> per_tensor(np.repeat([[1.0, 0.5], [-1.0, -0.5]], 4, axis=0), (-1,))
        False
    """
    if not shares_values(kernel):
        return False
    return len(np.unique(codes(kernel, (), bits))) < len(
        np.unique(codes(kernel, channel_axes, bits))
    )


def channels_first(kernel: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """Returns a kernel as (channels, weights of a channel)."""
    moved = np.moveaxis(kernel, [axis % kernel.ndim for axis in axes], range(len(axes)))
    return moved.reshape(math.prod(moved.shape[: len(axes)]), -1)


def fold_factors(kernel: np.ndarray, folded: np.ndarray) -> np.ndarray | None:
    """Returns the per-channel factors that turn one kernel into the other, or None.

    Args:
        kernel: (channels, weights).
        folded: The same shape.

    Returns:
        g with `folded[c] = g[c] * kernel[c]` up to rounding, float64; 0 if a channel is zero.
    """
    if kernel.shape != folded.shape:
        return None
    found: list[np.ndarray] = []
    # Nearly all pairs that do not match differ in their first channel; the others are compared a
    # few at a time, since float64 copies of all of them would take much memory.
    start, count = 0, 1
    while start < len(kernel):
        small = kernel[start : start + count].astype(np.float64)
        large = folded[start : start + count].astype(np.float64)
        rows, largest = np.arange(len(small)), np.abs(small).argmax(1)
        base = small[rows, largest]
        factors = np.divide(large[rows, largest], base, out=np.zeros_like(base), where=base != 0)
        error = np.abs(large - factors[:, None] * small).max(1)
        if not (error <= _FOLDING * np.abs(large).max(1)).all():
            return None
        found.append(factors)
        start, count = start + count, max(1, _AT_ONCE // kernel.shape[1])
    return np.concatenate(found)
