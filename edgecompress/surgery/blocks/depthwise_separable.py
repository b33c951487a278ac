"""A depthwise convolution, then a 1x1 convolution: the block `depthwise-separable`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgecompress.surgery.blocks.base import BLOCKS, Block, Chain, Site
from edgecompress.surgery.blocks.grouped import grouped_chain


@BLOCKS.register("depthwise-separable")
@dataclass(frozen=True)
class DepthwiseSeparable(Block):
    """One filter for each input channel, then a 1x1 convolution of all.

    Howard et al., MobileNets: Efficient Convolutional Neural Networks for Mobile Vision
    Applications (2017, https://arxiv.org/abs/1704.04861, section 3.1). It starts as the nearest
    product in squares: of each input channel, the best matrix (positions, outputs) of rank 1.
    """

    depthwise: ClassVar[bool] = True

    def why_not(self, site: Site) -> str | None:
        """As `Block.why_not`."""
        return "it has a single input channel" if site.inputs == 1 else None

    def chains(self, site: Site) -> tuple[Chain, ...]:
        """As `Block.chains`."""
        return (grouped_chain(site, site.inputs),)
