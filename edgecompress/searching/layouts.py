"""Layouts: which depths and resolutions hold most under the limits, before anything is trained.

On a board the limits, not the data, decide how much of a network is left. Of two layouts that fit,
the one with more multiply-accumulates usually learns more (Lin et al., "MCUNet: tiny deep learning
on IoT devices", 2020, https://arxiv.org/abs/2007.10319, section 3.1, which compares whole search
spaces that way).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgecompress.searching.knobs import Knob, Value

# Values of a range of whole numbers that are looked at.
_LEVELS = 5
# Layouts that the search begins with.
FIRST = 5


@dataclass(frozen=True)
class Layout:
    """One layout, as large as it fits.

    Attributes:
        values: Knob -> value.
        macs: Multiply-accumulates of the largest file found that meets every limit.
    """

    values: Mapping[str, Value]
    macs: int


def grid(knobs: Sequence[Knob]) -> list[dict[str, Value]]:
    """Returns combinations of values: every choice, and a few of each range.

    Example:
        >>> grid([Knob("a", 0, low=0, high=8, whole=True), Knob("b", "x", ("x", "y"))])[:2]
        [{'a': 0, 'b': 'x'}, {'a': 0, 'b': 'y'}]
    """
    names = [knob.name for knob in knobs]
    return [
        dict(zip(names, row, strict=True))
        for row in itertools.product(*(_values(knob) for knob in knobs))
    ]


def _values(knob: Knob) -> list[Value]:
    if knob.choices:
        return list(knob.choices)
    spread = np.linspace(knob.low, knob.high, _LEVELS)
    if knob.whole:
        return list(dict.fromkeys(int(value) for value in np.round(spread)))
    return [float(value) for value in spread]


def begin_with(layouts: Iterable[Layout]) -> list[dict[str, Value]]:
    """Returns the values of those with the most multiply-accumulates, the most first."""
    ranked = sorted(layouts, key=lambda layout: -layout.macs)
    return [dict(layout.values) for layout in ranked[:FIRST]]
