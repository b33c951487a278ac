"""Tensors of .tflite files, and integers of less than a byte."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgecompress.core.errors import ModelFileError
from edgecompress.flatbuffers.sparse_tensors import Sparsity

_WIDTHS = {
    "FLOAT32": 4, "FLOAT16": 2, "BFLOAT16": 2, "FLOAT64": 8, "INT2": 0.25, "INT4": 0.5, "INT8": 1,
    "INT16": 2, "INT32": 4, "INT64": 8, "UINT4": 0.5, "UINT8": 1, "UINT16": 2, "UINT32": 4,
    "UINT64": 8, "BOOL": 1, "COMPLEX64": 8, "COMPLEX128": 16,
}  # fmt: skip
_NUMPY = {
    "FLOAT32": np.float32, "FLOAT16": np.float16, "FLOAT64": np.float64, "INT8": np.int8,
    "INT16": np.int16, "INT32": np.int32, "INT64": np.int64, "UINT8": np.uint8,
    "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64, "BOOL": np.bool_,
}  # fmt: skip
# Signed types of less than a byte -> their bits.
PACKED = {"INT4": 4, "INT2": 2}


def pack_codes(codes: np.ndarray, bits: int) -> bytes:
    """Returns integers packed as the schema stores them: the first in the lowest bits of a byte.

    Args:
        codes: Any shape; the lowest `bits` of each code are kept.
        bits: 1, 2, 4 or 8. The last byte is filled with zeros.

    Example:
        >>> pack_codes(np.array([1, -1, 7]), 4).hex()
        'f107'
    """
    per_byte = 8 // bits
    flat = np.asarray(codes).reshape(-1).astype(np.int64) & ((1 << bits) - 1)
    flat = np.concatenate([flat, np.zeros(-flat.size % per_byte, np.int64)])
    shifts = bits * np.arange(per_byte)
    return (flat.reshape(-1, per_byte) << shifts).sum(-1).astype(np.uint8).tobytes()


def unpack_codes(data: bytes | memoryview, bits: int) -> np.ndarray:
    """Returns the signed integers (int8) that `pack_codes` packed, padding included.

    Example:
        >>> unpack_codes(bytes.fromhex("f107"), 4)
        array([ 1, -1,  7,  0], dtype=int8)
    """
    packed = np.frombuffer(data, np.uint8)
    parts = np.stack([packed >> shift for shift in range(0, 8, bits)], -1).reshape(-1)
    return (parts << (8 - bits)).astype(np.int8) >> (8 - bits)


@dataclass(frozen=True)
class Tensor:
    """One tensor of a flatbuffer.

    Attributes:
        index: Position in the subgraph.
        name: As stored; may be empty.
        shape: Dimensions; () for a scalar.
        type: `INT8`, `FLOAT32`, ... as in the schema.
        raw: Bytes of a constant, a view of the file's; None for a tensor that is computed.
        scales: Quantization scales: none, one, or one for each channel.
        zero_points: As many as scales.
        shared_zero_point: Whether the file holds one zero point for all channels; TensorFlow Lite
            Micro accepts that, LiteRT does not.
        quantized_dimension: The channel axis of per-channel scales.
        is_variable: State that persists between inferences.
        dynamic: Whether some dimension is only known when the model runs.
        sparsity: Where the values of `raw` belong, for a sparse tensor; else None.
        stray_axis: Whether the file gives a vector's scales a channel axis that it does not have,
            as old converters did with biases (`quantized_dimension` is 0 then); TensorFlow Lite
            Micro accepts that, LiteRT does not.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    type: str
    raw: bytes | memoryview | None = field(default=None, repr=False)
    scales: tuple[float, ...] = field(default=(), repr=False)
    zero_points: tuple[int, ...] = field(default=(), repr=False)
    quantized_dimension: int = 0
    is_variable: bool = False
    dynamic: bool = False
    sparsity: Sparsity | None = field(default=None, repr=False)
    shared_zero_point: bool = False
    stray_axis: bool = False

    def __getstate__(self) -> dict[str, Any]:
        """Returns what is pickled: a view cannot be."""
        return vars(self) | {"raw": None if self.raw is None else bytes(self.raw)}

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bits(self) -> float:
        """Bits of one element; 0 for types without a fixed width (strings)."""
        return _WIDTHS.get(self.type, 0) * 8

    @property
    def bytes(self) -> int:
        """Bytes of the dense tensor: elements times width, sub-byte types packed."""
        return math.ceil(self.elements * _WIDTHS.get(self.type, 0))

    @property
    def stored_bytes(self) -> int:
        """Bytes of a constant in the file, including the indices of a sparse one."""
        return len(self.raw or b"") + (0 if self.sparsity is None else self.sparsity.bytes)

    @property
    def is_constant(self) -> bool:
        """Whether the file holds the tensor's values."""
        return self.raw is not None

    @property
    def is_quantized(self) -> bool:
        """Whether the tensor has quantization scales."""
        return bool(self.scales)

    def values(self) -> np.ndarray:
        """Returns a constant's values in its shape: int4 and int2 as int8, sparse ones expanded.

        Raises:
            ModelFileError: the tensor is not a constant, its type has no numpy form, or the buffer
                is shorter than the shape says.
        """
        if self.raw is None:
            raise ModelFileError(f"Tensor {self.index} ({self.name!r}) holds no values.")
        if self.type in PACKED:
            flat = unpack_codes(self.raw, PACKED[self.type])
        elif self.type in _NUMPY:
            width = int(_WIDTHS[self.type])
            flat = np.frombuffer(self.raw[: len(self.raw) // width * width], _NUMPY[self.type])
        else:
            raise ModelFileError(f"Tensor {self.index} has type {self.type}, not readable here.")
        if self.sparsity is not None:
            return self.sparsity.expand(flat, self.shape)
        flat = flat[: self.elements]
        if flat.size != self.elements:
            raise ModelFileError(
                f"Tensor {self.index} ({self.name!r}) has {len(self.raw)} bytes, fewer than its "
                f"shape {self.shape} needs: the file is damaged."
            )
        try:
            return flat.reshape(self.shape)
        except ValueError as error:  # No elements, but out-of-range dimensions.
            raise ModelFileError(f"Tensor {self.index} has the shape {self.shape}.") from error
