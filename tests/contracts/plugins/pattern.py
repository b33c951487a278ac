"""A toy plugin: all weights that read one input of a Dense layer."""

from dataclasses import dataclass
from typing import Any

from edgecompress.core.kernel_shape import KernelShape
from edgecompress.patterns.base import PATTERNS, Pattern


@PATTERNS.register("rows")
@dataclass(frozen=True)
class Rows(Pattern):
    """Rows of a matrix stay or go by their mean score."""

    def fits(self, kernel: KernelShape) -> bool:
        """Tells whether the kernel is a matrix."""
        return len(kernel.shape) == 2

    def units(self, scores: Any, kernel: KernelShape) -> Any:
        """Returns the mean of each row."""
        from keras import ops

        return ops.mean(scores, axis=1)

    def expand(self, kept: Any, kernel: KernelShape) -> Any:
        """Returns the mask of the weights."""
        from keras import ops

        return ops.broadcast_to(ops.reshape(kept, (-1, 1)), kernel.shape)
