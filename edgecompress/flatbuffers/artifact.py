"""A .tflite file in memory: its bytes, its source, and the file parsed once."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

from edgecompress.core.files import compressed_size, sha256
from edgecompress.core.handover import Handed
from edgecompress.core.record import CompressionRecord
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.flatbuffers.stepping import Stepping


@dataclass(frozen=True)
class Artifact:
    """A file that a converter made, still in memory.

    Attributes:
        kind: `float32`, `int8`, ...: the converter's registered name.
        data: The file's bytes.
        source: What it was made from: a path or a model's name.
        record: What training did to the model; None if nothing is known.
        notes: What the converter could not do or did differently, one sentence each.
        stepping: How a streaming file runs over a sequence; None for other files.
    """

    kind: str
    data: bytes
    source: str
    record: CompressionRecord | None = None
    notes: tuple[str, ...] = ()
    stepping: Stepping | None = None

    @functools.cached_property
    def flat(self) -> FlatModel:
        """The parsed file, cached; with the names of `read_as` if it was used.

        Raises:
            ModelFileError: the bytes are not a .tflite file.
        """
        return read_tflite(self.data)

    def __reduce_ex__(self, protocol: Any) -> str | tuple[Any, ...]:
        """Pickles it; the file is parsed again where it is needed."""
        if protocol < 5:  # Without anything out of band, as `copy` does.
            return super().__reduce_ex__(protocol)
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return _artifact, (values | {"data": Handed(self.data)},)

    def read_as(self, flat: FlatModel) -> Artifact:
        """Returns the artifact with an existing parse result.

        Args:
            flat: This file, read: from its own bytes, or from a variant of it that differs only in
                the names of inner tensors.
        """
        copy = dataclasses.replace(self)
        copy.__dict__["flat"] = dataclasses.replace(flat, data=self.data)
        return copy

    def having(self, **changes: Any) -> Artifact:
        """Returns the artifact with other attributes; the same bytes are not parsed again."""
        copy = dataclasses.replace(self, **changes)
        if "flat" in self.__dict__ and copy.data is self.data:
            copy.__dict__["flat"] = self.flat
        return copy

    @functools.cached_property
    def sha256(self) -> str:
        """SHA-256 of the bytes, hexadecimal."""
        return sha256(self.data)

    @functools.cached_property
    def compressed_bytes(self) -> int:
        """Size after zlib at level 9, as in a download or an APK."""
        return compressed_size(self.data)

    def file_name(self, model_name: str) -> str:
        """Returns the name the artifact is stored under: `<model>_<kind>.tflite`."""
        return f"{model_name}_{self.kind}.tflite"


def _artifact(values: dict[str, Any]) -> Artifact:
    return Artifact(**values)
