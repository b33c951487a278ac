"""The 32-bit tensor arena of TensorFlow Lite Micro, computed to the byte from the flatbuffer.

An arena has two ends. The head holds what a greedy plan places there: every computed tensor and
the scratch buffers of the kernels. The tail holds what lives as long as the interpreter: its own
structures, each operator's parameters and data, variable tensors, handles of inputs and outputs.

The sizes hold for tflite-micro of August 2026 with CMSIS-NN 4ab83cc3, built by GCC 12.2 for 32-bit
Arm; they were compared with that interpreter's `arena_used_bytes` on Cortex-M4, M7, M33 and M55.
Two depend on the compiler: Arm Compiler 6 requests more scratch in 1x1 convolutions, and has a
different threshold for depthwise convolutions with one input channel on MVE cores. An interpreter
on a 64-bit host uses more (3 to 76 % on the MLPerf Tiny models), so its number is useless here.

An operator without a rule in `arena_rules`, or used in a way its rule does not cover, makes the
arena unknown. Nothing is guessed.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from edgecompress.core.errors import ArgumentError, UnknownNameError
from edgecompress.core.units import format_size
from edgecompress.engines.registry import TFLM_KERNELS
from edgecompress.flatbuffers.coding import DECODE
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import Operator
from edgecompress.flatbuffers.tensors import Tensor
from edgecompress.targets.tflm.arena_rules import (
    ALIGNMENT,
    EVAL_TENSOR_BYTES,
    QUANTIZATION_BYTES,
    RULES,
    TENSOR_BYTES,
    OperatorMemory,
    Unmeasured,
    described_bytes,
    has_quantization,
    require_compared,
    round_up,
)

# Which instructions CMSIS-NN is compiled for; Cortex-M33 with its optional DSP extension.
CORES = {
    "cortex-m0": "scalar",
    "cortex-m0plus": "scalar",
    "cortex-m3": "scalar",
    "cortex-m23": "scalar",
    "cortex-m4": "dsp",
    "cortex-m7": "dsp",
    "cortex-m33": "dsp",
    "cortex-m55": "mve",
    "cortex-m85": "mve",
}
_MEASURED_CORES = frozenset({"cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55"})

_MEASURED_REFERENCE = "cortex-m4"

# sizeof() of the interpreter's structures on 32-bit Arm.
_INTERPRETER = (36, 44, 36)  # allocator, micro allocator, planner
_MODEL = (8, 8)  # data allocator, subgraph
_FIXED_TAIL = (*_INTERPRETER, *_MODEL)
# What SetDecompressionMemory stores for its region, between the two.
_REGION = 4
_NODE = 32
_SCRATCH_REQUEST, _SCRATCH_HANDLE, _ALLOCATION_INFO, _PLANNER_BUFFER = 12, 4, 24, 40
# The interpreter reserves room for this many scratch requests beyond those already made.
_SCRATCH_SLACK = 12


@dataclass(frozen=True)
class Buffer:
    """One buffer of the head: a tensor or scratch.

    Attributes:
        index: The tensor's index; None for scratch.
        name: The tensor's name, or which operator's scratch it is.
        bytes: Its size; it occupies this rounded up to 16.
        offset: Its position, from the start of the arena.
        first: Operator that writes it first; -1 for a model input, which exists before.
        last: Operator that reads it last. A tensor that no operator uses has first = last = -2.
    """

    index: int | None
    name: str
    bytes: int
    offset: int
    first: int
    last: int

    @property
    def end(self) -> int:
        """First byte after it."""
        return self.offset + round_up(self.bytes)


@dataclass(frozen=True)
class UnknownOperator:
    """Why the arena cannot be computed.

    Attributes:
        index: The operator's position; None if the reason is the model as a whole.
        name: The operator's name, or `model`.
        reason: What is not covered.
    """

    index: int | None
    name: str
    reason: str

    def __str__(self) -> str:
        """One line."""
        where = self.name if self.index is None else f"operator {self.index} {self.name}"
        return f"{where}: {self.reason}"


@dataclass(frozen=True)
class Arena:
    """The tensor arena of one model on one core.

    Attributes:
        core: The core, e.g. `cortex-m4`.
        kernels: `cmsis-nn` or `reference`.
        used: What `arena_used_bytes()` returns: head + tail. None if unknown.
        head: Bytes of the plan: tensors and scratch. None if unknown.
        tail: Bytes that live as long as the interpreter. None if unknown.
        smallest: Smallest arena that allocates, a multiple of 16: planning itself needs memory,
            which dominates in very small models. Equal to the searched value on 2,181 of 2,212
            models on Cortex-M4; 16 bytes too high on 31 whose fully connected layer has per-channel
            scales. A smaller one need not fail cleanly: some kernels use what they were given
            unchecked. None if unknown.
        peak_operator: Index of the operator at which the plan peaks; None if unknown.
        peak_operator_name: Its name.
        peak_tensors: The buffers alive there, largest first; scratch has no index.
        scratch: Scratch bytes of each operator.
        buffers: All of the head, in the order of tensors, then scratch: a memory map.
        unknown: Operators without a rule, with reasons; empty if the arena is known.
        at_least: A lower bound in bytes that holds even if the arena is unknown; None if not even
            that is known. Equal to `used` if that is known.
        decompression_memory: Bytes of memory outside the arena that hold decoded tensors.
        verified: Whether the rules were verified on this core with these kernels.
        notes: The basis of the number if it is not verified, one sentence each.
    """

    core: str
    kernels: str
    used: int | None = None
    head: int | None = None
    tail: int | None = None
    smallest: int | None = None
    peak_operator: int | None = None
    peak_operator_name: str = ""
    peak_tensors: tuple[Buffer, ...] = ()
    scratch: tuple[int, ...] = ()
    buffers: tuple[Buffer, ...] = field(default=(), repr=False)
    unknown: tuple[UnknownOperator, ...] = ()
    at_least: int | None = None
    decompression_memory: int = 0
    verified: bool = True
    notes: tuple[str, ...] = ()

    @property
    def is_known(self) -> bool:
        """Whether the arena could be computed."""
        return self.used is not None

    def explain(self, tensors: int = 3) -> str:
        """Returns one line: where the peak is and which tensors live there, or what is unknown.

        Args:
            tensors: How many tensors to name; the rest are counted. Defaults to 3.

        Example:
            >>> compute_arena(model, "cortex-m4", "cmsis-nn").explain()  # doctest: +SKIP
            'The arena peaks at operator 3 ADD: conv2d_2/Relu 16.0 KiB, add/add 16.0 KiB and 1 more
            (1.0 KiB) live there; head 48.6 KiB + tail 5.1 KiB = 53.7 KiB.'
        """
        if self.used is None or self.head is None or self.tail is None:
            first, more = self.unknown[0], len(self.unknown) - 1
            also = f" (and {more} more)" if more else ""
            return f"The arena is unknown: {first}{also}."
        sizes = (
            f"head {format_size(self.head)} + tail {format_size(self.tail)} "
            f"= {format_size(self.used)}"
        )
        if self.peak_operator is None:
            return f"The arena has no peak: no operator runs; {sizes}."
        # A fused operator has the names of all its parts, separated by semicolons.
        named = [
            f"{b.name.split(';')[0]} {format_size(b.bytes)}" for b in self.peak_tensors[:tensors]
        ]
        rest = self.peak_tensors[tensors:]
        others = (
            f" and {len(rest)} more ({format_size(sum(b.bytes for b in rest))})" if rest else ""
        )
        gaps = self.head - sum(round_up(b.bytes) for b in self.peak_tensors)
        between = f" with {format_size(gaps)} unused between them" if gaps else ""
        return (
            f"The arena peaks at operator {self.peak_operator} {self.peak_operator_name}: "
            f"{', '.join(named)}{others} live there{between}; {sizes}."
        )


def plan_offsets(sizes: Sequence[int], lifetimes: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Returns where TensorFlow Lite Micro's greedy planner places each buffer.

    Largest first, on ties the last first; each goes into the first gap, in the order of offsets,
    between buffers that are live at the same time.

    Args:
        sizes: Bytes of each buffer.
        lifetimes: First and last operator of each buffer, both included.

    Example:
        >>> plan_offsets([32, 16, 16], [(0, 1), (0, 0), (2, 2)])
        (0, 32, 0)
    """
    kind = np.int64 if sum(sizes) < 1 << 62 else object
    size_of = np.array(sizes, kind)
    # The buffers placed so far, by offset; on ties the earlier one first.
    firsts, lasts = np.zeros((2, len(sizes)), np.int64)
    starts, ends = np.zeros((2, len(sizes)), kind)
    offsets = [0] * len(sizes)
    for count, buffer in enumerate(sorted(range(len(sizes)), key=lambda i: (-sizes[i], -i))):
        size, (first, last) = size_of[buffer], lifetimes[buffer]
        alive = np.flatnonzero((firsts[:count] <= last) & (lasts[:count] >= first))
        # Where the space after the first, second, ... of those begins; the first entry is the
        # arena.
        free = np.maximum.accumulate(np.concatenate([np.zeros(1, kind), ends[alive]]))
        fits = np.flatnonzero(starts[alive] - free[:-1] >= size)
        offset = free[fits[0] if fits.size else -1]
        position = np.searchsorted(starts[:count], offset, side="right")
        for column, value in (
            (firsts, first),
            (lasts, last),
            (starts, offset),
            (ends, offset + size),
        ):
            column[position + 1 : count + 1] = column[position:count]
            column[position] = value
        offsets[buffer] = int(offset)
    return tuple(offsets)


def _outside(model: FlatModel, memory: int) -> tuple[dict[int, int], list[str]]:
    """Returns the decoded tensors in decompression memory, and what goes wrong there.

    The outputs of one DECODE operator are placed consecutively at multiples of 16; the next
    operator starts at the beginning again. A tensor that does not fit stays in the arena.

    Returns:
        Tensor index -> where it ends, and notes.
    """
    ends: dict[int, int] = {}
    notes = []
    last = {i: step for step, o in enumerate(model.operators) for i in o.inputs}
    decoders = [o for o in model.operators if o.name == DECODE]
    for operator, following in itertools.zip_longest(decoders, decoders[1:]):
        used = 0
        for index in operator.outputs:
            end = round_up(used) + model.tensors[index].bytes
            if end > memory:
                continue
            ends[index] = used = end
            if following is not None and last.get(index, -1) > following.index:
                notes.append(
                    f"Tensor {index} is read after operator {following.index} has decoded over "
                    "it: with decompression memory the results are wrong."
                )
    return ends, notes


def _lifetimes(model: FlatModel) -> dict[int, tuple[int, int]]:
    """First and last operator of every tensor that is planned in the head."""
    unused = (-2, -2)
    first: dict[int, int] = dict.fromkeys((*model.inputs, *model.outputs), -1)
    last = dict(first)
    for step, operator in enumerate(model.operators):
        for index in operator.outputs:
            first[index] = last[index] = step
        for index in operator.inputs:
            if index >= 0:
                last[index] = step
    for index in model.outputs:
        last[index] = len(model.operators) - 1
    return {
        t.index: (first.get(t.index, unused[0]), last.get(t.index, unused[1]))
        for t in model.tensors
        if not t.is_constant and not t.is_variable and t.bytes
    }


class _Tail:
    """Grows downwards from the end of the arena."""

    def __init__(self) -> None:
        self.bytes = 0

    def add(self, size: int, alignment: int = ALIGNMENT) -> None:
        """Allocates `size` bytes at a multiple of `alignment`."""
        self.bytes = round_up(self.bytes + size, alignment)

    def add_handles(self, tensors: Iterable[Tensor]) -> None:
        """Allocates the structures that describe inputs or outputs to the application."""
        tensors = list(tensors)
        self.add(4 * len(tensors))
        for tensor in tensors:
            self.add(TENSOR_BYTES, 4)
            if has_quantization(tensor):
                self.add(QUANTIZATION_BYTES, 4)
                self.add(4 + 4 * len(tensor.scales), 4)


def _tail(
    model: FlatModel, needs: Sequence[OperatorMemory], planned: int, head: int, region: bool
) -> tuple[int, int]:
    """Returns the tail and the smallest arena that allocates."""
    tail = _Tail()
    for size in _INTERPRETER:
        tail.add(size, 4)
    if region:
        tail.add(_REGION)
    for size in _MODEL:
        tail.add(size, 4)
    tail.add(EVAL_TENSOR_BYTES * len(model.tensors), 4)
    tail.add(_NODE * len(model.operators), 4)
    for need in needs:
        if need.params[0]:
            tail.add(*need.params)
    for need in needs:
        if need.data:
            tail.add(need.data)
    scratches = prepare = 0
    for operator, need in zip(model.operators, needs, strict=True):
        for size in need.persistent:
            tail.add(size)
        requests = _SCRATCH_REQUEST * (_SCRATCH_SLACK + scratches)
        indices = (*operator.inputs, *operator.outputs)
        described = described_bytes(*(model.tensors[i] for i in indices if i >= 0)) + need.described
        prepare = max(prepare, tail.bytes + requests + described)
        scratches += len(need.scratch)
    if scratches:
        tail.add(_SCRATCH_HANDLE * scratches, 4)
    for tensor in model.tensors:
        if tensor.is_variable and tensor.bytes:
            tail.add(tensor.bytes)
    requests = _SCRATCH_REQUEST * (_SCRATCH_SLACK + scratches) + 4 * model.subgraphs
    infos = _ALLOCATION_INFO * (len(model.tensors) + scratches)
    plan = round_up(tail.bytes) + round_up(requests + infos) + _PLANNER_BUFFER * planned
    tail.add_handles(model.tensors[i] for i in model.inputs)
    tail.add_handles(model.tensors[i] for i in model.outputs)
    return tail.bytes, round_up(max(head + tail.bytes, plan, prepare))


def _model_reasons(model: FlatModel) -> list[UnknownOperator]:
    """Obstacles outside the operators' rules."""
    reasons = []
    if model.subgraphs != 1:
        reasons.append(f"it has {model.subgraphs} subgraphs; sizes are known for one")
    for name in ("OfflineMemoryAllocation", "COMPRESSION_METADATA"):
        if name in model.metadata:
            reasons.append(f"its metadata {name} changes the plan")
    for tensor in model.tensors:
        if not tensor.is_constant and tensor.elements and (not tensor.bits or tensor.bits < 8):
            reasons.append(f"tensor {tensor.index} is {tensor.type}, whose size is not known")
            break
    if any(tensor.sparsity is not None for tensor in model.tensors):
        reasons.append("it has sparse tensors, which TensorFlow Lite Micro cannot read")
    return [UnknownOperator(None, "model", reason) for reason in reasons]


def _needs(model: FlatModel, family: str) -> tuple[list[OperatorMemory], list[UnknownOperator]]:
    needs, unknown = [], []
    for operator in model.operators:
        rule = RULES.get(operator.name)
        if rule is None:
            reason = "no rule for this operator"
            unknown.append(UnknownOperator(operator.index, operator.name, reason))
            continue
        try:
            if family == "mve":
                require_compared(model, operator)
            needs.append(rule(model, operator, family))
        except Unmeasured as error:
            unknown.append(UnknownOperator(operator.index, operator.name, str(error)))
    return needs, unknown


def _lower_bound(model: FlatModel, lifetimes: dict[int, tuple[int, int]]) -> int:
    """What every plan needs: the tensors live at one operator, and the known part of the tail."""
    changes = [0] * (len(model.operators) + 4)
    for index, (first, last) in lifetimes.items():
        size = round_up(model.tensors[index].bytes)
        changes[first + 2] += size
        changes[last + 3] -= size
    alive = peak = 0
    for change in changes:
        alive += change
        peak = max(peak, alive)
    fixed = sum(_FIXED_TAIL) + EVAL_TENSOR_BYTES * len(model.tensors) + _NODE * len(model.operators)
    return peak + fixed


def _head(
    model: FlatModel, lifetimes: dict[int, tuple[int, int]], needs: Sequence[OperatorMemory]
) -> tuple[Buffer, ...]:
    rows: list[tuple[int | None, str, int, tuple[int, int]]] = []
    for index, lifetime in lifetimes.items():
        tensor = model.tensors[index]
        rows.append((index, tensor.name or f"tensor {index}", tensor.bytes, lifetime))
    for operator, need in zip(model.operators, needs, strict=True):
        label = f"scratch of {operator.name} {operator.index}"
        rows += [(None, label, size, (operator.index, operator.index)) for size in need.scratch]
    offsets = plan_offsets([round_up(row[2]) for row in rows], [row[3] for row in rows])
    return tuple(
        Buffer(index, name, size, offset, first, last)
        for (index, name, size, (first, last)), offset in zip(rows, offsets, strict=True)
    )


def _peak(model: FlatModel, buffers: Sequence[Buffer]) -> tuple[Operator | None, list[Buffer]]:
    """The operator at which the plan peaks, and the buffers live there.

    Among several such operators, the one with the most live bytes, then the first.
    """
    waiting = sorted(buffers, key=lambda b: b.first, reverse=True)
    highest: list[tuple[int, int]] = []  # A heap of (-end, last) of what was alive at some step.
    leaving = [0] * (len(model.operators) + 1)
    peak, peak_height, alive = None, (-1, -1), 0
    for operator in model.operators:
        step = operator.index
        while waiting and waiting[-1].first <= step:
            buffer = waiting.pop()
            if buffer.last >= step:
                heapq.heappush(highest, (-buffer.end, buffer.last))
                alive += buffer.bytes
                leaving[buffer.last + 1] += buffer.bytes
        alive -= leaving[step]
        while highest and highest[0][1] < step:
            heapq.heappop(highest)
        height = (-highest[0][0] if highest else 0, alive)
        if height > peak_height:
            peak, peak_height = operator, height
    if peak is None:
        return None, []
    return peak, [b for b in buffers if b.first <= peak.index <= b.last]


def compute_arena(
    model: FlatModel,
    core: str,
    kernels: str = "cmsis-nn",
    decompression_memory: int | None = None,
) -> Arena:
    """Returns the tensor arena that a model needs on a core, to the byte.

    Args:
        model: The parsed .tflite file.
        core: `cortex-m4`, `cortex-m55`, ...; see `CORES`. CMSIS-NN needs different scratch on cores
            with DSP instructions, with MVE, and with neither.
        kernels: `cmsis-nn` or `reference`. Defaults to `cmsis-nn`.
        decompression_memory: Bytes of the region, aligned to 16, that the firmware passes to
            `MicroInterpreter::SetDecompressionMemory` for decoded weights. Those that fit go there,
            the others into the arena. Defaults to None: no such region.

    Raises:
        UnknownNameError: the core or the kernels are unknown.
        ArgumentError: `decompression_memory` is less than 1.

    Example:
        >>> model = read_tflite("kws_ref_model.tflite")  # doctest: +SKIP
        >>> compute_arena(model, "cortex-m4", "cmsis-nn").used  # doctest: +SKIP
        22820
        >>> coded = read_tflite("ad01_compressed.tflite")  # doctest: +SKIP
        >>> outside = compute_arena(coded, "cortex-m4", decompression_memory=81_920)
        ...  # doctest: +SKIP
        >>> outside.used, outside.decompression_memory  # doctest: +SKIP
        (3620, 81920)
    """
    if core not in CORES:
        raise UnknownNameError("core", core, CORES)
    if kernels not in TFLM_KERNELS:
        raise UnknownNameError("kernels", kernels, TFLM_KERNELS)
    region = decompression_memory is not None
    if decompression_memory is not None and decompression_memory < 1:
        raise ArgumentError(
            "decompression_memory", "be 1 byte or more", decompression_memory,
            "Leave it out where the firmware has none.",
        )  # fmt: skip
    family = "reference" if kernels == "reference" else CORES[core]
    verified = core == _MEASURED_REFERENCE if family == "reference" else core in _MEASURED_CORES
    notes: tuple[str, ...] = ()
    if family == "reference" and not verified:
        notes = (
            f"The reference kernels are the same code on {core} as on {_MEASURED_REFERENCE}, where "
            "the rules were compared; they were not compared with a run on this core.",
        )
    elif family == "scalar":
        notes = (
            f"CMSIS-NN's scratch on {core} follows its sources for cores without DSP instructions; "
            "it was not compared with a run.",
        )
    elif not verified:
        notes = (
            f"{core} runs the same MVE kernels as cortex-m55, where the rules were compared; they "
            "were not compared with a run on this core.",
        )

    reasons = _model_reasons(model)
    outside, wrong = _outside(model, decompression_memory or 0)
    if region:
        notes = (
            *notes,
            "Which decoded tensors lie outside the arena was compared with a 64-bit build; the up "
            "to 16 bytes that the region costs in the arena follow the sources.",
            *wrong,
        )
    lifetimes = {i: span for i, span in _lifetimes(model).items() if i not in outside}
    needs, unknown = _needs(model, family)
    if reasons or unknown:
        bound = None if reasons else _lower_bound(model, lifetimes)
        return Arena(
            core, kernels, unknown=(*reasons, *unknown), at_least=bound, verified=verified,
            notes=notes,
        )  # fmt: skip

    buffers = _head(model, lifetimes, needs)
    head = max((b.end for b in buffers), default=0)
    tail, smallest = _tail(model, needs, len(buffers), head, region)
    peak, alive = _peak(model, buffers)
    return Arena(
        core,
        kernels,
        used=head + tail,
        head=head,
        tail=tail,
        smallest=smallest,
        peak_operator=peak.index if peak else None,
        peak_operator_name=peak.name if peak else "",
        peak_tensors=tuple(sorted(alive, key=lambda b: -b.bytes)),
        scratch=tuple(sum(need.scratch) for need in needs),
        buffers=buffers,
        at_least=head + tail,
        decompression_memory=max(outside.values(), default=0),
        verified=verified,
        notes=notes,
    )
