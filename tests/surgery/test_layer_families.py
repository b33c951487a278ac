"""Channel removal through layers that normalize, attend, repeat in time, or hold constants.

Each network is silenced at random where it must be for a channel to leave, and one cause of
silence is taken back: then the channel has to stay, and the outputs are still those of the network.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

from edgecompress.core.keras_graph import APPLICATION_LAYERS
from edgecompress.core.record import record_of
from edgecompress.surgery.finalize import finalize

pytestmark = pytest.mark.slow

# Weights that have to be zero for a channel to be silent: (layer, attribute, axis).
Weights = list[tuple[str, str, int]]


def own(name: str) -> Any:
    """Returns a class of layers of keras.applications."""
    return getattr(importlib.import_module(APPLICATION_LAYERS[name]), name)


def transformer() -> keras.Model:
    tokens = keras.Input((6,), dtype="int32")
    x = layers.Embedding(9, 8, name="table")(tokens)
    y = layers.LayerNormalization(name="norm")(x)
    x = x + layers.MultiHeadAttention(2, 3, name="attention")(y, y, use_causal_mask=True)
    y = layers.LayerNormalization(name="norm2")(x)
    y = layers.Dense(10, activation="gelu", name="wide")(y)
    x = x + layers.Dense(8, name="narrow")(y)
    x = layers.LayerNormalization(name="norm3")(x)
    return keras.Model(tokens, layers.Dense(3, name="out")(ops.mean(x, axis=1)))


def heads(use_bias: bool = True) -> keras.Model:
    x = inputs = keras.Input((5, 4))
    y = layers.Dense(6, name="other")(x)
    x = layers.MultiHeadAttention(8, 2, value_dim=3, use_bias=use_bias, name="attention")(x, y)
    return keras.Model(inputs, layers.Dense(3, name="out")(layers.Flatten()(x)))


def before(kind: str, **options: Any) -> Callable[[], keras.Model]:
    """A convolution without padding in front of a recurrent layer."""

    def build() -> keras.Model:
        x = inputs = keras.Input((6, 4))
        x = layers.Conv1D(6, 2, activation="tanh", name="conv")(x)
        cell = layers.GRU(4) if kind == "Bidirectional" else 4
        x = getattr(layers, kind)(cell, name="units", **options)(x)
        return keras.Model(inputs, layers.Dense(3, name="out")(x))

    return build


def masked(kind: str) -> Callable[[], keras.Model]:
    """A table of vectors of which the first is no token, in front of recurrent layers."""

    def build() -> keras.Model:
        tokens = keras.Input((6,), dtype="int32")
        x = layers.Embedding(9, 8, mask_zero=True, name="table")(tokens)
        cell = layers.LSTM(4, return_sequences=True) if kind == "Bidirectional" else 4
        options = {} if kind == "Bidirectional" else {"return_sequences": True}
        x = getattr(layers, kind)(cell, name="units", **options)(x)
        x = layers.GRU(4, name="last")(x)
        return keras.Model(tokens, layers.Dense(3, name="out")(x))

    return build


def recurrent(kind: str) -> Callable[[], keras.Model]:
    def build() -> keras.Model:
        x = inputs = keras.Input((5, 4))
        x = getattr(layers, kind)(8, return_sequences=True, name="units")(x)
        x = getattr(layers, kind)(4, name="last")(x)
        return keras.Model(inputs, layers.Dense(3, name="out")(x))

    return build


def constants() -> keras.Model:
    x = inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, name="conv")(x)
    s = ops.mean(x, axis=(1, 2), keepdims=True)
    s = layers.Conv2D(8, 1, name="gate")(s)
    s = layers.ReLU(6.0)(3.0 + s) * (1.0 / 6.0)
    x = layers.Conv2D(4, 1, name="mix")(x * s)
    x = ops.silu(2.0 - x[:, 1:3] / 2.0)
    return keras.Model(inputs, layers.Dense(3, name="out")(layers.Flatten()(x)))


def convnext() -> keras.Model:
    x = inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 2, strides=2, name="stem")(x)
    x = layers.LayerNormalization(name="norm", epsilon=0.01)(x)
    y = layers.Conv2D(8, 3, padding="same", groups=8, name="depthwise")(x)
    y = layers.LayerNormalization(name="norm2", epsilon=0.01)(y)
    y = layers.Dense(8, name="back")(y)
    x = x + own("LayerScale")(0.5, 8, name="scale")(y)
    return keras.Model(inputs, layers.Dense(3, name="out")(layers.GlobalMaxPooling2D()(x)))


def groups() -> keras.Model:
    x = inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 1, name="conv")(x)
    x = layers.GroupNormalization(4, name="norm")(x)
    y = layers.Conv2D(8, 3, padding="same", groups=4, activation="relu", name="grouped")(x)
    x = own("CustomScaleLayer")(0.3)([x, y])
    return keras.Model(inputs, layers.Dense(3, name="out")(layers.Flatten()(x)))


def lengths() -> keras.Model:
    x = inputs = keras.Input((5,))
    x = layers.Dense(8, name="first")(x)
    x = layers.RMSNormalization(name="norm", epsilon=0.1)(x)
    x = layers.Dense(8, name="second")(x)
    x = layers.UnitNormalization()(x)
    return keras.Model(inputs, layers.Dense(3, name="out")(x))


def einsums() -> keras.Model:
    x = inputs = keras.Input((4, 5))
    x = layers.EinsumDense("abc,cd->abd", (4, 8), activation="relu", name="plain")(x)
    x = layers.EinsumDense("abc,cde->abde", (4, 2, 6), bias_axes="e", name="split")(x)
    x = layers.EinsumDense("abde,dec->abc", (4, 7), bias_axes="c", name="join")(x)
    x = layers.PReLU(alpha_initializer="uniform", shared_axes=[1, 2], name="slope")(x)
    return keras.Model(inputs, layers.Dense(3, name="out")(layers.Flatten()(x)))


_STREAM: Weights = [
    ("table", "embeddings", -1), ("attention", "output_dense.kernel", -1),
    ("attention", "output_dense.bias", -1), ("narrow", "kernel", -1), ("narrow", "bias", -1),
    ("norm", "gamma", -1), ("norm2", "gamma", -1), ("norm3", "gamma", -1),
]  # fmt: skip
_HEADS: Weights = [("attention", "value_dense.kernel", 1), ("attention", "value_dense.bias", 0)]


def _unit(gates: int) -> Weights:
    return [("units", f"cell.{name}", gates) for name in ("kernel", "recurrent_kernel", "bias")]


# (network, weights silent together, channels in one of them, that in `removed_channels`)
CASES: dict[str, tuple[Callable[[], keras.Model], Weights, int, str]] = {
    "stream": (transformer, _STREAM, 8, "table"),
    "heads": (heads, _HEADS, 8, "attention:heads"),
    "heads_unread": (heads, [("attention", "output_dense.kernel", 0)], 8, "attention:heads"),
    "cross_attention": (heads, [("other", "kernel", -1)], 6, "other"),
    "cross_without_bias": (
        lambda: heads(False), [("other", "kernel", -1), ("other", "bias", -1)], 6, "other"
    ),
    "masked_lstm": (masked("LSTM"), [("table", "embeddings", -1)], 8, "table"),
    "masked_unit": (masked("LSTM"), _unit(2), 4, "units"),
    "masked_simple_rnn": (masked("SimpleRNN"), [("table", "embeddings", -1)], 8, "table"),
    "masked_both": (masked("Bidirectional"), [("table", "embeddings", -1)], 8, "table"),
    "before_lstm": (before("LSTM"), [("conv", "kernel", -1)], 6, "conv"),
    "before_gru": (before("GRU"), [("conv", "kernel", -1)], 6, "conv"),
    "before_early_gru": (before("GRU", reset_after=False), [("conv", "kernel", -1)], 6, "conv"),
    "before_simple_rnn": (before("SimpleRNN"), [("conv", "kernel", -1)], 6, "conv"),
    "before_both": (before("Bidirectional"), [("conv", "kernel", -1)], 6, "conv"),
    "before_lstm_without_bias": (
        before("LSTM", use_bias=False), [("conv", "kernel", -1), ("conv", "bias", -1)], 6, "conv"
    ),
    "lstm": (recurrent("LSTM"), _unit(2), 8, "units"),
    "gru": (recurrent("GRU"), _unit(2), 8, "units"),
    "simple_rnn": (recurrent("SimpleRNN"), _unit(0), 8, "units"),
    "constants": (constants, [("conv", "kernel", -1), ("conv", "bias", -1)], 8, "gate"),
    "convnext": (convnext, [("stem", "kernel", -1), ("stem", "bias", -1), ("norm", "gamma", -1),
                            ("norm", "beta", -1), ("depthwise", "bias", -1),
                            ("norm2", "gamma", -1),
                            ("scale", "gamma", -1)], 8, "stem"),
    "einsum": (einsums, [("plain", "kernel", -1)], 8, "plain"),
    "einsum_split": (einsums, [("split", "kernel", -1), ("split", "bias", -1)], 6, "split"),
    "einsum_join": (einsums, [("join", "kernel", -1)], 7, "join"),
    "rms": (lengths, [("first", "kernel", -1), ("first", "bias", -1)], 8, "first"),
    "unit": (lengths, [("second", "kernel", -1), ("second", "bias", -1)], 8, "second"),
}  # fmt: skip


def randomized(build: Callable[[], keras.Model], seed: int) -> keras.Model:
    model, random = build(), np.random.default_rng(seed)
    for weight in model.weights:
        if "float" in str(weight.dtype):
            weight.assign(random.normal(size=weight.shape) * 0.6 + 0.1)
    return model


def silence(model: keras.Model, weights: Weights, which: np.ndarray) -> None:
    for name, attribute, axis in weights:
        variable = model.get_layer(name)
        for part in attribute.split("."):
            variable = getattr(variable, part)
        value = np.array(variable)
        if attribute.startswith("cell."):  # Here, the axis is the gate that proposes the state.
            units = model.get_layer(name).units
            value.reshape(*value.shape[:-1], -1, units)[..., axis, which] = 0
        else:
            np.moveaxis(value, axis, -1)[..., which] = 0
        variable.assign(value)


def agree(model: keras.Model, small: keras.Model) -> None:
    random = np.random.default_rng(7)
    shape = (4, *model.inputs[0].shape[1:])
    whole = "int" in str(model.inputs[0].dtype)
    x = random.integers(0, 9, shape) if whole else random.normal(size=shape)
    a, b = np.asarray(model(x)), np.asarray(small(x))
    assert a.std(axis=0).max() > 1e-3  # Equal constants would prove nothing.
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(a).max(), rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_silent_channels_go_and_others_stay(name: str) -> None:
    build, weights, count, layer = CASES[name]
    random = np.random.default_rng(len(name))
    which = np.sort(random.choice(count, count // 2, replace=False))
    model = randomized(build, 1)
    silence(model, weights, which)
    small = finalize(model)
    assert record_of(small).removed_channels[layer] == (count, count - len(which))
    assert small.count_params() < model.count_params()
    agree(model, small)

    # A single weight that is not zero keeps its channel.
    dropped = weights[int(random.integers(len(weights)))]
    model = randomized(build, 1)
    silence(model, [entry for entry in weights if entry != dropped], which)
    silence(model, [dropped], which[1:])
    small = finalize(model)
    before, after = record_of(small).removed_channels.get(layer, (count, count))
    assert after == before - len(which) + 1
    assert not any("all layers" in note for note in record_of(small).notes)
    agree(model, small)


@pytest.mark.parametrize("mode", ["concat", "sum", "ave", "mul"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_units_of_both_directions(kind: str, mode: str) -> None:
    """Those go that are silent in both."""

    def build() -> keras.Model:
        x = inputs = keras.Input((5, 4))
        cell = getattr(layers, kind)(6, return_sequences=True)
        x = layers.Dense(5, name="first")(x)
        x = layers.Bidirectional(cell, merge_mode=mode, name="both")(x)
        return keras.Model(inputs, layers.Dense(3, name="out")(layers.Flatten()(x)))

    model = randomized(build, 4)
    silence(model, [("first", "kernel", -1), ("first", "bias", -1)], np.array([2]))
    both = model.get_layer("both")
    for cell, which in ((both.forward_layer, [0, 3]), (both.backward_layer, [3, 4, 5])):
        for variable in cell.weights:
            value = np.array(variable)
            value.reshape(*value.shape[:-1], -1, 6)[..., 2, which] = 0  # The proposed state.
            variable.assign(value)
    small = finalize(model)
    left = {"concat": (12, 10), "sum": (6, 5), "ave": (6, 5)}
    removed = dict(record_of(small).removed_channels)
    if mode == "mul":
        assert removed == {}
        assert "multiplies its two directions" in " ".join(record_of(small).notes)
    else:
        assert removed == {"first": (5, 4), "both": left[mode]}
        units = [cell.units for cell in (small.get_layer("both").forward_layer,
                                         small.get_layer("both").backward_layer)]  # fmt: skip
        assert units == [5, 5]
    agree(model, small)


@pytest.mark.parametrize(
    ("equation", "shape", "bias", "reason"),
    [
        ("abc,c->abc", (4, 6), None, "does not sum over its last axis"),
        ("abc,bd->adc", (3, 6), None, "does not sum over its last axis"),
        ("abc,cd->adb", (3, 4), None, "does not make its last axis"),
        ("abc,cd->abd", (4, 3), "bd", "has a bias with other axes than the channels"),
    ],
)
def test_other_equations_keep_their_channels(
    equation: str, shape: tuple[int, ...], bias: str | None, reason: str
) -> None:
    x = inputs = keras.Input((4, 5))
    x = layers.Dense(6, name="first")(x)
    x = layers.EinsumDense(equation, shape, bias_axes=bias, name="einsum")(x)
    model = randomized(lambda: keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x))), 5)
    silence(model, [("first", "kernel", -1)], np.array([1]))
    small = finalize(model)
    assert record_of(small).removed_channels == {}
    assert reason in " ".join(record_of(small).notes)
    agree(model, small)


def test_a_bias_that_an_einsum_lacks_is_switched_on() -> None:
    x = inputs = keras.Input((4, 5))
    x = layers.Dense(6, name="first")(x)
    x = layers.EinsumDense("abc,cd->abd", (4, 3), name="einsum")(x)
    model = randomized(lambda: keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x))), 5)
    silence(model, [("first", "kernel", -1)], np.array([1]))
    small = finalize(model)
    assert record_of(small).removed_channels == {"first": (6, 5)}
    assert small.get_layer("einsum").bias.shape == (3,)
    agree(model, small)


def test_one_slope_for_all_channels_passes_them_on() -> None:
    x = inputs = keras.Input((4, 5))
    x = layers.PReLU(shared_axes=[1, 2], name="slope")(layers.Dense(6, name="first")(x))
    model = randomized(lambda: keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x))), 6)
    silence(model, [("first", "kernel", -1)], np.array([1, 2]))
    small = finalize(model)
    assert record_of(small).removed_channels == {"first": (6, 4)}
    agree(model, small)


def test_groups_go_whole_or_not_at_all() -> None:
    model = randomized(groups, 1)
    silent = [("conv", "kernel", -1), ("conv", "bias", -1), ("norm", "beta", -1),
              ("grouped", "kernel", -1), ("grouped", "bias", -1)]  # fmt: skip
    silence(model, silent, np.array([2, 3, 5]))  # The second group of four, half of the third.
    small = finalize(model)
    assert record_of(small).removed_channels == {"conv": (8, 6), "grouped": (8, 6)}
    assert small.get_layer("norm").groups == small.get_layer("grouped").groups == 3
    agree(model, small)


def test_a_normalization_counts_the_zeros_that_went() -> None:
    """The narrower LayerNormalization alone would compute something else."""
    model = randomized(convnext, 2)
    _, weights, _, _ = CASES["convnext"]
    silence(model, weights, np.array([0, 3, 6]))
    small = finalize(model)
    inner = small.get_layer("norm").get_layer("norm")
    assert inner.gamma.shape == (8,)
    wrong = keras.layers.LayerNormalization(epsilon=0.01)
    x = np.random.default_rng(0).normal(size=(2, 3, 3, 5)).astype("float32")
    wrong.build(x.shape)
    wrong.set_weights([np.array(w)[:5] for w in inner.get_weights()])
    assert np.abs(np.asarray(wrong(x)) - np.asarray(small.get_layer("norm")(x))).max() > 0.05


def test_arrays_and_reductions_over_channels_keep_them() -> None:
    x = inputs = keras.Input((4, 3))
    a = layers.Dense(6, name="shifted")(x) + ops.arange(6.0)
    b = layers.Dense(6, name="reduced")(x)
    b = b * ops.mean(b, axis=-1, keepdims=True)
    c = layers.Dense(6, name="sliced")(x)[..., :4]
    joined = layers.Concatenate()([a, b, c])
    model = keras.Model(inputs, layers.Dense(2, name="out")(layers.Flatten()(joined)))
    for name in ("shifted", "reduced", "sliced"):
        silence(model, [(name, "kernel", -1)], np.array([1]))
    small = finalize(model)
    assert record_of(small).removed_channels == {}
    notes = " ".join(record_of(small).notes)
    for reason in ("constant of more than one number", "reduces the channels", "selects channels"):
        assert reason in notes
    agree(model, small)


def test_shared_layers_and_given_states_are_cut_only_where_every_call_agrees() -> None:
    x = inputs = keras.Input((4, 3))
    a, b = (layers.Dense(6, name=name)(x) for name in ("first", "second"))
    attention = layers.MultiHeadAttention(2, 3, name="attention")
    norm = layers.LayerNormalization(name="norm")
    calls = [attention(a, b), attention(a, a), norm(a), norm(layers.GlobalMaxPooling1D()(a))]
    state = [layers.Dense(6, name=name)(layers.Flatten()(x)) for name in ("h", "c")]
    calls.append(layers.LSTM(6, name="units")(b, initial_state=state))
    joined = layers.Concatenate()([layers.Flatten()(call) for call in calls])
    model = randomized(lambda: keras.Model(inputs, layers.Dense(2, name="out")(joined)), 3)
    for name in ("first", "second"):
        silence(model, [(name, "kernel", -1), (name, "bias", -1)], np.array([1]))
    silence(model, [("norm", "gamma", -1), ("norm", "beta", -1)], np.array([1]))
    silence(model, _unit(2), np.array([2]))
    small = finalize(model)
    assert record_of(small).removed_channels == {}
    notes = " ".join(record_of(small).notes)
    assert "all layers" not in notes
    assert "is called on different shapes" in notes
    agree(model, small)
