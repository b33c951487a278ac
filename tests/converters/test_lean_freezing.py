"""Freezing with stand-ins for large weights gives the graph that TensorFlow makes without."""

from __future__ import annotations

import keras
import pytest
import tensorflow as tf
from keras import layers
from tensorflow.python.framework import convert_to_constants as freezing

from edgecompress.converters import lean_freezing
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
    with lean_freezing.lean_freezing():
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
