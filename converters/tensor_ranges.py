"""The range of every tensor of a float file: learnt in training, prescribed, or measured."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from edgecompress.converters.calibration import (
    MAX_SAMPLES,
    computed_tensors,
    measure_histograms,
    measure_ranges,
    spread,
)
from edgecompress.converters.float32 import Float32Result
from edgecompress.converters.masks import masked_scores
from edgecompress.converters.portable.base import Graph
from edgecompress.converters.streaming_files import few_sequences, tie_states
from edgecompress.core.errors import ArgumentError, few
from edgecompress.core.lstm_layers import cell_name, is_cell, tap_name
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.precisions.base import Precision

# Operators whose output has the quantization of their first input: one range serves both.
SAME_RANGE = frozenset(
    {
        "RESHAPE", "TRANSPOSE", "SQUEEZE", "EXPAND_DIMS", "AVERAGE_POOL_2D", "MAX_POOL_2D", "PAD",
        "SLICE", "STRIDED_SLICE", "SPLIT", "GATHER", "GATHER_ND", "SPACE_TO_DEPTH",
        "DEPTH_TO_SPACE", "MIRROR_PAD", "UNPACK", "BROADCAST_TO", "RESIZE_NEAREST_NEIGHBOR",
        "RESIZE_BILINEAR", "REDUCE_MAX", "REDUCE_MIN",
    }
)  # fmt: skip
# Of these, the ones whose output holds each input value once: the range carries over both ways.
_SAME_VALUES = frozenset({"RESHAPE", "TRANSPOSE", "SQUEEZE", "EXPAND_DIMS"})
# Operators that cut a tensor into parts -> which input that is.
_PARTS = {"SPLIT": 1, "SLICE": 0, "STRIDED_SLICE": 0}
# Operators that add.
_SUMS = frozenset({"ADD", "SUB"})
_SMALLEST_RANGE = 1e-6


def tensor_ranges(
    flat: FlatModel,
    source: Float32Result,
    ranges: Mapping[str, tuple[float, float]],
    calibration: Sequence[np.ndarray] | None,
    notes: list[str],
    outdated: Sequence[str],
    precision: Precision,
    inner: Collection[int],
) -> dict[str, tuple[float, float]]:
    """Returns a range for every computed float tensor, by tensor name: learnt, else measured.

    Those in `inner` need none.
    """
    fixed = precision.fixed_ranges
    index_of = {tensor.name: tensor.index for tensor in flat.tensors}
    learnt = {
        index_of[source.tap_tensors[tap]]: bounds
        for tap, bounds in ranges.items()
        if tap in source.tap_tensors
    }
    # Learnt over all time steps: the range of the operator, not only of what is read of it.
    lstms = {part: tensor for tensor, part in source.lstms.items() if cell_name(part) in ranges}
    learnt |= {
        index_of[tensor]: ranges[tap_name(part)]
        for part, tensor in lstms.items()
        if tap_name(part) in ranges
    }
    used = {*source.tap_tensors, *map(tap_name, lstms), *map(cell_name, lstms)}
    unused = sorted(set(ranges) - used)
    if layers := dict.fromkeys(tap_name(name) for name in unused if is_cell(name)):
        notes.append(
            f"Training simulated {few(list(layers))} as one operator, which this file does not "
            "have: its predictions may differ from those of training."
        )
        unused = [name for name in unused if not is_cell(name)]
    if unused:
        notes.append(f"Learnt ranges of {', '.join(unused)} have no tensor in the flatbuffer.")
    known = _propagate(flat, learnt, fixed)
    missing = [i for i in computed_tensors(flat) if i not in known and i not in inner]
    if missing and calibration is None:
        names = few([flat.tensors[i].name for i in missing])
        if outdated:
            raise ArgumentError(
                "calibration",
                f"be given: the weights are not those with which training learnt the ranges of "
                f"{few(outdated)}",
                None,
                "Give real inputs with --calibration to measure them again, or train with "
                "QuantizationAwareTraining again.",
            )
        raise ArgumentError(
            "calibration",
            f"be given: training learnt no range for {names}",
            None,
            "Give real inputs with --calibration, or train with QuantizationAwareTraining.",
        )
    if missing and calibration is not None:
        samples = [spread(array, MAX_SAMPLES) for array in calibration]
        if source.stepping is not None:
            samples = few_sequences(samples, source.stepping)
        measured = measure_ranges(flat, samples, source.stepping)
        # Learnt ranges take precedence; measured ranges fill the gaps, and then propagate as well.
        measured = {i: measured[i] for i in missing if i in measured}
        if precision.clips_calibrated:
            found = measure_histograms(flat, samples, measured, source.stepping)
            measured = {i: precision.calibrated_range(*found[i]) for i in found}
        known = _propagate(flat, measured | known, fixed)
        count = f"{len(samples[0])} calibration samples"
        if outdated:
            # Named by tap: users know the layers, not the tensors.
            notes.append(
                f"The weights are not those with which training learnt the ranges of "
                f"{few(outdated)}: these ranges are not used, but measured on {count}."
            )
        if learnt:
            names = few([flat.tensors[i].name for i in missing])
            notes.append(f"Training learnt no range for {names}: measured on {count}.")
        else:
            notes.append(f"All ranges were measured on {count}.")
    if source.stepping is not None:
        known = tie_states(flat, source.stepping, known)
    wanted = [i for i in computed_tensors(flat) if i in known]
    dead = [i for i in wanted if _widened(known[i]) is None]
    if dead:
        # Their scale would be so small that the next layer's bias would not fit 32 bits.
        names = few([flat.tensors[i].name for i in dead])
        notes.append(f"{names} never left zero; the range was set to (0, 1), or to that of a sum.")
    sums = _ranges_of_sums(flat, known, set(dead) - set(learnt))
    return {flat.tensors[i].name: _widened(known[i]) or sums.get(i, (0.0, 1.0)) for i in wanted}


def _ranges_of_sums(
    flat: FlatModel, known: Mapping[int, tuple[float, float]], dead: Collection[int]
) -> dict[int, tuple[float, float]]:
    """Returns ranges for tensors that never left zero and are added to others: those of the sums.

    XNNPACK adds numbers whose scales differ from the sum's by no more than 256 times; any other
    addition leaves it, and what it computes is cut in two.
    """
    # What else reads them has a bias to fit; what moves them has their range.
    others = {i for o in flat.operators if o.code not in _SUMS for i in o.inputs}
    others |= {i for o in flat.operators if o.code in SAME_RANGE for i in o.outputs}
    found: dict[int, tuple[float, float]] = {}
    for operator in flat.operators:
        if operator.code not in _SUMS or (output := operator.outputs[0]) not in known:
            continue
        bounds = _widened(known[output])
        for index in operator.inputs:
            if bounds is not None and index in dead and index not in others:
                found.setdefault(index, bounds)
    return found


def _widened(bounds: tuple[float, float]) -> tuple[float, float] | None:
    """Returns the range, widened to contain zero; None if that leaves nothing."""
    low, high = min(bounds[0], 0.0), max(bounds[1], 0.0)
    return (low, high) if high - low > _SMALLEST_RANGE else None


def _propagate(
    flat: FlatModel,
    ranges: Mapping[int, tuple[float, float]],
    fixed: Mapping[str, tuple[float, float]],
) -> dict[int, tuple[float, float]]:
    """Adds ranges that follow from others: of moved values and of fixed-range functions."""
    known, graph = dict(ranges), Graph(flat)
    # Of parts of a tensor: that tensor. Put together in another order, they keep its range.
    whole: dict[int, int | None] = {}
    for operator in flat.operators:
        wholes = {whole.get(index) for index in operator.inputs}
        for output in operator.outputs:
            if operator.code in _PARTS:
                whole[output] = operator.inputs[_PARTS[operator.code]]
            elif operator.code == "CONCATENATION" and len(wholes) == 1 and None not in wholes:
                (tensor,) = wholes
                whole[output] = tensor
                if tensor in known:
                    known.setdefault(output, known[tensor])
            if operator.code in fixed:
                known.setdefault(output, fixed[operator.code])
            elif operator.code in SAME_RANGE:
                moved = operator.inputs[1 if operator.code == "SPLIT" else 0]
                if moved in known:
                    known.setdefault(output, known[moved])
            elif (scores := masked_scores(graph, operator)) is not None and scores in known:
                # `masks.narrowed` sets both.
                known.setdefault(output, known[scores])
    # One-dimensional convolutions are wrapped in reshapes; training learns the range after them.
    for operator in reversed(flat.operators):
        if operator.code in _SAME_VALUES and operator.outputs[0] in known:
            known.setdefault(operator.inputs[0], known[operator.outputs[0]])
    return known
