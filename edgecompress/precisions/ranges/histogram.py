"""How often an activation holds which values."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

# Intervals: an eighth of an 8-bit step.
_BINS = 2048


@dataclass(eq=False)
class Histogram:
    """Counts of values in 2,048 equal intervals, and of zeros, which are not counted in them.

    Attributes:
        low: The smallest value.
        high: The largest value.

    Example:
        >>> counted = Histogram(0.0, 1.0)
        >>> counted.add(np.array([0.0, 0.5, 1.0]))
        >>> int(counted.result()[1].sum())
        3
    """

    low: float
    high: float
    _counts: np.ndarray = field(default_factory=lambda: np.zeros(_BINS, np.int64), repr=False)
    _zeros: int = 0

    def add(self, values: np.ndarray) -> None:
        """Counts values of any shape."""
        filled = values[values != 0]
        bounds = (self.low, max(self.high, self.low + 1e-30))
        self._counts += np.histogram(filled, _BINS, bounds)[0]
        self._zeros += values.size - filled.size

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the middles of the intervals and zero, ascending, and their counts."""
        middles = self.low + (np.arange(_BINS) + 0.5) * (self.high - self.low) / _BINS
        place = int(np.searchsorted(middles, 0.0))
        return (
            np.insert(middles, place, 0.0).astype(np.float32),
            np.insert(self._counts, place, self._zeros),
        )
