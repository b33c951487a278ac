"""Fixed-point weights: unbiased rounding, weights on the grid, a file that holds them exactly."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

import edgecompress as ec
from edgecompress.converters import float32, int8
from edgecompress.core.errors import ArgumentError
from edgecompress.core.record import record_of
from edgecompress.precisions.fixed_point import fixed_point
from edgecompress.precisions.ranges import RANGES

RANDOM = np.random.default_rng(7)
X = RANDOM.normal(size=(64, 6)).astype("f4")


# --- Maths --------------------------------------------------------------------------------------


def test_the_nearest_multiple_within_the_word() -> None:
    values = RANDOM.normal(size=500).astype("f4") * 3
    found = np.array(fixed_point(ops.convert_to_tensor(values), 6, 3))
    grid = np.arange(-32, 32) / 8
    expected = grid[np.abs(values[:, None] - grid).argmin(1)]
    np.testing.assert_array_equal(found, expected)
    assert (found == 31 / 8).any() and (found == -4).any()


def test_stochastic_rounding_is_right_on_average() -> None:
    values = np.array([0.3, -0.3, 0.49, 0.25, 2.01], "f4")
    chance = RANDOM.random((20_000, 1)).astype("f4")
    found = np.array(
        fixed_point(ops.convert_to_tensor(values), 8, 2, ops.convert_to_tensor(chance))
    )
    # Only the two neighbours, each as often as the value is close to it.
    assert (np.abs(found - values) < 0.25).all()
    np.testing.assert_allclose(found.mean(0), values, atol=4 * 0.125 / np.sqrt(len(chance)) * 2)
    nearest = np.array(fixed_point(ops.convert_to_tensor(values), 8, 2))
    assert np.abs(nearest - values).max() > 0.04  # what the mean does not have


def test_scales_are_the_smallest_powers_of_two_that_clip_nothing() -> None:
    weights = np.abs(RANDOM.normal(size=(9, 40)) * 2.0 ** RANDOM.integers(-20, 20, 40)).astype("f4")
    weights[:, 0] = [*[0.0] * 8, 127 * 2.0**-3]
    weights[:, 1] = [*[0.0] * 8, np.nextafter(np.float32(127 * 2.0**-3), np.float32(99))]
    method = RANGES["power-of-two"]
    scales = np.array(method.limits(ops.convert_to_tensor(weights), (0,), 127)) / 127
    mantissa, _ = np.frexp(scales)
    assert (mantissa == 0.5).all()
    largest = weights.max(0, keepdims=True)
    assert (127 * scales >= largest).all() and (127 * scales / 2 < largest).all()
    assert scales[0, 0] == 2.0**-3 and scales[0, 1] == 2.0**-2


# --- Training -----------------------------------------------------------------------------------


def _model() -> Any:
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, "relu", name="hidden"),
            keras.layers.Dense(2, name="classes"),
        ]
    )
    # Updates far below half a step of 2 ** -6.
    model.compile(keras.optimizers.SGD(2e-3), "mse")
    return model


def _fit(rounding: str) -> tuple[Any, Any]:
    model = _model()
    callback = ec.FixedPointTraining(8, 6, rounding, seed=1)
    history = model.fit(X, 4 * X[:, :2], epochs=6, batch_size=8, verbose=0, callbacks=[callback])
    return model, history.history


@pytest.fixture(scope="module")
def trained() -> tuple[Any, Any]:
    return _fit("stochastic")


def test_weights_and_biases_are_on_the_grid_and_learn(trained: tuple[Any, Any]) -> None:
    model, history = trained
    for weights in model.get_weights():
        codes = weights * 2**6
        np.testing.assert_array_equal(codes, np.round(codes))
        assert np.abs(codes).max() <= 128
    assert 0 <= history["fixed_point_saturated"][-1] < 0.2
    (step,) = record_of(model).steps
    assert step["rounding"] == "stochastic" and step["layers"] == ["hidden", "classes"]
    # To the nearest, no update reaches the next number.
    stalled, losses = _fit("nearest")
    expected = [
        np.array(fixed_point(ops.convert_to_tensor(w), 8, 6)) for w in _model().get_weights()
    ]
    for found, start in zip(stalled.get_weights(), expected, strict=True):
        assert (found == start).mean() > 0.8
    gains = [found["loss"][0] - found["loss"][-1] for found in (history, losses)]
    assert gains[0] > 1 > 2 * gains[1]


def test_an_int8_file_holds_them_exactly(trained: tuple[Any, Any]) -> None:
    model, _ = trained
    precision = ec.Int8(weight_ranges="power-of-two")
    flat = int8.convert(float32.convert(model), calibration=[X], precision=precision).flat
    kernels = [layer.kernel for layer in model.layers]
    filters = [flat.tensor(o, 1) for o in flat.operators if o.code == "FULLY_CONNECTED"]
    for kernel, stored in zip(kernels, filters, strict=True):
        scales = np.reshape(stored.scales, (-1, 1))
        np.testing.assert_array_equal(stored.values() * scales, np.clip(kernel, -127 / 64, 2).T)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("word_bits", 1), ("word_bits", 25), ("word_bits", True), ("fraction_bits", 40),
        ("fraction_bits", 1.5), ("rounding", "up"), ("begin_epoch", -1), ("seed", -1),
    ],
)  # fmt: skip
def test_other_arguments_are_refused(argument: str, value: Any) -> None:
    with pytest.raises(ArgumentError, match=argument):
        ec.FixedPointTraining(**{argument: value})
