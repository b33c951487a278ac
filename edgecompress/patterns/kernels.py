"""Kernels: the two-dimensional slices of a convolution."""

from __future__ import annotations

from dataclasses import dataclass

from edgecompress.core.kernel_shape import KernelShape
from edgecompress.patterns.base import PATTERNS
from edgecompress.patterns.slices import Slices


@PATTERNS.register("kernels")
@dataclass(frozen=True)
class Kernels(Slices):
    """The weights between one input and one output channel of a convolution, by a norm.

    Mao et al., "Exploring the regularity of sparse structure in convolutional neural networks"
    (2017, https://arxiv.org/abs/1705.08922), section 3. In a Dense layer, these are single weights.
    """

    def axes(self, kernel: KernelShape) -> tuple[int, ...] | None:
        """Returns the axes of input and output channels."""
        if kernel.filter_axis is None or kernel.input_axis is None:
            return None
        return tuple(sorted((kernel.filter_axis % len(kernel.shape), kernel.input_axis)))
