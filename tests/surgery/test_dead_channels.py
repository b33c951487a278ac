"""Channels that real data never wake, on networks whose dead channels are known."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from edgecompress.core.errors import ArgumentError
from edgecompress.core.record import record_of
from edgecompress.surgery.dead_channels import observed_constants
from edgecompress.surgery.finalize import finalize

pytestmark = pytest.mark.slow

_RANDOM = np.random.default_rng(0)
X = _RANDOM.uniform(0, 1, (100, 4)).astype("float32")


def _dead_relu() -> keras.Model:
    """Units 1 and 4 of `hidden` are negative for every input of at most 1."""
    keras.utils.set_random_seed(1)
    x = inputs = keras.Input((4,))
    x = layers.Dense(6, activation="relu", name="hidden")(x)
    model = keras.Model(inputs, layers.Dense(3, name="out")(x))
    kernel = np.abs(np.array(model.get_layer("hidden").kernel))
    bias = np.zeros(6)
    kernel[:, 1], bias[1] = 1.0, -4.5
    kernel[:, 4], bias[4] = -1.0, 0.0
    model.get_layer("hidden").kernel.assign(kernel)
    model.get_layer("hidden").bias.assign(bias)
    return model


def test_units_that_no_sample_wakes_go_on_request_only() -> None:
    model = _dead_relu()
    assert record_of(finalize(model)).removed_channels == {}
    small = finalize(model, dead_channels=X)
    record = record_of(small)
    assert dict(record.removed_channels) == {"hidden": (6, 4)}
    assert small.count_params() == model.count_params() - 2 * (4 + 1 + 3)
    np.testing.assert_allclose(model(X), small(X), atol=1e-6)
    step = next(step for step in record.steps if step["technique"] == "dead_channels")
    assert (step["channels"], step["parameters"], step["calibration_samples"]) == (2, 16, 100)
    assert step["calibration_difference"] == pytest.approx(
        float(np.abs(np.array(model(X)) - np.array(small(X))).max()), abs=1e-7
    )
    assert any("give `validation`" in note for note in record.notes)


def test_a_unit_that_one_sample_wakes_stays() -> None:
    x = X.copy()
    x[99] = 1.2  # 4 x 1.2 > 4.5: the last sample wakes unit 1.
    small = finalize(_dead_relu(), dead_channels=x)
    assert dict(record_of(small).removed_channels) == {"hidden": (6, 5)}


def test_what_changes_on_validation_data_is_measured() -> None:
    model, other = _dead_relu(), X[:10].copy()
    other[3] = 2.0
    small = finalize(model, dead_channels=X, validation=other)
    step = next(s for s in record_of(small).steps if s["technique"] == "dead_channels")
    truth = np.abs(np.array(model(other)) - np.array(small(other)))
    assert step["validation_difference"] == pytest.approx(float(truth.max()))
    assert truth.max() > 0.01
    assert (step["validation_samples"], step["validation_changed"]) == (10, 1)
    assert any("1 of 10 samples differ" in note for note in record_of(small).notes)


def test_constants_that_are_not_zero_are_folded() -> None:
    """A saturated ReLU6 holds 6 behind BatchNormalization, a convolution and in nested models."""
    keras.utils.set_random_seed(2)
    inner = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(5, 3, use_bias=False, name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(6.0, name="relu6"),
        ],
        name="features",
    )
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 2, name="next")(inner(inputs))
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))
    inner.get_layer("norm").beta.assign([0.0, 0.0, 50.0, -50.0, 0.0])
    images = _RANDOM.uniform(0, 1, (70, 6, 6, 2)).astype("float32")
    constants = observed_constants(model, [images])["features/relu6"]
    np.testing.assert_array_equal(constants, [np.nan, np.nan, 6.0, 0.0, np.nan])
    small = finalize(model, dead_channels=images)
    assert dict(record_of(small).removed_channels) == {"features/conv": (5, 3)}
    np.testing.assert_allclose(model(images), small(images), atol=1e-4)


def test_a_sum_with_a_living_channel_stays() -> None:
    x = inputs = keras.Input((4,))
    dead = layers.Dense(3, activation="relu", bias_initializer=keras.initializers.Constant(-99))(x)
    x = layers.Add()([dead, layers.Dense(3, name="alive")(x)])
    model = keras.Model(inputs, layers.Dense(2)(x))
    small = finalize(model, dead_channels=X)
    assert record_of(small).removed_channels == {}
    assert any("none is constant" in note for note in record_of(small).notes)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"dead_channels": X[:, :3]}, "`dead_channels` must hold real inputs.*shape|100, 3"),
        ({"dead_channels": np.where(np.isin(X, X[7]), np.nan, X)}, "finite numbers.*sample 7"),
        ({"dead_channels": X[:0]}, "at least one"),
        ({"dead_channels": [X, X]}, "one array for each"),
        ({"validation": X}, "come with `dead_channels`"),
        ({"dead_channels": X, "validation": X[:, :2]}, "`validation` must hold real inputs"),
    ],
)
def test_wrong_data_is_refused_in_one_line(given: dict[str, np.ndarray], match: str) -> None:
    with pytest.raises(ArgumentError, match=match) as caught:
        finalize(_dead_relu(), **given)
    assert "\n" not in str(caught.value)
