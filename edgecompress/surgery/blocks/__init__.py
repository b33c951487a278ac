"""Cheaper blocks for convolutions. To add one: a module, its test, one import line here."""

# Importing a block registers it.
from edgecompress.surgery.blocks import bottleneck as bottleneck
from edgecompress.surgery.blocks import depthwise_separable as depthwise_separable
from edgecompress.surgery.blocks import grouped as grouped
from edgecompress.surgery.blocks import pattern_residual as pattern_residual
from edgecompress.surgery.blocks import shuffle as shuffle
from edgecompress.surgery.blocks.base import BLOCKS as BLOCKS
