"""Every operator with integer inference: a step from exact arithmetic, and on its output's grid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from keras import layers, ops

from edgecompress.core.composites import Part
from edgecompress.precisions.integer_arithmetic import grid_of, on_grid
from edgecompress.precisions.integer_operators import OPERATORS
from edgecompress.precisions.requantization import REQUANTIZATIONS

pytestmark = pytest.mark.slow

# What is computed in float, its inputs' shape and their number.
CASES: dict[str, tuple[Callable[[], Callable[..., Any]], tuple[int, ...], int]] = {
    "Add": (layers.Add, (2, 40), 2),
    "Subtract": (layers.Subtract, (2, 40), 2),
    "add": (lambda: Part("add"), (2, 40), 2),
    "subtract": (lambda: Part("subtract"), (2, 40), 2),
    "squared_difference": (lambda: Part("squared_difference"), (2, 40), 2),
    "matmul": (lambda: Part("matmul"), (2, 6, 6), 2),
    "product": (lambda: Part("product", {"equation": "abc,adc->abd"}), (2, 6, 7), 2),
    "mean": (lambda: Part("mean", {"axis": (1,), "keepdims": True}), (3, 7, 9), 1),
    "inverse_root": (lambda: Part("inverse_root", {"epsilon": 1e-3}), (2, 40), 1),
    "softmax": (lambda: Part("softmax"), (9, 7), 1),
    "leaky_relu": (lambda: Part("leaky_relu", {"negative_slope": 0.3}), (2, 40), 1),
    "Multiply": (layers.Multiply, (2, 40), 2),
    "multiply": (lambda: ops.multiply, (2, 40), 2),
    "AveragePooling1D": (lambda: layers.AveragePooling1D(3), (2, 9, 4), 1),
    "AveragePooling2D": (lambda: layers.AveragePooling2D(2), (2, 4, 4, 5), 1),
    "GlobalAveragePooling1D": (layers.GlobalAveragePooling1D, (2, 9, 20), 1),
    "GlobalAveragePooling2D": (layers.GlobalAveragePooling2D, (2, 4, 4, 20), 1),
    "bilinear": (lambda: Part("bilinear", {"size": (7, 9)}), (2, 4, 5, 3), 1),
    "UpSampling2D": (lambda: layers.UpSampling2D(2, interpolation="bilinear"), (2, 4, 5, 3), 1),
    "HardSilu": (lambda: layers.Activation("hard_silu"), (2, 40), 1),
    "hard_silu": (lambda: ops.hard_silu, (2, 40), 1),
}


# Factors of a few bits: 15 in hard-swish, 8 in leaky ReLU.
_ALLOWED = {"hardsilu": 1.6, "hard_silu": 1.6, "leaky_relu": 0.76, "squared_difference": 0.7}


@pytest.mark.parametrize("engine", REQUANTIZATIONS)
@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_it_is_a_step_from_exact_arithmetic(name: str, engine: str) -> None:
    make, shape, count = CASES[name]
    function = make()
    random = np.random.default_rng(3)
    sources = [grid_of(-3.0, 2.0 + i) for i in range(count)]
    values = [on_grid(random.normal(size=shape).astype("f4"), grid) for grid in sources]
    if name == "inverse_root":
        values = [on_grid(0.5 + ops.abs(values[0]), sources[0])]
    given = [values] if count > 1 and isinstance(function, layers.Layer) else values
    exact = np.asarray(function(*given), np.float64)
    pools = any(part in name for part in ("Pooling", "bilinear", "UpSampling"))
    target = sources[0] if pools else grid_of(float(exact.min()), float(exact.max()))
    found = np.asarray(OPERATORS[name](function, values, sources, target, REQUANTIZATIONS[engine]))
    step = float(target.scale)
    assert found.shape == exact.shape
    np.testing.assert_allclose(found / step, np.rint(found / step), atol=1e-3)
    assert np.abs(found - exact).max() <= step * _ALLOWED.get(name.lower(), 0.51)
    assert np.abs(found - exact).max() > 0
