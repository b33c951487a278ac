"""The target families; importing this package registers the built-in ones, in this order."""

from edgecompress.targets.families import tflm

from edgecompress.targets.families import litert  # isort: skip
from edgecompress.targets.families import host  # isort: skip

__all__ = ["host", "litert", "tflm"]
