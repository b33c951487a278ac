"""Changing .tflite files: unpack to objects, pack with aligned buffers, remove what is not run.

The objects are the generated `ModelT` tree of ai-edge-litert's schema module. Every function
returns new bytes and leaves the ones it got alone.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import flatbuffers
import numpy as np

from edgecompress.flatbuffers.reading import read_tflite

Names = Literal["interface", "computed", "all"]

# The schema's force_align for buffers; kernels and TFLM read tables in place and rely on it.
_ALIGNMENT = 16


class _Builder(flatbuffers.Builder):
    """Aligns byte vectors and writes equal vectors, strings and tables once.

    The Python builder ignores the schema's force_align. A per-channel tensor's zero points are 8
    bytes for each channel, nearly always zero: shared, they are stored once for each length.
    """

    def __init__(self) -> None:
        super().__init__(1024)
        self._vectors: dict[tuple[str, bytes], int] = {}
        self.tables: dict[tuple[Any, ...], int] = {}

    def CreateNumpyVector(self, x: np.ndarray) -> int:
        if x.dtype == np.uint8:  # Buffers, already unique: pack() shares them.
            self.Prep(_ALIGNMENT, x.size)
            return super().CreateNumpyVector(x)
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
    """Lets equal scales and options be packed once; the tree is as before afterwards."""
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


def unpack(data: bytes) -> Any:
    """Returns the `ModelT` tree of a .tflite file; its buffers are read-only views of `data`.

    Buffers that lie behind the flatbuffer (as litert-quantizer writes them) become ordinary ones.

    Raises:
        ModelFileError: the file is no .tflite or damaged.
    """
    from ai_edge_litert import schema_py_generated as schema

    read_tflite(data)
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
    builder = _Builder()
    with _shared_tables(model):
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _share_buffers(model: Any) -> None:
    from ai_edge_litert import schema_py_generated as schema

    buffers = [schema.BufferT()]
    known = {hashlib.sha256(b"").digest(): 0}
    renumbered = {}
    for index, buffer in enumerate(model.buffers):
        # A sequence of integers (built by hand) packs far slower than an array.
        values = np.asarray([] if buffer.data is None else buffer.data, np.uint8)
        content = hashlib.sha256(values.tobytes()).digest()
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


def _listed(values: Any) -> list[int]:
    return [] if values is None else [int(value) for value in values]


def drop_unused(model: Any) -> None:
    """Removes what nothing reads from a `ModelT` tree: operators, tensors, operator codes, buffers.

    Numbers of tensors and operators change. Signatures are removed with them: they count tensors.

    Args:
        model: The tree, changed in place; one subgraph.
    """
    graph = model.subgraphs[0]
    needed = {*graph.outputs}
    kept: list[Any] = []
    for operator in reversed(graph.operators):
        # An operator without outputs writes a variable.
        if len(operator.outputs) and needed.isdisjoint(operator.outputs):
            continue
        kept.append(operator)
        reads = (*operator.inputs, *operator.outputs, *_listed(operator.intermediates))
        needed.update(index for index in reads if index >= 0)
    graph.operators = kept[::-1]
    used = sorted({*needed, *graph.inputs})
    number = {old: new for new, old in enumerate(used)} | {-1: -1}
    graph.tensors = [graph.tensors[index] for index in used]
    for operator in graph.operators:
        operator.intermediates = [number[i] for i in _listed(operator.intermediates)] or None
    for holder in (graph, *graph.operators):
        # Arrays, unlike lists, are stored once where they are equal.
        holder.inputs = np.array([number[index] for index in holder.inputs], np.int32)
        holder.outputs = np.array([number[index] for index in holder.outputs], np.int32)
    codes = sorted({operator.opcodeIndex for operator in graph.operators})
    model.operatorCodes = [model.operatorCodes[index] for index in codes]
    for operator in graph.operators:
        operator.opcodeIndex = codes.index(operator.opcodeIndex)
    model.signatureDefs = model.metadata = model.metadataBuffer = None
    buffers = sorted({0, *(tensor.buffer for tensor in graph.tensors)})
    model.buffers = [model.buffers[index] for index in buffers]
    for tensor in graph.tensors:
        tensor.buffer = buffers.index(tensor.buffer)


def rename_tensors(data: bytes, name: Callable[[int, int], str]) -> bytes:
    """Returns the file with other tensor names.

    Args:
        data: A .tflite file.
        name: Called with the numbers of subgraph and tensor; returns the tensor's name.
    """
    model = unpack(data)
    for number, graph in enumerate(model.subgraphs):
        for index, tensor in enumerate(graph.tensors):
            tensor.name = name(number, index)
    return pack(model)


def strip(data: bytes, keep_names: Names = "interface") -> bytes:
    """Returns the file without what no interpreter reads while it runs the model.

    Removed: tensor names, signatures, metadata, the description, recorded minimum and maximum of
    quantized tensors, doubled and empty buffers. Tensor and operator numbers stay as they are.

    Args:
        data: A .tflite file.
        keep_names: Which tensors keep their names: those of the model's inputs and outputs
            (`interface`), all that inference computes (`computed`), or `all`. Defaults to
            `interface`.
    """
    model = unpack(data)
    model.signatureDefs = model.metadata = model.metadataBuffer = model.description = None
    for graph in model.subgraphs:
        graph.name = None
        interface = {*graph.inputs, *graph.outputs}
        for index, tensor in enumerate(graph.tensors):
            constant = tensor.buffer != 0 and model.buffers[tensor.buffer].data is not None
            named = keep_names == "all" or (keep_names == "computed" and not constant)
            if not named and index not in interface:
                tensor.name = None
            quantization = tensor.quantization
            if quantization is None:
                continue
            quantization.min = quantization.max = None
            if quantization.scale is None or len(quantization.scale) == 0:
                tensor.quantization = None
    return pack(model)
