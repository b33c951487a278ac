"""int8 flatbuffer -> int8 flatbuffer with coded weights, which TensorFlow Lite Micro expands.

A `TFLM_DECODE` operator before each user of a coded weight tensor writes the values into the tensor
arena at every inference. It is lossless: the outputs are those of the original model. This is the
coding stage of Deep Compression (Han et al. 2016); pruning and clustering during training are what
make it small. No other engine supports the operator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgecompress.converters.coding_plan import (
    Plan,
    aligned,
    candidates,
    limits_of,
    smallest_plan,
    within,
)
from edgecompress.converters.comparison import random_inputs
from edgecompress.converters.decoders import check_codes
from edgecompress.converters.formats import (
    FormatRequest,
    FormatResult,
    int8_source,
    proven_parity,
    register,
)
from edgecompress.converters.recalled import Sources, float_file
from edgecompress.converters.stripping import strip_for_tflm
from edgecompress.core.errors import ArgumentError, ConversionError, UnsupportedModelError
from edgecompress.core.options import Choice, Size, many, option
from edgecompress.core.units import format_size, format_time
from edgecompress.engines.registry import TFLM
from edgecompress.engines.run import run_engine
from edgecompress.flatbuffers.artifact import Artifact
from edgecompress.flatbuffers.coding import (
    CODINGS,
    DecodingOptions,
)
from edgecompress.flatbuffers.editor import ModelEditor, strip
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.reading import read_tflite

KIND = "compressed"
RAW = "raw"


@dataclass(frozen=True)
class CompressedTensor:
    """The outcome for one weight tensor.

    Attributes:
        index: Number of the tensor in the compressed file.
        name: Its name in the original file; may be empty.
        coding: `lut`, `prune`, `huffman`, or `raw` if left unchanged.
        bytes_before: Bytes of its values.
        bytes_after: Bytes of its code with header and tables. A shared Huffman book is attributed
            to the first tensor that uses it.
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
        tensors: The weight tensors considered, by index.
        bytes_before: Bytes of the original file.
        bytes_stripped: Bytes of that file without names and metadata: the fair baseline.
        arena_before: Bytes of tensor arena returned by the `arena` argument; None without it.
        arena_after: The same for the compressed file.
        latency_before_us: Microseconds returned by the `latency` argument; None without it.
        latency_after_us: The same for the compressed file.
        decompression_memory: Bytes of memory outside the arena that hold the largest decoded
            tensor, for firmware that calls `SetDecompressionMemory`.
        verified_samples: Random samples on which the outputs were compared; 0 if they were not.
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
class CompressedOptions(DecodingOptions):
    """Options of `--format compressed`."""

    codings: tuple[str, ...] | None = option(
        None,
        "A code that may be used for weights.",
        many(Choice("CODE", names=CODINGS)),
        flag="--coding",
        unset="all",
    )
    min_saving: int | None = option(
        None,
        "Leave a tensor uncoded if coding it would save less than this, so that it does not have "
        "to be decoded at every inference.",
        Size(),
        unset="code every tensor that makes the file smaller",
    )


@register(
    "compressed",
    summary="losslessly coded weights for microcontrollers",
    options=CompressedOptions,
    from_tflite=True,
    families=(TFLM,),
    why="Only TensorFlow Lite Micro decodes such files.",
    sources=lambda request: Sources(KIND, {False: float_file(request)}),
)
def make(request: FormatRequest) -> FormatResult:
    """Makes the int8 file from a Keras model, and codes its weights.

    If RAM or latency is limited, as many tensors as necessary stay raw.
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
        # If even the plain file exceeds a budget, the checks must fail; it is not a wrong argument.
        max_arena=int(max(ram, arena(original))) if ram is not None and arena else None,
        latency=latency,
        max_latency_us=max(slowest, latency(original)) if slowest and latency else None,
        decompression_memory=memory,
        min_saving=options.min_saving,
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
        layers=source.layers,
        parity=proven_parity(request, TFLM, result.verified_samples, 0.0),
        legacy_runtime=False,
        # Weights behind a decoder still count as parameters.
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
    min_saving: int | None = None,
    verify: bool = True,
    samples: int = 8,
    seed: int = 0,
) -> CompressedResult:
    """Codes the weights of an int8 model so that the file, and so the flash, becomes smaller.

    Each tensor gets whichever of raw, table, bitmap and Huffman code makes the file smallest,
    including its operator and tensors. Names and metadata are removed. Equal inputs give equal
    bytes.

    Args:
        model: An int8 .tflite file: bytes, path or artifact.
        codings: Codes that may be used: `lut`, `prune`, `huffman`. Defaults to all.
        root_bits: Bits of the first Huffman look-up, 1 to 15: with 8, dense weights take about a
            third fewer instructions to decode, for a few hundred bytes; pruned ones do not benefit.
            Defaults to None: the smallest tables.
        share_books: Whether several tensors may share a Huffman book. Defaults to True.
        max_arena: Largest tensor arena in bytes; large tensors stay raw until it is met. Needs
            `arena`. Optional.
        arena: Returns the bytes of a model's tensor arena. Optional.
        max_latency_us: Longest inference in microseconds; as `max_arena`, with `latency`. Optional.
        latency: Returns a model's microseconds for one inference. Optional.
        decompression_memory: Bytes outside the arena that the firmware passes to
            `SetDecompressionMemory`; tensors that are larger when decoded stay raw. `arena` must
            assume the same number. Defaults to None: decoded tensors are in the arena.
        min_saving: Bytes by which coding a tensor must make the file smaller; others stay raw, and
            are not decoded at every inference. Defaults to None: 1 byte.
        verify: Run the model before and after in TensorFlow Lite Micro and compare. Defaults to
            True. Every code is decoded and compared with the weights in any case.
        samples: Random inputs to compare on. Defaults to 8.
        seed: Of the random inputs. Defaults to 0.

    Raises:
        UnknownNameError: a coding is unknown.
        ArgumentError: a limit lacks its function, or not even the raw model meets it;
            `root_bits`, `decompression_memory` or `min_saving` is out of range.
        UnsupportedModelError: the model has several subgraphs.
        ConversionError: an output differs: nothing is returned.

    Example:
        >>> result = compress("vww_int8.tflite")  # doctest: +SKIP
        >>> len(result.artifact.data), result.bytes_before  # doctest: +SKIP
        (89392, 333288)
    """
    for name in codings:
        CODINGS[name]
    limits = limits_of(("max_arena", max_arena, "arena", arena),
                     ("max_latency_us", max_latency_us, "latency", latency))  # fmt: skip
    if decompression_memory is not None and decompression_memory < 1:
        raise ArgumentError("decompression_memory", "be 1 byte or more", decompression_memory)
    if min_saving is not None and min_saving < 1:
        raise ArgumentError("min_saving", "be 1 byte or more", min_saving)
    source = model if isinstance(model, Artifact) else None
    original = model.flat if isinstance(model, Artifact) else read_tflite(model)
    if original.subgraphs > 1:
        raise UnsupportedModelError(
            f"The model has {original.subgraphs} subgraphs; weights of one with control flow "
            "cannot be compressed. Build recurrent layers with unroll=True."
        )
    stripped = strip(original)
    editor = ModelEditor(original)
    names = [original.tensors[number].name for number in strip_for_tflm(editor)]
    editor.strip()
    flat = read_tflite(editor.pack())
    weights, reasons = candidates(flat, decompression_memory)
    plan = smallest_plan(flat, weights, codings, root_bits, share_books)
    for index in weights.keys() - plan.codes.keys():
        reasons[index] = "no code makes the file smaller"
    if min_saving is not None:
        plan = _worth(plan, min_saving, reasons)
    if limits:
        plan = within(plan, limits, reasons)
    data = plan.build()
    after = read_tflite(data)
    check_codes(after, {i: weights[i] for i in plan.codes})
    if verify:
        verify_exact(original.data, data, samples, seed)
    tensors = _report(names, flat, plan, reasons)
    name = str(model) if isinstance(model, (str, Path)) else "model"
    artifact = Artifact(
        KIND,
        data,
        source.source if source else name,
        source.record if source else None,
        (*(source.notes if source else ()), *_notes(tensors, plan, data, stripped)),
    ).read_as(after)
    return CompressedResult(
        artifact,
        tensors,
        len(original.data),
        len(stripped),
        arena(original) if arena else None,
        arena(after) if arena else None,
        latency(original) if latency else None,
        latency(after) if latency else None,
        max((aligned(flat.tensors[i].bytes) for i in plan.codes), default=0),
        samples if verify else 0,
    )


def _worth(plan: Plan, min_saving: int, reasons: dict[int, str]) -> Plan:
    """Leaves tensors raw that save less than the minimum, the smallest savings first."""
    flat, size = plan.base, len(plan.build())

    def estimate(index: int) -> int:
        return flat.tensors[index].bytes - plan.codes[index].bytes

    # A tensor that leaves a shared book raises the others' share: repeat until none leaves.
    before = None
    while plan != before:
        before = plan
        for index in sorted(plan.codes, key=estimate):
            without = plan.without(index)
            larger = len(without.build())
            if larger - size < min_saving:
                plan, size = without, larger
                reasons[index] = f"its code would save less than {format_size(min_saving)}"
    return plan


# --- Checks --------------------------------------------------------------------------------------


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
    want = run_engine(TFLM, before, inputs).outputs
    have = run_engine(TFLM, after, inputs).outputs
    for number, (expected, got) in enumerate(zip(want, have, strict=True)):
        if expected.tobytes() != got.tobytes():
            wrong = int(np.count_nonzero(expected != got))
            raise ConversionError(
                f"The compressed model is not exact: {wrong} of {expected.size} values of output "
                f"{number} differ in TensorFlow Lite Micro on {samples} random inputs."
            )


# --- Report --------------------------------------------------------------------------------------


def _report(
    names: Sequence[str], flat: FlatModel, plan: Plan, reasons: Mapping[int, str]
) -> tuple[CompressedTensor, ...]:
    books = [code.ancillary for _, code in sorted(plan.codes.items())]
    counted: set[bytes] = set()
    rows = []
    for index in sorted({*plan.codes, *reasons}):
        tensor, name = flat.tensors[index], names[index]
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
    tensors: Sequence[CompressedTensor], plan: Plan, data: bytes, stripped: bytes
) -> list[str]:
    if not plan.codes:
        notes = ["No weight tensor gets smaller by coding; unread parts of the file are stripped."]
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
