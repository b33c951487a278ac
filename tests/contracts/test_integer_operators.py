"""Every operator with integer inference: a step from exact arithmetic, and on its output's grid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from keras import layers, ops

from edgecompress.precisions.integer_arithmetic import grid_of, on_grid
from edgecompress.precisions.integer_operators import OPERATORS
from edgecompress.precisions.requantization import REQUANTIZATIONS

pytestmark = pytest.mark.slow

# What is computed in float, its inputs' shape and their number.
CASES: dict[str, tuple[Callable[[], Callable[..., Any]], tuple[int, ...], int]] = {
    "Add": (layers.Add, (2, 40), 2),
    "Subtract": (layers.Subtract, (2, 40), 2),
    "Multiply": (layers.Multiply, (2, 40), 2),
    "multiply": (lambda: ops.multiply, (2, 40), 2),
    "AveragePooling1D": (lambda: layers.AveragePooling1D(3), (2, 9, 4), 1),
    "AveragePooling2D": (lambda: layers.AveragePooling2D(2), (2, 4, 4, 5), 1),
    "GlobalAveragePooling1D": (layers.GlobalAveragePooling1D, (2, 9, 20), 1),
    "GlobalAveragePooling2D": (layers.GlobalAveragePooling2D, (2, 4, 4, 20), 1),
    "HardSilu": (lambda: layers.Activation("hard_silu"), (2, 40), 1),
    "hard_silu": (lambda: ops.hard_silu, (2, 40), 1),
}


@pytest.mark.parametrize("engine", REQUANTIZATIONS)
@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_it_is_a_step_from_exact_arithmetic(name: str, engine: str) -> None:
    make, shape, count = CASES[name]
    function = make()
    random = np.random.default_rng(3)
    sources = [grid_of(-3.0, 2.0 + i) for i in range(count)]
    values = [on_grid(random.normal(size=shape).astype("f4"), grid) for grid in sources]
    given = [values] if count > 1 and isinstance(function, layers.Layer) else values
    exact = np.asarray(function(*given), np.float64)
    pools = "Pooling" in name
    target = sources[0] if pools else grid_of(float(exact.min()), float(exact.max()))
    found = np.asarray(OPERATORS[name](function, values, sources, target, REQUANTIZATIONS[engine]))
    step = float(target.scale)
    assert found.shape == exact.shape
    np.testing.assert_allclose(found / step, np.rint(found / step), atol=1e-3)
    # Fixed-point factors of 15 bits cost hard-swish up to a step more.
    assert np.abs(found - exact).max() <= step * (1.6 if name.lower().startswith("hard") else 0.51)
    assert np.abs(found - exact).max() > 0
