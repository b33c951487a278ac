"""Ternary weights as pure functions over keras.ops: a negative value, zero, and a positive one.

TWN computes both values from the float weights: Li, Zhang and Liu, Ternary Weight Networks, 2016
(https://arxiv.org/abs/1605.04711), section 2. TTQ trains them: Zhu, Han, Mao and Dally, Trained
Ternary Quantization, 2017 (https://arxiv.org/abs/1612.01064), section 3. Activations are not
affected.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from edgecompress.precisions.binary import SAME
from edgecompress.precisions.fake_quantization import reduced_axes


def ternarize(weights: Any, threshold: Any, positive: Any, negative: Any) -> Any:
    """Returns `positive` where w > threshold, `-negative` where w < -threshold, else 0.

    Computed in float32, returned in the type of `weights`.

    Args:
        weights: Float kernel of any shape.
        threshold: Not negative; it and the values broadcast against the weights.
        positive: W_p.
        negative: W_n, a positive number.

    Example:
        >>> np.asarray(ternarize(np.array([0.5, 0.1, -0.9], "f4"), 0.2, 2.0, 3.0)).tolist()
        [2.0, 0.0, -3.0]
    """
    weights = ops.convert_to_tensor(weights)
    values = ops.cast(weights, "float32")
    zero = ops.zeros_like(values)
    above, below = values > threshold, values < -threshold
    chosen = ops.where(above, zero + positive, ops.where(below, zero - negative, zero))
    return ops.cast(chosen, weights.dtype)


def twn_threshold(weights: Any, channel_axes: Sequence[int], factor: float = 0.7) -> Any:
    """Returns `factor * mean |w_c|` of each channel: the threshold of TWN.

    Args:
        weights: Float kernel of any shape.
        channel_axes: Axes whose indices have separate thresholds; () for a single threshold.
        factor: 0.7 in the paper, between the optima for uniform and normal weights. Defaults to
            0.7.

    Returns:
        A tensor that broadcasts against `weights`.
    """
    weights = ops.cast(weights, "float32")
    axes = reduced_axes(len(weights.shape), channel_axes)
    return factor * ops.mean(ops.abs(weights), axis=axes, keepdims=True)


def mean_beyond(weights: Any, threshold: Any, channel_axes: Sequence[int]) -> Any:
    """Returns the mean of |w| over the weights with |w| > threshold; 0 if there are none.

    With the TWN threshold, it is the scale for which the ternary weights are closest to W.

    Args:
        weights: Float kernel of any shape.
        threshold: Broadcasts against the weights.
        channel_axes: Axes whose indices have separate means; () for a single mean.
    """
    # Half precision counts to 2,048 only.
    weights = ops.cast(weights, "float32")
    axes = reduced_axes(len(weights.shape), channel_axes)
    magnitudes = ops.abs(weights)
    beyond = ops.cast(magnitudes > threshold, magnitudes.dtype)
    count = ops.sum(beyond, axis=axes, keepdims=True)
    return ops.sum(magnitudes * beyond, axis=axes, keepdims=True) / ops.maximum(count, 1.0)


def twn(weights: Any, channel_axes: Sequence[int], factor: float = 0.7) -> Any:
    """Returns the ternary weights of TWN: `alpha_c * {-1, 0, 1}`.

    The gradient passes to the float weights unchanged.

    Args:
        weights: Float kernel of any shape.
        channel_axes: Axes whose indices have separate thresholds and scales, as in an int8 file; ()
            for one of each per layer, as in the paper.
        factor: See `twn_threshold`. Defaults to 0.7.

    Example:
        >>> np.asarray(twn(np.array([0.5, 0.25, -1.0, 0.0], "f4"), ())).tolist()
        [0.75, 0.0, -0.75, 0.0]
    """
    threshold = twn_threshold(weights, channel_axes, factor)
    scale = mean_beyond(weights, threshold, channel_axes)
    return ternarize(weights, threshold, scale, scale)


def ttq_threshold(weights: Any, factor: float = 0.05) -> Any:
    """Returns `factor * max |w|`, a scalar: the threshold of TTQ.

    Args:
        weights: Float kernel of any shape.
        factor: t, the same for all layers. Defaults to 0.05.
    """
    return factor * ops.max(ops.abs(ops.cast(weights, "float32")))


def ttq_start(weights: Any, threshold: Any) -> tuple[Any, Any]:
    """Returns (W_p, W_n) to start from: the mean |w| of the weights on each side.

    A side without weights gets the mean of the other; the paper leaves the start open.
    """
    weights = ops.cast(weights, "float32")
    both = mean_beyond(weights, threshold, ())
    sides = [mean_beyond(ops.maximum(side, 0.0), threshold, ()) for side in (weights, -weights)]
    positive, negative = (ops.reshape(ops.where(side > 0, side, both), ()) for side in sides)
    return positive, negative


def ttq_value_gradients(upstream_grad: Any, weights: Any, threshold: Any) -> tuple[Any, Any]:
    """Returns (dL/dW_p, dL/dW_n), scalars.

        dL/dW_p = sum of g_i where w_i > threshold,  dL/dW_n = -sum of g_i where w_i < -threshold

    The paper prints the second without its sign; it follows from `w_t = -W_n`.

    Args:
        upstream_grad: g = dL/dW_t, the shape of `weights`.
        weights: The float weights W.
        threshold: A scalar.
    """
    upstream_grad, weights = ops.cast(upstream_grad, "float32"), ops.cast(weights, "float32")
    positive = ops.cast(weights > threshold, upstream_grad.dtype)
    negative = ops.cast(weights < -threshold, upstream_grad.dtype)
    return ops.sum(upstream_grad * positive), -ops.sum(upstream_grad * negative)


def ttq_gradient(
    upstream_grad: Any, weights: Any, threshold: Any, positive: Any, negative: Any
) -> Any:
    """Returns dL/dW: g times W_p, 1 or W_n, depending on the weight's region.

    Args:
        upstream_grad: g = dL/dW_t, the shape of `weights`.
        weights: The float weights W.
        threshold: A scalar.
        positive: W_p.
        negative: W_n.
    """
    upstream_grad, weights = ops.convert_to_tensor(upstream_grad), ops.cast(weights, "float32")
    ones = ops.ones_like(weights)
    factors = ops.where(
        weights > threshold,
        ones * positive,
        ops.where(weights < -threshold, ones * negative, ones),
    )
    return ops.cast(ops.cast(upstream_grad, "float32") * factors, upstream_grad.dtype)


def is_ternary(weights: np.ndarray, channel_axes: Sequence[int]) -> bool:
    """Returns whether each channel holds zeros, one positive and one negative value at most.

    An all-zero kernel, or one with at most two weights per channel, is inconclusive: False.

    Args:
        weights: Kernel of any shape.
        channel_axes: Axes whose indices have separate values; () for a single pair.

    Example:
        >>> is_ternary(np.array([0.5, 0.0, -2.0, 0.5]), ()), is_ternary(np.arange(4.0), ())
        (True, False)
    """
    axes = reduced_axes(weights.ndim, channel_axes)
    largest = np.abs(weights).max(axis=axes, keepdims=True)
    if not largest.any() or weights.size <= 2 * largest.size:
        return False
    sides = (np.maximum(weights, 0), np.maximum(-weights, 0))
    return all(
        bool(((side == 0) | (np.abs(side.max(axis=axes, keepdims=True) - side) <= SAME * largest))
             .all())
        for side in sides
    )  # fmt: skip
