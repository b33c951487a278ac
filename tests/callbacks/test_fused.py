"""The parts of a step that run as one compiled operator compute what plain operators compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as kl

from edgecompress import GroupLasso, MagnitudePruning, PolynomialDecay
from edgecompress.callbacks import fused
from edgecompress.patterns import base as patterns

pytestmark = pytest.mark.slow


def _weights(
    monkeypatch: pytest.MonkeyPatch, smallest: int, callback: Callable[[], Any]
) -> list[np.ndarray]:
    """Returns the weights after ten steps of training."""
    monkeypatch.setattr(fused, "_WORTHWHILE", smallest)
    monkeypatch.setattr(patterns, "_LARGE", smallest)
    keras.utils.set_random_seed(3)
    random = np.random.default_rng(3)
    model = keras.Sequential(
        [
            keras.Input((5, 5, 2)),
            kl.Conv2D(5, 3, name="conv"),
            kl.BatchNormalization(name="norm"),
            kl.ReLU(name="relu"),
            kl.Flatten(),
            kl.Dense(13, activation="relu", name="dense"),
            kl.Dense(3, name="head"),
        ]
    )
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
    x, y = random.normal(size=(50, 5, 5, 2)), random.normal(size=(50, 3))
    model.fit(x, y, batch_size=10, epochs=2, shuffle=False, verbose=0, callbacks=[callback()])
    return model.get_weights()


@pytest.mark.parametrize("what", ["pruning", "lasso"])
def test_compiled_and_plain_operators_train_the_same_weights(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    callback = {
        "pruning": lambda: MagnitudePruning(
            PolynomialDecay(0.7, begin_step=0, end_step=9, frequency=3)
        ),
        "lasso": lambda: GroupLasso(0.01, threshold=1e-6),
    }[what]
    compiled = _weights(monkeypatch, 1, callback)
    plain = _weights(monkeypatch, 2**30, callback)
    for one, other in zip(compiled, plain, strict=True):
        # Norms are sums, whose order differs.
        np.testing.assert_allclose(one, other, rtol=1e-5 if what == "lasso" else 0, atol=0)
        assert not np.any(np.signbit(one) & (one == 0))
    if what == "pruning":
        assert np.mean(compiled[6] == 0) > 0.6
