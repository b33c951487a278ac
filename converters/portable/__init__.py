"""Rewrites into portable operators; importing this package registers the built-in ones."""

from edgecompress.converters.portable import broadcasts, negations, repeats, squares

__all__ = ["broadcasts", "negations", "repeats", "squares"]
