"""Fisher pruning and gate sensitivity against a real gate on a layer's output."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgecompress.criteria.fisher import Fisher
from edgecompress.criteria.gate_sensitivity import GateSensitivity

keras = pytest.importorskip("keras")
ops = keras.ops


def _gradients(step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns kernel, its gradient, and that of gates of 1 on the outputs of a convolution."""
    import tensorflow as tf

    rng = np.random.default_rng(step)
    x = tf.constant(rng.normal(size=(4, 6, 6, 2)).astype("f4"))
    kernel = tf.constant(np.random.default_rng(9).normal(size=(3, 3, 2, 5)).astype("f4"))
    gates = tf.ones(5)
    with tf.GradientTape() as tape:
        tape.watch([kernel, gates])
        outputs = tf.nn.relu(tf.nn.conv2d(x, kernel, 1, "VALID") * gates)
        loss = tf.reduce_mean(tf.square(outputs - 1.0))
    return (kernel.numpy(), *(found.numpy() for found in tape.gradient(loss, [kernel, gates])))


def _filters(kernel: np.ndarray) -> Any:
    return ops.array(np.moveaxis(kernel, -1, 0).reshape(kernel.shape[-1], -1))


def test_scores_are_those_of_gates() -> None:
    fisher, relevance = 0.0, 0.0
    seen: Any = {"fisher": ops.zeros(5), "relevance": ops.zeros(5)}
    for step in range(3):
        kernel, gradient, gate = _gradients(step)
        fisher = gate**2 if step == 0 else 0.9 * fisher + 0.1 * gate**2
        relevance = gate if step == 0 else 0.8 * relevance + 0.2 * gate
        for criterion in (Fisher(), GateSensitivity()):
            seen |= criterion.observe_filters(_filters(kernel), _filters(gradient), seen, step)
    plain = Fisher(cost=False).score_filters(None, seen)
    np.testing.assert_allclose(plain, fisher / 2, rtol=1e-4)
    np.testing.assert_allclose(GateSensitivity().score_filters(None, seen), abs(relevance), 1e-4)
    by_cost = Fisher().score_filters(None, seen | {"macs": ops.full((5,), 10.0)})
    np.testing.assert_allclose(by_cost, fisher / 20, rtol=1e-4)
