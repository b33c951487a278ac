"""Binary weights as pure functions over keras.ops: signs times a scale for each output channel.

Rastegari et al., XNOR-Net, 2016 (https://arxiv.org/abs/1603.05279), section 3.1, and Courbariaux et
al., BinaryConnect, 2015 (https://arxiv.org/abs/1511.00363). Activations are not affected. Codes in
an int8 file are -127 and 127 in every channel, as its scale is `max(|w_c|) / 127`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from edgecompress.core.registry import Registry
from edgecompress.precisions.fake_quantization import reduced_axes
from edgecompress.precisions.sign import hard_sign

# Reordered float32 sums differ by less than this, relative to the largest weight.
SAME = 1e-5


@dataclass(frozen=True)
class BinaryScale:
    """How the scale of binary weights follows from float ones.

    Attributes:
        value: (weights, axes that share a scale) -> alpha, which broadcasts against the weights.
        gradient: (dL/dW_b, signs, the same axes) -> what the scale's own derivative adds to dL/dW.
    """

    value: Callable[[Any, tuple[int, ...]], Any]
    gradient: Callable[[Any, Any, tuple[int, ...]], Any]


# What `scale=` may name.
SCALES: Registry[BinaryScale] = Registry("scale")

# alpha = mean |w|, so d alpha / dw_i = sign(w_i) / n, and W_b = alpha sign(W) takes part with all
# its weights: sum_j g_j sign(w_j) sign(w_i) / n.
SCALES.register("mean")(
    BinaryScale(
        lambda weights, axes: ops.mean(ops.abs(weights), axis=axes, keepdims=True),
        lambda upstream_grad, signs, axes: (
            signs * ops.mean(upstream_grad * signs, axis=axes, keepdims=True)
        ),
    )
)
SCALES.register("one")(
    BinaryScale(
        lambda weights, axes: ops.ones_like(ops.max(weights, axis=axes, keepdims=True)),
        lambda upstream_grad, signs, axes: 0.0,
    )
)


def binary_scale(weights: Any, channel_axes: Sequence[int], scale: str = "mean") -> Any:
    """Returns the scale of each channel: `alpha_c = mean |w_c|`, or 1.

    The mean is the scale for which `alpha sign(W)` is closest to W: equation 6 of XNOR-Net.

    Args:
        weights: Float kernel of any shape.
        channel_axes: Axes whose indices have separate scales, e.g. (-1,) for Dense and
            Conv2D, (-2, -1) for a depthwise kernel; () for one scale.
        scale: `"mean"` or `"one"`. Defaults to `"mean"`.

    Returns:
        A float32 tensor: sums of half-precision weights overflow.

    Raises:
        UnknownNameError: `scale` is unknown.

    Example:
        >>> np.asarray(binary_scale(np.array([[0.5, -1.0], [-0.1, 3.0]], "f4"), (-1,))).tolist()
        [[0.30000001192092896, 2.0]]
    """
    weights = ops.cast(weights, "float32")
    return SCALES[scale].value(weights, reduced_axes(len(weights.shape), channel_axes))


def binarize(weights: Any, channel_axes: Sequence[int], scale: str = "mean") -> Any:
    """Returns `alpha_c sign(w)` with `sign(0) = 1`, in the type of `weights`.

    Args:
        weights: Float kernel of any shape.
        channel_axes: As in `binary_scale`.
        scale: `"mean"` or `"one"`. Defaults to `"mean"`.

    Example:
        >>> np.asarray(binarize(np.array([[0.5, -1.0], [0.0, 3.0]], "f4"), (-1,))).tolist()
        [[0.25, -2.0], [0.25, 2.0]]
    """
    weights = ops.convert_to_tensor(weights)
    signs = hard_sign(ops.cast(weights, "float32"))
    return ops.cast(binary_scale(weights, channel_axes, scale) * signs, weights.dtype)


def binary_gradient(
    upstream_grad: Any,
    weights: Any,
    channel_axes: Sequence[int],
    scale: str = "mean",
    clip: float = 1.0,
) -> Any:
    """Returns dL/dW from dL/dW_b, the sign's derivative being 1 for |w| <= clip and 0 beyond.

        dL/dw_i = alpha g_i 1(|w_i| <= clip) + sign(w_i) / n * sum_j g_j sign(w_j)

    The second term is the derivative of `alpha = mean |w|` over the n weights of the channel; with
    `scale="one"` there is none. XNOR-Net prints it as `g_i / n`, without the sum.

    Args:
        upstream_grad: dL/dW_b, the shape of `weights`.
        weights: The float weights W.
        channel_axes: As in `binary_scale`.
        scale: `"mean"` or `"one"`. Defaults to `"mean"`.
        clip: Clipping limit of the straight-through estimator. Defaults to 1.
    """
    upstream_grad = ops.convert_to_tensor(upstream_grad)
    gradients, weights = ops.cast(upstream_grad, "float32"), ops.cast(weights, "float32")
    axes = reduced_axes(len(weights.shape), channel_axes)
    inside = ops.cast(ops.abs(weights) <= clip, "float32")
    passed = SCALES[scale].value(weights, axes) * gradients * inside
    added = SCALES[scale].gradient(gradients, hard_sign(weights), axes)
    return ops.cast(passed + added, upstream_grad.dtype)


def is_binary(weights: np.ndarray, channel_axes: Sequence[int]) -> bool:
    """Returns whether all weights of each channel have one magnitude, and some are not zero.

    A kernel with one weight per channel is inconclusive: False.

    Example:
        >>> kernel = np.array([[0.5, -2.0], [-0.5, 2.0]])
        >>> is_binary(kernel, (-1,)), is_binary(kernel, ())
        (True, False)
    """
    magnitudes = np.abs(weights)
    axes = reduced_axes(magnitudes.ndim, channel_axes)
    largest = magnitudes.max(axis=axes, keepdims=True)
    if not largest.any() or magnitudes.size == largest.size:
        return False
    return bool((largest - magnitudes <= SAME * largest).all())
