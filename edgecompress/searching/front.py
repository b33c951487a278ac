"""The front: which candidates no other beats in everything, and how much they cover."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def dominated(points: np.ndarray) -> np.ndarray:
    """Returns which points another beats or equals in everything, and beats in something.

    Args:
        points: (points, objectives); less is better in each.

    Example:
        >>> dominated(np.array([[1.0, 2.0], [2.0, 1.0], [2.0, 2.0]])).tolist()
        [False, False, True]
    """
    points = np.asarray(points, np.float64)
    if not len(points):
        return np.zeros(0, bool)
    better = points[:, None, :] <= points[None, :, :]
    strictly = points[:, None, :] < points[None, :, :]
    return np.asarray((better.all(-1) & strictly.any(-1)).any(0))


def hypervolume(points: np.ndarray, reference: Sequence[float]) -> float:
    """Returns the volume between the points and a reference that is worse in everything.

    Args:
        points: (points, objectives); less is better in each.
        reference: The worst corner. Points beyond it count nothing.

    Example:
        >>> hypervolume(np.array([[1.0, 2.0], [2.0, 1.0]]), [3.0, 3.0])
        3.0
    """
    points, corner = np.asarray(points, np.float64), np.asarray(reference, np.float64)
    if points.size:
        points = points[(points < corner).all(1)]
    if not len(points):
        return 0.0
    if points.shape[1] == 1:
        return float(corner[0] - points[:, 0].min())
    # Slices along the last objective, each as deep as the distance to the next value.
    points = points[~dominated(points)]
    levels = [*np.unique(points[:, -1]), corner[-1]]
    total = 0.0
    for low, high in zip(levels[:-1], levels[1:], strict=True):
        inside = points[points[:, -1] <= low][:, :-1]
        total += (high - low) * hypervolume(inside, corner[:-1].tolist())
    return float(total)


def objectives(
    metric: float | None, higher_is_better: bool, costs: Mapping[str, float], rules: Sequence[str]
) -> list[float]:
    """Returns a candidate's objectives, less is better in each: the metric, then costs by rule."""
    worth = float("inf") if metric is None else (-metric if higher_is_better else metric)
    return [worth, *(costs.get(rule, float("inf")) for rule in rules)]
