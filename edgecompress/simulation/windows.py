"""Sliding windows over feature maps, and exact integer sums of products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

# Options store SAME as 0 and VALID as 1.
_SAME = 0


@dataclass(frozen=True)
class Window:
    """Where a window stands on one axis of a feature map.

    Attributes:
        size: Taps of the window.
        stride: Steps between two positions.
        dilation: Steps between two taps.
        before: Padding before the first element.
        count: Number of positions.
    """

    size: int
    stride: int
    dilation: int
    before: int
    count: int

    def after(self, length: int) -> int:
        """Returns the padding after the last of `length` elements; 0 if none is needed."""
        reach = (self.count - 1) * self.stride + (self.size - 1) * self.dilation + 1
        return max(reach - self.before - length, 0)

    def taps(self) -> list[slice]:
        """Returns, for each tap, the elements it reads of the padded axis."""
        span = (self.count - 1) * self.stride + 1
        starts = [tap * self.dilation for tap in range(self.size)]
        return [slice(start, start + span, self.stride) for start in starts]


def window(length: int, size: int, stride: int, dilation: int, padding: int) -> Window:
    """Returns the window on an axis of `length` elements; padding as in operator options."""
    effective = (size - 1) * dilation + 1
    if padding == _SAME:
        count = -(-length // stride)
        total = max((count - 1) * stride + effective - length, 0)
        return Window(size, stride, dilation, total // 2, count)
    return Window(size, stride, dilation, 0, (length - effective) // stride + 1)


def padded(maps: np.ndarray, windows: Sequence[Window], value: float) -> np.ndarray:
    """Returns (n, height, width, channels) padded for windows over height and width."""
    widths = [(w.before, w.after(n)) for w, n in zip(windows, maps.shape[1:3], strict=True)]
    if not any(map(any, widths)):
        return maps
    return np.pad(maps, [(0, 0), *widths, (0, 0)], constant_values=value)


def reduce_windows(
    maps: np.ndarray, windows: Sequence[Window], function: Callable[..., np.ndarray]
) -> np.ndarray:
    """Returns the reduction (np.add, np.maximum) of every window of padded maps."""
    parts = (maps[:, y, x] for y in windows[0].taps() for x in windows[1].taps())
    result = next(parts).copy()
    for part in parts:
        function(result, part, out=result)
    return result


def exact_type(weights: np.ndarray, largest: int, axes: tuple[int, ...]) -> type:
    """Returns the float type in which sums of weights * inputs are exact.

    Every partial sum is an integer of at most sum(|weights|) * largest. float32 holds all integers
    up to 2^24, float64 up to 2^53.

    Args:
        weights: Integers.
        largest: Largest magnitude of an input.
        axes: Axes of the weights that are summed.
    """
    bound = np.abs(weights.astype(np.int64)).sum(axes).max(initial=0) * largest
    return np.float32 if bound < 2**24 else np.float64


def convolve(inputs: np.ndarray, weights: np.ndarray, windows: Sequence[Window]) -> np.ndarray:
    """Returns the sums of a convolution, exact, as int64.

    Args:
        inputs: Codes less their zero point, (n, height, width, channels), not padded.
        weights: (out, kernel height, kernel width, channels / groups).
        windows: Over height and width.
    """
    kind = exact_type(weights, 255, (1, 2, 3))
    maps = padded(inputs.astype(kind), windows, 0)
    groups = inputs.shape[-1] // weights.shape[-1]
    per_group = weights.shape[0] // groups
    results: list[np.ndarray] = []
    for group in range(groups):
        channels = slice(group * weights.shape[-1], (group + 1) * weights.shape[-1])
        kernel: np.ndarray = weights[group * per_group : (group + 1) * per_group].astype(kind)
        parts = [maps[:, y, x, channels] for y in windows[0].taps() for x in windows[1].taps()]
        patches = parts[0] if len(parts) == 1 else np.concatenate(parts, -1)
        results.append(patches @ kernel.reshape(per_group, -1).T)
    return np.concatenate(results, -1).astype(np.int64)


def convolve_depthwise(
    inputs: np.ndarray, weights: np.ndarray, windows: Sequence[Window]
) -> np.ndarray:
    """Returns the sums of a depthwise convolution, exact, as int64.

    Args:
        inputs: As in `convolve`.
        weights: (1, kernel height, kernel width, channels * multiplier).
        windows: Over height and width.
    """
    kind = exact_type(weights, 255, (0, 1, 2))
    maps = padded(inputs.astype(kind), windows, 0)
    multiplier = weights.shape[-1] // inputs.shape[-1]
    if multiplier > 1:
        maps = np.repeat(maps, multiplier, -1)
    total: np.ndarray | None = None
    kernels = weights[0].astype(kind)
    for row, y in enumerate(windows[0].taps()):
        for column, x in enumerate(windows[1].taps()):
            part = maps[:, y, x] * kernels[row, column]
            total = part if total is None else np.add(total, part, out=total)
    if total is None:
        raise ValueError("A depthwise kernel has no elements.")
    return total.astype(np.int64)
