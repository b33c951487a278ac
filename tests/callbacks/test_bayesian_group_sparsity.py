"""Bayesian group sparsity against a numpy training loop and Monte Carlo; filters that go."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as kl
from keras import ops

import edgecompress as ec
from edgecompress.callbacks.bayesian_group_sparsity import BayesianGroupSparsity
from edgecompress.core.errors import ArgumentError, UnknownNameError
from edgecompress.core.record import record_of
from edgecompress.variational.group_horseshoe import GroupHorseshoe
from edgecompress.variational.precision import allowed_bits

_RNG = np.random.default_rng(0)
X = _RNG.normal(size=(64, 6)).astype("f4")
Y = np.tanh(X[:, :2] @ _RNG.normal(size=(2, 3))).astype("f4")
RATE, FASTER, START = 0.05, 3.0, -2.0


class _Constant(BayesianGroupSparsity):
    """Draws the same number for all outputs."""

    def noise(self, shape: Any, dtype: Any) -> Any:
        return 0.5 * ops.ones(shape, dtype)


def _dense() -> keras.Model:
    keras.utils.set_random_seed(2)
    model = keras.Sequential(
        [keras.Input((6,)), kl.Dense(4, name="first"), kl.Dense(3, name="last")]
    )
    model.compile(keras.optimizers.SGD(RATE), "mse")
    return model


def test_by_numpy() -> None:
    """Weights, variances and scales of a layer move by their own gradients."""
    model = _dense()
    mean, bias, last, last_bias = (np.array(w, np.float64) for w in model.get_weights())
    logs, scale, scale_logs = np.full(mean.shape, START), np.ones(4), np.full(4, START)
    losses = []
    for step in range(8):
        batch = slice(16 * (step % 4), 16 * (step % 4) + 16)
        squares = X[batch].astype(np.float64) ** 2
        deviation = np.sqrt(squares @ np.exp(logs) + 1e-8)
        sums = X[batch] @ mean + 0.5 * deviation
        factor = scale + 0.5 * np.exp(scale_logs / 2)
        hidden = sums * factor + bias
        error = hidden @ last + last_bias - Y[batch]
        log_alpha = scale_logs - np.log(scale**2)
        gate = 1 / (1 + np.exp(-(1.87320 + 1.48695 * log_alpha)))
        nats = (0.63576 * (1 - gate) + 0.5 * np.log1p(np.exp(-log_alpha))).sum()
        nats += 0.5 * (np.exp(logs) + mean**2 - logs - 1).sum()
        losses.append((error**2).mean() + nats / 64)
        slope = -0.63576 * 1.48695 * gate * (1 - gate) - 0.5 / (1 + np.exp(log_alpha))
        above = 2 * error / error.size
        back = above @ last.T
        scaled = back * factor
        last_found = hidden.T @ above
        mean_found = X[batch].T @ scaled + mean / 64
        logs_found = 0.25 * squares.T @ (scaled / deviation) * np.exp(logs)
        logs_found += 0.5 * (np.exp(logs) - 1) / 64
        through = (back * sums).sum(0)
        scale_found = through - slope * 2 / scale / 64
        scale_logs_found = through * 0.25 * np.exp(scale_logs / 2) + slope / 64
        mean, bias = mean - RATE * mean_found, bias - RATE * back.sum(0)
        last, last_bias = last - RATE * last_found, last_bias - RATE * above.sum(0)
        logs = logs - FASTER * RATE * logs_found
        scale = scale - FASTER * RATE * scale_found
        scale_logs = scale_logs - FASTER * RATE * scale_logs_found
    groups = _Constant(64, threshold=9.0, rate=FASTER, initial_log_variance=START)
    history = model.fit(
        X, Y, batch_size=16, epochs=2, shuffle=False, verbose=0, callbacks=[groups]
    ).history
    np.testing.assert_allclose(history["loss"], np.reshape(losses, (2, 4)).mean(1), rtol=1e-4)
    kernel, found_bias, found_last, _ = (np.array(w) for w in model.get_weights())
    np.testing.assert_allclose(kernel, scale * mean, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found_bias, bias, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found_last, last, rtol=1e-3, atol=1e-5)
    (step,) = record_of(model).steps
    assert step["zero_filters"] == {"first": [0, 4]}
    spread = np.exp(scale_logs)
    variance = scale**2 * np.exp(logs) + spread * (mean**2 + np.exp(logs))
    assert step["allowed_bits"] == {"first": allowed_bits(scale * mean, variance)}
    assert "last" in " ".join(groups.notes)


def _convolutional(shortcut: bool) -> keras.Model:
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6, 6, 2))
    x = kl.Conv2D(6, 3, activation="relu", name="a", bias_initializer="ones")(inputs)
    x = kl.BatchNormalization(name="norm")(x)
    if shortcut:
        x = kl.Add()([x, kl.Conv2D(6, 3, name="b")(inputs)])
    x = kl.Conv2D(4, 2, name="c")(x)
    model = keras.Model(inputs, kl.Dense(2, name="last")(kl.Flatten()(x)))
    model.compile(keras.optimizers.SGD(0.01), "mse")
    return model


class _Weak(keras.callbacks.Callback):  # type: ignore[misc]
    """Gives chosen filters a scale of noise."""

    def __init__(self, groups: BayesianGroupSparsity, weak: dict[str, list[int]]) -> None:
        super().__init__()
        self.groups, self.weak = groups, weak

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        for kernel in self.groups._kernels:
            values = np.full(kernel.parts["scale_log_variance"].shape, -9.0)
            values[self.weak[kernel.name]] = 9.0
            kernel.parts["scale_log_variance"].assign(values)


IMAGES = _RNG.normal(size=(8, 6, 6, 2)).astype("f4")
TARGETS = _RNG.normal(size=(8, 2)).astype("f4")


@pytest.mark.parametrize("shortcut", [False, True])
def test_filters_of_noise_go_and_nothing_changes(shortcut: bool) -> None:
    """Only together where their channels are added."""
    model = _convolutional(shortcut)
    # A step would be one of noise.
    model.compile(keras.optimizers.SGD(0.0), "mse")
    weak = {"a": [0, 2, 3], "b": [1, 2, 3], "c": [1]}
    groups = BayesianGroupSparsity(8, strength=1e-6)
    model.fit(IMAGES, TARGETS, verbose=0, callbacks=[groups, _Weak(groups, weak)])
    gone = [2, 3] if shortcut else [0, 2, 3]
    kernel = np.array(model.get_layer("a").kernel)
    assert np.flatnonzero(~kernel.any((0, 1, 2))).tolist() == gone
    assert not np.signbit(kernel[..., gone]).any()
    (step,) = record_of(model).steps
    want = {"a": [len(gone), 6], "c": [1, 4]} | ({"b": [2, 6]} if shortcut else {})
    assert step["zero_filters"] == want
    small = ec.finalize(model)
    assert small.get_layer("a").filters == 6 - len(gone)
    assert small.get_layer("c").filters == 3
    np.testing.assert_allclose(small(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-5)


def test_each_example_has_its_own_scale_for_each_filter() -> None:
    """Moments of a convolution's outputs against sampled scales and weights."""
    keras.utils.set_random_seed(4)
    model = keras.Sequential(
        [keras.Input((3, 3, 1)), kl.Conv2D(2, 2, name="a"), kl.Flatten(), kl.Dense(1)]
    )
    model.compile(keras.optimizers.SGD(0.0), "mse")
    groups, x = BayesianGroupSparsity(1, initial_log_variance=-2.0), IMAGES[:1, :3, :3, :1]
    drawn = []

    class Look(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            groups._training, kernel = True, groups._kernels[0]
            groups._traced = {"a": kernel.values()}
            drawn.append(np.array(model.get_layer("a")(np.repeat(x, 40_000, axis=0))))
            groups._training = False

    mean = np.array(model.get_layer("a").kernel)
    model.fit(x, np.ones((1, 1)), verbose=0, callbacks=[groups, Look()])
    random, deviation = np.random.default_rng(0), np.exp(-1.0)
    patches = np.stack([x[0, i : i + 2, j : j + 2, 0] for i in (0, 1) for j in (0, 1)])
    weights = mean[:, :, 0] + deviation * random.normal(size=(40_000, *mean[:, :, 0].shape))
    scales = 1 + deviation * random.normal(size=(40_000, 1, 2))
    sampled = np.einsum("pij,nijf->npf", patches, weights) * scales
    found = drawn[0].reshape(-1, 4, 2)
    spread = sampled.std(0)
    np.testing.assert_allclose(found.mean(0), sampled.mean(0), atol=0.05 * spread.max())
    np.testing.assert_allclose(found.std(0), spread, rtol=0.05)
    # The scale is the same at all places of an example, the noise of the weights is not.
    assert np.corrcoef(found[:, 0, 0], found[:, 3, 0])[0, 1] ** 2 > 0.01


class _SmallMode(keras.callbacks.Callback):  # type: ignore[misc]
    """Gives filter 1 a scale whose mode is near zero, of half-Cauchy scales."""

    def __init__(self, groups: BayesianGroupSparsity) -> None:
        super().__init__()
        self.groups = groups

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        part = self.groups._kernels[0].parts["local_log_mean"]
        values = np.array(part)
        values[0, 1] = -12.0
        part.assign(values)


def test_half_cauchy_scales() -> None:
    """Filters with a small mode go; the others hold the mean of scale times weight."""
    model = _dense()
    model.compile(keras.optimizers.SGD(0.0), "mse")
    before = np.array(model.get_layer("first").kernel)
    groups = BayesianGroupSparsity(
        64, initial_log_variance=-2.0, prior="group-horseshoe:global_scale=0.5"
    )
    history = model.fit(X, Y, verbose=0, callbacks=[groups, _SmallMode(groups)]).history
    kernel = np.array(model.get_layer("first").kernel)
    assert np.flatnonzero(~kernel.any(0)).tolist() == [1]
    # Log-normal with a fourth of the sum of the four factors' variances, log mean 0.
    expected = np.exp(0.5 * np.exp(-2.0))
    np.testing.assert_allclose(kernel[:, [0, 2, 3]], expected * before[:, [0, 2, 3]], rtol=1e-5)
    (step,) = record_of(model).steps
    assert step["zero_filters"] == {"first": [1, 4]} and step["allowed_bits"]["first"] > 0
    assert step["prior"] == {"name": "group-horseshoe", "config": {"global_scale": 0.5}}
    weights = 0.5 * (np.exp(-2.0) + before**2 + 2 - 1).sum()
    start = GroupHorseshoe(0.5).start(4, -2.0)
    start["local_log_mean"][0, 1] = -12.0
    scales = float(GroupHorseshoe(0.5).divergence(start))
    assert history["divergence"][-1] == pytest.approx(weights + scales, rel=1e-5)


def test_the_prior_is_checked() -> None:
    with pytest.raises(UnknownNameError, match="group-horseshoe"):
        BayesianGroupSparsity(64, prior="horse")
    with pytest.raises(ArgumentError, match="greater than 0"):
        BayesianGroupSparsity(64, prior="group-horseshoe:global_scale=0")
    assert BayesianGroupSparsity(64, prior=GroupHorseshoe()).threshold == GroupHorseshoe.threshold


def test_layers_whose_filters_stay_are_named() -> None:
    with pytest.raises(ArgumentError, match="name layers whose filters can be removed"):
        _dense().fit(X, Y, verbose=0, callbacks=[BayesianGroupSparsity(64, layers=["last"])])
    with pytest.raises(ArgumentError, match="`threshold` must be a finite number"):
        BayesianGroupSparsity(64, threshold=float("nan"))
