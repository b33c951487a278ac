"""Filters, input channels, kernel shapes and kernels against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from edgecompress.core.errors import EdgeCompressError
from edgecompress.core.kernel_shape import KernelShape
from edgecompress.core.options import named
from edgecompress.patterns import PATTERNS

keras = pytest.importorskip("keras")

_CONV = np.random.default_rng(0).uniform(0.1, 1, size=(3, 2, 6, 8)).astype("f4")
# Pattern -> axes over which a unit's scores are summed: convolution, transposed convolution.
_OTHERS = {
    "filters": ((0, 1, 2), (0, 1, 3)),
    "input-channels": ((0, 1, 3), (0, 1, 2)),
    "kernel-shapes": ((3,), (2,)),
    "kernels": ((0, 1), (0, 1)),
}
_NORMS = {
    "l2": lambda x, axes: np.sqrt((x**2).sum(axes, keepdims=True)),
    "l1": lambda x, axes: x.sum(axes, keepdims=True),
    "max": lambda x, axes: x.max(axes, keepdims=True),
}


@pytest.mark.parametrize("norm", _NORMS)
@pytest.mark.parametrize("name", _OTHERS)
@pytest.mark.parametrize("transposed", [False, True])
def test_the_strongest_units_stay(name: str, norm: str, transposed: bool) -> None:
    pattern = named(PATTERNS, f"{name}:norm={norm}", "pattern")
    kernel = KernelShape(_CONV.shape, -2 if transposed else -1)
    (mask,) = pattern.masks([keras.ops.array(_CONV)], 0.5, [kernel])
    norms = _NORMS[norm](_CONV.astype("f8"), _OTHERS[name][transposed])
    strongest = norms >= np.sort(norms.ravel())[norms.size // 2]
    np.testing.assert_array_equal(mask, np.broadcast_to(strongest, _CONV.shape))


@pytest.mark.parametrize("name", _OTHERS)
def test_kernels_without_separate_filters_do_not_fit(name: str) -> None:
    pattern = named(PATTERNS, name, "pattern")
    assert not pattern.fits(KernelShape((3, 3, 4, 8), None))
    assert not pattern.fits(KernelShape((1, 1)))


def test_an_unknown_norm_is_refused() -> None:
    with pytest.raises(EdgeCompressError, match="l1"):
        named(PATTERNS, "filters:norm=l3", "pattern")
