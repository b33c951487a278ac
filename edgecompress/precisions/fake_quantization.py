"""Integer quantization as pure functions over keras.ops, with straight-through gradients.

The arithmetic is that of LiteRT's kernels and of litert-quantizer: per-channel symmetric weights
with codes -127..127, per-tensor asymmetric activations with codes -128..127 and an exact zero, or
symmetric ones with 16 bits. Jacob et al., Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference, https://arxiv.org/abs/1712.05877, equations 1 and 12;
unlike in the paper, weights have per-channel scales and no offset.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from edgecompress.precisions.ranges.base import RangeMethod

# Number of weights from which on one compiled operator takes half the time of seven.
_LARGE = 2**17
# Smallest width of a range, as in litert-quantizer: no scale becomes zero.
SMALLEST_RANGE = 1e-9


def reduced_axes(rank: int, channel_axes: Sequence[int]) -> tuple[int, ...]:
    """Returns the axes of the weights within a channel: all but `channel_axes`.

    Example:
        >>> reduced_axes(4, (-1,)), reduced_axes(4, (-2, -1)), reduced_axes(2, ())
        ((0, 1, 2), (0, 1), (0, 1))
    """
    channels = {axis % rank for axis in channel_axes}
    return tuple(axis for axis in range(rank) if axis not in channels)


def weight_scales(
    weights: Any, channel_axes: Sequence[int], bits: int = 8, method: RangeMethod | None = None
) -> Any:
    """Returns the scale of each channel, `limit_c / (2 ** (bits - 1) - 1)`.

    Args:
        weights: A kernel of any shape.
        channel_axes: Axes whose indices have separate scales, e.g. (-1,) for Dense and
            Conv2D, (-2, -1) for a depthwise kernel.
        bits: Width of the codes. Defaults to 8.
        method: Chooses the limits. Defaults to the largest weights, `max(|w_c|)`.

    Returns:
        A float32 tensor that broadcasts against `weights`.
    """
    # In half precision the smallest range would be 0, and an all-zero channel 0 / 0.
    weights = ops.cast(weights, "float32")
    others, largest = reduced_axes(len(weights.shape), channel_axes), 2 ** (bits - 1) - 1
    limits = None if method is None else method.limits(weights, others, largest)
    if limits is None:
        # Two reductions cost less than a tensor of absolute values.
        above = ops.max(weights, axis=others, keepdims=True)
        below = ops.min(weights, axis=others, keepdims=True)
        limits = ops.maximum(above, -below)
    return ops.maximum(limits, SMALLEST_RANGE) / largest


def spread_scales(scales: Any, shape: Sequence[int], channel_axes: Sequence[int]) -> Any:
    """Returns a list of scales as a tensor that broadcasts against weights.

    Args:
        scales: In the order of the channels.
        shape: Of the weights.
        channel_axes: As in `weight_scales`.
    """
    others = reduced_axes(len(shape), channel_axes)
    sizes = [1 if axis in others else size for axis, size in enumerate(shape)]
    return ops.reshape(ops.convert_to_tensor(scales, "float32"), sizes)


def quantize_weights(
    weights: Any, channel_axes: Sequence[int], bits: int = 8, scales: Any = None
) -> Any:
    """Rounds weights to the values their codes stand for: `round(w / s_c) * s_c`.

    Args:
        weights: A kernel of any shape.
        channel_axes: As in `weight_scales`.
        bits: Width of the codes. Defaults to 8: codes -127..127.
        scales: As in `weight_codes`.

    Returns:
        A tensor in the type of `weights`; the arithmetic is float32.
    """
    weights = ops.convert_to_tensor(weights)
    codes, scales = weight_codes(weights, channel_axes, bits, scales)
    return ops.cast(codes * scales, weights.dtype)


def weight_codes(
    weights: Any, channel_axes: Sequence[int], bits: int = 8, scales: Any = None
) -> tuple[Any, Any]:
    """Returns the codes of weights, `round(w / s_c)`, and their scales, as float32 tensors.

    Args:
        weights: A kernel of any shape.
        channel_axes: As in `weight_scales`.
        bits: Width of the codes. Defaults to 8: codes -127..127.
        scales: A tensor that broadcasts against `weights`; larger weights saturate. Defaults to
            those of the largest weights.
    """
    values = ops.cast(weights, "float32")
    if scales is None:
        scales = weight_scales(weights, channel_axes, bits)
        return ops.round(values / scales), scales
    largest = 2 ** (bits - 1) - 1
    return ops.clip(ops.round(values / scales), -largest, largest), scales


def fake_quantize_weights(
    weights: Any, channel_axes: Sequence[int], bits: int = 8, scales: Any = None
) -> Any:
    """Rounds weights as `quantize_weights` does, with a straight-through gradient.

    Where the scale follows the largest weight of its channel, no weight is clipped, and the
    gradient passes unchanged. A clipped weight gets the share `limit / |w|` of it: the
    magnitude-aware differentiation of Sakr et al., https://arxiv.org/abs/2206.06501, equation 9.

    Args:
        weights: A float kernel of any shape.
        channel_axes: As in `weight_scales`.
        bits: Width of the codes. Defaults to 8.
        scales: As in `weight_codes`; they get no gradient.

    Example:
        >>> fake_quantize_weights(layer.kernel, channel_axes=(-1,))  # doctest: +SKIP
    """
    weights = ops.convert_to_tensor(weights)
    if scales is not None:
        limits = ops.stop_gradient(scales) * (2 ** (bits - 1) - 1)
        values = ops.cast(weights, "float32")
        # The value is w, its gradient that share.
        share = ops.stop_gradient(ops.minimum(1.0, limits / ops.maximum(ops.abs(values), 1e-30)))
        passed = ops.cast(values * share, weights.dtype)
        rounded = quantize_weights(ops.stop_gradient(weights), channel_axes, bits, scales)
        return passed + ops.stop_gradient(rounded - passed)
    quantize = functools.partial(quantize_weights, channel_axes=tuple(channel_axes), bits=bits)
    if keras.backend.backend() == "tensorflow" and math.prod(weights.shape) >= _LARGE:
        import tensorflow as tf

        quantize = tf.function(quantize, jit_compile=True)
    rounded = ops.custom_gradient(lambda values: (quantize(values), _passed))
    return rounded(weights)


def fake_quantize_together(weights: Sequence[Any], quantize: Callable[..., Any]) -> list[Any]:
    """Rounds all kernels of a model in one call, with straight-through gradients (TensorFlow only).

    Args:
        weights: Kernels of any shapes.
        quantize: Returns their rounded values, given all of them.
    """
    rounded = ops.custom_gradient(lambda *values: (quantize(*values), _all_passed))
    return list(rounded(*weights))


def _all_passed(*upstream: Any) -> Any:
    return upstream


def _passed(*arguments: Any, upstream: Any = None) -> Any:
    """Passes a gradient on: the straight-through estimate."""
    return arguments[0] if upstream is None else upstream


def nudged_range(low: Any, high: Any, bits: int = 8) -> tuple[Any, Any, Any]:
    """Returns the range that int codes actually cover, with an exact zero.

    `scale = (high - low) / (2 ** bits - 1)`, `zero_point = round(-low / scale)` counted from the
    lowest code; the range becomes `-zero_point * scale` to `(2 ** bits - 1 - zero_point) * scale`.

    Args:
        low: Minimum, a scalar; values above 0 count as 0.
        high: Maximum, a scalar; values below 0 count as 0.
        bits: Width of the codes. Defaults to 8.

    Returns:
        (minimum, maximum, scale).
    """
    low, high = ops.minimum(low, 0.0), ops.maximum(high, 0.0)
    steps = 2**bits - 1
    scale = ops.maximum(high - low, SMALLEST_RANGE) / steps
    zero_point = ops.round(-low / scale)
    return -zero_point * scale, (steps - zero_point) * scale, scale


def fake_quantize(values: Any, low: Any, high: Any, bits: int = 8) -> Any:
    """Rounds activations to the values of an asymmetric int type; saturates outside the range.

    The gradient is 1 inside the nudged range and 0 outside (clipped straight-through estimator);
    the range gets no gradient.

    Args:
        values: A float tensor of any shape.
        low: Minimum of the range, a scalar.
        high: Maximum of the range, a scalar.
        bits: Width of the codes. Defaults to 8.
    """
    if keras.backend.backend() == "tensorflow":
        return _native_fake_quantize(values, low, high, bits)
    low, high = (ops.stop_gradient(ops.cast(end, "float32")) for end in (low, high))
    low, high, scale = nudged_range(low, high, bits)

    def inside(inputs: Any, outputs: Any) -> Any:
        return ops.logical_and(ops.greater_equal(inputs, low), ops.less_equal(inputs, high))

    return _rounded_between(values, low, high, scale, inside)


def _rounded_between(
    values: Any, low: Any, high: Any, scale: Any, passes: Callable[[Any, Any], Any]
) -> Any:
    """Rounds as TensorFlow's own operator does, halves up, on backends that have none.

    Args:
        values: A float tensor of any shape.
        low: Lowest value.
        high: Highest value.
        scale: Distance of neighbouring values.
        passes: (values, rounded values) -> where the gradient passes.
    """

    def rounded(inputs: Any) -> Any:
        steps = (ops.minimum(ops.maximum(inputs, low), high) - low) * (1.0 / scale)
        zero = ops.floor(-low * (1.0 / scale) + 0.5)
        outputs = ops.floor(steps - zero + 0.5) * scale
        passed = passes(inputs, outputs)

        def gradient(*arguments: Any, upstream: Any = None) -> Any:
            return ops.where(passed, _passed(*arguments, upstream=upstream), 0.0)

        return outputs, gradient

    return ops.cast(ops.custom_gradient(rounded)(ops.cast(values, "float32")), values.dtype)


def portable_fake_quantize(values: Any, low: Any, high: Any, bits: int = 8) -> Any:
    """Does what `fake_quantize` does, using only keras.ops; half as fast on TensorFlow."""
    low, high, scale = (
        ops.stop_gradient(ops.cast(v, "float32"))
        for v in nudged_range(ops.cast(low, "float32"), ops.cast(high, "float32"), bits)
    )
    clipped = ops.clip(ops.cast(values, "float32"), low, high)
    rounded = ops.round((clipped - low) / scale) * scale + low
    result = clipped + ops.stop_gradient(rounded - clipped)
    return ops.cast(result, values.dtype)


def fake_quantize_symmetric(values: Any, low: Any, high: Any, bits: int = 16) -> Any:
    """Rounds activations to the values of a symmetric int type; saturates outside the range.

    `scale = max(|low|, |high|) / (2 ** (bits - 1) - 1)`, codes -2^(bits - 1)..2^(bits - 1) - 1. The
    gradient is 1 inside the range of the codes and 0 outside; the range gets no gradient.

    Args:
        values: A float tensor of any shape.
        low: Minimum of the range, a scalar.
        high: Maximum of the range, a scalar.
        bits: Width of the codes. Defaults to 16.
    """
    largest = 2 ** (bits - 1)
    span = ops.maximum(ops.abs(ops.cast(low, "float32")), ops.abs(ops.cast(high, "float32")))
    span = ops.stop_gradient(ops.maximum(span, SMALLEST_RANGE))
    scale = span / (largest - 1)
    # The range itself is the limit: a product with the scale may round to less.
    lowest = -span - scale
    if keras.backend.backend() == "tensorflow":
        clipped = ops.clip(ops.cast(values, "float32"), lowest, span)
    else:
        # There, `clip` passes half of the gradient at the ends.
        clipped = _clipped(ops.cast(values, "float32"), lowest, span)
    rounded = ops.round(clipped / scale) * scale
    return ops.cast(clipped + ops.stop_gradient(rounded - clipped), values.dtype)


def _clipped(values: Any, low: Any, high: Any) -> Any:
    """Returns clipped values; the gradient passes at both ends, as on TensorFlow."""

    def clipped(inputs: Any) -> Any:
        inside = ops.logical_and(inputs >= low, inputs <= high)

        def gradient(*arguments: Any, upstream: Any = None) -> Any:
            return ops.where(inside, _passed(*arguments, upstream=upstream), 0.0)

        return ops.clip(inputs, low, high), gradient

    return ops.custom_gradient(clipped)(values)


def _native_fake_quantize(values: Any, low: Any, high: Any, bits: int) -> Any:
    import tensorflow as tf

    # The operator leaves a range that misses zero unspecified, and its gradient would reach the
    # range's variables.
    if isinstance(low, float) and isinstance(high, float):
        low, high = min(low, 0.0), max(high, SMALLEST_RANGE)
    else:
        low = ops.stop_gradient(ops.minimum(ops.cast(low, "float32"), 0.0))
        high = ops.stop_gradient(ops.maximum(ops.cast(high, "float32"), SMALLEST_RANGE))
    result = tf.quantization.fake_quant_with_min_max_vars(
        ops.cast(values, "float32"), low, high, num_bits=bits
    )
    return ops.cast(result, values.dtype)


def passing(quantize: Callable[[Any], Any], values: Any) -> Any:
    """Returns rounded values whose gradient passes unchanged, even where they are clipped.

    For ranges that follow the extremes of the values: they clip next to nothing, and finding out
    what takes longer than rounding.

    Args:
        quantize: Returns the rounded values.
        values: A float tensor of any shape.
    """
    return ops.custom_gradient(lambda inputs: (quantize(inputs), _passed))(values)


def rectified_fake_quantize(
    values: Any, high: Any, bits: int = 8, maximum: float = math.inf
) -> Any:
    """Returns `fake_quantize(relu(values), 0, high)`, on TensorFlow in the time of one operator.

    Rounding to a range from 0 clips what ReLU clips: ReLU itself is left out of the training step.
    The gradient is ReLU's, at the rounded output: 1 above 0, and above `high` as well, which
    follows the largest values. ReLU6 has none from 6 on.

    Args:
        values: What ReLU would read, a float tensor of any shape.
        high: Maximum of the range, a scalar above 0.
        bits: Width of the codes. Defaults to 8.
        maximum: Of ReLU: infinity or 6. Defaults to infinity.
    """
    if keras.backend.backend() != "tensorflow":
        highest = ops.stop_gradient(high)

        def passes(inputs: Any, outputs: Any) -> Any:
            if maximum == math.inf:
                return outputs > 0
            return ops.logical_and(inputs > 0, inputs < maximum)

        return _rounded_between(values, 0.0, highest, highest / (2**bits - 1), passes)
    import tensorflow as tf

    @tf.custom_gradient
    def rounded(inputs: Any) -> Any:
        outputs = tf.quantization.fake_quant_with_min_max_vars(inputs, 0.0, high, num_bits=bits)
        # With ReLU's output alone, the memory of its input is free for the next layer.
        if maximum == math.inf:
            return outputs, lambda upstream: tf.raw_ops.ReluGrad(
                gradients=upstream, features=outputs
            )
        return outputs, lambda upstream: tf.raw_ops.Relu6Grad(gradients=upstream, features=inputs)

    return ops.cast(rounded(ops.cast(values, "float32")), values.dtype)


def batch_range(values: Any) -> Any:
    """Returns [minimum, maximum] of a tensor in float32, without gradient."""
    values = ops.stop_gradient(values)
    return ops.cast(ops.stack([ops.min(values), ops.max(values)]), "float32")


def averaging(ranges: Any, momentum: float) -> tuple[Any, Any]:
    """Returns how ranges move to the next batch's: `start + share * (batch's - start)`.

    That is the exponential moving average, and the batch's range if nothing has been seen before.

    Args:
        ranges: [minimum, maximum] along the last axis; [inf, -inf] if nothing has been seen yet.
        momentum: Share of the old range, 0 to 1.

    Returns:
        (start, share); they broadcast against `ranges`.
    """
    low, high = ops.split(ranges, 2, axis=-1)
    unseen = low > high
    return ops.where(unseen, 0.0, ranges), ops.where(unseen, 1.0, 1.0 - momentum)


def moving_range(old: Any, new: Any, momentum: float) -> Any:
    """Returns the exponential moving average of a range, `old + (1 - momentum) * (new - old)`.

    Args:
        old: [minimum, maximum]; [inf, -inf] if nothing has been seen yet; `new` is then returned.
        new: [minimum, maximum] of the batch.
        momentum: Share of the old range, 0 to 1.
    """
    start, share = averaging(ops.convert_to_tensor(old), momentum)
    return start + share * (new - start)
