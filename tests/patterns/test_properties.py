"""What every pattern keeps for any kernel, scores and sparsity."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecompress.core.kernel_shape import KernelShape
from edgecompress.core.options import named
from edgecompress.patterns import PATTERNS
from edgecompress.patterns.base import Pattern

keras = pytest.importorskip("keras")

pytestmark = pytest.mark.slow

# No example database: the repository stays as it is.
_SETTINGS = settings(max_examples=12, deadline=None, database=None, derandomize=True)
# A pattern of whole layers has properties of several kernels: `test_layers.py`.
_every_pattern = pytest.mark.parametrize(
    "name", sorted(name for name in PATTERNS if not PATTERNS[name].compares_layers)
)


@st.composite
def _scores(draw: st.DrawFn) -> tuple[np.ndarray, KernelShape]:
    """Draws scores that all differ, of a matrix or a convolution, plain or transposed."""
    inputs, outputs = (4 * draw(st.integers(1, 6)) for _ in range(2))
    window = draw(st.sampled_from([(), (1,), (3,), (3, 3), (2, 1)]))
    axis = -1 if not window else draw(st.sampled_from([-1, -2]))
    shape = (*window, inputs, outputs)
    order = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).permutation(math.prod(shape))
    return (order + 1).astype("f4").reshape(shape), KernelShape(shape, axis)


def _mask(pattern: Pattern, scores: np.ndarray, sparsity: float, kernel: KernelShape) -> np.ndarray:
    (mask,) = pattern.masks([keras.ops.convert_to_tensor(scores)], sparsity, [kernel])
    return np.asarray(keras.ops.convert_to_numpy(mask))


def _units(pattern: Pattern, mask: np.ndarray, kernel: KernelShape) -> np.ndarray:
    return np.asarray(pattern.units(keras.ops.convert_to_tensor(mask.astype("f4")), kernel))


@_every_pattern
@given(_scores(), st.floats(0, 0.99))
@_SETTINGS
def test_the_share_is_the_asked_one_within_one_unit(
    name: str, drawn: tuple[np.ndarray, KernelShape], asked: float
) -> None:
    pattern, (scores, kernel) = named(PATTERNS, name, "pattern"), drawn
    if not pattern.fits(kernel):
        return
    asked = min(asked, pattern.highest_sparsity)
    mask = _mask(pattern, scores, asked, kernel)
    units = _units(pattern, mask, kernel)
    if name == "n-of-m":
        # Every group is a kernel of its own: n of its m stay.
        lost = (units == 0).sum(-1)
        assert lost.min() == lost.max() and abs(lost.max() - 4 * asked) <= 1
    else:
        assert abs((units == 0).sum() - asked * units.size) <= 1
    assert mask.any()


@_every_pattern
@given(_scores(), st.floats(0, 0.99))
@_SETTINGS
def test_units_stay_or_go_as_a_whole(
    name: str, drawn: tuple[np.ndarray, KernelShape], asked: float
) -> None:
    pattern, (scores, kernel) = named(PATTERNS, name, "pattern"), drawn
    if not pattern.fits(kernel):
        return
    mask = _mask(pattern, scores, min(asked, pattern.highest_sparsity), kernel)
    kept = keras.ops.convert_to_tensor(_units(pattern, mask, kernel) > 0)
    np.testing.assert_array_equal(pattern.expand(kept, kernel), mask)


@_every_pattern
@given(_scores(), st.floats(0, 0.9), st.floats(0, 0.9))
@_SETTINGS
def test_what_goes_at_a_lower_sparsity_goes_at_a_higher_one(
    name: str, drawn: tuple[np.ndarray, KernelShape], one: float, other: float
) -> None:
    pattern, (scores, kernel) = named(PATTERNS, name, "pattern"), drawn
    if not pattern.fits(kernel):
        return
    low, high = sorted(min(x, pattern.highest_sparsity) for x in (one, other))
    more = _mask(pattern, scores, low, kernel)
    assert not (_mask(pattern, scores, high, kernel) & ~more).any()
