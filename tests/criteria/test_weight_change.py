"""Change of weights against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgecompress.criteria.weight_change import WeightChange

keras = pytest.importorskip("keras")
ops = keras.ops


def test_scores_are_the_work_of_training() -> None:
    rng = np.random.default_rng(0)
    path = np.cumsum(rng.normal(size=(6, 4)).astype("f4"), axis=0)
    path[:, 2] = 1.5  # never moves
    seen: Any = {name: ops.zeros(4) for name in WeightChange.statistics}
    for step, weights in enumerate(path[:-1]):
        seen = WeightChange().observe(ops.array(weights), None, seen, float(step))
    found = ops.convert_to_numpy(WeightChange().score(ops.array(path[-1]), seen))
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = (np.diff(path, axis=0) ** 2).sum(0) * abs(path[-1] / (path[-1] - path[0]))
    expected[2] = 0
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_the_sum_is_the_fall_of_the_loss() -> None:
    """Gradient descent on a parabola: the loss fell by sum of dw^2 / rate, to first order."""
    rate, weight = 0.01, np.array([2.0], "f4")
    seen: Any = {name: ops.zeros(1) for name in WeightChange.statistics}
    for step in range(200):
        seen = WeightChange().observe(ops.array(weight), None, seen, float(step))
        weight = weight - rate * 2 * (weight - 0.5)
    travelled = float(seen["travelled"][0])
    assert travelled / rate == pytest.approx((2.0 - 0.5) ** 2, rel=0.05)
