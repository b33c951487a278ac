"""A grouped convolution, then a 1x1 convolution: the block `grouped`."""

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
from edgecompress.surgery.factors.base import Part, balanced


@BLOCKS.register("grouped")
@dataclass(frozen=True)
class Grouped(Block):
    """A convolution in groups with as many filters as inputs, then a 1x1 convolution of all.

    The block G(g) of Crowley, Gray and Storkey, Moonshine: Distilling with Cheap Convolutions
    (2018, https://arxiv.org/abs/1711.02613, section 4). It starts as the nearest product in
    squares: within a group, kernel and 1x1 convolution are a matrix (positions and inputs of the
    group, outputs) of rank inputs / groups, whose best approximation is given by its singular
    values.

    Args:
        groups: Number of groups.
    """

    groups: int = option(4, "Groups of the convolution.", whole(2))

    def why_not(self, site: Site) -> str | None:
        """As `Block.why_not`."""
        return not_in_groups(site.inputs, self.groups, "inputs")

    def chains(self, site: Site) -> tuple[Chain, ...]:
        """As `Block.chains`."""
        return (grouped_chain(site, self.groups),)


def grouped_chain(site: Site, groups: int) -> Chain:
    """Returns a convolution in groups and the 1x1 convolution behind it."""
    kernel = site.kernel.astype(np.float64)
    *space, inputs, outputs = kernel.shape
    each = inputs // groups
    rank = min(each, outputs)
    filters, mixing = [], []
    for group in range(groups):
        own = kernel[..., group * each : (group + 1) * each, :]
        left, right = balanced(own.reshape(-1, outputs), rank)
        filters.append(left.reshape(*space, each, rank))
        mixing.append(right)
    ones = ones_of(site)
    pointwise = np.concatenate(mixing).reshape(*ones, groups * rank, outputs)
    if groups == inputs:
        channels = np.concatenate(filters, axis=-1).reshape(*space, inputs, 1)
        first = Part(channels.shape, axes_of(site), depthwise=True)
    else:
        channels = np.concatenate(filters, axis=-1)
        first = Part(channels.shape, axes_of(site), groups=groups)
    return Step(first, channels), Step(Part(pointwise.shape), pointwise)
