"""Zeros of a pruned model, in training that goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgecompress as ec
from edgecompress.core.errors import ArgumentError
from edgecompress.core.record import record_of
from edgecompress.surgery.zero_filters import zero_filters

keras = pytest.importorskip("keras")

_RNG = np.random.default_rng(0)
X, Y = _RNG.normal(size=(64, 8)).astype("f4"), _RNG.normal(size=(64, 3)).astype("f4")


def _model(**compile_with: Any) -> keras.Model:
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(120, "relu", name="wide"), keras.layers.Dense(120, name="large")]
    model = keras.Sequential([keras.Input((8,)), *layers, keras.layers.Dense(3, name="dense")])
    model.compile(keras.optimizers.Adam(1e-2, **compile_with), "mse")
    return model


def _pruned(model: keras.Model) -> keras.Model:
    """Sets weights to zero as a pruning fit leaves them: some -0.0 in another fit become 0."""
    pruning = ec.Pruning(ec.OneShotSparsity(0.75, 1), "random", layers=["wide", "large"])
    model.fit(X, Y, batch_size=32, verbose=0, callbacks=[pruning])
    return model


def _zeros(model: keras.Model) -> list[np.ndarray]:
    return [layer.kernel.numpy() == 0 for layer in model.layers]


@pytest.mark.parametrize(
    "settings", [{}, {"use_ema": True, "ema_overwrite_frequency": 3}, {"weight_decay": 1e-2}]
)
def test_zeros_stay(settings: dict[str, Any]) -> None:
    """Momentum of the pruned weights, averages and decay move them without it."""
    model = _pruned(_model(**settings))
    before, weights = _zeros(model), model.get_layer("large").kernel.numpy()
    keep = ec.KeepSparsity()
    model.fit(X, Y, batch_size=16, epochs=2, verbose=0, callbacks=[keep])
    for after, zeros in zip(_zeros(model), before, strict=True):
        np.testing.assert_array_equal(after, zeros)
    assert not np.array_equal(model.get_layer("large").kernel.numpy(), weights)
    step = record_of(model).steps[-1]
    assert step["technique"] == "keep_sparsity" and step["layers"] == ["wide", "large"]
    assert step["layer_sparsity"] == {"wide": 0.75, "large": 0.75}


def test_without_it_they_grow_back_and_finalize_says_so() -> None:
    model = _pruned(_model())
    assert not any("now it has" in note for note in record_of(ec.finalize(model)).notes)
    model.fit(X, Y, batch_size=16, verbose=0)
    assert _zeros(model)[0].mean() < 0.2
    (note,) = [n for n in record_of(ec.finalize(model)).notes if "now it has 0." in n]
    assert "pruning left wide with sparsity 0.75" in note and "KeepSparsity" in note


def test_it_continues_after_an_interruption(tmp_path: Path) -> None:
    """The weights come from the backup, after the callback began; so do their zeros."""
    model = _pruned(_model())
    zeros = _zeros(model)[1]

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 1:
                raise KeyboardInterrupt

    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y, epochs=2, verbose=0, callbacks=[backup, ec.KeepSparsity(["large"]), Stop()])
    again = _model()
    again.fit(X, Y, epochs=2, verbose=0, callbacks=[backup, ec.KeepSparsity(["large"])])
    np.testing.assert_array_equal(_zeros(again)[1], zeros)


def test_a_dense_model_is_refused_unless_named() -> None:
    with pytest.raises(ArgumentError, match="Prune the model first"):
        _model().fit(X, Y, verbose=0, callbacks=[ec.KeepSparsity()])
    keep = ec.KeepSparsity(["large"])
    _model().fit(X, Y, batch_size=64, verbose=0, callbacks=[keep])
    assert keep.notes == ("large has no weights of zero to keep.",)


def _padded() -> keras.Model:
    """A bias that grows back could not move through the border of the second convolution."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 1))
    x = keras.layers.Conv2D(6, 3, padding="same", use_bias=False, name="thin")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Conv2D(4, 3, padding="same", name="reader")(keras.layers.Activation("tanh")(x))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(2, name="out")(x))


def _recurrent() -> keras.Model:
    """No kernel that `KeepSparsity` takes by name has zeros."""
    keras.utils.set_random_seed(0)
    layers = [keras.layers.LSTM(6, name="thin"), keras.layers.Dense(2, name="out")]
    return keras.Sequential([keras.Input((4, 3)), *layers])


@pytest.mark.parametrize(("make", "width"), [(_padded, "filters"), (_recurrent, "units")])
def test_what_channel_removal_silenced_stays_removable(
    make: Callable[[], keras.Model], width: str
) -> None:
    """Biases, normalization and units move as kernels do; without it they come back."""
    widths = {}
    for kept in (True, False):
        model = make()
        zero_filters(model, {"thin": np.arange(6) < 2})
        assert getattr(ec.finalize(model).get_layer("thin"), width) == 4
        model.compile(keras.optimizers.Adam(1e-2), "mse")
        x = _RNG.normal(size=(32, *model.input_shape[1:])).astype("f4")
        callbacks = [ec.KeepSparsity()] if kept else []
        model.fit(x, Y[:32, :2], batch_size=8, verbose=0, callbacks=callbacks)
        small = ec.finalize(model)
        widths[kept] = getattr(small.get_layer("thin"), width)
        np.testing.assert_allclose(small(x), model(x), rtol=1e-4, atol=1e-5)
    assert widths == {True: 4, False: 6}
