"""Layer-adaptive magnitude against its formula, and what it leaves of layers of unlike scales."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import edgecompress as ec
from edgecompress.criteria.layer_adaptive import LayerAdaptive


def _expected(weights: np.ndarray) -> np.ndarray:
    squares = np.square(weights.astype(np.float64)).ravel()
    rest = np.array([squares[squares >= square].sum() for square in squares])
    return np.sqrt(squares / np.where(rest > 0, rest, 1)).reshape(weights.shape)


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e18])
def test_scores_are_those_of_the_formula(scale: float) -> None:
    weights = np.random.default_rng(0).normal(size=(3, 3, 4, 8)).astype("float32")
    weights[0, 0] = 0
    found = np.array(LayerAdaptive().score(keras.ops.array(weights * np.float32(scale)), {}))
    np.testing.assert_allclose(found, _expected(weights), rtol=1e-5)


def test_a_kernel_of_zeros_scores_zero() -> None:
    assert not np.array(LayerAdaptive().score(keras.ops.zeros((4, 5)), {})).any()


@pytest.mark.parametrize("criterion", ["layer-adaptive", "magnitude"])
def test_layers_of_small_weights_are_not_emptied(criterion: str) -> None:
    """One threshold for two layers, of which one has weights a hundred times smaller."""
    keras.utils.set_random_seed(0)
    dense = [keras.layers.Dense(20, "relu", name="large"), keras.layers.Dense(20, name="small")]
    model = keras.Sequential([keras.Input((20,)), *dense])
    kernel = model.get_layer("small").kernel
    kernel.assign(kernel * 0.01)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    x = np.zeros((32, 20), "float32")
    pruning = ec.Pruning(ec.ConstantSparsity(0.5, 0, frequency=1), criterion, scope="global")
    model.fit(x, x, batch_size=8, verbose=0, callbacks=[pruning])
    left = {layer.name: float((np.array(layer.kernel) != 0).mean()) for layer in model.layers}
    if criterion == "magnitude":
        assert left["small"] < 0.05
    else:
        assert all(0.4 < share < 0.6 for share in left.values())
