"""Operators whose buffers depend on their shapes or types."""

from __future__ import annotations

from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import Operator
from edgecompress.flatbuffers.tensors import Tensor
from edgecompress.targets.tflm.arena_rules.base import (
    RULES,
    OperatorMemory,
    Unmeasured,
    described_bytes,
    dims_bytes,
    input_of,
    output_of,
    require_rank,
    require_single_batch,
    require_type,
)

_NUMBERS = ("INT8", "INT16", "FLOAT32")
_INT8_FLOAT = ("INT8", "FLOAT32")


# --- Pooling and reductions --------------------------------------------------------------------


def _pool(model: FlatModel, operator: Operator) -> Tensor:
    source = input_of(model, operator, 0)
    require_type(source, _NUMBERS)
    require_single_batch(require_rank(source, 4, "input"))
    return source


@RULES.register("AVERAGE_POOL_2D")
def _average_pool(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
    """CMSIS-NN with DSP instructions sums integers in scratch: 4 bytes per channel."""
    source = _pool(model, operator)
    sums = family == "dsp" and source.type != "FLOAT32"
    return OperatorMemory(
        params=(40, 4),
        data=32 if family == "reference" else 36,
        scratch=(4 * source.shape[3],) if sums else (),
    )


@RULES.register("MAX_POOL_2D")
def _max_pool(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
    """No own buffers."""
    _pool(model, operator)
    return OperatorMemory(params=(40, 4), data=32 if family == "reference" else 36)


def _reduction(
    model: FlatModel, operator: Operator, types: tuple[str, ...], sums: tuple[int, ...] = ()
) -> OperatorMemory:
    """Scratch for sums, for the index over the input and for the resolved axes."""
    source, axes = input_of(model, operator, 0), input_of(model, operator, 1, "list of axes")
    require_type(source, types)
    scratch = (*sums, 4 * len(source.shape), 4 * axes.elements)
    return OperatorMemory(params=(1, 1), data=44, scratch=scratch)


@RULES.register("MEAN")
@RULES.register("SUM")
def _sum(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
    """Three scratch buffers: 32-bit sums of the outputs (integers alone), the index, the axes."""
    floating = input_of(model, operator, 0).type == "FLOAT32"
    sums = () if floating else (4 * output_of(model, operator).elements,)
    return _reduction(model, operator, _NUMBERS, sums)


@RULES.register("REDUCE_MAX")
@RULES.register("REDUCE_MIN")
def _reduce_max(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
    """Two scratch buffers: the index, the axes."""
    return _reduction(model, operator, _INT8_FLOAT)


@RULES.register("REDUCE_ALL")
def _reduce_all(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
    """Two scratch buffers: the index, the axes."""
    return _reduction(model, operator, ("BOOL",))


@RULES.register("TANH")
def _tanh(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
    """Data of 16 bytes; no buffers."""
    source = input_of(model, operator, 0)
    require_type(source, _NUMBERS)
    return OperatorMemory(data=16, described=described_bytes(source))


@RULES.register("SOFTMAX")
def _softmax(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
    """Data of 56 bytes, 64 in CMSIS-NN; for int16, two tables of 513 values of 2 bytes."""
    source = input_of(model, operator, 0)
    require_type(source, _NUMBERS)
    wider = ("INT16",) if source.type == "INT8" else ()
    require_type(output_of(model, operator), (source.type, *wider), "output")
    tables = (2 * 513, 2 * 513) if source.type == "INT16" else ()
    return OperatorMemory(
        params=(4, 4), data=56 if family == "reference" else 64, persistent=tables
    )


# --- Gathering and joining ---------------------------------------------------------------------


@RULES.register("GATHER")
def _gather(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
    """The output's shape is computed, and so kept in the tail."""
    source, positions = input_of(model, operator, 0), input_of(model, operator, 1, "positions")
    out = output_of(model, operator)
    require_type(source, _INT8_FLOAT)
    require_type(positions, ("INT32",), "positions")
    batch = operator.options.get("batch_dims", 0)
    batch += len(positions.shape) if batch < 0 else 0
    rank = len(source.shape) + len(positions.shape) - 1 - batch
    if len(out.shape) != rank:
        raise Unmeasured(f"its output has {len(out.shape)} dimensions instead of {rank}")
    return OperatorMemory(params=(8, 4), persistent=(dims_bytes(out),))


@RULES.register("GATHER_ND")
def _gather_nd(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
    """The output's shape is computed, and so kept in the tail."""
    require_type(input_of(model, operator, 0), _INT8_FLOAT)
    return OperatorMemory(persistent=(dims_bytes(output_of(model, operator)),))


@RULES.register("EMBEDDING_LOOKUP")
def _embedding_lookup(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
    """The output's shape, then data of 8 bytes."""
    require_type(input_of(model, operator, 1, "table"), _INT8_FLOAT, "table")
    return OperatorMemory(persistent=(dims_bytes(output_of(model, operator)), 8))


@RULES.register("DEPTH_TO_SPACE")
@RULES.register("SPACE_TO_DEPTH")
def _depth_to_space(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
    """The output's shape is computed, and so kept in the tail."""
    require_type(input_of(model, operator, 0), _INT8_FLOAT)
    return OperatorMemory(params=(4, 4), persistent=(dims_bytes(output_of(model, operator)),))


@RULES.register("L2_POOL_2D")
def _l2_pool(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
    """The output's shape is computed, and so kept in the tail."""
    require_type(input_of(model, operator, 0), ("FLOAT32",))
    return OperatorMemory(params=(40, 4), persistent=(dims_bytes(output_of(model, operator)),))


# --- Data that the kernel requests while it is prepared ----------------------------------------


@RULES.register("ADD_N")
def _add_n(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
    """Scratch for a pointer per input; for int8, data of 40 bytes."""
    source = input_of(model, operator, 0)
    require_type(source, _INT8_FLOAT)
    persistent = (40,) if source.type == "INT8" else ()
    return OperatorMemory(persistent=persistent, scratch=(4 * len(operator.inputs),))


@RULES.register("CUMSUM")
def _cumsum(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
    """For int8, data of 36 bytes."""
    source = input_of(model, operator, 0)
    require_type(source, _INT8_FLOAT)
    return OperatorMemory(params=(2, 1), persistent=(36,) if source.type == "INT8" else ())


@RULES.register("LOG_SOFTMAX")
def _log_softmax(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
    """For int8, data of 28 bytes."""
    source = input_of(model, operator, 0)
    require_type(source, _INT8_FLOAT)
    return OperatorMemory(persistent=(28,) if source.type == "INT8" else ())


@RULES.register("MIRROR_PAD")
def _mirror_pad(model: FlatModel, operator: Operator, family: str) -> OperatorMemory:
    """Two scratch buffers of 4 bytes per dimension."""
    source = input_of(model, operator, 0)
    require_type(source, _INT8_FLOAT)
    index = 4 * len(source.shape)
    return OperatorMemory(params=(1, 1), data=20, scratch=(index, index))
