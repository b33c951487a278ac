"""A grouped convolution beside a 1x1 convolution: the block `pattern-residual`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgecompress.core.options import option, whole
from edgecompress.surgery.blocks.base import (
    BLOCKS,
    Block,
    Chain,
    Site,
    Step,
    axes_of,
    not_in_groups,
    ones_of,
)
from edgecompress.surgery.blocks.bottleneck import diagonal_blocks
from edgecompress.surgery.factors.base import Part, ungrouped


@BLOCKS.register("pattern-residual")
@dataclass(frozen=True)
class PatternResidual(Block):
    """A convolution in groups and a 1x1 convolution of the same input, added.

    The pattern residual block of Li et al., SEP-Nets (2017, https://arxiv.org/abs/1706.03912,
    section 3), but its 1x1 convolution sees all channels: nothing else would mix the groups. It
    starts as the nearest sum in squares: within the groups, the convolution is the kernel; between
    them, the 1x1 convolution is the kernel at the position that it reads.

    Args:
        groups: Groups of the convolution.
    """

    groups: int = option(4, "Groups of the convolution.", whole(2))

    def why_not(self, site: Site) -> str | None:
        """As `Block.why_not`."""
        if site.tap is None:
            return "no 1x1 convolution has outputs of the same size at its padding and strides"
        return not_in_groups(site.inputs, self.groups, "inputs") or not_in_groups(
            site.outputs, self.groups, "outputs"
        )

    def chains(self, site: Site) -> tuple[Chain, ...]:
        """As `Block.chains`."""
        own = diagonal_blocks(site.kernel, self.groups)
        rest = (site.kernel - ungrouped(own, self.groups))[site.tap]
        pointwise = np.reshape(rest, (*ones_of(site), *rest.shape))
        return (
            (Step(Part(own.shape, axes_of(site), groups=self.groups), own),),
            (Step(Part(pointwise.shape, axes_of(site)), pointwise),),
        )
