"""Optimal Brain Damage against the loss it predicts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgecompress.criteria.optimal_brain_damage import OptimalBrainDamage

keras = pytest.importorskip("keras")
ops = keras.ops


def test_the_saliency_is_the_rise_of_the_loss() -> None:
    """A linear model at its minimum, inputs independent: the Hessian is diagonal."""
    rng = np.random.default_rng(0)
    weights = np.array([0.3, -1.0, 2.0, 0.05])
    x = rng.normal(size=(20_000, 4)) * [1.0, 0.5, 0.1, 3.0]
    noise = rng.normal(size=len(x))
    y = x @ weights + noise
    seen: Any = {"curvature": ops.zeros(4)}
    for step in range(0, len(x), 20):
        seen = OptimalBrainDamage().observe(
            ops.array(weights), ops.array(-noise[step] * x[step]), seen, float(step // 20)
        )
    scores = ops.convert_to_numpy(OptimalBrainDamage().score(ops.array(weights), seen))
    rises = []
    for index in range(4):
        without = weights.copy()
        without[index] = 0
        rises.append(np.mean((x @ without - y) ** 2 - (x @ weights - y) ** 2) / 2)
    np.testing.assert_allclose(scores**2, rises, rtol=0.25)
    assert list(np.argsort(scores)) == list(np.argsort(rises)) != list(np.argsort(abs(weights)))


def test_the_mean_is_over_all_steps() -> None:
    gradients = np.random.default_rng(1).normal(size=(5, 3)).astype("f4")
    seen: Any = {"curvature": ops.zeros(3)}
    for step, gradient in enumerate(gradients):
        seen = OptimalBrainDamage().observe(ops.ones(3), ops.array(gradient), seen, float(step))
    np.testing.assert_allclose(seen["curvature"], np.mean(gradients**2, 0), rtol=1e-5)
