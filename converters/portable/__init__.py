"""Rewrites into portable operators; importing this package registers the built-in ones."""

from edgecompress.converters.portable import (
    broadcasts,
    flips,
    indices,
    means,
    negations,
    repeats,
    reshapes,
    squares,
)

__all__ = ["broadcasts", "flips", "indices", "means", "negations", "repeats", "reshapes", "squares"]
