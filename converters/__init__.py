"""Converters: a Keras model or a flatbuffer in, a flatbuffer out; and its verification.

Each entry of `CONVERTERS` makes one kind of file from the float flatbuffer of a model. To add a
kind: one module, its test, one entry here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from edgecompress.core.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from edgecompress.converters.float32 import Float32Result
    from edgecompress.core.results import Artifact


class Converter(Protocol):
    """Makes one kind of file."""

    def __call__(
        self, source: Float32Result, calibration: Sequence[np.ndarray] | None = None
    ) -> Artifact:
        """Returns the file made from a float flatbuffer.

        Args:
            source: What `float32.convert` returned; its record holds the learnt ranges.
            calibration: Samples to measure ranges on, one array for each input. Optional.
        """
        ...


CONVERTERS: Registry[Converter] = Registry("--format")


# The modules are imported when a converter is called: listing formats must cost no TensorFlow.
@CONVERTERS.register("float32")
def _float32(source: Float32Result, calibration: Sequence[np.ndarray] | None = None) -> Artifact:
    return source.artifact


@CONVERTERS.register("int8")
def _int8(source: Float32Result, calibration: Sequence[np.ndarray] | None = None) -> Artifact:
    from edgecompress.converters import int8

    return int8.convert(source, calibration=calibration)
