"""Pattern binarization: what is fixed stays, what is not trains on."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as kl

from edgecompress.callbacks.pattern_binarization import PatternBinarization
from edgecompress.core.errors import ArgumentError, UnknownNameError
from edgecompress.core.record import record_of

pytestmark = pytest.mark.slow

_RNG = np.random.default_rng(0)
X = _RNG.normal(size=(32, 6, 6, 2)).astype("f4")
Y = _RNG.integers(0, 3, 32)


def _model(optimizer: Any = "adam") -> keras.Model:
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            kl.Conv2D(5, (1, 3), name="wide"),
            kl.BatchNormalization(name="norm"),
            kl.Conv2D(4, 1, name="mix"),
            kl.DepthwiseConv2D(3, name="depth"),
            kl.Flatten(),
            kl.Dense(3, name="head"),
        ]
    )
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def _fit(model: keras.Model, *callbacks: Any, epochs: int = 2) -> dict[str, Any]:
    return model.fit(
        X, Y, batch_size=16, epochs=epochs, shuffle=False, verbose=0, callbacks=list(callbacks)
    ).history


class Watch(keras.callbacks.Callback):
    """Keeps all weights after every epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs: list[dict[str, np.ndarray]] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.epochs.append(
            {f"{layer.name}/{w.name}": np.array(w) for layer in self.model.layers
             for w in layer.weights}
        )  # fmt: skip


@pytest.mark.parametrize("scale", ["mean", "one"])
def test_patterns_by_numpy_and_what_trains_on(scale: str) -> None:
    watch = Watch()
    # Weight decay and momentum of the epoch before would move what has no gradient.
    model = _model(keras.optimizers.AdamW(0.01, weight_decay=0.1))
    history = _fit(model, PatternBinarization(1, scale=scale), watch, epochs=3)
    before, first, last = (epoch["wide/kernel"] for epoch in watch.epochs)
    signs = np.where(before >= 0, 1, -1)
    alpha = np.abs(before).mean((0, 1, 2)) if scale == "mean" else np.ones(5)
    np.testing.assert_allclose(first, alpha * signs, rtol=1e-6)
    np.testing.assert_array_equal(last, first)
    np.testing.assert_array_equal(model.get_layer("wide").kernel, first)
    for name, values in watch.epochs[1].items():
        moved = np.abs(watch.epochs[2][name] - values).max() > 0
        assert moved == (name != "wide/kernel"), name
    closest = np.abs(before).mean((0, 1, 2)) * signs
    error = np.sqrt(((before - closest) ** 2).sum() / (before**2).sum())
    assert history["pattern_active"] == [0, 1, 1]
    np.testing.assert_allclose(history["pattern_error"], [0, error, error], rtol=1e-5)
    (step,) = record_of(model).steps
    np.testing.assert_allclose(step["scales"]["wide"], alpha, rtol=1e-6)
    notes = " ".join(record_of(model).notes)
    assert "Not turned into patterns, as their filters are 1x1: mix." in notes
    assert "depth is not turned into patterns: DepthwiseConv2D layers are" in notes
    assert "head is not" in notes


def test_depthwise_layers_where_named() -> None:
    model = _model()
    before = np.array(model.get_layer("depth").kernel)
    wide = np.array(model.get_layer("wide").kernel)
    _fit(model, PatternBinarization(layers="depth"), epochs=1)
    want = np.abs(before).mean((0, 1)) * np.where(before >= 0, 1, -1)
    np.testing.assert_allclose(model.get_layer("depth").kernel, want, rtol=1e-6)
    assert len(np.unique(np.array(model.get_layer("wide").kernel))) == wide.size


def test_patterns_of_an_earlier_fit_stay() -> None:
    model = _model()
    _fit(model, PatternBinarization(scale="one"), epochs=1)
    pattern = np.array(model.get_layer("wide").kernel)
    assert set(np.unique(pattern)) == {-1, 1}
    _fit(model, PatternBinarization(begin_epoch=9), epochs=1)
    np.testing.assert_array_equal(model.get_layer("wide").kernel, pattern)


def test_mistakes_are_named() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean one"):
        PatternBinarization(scale="ones")
    with pytest.raises(ArgumentError, match="k x k filters, k > 1. Got 'mix'."):
        _fit(_model(), PatternBinarization(layers=["mix"]))
    with pytest.raises(ArgumentError, match="name layers of Conv2D, DepthwiseConv2D. Got 'head"):
        _fit(_model(), PatternBinarization(layers=["head"]))
    with pytest.raises(ArgumentError, match="leave at least one layer to be turned into patterns"):
        _fit(_model(), PatternBinarization(layers=lambda layer: layer.name == "mix"))
