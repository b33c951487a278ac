"""Converts real values to the types of a file's inputs and back, as an application does.

q = clip(round(x / scale) + zero_point) in 32-bit floats, halves rounded to even (XNNPACK's and
numpy's rounding), and y = scale * (q - zero_point).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgecompress.core.errors import ArgumentError, UnsupportedModelError
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.tensors import Tensor

_NUMPY = {
    "FLOAT32": "f4", "FLOAT16": "f2", "FLOAT64": "f8", "INT8": "i1", "INT16": "i2", "INT32": "i4",
    "INT64": "i8", "UINT8": "u1", "UINT16": "u2", "UINT32": "u4", "UINT64": "u8", "BOOL": "?",
}  # fmt: skip


def quantize(values: np.ndarray, tensor: Tensor) -> np.ndarray:
    """Returns real values in the type of a tensor: clip(round(x / scale) + zero_point).

    Tensors without a scale take the values as they are: floats are rounded to the tensor's float
    type, integers must be whole numbers in its range.

    Args:
        values: Real numbers, any shape.
        tensor: An input of the model; per-tensor scale.

    Raises:
        ArgumentError: the values are not finite, or not whole although the tensor requires it.
        UnsupportedModelError: the tensor has a type without a numpy form or per-channel scales.

    Example:
        >>> t = Tensor(0, "x", (1, 3), "INT8", None, (0.5,), (10,))
        >>> quantize(np.array([[0.25, 0.75, 100.0]]), t)
        array([[ 10,  12, 127]], dtype=int8)
    """
    values = np.asarray(values)
    if values.dtype.kind not in "fiub" or not np.isfinite(values).all():
        raise ArgumentError(
            "samples",
            "hold finite numbers",
            f"{values.dtype} with NaN or infinity" if values.dtype.kind == "f" else values.dtype,
        )
    dtype = _dtype(tensor)
    if tensor.scales:
        if len(tensor.scales) > 1:
            raise UnsupportedModelError(
                f"Input {tensor.name!r} has {len(tensor.scales)} scales; an input needs one."
            )
        limits = np.iinfo(dtype)
        scale = np.float32(tensor.scales[0])
        steps = np.rint(values.astype(np.float32) / scale) + _zero_point(tensor)
        return np.clip(steps, limits.min, limits.max).astype(dtype)
    if dtype.kind == "f":
        return values.astype(dtype)
    converted = values.astype(dtype)
    if not np.array_equal(converted, values):
        raise ArgumentError(
            "samples",
            f"hold whole numbers that fit {dtype}, because input {tensor.name!r} has no scale",
            f"values from {values.min():g} to {values.max():g}",
        )
    return converted


def dequantize(values: np.ndarray, tensor: Tensor) -> np.ndarray:
    """Returns a tensor's values as real numbers: scale * (q - zero_point); floats as they are.

    Args:
        values: Values as the engine returned them.
        tensor: The tensor they belong to.

    Example:
        >>> dequantize(np.array([12], np.int8), Tensor(0, "", (1,), "INT8", None, (0.5,), (10,)))
        array([1.])
    """
    if not tensor.scales:
        return np.asarray(values, np.float64)
    return (np.asarray(values, np.float64) - _zero_point(tensor)) * tensor.scales[0]


def listed(arrays: np.ndarray | Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns one array, or several, as a list."""
    if isinstance(arrays, (list, tuple)):
        return [np.asarray(array) for array in arrays]
    return [np.asarray(arrays)]


def quantized_inputs(
    model: FlatModel, samples: Sequence[np.ndarray], states: int = 0
) -> list[np.ndarray]:
    """Returns samples in the types of a model's inputs, as an engine takes them.

    Args:
        model: The file.
        samples: One array for each input.
        states: Number of inputs, the last ones, that take states and have no samples. Defaults to
            0.

    Raises:
        ArgumentError: there are more or fewer arrays than inputs, or see `quantize`.
    """
    wanted = model.inputs[: len(model.inputs) - states]
    if len(samples) != len(wanted):
        raise ArgumentError(
            "samples",
            f"hold one array for each of the model's {len(wanted)} inputs",
            f"{len(samples)} arrays",
        )
    return [
        quantize(array, model.tensors[index]) for array, index in zip(samples, wanted, strict=True)
    ]


def _dtype(tensor: Tensor) -> np.dtype:
    if tensor.type not in _NUMPY:
        raise UnsupportedModelError(
            f"Tensor {tensor.name!r} has the type {tensor.type}; inputs must be of type "
            f"{', '.join(_NUMPY)}."
        )
    return np.dtype(_NUMPY[tensor.type])


def _zero_point(tensor: Tensor) -> int:
    return tensor.zero_points[0] if tensor.zero_points else 0
