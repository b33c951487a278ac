"""What criteria see of the model around a kernel: BatchNormalization, activations, cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import edgecompress as ec
from edgecompress.callbacks.views import VIEWS
from edgecompress.core.errors import ArgumentError
from edgecompress.core.kernel_shape import KernelShape

keras = pytest.importorskip("keras")
kl = keras.layers


def _block(*layers: Any) -> keras.Model:
    model = keras.Sequential([keras.Input((8,)), *layers, kl.Dense(2, name="head")])
    model.compile(keras.optimizers.SGD(1e-12), "mse")
    return model


def _fit(model: keras.Model, criterion: str, x: np.ndarray) -> np.ndarray:
    """Returns which units of `units` became zero."""
    pruning = ec.Pruning(
        ec.ConstantSparsity(0.5, begin_step=2, frequency=1), criterion, "filters", ["units"]
    )
    model.fit(x, np.zeros((len(x), 2)), batch_size=8, verbose=0, callbacks=[pruning])
    kernel = next(layer for layer in _layers(model) if layer.name == "units").kernel.numpy()
    return np.flatnonzero(~kernel.any(0))


def _layers(model: keras.Model) -> list[Any]:
    return [inner for x in model.layers for inner in (_layers(x) if hasattr(x, "layers") else [x])]


@pytest.mark.parametrize("nested", [False, True])
def test_the_scale_of_the_normalization_decides(nested: bool) -> None:
    norm, units = kl.BatchNormalization(), kl.Dense(6, name="units")
    inner = [units, norm, kl.ReLU()]
    parts = [keras.Sequential([keras.Input((8,)), *inner])] if nested else inner
    model = _block(*parts)
    gamma = np.array([0.1, -2.0, 0.2, 1.0, -0.3, 3.0])
    norm.gamma.assign(gamma)
    # By magnitude, the others would go.
    units.kernel.assign(np.ones((8, 6)) / abs(gamma))
    found = _fit(model, "norm-scale", np.random.default_rng(0).normal(size=(32, 8)))
    assert list(found) == [0, 2, 4]


@pytest.mark.parametrize(
    "layers, reason",
    [
        ([kl.Dense(4, "relu", name="units"), kl.BatchNormalization()], "no BatchNormalization"),
        ([kl.Dense(4, name="units"), kl.BatchNormalization(scale=False)], "has no gamma"),
        ([kl.Dense(4, name="units"), kl.ReLU()], "no BatchNormalization"),
    ],
)
def test_without_a_scale_there_is_nothing_to_see(layers: list[Any], reason: str) -> None:
    model = _block(*layers)
    view = VIEWS["norm-scale"](model)
    missing = view.missing(model.get_layer("units"))
    assert missing is not None and reason in missing


@pytest.mark.parametrize("measure, where", [("active", "after"), ("mean", "own")])
def test_silent_channels_go(measure: str, where: str) -> None:
    """Units of large weights whose bias keeps them below 0, behind a normalization or not."""
    units = kl.Dense(6, "relu" if where == "own" else None, name="units")
    norm = kl.BatchNormalization(center=True)
    model = _block(units, *([] if where == "own" else [norm, kl.ReLU()]))
    units.kernel.assign(np.random.default_rng(1).normal(size=(8, 6)) * [9, 1, 9, 1, 9, 1])
    silent = np.array([-1, 1, -1, 1, -1, 1]) * 500.0
    (units.bias if where == "own" else norm.beta).assign(silent)
    x = np.random.default_rng(0).normal(size=(32, 8))
    assert list(_fit(model, f"activation:measure={measure}", x)) == [0, 2, 4]


def test_the_average_is_that_of_the_batches() -> None:
    """Reads the average in the last epoch, before it leaves with the fit."""
    units = kl.Dense(3, "relu", name="units")
    model = _block(units)
    x = np.random.default_rng(2).normal(size=(24, 8)).astype("f4")
    pruning = ec.Pruning(ec.ConstantSparsity(0.3, begin_step=99), "activation", layers=["units"])
    kept: list[np.ndarray] = []

    class Keep(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            (average,) = [v for v in model.optimizer.variables if "active_share" in v.path]
            kept.append(average.numpy())
            model.evaluate(x[:3], np.zeros((3, 2)), verbose=0)  # is not training
            np.testing.assert_array_equal(average.numpy(), kept[-1])

    callbacks = [pruning, Keep()]
    with pytest.warns(UserWarning, match="Nothing will be pruned"):
        model.fit(x, np.zeros((24, 2)), batch_size=8, shuffle=False, verbose=0, callbacks=callbacks)
    active = (x @ units.kernel.numpy() + units.bias.numpy() > 0).reshape(3, 8, 3).mean(1)
    expected = 0.9 * (0.9 * active[0] + 0.1 * active[1]) + 0.1 * active[2]
    np.testing.assert_allclose(kept[0], expected, rtol=1e-5)


def test_macs_count_positions() -> None:
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), kl.Conv2D(4, 3, name="conv"), kl.Flatten(), kl.Dense(5, name="fc")]
    )
    view = VIEWS["macs"](model)
    layers = [model.get_layer("conv"), model.get_layer("fc")]
    kernels = [KernelShape(tuple(layer.kernel.shape)) for layer in layers]
    view.begin(list(zip(layers, kernels, strict=True)), None)
    assert list(view.tensor(layers[0])) == [6 * 6 * 27] * 4
    assert list(view.tensor(layers[1])) == [6 * 6 * 4] * 5


class _Variables:
    """Stands for the hook that owns a view's variables."""

    def add_variable(self, shape: tuple[int, ...], dtype: str, name: str) -> Any:
        return keras.Variable(np.ones(shape), dtype=dtype, name=name)


@pytest.mark.parametrize("name", sorted(VIEWS))
def test_every_view_has_a_number_for_each_filter(name: str) -> None:
    units = kl.Dense(6, name="units")
    view = VIEWS[name](_block(units, kl.BatchNormalization(), kl.ReLU()))
    assert view.missing(units) is None
    view.begin([(units, KernelShape((3, 6)))], _Variables())
    numbers = np.asarray(view.tensor(units))
    assert numbers.shape == (6,) and numbers.dtype == np.float32
    assert np.isfinite(numbers).all() and (numbers >= 0).all()


def test_a_schedule_must_leave_a_step_to_observe() -> None:
    model = _block(kl.Dense(6, name="units"))
    pruning = ec.Pruning(ec.OneShotSparsity(0.5, 1), "taylor")
    with pytest.raises(ArgumentError, match="end after step 1"):
        model.fit(np.ones((8, 8)), np.zeros((8, 2)), verbose=0, callbacks=[pruning])
