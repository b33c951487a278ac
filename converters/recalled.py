"""What an export still needs of a Keras model once its process has ended.

A format that starts from the model's float files names them (`Sources`). They are made, and the
outputs of the model are computed, in a process of its own; `RecalledModel` stands for the model
afterwards, without TensorFlow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edgecompress.converters import float32
from edgecompress.converters.loaders import LoadedModel

if TYPE_CHECKING:
    from edgecompress.converters.float32 import Float32Result
    from edgecompress.converters.formats import FormatRequest


@dataclass(frozen=True)
class Sources:
    """What a format makes its files from.

    Attributes:
        kind: The kind of the file that ships.
        floats: Whether LSTM layers are fused -> the float file.
    """

    kind: str
    floats: Mapping[bool, Float32Result]


@dataclass(frozen=True)
class Run:
    """Outputs of a model.

    Attributes:
        inputs: One array for each input.
        outputs: One array for each output.
    """

    inputs: tuple[np.ndarray, ...]
    outputs: tuple[np.ndarray, ...]

    def holds(self, inputs: Sequence[np.ndarray]) -> bool:
        """Whether these are its inputs."""
        return len(self.inputs) == len(inputs) and all(
            one is other or np.array_equal(one, other)
            for one, other in zip(self.inputs, inputs, strict=True)
        )


@dataclass(frozen=True)
class RecalledModel(LoadedModel):
    """A model of which only results are left; its `model` is None.

    Attributes:
        sources: Its float files.
        runs: Its outputs on the samples of the export.
        simulated: Its outputs on the samples of the first run under the rounding of the file; None
            if that cannot be simulated.
    """

    sources: Sources | None = field(default=None, repr=False)
    runs: tuple[Run, ...] = field(default=(), repr=False)
    simulated: tuple[np.ndarray, ...] | None = field(default=None, repr=False)

    def predict(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Returns the outputs that the model had for these inputs.

        Raises:
            LookupError: it never ran on them.
        """
        for run in self.runs:
            if run.holds(inputs):
                return list(run.outputs)
        raise LookupError(f"Model {self.name!r} is gone and did not run on these inputs.")


def float_file(request: FormatRequest, fused: bool = False) -> Float32Result:
    """Returns the float file of a request's Keras model, as made before or made now.

    Args:
        request: What to convert.
        fused: Whether LSTM layers become one operator where possible. Defaults to False.
    """
    loaded = request.loaded
    if isinstance(loaded, RecalledModel) and loaded.sources is not None:
        return loaded.sources.floats[fused]
    request.progress("Converting to a float32 flatbuffer")
    return float32.convert(
        float32.Trace(loaded, fused), verbose=request.verbose, unwanted=request.costs.unwanted
    )
