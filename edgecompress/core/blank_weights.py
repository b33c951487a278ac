"""Building layers whose weights are set right afterwards."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

from edgecompress.core.freed_memory import comes_zeroed

# Weights of a layer for which that is worth it.
_LARGE = 1 << 18
_DRAWING = ("RandomNormal", "TruncatedNormal", "RandomUniform", "VarianceScaling", "Orthogonal")


@contextlib.contextmanager
def blank_weights() -> Iterator[None]:
    """Lets large weights of layers that are built inside the block start at zero.

    Drawing random numbers takes three copies of the weights and most of the time of building a
    large layer. Subclasses with a `__call__` of their own draw as always.
    """
    import keras

    kinds = [getattr(keras.initializers, name) for name in _DRAWING]
    draws = [kind.__call__ for kind in kinds]
    try:
        for kind, draw in zip(kinds, draws, strict=True):
            kind.__call__ = _blank(draw)
        yield
    finally:
        for kind, draw in zip(kinds, draws, strict=True):
            kind.__call__ = draw


def _blank(draw: Any) -> Any:
    def call(initializer: Any, shape: Any, dtype: Any = None) -> Any:
        import keras

        if math.prod(shape) < _LARGE:
            return draw(initializer, shape, dtype)
        zeroed = comes_zeroed(4 * math.prod(shape))
        if zeroed and dtype == "float32" and keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            # Writing zeros would only make the system find that memory.
            return tf.raw_ops.Empty(shape=shape, dtype=tf.float32)
        return keras.ops.zeros(shape, dtype)

    return call
