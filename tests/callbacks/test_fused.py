"""The parts of a step that run as one compiled operator compute what plain operators compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as kl

from edgecompress import (
    GroupLasso,
    MagnitudePruning,
    PolynomialDecay,
    QuantizationAwareTraining,
    WeightClustering,
)
from edgecompress.callbacks import fused, weight_clustering
from edgecompress.callbacks.fused_updates import fused_updates
from edgecompress.callbacks.hooks import HookSession
from edgecompress.patterns import base as patterns

pytestmark = pytest.mark.slow


def _trained(
    monkeypatch: pytest.MonkeyPatch,
    smallest: int,
    callbacks: Callable[[], list[Any]],
    optimizer: Any = None,
) -> keras.Model:
    """Returns a model after ten steps of training."""
    monkeypatch.setattr(fused, "_WORTHWHILE", smallest)
    monkeypatch.setattr(patterns, "_LARGE", smallest)
    keras.utils.set_random_seed(3)
    random = np.random.default_rng(3)
    model = keras.Sequential(
        [
            keras.Input((5, 5, 2)),
            kl.Conv2D(5, 3, use_bias=False, name="conv"),
            kl.BatchNormalization(name="norm"),
            kl.ReLU(name="relu"),
            kl.Flatten(),
            kl.Dense(13, activation="relu", name="dense"),
            kl.Dense(3, name="head"),
        ]
    )
    model.compile(optimizer or keras.optimizers.SGD(0.05, momentum=0.9), "mse")
    x, y = random.normal(size=(50, 5, 5, 2)), random.normal(size=(50, 3))
    model.fit(x, y, batch_size=10, epochs=2, shuffle=False, verbose=0, callbacks=callbacks())
    return model


def test_compiled_and_plain_operators_train_the_same_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def callbacks() -> list[Any]:
        schedule = PolynomialDecay(0.7, begin_step=0, end_step=9, frequency=3)
        return [MagnitudePruning(schedule), QuantizationAwareTraining()]

    compiled = _trained(monkeypatch, 1, callbacks).get_weights()
    plain = _trained(monkeypatch, 2**30, callbacks).get_weights()
    for one, other in zip(compiled, plain, strict=True):
        np.testing.assert_array_equal(one, other)
        assert not np.any(np.signbit(one) & (one == 0))
    assert np.mean(compiled[5] == 0) > 0.6


def test_a_compiled_penalty_is_the_same_and_scaled_with_the_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def callbacks() -> list[Any]:
        return [GroupLasso(0.01, threshold=1e-6)]

    scaled = keras.optimizers.SGD(0.05, momentum=0.9, loss_scale_factor=16.0)
    compiled = _trained(monkeypatch, 1, callbacks, scaled)
    plain = _trained(monkeypatch, 2**30, callbacks)
    for one, other in zip(compiled.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_values_train_as_their_members_would(monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(values: bool) -> keras.Model:
        if not values:
            monkeypatch.setattr(weight_clustering, "may_train_values", lambda *_: False)
        adam = keras.optimizers.Adam(0.01, amsgrad=True)
        return _trained(monkeypatch, 1 if values else 2**30, lambda: [WeightClustering(6)], adam)

    one, other = trained(True), trained(False)
    for found, want in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(found, want, rtol=2e-4, atol=1e-6)
    for layer in ("conv", "dense", "head"):
        assert len(np.unique(one.get_layer(layer).kernel)) == 6
    # A later fit without the callback goes on from the same state.
    states = one.optimizer.variables, other.optimizer.variables
    assert len(states[0]) == len(states[1]) == 2 + 3 * 7
    for found, want in zip(*states, strict=True):
        np.testing.assert_allclose(found, want, rtol=2e-3, atol=1e-7, err_msg=found.path)


def test_updates_of_large_weights_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_WORTHWHILE", 12)
    model = keras.Sequential([keras.Input((3,)), kl.Dense(4)])
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9))
    session = HookSession(model, None)
    assert fused_updates(session) == []
    model.compile(keras.optimizers.Adam(0.1))
    model.optimizer.build(model.trainable_variables)
    [hook] = fused_updates(session)
    session.attach(hook)
    assert fused_updates(session) == []
    random = np.random.default_rng(5)
    weights = [np.array(w) for w in model.get_weights()]
    states = [np.zeros((2, *w.shape)) for w in weights]
    # A bias of 4 is updated by plain operators.
    for step in (1, 2, 3):
        gradients = [random.normal(size=w.shape).astype("f4") for w in weights]
        model.optimizer.apply([keras.ops.convert_to_tensor(g) for g in gradients])
        for weight, gradient, (m, v) in zip(weights, gradients, states, strict=True):
            m += 0.1 * (gradient - m)
            v += 0.001 * (gradient**2 - v)
            rate = 0.1 * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
            weight -= rate * m / (np.sqrt(v) + 1e-7)
    for found, want in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-4)
    assert [f.experimental_get_tracing_count() for f in hook.compiled.values()] == [1]
    session.close()
    assert "update_step" not in vars(model.optimizer)
    monkeypatch.setattr(fused, "_WORTHWHILE", 13)
    assert fused_updates(session) == []
