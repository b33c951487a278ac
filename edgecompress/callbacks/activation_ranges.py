"""The learnt ranges of a model's activations, in one variable.

Each call of the model reads the ranges once and, in training, assigns all of them at its end: a
variable for each tap would make the step slower, and longer to trace.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from edgecompress.callbacks.learnt_bounds import LearntBounds, ranges_allowed
from edgecompress.core.composites import MASKED
from edgecompress.precisions.base import Precision
from edgecompress.precisions.fake_quantization import (
    SMALLEST_RANGE,
    passing,
    rectified_fake_quantize,
)
from edgecompress.precisions.integer_arithmetic import Grid, grids_of
from edgecompress.precisions.ranges.learnt import Learnt, learnt_fake_quantize
from edgecompress.precisions.uniform import Uniform

_UNSEEN = (np.inf, -np.inf)
# What `LearntBounds` calls the ranges.
_ROWS = "activation ranges"


class ActivationRanges:
    """Rounds the activations of taps and, in training, learns their ranges.

    Args:
        quantizer: The precision.
        names: Of the taps.
        start: Tap -> (minimum, maximum) to continue from; others start with the first batch's.
        bounds: Trains the ranges, if the precision wants that. Defaults to nothing.
        observed: Names of ranges that nothing is rounded to. Defaults to none.
        lowered: Tap -> how much further down than its values its range in the file reaches.
            Defaults to none.

    Attributes:
        follows_extremes: Whether ranges depend on the extremes of the batches alone.
    """

    def __init__(
        self,
        quantizer: Precision,
        names: Sequence[str],
        start: Mapping[str, tuple[float, float]],
        bounds: LearntBounds | None = None,
        observed: Collection[str] = (),
        lowered: Mapping[str, float] | None = None,
    ) -> None:
        """Creates the variable."""
        self._lowered = dict(lowered or {})
        self._quantizer = quantizer
        self._positions = {name: position for position, name in enumerate(names)}
        # Ranges and rounding stay float32 under mixed precision.
        first = np.asarray([start.get(name, _UNSEEN) for name in names], "f4").reshape(-1, 2)
        self.variable = keras.Variable(
            first, dtype="float32", trainable=False, autocast=False, name="activation_ranges"
        )
        method = quantizer.activation_method if isinstance(quantizer, Uniform) else None
        self._method = method if isinstance(method, Learnt) and bounds is not None else None
        self._bounds = bounds
        self.follows_extremes = method is not None and method.extremes_only
        # No gradient reaches the model's inputs; those of masked scores end below the scores.
        self._by_gradient = [
            self._method is not None
            and not name.startswith("input:")
            and name not in observed
            and not self._lowered.get(name)
            for name in names
        ]
        if bounds is not None and any(self._by_gradient):
            bounds.add(_ROWS, self.variable, ranges_allowed(self._by_gradient))
        # During a call: what `averaging` returns (start, its maximum, share), the ranges in effect,
        # and the grids.
        self._old: list[tuple[Any, Any, Any]] = []
        self._updated: dict[str, Any] = {}
        self._grids: list[Grid] = []
        self._limits: list[Any] = []

    def __contains__(self, name: str) -> bool:
        """Returns whether a tap's range is learnt."""
        return name in self._positions

    def learnt(self) -> dict[str, tuple[float, float]]:
        """Returns the ranges that have seen data; NaN where it is."""
        values = ops.convert_to_numpy(self.variable.value)
        found = {n: (float(values[i][0]), float(values[i][1])) for n, i in self._positions.items()}
        return {name: bounds for name, bounds in found.items() if bounds != _UNSEEN}

    @contextlib.contextmanager
    def learning(self) -> Iterator[None]:
        """Learns from the activations that are rounded inside: a call of the model in training."""
        if not self._positions:
            yield
            return
        old = self.variable.value
        start, share = self._quantizer.averaging(old)
        if any(self._by_gradient):
            learnt_rows = ops.convert_to_tensor([[learnt] for learnt in self._by_gradient])
            share = ops.where(ops.logical_and(learnt_rows, share < 1), 0.0, share)
        _, highest = ops.unstack(start, axis=1)
        parts = (start, highest, ops.reshape(share, [-1]))
        self._old = list(zip(*map(ops.unstack, parts), strict=True))
        try:
            yield
            if self._updated:
                rows = [
                    self._updated.get(name, old[position])
                    for name, position in self._positions.items()
                ]
                self.variable.assign(ops.stack(rows))
        finally:
            self._old, self._updated = [], {}

    @contextlib.contextmanager
    def settled(self, integer: bool) -> Iterator[None]:
        """Reads the ranges once for a call of the model in inference; all have seen data.

        Args:
            integer: Whether it computes with integers.
        """
        if integer and self._positions:
            self._grids = grids_of(self._reaching(self.variable.value))
            self._limits = ops.unstack(ops.max(ops.abs(self.variable.value), axis=1))
        elif self._positions:
            rows = ops.unstack(self.variable.value)
            self._updated = dict(zip(self._positions, rows, strict=True))
        try:
            yield
        finally:
            self._grids, self._limits, self._updated = [], [], {}

    def largest(self, name: str) -> Any:
        """Returns the largest absolute value of a range, inside `settled` with integers."""
        return self._limits[self._positions[name]]

    def observe(self, name: str, values: Any) -> None:
        """Learns a range that nothing is rounded to, inside `learning`."""
        if self._old:
            self._learn(name, self._quantizer.batch_range(values))

    def _reaching(self, rows: Any) -> Any:
        """Returns all ranges as the file has them."""
        if not any(self._lowered.values()):
            return rows
        distances = np.array([[self._lowered.get(name, 0.0)] for name in self._positions], "f4")
        low, high = ops.split(rows, 2, axis=1)
        low = ops.where(distances > 0, ops.minimum(low, 0.0) - distances, low)
        return ops.concatenate([low, high], axis=1)

    def _lower(self, name: str, bounds: Any) -> Any:
        """Returns a range as the file has it."""
        if not (distance := self._lowered.get(name, 0.0)):
            return bounds
        low, high = ops.unstack(bounds)
        return ops.stack([ops.minimum(low, 0.0) - distance, high])

    def grid(self, name: str) -> Grid:
        """Returns the grid of a tap, inside `settled`."""
        return self._grids[self._positions[name]]

    def rounded(self, name: str, values: Any, seen: Any = None) -> Any:
        """Returns activations as the int8 model holds them; inside `learning`, learns from them.

        Args:
            name: The tap.
            values: The activations.
            seen: What the range is learnt from. Defaults to the activations.
        """
        if not self._old:
            return self.frozen(name, values)
        seen = values if seen is None else seen
        if self._by_gradient[self._positions[name]]:
            return self._trained(name, values, seen)
        if self._lowered.get(name):
            # Zero is part of every range.
            seen = ops.where(seen > MASKED, seen, ops.zeros_like(seen))
        found = self._learn(name, self._quantizer.batch_range(seen))
        return self._fake_quantize(name, values, found)

    def _trained(self, name: str, values: Any, seen: Any) -> Any:
        """Returns the rounded activations of a tap whose range has gradients."""
        method, bounds, position = self._method, self._bounds, self._positions[name]
        if method is None or bounds is None:
            raise TypeError(f"The range of {name!r} is not learnt by gradients.")
        start, _, share = self._old[position]
        first = ops.cond(share > 0, lambda: self._quantizer.batch_range(seen), lambda: start)
        after = len(self._positions) - position - 1

        def found(gradient: Any) -> None:
            padded = ops.pad(ops.expand_dims(gradient, 0), [[position, after], [0, 0]])
            bounds.found(_ROWS, padded)

        bits = self._quantizer.activation_bits
        return learnt_fake_quantize(values, self._learn(name, first), bits, method, found)

    def rectified(self, name: str, values: Any, maximum: float) -> Any:
        """Returns ReLU's output as the int8 model holds it, and learns its range.

        Args:
            name: The tap.
            values: What ReLU reads.
            maximum: Of ReLU: infinity or 6.
        """
        if not isinstance(self._quantizer, Uniform):
            raise TypeError(f"{self._quantizer.name} does not clip at 0 as ReLU does.")
        # Above 0, so that rounding needs no guard against an empty range.
        highest = ops.cast(ops.max(ops.stop_gradient(values)), "float32")
        highest = ops.maximum(highest, SMALLEST_RANGE)
        if maximum != np.inf:
            highest = ops.minimum(highest, maximum)
        # One number costs less than a range.
        start, share = self._old[self._positions[name]][1:]
        highest = start + share * (highest - start)
        self._updated[name] = ops.stack([0.0, highest])
        return rectified_fake_quantize(values, highest, self._quantizer.activation_bits, maximum)

    def frozen(self, name: str, values: Any) -> Any:
        """Returns the rounded values without learning; unchanged before the first batch."""
        if name in self._updated:
            return self._fake_quantize(name, values, self._updated[name])
        low, high = ops.unstack(self.variable.value[self._positions[name]])
        seen = low <= high
        low, high = ops.unstack(self._lower(name, ops.stack([low, high])))
        rounded = self._quantizer.fake_quantize(
            values, ops.where(seen, low, 0.0), ops.where(seen, high, 0.0)
        )
        return ops.where(seen, rounded, values)

    def _learn(self, name: str, extremes: Any) -> Any:
        start, _, share = self._old[self._positions[name]]
        self._updated[name] = start + share * (extremes - start)
        return self._updated[name]

    def _fake_quantize(self, name: str, values: Any, bounds: Any) -> Any:
        low, high = ops.unstack(ops.stop_gradient(self._lower(name, bounds)))
        quantize = functools.partial(self._quantizer.fake_quantize, low=low, high=high)
        # Masked scores are far below their range.
        passes = self.follows_extremes and not self._lowered.get(name)
        return passing(quantize, values) if passes else quantize(values)
