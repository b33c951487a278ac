"""Rewrites into portable operators; importing this package registers the built-in ones."""

from edgecompress.converters.portable import broadcasts, means, negations, repeats, squares

__all__ = ["broadcasts", "means", "negations", "repeats", "squares"]
