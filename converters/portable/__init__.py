"""Rewrites into portable operators; importing this package registers the built-in ones."""

from edgecompress.converters.portable import negations, repeats, squares

__all__ = ["negations", "repeats", "squares"]
