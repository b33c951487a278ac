"""Fewer channels between two 1x1 convolutions: the block `bottleneck`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from edgecompress.core.options import option, whole
from edgecompress.surgery.blocks.base import BLOCKS, Block, Chain, Site, Step, not_in_groups
from edgecompress.surgery.factors.base import Part
from edgecompress.surgery.factors.tucker import Tucker


@BLOCKS.register("bottleneck")
@dataclass(frozen=True)
class Bottleneck(Block):
    """A 1x1 convolution to fewer channels, the convolution among those, a 1x1 convolution to all.

    The block B(b) of Crowley, Gray and Storkey, Moonshine (2018, https://arxiv.org/abs/1711.02613,
    section 4), after He et al., Deep Residual Learning for Image Recognition (2016,
    https://arxiv.org/abs/1512.03385, figure 5); with groups in the middle, that of Xie et al.,
    Aggregated Residual Transformations (2017, https://arxiv.org/abs/1611.05431, figure 3c). It
    starts as the Tucker-2 decomposition of the kernel, of whose core groups keep the blocks on the
    diagonal.

    Args:
        factor: Inputs and outputs are divided by this in the middle.
        groups: Groups of the convolution in the middle.
    """

    factor: int = option(2, "Divisor of the channels in the middle.", whole(2))
    groups: int = option(1, "Groups of the convolution in the middle.", whole(1))

    def why_not(self, site: Site) -> str | None:
        """As `Block.why_not`."""
        if min(site.inputs, site.outputs) < self.factor:
            return f"it has fewer channels than factor={self.factor}"
        first, last = self._ranks(site)
        return not_in_groups(first, self.groups, "channels in the middle") or not_in_groups(
            last, self.groups, "channels in the middle"
        )

    def chains(self, site: Site) -> tuple[Chain, ...]:
        """As `Block.chains`."""
        ranks = self._ranks(site)
        tucker = Tucker()
        parts, kernels = tucker.parts(site.shape, ranks), tucker.kernels(site.kernel, ranks)
        core = diagonal_blocks(kernels[1], self.groups)
        middle = Part(core.shape, parts[1].axes, groups=self.groups)
        return ((Step(parts[0], kernels[0]), Step(middle, core), Step(parts[2], kernels[2])),)

    def _ranks(self, site: Site) -> tuple[int, int]:
        positions = math.prod(site.shape[:-2])
        first, last = site.inputs // self.factor, site.outputs // self.factor
        # A core has no more independent columns than rows.
        return min(first, positions * last), min(last, positions * first)


def diagonal_blocks(kernel: np.ndarray, groups: int) -> np.ndarray:
    """Returns the kernel of a grouped convolution: of each group's outputs its own inputs.

    Args:
        kernel: Shape (*spatial, inputs, outputs), both multiples of `groups`.
        groups: The groups.

    Returns:
        Shape (*spatial, inputs / groups, outputs).
    """
    *_, inputs, outputs = kernel.shape
    rows, columns = inputs // groups, outputs // groups
    own = [
        kernel[..., g * rows : (g + 1) * rows, g * columns : (g + 1) * columns]
        for g in range(groups)
    ]
    return np.concatenate(own, axis=-1)
