"""Samples from datasets, generators and TFLite's representative datasets, as arrays."""

from __future__ import annotations

import itertools
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from edgecompress.converters.calibration import load
from edgecompress.converters.streams import MOST_SAMPLES, collect, is_stream
from edgecompress.core.errors import ArgumentError

X = np.random.default_rng(0).normal(size=(40, 6)).astype("float32")
Y = np.arange(40) % 3


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return keras.Sequential([keras.Input((6,), name="features"), keras.layers.Dense(3)])


STREAMS = {
    "dataset of batches": lambda: tf.data.Dataset.from_tensor_slices(X).batch(7),
    "dataset of samples": lambda: tf.data.Dataset.from_tensor_slices(X),
    "generator of TFLite": lambda: ([X[i : i + 1]] for i in range(40)),
    "function of TFLite": lambda: lambda: ([X[i : i + 1]] for i in range(40)),
    "names": lambda: ({"features": X[i : i + 8]} for i in range(0, 40, 8)),
}


@pytest.mark.parametrize("name", STREAMS)
def test_streams_give_the_samples_they_yield(name: str, model: keras.Model) -> None:
    samples, labels = load(STREAMS[name](), model)
    assert samples is not None and labels is None
    np.testing.assert_array_equal(samples[0], X)


@pytest.mark.parametrize("batch", [None, 7])
def test_labels_come_along(batch: int | None, model: keras.Model) -> None:
    dataset = tf.data.Dataset.from_tensor_slices((X, Y))
    samples, labels = load(dataset if batch is None else dataset.batch(batch), model)
    assert samples is not None
    np.testing.assert_array_equal(samples[0], X)
    np.testing.assert_array_equal(labels, Y)


def test_a_stream_without_an_end_is_left_after_enough(model: keras.Model) -> None:
    samples, _ = load(tf.data.Dataset.from_tensor_slices(X).repeat().batch(32), model)
    assert samples is not None and len(samples[0]) == MOST_SAMPLES
    np.testing.assert_array_equal(samples[0][40:80], X)
    assert len(collect(itertools.repeat(X[:1]), [1], ["x"], "c")[0]) == MOST_SAMPLES


def test_several_inputs() -> None:
    pairs = ([X[i : i + 4], X[i : i + 4, :2]] for i in range(0, 40, 4))
    first, second = collect(pairs, [1, 1], ["a", "b"], "calibration")
    np.testing.assert_array_equal(first, X)
    np.testing.assert_array_equal(second, X[:, :2])


def test_labels_of_the_beginning_judge_nothing(model: keras.Model) -> None:
    sorted_by_class = tf.data.Dataset.from_tensor_slices((X, Y)).repeat(60)
    samples, labels = load(sorted_by_class, model)
    assert samples is not None and len(samples[0]) == MOST_SAMPLES and labels is None
    samples, labels = load(sorted_by_class, model, whole=True)
    assert samples is not None and len(samples[0]) == len(labels) == 60 * 40
    endless = itertools.repeat((np.zeros((50_000, 6), "float32"), np.zeros(50_000)))
    with pytest.raises(ArgumentError, match="must end after 100,000 samples at most"):
        load(endless, model, whole=True)


def _fails() -> Any:
    yield X[:1]
    raise RuntimeError("disk\ngone")


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (_fails(), "yield samples until it ends. Got 'RuntimeError: disk gone'"),
        (lambda needed: [], "yield samples until it ends. Got .TypeError"),
        (iter([(X[:2], [Y[:2], Y[:1]])]), "yield the labels of one output as an array"),
        (iter([]), "yield at least one sample"),
        (itertools.repeat(np.zeros((0, 6))), "yield at least one sample"),
        (lambda: 3, "must be a function that returns something to iterate over. Got 'int'"),
        (iter([[X[:1], X[:1]]]), "yield one array for each of the model's 1 inputs. Got 2"),
        (iter([{"other": X[:1]}]), r"yield the input 'features'. Got \['other'\]"),
        (iter([X[None, :1]]), "yield samples, or batches of samples"),
        (iter([X[:2], X[:2, :3]]), "yield samples of one shape"),
        (iter([(X[:2], Y[:2]), X[:2]]), "yield labels with every batch, or with none"),
    ],
)
def test_what_does_not_fit_is_one_line(source: Any, text: str, model: keras.Model) -> None:
    with pytest.raises(ArgumentError, match=text) as caught:
        load(source, model, argument="--calibration")
    assert "\n" not in str(caught.value) and "`--calibration`" in str(caught.value)


def test_what_is_no_stream() -> None:
    for source in (X, [X], (X, Y), {"x": X}, "x.npz", None, tf.constant(X)):
        assert not is_stream(source)
