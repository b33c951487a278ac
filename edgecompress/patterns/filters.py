"""Filters: all weights of one output channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgecompress.core.kernel_shape import KernelShape
from edgecompress.patterns.base import PATTERNS, Pattern


@PATTERNS.register("filters")
@dataclass(frozen=True)
class Filters(Pattern):
    """All weights of one output channel or unit, ranked by the L2 norm of their scores.

    Biases stay, so an all-zero channel still has an output; `finalize` removes what it can.
    """

    def fits(self, kernel: KernelShape) -> bool:
        """Returns whether the kernel has an axis of output channels, and more than one of them."""
        return kernel.filter_axis is not None and kernel.shape[kernel.filter_axis] > 1

    def units(self, scores: Any, kernel: KernelShape) -> Any:
        """Returns the L2 norm of each filter's scores, (filters,)."""
        from keras import ops

        return ops.sqrt(ops.sum(ops.square(scores), axis=_others(kernel)))

    def expand(self, kept: Any, kernel: KernelShape) -> Any:
        """Returns the mask of the weights from that of the filters."""
        from keras import ops

        shape = [1] * len(kernel.shape)
        shape[kernel.filter_axis or 0] = -1
        return ops.broadcast_to(ops.reshape(kept, shape), kernel.shape)


def _others(kernel: KernelShape) -> tuple[int, ...]:
    rank = len(kernel.shape)
    return tuple(i for i in range(rank) if i != (kernel.filter_axis or 0) % rank)
