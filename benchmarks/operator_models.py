"""Models of one operator, for asking an engine what it runs.

`cases()` yields them: every operator that TensorFlow Lite Micro registers, in the types, ranks and
forms that converters write, and in many that no kernel takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgecompress.flatbuffers.packing import pack
from edgecompress.flatbuffers.tensors import pack_codes

TYPES = ("FLOAT32", "INT8", "INT16", "INT32", "INT64", "UINT8", "BOOL")
NUMBERS = TYPES[:-1]
_NUMPY = {
    "FLOAT32": np.float32, "FLOAT16": np.float16, "INT8": np.int8, "INT16": np.int16,
    "INT32": np.int32, "INT64": np.int64, "UINT8": np.uint8, "UINT16": np.uint16,
    "UINT32": np.uint32, "BOOL": np.bool_,
}  # fmt: skip
_QUANTIZED = ("INT8", "INT16", "UINT8", "INT4", "INT2")
# What the kernels demand of some outputs.
_OUTPUT_SCALES = {
    "SOFTMAX": {"INT8": (1 / 256, -128), "INT16": (1 / 32768, 0), "UINT8": (1 / 256, 0)},
    "LOGISTIC": {"INT8": (1 / 256, -128), "INT16": (1 / 32768, 0), "UINT8": (1 / 256, 0)},
    "TANH": {"INT8": (1 / 128, 0), "INT16": (1 / 32768, 0), "UINT8": (1 / 128, 128)},
    "L2_NORMALIZATION": {"INT8": (1 / 128, 0), "UINT8": (1 / 128, 128)},
    "LOG_SOFTMAX": {"INT8": (16 / 256, 127), "UINT8": (16 / 256, 255)},
}
SHAPES: tuple[tuple[int, ...], ...] = (
    (), (4,), (1, 4), (1, 4, 4), (1, 4, 4, 4), (1, 2, 4, 4, 4), (1, 2, 1, 4, 4, 4)
)  # fmt: skip


@dataclass(frozen=True)
class T:
    """A tensor to be: constant where it has values, else computed or an input."""

    type: str
    shape: tuple[int, ...]
    values: Any = None
    scales: tuple[float, ...] | None = None
    zero_point: int | None = None
    axis: int = 0
    variable: bool = False


@dataclass(frozen=True)
class Case:
    """A model of one operator."""

    operator: str
    inputs: tuple[T | None, ...]
    outputs: tuple[T, ...]
    options: dict[str, Any] = field(default_factory=dict)
    intermediates: tuple[T, ...] = ()

    def data(self) -> bytes:
        """The .tflite file."""
        return _write(self)


# Inputs of this scale are given positive values.
POSITIVE = 1 / 64


def pattern(dtype: Any, count: int, seed: int = 1) -> np.ndarray:
    """Returns small values without a zero, so that nothing divides by it."""
    numbers = (np.arange(count) * 7 + seed * 5) % 11 * 2 - 11 + 0 * seed
    if np.dtype(dtype) == np.bool_:
        return numbers % 4 == 1
    if np.issubdtype(dtype, np.unsignedinteger):
        numbers = numbers + 12
    return (numbers * (0.25 if np.issubdtype(dtype, np.floating) else 1)).astype(dtype)


def _quantization(tensor: T, s: Any) -> Any:
    if tensor.type not in _QUANTIZED and tensor.scales is None:
        return None
    scales = tensor.scales or ((1 / 512,) if tensor.type == "INT16" else (1 / 16,))
    point = tensor.zero_point
    if point is None:
        point = {"INT8": 3, "UINT8": 128}.get(tensor.type, 0)
    return s.QuantizationParametersT(
        scale=np.float32(scales), zeroPoint=np.int64([point] * len(scales)),
        quantizedDimension=tensor.axis,
    )  # fmt: skip


# Classes of options that are not named after the operator.
_OPTIONS = {
    "CONV_2D": "Conv2DOptions", "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "AVERAGE_POOL_2D": "Pool2DOptions", "MAX_POOL_2D": "Pool2DOptions",
    "L2_POOL_2D": "Pool2DOptions", "SUM": "ReducerOptions", "MEAN": "ReducerOptions",
    "REDUCE_MAX": "ReducerOptions", "REDUCE_MIN": "ReducerOptions",
    "REDUCE_ALL": "ReducerOptions", "MAXIMUM": "MaximumMinimumOptions",
    "MINIMUM": "MaximumMinimumOptions", "SVDF": "SVDFOptions", "PADV2": "PadV2Options",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "UnidirectionalSequenceLSTMOptions",
    "L2_NORMALIZATION": "L2NormOptions", "SPLIT_V": "SplitVOptions",
    "SPACE_TO_BATCH_ND": "SpaceToBatchNDOptions", "BATCH_TO_SPACE_ND": "BatchToSpaceNDOptions",
    "ADD_N": "AddNOptions", "BATCH_MATMUL": "BatchMatMulOptions",
}  # fmt: skip


def _options(operator: str, values: dict[str, Any], s: Any) -> tuple[int, Any]:
    name = _OPTIONS.get(operator, operator.title().replace("_", "") + "Options")
    number = getattr(s.BuiltinOptions, name, None)
    if number is None:
        return 0, None
    made = getattr(s, name + "T")()
    for key, value in values.items():
        if not hasattr(made, key):
            raise AttributeError(f"{name} has no {key}")
        setattr(made, key, value)
    return number, made


def _write(case: Case) -> bytes:
    from ai_edge_litert import schema_py_generated as s

    buffers, tensors, graph_inputs = [s.BufferT()], [], []

    def add(tensor: T | None, is_input: bool) -> int:
        if tensor is None:
            return -1
        number = 0
        if tensor.values is not None:
            raw = (
                pack_codes(np.asarray(tensor.values), int(tensor.type[3:]))
                if tensor.type in ("INT4", "INT2")
                else np.ascontiguousarray(tensor.values, _NUMPY[tensor.type]).tobytes()
            )
            number = len(buffers)
            buffers.append(s.BufferT(data=np.frombuffer(raw, np.uint8)))
        tensors.append(
            s.TensorT(
                shape=np.int32(tensor.shape), type=getattr(s.TensorType, tensor.type),
                buffer=number, name=f"t{len(tensors)}", quantization=_quantization(tensor, s),
                isVariable=tensor.variable, hasRank=True,
            )
        )  # fmt: skip
        if is_input and tensor.values is None and not tensor.variable:
            graph_inputs.append(len(tensors) - 1)
        return len(tensors) - 1

    inputs = [add(tensor, True) for tensor in case.inputs]
    outputs = [add(tensor, False) for tensor in case.outputs]
    between = [add(tensor, False) for tensor in case.intermediates]
    kind, options = _options(case.operator, case.options, s)
    operator = s.OperatorT(
        opcodeIndex=0, inputs=np.int32(inputs), outputs=np.int32(outputs),
        builtinOptionsType=kind, builtinOptions=options,
        intermediates=np.int32(between) if between else None,
    )  # fmt: skip
    graph = s.SubGraphT(
        tensors=tensors, inputs=np.int32(graph_inputs), outputs=np.int32(outputs),
        operators=[operator], name="main",
    )  # fmt: skip
    code = getattr(s.BuiltinOperator, case.operator)
    return pack(
        s.ModelT(
            version=3, subgraphs=[graph], buffers=buffers, description="one operator",
            operatorCodes=[
                s.OperatorCodeT(builtinCode=code, deprecatedBuiltinCode=min(code, 127), version=1)
            ],
        )
    )  # fmt: skip


def _ints(*values: int, type: str = "INT32") -> T:
    return T(type, (len(values),), np.array(values))


def _scalar(value: int) -> T:
    return T("INT32", (), np.array(value))


def _like(operator: str, type_: str, shape: Sequence[int]) -> T:
    scale, point = _OUTPUT_SCALES.get(operator, {}).get(type_, (None, None))
    return T(type_, tuple(shape), None, None if scale is None else (scale,), point)


_UNARY = (
    "ABS", "CEIL", "COS", "ELU", "EXP", "FLOOR", "HARD_SWISH", "L2_NORMALIZATION", "LEAKY_RELU",
    "LOG", "LOG_SOFTMAX", "LOGICAL_NOT", "LOGISTIC", "NEG", "RELU", "RELU6", "ROUND", "RSQRT",
    "SIN", "SOFTMAX", "SQRT", "SQUARE", "TANH", "ZEROS_LIKE",
)  # fmt: skip
_BINARY = (
    "ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE", "FLOOR_DIV",
    "FLOOR_MOD",
)  # fmt: skip
_COMPARISONS = ["EQUAL", "NOT_EQUAL", "LESS", "LESS_EQUAL", "GREATER", "GREATER_EQUAL"]
_REDUCTIONS = ["MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_ALL"]


def _unary() -> Iterator[Case]:
    for operator in _UNARY:
        for type_ in TYPES:
            for shape in SHAPES:
                options = {"SOFTMAX": {"beta": 1.0}, "LEAKY_RELU": {"alpha": 0.1}}.get(operator, {})
                yield Case(
                    operator, (T(type_, shape),), (_like(operator, type_, shape),), dict(options)
                )
                if operator == "RSQRT" and type_ in ("INT8", "INT16"):
                    # Its kernels refuse negative values, which codes from zero on cannot hold.
                    point = 3 if type_ == "INT8" else 0
                    positive = (T(type_, shape, None, (POSITIVE,), point),)
                    yield Case(operator, positive, (T(type_, shape),))
                    if type_ == "INT8":
                        least = (T(type_, shape, None, None, -128),)
                        yield Case(operator, least, (T(type_, shape),))
    for shape in SHAPES:
        yield Case("SOFTMAX", (T("INT8", shape),), (_like("SOFTMAX", "INT16", shape),),
                   {"beta": 1.0})  # fmt: skip
        for source in (*TYPES, "UINT16", "UINT32", "FLOAT16"):
            for target in (*TYPES, "UINT16", "UINT32", "FLOAT16"):
                yield Case("CAST", (T(source, shape),), (T(target, shape),))
        for source in ("FLOAT32", "INT8", "INT16", "UINT8", "INT32"):
            for target in ("INT8", "INT16", "UINT8", "INT32"):
                scales = (1 / 4,)
                yield Case(
                    "QUANTIZE",
                    (T(source, shape, scales=scales if source == "INT32" else None),),
                    (T(target, shape, scales=scales),),
                )
        # TensorFlow's 16-bit softmax has its zero point at the least value.
        least = T("INT16", shape, None, (1 / 65536,), -32768)
        yield Case("SOFTMAX", (T("INT8", shape),), (least,), {"beta": 1.0})
        for target in ("INT8", "INT16", "INT32"):
            yield Case("QUANTIZE", (least,), (T(target, shape, scales=(1 / 256,)),))
        for source in ("FLOAT32", "INT8"):
            yield Case("QUANTIZE", (T(source, shape),), (least,))
        yield Case("DEQUANTIZE", (least,), (T("FLOAT32", shape),))
        for source in ("INT8", "INT16", "UINT8", "INT32"):
            yield Case("DEQUANTIZE", (T(source, shape, scales=(1 / 4,)),), (T("FLOAT32", shape),))
        yield Case("DEQUANTIZE", (T("FLOAT16", shape),), (T("FLOAT32", shape),))
        yield Case(
            "DEQUANTIZE",
            (T("FLOAT16", shape, np.ones(shape)),),
            (T("FLOAT32", shape),),
        )


def _binary() -> Iterator[Case]:
    for operator in (*_BINARY, *_COMPARISONS, "LOGICAL_AND", "LOGICAL_OR"):
        for type_ in TYPES:
            target = "BOOL" if operator in _COMPARISONS else type_
            for shape in SHAPES:
                yield Case(operator, (T(type_, shape),) * 2, (T(target, shape),))
                if shape:
                    other = T(type_, (4,) if len(shape) > 1 else (1,))
                    yield Case(operator, (T(type_, shape), other), (T(target, shape),))
    for type_ in NUMBERS:
        for shape in SHAPES[1:]:
            alpha = pattern(_NUMPY[type_], 4)
            wide = (1,) * (len(shape) - 2) + (4,) if len(shape) > 1 else (4,)
            yield Case("PRELU", (T(type_, shape), T(type_, wide, alpha.reshape(wide))),
                       (T(type_, shape),))  # fmt: skip
        for shape in SHAPES:
            yield Case("ADD_N", (T(type_, shape),) * 3, (T(type_, shape),))


def _reductions() -> Iterator[Case]:
    for operator in _REDUCTIONS:
        for type_ in TYPES:
            for shape in SHAPES[1:]:
                for keep in (True, False):
                    out = (*shape[:-1], 1) if keep else shape[:-1]
                    yield Case(operator, (T(type_, shape), _ints(len(shape) - 1)),
                               (T(type_, out),), {"keepDims": keep})  # fmt: skip
                if len(shape) == 4:
                    yield Case(operator, (T(type_, shape), _ints(1, 2)),
                               (T(type_, (1, 4)),), {"keepDims": False})  # fmt: skip
                    yield Case(operator, (T(type_, shape), _ints(1, 2)),
                               (T(type_, (1, 1, 1, 4)),), {"keepDims": True})  # fmt: skip
            yield Case(operator, (T(type_, SHAPES[4]), T("INT32", (1,))),
                       (T(type_, (1, 4, 4, 1)),), {"keepDims": True})  # fmt: skip
    for operator, option in (("ARG_MAX", "outputType"), ("ARG_MIN", "outputType")):
        for type_ in TYPES:
            for shape in SHAPES[1:]:
                for target in ("INT32", "INT64"):
                    yield Case(operator, (T(type_, shape), _scalar(len(shape) - 1)),
                               (T(target, shape[:-1]),),
                               {option: 2 if target == "INT32" else 4})  # fmt: skip
                yield Case(operator, (T(type_, shape), _ints(len(shape) - 1)),
                           (T("INT32", shape[:-1]),), {option: 2})  # fmt: skip
    for type_ in NUMBERS:
        for shape in SHAPES[1:]:
            for options in ({}, {"exclusive": True}, {"reverse": True}):
                yield Case("CUMSUM", (T(type_, shape), _scalar(len(shape) - 1)),
                           (T(type_, shape),), dict(options))  # fmt: skip


def _shapes() -> Iterator[Case]:
    for type_ in TYPES:
        for rank, shape in enumerate(SHAPES):
            data, size = T(type_, shape), int(np.prod(shape))
            if rank:
                yield Case("RESHAPE", (data, _ints(size)), (T(type_, (size,)),),
                           {"newShape": np.int32([size])})  # fmt: skip
                yield Case("RESHAPE", (data,), (T(type_, (size,)),),
                           {"newShape": np.int32([size])})  # fmt: skip
                yield Case("RESHAPE", (T(type_, (size,)), _ints(*shape)), (data,),
                           {"newShape": np.int32(shape)})  # fmt: skip
                yield Case("RESHAPE", (data, T("INT32", (1,))), (T(type_, (size,)),))
                if rank < 6:
                    yield Case("SQUEEZE", (T(type_, (1, *shape)),), (T(type_, shape),),
                               {"squeezeDims": np.int32([0])})  # fmt: skip
                for axis in (0, -1):
                    out = (1, *shape) if axis == 0 else (*shape, 1)
                    if rank < 6:
                        yield Case("EXPAND_DIMS", (data, _scalar(axis)), (T(type_, out),))
                        yield Case("EXPAND_DIMS", (data, _ints(axis)), (T(type_, out),))
                order = tuple(range(rank))[::-1]
                yield Case("TRANSPOSE", (data, _ints(*order)), (T(type_, shape[::-1]),))
                yield from _slices(type_, rank, shape)
                yield from _joins(type_, rank, shape)
                yield from _pads(type_, rank, shape)
                for index in ("INT32", "INT64"):
                    yield Case("REVERSE_V2", (data, _ints(rank - 1, type=index)), (data,))
                    yield Case("GATHER", (data, _ints(1, 0, 3, type=index)),
                               (T(type_, (*shape[:-1], 3)),), {"axis": rank - 1})  # fmt: skip
                    yield Case("GATHER", (data, T(index, (3,))),
                               (T(type_, (*shape[:-1], 3)),), {"axis": rank - 1})  # fmt: skip
                    yield Case("GATHER", (T(type_, (5, *shape[1:])), _ints(1, 0, 3, type=index)),
                               (T(type_, (3, *shape[1:])),), {"axis": 0})  # fmt: skip
                    yield Case("GATHER", (data, T(index, (), np.array(0))),
                               (T(type_, shape[:-1]),), {"axis": rank - 1})  # fmt: skip
                    where = T(index, (2, 1), np.array([[0], [0]]))
                    yield Case("GATHER_ND", (data, where), (T(type_, (2, *shape[1:])),))
                    target = (2, *shape[1:])
                    yield Case("BROADCAST_TO",
                               (T(type_, (1, *shape[1:])), _ints(*target, type=index)),
                               (T(type_, target),))  # fmt: skip
                yield Case("DYNAMIC_UPDATE_SLICE",
                           (data, T(type_, shape), _ints(*(0,) * rank)), (data,))  # fmt: skip
                yield Case("DYNAMIC_UPDATE_SLICE",
                           (data, T(type_, shape), T("INT32", (rank,))), (data,))  # fmt: skip
                yield Case("FILL", (_ints(*shape), T(type_, ())), (data,))
                yield Case("FILL", (_ints(*shape, type="INT64"), T(type_, ())), (data,))
                for target in ("INT32", "INT64"):
                    yield Case("SHAPE", (data,), (T(target, (rank,)),),
                               {"outType": 2 if target == "INT32" else 4})  # fmt: skip
            else:
                yield Case("PACK", (data, data), (T(type_, (2,)),), {"valuesCount": 2, "axis": 0})
                yield Case("RESHAPE", (data, _ints(1)), (T(type_, (1,)),),
                           {"newShape": np.int32([1])})  # fmt: skip
                yield Case("RESHAPE", (T(type_, (1,)), T("INT32", (0,), np.zeros(0))), (data,),
                           {"newShape": np.int32([])})  # fmt: skip
                yield Case("EXPAND_DIMS", (data, _scalar(0)), (T(type_, (1,)),))
                yield Case("SQUEEZE", (T(type_, (1,)),), (data,), {"squeezeDims": np.int32([0])})
            yield Case("SELECT_V2", (T("BOOL", shape), data, data), (data,))
            if rank:
                yield Case("SELECT_V2", (T("BOOL", (1,)), data, T(type_, (1,))), (data,))
        for position, (before, after) in enumerate([((4, 4, 4, 4), (1, 8, 8, 4)),
                                                    ((4, 4, 4), (1, 16, 4))]):  # fmt: skip
            block = _ints(2, 2) if position == 0 else _ints(4)
            crops = T("INT32", (len(before) - 2, 2), np.zeros((len(before) - 2, 2)))
            yield Case("BATCH_TO_SPACE_ND", (T(type_, before), block, crops), (T(type_, after),))
            yield Case("SPACE_TO_BATCH_ND", (T(type_, after), block, crops), (T(type_, before),))
        deep, wide = (1, 4, 4, 8), (1, 8, 8, 2)
        yield Case("DEPTH_TO_SPACE", (T(type_, deep),), (T(type_, wide),), {"blockSize": 2})
        yield Case("SPACE_TO_DEPTH", (T(type_, wide),), (T(type_, deep),), {"blockSize": 2})
        for operator in ("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"):
            for options in ({}, {"alignCorners": True}, {"halfPixelCenters": True}):
                yield Case(operator, (T(type_, (1, 4, 4, 4)), _ints(8, 8)),
                           (T(type_, (1, 8, 8, 4)),), dict(options))  # fmt: skip
    for index in ("INT32", "INT64"):
        yield Case("BROADCAST_ARGS", (_ints(1, 4, type=index), _ints(4, type=index)),
                   (T(index, (2,)),))  # fmt: skip
        yield Case("BROADCAST_ARGS", (T(index, (2,)), T(index, (1,))), (T(index, (2,)),))
    for table in ("FLOAT32", "INT8", "INT16", "INT4", "UINT8"):
        for target in ("FLOAT32", "INT8", "INT16"):
            for index in ("INT32", "INT64"):
                values = pattern(np.int8, 32).clip(-7, 7).reshape(8, 4)
                for scales in ((0.1,), (0.1,) * 8):
                    if table == "FLOAT32" and len(scales) > 1:
                        continue
                    yield Case("EMBEDDING_LOOKUP",
                               (_ints(1, 5, type=index),
                                T(table, (8, 4), np.abs(values) if table == "UINT8" else values,
                                  None if table == "FLOAT32" else scales, 0)),
                               (T(target, (2, 4), None, (0.1,) if target != "FLOAT32" else None,
                                  0),))  # fmt: skip


def _slices(type_: str, rank: int, shape: tuple[int, ...]) -> Iterator[Case]:
    data = T(type_, shape)
    for index in ("INT32", "INT64"):
        zeros, ones = _ints(*(0,) * rank, type=index), _ints(*(1,) * rank, type=index)
        ends = _ints(*(*shape[:-1], 2), type=index)
        out = T(type_, (*shape[:-1], 2))
        yield Case("SLICE", (data, zeros, ends), (out,))
        yield Case("STRIDED_SLICE", (data, zeros, ends, ones), (out,))
    zeros, ones = _ints(*(0,) * rank), _ints(*(1,) * rank)
    yield Case("SLICE", (data, T("INT32", (rank,)), _ints(*(*shape[:-1], 2))), (out,))
    yield Case("STRIDED_SLICE", (data, zeros, T("INT32", (rank,)), ones), (out,))
    yield Case("STRIDED_SLICE", (data, T("INT32", (rank,)), T("INT32", (rank,)), ones), (out,))
    ends = _ints(*(*shape[:-1], 2))
    yield Case("STRIDED_SLICE", (data, zeros, _ints(*(1,) * rank), ones), (T(type_, shape[1:]),),
               {"shrinkAxisMask": 1, "endMask": 2**rank - 2})  # fmt: skip
    yield Case("STRIDED_SLICE", (data, zeros, ends, ones), (out,), {"ellipsisMask": 1})
    yield Case("STRIDED_SLICE", (data, zeros, ends, ones), (T(type_, (1, *shape)),),
               {"newAxisMask": 1})  # fmt: skip


def _joins(type_: str, rank: int, shape: tuple[int, ...]) -> Iterator[Case]:
    data, axis = T(type_, shape), rank - 1
    double = T(type_, (*shape[:-1], 8))
    yield Case("CONCATENATION", (data, data), (double,), {"axis": axis})
    half = T(type_, (*shape[:-1], 2))
    yield Case("SPLIT", (_scalar(axis), data), (half, half), {"numSplits": 2})
    yield Case("SPLIT", (_ints(axis), data), (half, half), {"numSplits": 2})
    yield Case("SPLIT_V", (data, _ints(1, 3), _scalar(axis)),
               (T(type_, (*shape[:-1], 1)), T(type_, (*shape[:-1], 3))),
               {"numSplits": 2})  # fmt: skip
    if rank < 6:
        yield Case("PACK", (data, data), (T(type_, (2, *shape)),), {"valuesCount": 2, "axis": 0})
    yield Case("UNPACK", (data,), (T(type_, shape[:-1]),) * 4, {"num": 4, "axis": axis})


def _pads(type_: str, rank: int, shape: tuple[int, ...]) -> Iterator[Case]:
    data, out = T(type_, shape), T(type_, (*shape[:-1], 7))
    amounts = np.array([[0, 0]] * (rank - 1) + [[1, 2]])
    for index in ("INT32", "INT64"):
        pads = T(index, (rank, 2), amounts)
        yield Case("PAD", (data, pads), (out,))
        value = T(type_, (1,), pattern(_NUMPY[type_], 1))
        yield Case("PADV2", (data, pads, value), (out,))
        yield Case("PADV2", (data, pads, T(type_, (), value.values[0])), (out,))
        for mode in (0, 1):
            yield Case("MIRROR_PAD", (data, pads), (out,), {"mode": mode})
    yield Case("PAD", (data, T("INT32", (rank, 2))), (out,))


def _pools() -> Iterator[Case]:
    for operator in ("AVERAGE_POOL_2D", "MAX_POOL_2D", "L2_POOL_2D"):
        for type_ in NUMBERS:
            options = {"filterWidth": 2, "filterHeight": 2, "strideW": 2, "strideH": 2,
                       "padding": 1}  # fmt: skip
            yield Case(operator, (T(type_, (1, 8, 8, 4)),), (T(type_, (1, 4, 4, 4)),), options)


def _filter(type_: str, shape: tuple[int, ...], channels: int, axis: int, each: bool) -> T:
    values = pattern(np.float32 if type_ == "FLOAT32" else np.int8, int(np.prod(shape)), 2)
    if type_ in ("INT4", "INT2"):
        values = values.clip(*((-7, 7) if type_ == "INT4" else (-1, 1)))
    if type_ == "UINT8":
        values = np.abs(values)
    scales = None if type_ in ("FLOAT32", "FLOAT16") else (0.02,) * (channels if each else 1)
    return T(type_, shape, values.reshape(shape), scales, 0, axis)


def _bias(type_: str | None, channels: int, source: str, each: bool) -> T | None:
    if type_ is None:
        return None
    values = np.arange(channels) - 3
    if type_ == "FLOAT32":
        return T(type_, (channels,), values)
    scale = 0.02 * (1 / 512 if source == "INT16" else 1 / 16)
    return T(type_, (channels,), values, (scale,) * (channels if each else 1), 0)


# Input and filter, the biases to be tried.
_PAIRS: dict[tuple[str, str], tuple[str | None, ...]] = {
    ("FLOAT32", "FLOAT32"): ("FLOAT32", None),
    ("FLOAT32", "INT8"): ("FLOAT32", None),
    ("FLOAT32", "INT4"): ("FLOAT32", None),
    ("FLOAT32", "FLOAT16"): ("FLOAT32", None),
    ("INT8", "INT8"): ("INT32", None),
    ("INT8", "INT4"): ("INT32", None),
    ("INT8", "INT2"): ("INT32", None),
    ("FLOAT32", "INT2"): ("FLOAT32", None),
    ("INT16", "INT8"): ("INT64", "INT32", None),
    ("INT16", "INT4"): ("INT64", "INT32", None),
    ("INT16", "INT16"): ("INT64", "INT32", None),
    ("UINT8", "UINT8"): ("INT32", None),
}


def _weighted() -> Iterator[Case]:
    for (source, kind), biases in _PAIRS.items():
        for each in (False, True):
            if each and kind in ("FLOAT32", "FLOAT16"):
                continue
            for bias in biases:
                yield from _convolutions(source, kind, bias, each)
                yield from _dense(source, kind, bias, each)
    for type_ in ("FLOAT32", "INT8", "INT16", "UINT8"):
        for rank in range(2, 7):
            lead = SHAPES[rank][:-2] if rank > 2 else ()
            a, b, out = (*lead, 4, 8), (*lead, 8, 4), (*lead, 4, 4)
            yield Case("BATCH_MATMUL", (T(type_, a), T(type_, b)), (T(type_, out),))
            values = pattern(_NUMPY[type_], int(np.prod(b))).reshape(b)
            yield Case("BATCH_MATMUL", (T(type_, a), T(type_, b, values)), (T(type_, out),))
            yield Case("BATCH_MATMUL", (T(type_, a), T(type_, (*lead, 4, 8))), (T(type_, out),),
                       {"adjY": True})  # fmt: skip
            yield Case("BATCH_MATMUL", (T(type_, (*lead, 8, 4)), T(type_, b)), (T(type_, out),),
                       {"adjX": True})  # fmt: skip
            yield Case("BATCH_MATMUL", (T(type_, (*lead, 8, 4)), T(type_, (*lead, 4, 8))),
                       (T(type_, out),), {"adjX": True, "adjY": True})  # fmt: skip
    yield from _recurrent()


def _convolutions(source: str, kind: str, bias: str | None, each: bool) -> Iterator[Case]:
    data = T(source, (1, 6, 6, 4))
    plain = {"strideW": 1, "strideH": 1, "padding": 0, "dilationWFactor": 1, "dilationHFactor": 1}
    variants: list[dict[str, Any]] = [
        {}, {"dilationWFactor": 2, "dilationHFactor": 2}, {"fusedActivationFunction": 1},
    ]  # fmt: skip
    for variant in variants:
        options = {**plain, **variant}
        out = T(source, (1, 6, 6, 8), None, (0.5,) if source != "FLOAT32" else None)
        last = _bias(bias, 8, source, each)
        tail = () if last is None else (last,)
        for size in (1, 3):
            yield Case("CONV_2D", (data, _filter(kind, (8, size, size, 4), 8, 0, each), *tail),
                       (out,), options)  # fmt: skip
        yield Case("CONV_2D", (data, _filter(kind, (8, 3, 3, 2), 8, 0, each), *tail),
                   (out,), options)  # fmt: skip
        for multiplier in (1, 2):
            narrow = T(source, (1, 6, 6, 8 // multiplier))
            yield Case("DEPTHWISE_CONV_2D",
                       (narrow, _filter(kind, (1, 3, 3, 8), 8, 3, each), *tail), (out,),
                       {**options, "depthMultiplier": multiplier})  # fmt: skip
    last = _bias(bias, 8, source, each)
    up = T(source, (1, 12, 12, 8), None, (0.5,) if source != "FLOAT32" else None)
    inputs = (_ints(1, 12, 12, 8), _filter(kind, (8, 2, 2, 4), 8, 0, each), data)
    yield Case("TRANSPOSE_CONV", inputs if last is None else (*inputs, last), (up,),
               {"strideW": 2, "strideH": 2, "padding": 1})  # fmt: skip
    if bias == _PAIRS[source, kind][0]:
        computed = T(kind, (8, 3, 3, 4), None, inputs[1].scales, 0)
        yield Case("CONV_2D", (data, computed, last), (out,), plain)
        lopsided = _filter(kind, (8, 3, 3, 4), 8, 0, each)
        if kind in ("INT8", "UINT8"):
            lopsided = T(kind, lopsided.shape, lopsided.values, lopsided.scales, 5)
            yield Case("CONV_2D", (data, lopsided, last), (out,), plain)


def _dense(source: str, kind: str, bias: str | None, each: bool) -> Iterator[Case]:
    last = _bias(bias, 8, source, each)
    tail = () if last is None else (last,)
    weights = _filter(kind, (8, 4), 8, 0, each)
    scales = (0.5,) if source != "FLOAT32" else None
    for shape in SHAPES[1:]:
        rows = int(np.prod(shape[:-1]))
        yield Case("FULLY_CONNECTED", (T(source, shape), weights, *tail),
                   (T(source, (rows, 8), None, scales),))  # fmt: skip
        if len(shape) > 2:
            yield Case("FULLY_CONNECTED", (T(source, shape), weights, *tail),
                       (T(source, (*shape[:-1], 8), None, scales),),
                       {"keepNumDims": True})  # fmt: skip
        computed = T(kind, (8, 4), None, weights.scales, 0)
        yield Case("FULLY_CONNECTED", (T(source, shape), computed, *tail),
                   (T(source, (rows, 8), None, scales),))  # fmt: skip
        if kind in ("INT8", "UINT8") and not each:
            lopsided = T(kind, (8, 4), weights.values, weights.scales, 5)
            yield Case("FULLY_CONNECTED", (T(source, shape), lopsided, *tail),
                       (T(source, (rows, 8), None, scales),))  # fmt: skip


def _recurrent() -> Iterator[Case]:
    units, rank, memory, inputs = 4, 1, 3, 8
    filters = units * rank
    for source, time, state, bias in (
        ("FLOAT32", "FLOAT32", "FLOAT32", "FLOAT32"), ("INT8", "INT16", "INT16", "INT32"),
        ("INT8", "INT8", "INT8", "INT32"), ("INT16", "INT16", "INT16", "INT32"),
        ("INT16", "INT8", "INT16", "INT32"),
    ):  # fmt: skip
        for with_bias in (True, False):
            weights = _filter("FLOAT32" if source == "FLOAT32" else "INT8", (filters, inputs),
                              filters, 0, False)  # fmt: skip
            times = pattern(_NUMPY[time], filters * memory, 3).reshape(filters, memory)
            floats = source == "FLOAT32"
            yield Case(
                "SVDF",
                (T(source, (1, inputs)), weights,
                 T(time, (filters, memory), times, None if floats else (0.02,), 0),
                 T(bias, (units,), np.arange(units), None if floats else (0.02 / 512,), 0)
                 if with_bias else None,
                 T(state, (1, memory * filters), None, None if floats else (1 / 512,), 0,
                   variable=True)),
                (T(source, (1, units), None, None if floats else (0.5,)),),
                {"rank": rank, "fusedActivationFunction": 1},
            )  # fmt: skip
    for source in ("FLOAT32", "INT8", "INT16"):
        for major in (False, True):
            yield _lstm(source, major)


def _lstm(source: str, major: bool) -> Case:
    units, inputs, steps = 4, 4, 3
    floats = source == "FLOAT32"
    bias = {"FLOAT32": "FLOAT32", "INT8": "INT32", "INT16": "INT64"}[source]
    state = {"FLOAT32": "FLOAT32", "INT8": "INT8", "INT16": "INT16"}[source]
    weights = tuple(
        _filter("FLOAT32" if floats else "INT8", (units, n), units, 0, False)
        for n in (inputs,) * 4 + (units,) * 4
    )
    biases = tuple(
        T(bias, (units,), np.arange(units) - 1, None if floats else (0.001,), 0) for _ in range(4)
    )
    narrow = (1 / 128,) if source == "INT8" else (1 / 32768,)
    states = (
        T(state, (1, units), None, None if floats else narrow, 0, variable=True),
        T("FLOAT32" if floats else "INT16", (1, units), None, None if floats else (2.0**-11,), 0,
          variable=True),
    )  # fmt: skip
    shape = (steps, 1, inputs) if major else (1, steps, inputs)
    out = (*shape[:2], units)
    scale = None if floats else narrow
    between = () if floats else (
        *(T("INT16", (0,), None, (2.0**-12,), 0) for _ in range(4)),
        T(source, (0,), None, scale, 0),
    )  # fmt: skip
    return Case(
        "UNIDIRECTIONAL_SEQUENCE_LSTM",
        (T(source, shape, None, None if floats else (1 / 16,) if source == "INT8" else (1 / 512,),
           0), *weights, None, None, None, *biases, None, None, *states, None, None, None, None),
        (T(source, out, None, scale, 0),),
        {"fusedActivationFunction": 4, "timeMajor": major, "cellClip": 0.0, "projClip": 0.0},
        between,
    )  # fmt: skip


@dataclass(frozen=True)
class Flow:
    """A model of control flow: `variable`, `if` or `while` around one tensor."""

    operator: str
    type: str
    shape: tuple[int, ...]

    def data(self) -> bytes:
        """The .tflite file."""
        from ai_edge_litert import schema_py_generated as s

        codes: list[Any] = []

        def tensor(name: str, type_: str, shape: Sequence[int], buffer: int = 0) -> Any:
            made = T(type_, tuple(shape))
            return s.TensorT(
                shape=np.int32(shape), type=getattr(s.TensorType, type_), name=name, buffer=buffer,
                quantization=_quantization(made, s), hasRank=True,
            )  # fmt: skip

        def operator(
            name: str, inputs: Sequence[int], outputs: Sequence[int], **options: Any
        ) -> Any:
            number = getattr(s.BuiltinOperator, name)
            kind, made = _options(name, options, s)
            codes.append(
                s.OperatorCodeT(
                    builtinCode=number, deprecatedBuiltinCode=min(number, 127), version=1
                )
            )
            return s.OperatorT(
                opcodeIndex=len(codes) - 1, inputs=np.int32(inputs), outputs=np.int32(outputs),
                builtinOptionsType=kind, builtinOptions=made,
            )  # fmt: skip

        def graph(
            tensors: Sequence[Any], inputs: Sequence[int], outputs: Sequence[int], *operators: Any
        ) -> Any:
            return s.SubGraphT(
                tensors=list(tensors), inputs=np.int32(inputs), outputs=np.int32(outputs),
                operators=list(operators), name="graph",
            )  # fmt: skip

        x, y = (tensor(name, self.type, self.shape) for name in "xy")
        buffers = [s.BufferT()]
        if self.operator == "variable":
            size = int(np.prod(self.shape)) * np.dtype(_NUMPY[self.type]).itemsize
            buffers.append(s.BufferT(data=np.zeros(size, np.uint8)))
            handle = tensor("handle", "RESOURCE", ())
            start = tensor("start", self.type, self.shape, 1)
            named = {"sharedName": "v", "container": ""}
            graphs = [
                graph((x, y, handle), (0,), (1,),
                      operator("CALL_ONCE", (), (), initSubgraphIndex=1),
                      operator("VAR_HANDLE", (), (2,), **named),
                      operator("READ_VARIABLE", (2,), (1,)),
                      operator("ASSIGN_VARIABLE", (2, 0), ())),
                graph((handle, start), (), (), operator("VAR_HANDLE", (), (0,), **named),
                      operator("ASSIGN_VARIABLE", (0, 1), ())),
            ]  # fmt: skip
        else:
            inner = lambda: graph((x, y), (0,), (1,), operator("RESHAPE", (0,), (1,),  # noqa: E731
                                  newShape=np.int32(self.shape)))  # fmt: skip
            flag = tensor("flag", "BOOL", (1,))
            if self.operator == "if":
                graphs = [
                    graph((flag, x, y), (0, 1), (2,),
                          operator("IF", (0, 1), (2,), thenSubgraphIndex=1, elseSubgraphIndex=2)),
                    inner(), inner(),
                ]  # fmt: skip
            else:
                limit = tensor("limit", "FLOAT32", (1,), 1)
                buffers.append(s.BufferT(data=np.frombuffer(np.float32([-99]).tobytes(), np.uint8)))
                count = tensor("count", "FLOAT32", (1,))
                graphs = [
                    graph((x, count, y, count), (0, 1), (2, 3),
                          operator("WHILE", (0, 1), (2, 3), condSubgraphIndex=1,
                                   bodySubgraphIndex=2)),
                    graph((x, count, flag, limit), (0, 1), (2,), operator("LESS", (1, 3), (2,))),
                    graph((x, count, y, count), (0, 1), (2, 3),
                          operator("RESHAPE", (0,), (2,), newShape=np.int32(self.shape)),
                          operator("ADD", (1, 1), (3,))),
                ]  # fmt: skip
        return pack(
            s.ModelT(version=3, subgraphs=graphs, buffers=buffers, operatorCodes=codes,
                     description="control flow")
        )  # fmt: skip


def _flows() -> Iterator[Flow]:
    for kind in ("variable", "if", "while"):
        for type_ in TYPES:
            for shape in SHAPES[1:]:
                yield Flow(kind, type_, shape)


def cases() -> Iterator[Case | Flow]:
    """Yields the models."""
    yield from _flows()
    for part in (_unary, _binary, _reductions, _shapes, _pools, _weighted):
        yield from part()
