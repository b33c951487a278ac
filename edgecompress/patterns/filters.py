"""Filters: all weights of one output channel."""

from __future__ import annotations

from dataclasses import dataclass

from edgecompress.core.kernel_shape import KernelShape
from edgecompress.patterns.base import PATTERNS
from edgecompress.patterns.slices import Slices


@PATTERNS.register("filters")
@dataclass(frozen=True)
class Filters(Slices):
    """All weights of one output channel or unit, ranked by a norm of their scores.

    Biases stay, so an all-zero channel still has an output; `finalize` removes what it can.
    """

    def axes(self, kernel: KernelShape) -> tuple[int, ...] | None:
        """Returns the axis of output channels."""
        if kernel.filter_axis is None:
            return None
        return (kernel.filter_axis % len(kernel.shape),)
