"""Layouts: which depths and resolutions a search begins with.

Under tight limits the layout decides how much of a network is left, and how well that learns. What
fits holds more or fewer multiply-accumulates and weights; of what holds most, a moment of training
tells which gets furthest. (Lin et al., "MCUNet: tiny deep learning on IoT devices", 2020,
https://arxiv.org/abs/2007.10319, section 3.1, choose search spaces by multiply-accumulates alone;
by these, deep and thin networks win that learn slowly.)
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgecompress.core.errors import EdgeCompressError
from edgecompress.searching.knobs import Knob, Value
from edgecompress.searching.results import Beginning
from edgecompress.searching.space import Space
from edgecompress.searching.structures import Structure
from edgecompress.searching.techniques import TECHNIQUES, own_values
from edgecompress.searching.techniques.channels import Channels

# Values of a range of whole numbers that are looked at.
_LEVELS = 5
# Layouts that the search begins with.
FIRST = 5
# Layouts that are trained for a moment, at most.
MOST_TRAINED = 10
# What tells channels apart without a look at data.
_CRITERION = "magnitude"


@dataclass(frozen=True)
class Layout:
    """One layout, as large as it fits.

    Attributes:
        values: Knob -> value.
        macs: Multiply-accumulates of the largest file found that meets every limit.
        parameters: Its weights.
        loss: After a moment of training; infinite without one.
    """

    values: Mapping[str, Value]
    macs: int
    parameters: int
    loss: float = math.inf


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


def largest(layouts: Iterable[Layout], count: int) -> list[Layout]:
    """Returns those that hold most, by the product of multiply-accumulates and weights."""
    return sorted(layouts, key=lambda layout: -layout.macs * layout.parameters)[:count]


def best(layouts: Iterable[Layout]) -> list[Layout]:
    """Returns those to begin with: the ones that learn fastest, those that hold most among equals.

    Example:
        >>> [x.loss for x in best([Layout({}, 9, 9, 0.8), Layout({}, 1, 1, 0.5)])]
        [0.5, 0.8]
    """
    layouts = list(layouts)
    return sorted(largest(layouts, len(layouts)), key=lambda layout: layout.loss)[:FIRST]


def begin_with(
    space: Space,
    knobs: Sequence[Knob],
    train: Callable[[Any], float],
    most: int = MOST_TRAINED,
    seconds: float | None = None,
) -> Beginning:
    """Returns where a search begins.

    Without limits, or without techniques that change depth or resolution, it begins with the
    defaults; with nowhere, if no layout that was compared can meet the limits.

    Args:
        space: What the model can become.
        knobs: All that can be chosen.
        train: Trains a model for a moment and returns its loss.
        most: Layouts to train.
        seconds: For finding out what fits, and for training. Defaults to no limit.
    """
    defaults = {knob.name: knob.default for knob in knobs}
    laid_out = [knob for knob in knobs if TECHNIQUES[knob.name.split(".")[0]].lays_out]
    if not laid_out or not space.targets.limited or space.channels is None:
        return Beginning((defaults,))
    compared = _Compared(space, space.channels, defaults, math.inf if seconds is None else seconds)
    rows = grid(laid_out)
    # With too little time for all, some of every kind.
    order = np.random.default_rng(0).permutation(len(rows))
    found, notes = compared.fitting([rows[at] for at in order])
    due = largest(found, most)
    if len(due) > 1:
        trained = compared.trained(due, train)
        notes.append(
            f"{len(trained)} of them were trained for a moment; the search begins with those whose "
            "loss is lowest."
        )
        found = trained or found
    return Beginning(tuple({**defaults, **layout.values} for layout in best(found)), tuple(notes))


@dataclass(frozen=True)
class _Compared:
    """Compares layouts, each as large as it fits, for a while."""

    space: Space
    channels: Channels
    defaults: Mapping[str, Value]
    seconds: float

    def fitting(self, rows: Sequence[Mapping[str, Value]]) -> tuple[list[Layout], list[str]]:
        """Returns those that can meet the limits, and notes."""
        found, done, until = list[Layout](), 0, time.monotonic() + self.seconds
        for row in rows:
            if time.monotonic() > until:
                break
            done += 1
            # What cannot be built or converted says why when it becomes a candidate.
            with contextlib.suppress(EdgeCompressError):
                if self.space.least({**self.defaults, **row}).fits():
                    found += self._layout(row)
        late = "" if done == len(rows) else f"; there was no time for {len(rows) - done} more"
        return found, [
            f"{len(found)} of {done} layouts (depth and resolution) can meet the limits{late}."
        ]

    def trained(self, layouts: Sequence[Layout], train: Callable[[Any], float]) -> list[Layout]:
        """Returns layouts with their losses, as many as there is time for."""
        found, until = list[Layout](), time.monotonic() + self.seconds
        for layout in layouts:
            if time.monotonic() > until:
                break
            with contextlib.suppress(EdgeCompressError):
                structure, widths = self._cut(layout.values)
                importance = structure.importance(_CRITERION)[0]
                model = structure.narrowed(structure.screen.chosen(widths, importance))
                found.append(dataclasses.replace(layout, loss=train(model)))
        return found

    def _layout(self, row: Mapping[str, Value]) -> list[Layout]:
        structure, widths = self._cut(row)
        if not structure.costs(widths).fits():
            return []
        return [Layout(row, *structure.screen.size(widths))]

    def _cut(self, row: Mapping[str, Value]) -> tuple[Structure, np.ndarray]:
        values = {**self.defaults, **row}
        structure, own = self.space.structure(values), own_values(values, "channels")
        # Which layers are important is not known yet of a network that has still to learn.
        even = np.ones(len(structure.screen.groups.groups))
        return structure, self.channels.widths(own, structure, even, self.channels.fill(own))
