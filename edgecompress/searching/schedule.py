"""Which training is due: short before long (asynchronous successive halving), then the best longer.

Pure: what has been tried in, what to do next out.

Li et al., "A system for massively parallel hyperparameter tuning" (2020,
https://arxiv.org/abs/1810.05934), algorithm 2: a candidate is promoted to the next length when it
is among the best 1/factor of those of its own length. The caller says which of them is the best.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

FACTOR = 3
# Share of the time or of the trials after which the best are trained longer before any new
# candidate is proposed.
CLOSING = 0.6


@dataclass(frozen=True)
class Entry:
    """A candidate at one length of training.

    Attributes:
        trial: Its number in the study.
        key: What it has in common with the same candidate at other lengths.
        epochs: The length.
        score: How good it is, larger is better; None while it is trained, and if it is unfit.
        here: Whether this worker may train it longer. Another that has it, and is at work, would go
            on where this one had to begin anew.
    """

    trial: int
    key: str
    epochs: int
    score: float | None
    here: bool = True


def lengths(epochs: int) -> tuple[int, ...]:
    """Returns the lengths of training, the shortest first.

    Example:
        >>> lengths(18), lengths(2)
        ((2, 6, 18), (1, 2))
    """
    found = {max(1, epochs // FACTOR**power) for power in range(3)}
    return tuple(sorted(found))


def _best(entries: Sequence[Entry]) -> Entry:
    return max(entries, key=lambda entry: entry.score or 0.0)


def promotion(
    entries: Sequence[Entry],
    steps: Sequence[int],
    closing: bool,
    beyond: bool = False,
    prefer: Callable[[Sequence[Entry]], Entry] = _best,
) -> tuple[Entry, int] | None:
    """Returns the candidate to train longer and for how many epochs; None if none is due.

    Args:
        entries: What has been tried, and is being tried.
        steps: The lengths, the shortest first.
        closing: Whether the end is near, so that the best go up even if they are few.
        beyond: Whether the best may be trained for longer than the longest length, as long as
            that makes them better.
        prefer: Returns the best of some entries with a score, of one length or beyond the longest.
            Defaults to the one with the highest.

    Example:
        >>> tried = [Entry(0, "a", 1, 0.8), Entry(1, "b", 1, 0.9), Entry(2, "c", 1, 0.7)]
        >>> promotion(tried, (1, 3), closing=False)
        (Entry(trial=1, key='b', epochs=1, score=0.9, here=True), 3)
    """
    longest: dict[str, int] = {}
    for entry in entries:
        longest[entry.key] = max(entry.epochs, longest.get(entry.key, 0))
    for step, target in reversed(list(zip(steps[:-1], steps[1:], strict=True))):
        reached = [entry for entry in entries if entry.epochs == step and entry.score is not None]
        promoted = sum(longest[entry.key] > step for entry in reached)
        allowed = len(reached) // FACTOR
        if closing:
            allowed = max(allowed, min(1, len(reached)))
        waiting = [entry for entry in reached if longest[entry.key] == step]
        best = _best_here(waiting, closing, prefer) if promoted < allowed else None
        if best is not None:
            return best, target
    if not (closing and beyond):
        return None
    done = [entry for entry in entries if entry.score is not None and entry.epochs >= steps[-1]]
    done = [entry for entry in done if longest[entry.key] == entry.epochs]
    done = [entry for entry in done if _has_gained(entry, entries)]
    best = _best_here(done, closing, prefer)
    return None if best is None else (best, 2 * best.epochs)


def _best_here(
    entries: Sequence[Entry], closing: bool, prefer: Callable[[Sequence[Entry]], Entry]
) -> Entry | None:
    """Returns the best if this worker may train it; near the end, the best of those it may."""
    if not entries:
        return None
    best = prefer(entries)
    if best.here:
        return best
    own = [entry for entry in entries if entry.here]
    return prefer(own) if closing and own else None


def _has_gained(entry: Entry, entries: Sequence[Entry]) -> bool:
    """Returns whether a candidate is better than after each shorter training."""
    before = [
        other.score
        for other in entries
        if other.key == entry.key and other.epochs < entry.epochs and other.score is not None
    ]
    return all((entry.score or 0.0) > score for score in before)
