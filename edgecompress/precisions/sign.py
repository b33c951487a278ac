"""Signs with a gradient: what binary networks compute with, and how they are trained.

Every function returns -1 where x < 0 and +1 elsewhere, zero included. The sign's own gradient is
zero, so training replaces it by the one each function states (straight-through estimators). The
sign is written as `where(x >= 0, 1, -1)`, the form that Larq Compute Engine's converter turns into
bits, unlike `ops.sign`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras import ops

from edgecompress.core.registry import Registry

Quantizer = Callable[[Any], Any]

# Name -> function from a tensor to its signs, in the tensor's type.
SIGNS: Registry[Quantizer] = Registry("quantizer")

# Sharpness of swish_sign, the value of the paper's experiments.
SWISH_BETA = 5.0


def hard_sign(x: Any) -> Any:
    """Returns -1 where x < 0, else +1, without a gradient.

    Example:
        >>> import numpy as np
        >>> np.asarray(hard_sign(np.array([-0.5, 0.0, 2.0]))).tolist()
        [-1.0, 1.0, 1.0]
    """
    x = ops.convert_to_tensor(x)
    one = ops.cast(1, x.dtype)
    return ops.where(x >= 0, one, -one)


def _with_gradient(derivative: Callable[[Any], Any]) -> Quantizer:
    """Returns the sign with another derivative: `dL/dx = dL/dq * derivative(x)`."""

    @ops.custom_gradient
    def quantize(x: Any) -> Any:
        def gradient(*args: Any, upstream: Any = None) -> Any:
            upstream_grad = args[0] if upstream is None else upstream
            return upstream_grad * derivative(x)

        return hard_sign(x), gradient

    # The copy reads variables, for which the decorator requires other functions.
    return lambda x: quantize(ops.copy(x))


_ste = _with_gradient(lambda x: ops.cast(ops.abs(x) <= 1, x.dtype))
_approximate = _with_gradient(lambda x: ops.maximum(2 - 2 * ops.abs(x), 0))


def _swish_derivative(x: Any) -> Any:
    scaled = SWISH_BETA * x
    return SWISH_BETA * (2 - scaled * ops.tanh(scaled / 2)) / (1 + ops.cosh(scaled))


_swish = _with_gradient(_swish_derivative)


@SIGNS.register("ste_sign")
def ste_sign(x: Any) -> Any:
    """Returns signs; the gradient passes where |x| <= 1 and is zero elsewhere.

    `dq/dx = 1 if |x| <= 1 else 0`: equation 4 of Hubara et al., Binarized Neural Networks, 2016
    (https://arxiv.org/abs/1602.02830).

    Args:
        x: Numbers in any shape.

    Example:
        >>> import numpy as np
        >>> np.asarray(ste_sign(np.array([-2.0, 0.0]))).tolist()
        [-1.0, 1.0]
    """
    return _ste(x)


@SIGNS.register("approx_sign")
def approx_sign(x: Any) -> Any:
    """Returns signs; the gradient is a triangle around zero, that of a piecewise quadratic sign.

    `dq/dx = 2 - 2|x| if |x| <= 1 else 0`: Liu et al., Bi-Real Net, 2018, section 3.3
    (https://arxiv.org/abs/1808.00278), made for activations.

    Args:
        x: Numbers in any shape.
    """
    return _approximate(x)


@SIGNS.register("swish_sign")
def swish_sign(x: Any) -> Any:
    """Returns signs; the gradient is that of SignSwish, which is smooth and nowhere clipped.

    `dq/dx = b (2 - b x tanh(b x / 2)) / (1 + cosh(b x))` with b = 5: Darabi et al., BNN+:
    Improved Binary Network Training, 2018 (https://arxiv.org/abs/1812.11800). It is negative
    beyond |x| of about 0.48, which pulls weights back towards zero.

    Args:
        x: Numbers in any shape.
    """
    return _swish(x)
