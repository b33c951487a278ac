"""The learnt ranges of a model's activations, in one variable.

Each call of the model reads the ranges once and, in training, assigns all of them at its end: a
variable for each tap would make the step slower, and longer to trace.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from edgecompress.precisions.base import Precision
from edgecompress.precisions.fake_quantization import SMALLEST_RANGE, rectified_fake_quantize
from edgecompress.precisions.integer_arithmetic import Grid, grids_of
from edgecompress.precisions.uniform import Uniform

_UNSEEN = (np.inf, -np.inf)


class ActivationRanges:
    """Rounds the activations of taps and, in training, learns their ranges.

    Args:
        quantizer: The precision.
        names: Of the taps.
        start: Tap -> (minimum, maximum) to continue from; others start with the first batch's.
    """

    def __init__(
        self, quantizer: Precision, names: Sequence[str], start: Mapping[str, tuple[float, float]]
    ) -> None:
        """Creates the variable."""
        self._quantizer = quantizer
        self._positions = {name: position for position, name in enumerate(names)}
        # Ranges and rounding stay float32 under mixed precision.
        first = np.asarray([start.get(name, _UNSEEN) for name in names], "f4").reshape(-1, 2)
        self._variable = keras.Variable(
            first, dtype="float32", trainable=False, autocast=False, name="activation_ranges"
        )
        # During a call: what `averaging` returns (start, its maximum, share), the ranges in effect,
        # and the grids.
        self._old: list[tuple[Any, Any, Any]] = []
        self._updated: dict[str, Any] = {}
        self._grids: list[Grid] = []

    def __contains__(self, name: str) -> bool:
        """Returns whether a tap's range is learnt."""
        return name in self._positions

    def learnt(self) -> dict[str, tuple[float, float]]:
        """Returns the ranges that have seen data; NaN where it is."""
        values = ops.convert_to_numpy(self._variable.value)
        found = {n: (float(values[i][0]), float(values[i][1])) for n, i in self._positions.items()}
        return {name: bounds for name, bounds in found.items() if bounds != _UNSEEN}

    @contextlib.contextmanager
    def learning(self) -> Iterator[None]:
        """Learns from the activations that are rounded inside: a call of the model in training."""
        if not self._positions:
            yield
            return
        old = self._variable.value
        start, share = self._quantizer.averaging(old)
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
                self._variable.assign(ops.stack(rows))
        finally:
            self._old, self._updated = [], {}

    @contextlib.contextmanager
    def settled(self, integer: bool) -> Iterator[None]:
        """Reads the ranges once for a call of the model in inference; all have seen data.

        Args:
            integer: Whether it computes with integers.
        """
        if integer and self._positions:
            self._grids = grids_of(self._variable.value)
        elif self._positions:
            rows = ops.unstack(self._variable.value)
            self._updated = dict(zip(self._positions, rows, strict=True))
        try:
            yield
        finally:
            self._grids, self._updated = [], {}

    def grid(self, name: str) -> Grid:
        """Returns the grid of a tap, inside `settled`."""
        return self._grids[self._positions[name]]

    def rounded(self, name: str, values: Any) -> Any:
        """Returns activations as the int8 model holds them; inside `learning`, learns from them."""
        if not self._old:
            return self.frozen(name, values)
        return self._fake_quantize(values, self._learn(name, self._quantizer.batch_range(values)))

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
        return rectified_fake_quantize(values, highest, self._quantizer.activation_bits)

    def frozen(self, name: str, values: Any) -> Any:
        """Returns the rounded values without learning; unchanged before the first batch."""
        if name in self._updated:
            return self._fake_quantize(values, self._updated[name])
        low, high = ops.unstack(self._variable.value[self._positions[name]])
        seen = low <= high
        rounded = self._quantizer.fake_quantize(
            values, ops.where(seen, low, 0.0), ops.where(seen, high, 0.0)
        )
        return ops.where(seen, rounded, values)

    def _learn(self, name: str, extremes: Any) -> Any:
        start, _, share = self._old[self._positions[name]]
        self._updated[name] = start + share * (extremes - start)
        return self._updated[name]

    def _fake_quantize(self, values: Any, bounds: Any) -> Any:
        return self._quantizer.fake_quantize(values, *ops.unstack(bounds))
