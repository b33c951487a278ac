"""Removal of channels never changes what a network computes, on networks drawn at random."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import layers

from edgecompress.core.keras_graph import named_layers
from edgecompress.core.model_copy import variable_of
from edgecompress.core.record import record_of
from edgecompress.surgery.finalize import finalize
from edgecompress.surgery.rules import Producer, filters_of, producers_of
from edgecompress.surgery.zero_filters import zero_filters

pytestmark = pytest.mark.slow

# Each example builds and runs several models, so few run by default.
_EXAMPLES = int(os.environ.get("EDGECOMPRESS_REMOVAL_EXAMPLES", "20"))
_SETTINGS = settings(
    max_examples=_EXAMPLES,
    deadline=None,
    derandomize="EDGECOMPRESS_REMOVAL_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
)

Pick = Callable[..., Any]
Step = Callable[[Any, Pick], Any]
_ACTIVATIONS = ("linear", "relu", "sigmoid", "tanh", "leaky_relu", "hard_sigmoid", "gelu")


def _padding(pick: Pick, x: Any, size: int) -> str:
    return "same" if min(x.shape[1:-1]) < size else str(pick("valid", "same"))


def _conv(x: Any, pick: Pick) -> Any:
    size = pick(1, 2, 3)
    padding = _padding(pick, x, size)
    more = {"activation": pick(*_ACTIVATIONS), "use_bias": pick(True, False)}
    return layers.Conv2D(pick(2, 4, 6), size, pick(1, 2), padding, **more)(x)


def _depthwise(x: Any, pick: Pick) -> Any:
    size = pick(1, 2, 3)
    return layers.DepthwiseConv2D(
        size, padding=_padding(pick, x, size), depth_multiplier=pick(1, 2),
        activation=pick(*_ACTIVATIONS), use_bias=pick(True, False),
    )(x)  # fmt: skip


def _separable(x: Any, pick: Pick) -> Any:
    size = pick(1, 3)
    return layers.SeparableConv2D(
        pick(3, 5), size, padding=_padding(pick, x, size), depth_multiplier=pick(1, 2),
        activation=pick(*_ACTIVATIONS),
    )(x)  # fmt: skip


def _transposed(x: Any, pick: Pick) -> Any:
    return layers.Conv2DTranspose(
        pick(2, 5), pick(1, 2, 3), strides=pick(1, 2), padding=pick("valid", "same"),
        activation=pick(*_ACTIVATIONS),
    )(x)  # fmt: skip


def _grouped(x: Any, pick: Pick) -> Any:
    x = layers.Conv2D(4, 1, activation=pick(*_ACTIVATIONS))(x)
    return layers.Conv2D(pick(2, 4), 1, groups=2, activation=pick(*_ACTIVATIONS))(x)


def _batch_normalization(x: Any, pick: Pick) -> Any:
    return layers.BatchNormalization(scale=pick(True, False), center=pick(True, False))(x)


def _layer_normalization(x: Any, pick: Pick) -> Any:
    return pick(layers.LayerNormalization, layers.RMSNormalization)()(x)


def _activation(x: Any, pick: Pick) -> Any:
    made = pick(*_ACTIVATIONS, "relu6", "prelu", "prelu of channels")
    if made == "relu6":
        return layers.ReLU(6.0)(x)
    if made == "prelu":
        return layers.PReLU()(x)
    if made == "prelu of channels":
        return layers.PReLU(shared_axes=list(range(1, len(x.shape) - 1)) or None)(x)
    return layers.Activation(made)(x)


def _pooling(x: Any, pick: Pick) -> Any:
    kind = pick(layers.MaxPooling2D, layers.AveragePooling2D)
    return kind(2, padding=_padding(pick, x, 2))(x)


def _residual(x: Any, pick: Pick) -> Any:
    merge = pick(layers.Add, layers.Subtract, layers.Maximum, layers.Average)
    first = layers.Dense(x.shape[-1], activation=pick(*_ACTIVATIONS))(x)
    return merge()([x, layers.Dense(x.shape[-1])(first)])


def _branches(x: Any, pick: Pick) -> Any:
    left = layers.Dense(pick(2, 3), activation=pick(*_ACTIVATIONS))(x)
    right = layers.Dense(pick(2, 3), activation=pick(*_ACTIVATIONS))(x)
    return layers.Concatenate()([left, x, right] if pick(True, False) else [left, right])


def _gate(x: Any, pick: Pick) -> Any:
    """Squeeze-excite."""
    squeezed = layers.GlobalAveragePooling2D(keepdims=True)(x)
    squeezed = layers.Conv2D(2, 1, activation="relu")(squeezed)
    gate = layers.Conv2D(x.shape[-1], 1, activation=pick("sigmoid", "hard_sigmoid"))(squeezed)
    return layers.Multiply()([x, gate])


def _zero_padding(x: Any, pick: Pick) -> Any:
    return layers.ZeroPadding2D(1)(x)


def _nested(x: Any, pick: Pick) -> Any:
    inner = keras.Sequential(
        [
            keras.Input(x.shape[1:]),
            layers.Dense(pick(3, 4), activation=pick(*_ACTIVATIONS)),
            layers.Dense(x.shape[-1]),
        ]
    )
    return inner(inner(x)) if pick(False, True) else inner(x)


def _shared(x: Any, pick: Pick) -> Any:
    layer = layers.Dense(x.shape[-1], activation=pick(*_ACTIVATIONS))
    if pick(True, False):
        return layer(layer(x))
    return layers.Concatenate()([layer(x), layer(layers.Activation(pick("relu", "tanh"))(x))])


def _dense(x: Any, pick: Pick) -> Any:
    return layers.Dense(
        pick(3, 6), activation=pick(*_ACTIVATIONS, "softmax"), use_bias=pick(True, False)
    )(x)


def _arithmetic(x: Any, pick: Pick) -> Any:
    x = x * 0.5 + 1.0
    return keras.ops.relu(x) if pick(True, False) else x


def _conv1d(x: Any, pick: Pick) -> Any:
    padding = pick("causal", "same")
    return layers.Conv1D(pick(3, 5), pick(1, 2), padding=padding, activation=pick(*_ACTIVATIONS))(x)


def _recurrent(x: Any, pick: Pick) -> Any:
    cell = pick(layers.LSTM, layers.GRU, layers.SimpleRNN)
    return cell(pick(3, 4), return_sequences=True)(x)


def _both_ways(x: Any, pick: Pick) -> Any:
    cell = pick(layers.LSTM, layers.GRU)(3, return_sequences=True)
    return layers.Bidirectional(cell, merge_mode=pick("concat", "sum"))(x)


def _attention(x: Any, pick: Pick) -> Any:
    made = layers.MultiHeadAttention(pick(1, 3), 2)(x, x)
    return layers.Add()([x, made]) if pick(True, False) else made


def _einsum(x: Any, pick: Pick) -> Any:
    return layers.EinsumDense("abc,cd->abd", (x.shape[1], pick(3, 5)), bias_axes=pick("d", None))(x)


_ANYWHERE: tuple[Step, ...] = (
    _activation, _arithmetic, _batch_normalization, _branches, _dense, _layer_normalization,
    _nested, _residual, _shared,
)  # fmt: skip
_ON_IMAGES: tuple[Step, ...] = (
    _conv, _depthwise, _gate, _grouped, _pooling, _separable, _transposed, _zero_padding,
)  # fmt: skip
_ON_SEQUENCES: tuple[Step, ...] = (_attention, _both_ways, _conv1d, _einsum, _recurrent)


def _end(x: Any, pick: Pick) -> Any:
    if len(x.shape) == 4:
        how = pick("mean", "flatten", "reshape")
        if how == "mean":
            x = layers.GlobalAveragePooling2D()(x)
        elif how == "flatten":
            x = layers.Flatten()(x)
        else:
            x = layers.Reshape((x.shape[1] * x.shape[2] * x.shape[3],))(x)
    else:
        x = pick(layers.GlobalMaxPooling1D, layers.Flatten)()(x)
    x = layers.Dense(pick(4, 6), activation=pick(*_ACTIVATIONS))(x)
    return layers.Dense(3)(x)


def _randomized(model: keras.Model, random: np.random.Generator) -> None:
    """Gives every weight a value that hides nothing."""
    for _, layer in named_layers(model):
        for variable in layer.weights:
            if "seed" in variable.path:
                continue
            scale = 1.0 / np.sqrt(np.prod(variable.shape[:-1]) or 1) if variable.ndim > 1 else 0.7
            value = random.normal(scale=scale, size=variable.shape)
            if "variance" in variable.path or "gamma" in variable.path:
                value = np.abs(value) + 0.5
            variable.assign(value)


def _network(data: st.DataObject, images: bool) -> tuple[keras.Model, np.random.Generator]:
    """Draws a network with random weights, and a generator for the rest of the example."""

    def pick(*values: Any) -> Any:
        return data.draw(st.sampled_from(values))

    keras.backend.clear_session()
    seed = data.draw(st.integers(0, 2**16))
    if images:
        source, steps = keras.Input((6, 6, 3)), _ANYWHERE + _ON_IMAGES
        x = _conv(source, pick)
    elif pick(True, False):
        source, steps = keras.Input((5,), dtype="int32"), _ANYWHERE + _ON_SEQUENCES
        x = layers.Embedding(7, 4)(source)
    else:
        source, steps = keras.Input((5, 3)), _ANYWHERE + _ON_SEQUENCES
        x = _dense(source, pick)
    for step in data.draw(st.lists(st.sampled_from(steps), min_size=2, max_size=4)):
        x = step(x, pick)
    model = keras.Model(source, _end(x, pick))
    random = np.random.default_rng(seed)
    _randomized(model, random)
    return model, random


def _samples(model: keras.Model, random: np.random.Generator) -> np.ndarray:
    shape = (4, *model.inputs[0].shape[1:])
    if "int" in model.inputs[0].dtype:
        return random.integers(0, 7, shape)
    return random.normal(size=shape).astype("float32")


def _same(model: keras.Model, small: keras.Model, random: np.random.Generator) -> None:
    x = _samples(model, random)
    before, after = (np.asarray(m(x, training=False)) for m in (model, small))
    limit = 1e-5 * max(1.0, float(np.abs(before).max()))
    np.testing.assert_allclose(before, after, atol=limit, rtol=0)


def _drawn_masks(model: keras.Model, random: np.random.Generator) -> dict[str, np.ndarray]:
    masks = {}
    for path, producer in producers_of(model).items():
        mask = random.random(_width(producer)) < 0.4
        mask[random.integers(len(mask))] = False
        masks[path] = mask
    return masks


def _width(producer: Producer) -> int:
    kernel = producer.filters.kernels[0]
    return kernel.count(variable_of(producer.layer, kernel.attribute).shape)


def _set(variable: Any, axis: int, mask: np.ndarray) -> None:
    value = np.array(variable)
    np.moveaxis(value, axis, -1)[..., mask] = 0
    variable.assign(value)


def _prune(model: keras.Model, masks: dict[str, np.ndarray], random: np.random.Generator) -> None:
    """Sets kernels to zero as pruning leaves them, so that channels hold all kinds of constants."""
    for path, layer in named_layers(model):
        found = filters_of(layer)
        if isinstance(layer, (layers.LSTM, layers.GRU, layers.SimpleRNN)):
            gates = {"LSTM": 4, "GRU": 3, "SimpleRNN": 1}[type(layer).__name__]
            still = random.random(layer.units) < 0.4
            mask = np.zeros((gates, layer.units), bool)
            mask[min(2, gates - 1)] = still
            for variable in layer.weights:
                _set(variable, -1, mask.ravel())
        elif isinstance(layer, layers.MultiHeadAttention):
            mask = random.random(layer.num_heads) < 0.4
            for variable in layer.value_dense.weights:
                _set(variable, -2, mask)
        elif found and not isinstance(layer, layers.Bidirectional):
            (part,) = found[0].kernels
            kernel = variable_of(layer, part.attribute)
            _set(kernel, part.axis, masks[path])
            if random.random() < 0.3 and len(kernel.shape) > 1:  # Channels that nothing reads.
                other = -1 if part.axis == -2 else -2
                _set(kernel, other, random.random(kernel.shape[other]) < 0.3)


def _check(model: keras.Model, random: np.random.Generator) -> None:
    masks = _drawn_masks(model, random)
    _prune(model, masks, random)
    masked = finalize(model)
    # Skipped means that finalize itself saw a difference.
    assert not [note for note in record_of(masked).notes if note.startswith("left masked: all")]
    _same(model, masked, random)

    # Filters that training silences: all that were silenced are gone.
    zeroed = zero_filters(model, masks)
    small = finalize(model)
    record = record_of(small)
    assert not [note for note in record.notes if note.startswith("left masked: all")]
    _same(model, small, random)
    left = producers_of(small)
    gone = 0
    for path, mask in zeroed.filters.items():
        width = _width(left[path])
        assert width <= len(mask) - mask.sum(), path
        gone += len(mask) - width
    # What stays of what was asked for is named.
    for path, mask in masks.items():
        if (mask & ~zeroed.filters[path]).any():
            assert any(note.startswith(f"{path}: ") for note in zeroed.notes), path
    if gone:
        assert small.count_params() < model.count_params()


@_SETTINGS
@given(st.data())
def test_removal_never_changes_a_network_of_images(data: st.DataObject) -> None:
    _check(*_network(data, images=True))


@_SETTINGS
@given(st.data())
def test_removal_never_changes_a_network_of_sequences(data: st.DataObject) -> None:
    _check(*_network(data, images=False))


def _padded_network(data: st.DataObject) -> tuple[keras.Model, np.random.Generator]:
    """Draws a layer that reads zeros beyond the border, between channels that hold constants."""

    def pick(*values: Any) -> Any:
        return data.draw(st.sampled_from(values))

    keras.backend.clear_session()
    seed = data.draw(st.integers(0, 2**16))
    source = keras.Input((4, 4, 2))
    # Constants of these are seldom 0.
    made = pick("linear", "sigmoid", "tanh", "gelu")
    x = layers.Conv2D(pick(4, 6), 1, activation=made)(source)
    x = pick(
        layers.DepthwiseConv2D(pick(2, 3), padding="same", depth_multiplier=pick(1, 2)),
        layers.DepthwiseConv2D(2, 2, padding="same", use_bias=False),
        layers.SeparableConv2D(3, 3, padding="same"),
        layers.Conv2D(4, 3, padding="same", groups=2),
        layers.Conv2DTranspose(3, 3, padding="same"),
        layers.ZeroPadding2D(1),
        layers.AveragePooling2D(3, padding="same"),
    )(x)
    x = layers.Conv2D(3, 1, activation="relu")(layers.Activation(pick("relu", "tanh"))(x))
    model = keras.Model(source, layers.Dense(2)(layers.Flatten()(x)))
    random = np.random.default_rng(seed)
    _randomized(model, random)
    return model, random


@_SETTINGS
@given(st.data())
def test_a_border_of_zeros_makes_no_constant(data: st.DataObject) -> None:
    _check(*_padded_network(data))


@_SETTINGS
@given(st.data())
def test_units_that_only_read_themselves_are_gone(data: st.DataObject) -> None:
    """Nothing behind the layer reads these units, nor does any other of its units."""

    def pick(*values: Any) -> Any:
        return data.draw(st.sampled_from(values))

    keras.backend.clear_session()
    random = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    units = pick(3, 5)
    unread = np.array(data.draw(st.lists(st.booleans(), min_size=units, max_size=units)))
    unread[random.integers(units)] = False
    cell = pick(layers.LSTM, layers.GRU, layers.SimpleRNN)
    recurrent = cell(units, return_sequences=True)
    reader = pick(
        layers.Dense(4),
        layers.Conv1D(4, 2),
        layers.EinsumDense("abc,cd->abd", (4, 4)),
        layers.LSTM(2, return_sequences=True),
    )
    x = recurrent(source := keras.Input((4, 3)))
    model = keras.Model(source, layers.Dense(2)(layers.Flatten()(reader(x))))
    _randomized(model, random)
    again = np.array(recurrent.cell.recurrent_kernel).reshape(units, -1, units)
    again[unread] *= np.eye(units)[unread][:, None]
    recurrent.cell.recurrent_kernel.assign(again.reshape(units, -1))
    kernel = reader.cell.kernel if isinstance(reader, layers.LSTM) else reader.kernel
    _set(kernel, -2, unread)

    small = finalize(model)
    assert small.get_layer(recurrent.name).units == (~unread).sum()
    _same(model, small, random)
