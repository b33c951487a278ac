"""Rewrites into portable operators; importing this package registers the built-in ones."""

from edgecompress.converters.portable import (
    broadcasts,
    indices,
    means,
    negations,
    repeats,
    reshapes,
    squares,
)

__all__ = ["broadcasts", "indices", "means", "negations", "repeats", "reshapes", "squares"]
