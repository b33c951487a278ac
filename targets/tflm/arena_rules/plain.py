"""Operators whose memory does not depend on their shapes."""

from __future__ import annotations

from collections.abc import Iterable

from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import Operator
from edgecompress.targets.tflm.arena_rules.base import (
    RULES,
    OperatorMemory,
    input_of,
    require_type,
)

_NUMBERS = ("INT8", "INT16", "FLOAT32")
_INT8_FLOAT = ("INT8", "FLOAT32")
_FLOAT = ("FLOAT32",)
# Operators that only move elements keep the same structures for every type.
_ANY = ("INT8", "INT16", "INT32", "INT64", "UINT8", "BOOL", "FLOAT32")

_COMPARISONS = ("EQUAL", "NOT_EQUAL", "LESS", "LESS_EQUAL", "GREATER", "GREATER_EQUAL")
_FLOAT_ONLY = ("CEIL", "COS", "EXP", "FLOOR", "LOG", "NEG", "ROUND", "SIN", "SQRT", "SQUARE")
_MOVES = (
    "BROADCAST_ARGS", "BROADCAST_TO", "DYNAMIC_UPDATE_SLICE", "EXPAND_DIMS", "REVERSE_V2", "SLICE",
    "TRANSPOSE", "ZEROS_LIKE",
)  # fmt: skip


def _register_fixed(
    names: Iterable[str],
    params: tuple[int, int],
    data: int,
    types: tuple[str, ...],
    source: int = 0,
) -> None:
    def rule(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
        require_type(input_of(model, operator, source), types)
        return OperatorMemory(params, data)

    rule.__doc__ = f"Options of {params[0]} bytes, data of {data} bytes; no buffers."
    for name in names:
        RULES.register(name)(rule)


_register_fixed(("ADD",), (2, 1), 60, (*_NUMBERS, "INT32"))
_register_fixed(("SUB",), (2, 1), 52, (*_NUMBERS, "INT32"))
_register_fixed(("MUL",), (1, 1), 36, (*_NUMBERS, "INT32"))
_register_fixed(("DIV",), (1, 1), 28, ("INT8", "INT32", "FLOAT32"))
_register_fixed(("MAXIMUM", "MINIMUM"), (0, 1), 0, (*_NUMBERS, "INT32", "INT64"))
_register_fixed(("FLOOR_DIV", "FLOOR_MOD"), (0, 1), 0, _FLOAT)
_register_fixed(("SQUARED_DIFFERENCE",), (0, 1), 112, (*_NUMBERS, "INT32"))
_register_fixed(_COMPARISONS, (0, 1), 32, (*_NUMBERS, "INT32", "INT64", "BOOL"))
_register_fixed(("LOGICAL_AND", "LOGICAL_OR"), (0, 1), 0, _ANY)
_register_fixed(("LOGICAL_NOT",), (0, 1), 0, ("BOOL",))
_register_fixed(("SELECT_V2",), (0, 1), 1, _ANY, source=1)
_register_fixed(("ABS", "RSQRT"), (0, 1), 28, _NUMBERS)
_register_fixed(_FLOAT_ONLY, (0, 1), 0, _FLOAT)
_register_fixed(("LOGISTIC",), (0, 1), 16, _NUMBERS)
_register_fixed(("ELU",), (0, 1), 256, _INT8_FLOAT)
_register_fixed(("RELU",), (0, 1), 28, _NUMBERS)
_register_fixed(("RELU6",), (0, 1), 8, _NUMBERS)
_register_fixed(("LEAKY_RELU",), (4, 4), 24, _NUMBERS)
_register_fixed(("HARD_SWISH",), (0, 1), 20, _INT8_FLOAT)
_register_fixed(("PRELU",), (0, 1), 28, _INT8_FLOAT)
_register_fixed(("L2_NORMALIZATION",), (1, 1), 4, _INT8_FLOAT)
_register_fixed(("QUANTIZE",), (0, 1), 32, (*_NUMBERS, "UINT8", "INT32"))
_register_fixed(("DEQUANTIZE",), (0, 1), 32, ("INT8", "INT16", "UINT8"))
_register_fixed(("CAST",), (2, 1), 0, (*_ANY, "UINT32"))
_register_fixed(("RESIZE_NEAREST_NEIGHBOR",), (2, 1), 0, _NUMBERS)
_register_fixed(("RESIZE_BILINEAR",), (2, 1), 0, _INT8_FLOAT)
_register_fixed(("PAD", "PADV2"), (0, 1), 56, (*_NUMBERS, "INT32"))
_register_fixed(("SPACE_TO_BATCH_ND",), (0, 1), 4, _INT8_FLOAT)
_register_fixed(("BATCH_TO_SPACE_ND",), (0, 1), 0, _INT8_FLOAT)
_register_fixed(("CONCATENATION",), (8, 4), 24, _ANY)
_register_fixed(("RESHAPE", "SQUEEZE"), (36, 4), 0, _ANY)
_register_fixed(("PACK", "UNPACK"), (8, 4), 0, _ANY)
_register_fixed(("SPLIT",), (4, 4), 0, _ANY, source=1)
_register_fixed(("SPLIT_V",), (4, 4), 0, _ANY)
_register_fixed(("STRIDED_SLICE",), (24, 4), 84, _ANY)
_register_fixed(_MOVES, (0, 1), 0, _ANY)
_register_fixed(("FILL",), (0, 1), 0, _ANY, source=1)
_register_fixed(("ARG_MAX", "ARG_MIN"), (1, 1), 0, _INT8_FLOAT)
_register_fixed(("SHAPE",), (1, 1), 0, _ANY)
