"""Ranges that the loss decides: their ends get gradients and are trained like weights.

LSQ: Esser et al., Learned Step Size Quantization, https://arxiv.org/abs/1902.08153, equations 3 and
section 2.2; with an end on both sides of zero as in LSQ+, https://arxiv.org/abs/2004.09576. PACT:
Choi et al., https://arxiv.org/abs/1805.06085, equation 3.

With n steps s = (h - l) / n and v = (x - l) / s, the derivatives of a rounded value are

    by h:  1 where x > h,   0 where x < l,   (round(v) - v) / n  inside
    by l:  0 where x > h,   1 where x < l,   (v - round(v)) / n  inside

PACT drops what is inside. LSQ's gradient of the step is that of h times n; it is scaled by
1 / sqrt(N n), where N values share the step. The ends are trained here instead of steps, so that an
optimizer with an update of fixed size, such as Adam, moves them as it moves weights; their gradient
has another factor n, with which plain gradient descent moves the step exactly as LSQ does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from edgecompress.precisions.ranges.base import RANGES, RangeMethod
from edgecompress.precisions.ranges.mean_squared_error import best_limits, best_range

# Called in the backward pass with the gradient of the ends or the limits.
Found = Callable[[Any], None]


@dataclass(frozen=True)
class Learnt(RangeMethod):
    """A range whose ends are trained; it starts where the mean squared error is smallest."""

    learnt: ClassVar[bool] = True
    calibration: ClassVar[str] = "mse"

    def limits(self, weights: Any, axes: Sequence[int], largest: int) -> Any:
        """Returns the limits to start with."""
        return best_limits(weights, axes, largest)

    def batch_range(self, values: Any, steps: int, percentile: float, counts: Any = None) -> Any:
        """Returns the range to start with."""
        return best_range(values, steps, counts)

    def gradient(self, inside: Any, outside: Any, bounds: Any, steps: int) -> Any:
        """Returns the gradient of the ends that the optimizer gets.

        Args:
            inside: Derivative of the loss by both ends through the values inside, summed.
            outside: The same through the clipped ones.
            bounds: The ends.
            steps: Number of steps between them.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class LearntSteps(Learnt):
    """LSQ: the step follows the gradient of the task's loss, for weights and activations."""

    summary: ClassVar[str] = "learnt steps (LSQ)"
    weights: ClassVar[bool] = True

    def gradient(self, inside: Any, outside: Any, bounds: Any, steps: int) -> Any:
        """Returns the sum; the factor of LSQ is applied where the number of values is known."""
        return inside + outside


# Of the squared upper end in the loss, as for weights in the paper's experiments.
_DECAY = 5e-4


@dataclass(frozen=True)
class LearntClipping(Learnt):
    """PACT: clipped activations move the ends, and weight decay pulls them back to zero."""

    summary: ClassVar[str] = "learnt clipping (PACT)"

    def gradient(self, inside: Any, outside: Any, bounds: Any, steps: int) -> Any:
        """Returns that of the clipped values and of the decay."""
        return outside + 2 * _DECAY * bounds


def learnt_fake_quantize(values: Any, bounds: Any, bits: int, method: Learnt, found: Found) -> Any:
    """Rounds activations as `fake_quantization.fake_quantize` does, and finds the ends' gradient.

    Args:
        values: A float tensor of any shape.
        bounds: [minimum, maximum].
        bits: Width of the codes.
        method: LSQ or PACT.
        found: Called in the backward pass with the gradient of `bounds`. An end at zero has none:
            the range of a ReLU stays on one side.
    """
    from keras import ops

    from edgecompress.precisions.fake_quantization import nudged_range, portable_fake_quantize

    dtype, steps = values.dtype, 2**bits - 1
    bounds = ops.stop_gradient(bounds)

    def rounded(x: Any) -> Any:
        low, high = ops.unstack(bounds)

        def backward(*arguments: Any, upstream: Any = None) -> Any:
            gradient = ops.cast(arguments[0] if upstream is None else upstream, "float32")
            real = ops.cast(x, "float32")
            least, most, scale = nudged_range(low, high, bits)
            above = ops.cast(real > most, "float32")
            below = ops.cast(real < least, "float32")
            within = 1.0 - above - below
            position = (real - least) / scale
            rest = ops.sum(gradient * within * (ops.round(position) - position)) / steps
            inside = ops.stack([-rest, rest])
            outside = ops.stack([ops.sum(gradient * below), ops.sum(gradient * above)])
            total = method.gradient(inside, outside, bounds, steps)
            if isinstance(method, LearntSteps):
                count = ops.cast(ops.size(x), "float32")
                total = total * (steps**2 / ops.sqrt(count * steps))
            found(ops.where(bounds == 0, 0.0, total))
            return ops.cast(gradient * within, dtype)

        return portable_fake_quantize(x, low, high, bits), backward

    return ops.custom_gradient(rounded)(values)


def learnt_fake_quantize_weights(weights: Any, limits: Any, bits: int, found: Found) -> Any:
    """Rounds weights to the codes of learnt limits (LSQ), and finds the limits' gradient.

    Args:
        weights: A float kernel of any shape.
        limits: What the largest code stands for; broadcasts against `weights`.
        bits: Width of the codes.
        found: Called in the backward pass with the gradient of `limits`.
    """
    from keras import ops

    largest = 2 ** (bits - 1) - 1
    limits, dtype = ops.stop_gradient(limits), weights.dtype
    axes = tuple(axis for axis, size in enumerate(limits.shape) if size == 1)
    shared = math.prod(weights.shape) / math.prod(limits.shape)

    def rounded(w: Any) -> Any:
        position = ops.cast(w, "float32") / (limits / largest)
        codes = ops.clip(ops.round(position), -largest, largest)

        def backward(*arguments: Any, upstream: Any = None) -> Any:
            gradient = ops.cast(arguments[0] if upstream is None else upstream, "float32")
            within = ops.cast(ops.abs(position) <= largest, "float32")
            change = within * (codes - position) + (1.0 - within) * codes
            total = ops.sum(gradient * change, axis=axes, keepdims=True) / largest
            found(total * (largest**2 / math.sqrt(shared * largest)))
            return ops.cast(gradient * within, dtype)

        return ops.cast(codes * (limits / largest), dtype), backward

    return ops.custom_gradient(rounded)(weights)


RANGES.register("lsq")(LearntSteps())
RANGES.register("pact")(LearntClipping())
