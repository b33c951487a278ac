"""Constants of infinity become the largest float; other files stay as they are."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from edgecompress.converters import float32
from edgecompress.converters.infinite_constants import without_infinities
from edgecompress.converters.loaders import wrap
from edgecompress.flatbuffers.editor import ModelEditor
from edgecompress.flatbuffers.reading import read_tflite

LARGEST = np.finfo(np.float32).max


def _model() -> keras.Model:
    x = keras.Input((4,))
    mask = np.array([[True, False, True, True]])
    y = keras.ops.where(mask, x, np.float32(-np.inf))
    return keras.Model(x, keras.layers.Softmax()(y))


def _floats(data: bytes) -> np.ndarray:
    tensors = read_tflite(data).tensors
    return np.concatenate([t.values().ravel() for t in tensors if t.is_constant and t.bits == 32])


def test_a_model_with_infinity_has_none_in_its_file() -> None:
    data = float32.convert(_model()).artifact.data
    found = _floats(data)
    assert np.isfinite(found).all() and -LARGEST in found


@pytest.mark.parametrize("values", [[np.inf, 1.0, -np.inf, np.nan], [-np.inf]])
def test_infinite_constants_are_replaced_in_place(values: list[float]) -> None:
    editor = ModelEditor(float32.to_flatbuffer(wrap(_model())))
    before = len(editor.pack())
    editor.add((len(values),), "FLOAT32", np.array(values, np.float32))
    data = editor.pack()
    changed = without_infinities(data)
    assert len(changed) == len(data) > before
    expected = np.clip(values, -LARGEST, LARGEST).astype(np.float32)
    np.testing.assert_array_equal(read_tflite(changed).tensors[-1].values(), expected)
    # Nothing else has changed.
    differing = np.frombuffer(changed, np.uint8) != np.frombuffer(data, np.uint8)
    assert 0 < differing.sum() <= 4 * len(values)


def test_a_finite_file_is_returned_as_it_is() -> None:
    editor = ModelEditor(float32.to_flatbuffer(wrap(_model())))
    # Its sum is infinite, no value is.
    editor.add((2,), "FLOAT32", np.full(2, LARGEST, np.float32))
    data = editor.pack()
    assert without_infinities(data) is data
