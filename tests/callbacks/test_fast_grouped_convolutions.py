"""Grouped convolutions computed group by group: the same training, and nothing left behind."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as kl

from edgecompress.callbacks.fast_grouped_convolutions import FastGroupedConvolutions
from edgecompress.callbacks.quantization_aware_training import QuantizationAwareTraining

pytestmark = pytest.mark.slow

_RNG = np.random.default_rng(0)
X = _RNG.normal(size=(32, 6, 6, 4)).astype("f4")
Y = _RNG.integers(0, 3, 32)


def _model() -> keras.Model:
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 4), name="image"),
            kl.Conv2D(8, 3, strides=2, padding="same", groups=4, activation="relu", name="grouped"),
            kl.Conv2D(6, 2, dilation_rate=2, groups=2, name="dilated"),
            kl.Flatten(name="flat"),
            kl.Dense(3, name="head"),
        ]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def _fit(model: keras.Model, *callbacks: Any) -> list[float]:
    return model.fit(
        X, Y, batch_size=16, epochs=2, shuffle=False, verbose=0, callbacks=list(callbacks),
        validation_data=(X, Y),
    ).history["val_loss"]  # fmt: skip


@pytest.mark.parametrize("quantized", [False, True])
def test_the_same_training(quantized: bool) -> None:
    plain, fast = _model(), _model()
    more = [[QuantizationAwareTraining()] if quantized else [] for _ in range(2)]
    want = _fit(plain, *more[0])
    np.testing.assert_allclose(_fit(fast, FastGroupedConvolutions(), *more[1]), want, rtol=1e-4)
    for have, weights in zip(fast.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(have, weights, rtol=1e-3, atol=1e-4)
    assert "convolution_op" not in vars(fast.get_layer("grouped"))
    assert fast.get_config()["layers"] == plain.get_config()["layers"]


def test_an_interrupted_fit_is_tidied_by_the_next() -> None:
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            raise KeyboardInterrupt

    model = _model()
    with pytest.raises(KeyboardInterrupt):
        _fit(model, FastGroupedConvolutions(), Stop())
    assert "convolution_op" in vars(model.get_layer("grouped"))
    _fit(model, FastGroupedConvolutions())
    assert "convolution_op" not in vars(model.get_layer("grouped"))


def test_models_without_groups_are_left_alone() -> None:
    model = keras.Sequential([keras.Input((4,)), kl.Dense(3)])
    model.compile("sgd", "mse")
    callback = FastGroupedConvolutions()
    attributes = set(vars(model.layers[0]))
    model.fit(X[:, 0, 0], np.ones((32, 3)), epochs=2, verbose=0, callbacks=[callback])
    assert set(vars(model.layers[0])) == attributes
    assert len(model.history.history["loss"]) == 2
