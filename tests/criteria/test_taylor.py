"""The Taylor criterion against numpy, and against the loss it speaks of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import edgecompress as ec
from edgecompress.criteria.taylor import Taylor

keras = pytest.importorskip("keras")
ops = keras.ops


def test_moving_average_by_numpy() -> None:
    rng = np.random.default_rng(0)
    steps = [(rng.normal(size=(3, 4)), rng.normal(size=(3, 4))) for _ in range(5)]
    expected = (steps[0][0] * steps[0][1]) ** 2
    for weights, gradient in steps[1:]:
        expected = 0.8 * expected + 0.2 * (weights * gradient) ** 2
    found: Any = {"taylor": ops.zeros((3, 4))}
    for step, (weights, gradient) in enumerate(steps):
        found = Taylor(0.8).observe(ops.array(weights), ops.array(gradient), found, float(step))
    score = ops.convert_to_numpy(Taylor(0.8).score(ops.array(steps[-1][0]), found))
    np.testing.assert_allclose(score, np.sqrt(expected), rtol=1e-5)


def _model(weights: np.ndarray) -> keras.Model:
    model = keras.Sequential([keras.Input((len(weights),)), keras.layers.Dense(1, use_bias=False)])
    model.layers[0].kernel.assign(weights[:, None])
    # A learning rate so small that the weights stay what they are.
    model.compile(keras.optimizers.SGD(1e-12), "mse")
    return model


@pytest.mark.parametrize("criterion, survivor", [("taylor", 1), ("magnitude", 0)])
def test_a_large_weight_that_does_not_matter_goes(criterion: str, survivor: int) -> None:
    """Input 0 is always 0: its weight is the largest, and the loss does not know it."""
    model = _model(np.array([5.0, 1.0], "f4"))
    x = np.random.default_rng(1).normal(size=(64, 2)).astype("f4")
    x[:, 0] = 0.0
    pruning = ec.Pruning(ec.ConstantSparsity(0.5, begin_step=2, frequency=1), criterion)
    model.fit(x, np.zeros((64, 1)), batch_size=16, verbose=0, callbacks=[pruning])
    assert list(np.flatnonzero(model.layers[0].kernel.numpy())) == [survivor]


def test_the_score_is_the_change_of_the_loss_to_first_order() -> None:
    rng = np.random.default_rng(2)
    weights = rng.normal(0, 1e-3, size=6).astype("f4")
    x, y = rng.normal(size=(256, 6)).astype("f4"), rng.normal(size=256).astype("f4")
    gradient = (2 * (x @ weights - y)[:, None] * x).mean(0)
    seen = Taylor().observe(ops.array(weights), ops.array(gradient), {"taylor": ops.zeros(6)}, 0.0)
    score = ops.convert_to_numpy(Taylor().score(ops.array(weights), seen))
    loss = np.mean((x @ weights - y) ** 2)
    changes = []
    for index in range(6):
        without = weights.copy()
        without[index] = 0
        changes.append(abs(np.mean((x @ without - y) ** 2) - loss))
    np.testing.assert_allclose(score, changes, rtol=0.05)


def test_a_second_fit_begins_with_the_masks_of_the_first() -> None:
    rng = np.random.default_rng(3)
    model = _model(rng.normal(size=8).astype("f4"))
    x, y = rng.normal(size=(64, 8)), rng.normal(size=(64, 1))
    pruning = ec.Pruning(ec.ConstantSparsity(0.5, begin_step=2, frequency=1), "taylor")
    model.fit(x, y, batch_size=16, verbose=0, callbacks=[pruning])
    zeros = model.layers[0].kernel.numpy() == 0
    assert zeros.sum() == 4
    model.fit(x, y, batch_size=16, verbose=0, callbacks=[pruning])
    np.testing.assert_array_equal(model.layers[0].kernel.numpy() == 0, zeros)
