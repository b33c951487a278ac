"""Masks before a softmax: huge negative numbers, whose range would erase the scores.

Attention keeps positions out with scores of -1e9 or less. One int8 scale for these and the scores
leaves a single code for all scores. A masked score only has to be so low that its share rounds to
zero, so its range ends a little below the smallest score.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from edgecompress.converters.portable.base import Graph, activation
from edgecompress.core.composites import MASKED
from edgecompress.core.fusion_rules import BELOW_SCORES
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import Operator

_VIEWS = ("RESHAPE", "TRANSPOSE", "SQUEEZE", "EXPAND_DIMS")

Range = tuple[float, float]


@dataclass(frozen=True)
class Narrowed:
    """What masks become.

    Attributes:
        ranges: Name of a tensor -> its range.
        constants: (operator, input) -> the values of an added mask, no lower than they need to be.
    """

    ranges: Mapping[str, Range]
    constants: Mapping[tuple[int, int], np.ndarray] = field(default_factory=dict)


def narrowed(flat: FlatModel, ranges: Mapping[str, Range]) -> Narrowed:
    """Returns the ranges of a float file with those of masked scores narrowed.

    Args:
        flat: The float file.
        ranges: Name of a tensor -> (minimum, maximum).
    """
    graph = Graph(flat)
    found: dict[str, Range] = {}
    constants: dict[tuple[int, int], np.ndarray] = {}
    for softmax in graph.operators("SOFTMAX"):
        tensors = [softmax.inputs[0]]
        while (view := graph.writer(tensors[-1], *_VIEWS)) is not None:
            tensors.append(view.inputs[0])
        operator = graph.writer(tensors[-1], "SELECT", "SELECT_V2", "ADD")
        place = None if operator is None else _mask(graph, operator)
        if operator is None or place is None:
            continue
        scores = next(i for i in operator.inputs[-2:] if i != operator.inputs[place])
        known = ranges.get(flat.tensors[scores].name)
        if known is None:
            continue
        own = ranges.get(flat.output(operator).name)
        if operator.code == "ADD" and own is not None and own[0] > MASKED:
            known = own  # Learnt without the masked ones.
        low, high = min(known[0], 0.0), max(known[1], 0.0)
        same = tensors if operator.code == "ADD" else [*tensors, scores]
        found |= {flat.tensors[index].name: (low - BELOW_SCORES, high) for index in same}
        if operator.code == "ADD":
            values = graph.tensor(operator.inputs[place]).values()
            least = np.float32(low - BELOW_SCORES - high)
            constants[operator.index, place] = np.maximum(values, least)
    return Narrowed({**ranges, **found}, constants)


def masked_scores(graph: Graph, operator: Operator) -> int | None:
    """Returns the tensor of scores from which an operator selects, beside a mask; None if none."""
    if operator.code not in ("SELECT", "SELECT_V2"):
        return None
    place = _mask(graph, operator)
    if place is None:
        # Masked shares are 0, which every range contains.
        constants = ((n, graph.values(operator, n)) for n in (1, 2))
        place = next((n for n, v in constants if v is not None and not v.any()), None)
    if place is None:
        return None
    return next(i for position, i in enumerate(operator.inputs) if position not in (0, place))


def _mask(graph: Graph, operator: Operator) -> int | None:
    """Returns which input of an operator is a mask; None if none is."""
    if activation(operator):
        return None
    for position in range(len(operator.inputs) - 2, len(operator.inputs)):
        values = graph.values(operator, position)
        if values is not None and values.dtype == np.float32 and values.min(initial=0) <= MASKED:
            return position
    return None
