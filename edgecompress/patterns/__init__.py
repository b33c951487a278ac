"""Patterns: which weights go together. To add one: a module, its test, one import line here."""

# Importing a pattern registers it.
from edgecompress.patterns import blocks as blocks
from edgecompress.patterns import filters as filters
from edgecompress.patterns import input_channels as input_channels
from edgecompress.patterns import kernel_shapes as kernel_shapes
from edgecompress.patterns import kernels as kernels
from edgecompress.patterns import layers as layers
from edgecompress.patterns import n_of_m as n_of_m
from edgecompress.patterns import weights as weights
from edgecompress.patterns.base import PATTERNS as PATTERNS
