"""Freezing with stand-ins for large weights gives the graph that TensorFlow makes without."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from tensorflow.python.framework import convert_to_constants as freezing

from edgecompress.converters import float32, lean_freezing
from edgecompress.converters.float32 import Trace


def test_the_frozen_graph_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [keras.Input((30,)), layers.Dense(40), layers.Dense(40), layers.Dense(2)]
    )
    function = Trace(model).concrete
    _, expected = freezing.convert_variables_to_constants_v2_as_graph(function)
    made: list[int] = []
    make = freezing.tensor_util.make_tensor_proto

    def counted(values: object, *more: object, **options: object) -> object:
        made.append(getattr(values, "nbytes", 0))
        return make(values, *more, **options)

    monkeypatch.setattr(freezing.tensor_util, "make_tensor_proto", counted)
    # The kernels of the first two layers: 4,800 and 6,400 bytes.
    monkeypatch.setattr(lean_freezing, "_LARGE", 1000)
    original = freezing.convert_variables_to_constants_v2_as_graph
    with lean_freezing.lean_freezing(whole=True):
        _, lean = freezing.convert_variables_to_constants_v2_as_graph(function)
    assert lean == expected
    assert made and max(made) < 1000
    assert freezing.convert_variables_to_constants_v2_as_graph is original
    assert freezing.tensor_util.make_tensor_proto is counted


def test_the_graph_is_empty_once_it_is_serialized(monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorflow.lite.python import convert as conversion

    given: list[int] = []
    original = conversion.convert

    def counted(model: object, flags: object, serialized: bytes, **options: object) -> bytes:
        given.extend((len(serialized), graph.ByteSize()))
        return b""

    monkeypatch.setattr(conversion, "convert", counted)
    function = Trace(keras.Sequential([keras.Input((30,)), layers.Dense(40)])).concrete
    with lean_freezing.lean_freezing():
        frozen, graph = freezing.convert_variables_to_constants_v2_as_graph(function)
        size = graph.ByteSize()
        conversion.convert_graphdef(graph, frozen.inputs, frozen.outputs)
    assert given == [size, 0] and size > 30 * 40 * 4
    assert conversion.convert is counted
    monkeypatch.undo()
    assert conversion.convert is original


def test_another_tensorflow_freezes_as_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(freezing, "convert_variables_to_constants_v2_as_graph")
    with lean_freezing.lean_freezing():
        assert not hasattr(freezing, "convert_variables_to_constants_v2_as_graph")
    assert tf.constant(1).numpy() == 1


def _towers() -> keras.Model:
    """Dense layers of every kind: plain, scaled, called twice, two alike, zero, ending a model."""
    keras.utils.set_random_seed(3)
    x = inputs = keras.Input((20,))
    twice, first, second = layers.Dense(20), layers.Dense(20), layers.Dense(20)
    x = twice(layers.ReLU()(twice(x)))
    x = layers.Add()([first(x), layers.ReLU()(second(x))])
    x = layers.ReLU()(layers.BatchNormalization()(layers.Dense(30)(x)))
    x = layers.Dense(30, kernel_initializer="zeros", bias_initializer="ones")(x)
    x = layers.Dense(24, activation="tanh")(x)
    model = keras.Model(inputs, [layers.Dense(7, activation="softmax")(x), 3 * layers.Dense(9)(x)])
    second.set_weights(first.get_weights())
    return model


def test_a_file_is_the_same_with_kernels_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model, left_out = _towers(), []
    completed = lean_freezing.Frozen.completed

    def counted(frozen: lean_freezing.Frozen, data: bytes) -> bytes | None:
        left_out.append({kernel.shape for kernel in frozen.kernels.values()})
        return completed(frozen, data)

    monkeypatch.setattr(lean_freezing.Frozen, "completed", counted)
    expected = float32.convert(model)
    monkeypatch.setattr(lean_freezing, "_LARGE", 100)
    found = float32.convert(model)
    assert found.artifact.data == expected.artifact.data
    assert found.owners == expected.owners
    # The two outputs: one layer is called twice, two are alike, one is scaled, one holds zeros.
    assert left_out == [set(), {(30, 24), (24, 7)}]


def test_a_kernel_that_the_converter_changed_is_converted_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = _towers()
    expected = float32.convert(model).artifact.data
    monkeypatch.setattr(lean_freezing, "_LARGE", 100)
    # As if it were unknown that scales are multiplied into a kernel.
    monkeypatch.setattr(lean_freezing, "_SCALING", ())
    wholes: list[bool] = []
    converted = float32._converted

    def counted(concrete: object, marked: bool, whole: bool = False) -> bytes:
        wholes.append(whole)
        return converted(concrete, marked, whole)

    monkeypatch.setattr(float32, "_converted", counted)
    assert float32.convert(model).artifact.data == expected
    assert wholes == [False, True]


def test_a_file_without_the_kernel_is_not_completed() -> None:
    frozen = lean_freezing.Frozen({1.5: np.zeros((2, 3), np.float32)})
    assert frozen.completed(float32.convert(_towers()).artifact.data) is None
    assert lean_freezing.Frozen().completed(b"as it is") == b"as it is"
