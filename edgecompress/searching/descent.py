"""Which widths a model keeps under its limits: a descent that asks for exact costs at every step.

Pure: widths in, costs out, nothing of Keras. First the channels go that matter least for what they
really save; then, as a peak of memory or a sum of times may leave room elsewhere, those come back
that matter most and still fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# What a channel saves that lowers no limited cost by itself, as where two operators share the peak:
# its part of the cost, far below any real saving.
_SHARED = 1e-3
_TINY = 1e-12
# Widths of a class that the descent tries on its way to 0; what is too little comes back in steps.
_LEVELS = 16


@dataclass(frozen=True)
class Widths:
    """What can be chosen.

    Attributes:
        importance: For each width class, the importance of its channels, ascending.
        parts: For each width class, the share of the limited costs that one of its channels makes
            up, all costs together.
        step: Widths stay multiples of it, or whole.
    """

    importance: Sequence[np.ndarray]
    parts: np.ndarray
    step: int = 1

    @property
    def totals(self) -> np.ndarray:
        """Channels of each class."""
        return np.array([len(own) for own in self.importance])

    def narrower(self, width: int, total: int) -> int:
        """Returns a smaller width, or the same if there is none."""
        stride = self.step * max(1, round(total / _LEVELS / self.step))
        below = (math.ceil((width - stride) / self.step)) * self.step
        return min(width, max(self.step, below))

    def wider(self, width: int, total: int) -> int:
        """Returns the next larger width."""
        return min(total, (width // self.step + 1) * self.step)

    def lost(self, at: int, narrow: int, wide: int) -> float:
        """Returns the importance of the channels between two widths of a class."""
        own = self.importance[at]
        return float(own[len(own) - wide : len(own) - narrow].sum())


def descend(
    widths: Widths,
    excess: Callable[[np.ndarray], Mapping[str, float]],
    weights: Mapping[str, float] | None = None,
) -> np.ndarray:
    """Returns the widths to keep, (width classes,); if no widths meet all limits, the smallest.

    In each step the class loses its least important channels for which this is least:

        importance that goes / sum over the exceeded limits of weight * excess that goes

    Args:
        widths: What can be chosen.
        excess: Returns for widths how far each limit is exceeded, as a share of it; 0 or less
            where it is met.
        weights: Limit -> how much its excess counts. Defaults to 1 for each.

    Example:
        >>> classes = Widths([np.array([1.0, 2.0, 3.0]), np.array([9.0, 9.0])], np.ones(2))
        >>> descend(classes, lambda w: {"macs": float(w[0] * w[1]) / 4 - 1})
        array([2, 2])
    """
    weights = weights or {}
    kept = widths.totals.copy()
    least_kept = np.minimum(kept, widths.step)
    if any(value > 0 for value in excess(least_kept).values()):
        return least_kept
    now = excess(kept)
    while any(value > 0 for value in now.values()):
        best, least, after = -1, math.inf, now
        for at in range(len(kept)):
            narrow = widths.narrower(int(kept[at]), int(widths.totals[at]))
            if narrow == kept[at]:
                continue
            tried = kept.copy()
            tried[at] = narrow
            found = excess(tried)
            saved = sum(
                weights.get(rule, 1.0) * max(0.0, value - max(0.0, found[rule]))
                for rule, value in now.items()
                if value > 0
            )
            saved += _SHARED * widths.parts[at] * float(kept[at] - narrow)
            ratio = widths.lost(at, narrow, int(kept[at])) / max(saved, _TINY)
            if ratio < least:
                best, least, after = at, ratio, found
        if best < 0:
            return kept
        kept[best] = widths.narrower(int(kept[best]), int(widths.totals[best]))
        now = after
    return _regrown(widths, excess, kept)


def cut_at_once(widths: Widths, excess: Callable[[np.ndarray], Mapping[str, float]]) -> np.ndarray:
    """Returns the widths to keep like `descend`, asking for few costs: a dozen, not hundreds.

    All channels are ranked once, by their importance for their part of the costs; by bisection,
    the fewest go with which every limit is met.

    Args:
        widths: What can be chosen.
        excess: As in `descend`.

    Example:
        >>> classes = Widths([np.array([1.0, 2.0, 3.0]), np.array([9.0, 9.0])], np.ones(2))
        >>> cut_at_once(classes, lambda w: {"macs": float(w[0] * w[1]) / 4 - 1})
        array([2, 2])
    """
    steps: list[tuple[float, int, int]] = []
    for at, total in enumerate(widths.totals):
        width, worst = int(total), 0.0
        while (narrow := widths.narrower(width, int(total))) < width:
            ratio = widths.lost(at, narrow, width) / max(
                _TINY, float(widths.parts[at] * (width - narrow))
            )
            # What is narrower goes later.
            worst = max(worst, ratio)
            steps.append((worst, at, narrow))
            width = narrow
    steps.sort(key=lambda step: step[0])

    def after(count: int) -> np.ndarray:
        kept = widths.totals.copy()
        for _, at, narrow in steps[:count]:
            kept[at] = narrow
        return kept

    def fits(count: int) -> bool:
        return all(value <= 0 for value in excess(after(count)).values())

    low, high = 0, len(steps)
    if fits(low):
        return after(low)
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return after(high)


def _regrown(
    widths: Widths, excess: Callable[[np.ndarray], Mapping[str, float]], kept: np.ndarray
) -> np.ndarray:
    """Returns the widths with the most important channels back that still fit."""
    totals = widths.totals
    open_classes = set(range(len(kept)))
    while open_classes:
        gains = {}
        for at in sorted(open_classes):
            wide = widths.wider(int(kept[at]), int(totals[at]))
            tried = kept.copy()
            tried[at] = wide
            # A class that did not fit will not fit with the others wider.
            if wide == kept[at] or any(value > 0 for value in excess(tried).values()):
                open_classes.discard(at)
            else:
                gains[at] = widths.lost(at, int(kept[at]), wide)
        if gains:
            best = max(gains, key=lambda at: gains[at])
            kept[best] = widths.wider(int(kept[best]), int(totals[best]))
    return kept
