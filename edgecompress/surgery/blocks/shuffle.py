"""Grouped 1x1 convolutions with a channel shuffle between: the block `shuffle`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

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
from edgecompress.surgery.factors.base import Part


@BLOCKS.register("shuffle")
@dataclass(frozen=True)
class Shuffle(Block):
    """A 1x1 convolution in groups, a channel shuffle, a depthwise and another 1x1 in groups.

    Zhang et al., ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices
    (2018, https://arxiv.org/abs/1707.01083, section 3 and figure 2b), without its shortcut: the
    network around has its own. It starts from random values, since no closed form finds the nearest
    product.

    Args:
        groups: Groups of both 1x1 convolutions.
        factor: Outputs are divided by this in the middle.
    """

    from_kernel: ClassVar[bool] = False
    depthwise: ClassVar[bool] = True

    groups: int = option(4, "Groups of the 1x1 convolutions.", whole(2))
    factor: int = option(1, "Divisor of the channels in the middle.", whole(1))

    def why_not(self, site: Site) -> str | None:
        """As `Block.why_not`."""
        if site.outputs < self.factor:
            return f"it has fewer channels than factor={self.factor}"
        return (
            not_in_groups(site.inputs, self.groups, "inputs")
            or not_in_groups(site.outputs, self.groups, "outputs")
            or not_in_groups(site.outputs // self.factor, self.groups, "channels in the middle")
        )

    def chains(self, site: Site) -> tuple[Chain, ...]:
        """As `Block.chains`."""
        ones, middle, each = ones_of(site), site.outputs // self.factor, self.groups
        first = Part((*ones, site.inputs // each, middle), groups=each)
        depthwise = Part((*site.shape[:-2], middle, 1), axes_of(site), depthwise=True)
        last = Part((*ones, middle // each, site.outputs), groups=each)
        # The paper's second BatchNormalization has no ReLU behind it.
        return ((Step(first, shuffle=each), Step(depthwise, relu=False), Step(last)),)
