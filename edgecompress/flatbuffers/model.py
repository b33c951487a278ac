"""Reading .tflite files into frozen types.

The schema classes come from ai-edge-litert (pure Python, no TensorFlow). A file from anywhere may
be read: damage ends in ModelFileError, never in another exception.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgecompress.core.errors import ModelFileError
from edgecompress.core.reading import read_bytes
from edgecompress.flatbuffers.sparse_tensors import Level, Sparsity

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
        codes: Any shape; of each code the lowest `bits` are kept.
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


def unpack_codes(data: bytes, bits: int) -> np.ndarray:
    """Returns the signed integers (int8) that `pack_codes` packed, those of the filling included.

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
        raw: Bytes of a constant; None for a tensor that is computed.
        scales: Quantization scales: none, one, or one for each channel.
        zero_points: As many as scales.
        shared_zero_point: Whether the file holds one zero point for all channels; TensorFlow Lite
            Micro takes that, LiteRT does not.
        quantized_dimension: The channel axis of per-channel scales.
        is_variable: A state that lives between inferences.
        dynamic: Some dimension is only known when the model runs.
        sparsity: Where the values of `raw` belong, for a tensor that is stored sparse; else None.
        stray_axis: Whether the file gives a vector's scales a channel axis that it has not, as old
            converters did with biases (`quantized_dimension` is 0 then); TensorFlow Lite Micro
            takes that, LiteRT does not.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    type: str
    raw: bytes | None = field(default=None, repr=False)
    scales: tuple[float, ...] = field(default=(), repr=False)
    zero_points: tuple[int, ...] = field(default=(), repr=False)
    quantized_dimension: int = 0
    is_variable: bool = False
    dynamic: bool = False
    sparsity: Sparsity | None = field(default=None, repr=False)
    shared_zero_point: bool = False
    stray_axis: bool = False

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
        """Bytes that a constant takes in the file, indices of a sparse one included."""
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
            ModelFileError: the tensor is no constant, its type has no numpy form, or the buffer
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
        except ValueError as error:  # No elements, but dimensions beyond all bounds.
            raise ModelFileError(f"Tensor {self.index} has the shape {self.shape}.") from error


@dataclass(frozen=True)
class Operator:
    """One operator of a flatbuffer.

    Attributes:
        index: Position in the order of execution.
        code: `CONV_2D`, ... as in the schema; `CUSTOM` for custom ones.
        custom_name: Name of a custom operator, else "".
        version: Version of the operator that the file asks for.
        inputs: Tensor indices, -1 for an optional input left out.
        outputs: Tensor indices.
        options: The operator's options in snake_case, enumerations as their numbers, e.g.
            `stride_w`, `padding` (0 SAME, 1 VALID), `fused_activation_function` (0 none, 1 RELU,
            2 RELU_N1_TO_1, 3 RELU6), `depth_multiplier`, `dilation_w_factor`. Those of Larq Compute
            Engine's operators are read too (`channels_in`, `stride_width`, `pad_values`, ...).
        intermediates: Tensor indices of intermediate results (LSTM).
        has_custom_options: Whether custom options are present.
    """

    index: int
    code: str
    custom_name: str
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    intermediates: tuple[int, ...] = ()
    has_custom_options: bool = False

    @property
    def name(self) -> str:
        """The custom name where there is one, else the code."""
        return self.custom_name or self.code


@dataclass(frozen=True)
class FlatModel:
    """A .tflite file, read.

    Attributes:
        data: The file's bytes.
        tensors: Of the first subgraph, by index.
        operators: Of the first subgraph, in order of execution.
        inputs: Tensor indices of the model's inputs.
        outputs: Tensor indices of the model's outputs.
        subgraphs: Number of subgraphs.
        metadata: Names of metadata entries -> bytes.
        description: The file's own description.
        others: The subgraphs behind the first, each as a model of its own, without metadata.
    """

    data: bytes = field(repr=False)
    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    subgraphs: int = 1
    metadata: Mapping[str, bytes] = field(default_factory=dict)
    description: str = ""
    others: tuple[FlatModel, ...] = field(default=(), repr=False)

    def tensor(self, operator: Operator, position: int) -> Tensor | None:
        """Returns an operator's input tensor by position; None where it was left out."""
        if position >= len(operator.inputs) or operator.inputs[position] < 0:
            return None
        return self.tensors[operator.inputs[position]]

    def output(self, operator: Operator, position: int = 0) -> Tensor:
        """Returns an operator's output tensor by position."""
        return self.tensors[operator.outputs[position]]

    def histogram(self) -> dict[str, int]:
        """Returns how often each operator occurs in all subgraphs, by name."""
        graphs = (self, *self.others)
        return dict(Counter(operator.name for graph in graphs for operator in graph.operators))

    def parameters(self) -> int:
        """Returns the number of weights and biases: constants that are no shapes or indices."""
        packed = {o.inputs[1]: o for o in self.operators if o.name == BINARY_CONV}
        return sum(
            math.prod(binary_kernel_shape(self, packed[t.index]))
            if t.index in packed
            else t.elements
            for t in self.weight_tensors()
        )

    def weight_tensors(self) -> list[Tensor]:
        """Returns the constants that carry learnt values, each once.

        These are the constant inputs from position 1 of weighted operators (filters, biases) and
        floating or quantized constants of any other operator.
        """
        found: dict[int, Tensor] = {}
        for operator in self.operators:
            for position, index in enumerate(operator.inputs):
                if index < 0:
                    continue
                tensor = self.tensors[index]
                learnt = (
                    (
                        operator.code in WEIGHTED
                        and position > 0
                        and operator.code != "TRANSPOSE_CONV"
                    )
                    or (operator.code == "TRANSPOSE_CONV" and position in (1, 3))
                    or (operator.name == BINARY_CONV and position > 0)
                    or tensor.is_quantized
                    or tensor.type.startswith("FLOAT")
                )
                if tensor.is_constant and learnt:
                    found[index] = tensor
        return list(found.values())

    def macs(self) -> int:
        """Returns the multiply-accumulates of one inference, binary ones left out."""
        return sum(operator_macs(self, operator) for operator in self.operators)

    def binary_macs(self) -> int:
        """Returns the multiply-accumulates of one inference that are XNOR and popcount of bits."""
        return sum(operator_binary_macs(self, operator) for operator in self.operators)


WEIGHTED = frozenset(
    {
        "CONV_2D",
        "DEPTHWISE_CONV_2D",
        "FULLY_CONNECTED",
        "TRANSPOSE_CONV",
        "CONV_3D",
        "SVDF",
        "BATCH_MATMUL",
        "UNIDIRECTIONAL_SEQUENCE_LSTM",
    }
)
# Operators whose input 1 is a filter with output channels.
FILTER_READERS = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"})
# Dimensions of the weights; no runtime takes others.
_WEIGHT_RANKS = {
    "CONV_2D": 4,
    "DEPTHWISE_CONV_2D": 4,
    "FULLY_CONNECTED": 2,
    "TRANSPOSE_CONV": 4,
    "CONV_3D": 5,
    "SVDF": 2,
}
# The binary convolution of Larq Compute Engine: filters and activations are bits, 32 of a pixel's
# channels in one int32, 1 for negative.
BINARY_CONV = "LceBconv2d"
_WORD_BITS = 32
# More than any of its operators has; a damaged count stays small.
_MOST_OPTIONS = 64
# No device has memory for a larger tensor, and sums of such sizes stay within 64 bits.
_LARGEST_TENSOR = 1 << 40
# More dimensions than any runtime has, blocks included.
_MOST_LEVELS = 16


def channel_axis(operator: Operator) -> int:
    """Returns the axis of a filter along which the output channels lie."""
    return 3 if operator.code == "DEPTHWISE_CONV_2D" else 0


def operator_macs(model: FlatModel, operator: Operator) -> int:
    """Returns an operator's multiply-accumulates; 0 for operators without a weighted sum.

    Padding counts as work, as in published counts (MLPerf Tiny, Keras summaries).
    """
    weights = model.tensor(operator, 1)
    if operator.code not in WEIGHTED or weights is None:
        return 0
    out = model.output(operator).elements
    if operator.code == "CONV_2D":
        return out * math.prod(weights.shape[1:])
    if operator.code == "DEPTHWISE_CONV_2D":
        return out * math.prod(weights.shape[1:3])
    if operator.code == "FULLY_CONNECTED":
        return out * weights.shape[-1]
    if operator.code == "TRANSPOSE_CONV":
        source = model.tensor(operator, 2)
        return 0 if source is None else source.elements * math.prod(weights.shape[:-1])
    if operator.code == "BATCH_MATMUL":
        adjoint = bool(operator.options.get("adj_y", False))
        return out * (1, *weights.shape)[-1 if adjoint else -2]
    if operator.code == "CONV_3D":
        return out * math.prod(weights.shape[:-1])
    if operator.code == "SVDF":
        time = model.tensor(operator, 2)
        return weights.elements + (0 if time is None else time.elements)
    # LSTM: every gate matrix is used once in each time step.
    source = model.tensor(operator, 0)
    gates = [model.tensor(operator, position) for position in range(1, 9)]
    if source is None or len(source.shape) < 3:
        return 0
    time_major = bool(operator.options.get("time_major", False))
    steps, batch = source.shape[:2] if time_major else (source.shape[1], source.shape[0])
    return steps * batch * sum(gate.elements for gate in gates if gate is not None)


def binary_kernel_shape(model: FlatModel, operator: Operator) -> tuple[int, int, int, int]:
    """Returns the shape of a binary convolution's filter before packing: (out, h, w, in)."""
    out, height, width, words = model.tensors[operator.inputs[1]].shape
    channels = int(operator.options["channels_in"])
    # Grouped filters hold the channels of one group, a multiple of 32.
    return out, height, width, channels if _words(channels) == words else words * _WORD_BITS


def operator_binary_macs(model: FlatModel, operator: Operator) -> int:
    """Returns an operator's multiply-accumulates of bits; 0 for all but binary convolutions."""
    if operator.name != BINARY_CONV:
        return 0
    # The output may be packed, its last dimension words; the filter knows the channels.
    positions = math.prod(model.output(operator).shape[:-1])
    return positions * math.prod(binary_kernel_shape(model, operator))


def _words(channels: int) -> int:
    return -(-channels // _WORD_BITS)


def read_tflite(source: Path | str | bytes | FlatModel) -> FlatModel:
    """Reads a .tflite file.

    Args:
        source: Path, or the file's bytes; a model that was read already is passed on.

    Raises:
        ModelFileError: the file is missing, no .tflite, or damaged.

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
            f"{label} is no .tflite file: bytes 4 to 8 must be 'TFL3', got {data[4:8]!r}."
        )
    try:
        return _read(data)
    except ModelFileError as error:
        raise ModelFileError(f"{label} is damaged: {error}") from error
    # The generated reader trusts offsets; wild ones surface as any of many exceptions.
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
            # Without segments it would read as a dense level.
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
        raise ModelFileError(f"{where} has a scale that is no number")
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
    rank = _WEIGHT_RANKS.get(operator.code)
    if rank is None or len(operator.inputs) < 2 or operator.inputs[1] < 0:
        return
    shape = tensors[operator.inputs[1]].shape
    if len(shape) != rank:
        raise ModelFileError(f"{where} has weights of shape {shape} instead of {rank} dimensions")


def _check_binary_conv(operator: Operator, tensors: Sequence[Tensor]) -> None:
    where = f"operator {operator.index} {operator.name}"
    if len(operator.inputs) < 2 or min(operator.inputs[:2]) < 0 or not operator.outputs:
        raise ModelFileError(f"{where} lacks its input, filter or output")
    source, weights = (tensors[index] for index in operator.inputs[:2])
    if weights.type != "INT32" or len(weights.shape) != 4 or not source.shape:
        raise ModelFileError(f"{where} has a filter of type {weights.type}, shape {weights.shape}")
    channels = operator.options.get("channels_in", 0)
    words, groups = _words(channels), source.shape[-1] // max(weights.shape[3], 1)
    if not 0 < channels < _LARGEST_TENSOR or words != weights.shape[3] * max(groups, 1):
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
        raise ModelFileError("it holds no subgraph")
    # Bounds are checked before any loop so that a wild length cannot keep the reader busy. Several
    # subgraphs may share one table, so their lengths count together.
    limit = len(data)
    lengths = [root.BuffersLength(), root.SubgraphsLength(), root.MetadataLength()]
    graphs = [root.Subgraphs(number) for number in range(min(root.SubgraphsLength(), limit))]
    lengths.append(sum(graph.TensorsLength() + graph.OperatorsLength() for graph in graphs))
    if max(lengths) > limit:
        raise ModelFileError("a table is longer than the file")

    # Each buffer is copied once, however many tensors name it.
    @functools.cache
    def raw(index: int) -> bytes | None:
        if index == 0:
            return None
        if index >= root.BuffersLength():
            raise ModelFileError(f"a tensor names buffer {index} of {root.BuffersLength()}")
        buffer = root.Buffers(index)
        if buffer.Offset() > 1:
            # Files above 2 GiB keep their buffers behind the flatbuffer.
            start, size = buffer.Offset(), buffer.Size()
            if start + size > limit:
                raise ModelFileError("a buffer lies outside the file")
            return data[start : start + size]
        if buffer.DataLength() == 0:
            return None
        return bytes(buffer.DataAsNumpy().tobytes())

    metadata = {}
    for index in range(root.MetadataLength()):
        entry = root.Metadata(index)
        metadata[_text(entry.Name())] = raw(entry.Buffer()) or b""
    first, *others = (_read_graph(data, root, graph, raw) for graph in graphs)
    return dataclasses.replace(
        first,
        subgraphs=len(graphs),
        metadata=metadata,
        description=_text(root.Description()),
        others=tuple(others),
    )


def _read_graph(
    data: bytes, root: Any, graph: Any, raw: Callable[[int], bytes | None]
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
            raise ModelFileError(f"operator {index} names an operator code that is not there")
        code = root.OperatorCodes(table.OpcodeIndex())
        # Files older than schema 3a keep the number in a field of one byte.
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
