"""A toy plugin: a block of few filters and a 1x1 convolution."""

from dataclasses import dataclass
from typing import ClassVar

from edgecompress.core.options import option, whole
from edgecompress.surgery.blocks.base import BLOCKS, Block, Chain, Site, Step, axes_of, ones_of
from edgecompress.surgery.factors.base import Part


@BLOCKS.register("narrow")
@dataclass(frozen=True)
class Narrow(Block):
    """A convolution with few filters, then a 1x1 convolution; both start randomly."""

    factor: int = option(4, "Divisor of the filters.", whole(2))

    from_kernel: ClassVar[bool] = False

    def why_not(self, site: Site) -> str | None:
        """Refuses layers whose filters cannot be divided."""
        return f"it has {site.outputs} filters" if site.outputs % self.factor else None

    def chains(self, site: Site) -> tuple[Chain, ...]:
        """Returns the two convolutions."""
        few = site.outputs // self.factor
        first = Part((*site.shape[:-1], few), axes_of(site))
        return ((Step(first), Step(Part((*ones_of(site), few, site.outputs)))),)
