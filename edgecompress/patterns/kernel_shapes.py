"""Kernel shapes: the same weight of all filters."""

from __future__ import annotations

from dataclasses import dataclass

from edgecompress.core.kernel_shape import KernelShape
from edgecompress.patterns.base import PATTERNS
from edgecompress.patterns.slices import Slices


@PATTERNS.register("kernel-shapes")
@dataclass(frozen=True)
class KernelShapes(Slices):
    """One weight of every filter, at the same position and input channel, by a norm of the scores.

    The shape-wise groups of Wen et al., "Learning structured sparsity in deep neural networks"
    (2016, https://arxiv.org/abs/1608.03665), equation (3): each is a row of the matrix with which a
    convolution multiplies its windows, so engines that build the windows could leave it out. The
    kernels of TensorFlow Lite do not: files get smaller, not faster.
    """

    def axes(self, kernel: KernelShape) -> tuple[int, ...] | None:
        """Returns all axes but the one of output channels."""
        return None if kernel.filter_axis is None else kernel.others(kernel.filter_axis)
