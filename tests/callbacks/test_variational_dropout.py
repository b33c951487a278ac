"""Sparse variational dropout against a numpy training loop and Monte Carlo; its life in a fit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as kl
from keras import ops

import edgecompress as ec
from edgecompress.callbacks.variational_dropout import VariationalDropout
from edgecompress.core.errors import ArgumentError, EdgeCompressError, UnsupportedModelError
from edgecompress.core.record import record_of
from edgecompress.variational.precision import allowed_bits

_RNG = np.random.default_rng(0)
X = _RNG.normal(size=(64, 12)).astype("f4")
Y = np.tanh(X[:, :4] @ _RNG.normal(size=(4, 5))).astype("f4")
RATE, FASTER = 0.05, 4.0


def _model(optimizer: Any = None, **options: Any) -> keras.Model:
    keras.utils.set_random_seed(2)
    model = keras.Sequential([keras.Input((12,)), kl.Dense(5, name="only")])
    model.compile(optimizer or keras.optimizers.SGD(RATE, momentum=0.9), "mse", **options)
    return model


def _fit(model: keras.Model, *callbacks: Any, epochs: int = 2, **more: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"batch_size": 16, "shuffle": False, "verbose": 0} | more
    return model.fit(X, Y, epochs=epochs, callbacks=list(callbacks), **options).history


class _Constant(VariationalDropout):
    """Draws the same number for all outputs."""

    def noise(self, shape: Any, dtype: Any) -> Any:
        return 0.5 * ops.ones(shape, dtype)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_by_numpy() -> None:
    """Means move by the optimizer, log variances by one of its kind, at their own rate."""
    model = _model()
    mean, bias = (np.array(w, np.float64) for w in model.get_weights())
    logs = np.full(mean.shape, -3.0)
    moving = [np.zeros_like(part) for part in (mean, bias, logs)]
    losses, sparsities, nats = [], [], 0.0

    def divergence() -> tuple[float, np.ndarray]:
        log_alpha = logs - np.log(mean**2)
        gate = _sigmoid(1.87320 + 1.48695 * log_alpha)
        value = 0.63576 * (1 - gate) + 0.5 * np.log1p(np.exp(-log_alpha))
        slope = -0.63576 * 1.48695 * gate * (1 - gate) - 0.5 * _sigmoid(-log_alpha)
        return value.sum(), slope

    for step in range(12):
        weight = 2.0 * min(1.0, (step // 4 + 1) / 2) / 64
        batch = slice(16 * (step % 4), 16 * (step % 4) + 16)
        squares = X[batch].astype(np.float64) ** 2
        deviation = np.sqrt(squares @ np.exp(logs) + 1e-8)
        error = X[batch] @ mean + bias + 0.5 * deviation - Y[batch]
        above = 2 * error / error.size
        nats, slope = divergence()
        losses.append((error**2).mean() + weight * nats)
        found = (
            X[batch].T @ above - weight * slope * 2 / mean,
            above.sum(0),
            0.25 * squares.T @ (above / deviation) * np.exp(logs) + weight * slope,
        )
        rates = (RATE, RATE, RATE * FASTER)
        for velocity, gradient, rate in zip(moving, found, rates, strict=True):
            velocity *= 0.9
            velocity -= rate * gradient
        mean, bias, logs = mean + moving[0], bias + moving[1], logs + moving[2]
        if step % 4 == 3:
            sparsities.append((logs - np.log(mean**2) > 3).mean())
    dropout = _Constant(64, warm_up_epochs=2, strength=2.0, rate=FASTER, initial_log_variance=-3.0)
    history = _fit(model, dropout, epochs=3)
    want = np.where(logs - np.log(mean**2) > 3, 0, mean)
    assert 0 < (want == 0).mean() < 0.9
    np.testing.assert_allclose(model.get_layer("only").kernel, want, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(model.get_layer("only").bias, bias, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(history["loss"], np.reshape(losses, (3, 4)).mean(1), rtol=1e-4)
    np.testing.assert_allclose(history["posterior_sparsity"], sparsities)
    np.testing.assert_allclose(history["divergence"][-1], divergence()[0], rtol=1e-4)
    (step,) = record_of(model).steps
    assert step["sparsity"] == step["layer_sparsity"]["only"] == history["posterior_sparsity"][-1]
    kept = want != 0
    assert step["allowed_bits"]["only"] == allowed_bits(want[kept], np.exp(logs)[kept])


_LAYERS = {
    "dense": (lambda: kl.Dense(3), (4,)),
    "conv": (lambda: kl.Conv2D(3, 2, strides=2, padding="same"), (5, 5, 2)),
    "grouped": (lambda: kl.Conv2D(4, 2, groups=2, use_bias=False), (3, 3, 4)),
    "transposed": (lambda: kl.Conv2DTranspose(2, 2, strides=2), (2, 2, 2)),
    "one": (lambda: kl.Conv1D(3, 2, dilation_rate=2), (5, 2)),
    "depthwise": (lambda: kl.DepthwiseConv2D(2, depth_multiplier=2), (3, 3, 2)),
}


def test_outputs_have_the_moments_of_normal_weights() -> None:
    """The local reparametrization against exact moments, for all classes of layers."""
    random = np.random.default_rng(1)
    inputs = [keras.Input(shape) for _, shape in _LAYERS.values()]
    layers = [make() for make, _ in _LAYERS.values()]
    model = keras.Model(inputs, [layer(x) for layer, x in zip(layers, inputs, strict=True)])
    model.compile("sgd", ["mse"] * len(layers))
    values = [random.normal(size=(1, *shape)).astype("f4") for _, shape in _LAYERS.values()]
    variances = [random.uniform(-4, -1, layer.kernel.shape).astype("f4") for layer in layers]
    want = [_moments(*found) for found in zip(layers, values, variances, strict=True)]
    drawn = []

    class Look(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            for kernel, log in zip(dropout._kernels, ordered, strict=True):
                kernel.parts["log_variance"].assign(log)
            many = [np.repeat(x, 20_000, axis=0) for x in values]
            drawn.extend(np.array(outputs) for outputs in model(many, training=True))

    dropout = VariationalDropout(1, layers=[layer.name for layer in layers])
    ordered = [variances[layers.index(x)] for x in model.layers if x in layers]
    zeros = [np.zeros((1, *outputs.shape[1:])) for outputs in model.outputs]
    model.fit(values, zeros, verbose=0, callbacks=[dropout, Look()])
    for (mean, deviation), found in zip(want, drawn, strict=True):
        np.testing.assert_allclose(found.mean(0), mean, atol=0.05 * deviation.max())
        np.testing.assert_allclose(found.std(0), deviation, rtol=0.05, atol=1e-3)


def _moments(layer: Any, x: np.ndarray, log_variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of a layer's outputs: they are linear in its weights."""
    mean, output = np.array(layer.kernel), np.array(layer(x))[0]
    variance = np.zeros_like(output)
    for place in np.ndindex(*mean.shape):
        moved = mean.copy()
        moved[place] += 1
        layer.kernel.assign(moved)
        variance += (np.array(layer(x))[0] - output) ** 2 * np.exp(log_variance[place])
    layer.kernel.assign(mean)
    return output, np.sqrt(variance)


def test_validation_sees_the_pruned_network_without_noise() -> None:
    model = _model()
    dropout = VariationalDropout(64, initial_log_variance=-2.0, rate=FASTER)
    history = _fit(model, dropout, epochs=3, validation_data=(X, Y))
    assert np.mean(np.array(model.get_layer("only").kernel) == 0) > 0
    assert model.evaluate(X, Y, verbose=0) == pytest.approx(history["val_loss"][-1], rel=1e-5)


def test_a_fit_does_not_depend_on_how_steps_are_run() -> None:
    found = []
    for options in ({}, {"steps_per_execution": 2}, {"jit_compile": True}):
        model = _model(**options)
        dropout = _Constant(64, initial_log_variance=-3.0)
        found.append(_fit(model, dropout)["divergence"])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4)
    np.testing.assert_allclose(found[2], found[0], rtol=1e-4)


def test_the_seed_decides_the_noise() -> None:
    first, second, other = (
        _fit(_model(), VariationalDropout(64, seed=seed, initial_log_variance=-3.0))["divergence"]
        for seed in (1, 1, 2)
    )
    assert first == second != other


def test_the_penalty_of_the_layer_is_one_on_the_means() -> None:
    model = _model()
    model.get_layer("only").kernel.regularizer = keras.regularizers.L2(0.1)
    kernel = np.array(model.get_layer("only").kernel)
    kernel[0] = 1e-4
    model.get_layer("only").kernel.assign(kernel)
    plain = _model()
    plain.get_layer("only").kernel.assign(kernel)
    losses = [
        _fit(m, _Constant(64, initial_log_variance=-3.0), epochs=1, batch_size=64)["loss"][0]
        for m in (model, plain)
    ]
    assert losses[0] - losses[1] == pytest.approx(0.1 * (kernel**2).sum(), rel=1e-4)


def _posterior(model: keras.Model) -> dict[str, np.ndarray]:
    return model._edgecompress_posterior["variational_dropout"]["only"]


def test_a_later_fit_resumes(tmp_path: Path) -> None:
    """On the same object from memory, after loading from the file, otherwise anew, by name."""
    file = tmp_path / "posterior.npz"
    model, options = _model(), {"initial_log_variance": -2.5, "rate": FASTER}
    _fit(model, VariationalDropout(64, posterior_file=file, **options), epochs=3)
    left = _posterior(model)
    assert np.ptp(left["log_variance"]) > 0.1
    assert (left["mean"][np.array(model.get_layer("only").kernel) == 0] != 0).any()
    model.save(tmp_path / "model.keras")
    for start, kept in ((model, None), (None, file)):
        again = start or ec.load_model(tmp_path / "model.keras")
        again.compile(keras.optimizers.SGD(0.0), "mse")
        _fit(again, VariationalDropout(64, posterior_file=kept, **options), epochs=1)
        np.testing.assert_allclose(_posterior(again)["mean"], left["mean"], rtol=1e-6)
        np.testing.assert_allclose(_posterior(again)["log_variance"], left["log_variance"])
    anew = ec.load_model(tmp_path / "model.keras")
    anew.compile(keras.optimizers.SGD(0.0), "mse")
    dropout = VariationalDropout(64, **options)
    _fit(anew, dropout, epochs=1)
    assert (_posterior(anew)["log_variance"] == -2.5).all()
    assert "only starts anew from its weights" in " ".join(dropout.notes)


def test_an_interrupted_training_ends_as_one_that_was_not(tmp_path: Path) -> None:
    """With a file for the posterior, without momentum and with the same noise."""

    class Stop(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 2:
                raise KeyboardInterrupt

    def train(folder: str, *more: Any) -> np.ndarray:
        model = _model(keras.optimizers.SGD(RATE))
        (tmp_path / folder).mkdir(exist_ok=True)
        backup = keras.callbacks.BackupAndRestore(tmp_path / folder / "backup")
        file = tmp_path / folder / "posterior.npz"
        options = {"initial_log_variance": -3.0, "rate": FASTER, "warm_up_epochs": 3}
        dropout = _Constant(64, posterior_file=file, **options)
        _fit(model, backup, dropout, *more, epochs=4)
        return np.array(model.get_layer("only").kernel)

    whole = train("whole")
    with pytest.raises(KeyboardInterrupt):
        train("halves", Stop())
    np.testing.assert_allclose(train("halves"), whole, rtol=1e-4, atol=1e-6)
    assert 0 < np.mean(whole == 0) < 1


def test_restored_weights_keep_their_own_results() -> None:
    model = _model()
    stop = keras.callbacks.EarlyStopping("loss", mode="max", patience=9, restore_best_weights=True)
    dropout = VariationalDropout(64, initial_log_variance=-3.0, rate=FASTER)
    history = _fit(model, stop, dropout, epochs=3)
    first, last = history["posterior_sparsity"][0], history["posterior_sparsity"][-1]
    assert first < last
    assert np.mean(np.array(model.get_layer("only").kernel) == 0) == pytest.approx(first)
    assert record_of(model).steps[0]["sparsity"] == pytest.approx(first)


def test_averaged_weights_are_pruned_again() -> None:
    model = _model(keras.optimizers.SGD(RATE, use_ema=True, ema_momentum=0.9))
    dropout = VariationalDropout(64, initial_log_variance=-2.5, rate=FASTER)
    _fit(model, dropout, epochs=3)
    share = np.mean(np.array(model.get_layer("only").kernel) == 0)
    assert 0 < share == pytest.approx(record_of(model).steps[0]["sparsity"])
    assert "only was sparsified again" in " ".join(dropout.notes)


def test_layers_that_it_cannot_work_on_are_named() -> None:
    class Own(kl.Dense):  # type: ignore[misc]
        pass

    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            kl.SeparableConv2D(2, 2, name="separable"),
            kl.Conv2D(2, 2, dtype="mixed_float16", name="half"),
            kl.Flatten(),
            Own(4, name="own"),
            kl.Dense(2, name="dense"),
        ]
    )
    model.compile("sgd", "mse")
    dropout = VariationalDropout(4)
    model.fit(np.ones((4, 6, 6, 2)), np.ones((4, 2)), verbose=0, callbacks=[dropout])
    notes = " ".join(dropout.notes)
    assert record_of(model).steps[0]["layers"] == ["dense"]
    assert "separable is not sparsified: SeparableConv2D layers cannot be" in notes
    assert "half is not sparsified: it computes in float16" in notes
    assert "own is not sparsified: its class Own may compute anything" in notes


def test_a_training_step_of_its_own_is_refused() -> None:
    class Own(keras.Model):  # type: ignore[misc]
        def train_step(self, data: Any) -> Any:
            return super().train_step(data)

    inputs = keras.Input((12,))
    model = Own(inputs, kl.Dense(5)(inputs))
    model.compile("sgd", "mse")
    with pytest.raises(UnsupportedModelError, match="has its own train_step, which may leave"):
        _fit(model, VariationalDropout(64))


def test_another_callback_that_sets_the_weights_is_refused() -> None:
    pruning = ec.MagnitudePruning(ec.ConstantSparsity(0.5, frequency=1))
    for callbacks in ([VariationalDropout(64), pruning], [pruning, VariationalDropout(64)]):
        with pytest.raises(ArgumentError, match="not name a layer whose weights another callback"):
            _fit(_model(), *callbacks)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"examples": 0}, "`examples` must be a whole number, 1 or more. Got 0."),
        ({"examples": 6.0}, "`examples` must be a whole number, 1 or more. Got 6.0."),
        ({"warm_up_epochs": -1}, "`warm_up_epochs` must be a whole number, 0 or more. Got -1."),
        ({"strength": 0}, "`strength` must be a number greater than 0. Got 0."),
        ({"rate": float("inf")}, "`rate` must be a number greater than 0. Got inf."),
        ({"threshold": "3"}, "`threshold` must be a finite number. Got '3'."),
        ({"initial_log_variance": float("nan")}, "must be a finite number. Got nan."),
        ({"posterior_file": 3}, "`posterior_file` must be a path, or None. Got 3."),
        ({"seed": True}, "`seed` must be a whole number, 0 or more. Got True."),
    ],
)
def test_mistakes_are_named(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(text)):
        VariationalDropout(**{"examples": 4, **arguments})


def test_files_in_no_folder_or_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="lie in a folder that exists"):
        _fit(_model(), VariationalDropout(64, posterior_file=tmp_path / "none" / "file.npz"))
    (tmp_path / "other.npz").write_text("text")
    with pytest.raises(EdgeCompressError, match=r"other\.npz"):
        _fit(_model(), VariationalDropout(64, posterior_file=tmp_path / "other.npz"))


def test_a_model_that_diverges_is_refused() -> None:
    model = _model()
    model.get_layer("only").kernel.assign(np.full((12, 5), np.nan))
    with pytest.raises(ArgumentError, match="name layers with finite weights"):
        _fit(model, VariationalDropout(64))
