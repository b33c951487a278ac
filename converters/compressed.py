"""int8 flatbuffer -> int8 flatbuffer with coded weights, which TensorFlow Lite Micro expands.

A `TFLM_DECODE` operator before each user of a coded weight tensor writes the values into the tensor
arena at every inference. Nothing is lost: the outputs are those of the model that came in. This is
the coding stage of Deep Compression (Han et al. 2016); pruning and clustering, done in training,
are what makes it small. No other engine knows the operator.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgecompress.converters.comparison import random_inputs
from edgecompress.converters.formats import (
    FormatRequest,
    FormatResult,
    int8_source,
    proven_parity,
    register,
)
from edgecompress.converters.stripping import slim
from edgecompress.core.errors import ArgumentError, ConversionError, UnsupportedModelError
from edgecompress.core.options import Choice, many, option
from edgecompress.core.units import format_size, format_time
from edgecompress.engines.run import run_engine
from edgecompress.flatbuffers.artifact import Artifact
from edgecompress.flatbuffers.coding import (
    CODINGS,
    DecodingOptions,
    Encoded,
    Layout,
    build_codebook,
    count_symbols,
    decode,
    encode_huffman,
)
from edgecompress.flatbuffers.editor import pack, strip, unpack
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import FILTER_READERS
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.flatbuffers.tensors import Tensor

KIND = "compressed"
OPERATOR = "TFLM_DECODE"
RAW = "raw"
# The file's own tables for one coded tensor: an operator, two tensors, two buffers, their vectors.
_TABLE_BYTES = 200
# Savings from which on the estimate needs no second look at the file itself.
_CLEAR_SAVING = 1024
_ALIGNMENT = 16
# How often the shared code book is built anew from the tensors that chose it.
_SHARED_ROUNDS = 3


@dataclass(frozen=True)
class CompressedTensor:
    """What became of one weight tensor.

    Attributes:
        index: Number of the tensor in the compressed file.
        name: Its name in the file that came in; may be empty.
        coding: `lut`, `prune`, `huffman`, or `raw` for one left as it was.
        bytes_before: Bytes of its values.
        bytes_after: Bytes of its code with header and tables. A Huffman book that several tensors
            share counts for the first of them.
        reason: Why it stayed raw, or "".
        shared_book: Whether its Huffman book serves other tensors too.
    """

    index: int
    name: str
    coding: str
    bytes_before: int
    bytes_after: int
    reason: str = ""
    shared_book: bool = False


@dataclass(frozen=True)
class CompressedResult:
    """A compressed file and what it costs.

    Attributes:
        artifact: `Artifact(kind="compressed")`.
        tensors: The weight tensors that were looked at, by index.
        bytes_before: Bytes of the file that came in.
        bytes_stripped: Bytes of that file without names and metadata: the fair comparison.
        arena_before: Bytes of tensor arena that the `arena` argument found; None without it.
        arena_after: The same for the compressed file.
        latency_before_us: Microseconds that the `latency` argument found; None without it.
        latency_after_us: The same for the compressed file.
        decompression_memory: Bytes of memory outside the arena that hold the largest decoded
            tensor, for firmware that calls `SetDecompressionMemory`.
        verified_samples: Random samples on which the outputs were compared; 0 where they were not.
    """

    artifact: Artifact
    tensors: tuple[CompressedTensor, ...]
    bytes_before: int
    bytes_stripped: int
    arena_before: float | None
    arena_after: float | None
    latency_before_us: float | None
    latency_after_us: float | None
    decompression_memory: int
    verified_samples: int

    @property
    def notes(self) -> tuple[str, ...]:
        """The artifact's notes."""
        return self.artifact.notes


@dataclass(frozen=True)
class _Limit:
    argument: str
    unit: str
    measure: Callable[[FlatModel], float]
    limit: float


@dataclass(frozen=True)
class _Plan:
    """Which code each tensor gets; tensors that are not in it stay raw."""

    base: bytes = field(repr=False)
    codes: Mapping[int, Encoded] = field(default_factory=dict)

    def build(self) -> bytes:
        return insert_decoders(self.base, self.codes) if self.codes else self.base

    def without(self, index: int) -> _Plan:
        return _Plan(self.base, {i: c for i, c in self.codes.items() if i != index})


@dataclass(frozen=True)
class CompressedOptions(DecodingOptions):
    """Options of `--format compressed`."""

    codings: tuple[str, ...] | None = option(
        None,
        "A code that may be used; may be repeated. Default: all.",
        many(Choice("CODE", names=CODINGS)),
        flag="--coding",
    )


@register(
    "compressed",
    options=CompressedOptions,
    from_tflite=True,
    targets=("board", "core"),
    why="Only TensorFlow Lite Micro decodes such files.",
)
def make(request: FormatRequest) -> FormatResult:
    """Makes the int8 file from a Keras model, and codes its weights.

    Where RAM or latency are limited, as many tensors as necessary stay raw.
    """
    source, options, costs = int8_source(request), request.options, request.costs
    original = source.flat
    request.progress("Coding the weights and comparing the outputs")
    memory = options.decompression_memory
    arena, latency = costs.arena(original, memory), costs.latency(original)
    slowest, ram = costs.max_latency, costs.max_arena
    result = compress(
        source.plain,
        codings=options.codings or tuple(CODINGS),
        arena=arena,
        # A budget that even the plain file exceeds is the checks' to fail, not a wrong argument.
        max_arena=int(max(ram, arena(original))) if ram is not None and arena else None,
        latency=latency,
        max_latency_us=max(slowest, latency(original)) if slowest and latency else None,
        decompression_memory=memory,
    )
    notes = (*source.notes, *result.notes)
    if memory is not None:
        taken = format_size(result.decompression_memory)
        outside = f"Decoded weights take {taken} of the {format_size(memory)} outside the arena."
        notes = (*notes, outside)
    price = [f"File {format_size(result.bytes_before)} -> {format_size(len(result.artifact.data))}"]
    if result.arena_before is not None and result.arena_after is not None:
        before, after = format_size(result.arena_before), format_size(result.arena_after)
        price.append(f"tensor arena {before} -> {after}")
    if result.latency_before_us is not None and result.latency_after_us is not None:
        before = format_time(result.latency_before_us)
        price.append(f"predicted latency {before} -> {format_time(result.latency_after_us)}")
    return FormatResult(
        artifacts=(*source.artifacts, result.artifact),
        main=result.artifact,
        flat=read_tflite(result.artifact.data),
        layers=source.layers,
        parity=proven_parity(request, "tflm", result.verified_samples, 0.0),
        legacy_runtime=False,
        # The weights behind a decoder are parameters still.
        parameters=original.parameters(),
        decompression_memory=memory,
        notes=(*notes, f"{', '.join(price)}."),
    )


def compress(
    model: bytes | Path | str | Artifact,
    *,
    codings: Sequence[str] = ("lut", "prune", "huffman"),
    root_bits: int | None = None,
    share_books: bool = True,
    max_arena: int | None = None,
    arena: Callable[[FlatModel], float] | None = None,
    max_latency_us: float | None = None,
    latency: Callable[[FlatModel], float] | None = None,
    decompression_memory: int | None = None,
    verify: bool = True,
    samples: int = 8,
    seed: int = 0,
) -> CompressedResult:
    """Codes the weights of an int8 model so that the file, and so the flash, becomes smaller.

    Of raw, table, bitmap and Huffman code each tensor gets the one that makes the file smallest,
    its operator and tensors included. Names and metadata are removed. Equal inputs give equal
    bytes.

    Args:
        model: An int8 .tflite file: bytes, path or artifact.
        codings: Codes that may be used: `lut`, `prune`, `huffman`. Defaults to all.
        root_bits: Bits of the first Huffman look-up, 1 to 15: with 8, dense weights take about a
            third fewer instructions to decode, for a few hundred bytes; pruned ones gain nothing.
            Defaults to None: the smallest tables.
        share_books: Whether several tensors may share a Huffman book. Defaults to True.
        max_arena: Largest tensor arena in bytes; large tensors stay raw until it holds. Needs
            `arena`. Optional.
        arena: Returns the bytes of a model's tensor arena. Optional.
        max_latency_us: Longest inference in microseconds; as `max_arena`, with `latency`. Optional.
        latency: Returns a model's microseconds for one inference. Optional.
        decompression_memory: Bytes outside the arena that the firmware hands to
            `SetDecompressionMemory`; tensors that are larger when decoded stay raw. Let `arena`
            count with the same number. Defaults to None: decoded tensors lie in the arena.
        verify: Run the model before and after in TensorFlow Lite Micro and compare. Defaults to
            True. Every code is decoded and compared with the weights in any case.
        samples: Random inputs to compare on. Defaults to 8.
        seed: Of the random inputs. Defaults to 0.

    Raises:
        UnknownNameError: a coding is unknown.
        ArgumentError: a limit lacks its function, or not even the raw model keeps it;
            `root_bits` or `decompression_memory` is out of range.
        UnsupportedModelError: the model has several subgraphs.
        ConversionError: an output differs: nothing is returned.

    Example:
        >>> result = compress("vww_int8.tflite")  # doctest: +SKIP
        >>> len(result.artifact.data), result.bytes_before  # doctest: +SKIP
        (89392, 333288)
    """
    for name in codings:
        CODINGS[name]
    limits = _limits(("max_arena", max_arena, "arena", arena),
                     ("max_latency_us", max_latency_us, "latency", latency))  # fmt: skip
    if decompression_memory is not None and decompression_memory < 1:
        raise ArgumentError("decompression_memory", "be 1 byte or more", decompression_memory)
    source = model if isinstance(model, Artifact) else None
    original = read_tflite(model.data if isinstance(model, Artifact) else model)
    if original.subgraphs > 1:
        raise UnsupportedModelError(
            f"The model has {original.subgraphs} subgraphs; weights of one with control flow "
            "cannot be compressed. Build recurrent layers with unroll=True."
        )
    stripped = strip(original.data)
    slimmed = slim(original.data)
    base = strip(slimmed)
    flat = read_tflite(base)
    weights, reasons = _candidates(flat, decompression_memory)
    plan = _smallest_plan(base, weights, codings, root_bits, share_books)
    for index in weights.keys() - plan.codes.keys():
        reasons[index] = "no code makes the file smaller"
    if limits:
        plan = _within(plan, flat, limits, reasons)
    data = plan.build()
    _check_codes(read_tflite(data), {i: weights[i] for i in plan.codes})
    if verify:
        verify_exact(original.data, data, samples, seed)
    tensors = _report(read_tflite(slimmed), flat, plan, reasons)
    name = str(model) if isinstance(model, (str, Path)) else "model"
    artifact = Artifact(
        KIND,
        data,
        source.source if source else name,
        source.record if source else None,
        (*(source.notes if source else ()), *_notes(tensors, plan, data, stripped)),
    )
    after = read_tflite(data)
    return CompressedResult(
        artifact,
        tensors,
        len(original.data),
        len(stripped),
        arena(original) if arena else None,
        arena(after) if arena else None,
        latency(original) if latency else None,
        latency(after) if latency else None,
        max((_up(flat.tensors[i].bytes) for i in plan.codes), default=0),
        samples if verify else 0,
    )


def _limits(*given: tuple[str, float | None, str, Any]) -> list[_Limit]:
    limits = []
    for argument, limit, function, measure in given:
        if limit is not None and measure is None:
            raise ArgumentError(argument, f"come with `{function}`, which measures it", limit)
        if limit is not None:
            unit = "bytes of arena" if function == "arena" else "microseconds"
            limits.append(_Limit(argument, unit, measure, limit))
    return limits


def _up(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


# --- Which tensors, which codes ------------------------------------------------------------------


def _layout(tensor: Tensor) -> Layout:
    return Layout(tensor.zero_points, tensor.quantized_dimension)


def _candidates(flat: FlatModel, memory: int | None) -> tuple[dict[int, Tensor], dict[int, str]]:
    """Returns the filters that can be coded, and why others cannot."""
    uses: dict[int, list[tuple[str, int]]] = {}
    for operator in flat.operators:
        for position, index in enumerate(operator.inputs):
            uses.setdefault(index, []).append((operator.code, position))
    found, reasons = {}, {}
    for index, readers in sorted(uses.items()):
        filters = [code in FILTER_READERS and position == 1 for code, position in readers]
        if index < 0 or not any(filters) or not flat.tensors[index].is_constant:
            continue
        tensor = flat.tensors[index]
        others = sorted({code for (code, _), ok in zip(readers, filters, strict=True) if not ok})
        if tensor.type != "INT8":
            reasons[index] = f"its type is {tensor.type}, not INT8"
        elif others:
            reasons[index] = f"{', '.join(others)} reads it too"
        elif len(tensor.zero_points) != len(tensor.scales):
            reasons[index] = "it has not one zero point for each scale"
        elif index in flat.outputs:
            reasons[index] = "it is an output of the model"
        elif memory is not None and tensor.bytes > memory:
            reasons[index] = f"decoded, it is larger than the {memory:,} bytes outside the arena"
        else:
            found[index] = tensor
    return found, reasons


def _cost(code: Encoded, shared: bool = False) -> int:
    """Returns the bytes of a coded tensor in the file, by estimate."""
    return _TABLE_BYTES + _up(len(code.data)) + (0 if shared else _up(len(code.ancillary)))


def _smallest_plan(
    base: bytes,
    weights: Mapping[int, Tensor],
    codings: Sequence[str],
    root_bits: int | None,
    share_books: bool,
) -> _Plan:
    own: dict[int, Encoded] = {}
    for index, tensor in weights.items():
        values = tensor.values()
        codes = [CODINGS[name](values, _layout(tensor), root_bits) for name in codings]
        usable = [code for code in codes if code is not None]
        if usable:
            own[index] = min(usable, key=_cost)
    plans = [_Plan(base, _worth(own, weights))]
    if share_books and "huffman" in codings and len(weights) > 1:
        plans.append(_Plan(base, _shared(own, weights, root_bits)))
    plans = [_prune_back(plan, weights) for plan in plans]
    # The last: nothing coded, where a buffer that others read too stays in the file.
    return min([*plans, _Plan(base)], key=lambda plan: len(plan.build()))


def _worth(codes: Mapping[int, Encoded], weights: Mapping[int, Tensor]) -> dict[int, Encoded]:
    # The table bytes are left out: whether they pay is read off the file afterwards.
    return {i: c for i, c in codes.items() if _cost(c) - _TABLE_BYTES < _up(weights[i].bytes)}


def _shared(
    own: Mapping[int, Encoded], weights: Mapping[int, Tensor], root_bits: int | None
) -> dict[int, Encoded]:
    """Gives one Huffman book to all tensors that are smaller with it than with their own code."""
    members = set(weights)
    chosen: dict[int, Encoded] = {}
    for _ in range(_SHARED_ROUNDS):
        if not members:
            return _worth(own, weights)
        book = build_codebook(
            count_symbols(np.concatenate([weights[i].values().reshape(-1) for i in members])),
            root_bits,
        )
        chosen, joined = {}, set()
        for index, tensor in weights.items():
            values = tensor.values()
            alone = _cost(own[index]) if index in own else tensor.bytes + _TABLE_BYTES
            known = book.codes.keys() >= set(np.unique(values).tolist())
            code = encode_huffman(values, book) if known else None
            smallest = min(alone, _up(tensor.bytes) + _TABLE_BYTES)
            if code is not None and _cost(code, shared=True) < smallest:
                joined.add(index)
                chosen[index] = code
            elif index in own:
                chosen.update(_worth({index: own[index]}, weights))
        if joined == members:
            break
        members = joined
    return chosen


def _prune_back(plan: _Plan, weights: Mapping[int, Tensor]) -> _Plan:
    """Leaves tensors raw where the file is no larger for it."""
    size = len(plan.build())
    savings = {i: _up(weights[i].bytes) - _cost(code) for i, code in plan.codes.items()}
    for index in sorted(savings, key=savings.__getitem__):
        if savings[index] > _CLEAR_SAVING:
            break
        smaller = plan.without(index)
        data = smaller.build()
        if len(data) <= size:
            plan, size = smaller, len(data)
    return plan


def _within(
    plan: _Plan, flat: FlatModel, limits: Sequence[_Limit], reasons: dict[int, str]
) -> _Plan:
    """Leaves tensors raw, the largest first, until the limits hold; then takes back what fits."""

    def broken(candidate: _Plan) -> _Limit | None:
        model = read_tflite(candidate.build())
        return next((x for x in limits if x.measure(model) > x.limit), None)

    full, removed = plan, []
    saved = {i: flat.tensors[i].bytes - code.bytes for i, code in plan.codes.items()}
    while (limit := broken(plan)) is not None:
        if not plan.codes:
            raise ArgumentError(
                limit.argument,
                f"be at least {limit.measure(flat):.0f}, what the model takes uncompressed",
                limit.limit,
            )
        largest = max(plan.codes, key=lambda i: (flat.tensors[i].elements, -saved[i]))
        reasons[largest] = f"decoded, the model would take over {limit.limit:,.0f} {limit.unit}"
        removed.append(largest)
        plan = plan.without(largest)
    for index in sorted(removed, key=saved.__getitem__, reverse=True):
        larger = _Plan(plan.base, {**plan.codes, index: full.codes[index]})
        if broken(larger) is None:
            plan = larger
            del reasons[index]
    return plan


# --- The file ------------------------------------------------------------------------------------


def insert_decoders(data: bytes, codes: Mapping[int, Encoded]) -> bytes:
    """Returns the file with coded tensors and a DECODE operator before each of their readers.

    A tensor keeps its number, shape and scales and becomes the decoder's output. Each further
    reader gets a decoder and a tensor of its own: a decoded tensor lives for one operator, so that
    the next one may use its memory.

    Args:
        data: A .tflite file with one subgraph.
        codes: Tensor index -> its code.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = unpack(data)
    graph = model.subgraphs[0]
    for entry in model.operatorCodes:
        # Files older than schema 3a fill only the one-byte field, which some readers ignore.
        entry.builtinCode = max(entry.builtinCode, entry.deprecatedBuiltinCode)
    custom = schema.BuiltinOperator.CUSTOM
    opcode = len(model.operatorCodes)
    model.operatorCodes.append(
        schema.OperatorCodeT(
            deprecatedBuiltinCode=custom, builtinCode=custom, customCode=OPERATOR, version=1
        )
    )

    def add(tensor: Any) -> int:
        graph.tensors.append(tensor)
        return len(graph.tensors) - 1

    def constant(values: bytes) -> int:
        model.buffers.append(schema.BufferT(data=np.frombuffer(values, np.uint8)))
        return add(
            schema.TensorT(
                shape=[len(values)],
                type=schema.TensorType.UINT8,
                buffer=len(model.buffers) - 1,
            )
        )

    ancillary: dict[bytes, int] = {}
    encoded: dict[int, tuple[int, int]] = {}
    for index, code in sorted(codes.items()):
        if code.ancillary not in ancillary:
            ancillary[code.ancillary] = constant(code.ancillary)
        encoded[index] = (constant(code.data), ancillary[code.ancillary])
        graph.tensors[index].buffer = 0
    taken: set[int] = set()
    operators = []
    for operator in graph.operators:
        for position, index in enumerate(operator.inputs):
            if index not in encoded:
                continue
            output = int(index)
            if output in taken:
                output = add(copy.copy(graph.tensors[index]))
                operator.inputs = list(operator.inputs)
                operator.inputs[position] = output
            taken.add(output)
            operators.append(
                schema.OperatorT(
                    opcodeIndex=opcode, inputs=list(encoded[int(index)]), outputs=[output]
                )
            )
        operators.append(operator)
    graph.operators = operators
    used = {tensor.buffer for tensor in graph.tensors} | {m.buffer for m in model.metadata or ()}
    for number, buffer in enumerate(model.buffers):
        if number not in used:
            buffer.data = None
    return pack(model)


# --- Checks --------------------------------------------------------------------------------------


def _check_codes(flat: FlatModel, weights: Mapping[int, Tensor]) -> None:
    """Decodes every code that is in the file and compares it with the weights."""
    checked = set()
    for operator in flat.operators:
        if operator.custom_name != OPERATOR or operator.outputs[0] not in weights:
            continue
        index = operator.outputs[0]
        code, ancillary = (flat.tensors[i].raw or b"" for i in operator.inputs)
        want = weights[index]
        have = decode(Encoded("", code, ancillary), want.shape, _layout(flat.tensors[index]))
        if not np.array_equal(have, want.values()):
            raise ConversionError(f"The code of tensor {index} does not give back its weights.")
        checked.add(index)
    missing = sorted(weights.keys() - checked)
    if missing:
        raise ConversionError(f"Tensors {missing} have no decoder in the file.")


def verify_exact(before: bytes, after: bytes, samples: int = 8, seed: int = 0) -> None:
    """Runs two files in TensorFlow Lite Micro on random inputs and compares all outputs bitwise.

    Args:
        before: A .tflite file.
        after: A .tflite file with the same inputs.
        samples: Random inputs. Defaults to 8.
        seed: Of the inputs. Defaults to 0.

    Raises:
        ConversionError: an output differs.
        EngineError: the engine refuses a file.
    """
    inputs = random_inputs(read_tflite(before), samples, seed)
    want = run_engine("tflm", before, inputs).outputs
    have = run_engine("tflm", after, inputs).outputs
    for number, (expected, got) in enumerate(zip(want, have, strict=True)):
        if expected.tobytes() != got.tobytes():
            wrong = int(np.count_nonzero(expected != got))
            raise ConversionError(
                f"The compressed model is not exact: {wrong} of {expected.size} values of output "
                f"{number} differ in TensorFlow Lite Micro on {samples} random inputs."
            )


# --- Report --------------------------------------------------------------------------------------


def _report(
    named: FlatModel, flat: FlatModel, plan: _Plan, reasons: Mapping[int, str]
) -> tuple[CompressedTensor, ...]:
    books = [code.ancillary for _, code in sorted(plan.codes.items())]
    counted: set[bytes] = set()
    rows = []
    for index in sorted({*plan.codes, *reasons}):
        tensor, name = flat.tensors[index], named.tensors[index].name
        code = plan.codes.get(index)
        if code is None:
            row = CompressedTensor(index, name, RAW, tensor.bytes, tensor.bytes, reasons[index])
        else:
            after = len(code.data) + (0 if code.ancillary in counted else len(code.ancillary))
            counted.add(code.ancillary)
            shared = code.coding == "huffman" and books.count(code.ancillary) > 1
            row = CompressedTensor(
                index, name, code.coding, tensor.bytes, after, shared_book=shared
            )
        rows.append(row)
    return tuple(rows)


def _notes(
    tensors: Sequence[CompressedTensor], plan: _Plan, data: bytes, stripped: bytes
) -> list[str]:
    if not plan.codes:
        notes = ["No weight tensor is smaller coded; what the engine does not read is gone."]
    else:
        notes = [
            f"{len(plan.codes)} of {len(tensors)} weight tensors are coded: "
            f"{format_size(len(data))} instead of {format_size(len(stripped))}. TensorFlow Lite "
            "Micro alone runs the file; the firmware must register it with AddDecode()."
        ]
    by_reason: dict[str, list[str]] = {}
    for tensor in tensors:
        if tensor.coding == RAW:
            by_reason.setdefault(tensor.reason, []).append(str(tensor.index))
    return notes + [
        f"Raw, as {why}: tensor{'s' * (len(numbers) > 1)} {', '.join(numbers)}."
        for why, numbers in by_reason.items()
    ]
