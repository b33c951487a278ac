"""Reading .tflite files into frozen types.

The schema classes come from ai-edge-litert (pure Python, no TensorFlow). Untrusted files may be
read: damage raises ModelFileError, never another exception.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgecompress.core.errors import ModelFileError
from edgecompress.core.reading import read_bytes
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import BINARY_CONV, WEIGHTED, Operator, words
from edgecompress.flatbuffers.sparse_tensors import Level, Sparsity
from edgecompress.flatbuffers.tensors import Tensor

# Dimensions of the weights; no runtime accepts others.
_WEIGHT_RANKS = {
    "CONV_2D": 4,
    "DEPTHWISE_CONV_2D": 4,
    "FULLY_CONNECTED": 2,
    "TRANSPOSE_CONV": 4,
    "CONV_3D": 5,
    "SVDF": 2,
}
# More than any of its operators has; bounds a damaged count.
_MOST_OPTIONS = 64
# No device has memory for a larger tensor, and sums of such sizes fit 64 bits.
_LARGEST_TENSOR = 1 << 40
# More dimensions than any runtime supports, blocks included.
_MOST_LEVELS = 16
# Place of a buffer's values in its table of fields: the first one, after a header of 4 bytes.
_BUFFER_DATA = 4


def read_tflite(source: Path | str | bytes | FlatModel) -> FlatModel:
    """Reads a .tflite file.

    Args:
        source: Path, or the file's bytes; a parsed model is returned unchanged.

    Raises:
        ModelFileError: the file is missing, damaged or not a .tflite file.

    Example:
        >>> read_tflite("kws_int8.tflite").histogram()  # doctest: +SKIP
        {'CONV_2D': 5, 'DEPTHWISE_CONV_2D': 4, ...}
    """
    if isinstance(source, FlatModel):
        return source
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _parse(bytes(source), "model")
    return _parse(read_bytes(source), str(source))


def _parse(data: bytes, label: str) -> FlatModel:
    if len(data) < 8 or data[4:8] != b"TFL3":
        raise ModelFileError(
            f"{label} is not a .tflite file: bytes 4 to 8 must be 'TFL3', got {data[4:8]!r}."
        )
    try:
        return _read(data)
    except ModelFileError as error:
        raise ModelFileError(f"{label} is damaged: {error}") from error
    # The generated reader trusts offsets; wild ones surface as one of many exceptions.
    except Exception as error:
        raise ModelFileError(
            f"{label} is damaged or truncated ({type(error).__name__} while reading its tables). "
            "Make or download it again."
        ) from error


@functools.cache
def _names(enum: str) -> dict[int, str]:
    from ai_edge_litert import schema_py_generated as schema

    return {v: k for k, v in vars(getattr(schema, enum)).items() if isinstance(v, int)}


@functools.cache
def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _integers(values: Any) -> tuple[int, ...]:
    return () if values is None else tuple(int(v) for v in values)


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return "" if value is None else str(value)


def _sparsity(table: Any) -> Sparsity | None:
    from ai_edge_litert import schema_py_generated as schema

    if table is None:
        return None
    levels = []
    for number in range(min(table.DimMetadataLength(), _MOST_LEVELS)):
        entry = schema.DimensionMetadataT.InitFromObj(table.DimMetadata(number))
        if entry.format == schema.DimensionType.DENSE:
            levels.append(Level(int(entry.denseSize)))
        else:
            vectors = (entry.arraySegments, entry.arrayIndices)
            segments, indices = (_integers(None if v is None else v.values) for v in vectors)
            # Without segments it would be read as a dense level.
            levels.append(Level(0, segments or (0,), indices))
    return Sparsity(
        _integers(table.TraversalOrderAsNumpy() if table.TraversalOrderLength() else None),
        _integers(table.BlockMapAsNumpy() if table.BlockMapLength() else None),
        tuple(levels),
    )


def _check_tensor(tensor: Tensor) -> None:
    """Refuses sizes and scales that the runtimes refuse as well."""
    where = f"tensor {tensor.index} of shape {tensor.shape}"
    if tensor.bytes > _LARGEST_TENSOR:
        raise ModelFileError(f"{where} is larger than any memory")
    scales, points, axis = tensor.scales, tensor.zero_points, tensor.quantized_dimension
    if not all(math.isfinite(scale) for scale in scales):
        raise ModelFileError(f"{where} has a scale that is not a number")
    if points and len(points) != len(scales):
        raise ModelFileError(f"{where} has {len(scales)} scales and {len(points)} zero points")
    if len(scales) > 1 and not (
        0 <= axis < len(tensor.shape) and len(scales) == tensor.shape[axis]
    ):
        raise ModelFileError(f"{where} has {len(scales)} scales along its dimension {axis}")


def _check_operator(operator: Operator, tensors: Sequence[Tensor]) -> None:
    """Refuses weighted operators whose weights or result cannot be what they are."""
    where = f"operator {operator.index} {operator.code}"
    if operator.code in WEIGHTED and not operator.outputs:
        raise ModelFileError(f"{where} has no output")
    if operator.name == BINARY_CONV:
        _check_binary_conv(operator, tensors)
        return
    if operator.code == "BATCH_MATMUL":
        _check_factors(operator, tensors)
        return
    rank = _WEIGHT_RANKS.get(operator.code)
    if rank is None or len(operator.inputs) < 2 or operator.inputs[1] < 0:
        return
    shape = tensors[operator.inputs[1]].shape
    if len(shape) != rank:
        raise ModelFileError(f"{where} has weights of shape {shape} instead of {rank} dimensions")


def _check_factors(operator: Operator, tensors: Sequence[Tensor]) -> None:
    """Refuses products of non-matrices, as the runtimes do."""
    for index in operator.inputs[:2]:
        if index >= 0 and len(tensors[index].shape) < 2:
            raise ModelFileError(
                f"operator {operator.index} {operator.code} multiplies a tensor of shape "
                f"{tensors[index].shape} instead of a matrix"
            )


def _check_binary_conv(operator: Operator, tensors: Sequence[Tensor]) -> None:
    where = f"operator {operator.index} {operator.name}"
    if len(operator.inputs) < 2 or min(operator.inputs[:2]) < 0 or not operator.outputs:
        raise ModelFileError(f"{where} lacks its input, filter or output")
    source, weights = (tensors[index] for index in operator.inputs[:2])
    if weights.type != "INT32" or len(weights.shape) != 4 or not source.shape:
        raise ModelFileError(f"{where} has a filter of type {weights.type}, shape {weights.shape}")
    channels = operator.options.get("channels_in", 0)
    count, groups = words(channels), source.shape[-1] // max(weights.shape[3], 1)
    if not 0 < channels < _LARGEST_TENSOR or count != weights.shape[3] * max(groups, 1):
        raise ModelFileError(
            f"{where} has {channels} input channels and a filter of shape {weights.shape}"
        )


def _custom_options(name: str, table: Any) -> dict[str, Any]:
    """Returns the options of Larq Compute Engine's operators, a flexbuffer map of integers."""
    if not name.startswith("Lce") or not table.CustomOptionsLength():
        return {}
    from flatbuffers import flexbuffers

    root = flexbuffers.GetRoot(bytes(table.CustomOptionsAsNumpy().tobytes())).AsMap
    keys = [root.Keys[position] for position in range(min(len(root), _MOST_OPTIONS))]
    return {key.AsKey: root[key.AsKey].AsInt for key in keys}


def _read(data: bytes) -> FlatModel:
    from ai_edge_litert import schema_py_generated as schema

    root = schema.Model.GetRootAs(data, 0)
    if root.SubgraphsLength() < 1:
        raise ModelFileError("it contains no subgraph")
    # Bounds are checked before any loop, so that a wild length cannot keep the reader busy. Several
    # subgraphs may share one table, so their lengths are added up.
    limit = len(data)
    lengths = [root.BuffersLength(), root.SubgraphsLength(), root.MetadataLength()]
    graphs = [root.Subgraphs(number) for number in range(min(root.SubgraphsLength(), limit))]
    lengths.append(sum(graph.TensorsLength() + graph.OperatorsLength() for graph in graphs))
    if max(lengths) > limit:
        raise ModelFileError("a table is longer than the file")

    view = memoryview(data)

    # However many tensors refer to a buffer, they have one view of it.
    @functools.cache
    def raw(index: int) -> memoryview | None:
        if index == 0:
            return None
        if index >= root.BuffersLength():
            raise ModelFileError(f"a tensor names buffer {index} of {root.BuffersLength()}")
        buffer = root.Buffers(index)
        if buffer.Offset() > 1:
            # Files above 2 GiB store their buffers after the flatbuffer.
            start, size = buffer.Offset(), buffer.Size()
            if start + size > limit:
                raise ModelFileError("a buffer is outside the file")
            return view[start : start + size]
        if buffer.DataLength() == 0:
            return None
        start = buffer._tab.Vector(buffer._tab.Offset(_BUFFER_DATA))
        if start + buffer.DataLength() > limit:
            raise ModelFileError("a buffer is outside the file")
        return view[start : start + buffer.DataLength()]

    metadata = {}
    for index in range(root.MetadataLength()):
        entry = root.Metadata(index)
        metadata[_text(entry.Name())] = bytes(raw(entry.Buffer()) or b"")
    first, *others = (_read_graph(data, root, graph, raw) for graph in graphs)
    return dataclasses.replace(
        first,
        subgraphs=len(graphs),
        metadata=metadata,
        description=_text(root.Description()),
        others=tuple(others),
    )


def _read_graph(
    data: bytes, root: Any, graph: Any, raw: Callable[[int], memoryview | None]
) -> FlatModel:
    """Reads one subgraph; `raw` returns a buffer's bytes."""
    from ai_edge_litert import schema_py_generated as schema

    types, codes = _names("TensorType"), _names("BuiltinOperator")
    tensors = []
    for index in range(graph.TensorsLength()):
        table = graph.Tensors(index)
        shape = _integers(table.ShapeAsNumpy() if table.ShapeLength() else None)
        signature = _integers(
            table.ShapeSignatureAsNumpy() if table.ShapeSignatureLength() else None
        )
        if any(size < 0 for size in shape):
            raise ModelFileError(f"tensor {index} has the shape {shape}")
        quantization = table.Quantization()
        scales: tuple[float, ...] = ()
        zero_points: tuple[int, ...] = ()
        axis = 0
        if quantization is not None and quantization.ScaleLength():
            scales = tuple(float(s) for s in quantization.ScaleAsNumpy())
            if quantization.ZeroPointLength():
                zero_points = _integers(quantization.ZeroPointAsNumpy())
            axis = quantization.QuantizedDimension()
        shared = len(zero_points) == 1 < len(scales)
        stray = len(shape) == 1 < len(scales) and axis != 0
        if table.Type() not in types:
            raise ModelFileError(f"tensor {index} has the unknown type {table.Type()}")
        tensor = Tensor(
            index,
            _text(table.Name()),
            shape,
            types[table.Type()],
            raw(table.Buffer()),
            scales,
            zero_points * len(scales) if shared else zero_points,
            0 if stray else axis,
            bool(table.IsVariable()),
            any(size < 0 for size in signature),
            _sparsity(table.Sparsity()),
            shared,
            stray,
        )
        _check_tensor(tensor)
        tensors.append(tensor)

    def checked(indices: tuple[int, ...], optional: bool = False) -> tuple[int, ...]:
        low = -1 if optional else 0
        if any(not low <= i < len(tensors) for i in indices):
            raise ModelFileError(f"an operator names tensors {indices} of {len(tensors)}")
        return indices

    operators = []
    for index in range(graph.OperatorsLength()):
        table = graph.Operators(index)
        if table.OpcodeIndex() >= root.OperatorCodesLength():
            raise ModelFileError(f"operator {index} names an operator code that does not exist")
        code = root.OperatorCodes(table.OpcodeIndex())
        # Files older than schema 3a store the code in a one-byte field.
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        name = codes.get(number, f"UNKNOWN_{number}")
        options = {}
        if table.BuiltinOptionsType():
            unpacked = schema.BuiltinOptionsCreator(
                table.BuiltinOptionsType(), table.BuiltinOptions()
            )
            if unpacked is not None:
                options = {
                    _snake(key): tuple(v.tolist()) if isinstance(v, np.ndarray) else v
                    for key, v in vars(unpacked).items()
                }
        custom = _text(code.CustomCode()) if name == "CUSTOM" else ""
        operator = Operator(
            index,
            name,
            custom,
            code.Version(),
            checked(_integers(table.InputsAsNumpy() if table.InputsLength() else None), True),
            checked(_integers(table.OutputsAsNumpy() if table.OutputsLength() else None)),
            options or _custom_options(custom, table),
            checked(
                _integers(table.IntermediatesAsNumpy() if table.IntermediatesLength() else None)
            ),
            table.CustomOptionsLength() > 0,
        )
        _check_operator(operator, tensors)
        operators.append(operator)
    return FlatModel(
        data,
        tuple(tensors),
        tuple(operators),
        checked(_integers(graph.InputsAsNumpy() if graph.InputsLength() else None)),
        checked(_integers(graph.OutputsAsNumpy() if graph.OutputsLength() else None)),
    )
