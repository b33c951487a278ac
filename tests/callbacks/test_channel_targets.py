"""Filters with gates, filters of EinsumDense, and channels that LayerNormalization counts."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import edgecompress as ec
from edgecompress.callbacks.channel_targets import find_targets
from edgecompress.callbacks.fused_penalty import PenalizedGroups
from edgecompress.core.errors import ArgumentError
from edgecompress.core.keras_graph import APPLICATION_LAYERS
from edgecompress.core.record import record_of
from edgecompress.criteria.fisher import Fisher
from edgecompress.criteria.magnitude import Magnitude
from edgecompress.surgery.zero_filters import zero_filters

pytestmark = pytest.mark.slow

_RNG = np.random.default_rng(3)
_Y = _RNG.integers(0, 3, 32)


def randomized(model: keras.Model) -> keras.Model:
    """Gives every weight a value that hides nothing."""
    rng = np.random.default_rng(1)
    for weight in model.weights:
        value = rng.normal(scale=0.4, size=weight.shape)
        weight.assign(np.abs(value) + 0.5 if "variance" in weight.path else value)
    return model


def samples(model: keras.Model) -> np.ndarray:
    return _RNG.normal(size=(32, *model.inputs[0].shape[1:])).astype("float32")


def fit(model: keras.Model, x: np.ndarray, *callbacks: Any, epochs: int = 4) -> None:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss)
    model.fit(x, _Y, batch_size=16, epochs=epochs, verbose=0, callbacks=list(callbacks))


# --- units with gates -----------------------------------------------------------------------------


def sequence(layer: keras.layers.Layer) -> keras.Model:
    inputs = keras.Input((5, 3))
    x = layers.Flatten()(layer(inputs))
    return randomized(keras.Model(inputs, layers.Dense(3, name="out")(x)))


UNITS: dict[str, Callable[[], keras.layers.Layer]] = {
    "LSTM": lambda: layers.LSTM(6, return_sequences=True, name="made"),
    "GRU": lambda: layers.GRU(6, name="made"),
    "GRU, one bias": lambda: layers.GRU(6, reset_after=False, name="made"),
    "SimpleRNN": lambda: layers.SimpleRNN(6, use_bias=False, name="made"),
    "concatenated": lambda: layers.Bidirectional(layers.LSTM(6), name="made"),
    "added": lambda: layers.Bidirectional(layers.GRU(6), merge_mode="sum", name="made"),
    "EinsumDense": lambda: layers.EinsumDense("abc,dc->abd", (5, 6), bias_axes="d", name="made"),
}  # fmt: skip


def width(layer: keras.layers.Layer) -> int:
    if isinstance(layer, layers.Bidirectional):
        layer = layer.forward_layer
    return layer.units if hasattr(layer, "units") else layer.output.shape[-1]


@pytest.mark.parametrize("kind", UNITS)
def test_lasso_removes_units_exactly_and_they_stay_gone(kind: str) -> None:
    model = sequence(UNITS[kind]())
    x = samples(model)
    lasso = ec.GroupLasso(1e-3, final_sparsity=0.5, layers=["made"], end_epoch=1)
    fit(model, x, lasso, epochs=3)
    small = ec.finalize(model)
    assert width(small.get_layer("made")) == 3
    np.testing.assert_allclose(small(x), model(x), atol=1e-5)
    assert record_of(model).steps[0]["zero_filters"] == {"made": [3, 6]}


@pytest.mark.parametrize("kind", ["LSTM", "added", "EinsumDense"])
def test_channel_pruning_reaches_its_budget_by_units(kind: str) -> None:
    model = sequence(UNITS[kind]())
    x = samples(model)
    fit(model, x, ec.ChannelPruning(ec.Budget(parameters=0.6)), epochs=5)
    small = ec.finalize(model)
    assert small.count_params() <= 0.6 * model.count_params()
    assert width(small.get_layer("made")) < 6
    np.testing.assert_allclose(small(x), model(x), atol=1e-5)


def test_a_unit_is_the_columns_of_all_its_gates() -> None:
    """Penalty, gradient, proximal step and scores, against loops over units and gates."""
    model = sequence(UNITS["GRU"]())
    cell = model.get_layer("made").cell
    kernel, again = np.array(cell.kernel), np.array(cell.recurrent_kernel)
    columns = [[unit + 6 * gate for gate in range(3)] for unit in range(6)]
    norms = [np.sqrt((kernel[:, c] ** 2).sum() + (again[:, c] ** 2).sum()) for c in columns]
    groups = PenalizedGroups(cell.kernel, -1, None, 27, 3, ((cell.recurrent_kernel, -1),))
    assert float(groups.penalty(0.3)) == pytest.approx(0.3 * 27**0.5 * sum(norms), rel=1e-5)
    slopes = groups.gradients(0.3)
    for variable, value in ((cell.kernel, kernel), (cell.recurrent_kernel, again)):
        wanted = np.zeros_like(value)
        for unit, c in enumerate(columns):
            wanted[:, c] = 0.3 * 27**0.5 * value[:, c] / norms[unit]
        np.testing.assert_allclose(slopes[id(variable)], wanted, rtol=1e-4)
    (target,) = find_targets(model, None, Magnitude(), "test", lambda text: None).layers
    np.testing.assert_allclose(target.scores(Magnitude(), None), norms, rtol=1e-5)
    amount = sorted(norms)[2] * 1.01 / 27**0.5
    groups.shrink(amount)
    scale = np.maximum(0, 1 - amount * 27**0.5 / np.array(norms))
    assert (scale == 0).sum() == 3
    np.testing.assert_allclose(cell.kernel, kernel * np.tile(scale, 3), atol=1e-6)
    np.testing.assert_allclose(cell.recurrent_kernel, again * np.tile(scale, 3), atol=1e-6)
    np.testing.assert_array_equal(target.zeros(), scale == 0)


def test_a_criterion_that_sees_no_gates_is_named() -> None:
    model = sequence(UNITS["LSTM"]())
    with pytest.raises(ArgumentError, match="its units have gates"):
        find_targets(model, ["made"], Fisher(), "test", lambda text: None)


# --- channels that LayerNormalization counts ------------------------------------------------------


def convnext(scale: bool = True) -> keras.Model:
    own = importlib.import_module(APPLICATION_LAYERS["LayerScale"]).LayerScale
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 2, strides=2, name="stem")(inputs)
    x = layers.LayerNormalization(name="stem_norm")(x)
    y = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    y = layers.LayerNormalization(name="norm", scale=scale)(y)
    y = layers.Dense(16, activation="gelu", name="wide")(y)
    y = own(0.5, 8, name="scale")(layers.Dense(8, name="narrow")(y))
    x = layers.GlobalAveragePooling2D()(layers.Add()([x, y]))
    x = layers.LayerNormalization(name="head_norm")(x)
    return randomized(keras.Model(inputs, layers.Dense(3, name="out")(x)))


def test_a_channel_falls_silent_behind_every_normalization() -> None:
    """Exactly as if its filters, biases and gammas were zero and only the last betas were kept."""
    gone = np.isin(np.arange(8), [1, 5])
    expected = convnext()
    for name, attributes in {
        "stem": ("kernel", "bias"), "narrow": ("kernel", "bias"), "depthwise": ("bias",),
        "stem_norm": ("gamma", "beta"), "norm": ("gamma",), "head_norm": ("gamma",),
    }.items():  # fmt: skip
        for attribute in attributes:
            variable = getattr(expected.get_layer(name), attribute)
            variable.assign(np.where(gone, 0, np.array(variable)))
    model = convnext()
    x = samples(model)
    done = zero_filters(model, {"stem": gone, "narrow": gone})
    np.testing.assert_allclose(model(x), expected(x), atol=1e-4)
    assert [note.split(":")[0] for note in done.notes] == ["stem_norm", "norm", "head_norm"]
    assert "zeros in place of 2 silenced channels" in done.notes[0]
    small = ec.finalize(model)
    assert (small.get_layer("stem").filters, small.get_layer("narrow").units) == (6, 6)
    np.testing.assert_allclose(small(x), model(x), atol=1e-4)
    # One end of the shortcut alone cannot go.
    model = convnext()
    before = model(x)
    done = zero_filters(model, {"stem": gone})
    assert not done.filters["stem"].any()
    assert "stem: 2 weak filters stay because" in done.notes[0]
    np.testing.assert_array_equal(before, model(x))


def test_training_removes_the_channels_of_a_convnext() -> None:
    model = convnext()
    x = samples(model)
    pruning = ec.ChannelPruning(ec.Budget(macs=0.5), per_layer={"wide": 0})
    fit(model, x, pruning, epochs=6)
    small = ec.finalize(model)
    left = small.get_layer("stem").filters
    assert left == small.get_layer("narrow").units <= 4
    assert small.get_layer("wide").units == 16
    np.testing.assert_allclose(small(x), model(x), atol=1e-4)


def test_lasso_keeps_the_silence_of_a_convnext() -> None:
    model = convnext()
    x = samples(model)
    fit(model, x, ec.GroupLasso(1e-3, final_sparsity=0.5, end_epoch=1), epochs=4)
    small = ec.finalize(model)
    assert small.get_layer("stem").filters == small.get_layer("narrow").units < 8
    np.testing.assert_allclose(small(x), model(x), atol=1e-4)


def test_without_a_gamma_nothing_falls_silent() -> None:
    notes: list[str] = []
    found = find_targets(convnext(scale=False), None, Magnitude(), "test", notes.append)
    assert [target.path for target in found.layers] == ["wide"]
    assert any("skips stem: " in text and "has no gamma to silence them" in text for text in notes)
