"""The families of targets; importing this package registers the built-in ones."""

from edgecompress.targets.families import host, litert, tflm

__all__ = ["host", "litert", "tflm"]
