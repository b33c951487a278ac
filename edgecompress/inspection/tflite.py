"""Inspecting flatbuffers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgecompress.core.errors import ConversionError, ModelFileError
from edgecompress.core.files import compressed_size
from edgecompress.flatbuffers.coding import DECODE, Encoded, Layout, decode
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import (
    BINARY_CONV,
    WEIGHTED,
    Operator,
    binary_kernel_shape,
    operator_binary_macs,
    operator_macs,
)
from edgecompress.flatbuffers.tensors import Tensor
from edgecompress.inspection.types import (
    Endpoint,
    Inspection,
    Row,
    count_operators,
    zero_filter_notes,
)

# Operators that only expand stored weights, which belong to their reader.
_UNPACKERS = ("DEQUANTIZE", "DENSIFY", DECODE)
# Input positions of an operator's filters and matrices, if not just position 1.
_MATRICES: dict[str, Sequence[int]] = {
    "UNIDIRECTIONAL_SEQUENCE_LSTM": range(1, 9),
    "SVDF": (1, 2),
    "GATHER": (0,),
    "EMBEDDING_LOOKUP": (1,),
    BINARY_CONV: (1,),
}
# The axis of a filter tensor that counts output channels.
_CHANNEL_AXIS = {
    "CONV_2D": 0,
    "DEPTHWISE_CONV_2D": 3,
    "FULLY_CONNECTED": 0,
    "TRANSPOSE_CONV": 0,
    "CONV_3D": 4,
    BINARY_CONV: 0,
}
# Custom operators without weights and MACs.
_BINARY_MOVES = ("LceQuantize", "LceDequantize", "LceBMaxPool2d")
# Weights of a file that are decoded to count zeros: a second or two.
_MOST_DECODED = 1 << 20
_DECODED_TYPES = {"INT8": np.int8, "INT16": np.int16}
# A tensor's name joins all layers fused into it; these endings identify the relevant one.
_TELLING = ("conv", "matmul", "depthwise", "dense", "tensordot", "einsum")


@dataclass(frozen=True)
class _Part:
    """A learnt input of an operator and the constants it is stored in.

    Attributes:
        position: Input position of the operator.
        tensor: The input as the operator sees it.
        constants: The tensor itself, or what an unpacker makes it from.
        encoded: The constants are not plain values (DECODE).
        code: Code and ancillary data of DECODE, if it is read; None for anything else.
    """

    position: int
    tensor: Tensor
    constants: tuple[Tensor, ...]
    encoded: bool = False
    code: tuple[Tensor, Tensor] | None = None

    @property
    def stored_bytes(self) -> int:
        return sum(constant.stored_bytes for constant in self.constants)

    @property
    def dense_bytes(self) -> int:
        # DEQUANTIZE widens values in memory, which says nothing about storage.
        return self.tensor.bytes if self.encoded else self.constants[0].bytes


def inspect_tflite(
    model: FlatModel, *, name: str = "model.tflite", compressed_bytes: int | None = None
) -> Inspection:
    """Inspects a flatbuffer.

    Args:
        model: From `edgecompress.flatbuffers.reading.read_tflite`.
        name: What to call it.
        compressed_bytes: Its size as in a download, if known. Defaults to None: measured.

    Example:
        >>> inspect_tflite(read_tflite("vww_96_int8.tflite")).zero_filters  # doctest: +SKIP
        971
    """
    notes: list[str] = []
    rows = [
        _row(model, operator, parts, notes)
        for operator, parts in zip(model.operators, _assign(model, notes), strict=True)
    ]
    peak, peak_operator = _peak_activations(model)
    if model.subgraphs > 1:
        notes.append(f"Only the first of {model.subgraphs} subgraphs is shown.")
    return Inspection(
        name=name,
        format="tflite",
        rows=tuple(rows),
        inputs=tuple(_endpoint(model.tensors[i]) for i in model.inputs),
        outputs=tuple(_endpoint(model.tensors[i]) for i in model.outputs),
        operators=count_operators((o.name, o.version) for o in model.operators),
        file_bytes=len(model.data),
        compressed_bytes=(
            compressed_size(model.data) if compressed_bytes is None else compressed_bytes
        ),
        peak_activation_bytes=peak,
        peak_operator=peak_operator,
        notes=(*notes, *zero_filter_notes(rows)),
    )


def _matrix_positions(operator: Operator) -> Sequence[int]:
    return _MATRICES.get(operator.name, (1,) if operator.code in WEIGHTED else ())


def _assign(model: FlatModel, notes: list[str]) -> list[list[_Part]]:
    """Returns each operator's learnt inputs; a shared one belongs to its first reader."""
    producers = {i: operator for operator in model.operators for i in operator.outputs}
    learnt = {tensor.index for tensor in model.weight_tensors()}
    owned: set[int] = set()
    assigned = []
    left = _MOST_DECODED
    for operator in model.operators:
        parts: list[_Part] = []
        assigned.append(parts)
        source = model.tensor(operator, 0)
        if operator.name in _UNPACKERS and source is not None and source.is_constant:
            continue
        for position, index in enumerate(operator.inputs):
            part = _part(model, operator, position, producers) if index >= 0 else None
            if part is None or not (part.encoded or part.constants[0].index in learnt):
                continue
            # Only the ancillary data of encoded weights may be shared by different weights.
            if part.constants[0].index in owned:
                if position in _matrix_positions(operator):
                    notes.append(
                        f"Operator {operator.index} shares its weights "
                        f"{_short_name(part.tensor.name)!r} with an earlier one: counted once."
                    )
                continue
            new = tuple(c for c in part.constants if c.index not in owned)
            owned.update(c.index for c in new)
            if part.code is not None:
                left -= part.tensor.elements
            parts.append(replace(part, constants=new, code=part.code if left >= 0 else None))
    return assigned


def _part(
    model: FlatModel, operator: Operator, position: int, producers: Mapping[int, Operator]
) -> _Part | None:
    """Returns an operator's input with the constants behind it; None if it is computed."""
    tensor = model.tensors[operator.inputs[position]]
    if tensor.is_constant:
        return _Part(position, tensor, (tensor,))
    producer = producers.get(tensor.index)
    if producer is None or producer.name not in _UNPACKERS:
        packed = _looked_up(model, producer, producers) if operator.code in WEIGHTED else ()
        return _Part(position, tensor, packed, True) if packed else None
    encoded = producer.name == DECODE
    # One DECODE may unpack several tensors: its inputs are pairs (encoded, ancillary data).
    first = 2 * producer.outputs.index(tensor.index) if encoded else 0
    sources = [model.tensor(producer, i) for i in range(first, first + 1 + encoded)]
    constants = tuple(s for s in sources if s is not None and s.is_constant)
    code = (constants[0], constants[1]) if encoded and len(constants) == 2 else None
    return _Part(position, tensor, constants, encoded, code) if constants else None


def _looked_up(
    model: FlatModel, producer: Operator | None, producers: Mapping[int, Operator]
) -> tuple[Tensor, ...]:
    """Returns packed bytes and table of weights that GATHER looks up (CAST before it), else ()."""

    def before(operator: Operator | None, position: int) -> Operator | None:
        tensor = None if operator is None else model.tensor(operator, position)
        return None if tensor is None else producers.get(tensor.index)

    for _ in range(3):  # RESHAPE; or RESHAPE, SLICE, RESHAPE.
        if producer is not None and producer.code in ("RESHAPE", "SLICE"):
            producer = before(producer, 0)
    cast = before(producer, 1)
    if producer is None or producer.code != "GATHER" or cast is None or cast.code != "CAST":
        return ()
    parts = (model.tensor(cast, 0), model.tensor(producer, 0))
    return tuple(part for part in parts if part is not None and part.is_constant)


def _row(model: FlatModel, operator: Operator, parts: list[_Part], notes: list[str]) -> Row:
    matrices = [part for part in parts if part.position in _matrix_positions(operator)]
    # A binary convolution packs 32 weights per element.
    packed = operator.name == BINARY_CONV
    stored = sum(part.tensor.elements for part in matrices)
    weights = math.prod(binary_kernel_shape(model, operator)) if packed and stored else stored
    axis = _CHANNEL_AXIS.get(operator.name)
    filters = matrices[0].tensor.shape[axis] if matrices and axis is not None else 0
    zeros: int | None
    zero_filters: int | None
    try:
        masks = [] if packed else [_zero_mask(part) for part in matrices]
    except ModelFileError as error:
        notes.append(f"Operator {operator.index} ({operator.name}): zeros not counted: {error}")
        zeros = zero_filters = None
    else:
        zeros = sum(int(mask.sum()) for mask in masks)
        zero_filters = 0
        # A filter of no elements may have billions of channels.
        if filters and axis is not None and masks and masks[0].size:
            channels = np.moveaxis(masks[0], axis, 0).reshape(filters, -1)
            zero_filters = int(channels.all(axis=1).sum())
    macs: int | None = operator_macs(model, operator)
    known = (*_UNPACKERS, BINARY_CONV, *_BINARY_MOVES)
    if operator.code == "CUSTOM" and operator.name not in known:
        macs = None
        notes.append(
            f"Operator {operator.index} ({operator.name}) is a custom operator: its MACs and "
            "weights are not counted."
        )
    output = model.output(operator) if operator.outputs else None
    # Filter names describe the layer best; shipped files may only have names of outputs.
    named = matrices[0].tensor if filters and matrices[0].tensor.name else output
    return Row(
        index=operator.index,
        name=_short_name(named.name) if named else "",
        type=operator.name,
        output_shape=output.shape if output else None,
        parameters=sum(part.tensor.elements for part in parts) - stored + weights,
        weights=weights,
        zeros=zeros,
        filters=filters,
        zero_filters=zero_filters,
        bits=8 * sum(part.stored_bytes for part in matrices) / weights if weights else None,
        macs=macs,
        weight_bytes=sum(part.stored_bytes for part in parts),
        dense_bytes=sum(part.dense_bytes for part in parts),
        binary_macs=operator_binary_macs(model, operator),
    )


def _zero_mask(part: _Part) -> np.ndarray:
    """Returns which weights are zero: a stored value equal to its zero point is a real zero.

    Raises:
        ModelFileError: the values cannot be read as they are stored.
    """
    if part.code is not None:
        tensor, values = part.tensor, _decoded(part.tensor, *part.code)
        # Decoding has put back zero points; they are the reader's.
        return np.asarray(values == _zero_points(tensor, values))
    tensor = part.constants[0]
    if part.encoded:
        raise ModelFileError("the weights are stored encoded.")
    if tensor.sparsity is None and part.stored_bytes < tensor.bytes:
        raise ModelFileError("the weights take fewer bytes than their shape: damaged.")
    values = tensor.values()
    return np.asarray(values == _zero_points(tensor, values))


def _zero_points(tensor: Tensor, values: np.ndarray) -> np.ndarray:
    """Returns zero points in a shape that goes with the values."""
    points = np.asarray(tensor.zero_points or (0,), np.int64)
    if points.size > 1:
        shape = [1] * values.ndim
        shape[tensor.quantized_dimension] = -1
        points = points.reshape(shape)
    return points


def _decoded(tensor: Tensor, code: Tensor, ancillary: Tensor) -> np.ndarray:
    """Returns weights that DECODE unpacks.

    Raises:
        ModelFileError: code and tensor do not belong together.
    """
    if tensor.type not in _DECODED_TYPES:
        raise ModelFileError("the weights are stored encoded.")
    stored = Encoded("", bytes(code.raw or b""), bytes(ancillary.raw or b""))
    # Each takes a bit or more.
    if tensor.elements > 8 * len(stored.data):
        raise ModelFileError("the code of the weights is too short: damaged.")
    layout = Layout(tensor.zero_points, tensor.quantized_dimension)
    try:
        return decode(stored, tensor.shape, layout, _DECODED_TYPES[tensor.type])
    except (ConversionError, ValueError, IndexError) as error:
        raise ModelFileError(f"the code of the weights cannot be read: {error}") from error


def _short_name(name: str) -> str:
    """Returns the most informative part of a tensor's name."""
    parts = [part for part in name.split(";") if part]
    telling = [part for part in parts if part.rsplit("/", 1)[-1].lower().startswith(_TELLING)]
    return (telling or parts or [""])[0]


def _endpoint(tensor: Tensor) -> Endpoint:
    quantized = tensor.is_quantized
    return Endpoint(
        tensor.name,
        tensor.shape,
        tensor.type.lower(),
        tensor.scales[0] if quantized else None,
        (tensor.zero_points or (0,))[0] if quantized else None,
    )


def _peak_activations(model: FlatModel) -> tuple[int, int | None]:
    """Returns the peak of live activation bytes and the operator at which it occurs."""
    last = len(model.operators) - 1
    first_use = dict.fromkeys(model.inputs, 0)
    last_use: dict[int, int] = dict.fromkeys(model.outputs, last)
    for operator in model.operators:
        for index in operator.outputs:
            first_use.setdefault(index, operator.index)
        for index in (*operator.inputs, *operator.outputs):
            last_use[index] = max(last_use.get(index, 0), operator.index)
    alive = np.zeros(len(model.operators), np.int64)
    for index, first in first_use.items():
        if not model.tensors[index].is_constant:
            # An unread input still occupies its memory throughout.
            alive[first : last_use.get(index, last) + 1] += model.tensors[index].bytes
    return (int(alive.max()), int(alive.argmax())) if alive.size else (0, None)
