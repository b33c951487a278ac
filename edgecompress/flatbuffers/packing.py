"""Converts .tflite bytes to objects and back, with aligned buffers.

The objects are the generated `ModelT` tree of ai-edge-litert's schema module; `editor.ModelEditor`
changes it.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import flatbuffers
import numpy as np

from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.reading import read_tflite

# The schema's force_align for buffers; kernels and TFLM read data in place and rely on it.
_ALIGNMENT = 16


class _Builder(flatbuffers.Builder):
    """Aligns byte vectors and writes equal vectors, strings and tables once.

    The Python builder ignores the schema's force_align. A per-channel tensor's zero points are 8
    bytes for each channel, nearly always zero: shared, they are stored once for each length.
    """

    def __init__(self, size: int = 1024) -> None:
        """Starts with room for `size` bytes; whenever that is used up, it doubles."""
        # As many bytes as it is told, which it would all write.
        super().__init__(min(size, 1024) if size <= self.MAX_BUFFER_SIZE else size)
        # Numpy's memory comes in pages of 2 MiB, where the system has such. A builder writes every
        # byte of a file, padding too.
        self.Bytes = np.empty(size, np.uint8).data
        self.head = len(self.Bytes)
        self._vectors: dict[tuple[str, bytes], int] = {}
        self.tables: dict[tuple[Any, ...], int] = {}

    def CreateNumpyVector(self, x: np.ndarray) -> int:
        if x.dtype == np.uint8:  # Buffers are already unique: pack() shares them.
            self.StartVector(1, x.size, _ALIGNMENT)
            self.head -= x.size
            # Without the copies that assigning to a slice of a bytearray takes.
            memoryview(self.Bytes)[self.head : self.head + x.size] = np.ascontiguousarray(x).data
            return self.EndVector()
        key = (x.dtype.str, x.tobytes())
        if key not in self._vectors:
            self._vectors[key] = super().CreateNumpyVector(x)
        return self._vectors[key]

    def CreateString(self, s: str | bytes, *args: str) -> int:
        key = ("string", s if isinstance(s, bytes) else s.encode())
        if key not in self._vectors:
            self._vectors[key] = super().CreateString(s, *args)
        return self._vectors[key]


class _Once:
    """Stands for an object whose equals share one table of the file.

    Tensors that a pooling or a reshape passes on have the same scales, and convolutions the same
    options; a table may be referred to any number of times.
    """

    def __init__(self, content: Any) -> None:
        self._content = content

    def Pack(self, builder: _Builder) -> int:
        key = _key(self._content)
        if key not in builder.tables:
            builder.tables[key] = self._content.Pack(builder)
        return builder.tables[key]


def _key(content: Any) -> tuple[Any, ...]:
    fields = []
    for name, value in sorted(vars(content).items()):
        if hasattr(value, "Pack"):
            value = _key(value)
        elif value is not None and not isinstance(value, (str, bytes)) and np.ndim(value):
            value = (np.asarray(value).dtype.str, np.asarray(value).tobytes())
        fields.append((name, value))
    return (type(content).__name__, *fields)


@contextlib.contextmanager
def _shared_tables(model: Any) -> Iterator[None]:
    """Packs equal scales and options once; the tree is restored afterwards."""
    places = [(t, "quantization") for graph in model.subgraphs for t in graph.tensors]
    places += [(o, "builtinOptions") for graph in model.subgraphs for o in graph.operators]
    contents = [getattr(holder, name) for holder, name in places]
    try:
        for (holder, name), content in zip(places, contents, strict=True):
            if content is not None:
                setattr(holder, name, _Once(content))
        yield
    finally:
        for (holder, name), content in zip(places, contents, strict=True):
            setattr(holder, name, content)


def unpack(source: bytes | FlatModel) -> Any:
    """Returns the `ModelT` tree of a .tflite file; its buffers are read-only views of its bytes.

    Buffers after the flatbuffer (as litert-quantizer writes them) become ordinary ones.

    Raises:
        ModelFileError: the file is not a .tflite file, or damaged.
    """
    from ai_edge_litert import schema_py_generated as schema

    # The generated code trusts the file, which has already been checked.
    data = read_tflite(source).data
    model = schema.ModelT.InitFromPackedBuf(data)
    for buffer in model.buffers:
        if buffer.offset > 1:
            buffer.data = np.frombuffer(data, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    return model


def pack(model: Any) -> bytes:
    """Returns the bytes of a `ModelT` tree; equal trees give equal bytes.

    Every buffer starts at a multiple of 16 bytes. Equal buffers, vectors, strings, scales and
    options are stored once and tensors without values share the empty buffer 0, so buffer numbers
    change.
    """
    _share_buffers(model)
    values = sum(
        len(buffer.data) + _ALIGNMENT for buffer in model.buffers if buffer.data is not None
    )
    builder = _Builder(values + max(1024, values // 16))
    with _shared_tables(model):
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    # One copy: `Output` makes another.
    return bytes(memoryview(builder.Bytes)[builder.Head() :])


def _share_buffers(model: Any) -> None:
    from ai_edge_litert import schema_py_generated as schema

    # A plain sequence of integers packs far slower than an array.
    contents = [np.asarray([] if b.data is None else b.data, np.uint8) for b in model.buffers]
    lengths = Counter(map(len, contents))
    buffers = [schema.BufferT()]
    known: dict[tuple[int, bytes], int] = {(0, b""): 0}
    renumbered = {}
    for index, values in enumerate(contents):
        # Only buffers of one length can be equal.
        digest = b""
        if lengths[len(values)] > 1 and len(values):
            digest = hashlib.sha256(np.ascontiguousarray(values).data).digest()
        content = len(values), digest
        if content not in known:
            known[content] = len(buffers)
            buffers.append(schema.BufferT(data=values))
        renumbered[index] = known[content]
    model.buffers = buffers
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            tensor.buffer = renumbered[tensor.buffer]
    for entry in model.metadata or ():
        entry.buffer = renumbered[entry.buffer]
    if model.metadataBuffer is not None:
        model.metadataBuffer = [renumbered[index] for index in model.metadataBuffer]
