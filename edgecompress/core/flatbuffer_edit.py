"""Changing .tflite files: unpack to objects, pack with aligned buffers, remove what is not run.

The objects are the generated `ModelT` tree of ai-edge-litert's schema module. Every function
returns new bytes and leaves the ones it got alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flatbuffers
import numpy as np

from edgecompress.core.errors import ModelFileError
from edgecompress.core.flatbuffer import read_tflite

# The schema's force_align for buffers; kernels and TFLM read tables in place and rely on it.
_ALIGNMENT = 16


class _AlignedBuilder(flatbuffers.Builder):
    """A builder that aligns byte vectors; the Python one ignores the schema's force_align."""

    def CreateNumpyVector(self, x: np.ndarray) -> int:  # noqa: N802
        if x.dtype == np.uint8:
            self.Prep(_ALIGNMENT, x.size)
        return super().CreateNumpyVector(x)


def unpack(data: bytes) -> Any:
    """Returns the `ModelT` tree of a .tflite file; its buffers are read-only views of `data`.

    Raises:
        ModelFileError: the file is no .tflite or damaged, or keeps its buffers behind the
            flatbuffer (files above 2 GiB).
    """
    from ai_edge_litert import schema_py_generated as schema

    read_tflite(data)
    model = schema.ModelT.InitFromPackedBuf(data)
    if any(buffer.offset > 1 for buffer in model.buffers):
        raise ModelFileError(
            "The file keeps its buffers behind the flatbuffer (above 2 GiB); it cannot be edited."
        )
    return model


def pack(model: Any) -> bytes:
    """Returns the bytes of a `ModelT` tree; equal trees give equal bytes.

    Every buffer starts at a multiple of 16 bytes. Buffers with equal contents are stored once and
    tensors without values share the empty buffer 0, so the tree's buffer numbers change.
    """
    _share_buffers(model)
    builder = _AlignedBuilder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _share_buffers(model: Any) -> None:
    from ai_edge_litert import schema_py_generated as schema

    buffers = [schema.BufferT()]
    known: dict[bytes, int] = {b"": 0}
    renumbered = {}
    for index, buffer in enumerate(model.buffers):
        # A sequence of integers (built by hand) packs far slower than an array.
        values = np.asarray([] if buffer.data is None else buffer.data, np.uint8)
        content = values.tobytes()
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


def rename_tensors(data: bytes, name: Callable[[int, int, str], str]) -> bytes:
    """Returns the file with other tensor names.

    Args:
        data: A .tflite file.
        name: Called with subgraph, tensor index and present name; returns the new name.
    """
    model = unpack(data)
    for number, graph in enumerate(model.subgraphs):
        for index, tensor in enumerate(graph.tensors):
            tensor.name = name(number, index, _text(tensor.name))
    return pack(model)


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value or "")


def strip(data: bytes, bias_quantization: bool = False) -> bytes:
    """Returns the file without what no interpreter reads while it runs the model.

    Removed: tensor names other than those of inputs and outputs, signatures, metadata, the
    description, recorded minimum and maximum of quantized tensors, doubled and empty buffers.
    Tensor and operator numbers stay as they are.

    Args:
        data: A .tflite file.
        bias_quantization: Also remove scales and zero points of per-channel int32 biases (12 bytes
            for each channel). Exact on TensorFlow Lite Micro, which computes them from input and
            filter; LiteRT's XNNPACK delegate then hands layers back to slower built-in kernels
            whose rounding differs, so do this for microcontrollers only. Defaults to False.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = unpack(data)
    model.signatureDefs = model.metadata = model.metadataBuffer = model.description = None
    for graph in model.subgraphs:
        graph.name = None
        named = {*graph.inputs, *graph.outputs}
        for index, tensor in enumerate(graph.tensors):
            if index not in named:
                tensor.name = None
            quantization = tensor.quantization
            if quantization is None:
                continue
            quantization.min = quantization.max = None
            scales = 0 if quantization.scale is None else len(quantization.scale)
            wide_bias = tensor.type == schema.TensorType.INT32 and scales > 1
            if scales == 0 or (bias_quantization and wide_bias):
                tensor.quantization = None
    return pack(model)
