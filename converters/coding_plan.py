"""Which code each weight tensor gets, so that the file is as small as its limits allow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgecompress.converters.decoders import insert_decoders, layout_of
from edgecompress.core.errors import ArgumentError
from edgecompress.flatbuffers.coding import (
    CODINGS,
    Encoded,
    build_codebook,
    count_symbols,
    encode_huffman,
)
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import FILTER_READERS
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.flatbuffers.tensors import Tensor

# The file's own overhead for one coded tensor: an operator, two tensors, two buffers, vectors.
_TABLE_BYTES = 200
# Savings above which the estimate needs no confirmation from the file itself.
_CLEAR_SAVING = 1024
_ALIGNMENT = 16
# How often the shared code book is rebuilt from the tensors that chose it.
_SHARED_ROUNDS = 3


@dataclass(frozen=True)
class Limit:
    """A limit of the coded model.

    Attributes:
        argument: What users call it.
        unit: Of the limit, in words.
        measure: Returns what a model takes.
        limit: The most that it may take.
    """

    argument: str
    unit: str
    measure: Callable[[FlatModel], float]
    limit: float


@dataclass(frozen=True)
class Plan:
    """Which code each tensor gets; unlisted tensors stay raw.

    Attributes:
        base: The model with raw weights.
        codes: Tensor index -> its code.
    """

    base: FlatModel = field(repr=False)
    codes: Mapping[int, Encoded] = field(default_factory=dict)

    def build(self) -> bytes:
        """Returns the coded file."""
        return insert_decoders(self.base, self.codes) if self.codes else self.base.data

    def without(self, index: int) -> Plan:
        """Returns the plan with a tensor left raw."""
        return Plan(self.base, {i: c for i, c in self.codes.items() if i != index})


def limits_of(*given: tuple[str, float | None, str, Any]) -> list[Limit]:
    """Returns the limits that are set.

    Args:
        given: For each its argument, the limit (None for none), and name and value of the argument
            that measures it.

    Raises:
        ArgumentError: a limit comes without its measure.
    """
    limits = []
    for argument, limit, function, measure in given:
        if limit is not None and measure is None:
            raise ArgumentError(argument, f"come with `{function}`, which measures it", limit)
        if limit is not None:
            unit = "bytes of arena" if function == "arena" else "microseconds"
            limits.append(Limit(argument, unit, measure, limit))
    return limits


def aligned(size: int) -> int:
    """Returns a size in bytes, rounded up to the alignment of buffers."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def candidates(flat: FlatModel, memory: int | None) -> tuple[dict[int, Tensor], dict[int, str]]:
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
            reasons[index] = "it does not have one zero point for each scale"
        elif index in flat.outputs:
            reasons[index] = "it is an output of the model"
        elif memory is not None and tensor.bytes > memory:
            reasons[index] = f"decoded, it is larger than the {memory:,} bytes outside the arena"
        else:
            found[index] = tensor
    return found, reasons


def _cost(code: Encoded, shared: bool = False) -> int:
    """Returns the bytes of a coded tensor in the file, by estimate."""
    return _TABLE_BYTES + aligned(len(code.data)) + (0 if shared else aligned(len(code.ancillary)))


def smallest_plan(
    base: FlatModel,
    weights: Mapping[int, Tensor],
    codings: Sequence[str],
    root_bits: int | None,
    share_books: bool,
) -> Plan:
    """Returns the plan whose file is smallest.

    Args:
        base: The model with raw weights.
        weights: The tensors that may be coded, by index.
        codings: Codes that may be used.
        root_bits: Bits of the first Huffman look-up; None for the smallest tables.
        share_books: Whether several tensors may share a Huffman book.
    """
    own: dict[int, Encoded] = {}
    for index, tensor in weights.items():
        values = tensor.values()
        codes = [CODINGS[name](values, layout_of(tensor), root_bits) for name in codings]
        usable = [code for code in codes if code is not None]
        if usable:
            own[index] = min(usable, key=_cost)
    plans = [Plan(base, _worth(own, weights))]
    if share_books and "huffman" in codings and len(weights) > 1:
        plans.append(Plan(base, _shared(own, weights, root_bits)))
    plans = [_prune_back(plan, weights) for plan in plans]
    # The last one codes nothing, for the case of a buffer that others read too.
    return min([*plans, Plan(base)], key=lambda plan: len(plan.build()))


def _worth(codes: Mapping[int, Encoded], weights: Mapping[int, Tensor]) -> dict[int, Encoded]:
    # The table bytes are ignored here: the file shows afterwards whether they pay off.
    return {i: c for i, c in codes.items() if _cost(c) - _TABLE_BYTES < aligned(weights[i].bytes)}


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
            smallest = min(alone, aligned(tensor.bytes) + _TABLE_BYTES)
            if code is not None and _cost(code, shared=True) < smallest:
                joined.add(index)
                chosen[index] = code
            elif index in own:
                chosen.update(_worth({index: own[index]}, weights))
        if joined == members:
            break
        members = joined
    return chosen


def _prune_back(plan: Plan, weights: Mapping[int, Tensor]) -> Plan:
    """Leaves tensors raw where the file is no larger for it."""
    size = len(plan.build())
    savings = {i: aligned(weights[i].bytes) - _cost(code) for i, code in plan.codes.items()}
    for index in sorted(savings, key=savings.__getitem__):
        if savings[index] > _CLEAR_SAVING:
            break
        smaller = plan.without(index)
        data = smaller.build()
        if len(data) <= size:
            plan, size = smaller, len(data)
    return plan


def within(plan: Plan, limits: Sequence[Limit], reasons: dict[int, str]) -> Plan:
    """Leaves tensors raw, largest first, until the limits are met; then re-adds what fits."""

    def broken(candidate: Plan) -> Limit | None:
        model = read_tflite(candidate.build())
        return next((x for x in limits if x.measure(model) > x.limit), None)

    full, flat, removed = plan, plan.base, []
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
        larger = Plan(plan.base, {**plan.codes, index: full.codes[index]})
        if broken(larger) is None:
            plan = larger
            del reasons[index]
    return plan
