"""Fixed-point weights: multiples of a power of two, rounded to the nearest or by chance.

A number of `word_bits` bits with `fraction_bits` behind the point is `c / 2 ** fraction_bits`, with
a whole c from `-2 ** (word_bits - 1)` to `2 ** (word_bits - 1) - 1`; larger values saturate.

Gupta et al., Deep Learning with Limited Numerical Precision, 2015
(https://arxiv.org/abs/1502.02551), section 3.
"""

from __future__ import annotations

from typing import Any

from keras import ops


def fixed_point(values: Any, word_bits: int, fraction_bits: int, chance: Any = 0.5) -> Any:
    """Returns values on the grid of a fixed-point format.

    With x the value in steps of the grid and u = `chance`, the code is `floor(x + u)`: for u = 1/2
    the nearest, for u uniform in [0, 1) the upper neighbour with probability `x - floor(x)`, so
    that the mean of the rounded value is the value (section 3.1).

    Args:
        values: A float tensor of any shape.
        word_bits: Bits of a number, its sign included.
        fraction_bits: Bits behind the point; negative for steps above 1.
        chance: u: a tensor of the values' shape, or a number. Defaults to 0.5.

    Example:
        >>> float(fixed_point(ops.convert_to_tensor(0.3), word_bits=8, fraction_bits=2))
        0.25
        >>> float(fixed_point(ops.convert_to_tensor(0.3), 8, 2, chance=0.9))
        0.5
        >>> float(fixed_point(ops.convert_to_tensor(99.0), word_bits=8, fraction_bits=2))
        31.75
    """
    steps = 2.0**fraction_bits
    limit = 2 ** (word_bits - 1)
    codes = ops.floor(values * steps + chance)
    return ops.clip(codes, -limit, limit - 1) / steps
