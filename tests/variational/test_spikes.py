"""The multi-spike-and-slab prior against numerical integration."""

from __future__ import annotations

import numpy as np
import pytest
from keras import ops
from scipy.integrate import quad
from scipy.stats import norm

from edgecompress.variational.spikes import divergence, nearest

LEVEL = 0.2


def _found(mean: float, deviation: float, level: float = LEVEL) -> float:
    values = (np.float32(mean), np.float32(2 * np.log(deviation)), np.float32(level))
    return float(divergence(*map(ops.convert_to_tensor, values)))


def _integrated(mean: float, deviation: float, center: float) -> float:
    """E log|w - center| less the entropy of w, with 0 for pure noise around the center."""
    low, high = mean - 12 * deviation, mean + 12 * deviation
    # The logarithm has no value at the center: an end of both integrals.
    ends = [low, min(max(center, low), high), high]
    expected = sum(
        quad(lambda w: norm.pdf(w, mean, deviation) * np.log(abs(w - center)), a, b, limit=200)[0]
        for a, b in zip(ends[:-1], ends[1:], strict=True)
    )
    return expected - np.log(deviation) + (np.euler_gamma + np.log(2)) / 2


@pytest.mark.parametrize("deviation", [0.01, 0.05])
@pytest.mark.parametrize(
    ("mean", "center"),
    [(0.2, 0.2), (0.21, 0.2), (-0.2, -0.2), (0.0, 0.0), (0.9, 0.0), (-0.7, 0.0)],
)
def test_near_a_level_it_is_the_divergence_from_its_spike(
    mean: float, center: float, deviation: float
) -> None:
    """Elsewhere it is the one from zero; windows overlap by less than 6 %."""
    want = _integrated(mean, deviation, center)
    assert _found(mean, deviation) == pytest.approx(want, abs=0.25)


def test_weights_are_drawn_to_levels_and_away_from_between() -> None:
    between = _found(0.1, 0.01)
    assert between > _found(0.19, 0.01) > _found(0.2, 0.01)
    assert between > _found(0.01, 0.01) > _found(0.0, 0.01)
    assert _found(0.2, 0.01) < 0.1
    # Without a level there, the same weight pays.
    assert _found(0.2, 0.01, level=0.6) > 2


def test_it_is_the_same_in_any_unit() -> None:
    assert _found(0.13, 0.02) == pytest.approx(_found(1.3, 0.2, 10 * LEVEL), rel=1e-4)


def test_nearest_levels() -> None:
    weights = np.linspace(-0.5, 0.5, 101).astype("f4")
    levels = np.array([-LEVEL, 0, LEVEL], "f4")
    want = levels[np.abs(weights[:, None] - levels).argmin(1)]
    found = np.array(nearest(ops.convert_to_tensor(weights), ops.convert_to_tensor(levels[2])))
    # Halfway, both are as near.
    halfway = np.isclose(np.abs(weights), LEVEL / 2)
    np.testing.assert_array_equal(found[~halfway], want[~halfway])
    assert not np.signbit(found[found == 0]).any()
