"""The random baseline: reproducible, without preference, other numbers for every layer."""

from __future__ import annotations

import numpy as np
import pytest

from edgecompress.core.kernel_shape import KernelShape
from edgecompress.criteria.random import Random

keras = pytest.importorskip("keras")


def test_numbers_depend_on_the_seed_and_the_layer() -> None:
    kernel = KernelShape((40, 50))
    first = Random().start("conv", kernel)["drawn"]
    np.testing.assert_array_equal(first, Random().start("conv", kernel)["drawn"])
    for other in (Random(1).start("conv", kernel), Random().start("conv_1", kernel)):
        assert abs(np.corrcoef(first.ravel(), other["drawn"].ravel())[0, 1]) < 0.1


def test_it_has_no_preference() -> None:
    drawn = Random().start("conv", KernelShape((100, 100)))["drawn"]
    assert drawn.min() >= 0 and drawn.max() < 1
    np.testing.assert_allclose(np.quantile(drawn, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.02)
