"""Ranges with the smallest mean squared error of rounding and clipping, by Newton's method.

Sakr et al., Optimal Clipping and Magnitude-aware Differentiation for Improved Quantization-aware
Training (OCTAV), https://arxiv.org/abs/2206.06501, equation 6. A range from l to h with n steps
errs by (h - l)^2 / (12 n^2) on each value inside, and by (x - h)^2 or (x - l)^2 outside. Setting
the derivatives by h and l to zero gives, with c = P(l <= x <= h, x != 0) / (12 n^2),

    h = (E[x; x > h] + c l) / (c + P(x > h))        l = (E[x; x < l] + c h) / (c + P(x < l))

and each repetition is a step of Newton's method. With l = 0 and with l = -h these are the paper's
formulas for unsigned and for signed data; the steps of this package's symmetric grids, one fewer
than a power of two, take the place of the paper's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from edgecompress.precisions.ranges.base import RANGES, RangeMethod

# Newton's method approaches from below, by at least the mean excess of a distribution's tail.
_REPETITIONS = 16
# Limits of weights are multiples of this share of the largest weight: training and conversion sum
# in different orders, and must arrive at the same scale. The error is flat near its minimum.
_PARTS = 64


def best_limits(weights: Any, axes: Sequence[int], largest: int) -> Any:
    """Returns the magnitude at which clipping each channel's weights errs least.

    Args:
        weights: A float32 kernel of any shape.
        axes: The axes within a channel.
        largest: The largest code, which stands for the limit.

    Returns:
        Multiples of a 64th of each channel's largest weight; a tensor that broadcasts against
        `weights`.
    """
    from keras import ops

    sizes = ops.abs(weights)

    def sums(values: Any) -> Any:
        return ops.sum(values, axis=tuple(axes), keepdims=True)

    filled = ops.cast(sizes > 0, "float32")
    count = ops.maximum(sums(filled), 1.0)

    def closer(_: Any, limits: Any) -> Any:
        above = ops.cast(sizes > limits, "float32")
        beyond = sums(above)
        inside = (count - beyond) / (12 * largest**2)
        return sums(sizes * above) / ops.maximum(inside + beyond, 1e-12)

    if largest == 1:
        limits = _three_levels(sizes, axes)
    else:
        limits = ops.fori_loop(0, _REPETITIONS, closer, sums(sizes) / count)
    most = ops.max(sizes, axis=tuple(axes), keepdims=True)
    parts = ops.round(_PARTS * limits / ops.maximum(most, 1e-30))
    return most * (ops.clip(parts, 1, _PARTS) / _PARTS)


def _three_levels(sizes: Any, axes: Sequence[int]) -> Any:
    """Returns the best limit for codes -1, 0 and 1, where the model of the error is too coarse.

    With the k largest weights on a code of +-1, the best scale is their mean magnitude m, and the
    squared error is that of all zeros less k m^2 (Li et al., Ternary Weight Networks,
    https://arxiv.org/abs/1605.04711, section 2.2); the best k is found among all.
    """
    from keras import ops

    rank = len(sizes.shape)
    inner = [axis % rank for axis in axes]
    outer = [axis for axis in range(rank) if axis not in inner]
    kept = [1 if axis in inner else int(sizes.shape[axis]) for axis in range(rank)]
    rows = ops.reshape(ops.transpose(sizes, (*outer, *inner)), (math.prod(kept), -1))
    reached = ops.cumsum(ops.flip(ops.sort(rows, axis=-1), axis=-1), axis=-1)
    count = ops.arange(1, reached.shape[-1] + 1, dtype="float32")
    best = ops.argmax(reached**2 / count, axis=-1, keepdims=True)
    return ops.reshape(ops.take_along_axis(reached / count, best, axis=-1), kept)


def best_range(values: Any, steps: int, counts: Any = None) -> Any:
    """Returns [minimum, maximum] at which clipping activations errs least.

    Args:
        values: A float tensor of any shape.
        steps: Number of steps between the ends.
        counts: How often each value occurred. Defaults to once.
    """
    from keras import ops

    values = ops.cast(ops.stop_gradient(values), "float32")
    weights = ops.cast(values != 0, "float32")
    if counts is not None:
        weights = weights * ops.cast(counts, "float32")
    share = weights / ops.maximum(ops.sum(weights), 1.0)

    def closer(_: Any, bounds: Any) -> Any:
        low, high = bounds[0], bounds[1]
        above = ops.cast(values > high, "float32") * share
        below = ops.cast(values < low, "float32") * share
        over, under = ops.sum(above), ops.sum(below)
        inside = ops.maximum(1 - over - under, 0.0) / (12 * steps**2)
        tiny = 1e-12
        upper = (ops.sum(values * above) + inside * low) / ops.maximum(inside + over, tiny)
        lower = (ops.sum(values * below) + inside * high) / ops.maximum(inside + under, tiny)
        return ops.stack([ops.minimum(lower, 0.0), ops.maximum(upper, 0.0)])

    positive = ops.sum(ops.maximum(values, 0.0) * share)
    negative = ops.sum(ops.minimum(values, 0.0) * share)
    return ops.fori_loop(0, _REPETITIONS, closer, ops.stack([negative, positive]))


@dataclass(frozen=True)
class MeanSquaredError(RangeMethod):
    """The smallest mean squared error; in training, the moving average of each batch's range."""

    summary: ClassVar[str] = "smallest mean squared error (OCTAV)"
    weights: ClassVar[bool] = True

    def limits(self, weights: Any, axes: Sequence[int], largest: int) -> Any:
        """Returns the best limit of each channel."""
        return best_limits(weights, axes, largest)

    def batch_range(self, values: Any, steps: int, percentile: float, counts: Any = None) -> Any:
        """Returns the best range of a batch."""
        return best_range(values, steps, counts)


RANGES.register("mse")(MeanSquaredError())
