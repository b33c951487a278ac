"""Joining and reversing time steps with operators that every engine has, in integers too.

Not PACK, GATHER and REVERSE_V2: their arena on microcontrollers is not known, and 16-bit or integer
kernels are missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# TensorFlow Lite Micro joins at most so many tensors at once.
_MOST_JOINED = 10


def joined(parts: Sequence[Any], axis: int) -> Any:
    """Returns tensors joined along an axis, a few at a time."""
    import tensorflow as tf

    while len(parts) > 1:
        groups = [parts[i : i + _MOST_JOINED] for i in range(0, len(parts), _MOST_JOINED)]
        parts = [group[0] if len(group) == 1 else tf.concat(group, axis) for group in groups]
    return parts[0]


def reversed_steps(sequences: Any) -> Any:
    """Returns sequences (batch, steps, ...) with the last time step first."""
    import tensorflow as tf

    steps = sequences.shape[1]
    return joined(tf.split(sequences, steps, axis=1)[::-1], axis=1)
