"""Recurrent layers as people write them: no loop in the file, the outputs of Keras."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgecompress.converters import float32, int8
from edgecompress.converters.loaders import example_inputs, wrap
from edgecompress.converters.verify import verify
from edgecompress.core.errors import UnsupportedModelError
from edgecompress.engines.run import run_engine

keras = pytest.importorskip("keras")

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("float_once")]
layers = keras.layers


def randomized(model: Any, seed: int = 0) -> Any:
    """Returns the model with random weights, biases among them."""
    random = np.random.default_rng(seed)
    model.set_weights([0.5 * random.normal(size=w.shape) for w in model.weights])
    return model


def stacked() -> Any:
    """Every kind of recurrent layer, each with settings that change what it computes."""
    both = layers.Bidirectional(layers.LSTM(3, return_sequences=True), merge_mode="sum")
    x = both(start := keras.Input((2, 3), name="x"))
    x = layers.GRU(4, return_sequences=True, reset_after=False)(x)
    x, state = layers.GRU(3, return_sequences=True, return_state=True, use_bias=False)(x)
    x = layers.GRU(3, return_sequences=True)(x, initial_state=[state])
    x = layers.SimpleRNN(3, go_backwards=True, return_sequences=True)(x)
    x = layers.RNN([layers.LSTMCell(2), layers.GRUCell(3)])(x)
    return randomized(keras.Model(start, [x, state]))


def test_no_loop_is_left_and_the_outputs_are_those_of_keras() -> None:
    model = stacked()
    before = [vars(layer).keys() for layer in model.layers]
    found = float32.convert(model, taps=False)
    assert [vars(layer).keys() for layer in model.layers] == before
    flat = found.artifact.flat
    assert flat.subgraphs == 1
    assert not {"WHILE", "REVERSE_V2", "TRANSPOSE"} & set(flat.histogram())
    x = example_inputs(wrap(model).inputs, 5, seed=1)
    for want, have in zip(
        wrap(model).predict(x), run_engine("litert", flat.data, x).outputs, strict=True
    ):
        np.testing.assert_allclose(have, want, atol=1e-5)
    assert "gru (GRU): its 2 time steps are unrolled." in " ".join(found.artifact.notes)


def test_a_file_of_two_layers_is_integer_in_both_engines() -> None:
    body = [layers.GRU(5, return_sequences=True), layers.GRU(4), layers.Dense(3)]
    model = randomized(keras.Sequential([keras.Input((3, 3)), *body]))
    x = example_inputs(wrap(model).inputs, 60)
    made = int8.convert(float32.convert(model), calibration=x, allow_float=False)
    reference = wrap(model).predict(x)
    for engine in ("litert", "tflm"):
        parity = verify(made.flat, reference=reference, samples=x, engine=engine, kind="scores")
        assert parity.agreement > 0.9
        assert min(o.r2 for o in parity.outputs if o.r2 is not None) > 0.98
    # A model with other weights must not pass.
    wrong = wrap(randomized(model, 1)).predict(x)
    assert verify(made.flat, reference=wrong, samples=x, kind="scores").agreement < 0.8


def test_masks_are_named_and_open_lengths_refused() -> None:
    masked = keras.Sequential([keras.Input((2, 3)), layers.Masking(), layers.GRU(3, name="gate")])
    notes = float32.convert(masked).artifact.notes
    assert any(note.startswith("gate (GRU) reads a mask") for note in notes)
    opened = keras.Sequential([keras.Input((None, 3)), layers.GRU(3)])
    with pytest.raises(UnsupportedModelError, match="open dimensions"):
        float32.convert(opened)
