"""Input channels: all weights that read one channel."""

from __future__ import annotations

from dataclasses import dataclass

from edgecompress.core.kernel_shape import KernelShape
from edgecompress.patterns.base import PATTERNS
from edgecompress.patterns.slices import Slices


@PATTERNS.register("input-channels")
@dataclass(frozen=True)
class InputChannels(Slices):
    """All weights of a layer that read one input channel, ranked by a norm of their scores.

    A channel that none of its readers reads is removed by `finalize` together with the filter that
    computes it: He et al., "Channel pruning for accelerating very deep neural networks" (2017,
    https://arxiv.org/abs/1707.06168), section 3.1.
    """

    def axes(self, kernel: KernelShape) -> tuple[int, ...] | None:
        """Returns the axis of input channels."""
        return None if kernel.input_axis is None else (kernel.input_axis,)
