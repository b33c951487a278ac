"""Fused LSTM layers in training, validation and simulation, against files in the engines."""

from __future__ import annotations

import dataclasses
import functools
import pickle
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import edgecompress as ec
from edgecompress.converters import float32, int8
from edgecompress.converters.real_values import quantize, quantized_inputs
from edgecompress.converters.recurrent_forms import choose_form
from edgecompress.core import fixed_point
from edgecompress.core.fusion import analyse
from edgecompress.core.learnt_ranges import valid_record
from edgecompress.core.lstm_layers import lstm_parts
from edgecompress.core.record import CompressionRecord, record_of
from edgecompress.engines.run import run_engine
from edgecompress.flatbuffers.artifact import Artifact
from edgecompress.precisions.integer_arithmetic import Grid
from edgecompress.precisions.integer_lstm import layer_states, run_layers, shifted_twice
from edgecompress.precisions.requantization import REQUANTIZATIONS, shifted_right

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("float_once")]
ENGINES = ("litert", "tflm")


def network() -> Any:
    body = [
        layers.Bidirectional(layers.LSTM(4, return_sequences=True), name="both"),
        layers.LSTM(5, dropout=0.1, name="last"),
        layers.Dense(3, name="scores"),
    ]
    return keras.Sequential([keras.Input((6, 4)), *body])


class Predictions(keras.callbacks.Callback):  # type: ignore[misc]
    """Keeps what the model predicts under training's arithmetic in each engine."""

    def __init__(self, x: Any, training: Any) -> None:
        super().__init__()
        self.x, self.training, self.found = x, training, dict[str, Any]()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.training.engine = "tflm"
        self.found["tflm"] = self.model.predict(self.x, verbose=0)
        self.training.engine = "litert"
        # Without a graph, which takes longer to make.
        self.found["litert"] = np.asarray(self.model(self.x, training=False))


@pytest.fixture(scope="module")
def trained() -> tuple[Any, Any, dict[str, Any], Any]:
    """A model, inputs, what it predicts as validation does, and its simulation of the file."""
    keras.utils.set_random_seed(3)
    model = network()
    model.set_weights([1.5 * w for w in model.get_weights()])
    x = np.random.normal(size=(160, 6, 4)).astype(np.float32)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    training = ec.QuantizationAwareTraining()
    predictions = Predictions(x, training)
    model.fit(x[:64], np.arange(64) % 3, verbose=0, callbacks=[training, predictions])
    return model, x, predictions.found, ec.simulate(model, engine="litert")


def test_training_learns_all_ranges_of_the_operators(trained: Any) -> None:
    model, _, _, simulated = trained
    record = record_of(model)
    assert record.notes == simulated.artifact.notes == ()
    assert not lstm_parts(model.layers[2])
    cells = [name for name in record.ranges if name.endswith("/cell")]
    assert cells == list(analyse(model).cells)
    assert cells == ["both/forward/cell", "both/backward/cell", "last/cell"]
    flat = simulated.artifact.flat
    operators = [o for o in flat.operators if o.code == "UNIDIRECTIONAL_SEQUENCE_LSTM"]
    # The halves of the Bidirectional share a scale with their concatenation.
    assert "QUANTIZE" not in flat.histogram()
    assert len({flat.output(operator).scales for operator in operators}) == 2
    low, high = record.ranges["last"]
    assert flat.output(operators[-1]).scales[0] == pytest.approx((high - low) / 255)


@pytest.mark.parametrize("engine", ENGINES)
def test_validation_computes_the_file_in_the_engine(trained: Any, engine: str) -> None:
    _, x, predictions, simulated = trained
    flat = simulated.artifact.flat
    codes = quantized_inputs(flat, [x])
    output = flat.tensors[flat.outputs[0]]
    found = run_engine(engine, simulated.artifact.data, codes).outputs[0].reshape(160, 3)
    np.testing.assert_array_equal(quantize(predictions[engine], output), found)
    other = quantize(predictions[ENGINES[engine == "litert"]], output)
    assert (other != found).any(), "the engines agree everywhere: the comparison shows nothing"


def test_the_simulation_computes_the_file_and_can_be_saved(trained: Any, tmp_path: Any) -> None:
    model, x, _, simulated = trained
    floats = ec.simulate(model)
    found = np.asarray(floats(x))
    np.testing.assert_allclose(found, simulated.predict(x), atol=1e-6)
    floats.save(tmp_path / "simulated.keras")
    loaded = keras.models.load_model(tmp_path / "simulated.keras")
    np.testing.assert_array_equal(loaded(x), found)


def test_ranges_of_changed_layers_are_not_used(trained: Any) -> None:
    model, *_ = trained
    record = record_of(model)
    changed = keras.models.clone_model(model)
    changed.set_weights(model.get_weights())
    changed.layers[1].cell.kernel.assign(changed.layers[1].cell.kernel * 2)
    valid = valid_record(changed, record)
    assert valid.outdated == ("last", "scores", "last/cell")
    assert "both/forward/cell" in valid.ranges


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("auto", "LSTM layers are fused (--recurrent auto), as training simulated them."),
        ("unrolled", "Training simulated last as one operator, which this file does not have: "),
    ],
)
def test_a_file_has_the_form_that_training_simulated(form: str, said: str) -> None:
    model = keras.Sequential([keras.Input((2, 3)), layers.LSTM(2, name="last")])
    ranges = {"input:0": (-1.0, 1.0), "last": (-0.5, 0.5), "last/cell": (-0.9, 0.6)}
    record = CompressionRecord(ranges=ranges)
    made: list[bool] = []

    def make(fused: bool) -> Any:
        made.append(fused)
        floats = float32.convert(float32.Trace(model, fused=fused))
        floats = dataclasses.replace(floats, artifact=floats.artifact.having(record=record))
        samples = None if fused else [np.ones((2, 2, 3), np.float32)]
        return floats, int8.convert(floats, calibration=samples)

    _, file = choose_form(None, form, make)  # type: ignore[arg-type]
    assert made == [form == "auto"]
    assert any(note.startswith(said) for note in file.notes)


def test_time_steps_are_those_of_the_operator() -> None:
    """Sums and cell states that saturate among them."""
    random = np.random.default_rng(0)
    lstm = layers.LSTM(5, use_bias=False, go_backwards=True, return_sequences=True)
    model = keras.Sequential([keras.Input((9, 3)), lstm])
    model.set_weights([5 * random.normal(size=w.shape) for w in model.weights])
    x = random.normal(size=(40, 9, 3)).astype(np.float32)
    made = int8.convert(float32.convert(float32.Trace(model, fused=True)), calibration=[x])
    flat = made.flat
    (operator,) = (o for o in flat.operators if o.code == "UNIDIRECTIONAL_SEQUENCE_LSTM")
    source, target = (_grid(flat.tensors[i]) for i in (operator.inputs[0], operator.outputs[0]))
    (codes,) = quantized_inputs(flat, [2 * x])
    values = (codes.astype(np.float32) - source.zero_point) * source.scale
    largest = 0.7 * 2**15 * flat.tensors[operator.inputs[19]].scales[0]
    for engine in ENGINES:
        arithmetic = REQUANTIZATIONS[engine]
        found = np.asarray(layer_states(lstm, values, source, target, largest, arithmetic))
        wanted = run_engine(engine, made.data, [codes]).outputs[0].reshape(40, 9, 5)
        np.testing.assert_array_equal(np.rint(found / target.scale) + target.zero_point, wanted)


@pytest.mark.parametrize("sequences", [True, False])
def test_extremes_of_states_are_those_of_all_states(sequences: bool) -> None:
    lstm = layers.LSTM(3, return_sequences=sequences, name="one")
    x = np.random.default_rng(1).normal(size=(5, 4, 2)).astype(np.float32)
    wanted, found = np.asarray(lstm(x)), []
    for extremes_only in (False, True):
        cells: dict[str, Any] = {}
        run = functools.partial(lstm, x)
        outputs, (states,) = run_layers(
            lstm_parts(lstm), run, observe=cells.__setitem__, extremes_only=extremes_only
        )
        np.testing.assert_allclose(outputs, wanted, atol=1e-6)
        found.append((np.min(states), np.max(states), np.abs(cells["one/cell"]).max()))
    np.testing.assert_allclose(*found, atol=1e-6)
    assert found[0][0] < wanted.min() + 1e-6 and found[0][2] > wanted.max()


def test_one_engine_rounds_products_twice() -> None:
    products = np.arange(-(2**17), 2**17 + 1, dtype=np.int64)
    for bits in (15, 16):
        found = np.asarray(shifted_twice(products, np.int64(bits)))
        twice = fixed_point.multiply(products, *fixed_point.quantize_multiplier(2.0**-bits))
        np.testing.assert_array_equal(found, twice)
        once = np.asarray(shifted_right(products, np.int64(bits)))
        np.testing.assert_array_equal(once, fixed_point.shift_right(products, bits))
        assert (found != once).any()


def _grid(tensor: Any) -> Grid:
    scale, zero = np.float32(tensor.scales[0]), np.float32(tensor.zero_points[0])
    return Grid(scale, zero, np.float32(-128) - zero, np.float32(127) - zero)


def test_layers_that_are_not_one_operator_are_noted() -> None:
    sequences = keras.Input((4, 3))
    for layer, fused in (
        (layers.LSTM(2), True),
        (layers.LSTM(2, go_backwards=True, use_bias=False), True),
        (layers.Bidirectional(layers.LSTM(2)), True),
        (layers.Bidirectional(layers.LSTM(2), merge_mode="sum"), False),
        (layers.Bidirectional(layers.GRU(2)), False),
        (layers.LSTM(2, activation="relu"), False),
        (layers.GRU(2), False),
    ):
        model = keras.Model(sequences, layer(sequences))
        assert bool(lstm_parts(layer)) is bool(analyse(model).cells) is fused
        assert bool(analyse(model).notes) is not fused
    for start in (layers.Masking()(sequences), keras.Input((None, 3))):
        inputs = sequences if start.shape[1] else start
        assert not analyse(keras.Model(inputs, layers.LSTM(2)(start))).cells


def test_the_largest_cell_state_counts(trained: Any) -> None:
    model, _, _, simulated = trained
    record = record_of(model)
    wide = record.ranges | {"last/cell": (-9.0, 1.0)}
    floats = pickle.loads(pickle.dumps(float32.convert(float32.Trace(model, fused=True))))
    made: Artifact = int8.convert(floats, ranges=wide, record=record)

    def scales(artifact: Artifact) -> list[float]:
        flat = artifact.flat
        operators = [o for o in flat.operators if o.code == "UNIDIRECTIONAL_SEQUENCE_LSTM"]
        return [flat.tensors[o.inputs[19]].scales[0] for o in operators]

    # 1.25 * 9 would need 4 integer bits, but six time steps add at most 6.
    assert scales(made)[-1] == 2.0**-12 != scales(simulated.artifact)[-1]
    assert scales(made)[:-1] == scales(simulated.artifact)[:-1]
