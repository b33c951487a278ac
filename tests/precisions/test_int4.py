"""int4 weights and mixed precisions: places, training, files, engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import edgecompress as ec
from edgecompress.converters import float32, int8
from edgecompress.converters.filter_precisions import filter_precisions, notes_on
from edgecompress.converters.real_values import dequantize, quantize, quantized_inputs
from edgecompress.core.errors import ArgumentError, EngineError
from edgecompress.core.fusion import analyse
from edgecompress.core.options import named
from edgecompress.core.record import CompressionRecord, read_record, record_of
from edgecompress.engines.registry import LITERT, TFLM
from edgecompress.engines.run import engine_available, run_engine
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import FILTER_READERS
from edgecompress.pipeline.builder import build
from edgecompress.pipeline.request import build_request
from edgecompress.precisions import PRECISIONS
from edgecompress.precisions.base import QAT, Place, Precision
from edgecompress.precisions.mixed import (
    assign,
    fused_cells,
    fuses_lstm,
    kernels_step,
    places_of,
    trained_kernels,
)
from edgecompress.precisions.simulation import simulate

pytestmark = pytest.mark.slow

layers = keras.layers
Int4, Int8, Int16x8 = ec.Int4, ec.Int8, ec.Int16x8

_RNG = np.random.default_rng(3)
X = _RNG.normal(size=(48, 6, 6, 2)).astype("f4")
Y = (X[..., 0].mean((1, 2)) > 0).astype("i4")


def _model() -> keras.Model:
    keras.utils.set_random_seed(2)
    image = keras.Input((6, 6, 2))
    x = layers.Conv2D(6, 3, use_bias=False, name="stem")(image)
    x = layers.ReLU(name="rectified")(layers.BatchNormalization(name="norm")(x))
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.Conv2D(6, 1, activation="relu", name="mix")(x)
    x = layers.Flatten()(x)
    x = layers.Dense(10, activation="relu", name="hidden")(x)
    return keras.Model(image, layers.Dense(3, activation="softmax", name="head")(x), name="tiny")


def _fit(precision: Precision, **settings: Any) -> keras.Model:
    model = _model()
    model.compile(keras.optimizers.SGD(0.05), "sparse_categorical_crossentropy")
    callback = ec.QuantizationAwareTraining(precision, **settings)
    model.fit(X, Y, verbose=0, callbacks=[callback])
    return model


def _widths(flat: FlatModel) -> dict[str, str]:
    """Layer -> type of the filter whose output it names."""
    found = {}
    for operator in flat.operators:
        if operator.code in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
            weights = flat.tensor(operator, 1)
            assert weights is not None
            found[flat.output(operator).name.partition("/")[0]] = weights.type
    return found


def _narrow(flat: FlatModel) -> set[str]:
    return {name for name, kind in _widths(flat).items() if kind == "INT4"}


@pytest.fixture(scope="module")
def trained() -> keras.Model:
    return _fit(Int4())


@pytest.fixture(scope="module")
def file(trained: keras.Model) -> FlatModel:
    made = int8.convert(float32.convert(trained), record=record_of(trained), precision=Int4())
    return made.flat


# --- Places -------------------------------------------------------------------------------------


def test_edges_depthwise_transposed_and_grouped_layers_keep_8_bits() -> None:
    inner = Place("x", "CONV_2D")
    assert Int4().weights_at(inner) == Int4()
    for place in (
        Place("x", "CONV_2D", first=True),
        Place("x", "FULLY_CONNECTED", last=True),
        Place("x", "DEPTHWISE_CONV_2D"),
        Place("x", "TRANSPOSE_CONV"),
        Place("x", "CONV_2D", grouped=True),
    ):
        assert Int4().weights_at(place) == Int8(), place
    edges = Int4(edge_bits=4, depthwise_bits=4)
    assert edges.weights_at(Place("x", "CONV_2D", first=True)) == edges
    assert edges.weights_at(Place("x", "DEPTHWISE_CONV_2D", last=True)) == edges
    assert edges.weights_at(Place("x", "CONV_2D", grouped=True)) == Int8()
    recurrent = Place("x", "FULLY_CONNECTED", recurrent=True)
    assert Int4().weights_at(recurrent) == Int4()
    assert Int4(recurrent_bits=8).weights_at(recurrent) == Int8()
    assert str(Place("x", "FULLY_CONNECTED", recurrent=True)) == "x (recurrent)"
    assert str(Place("x", "DEPTHWISE_CONV_2D", first=True)) == "x (first layer, depthwise)"


@pytest.mark.parametrize("setting", ["edge_bits", "depthwise_bits", "recurrent_bits"])
@pytest.mark.parametrize("value", [3, 6, True, "4"])
def test_other_widths_are_refused(setting: str, value: Any) -> None:
    with pytest.raises(ArgumentError, match=rf"{setting}.*4 or 8"):
        Int4(**{setting: value})


def test_settings_are_written_behind_the_name() -> None:
    text = "int4:edge-bits=4,scale-per-unit=true"
    assert named(PRECISIONS, text, "--precision") == Int4(edge_bits=4, scale_per_unit=True)
    assert named(PRECISIONS, "int4:scale-per-unit=false", "--precision") == Int4()
    with pytest.raises(ArgumentError, match=r"scale-per-unit.*true or false"):
        named(PRECISIONS, "int4:scale-per-unit=maybe", "--precision")


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN", "Bidirectional"])
def test_recurrent_kernels_have_their_bits_in_training_and_in_the_file(
    kind: str, bits: int
) -> None:
    keras.utils.set_random_seed(0)
    # An LSTM with another activation is never one operator.
    layer = layers.LSTM(6, activation="relu", name="seen")
    if kind == "Bidirectional":
        layer = layers.Bidirectional(layer, name="seen")
    elif kind != "LSTM":
        layer = getattr(layers, kind)(6, name="seen")
    x = inputs = keras.Input((5, 4))
    x = layer(layers.Conv1D(4, 2, name="stem")(x))
    model = keras.Model(inputs, layers.Dense(3, name="head")(x))
    precision = Int4(recurrent_bits=bits)
    places = places_of(model, analyse(model))
    wide = set(assign(places, precision))
    recurrent = {name for name in places if name.endswith("recurrent_kernel")}
    assert len(recurrent) == (2 if kind == "Bidirectional" else 1)
    assert wide & recurrent == (recurrent if bits == 8 else set())
    # The first layer and the last one, as ever; the kernel that reads the inputs has 4 bits.
    assert wide - recurrent == {"stem/kernel", "head/kernel"}
    source = float32.convert(model)
    found = filter_precisions(source, precision)
    flat = source.artifact.flat
    readers = {flat.output(o).name: flat.tensor(o, 1) for o in flat.operators if len(o.inputs) > 1}
    owners = {source.owners.get(readers[name].name, "") for name in found if readers[name]}
    assert owners == wide


@pytest.mark.parametrize("precision", [Int4(), Int4(recurrent_bits=8)], ids=["default", "8"])
@pytest.mark.parametrize("kind", ["LSTM", "Bidirectional"])
def test_an_lstm_that_is_one_operator_keeps_8_bits(kind: str, precision: Int4) -> None:
    x = inputs = keras.Input((5, 4))
    layer = layers.LSTM(6, name="seen")
    layer = layers.Bidirectional(layer, name="seen") if kind == "Bidirectional" else layer
    for part in (layer, layers.Dense(8, name="hidden"), layers.Dense(3, name="head")):
        x = part(x)
    model = keras.Model(inputs, x)
    graph = analyse(model)
    places = places_of(model, graph)
    exceptions = assign(places, precision)
    seen = {name for name in places if name.startswith("seen/")}
    assert seen <= set(exceptions) and "hidden/kernel" not in exceptions
    assert set(fused_cells(model, graph, precision, exceptions)) == set(graph.cells) != set()
    # All LSTM layers of a file have one form: a kernel of 4 bits unrolls them.
    for narrow in (Int4(recurrent_bits=4), Int4(recurrent_bits=4, edge_bits=4)):
        assert not fused_cells(model, graph, narrow, assign(places, narrow))
    mixed = assign(places, Int8(), {"seen": Int4()})
    assert not fused_cells(model, graph, Int8(), mixed)
    assert not fuses_lstm(Int8(), CompressionRecord([{"technique": QAT} | kernels_step(mixed)]))
    assert fuses_lstm(precision, CompressionRecord([{"technique": QAT} | kernels_step(exceptions)]))
    # The first layer of the file is the LSTM, not the Dense layer behind it.
    source = float32.convert(float32.Trace(model, fused=True))
    found = filter_precisions(source, precision)
    assert [str(place) for place, _ in found.values()] == ["head (last layer)"]
    parts = ["seen/forward", "seen/backward"] if kind == "Bidirectional" else ["seen"]
    (note,) = notes_on(precision, found, source.lstms.values())
    assert note.startswith("Weights in int8 instead of int4: ")
    assert all(f"{part} (one operator)" in note for part in parts)
    # An unrolled layer has filters for each time step, and is named once.
    many = {str(n): (Place("seen", "FULLY_CONNECTED"), Int8()) for n in range(3)}
    assert notes_on(precision, many) == ["Weights in int8 instead of int4: seen."]
    # Unrolled and without training, its kernels have 4 bits.
    unrolled = filter_precisions(float32.convert(model), Int4(edge_bits=4))
    assert not unrolled


@pytest.mark.parametrize("engine", ["litert", "tflm"])
def test_a_file_with_an_lstm_of_8_bits_computes_what_training_validated(engine: str) -> None:
    keras.utils.set_random_seed(3)
    body = [layers.LSTM(6), layers.Dense(16, activation="relu", name="hidden"), layers.Dense(3)]
    model = keras.Sequential([keras.Input((6, 4)), *body])
    x = np.random.normal(size=(96, 6, 4)).astype(np.float32)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    training = ec.QuantizationAwareTraining(Int4())
    found: dict[str, Any] = {}

    def predict(epoch: int, logs: Any) -> None:
        training.engine = engine
        found[engine] = np.asarray(model(x, training=False))

    after = keras.callbacks.LambdaCallback(on_epoch_end=predict)
    model.fit(x, np.arange(96) % 3, verbose=0, callbacks=[training, after])
    # Without calibration data: training has learnt all ranges.
    simulated = ec.simulate(model, engine=engine)
    flat = simulated.artifact.flat
    assert flat.histogram()["UNIDIRECTIONAL_SEQUENCE_LSTM"] == 1
    assert [flat.tensor(o, 1).type for o in flat.operators if o.code == "FULLY_CONNECTED"] == [
        "INT4", "INT8",
    ]  # fmt: skip
    output = flat.tensors[flat.outputs[0]]
    codes = run_engine(engine, simulated.artifact.data, quantized_inputs(flat, [x])).outputs[0]
    np.testing.assert_array_equal(quantize(found[engine], output), codes.reshape(96, 3))
    assert len(np.unique(codes)) > 20


@pytest.mark.parametrize("engine", ["litert", "tflm"])
def test_validation_computes_filters_of_4_bits_as_the_file_does(engine: str) -> None:
    """XNNPACK takes none of them: LiteRT's own kernels round in another way."""
    keras.utils.set_random_seed(3)
    body = [
        layers.Conv2D(12, 3, padding="same"),
        layers.DepthwiseConv2D(3),
        layers.SeparableConv2D(9, 3, padding="same", activation="relu"),
        layers.Flatten(),
        layers.Dense(7, activation="relu"),
        layers.Dense(5, name="odd"),
    ]
    model = keras.Sequential([keras.Input((6, 6, 2)), *body])
    x = np.random.normal(size=(256, 6, 6, 2)).astype(np.float32)
    y = np.asarray(model(x))
    model.compile("sgd", "mse")
    training = ec.QuantizationAwareTraining(Int4(edge_bits=4, depthwise_bits=4))
    found: dict[str, Any] = {}

    def predict(epoch: int, logs: Any) -> None:
        training.engine = engine
        found[engine] = np.asarray(model(x, training=False))

    after = keras.callbacks.LambdaCallback(on_epoch_end=predict)
    model.fit(x, y, verbose=0, callbacks=[training, after])
    simulated = ec.simulate(model, engine=engine, calibration=[x])
    flat = simulated.artifact.flat
    readers = [o for o in flat.operators if o.code in FILTER_READERS]
    assert {flat.tensor(o, 1).type for o in readers} == {"INT4"}
    output = flat.tensors[flat.outputs[0]]
    given = quantized_inputs(flat, [x])
    codes = run_engine(engine, simulated.artifact.data, given).outputs[0].reshape(256, 5)
    np.testing.assert_array_equal(simulated.codes(given)[0][0].reshape(256, 5), codes)
    np.testing.assert_array_equal(quantize(found[engine], output), codes)
    if engine == "litert":
        plain = quantize(np.asarray(ec.simulate(model)(x)), output)
        np.testing.assert_array_equal(plain, codes)


def test_names_come_before_places() -> None:
    model = _model()
    places = places_of(model, analyse(model))
    assert [str(place) for place in places.values()] == [
        "stem (first layer)", "depthwise (depthwise)", "mix", "hidden", "head (last layer)",
    ]  # fmt: skip
    assert set(assign(places, Int4())) == {"stem/kernel", "depthwise/kernel", "head/kernel"}
    found = assign(places, Int4(), {"hid.*": Int8(), "stem": Int4()})
    assert found == {"hidden/kernel": Int8(), "depthwise/kernel": Int8(), "head/kernel": Int8()}
    narrow = assign(places, Int8(), {"mix|hidden": Int4()})
    assert narrow == {"mix/kernel": Int4(), "hidden/kernel": Int4()}
    # Whole names: `hid` alone is not `hidden`.
    with pytest.raises(ArgumentError, match=r"per_layer.*stem, depthwise, mix, hidden, head"):
        assign(places, Int8(), {"hid": Int4()})
    with pytest.raises(ArgumentError, match=r"per_layer.*regular expressions"):
        assign(places, Int8(), {"(": Int4()})
    with pytest.raises(ArgumentError, match=r"per_layer.*activations of 8 bits.*int16x8"):
        assign(places, Int8(), {"mix": Int16x8()})


def test_a_separable_layer_has_two_places() -> None:
    model = keras.Sequential(
        [
            keras.Input((6, 4)),
            layers.Conv1D(4, 1),
            layers.SeparableConv1D(4, 3, name="separable"),
            layers.Dense(2),
        ]
    )
    found = assign(places_of(model, analyse(model)), Int4())
    assert [name for name in found if "separable" in name] == ["separable/depthwise_kernel"]


# --- Training and its file ----------------------------------------------------------------------


def test_the_file_has_4_bits_where_training_had_them(file: FlatModel) -> None:
    assert set(_widths(file)) == {"rectified", "depthwise", "mix", "hidden", "head"}
    assert _narrow(file) == {"mix", "hidden"}
    assert not any(t.type.startswith("FLOAT") for t in file.tensors)
    dense = next(o for o in file.operators if file.output(o).name == "hidden")
    weights = file.tensor(dense, 1)
    # TensorFlow Lite Micro refuses more than one scale here.
    assert weights is not None and len(weights.scales or ()) == 1
    assert weights.values().min() >= -7 and np.abs(weights.values()).max() == 7


def test_the_weights_in_the_file_are_those_of_the_simulation(
    trained: keras.Model, file: FlatModel
) -> None:
    wanted = {tuple(w.shape): np.asarray(w) for w in simulate(trained).weights}
    stored = {file.output(o).name: file.tensor(o, 1) for o in file.operators}
    for name, kernel in (
        ("hidden", wanted[(96, 10)].T),
        ("mix", wanted[(1, 1, 6, 6)].transpose(3, 0, 1, 2)),
        ("head/pre_activation", wanted[(10, 3)].T),
    ):
        weights = stored[name]
        assert weights is not None and weights.scales is not None
        scales = np.reshape(weights.scales, (-1, *[1] * (kernel.ndim - 1)))
        np.testing.assert_allclose(weights.values() * scales, kernel, rtol=1e-5, atol=1e-7)


def test_the_file_computes_what_training_simulated(trained: keras.Model, file: FlatModel) -> None:
    wanted = simulate(trained).predict(X, verbose=0)
    step = file.tensors[file.outputs[0]]
    for engine in (LITERT, TFLM):
        if engine_available(engine) is None:
            outputs = run_engine(engine, file.data, quantized_inputs(file, [X])).outputs[0]
            assert np.abs(dequantize(outputs, step) - wanted).max() <= 2.01 / 256, engine
    plain = trained.predict(X, verbose=0)
    assert np.abs(plain - wanted).max() > 3 / 256


def test_a_scale_for_each_unit_runs_in_litert_and_fails_on_a_board(trained: keras.Model) -> None:
    wide = Int4(scale_per_unit=True)
    request = build_request(
        trained,
        ["cortex-m4", "pixel-8"],
        evaluate=(X, Y),
        bundle=False,
        options={"precision": wide},
    )
    made = build(request)
    board, phone = ({c.rule: c for c in target.checks} for target in made.targets)
    assert phone["operators"].verdict == "pass"
    assert board["operators"].verdict == "fail"
    assert "one scale for all its weights" in str(board["operators"])
    assert made.verdict == "fail"
    if engine_available(TFLM) is None:
        with pytest.raises(EngineError):
            run_engine(TFLM, made.main.data, quantized_inputs(made.main.flat, [X[:1]]))


def test_training_is_followed_without_being_told(tmp_path: Path) -> None:
    model = _fit(Int8(), per_layer={"hidden|mix": Int4(scale_per_unit=True)})
    model.save(tmp_path / "m.keras")
    record, problem = read_record(tmp_path / "m.keras")
    assert problem is None
    assert record_of(model).steps[-1]["per_layer"]["hidden|mix"]["name"] == "int4"
    assert set(trained_kernels(record)) == {"mix/kernel", "hidden/kernel"}
    made = build(build_request(model, ["pixel-8"], bundle=False))
    assert made.main.kind == "int8"
    assert _narrow(made.main.flat) == {"mix", "hidden"}
    assert any("Weights in int4 instead of int8: mix, hidden." in note for note in made.notes)
    other = {"per_layer": {"mix": "int8", "hidden": "int4"}}
    plain = build(build_request(model, ["pixel-8"], bundle=False, options=other))
    assert _narrow(plain.main.flat) == {"hidden"}


def test_a_record_that_holds_something_else_is_refused() -> None:
    step = {"technique": "quantization_aware_training", "kernels": ["a"]}
    with pytest.raises(ArgumentError, match="record"):
        trained_kernels(CompressionRecord(steps=(step,)))


# --- After training -----------------------------------------------------------------------------


def test_after_training_with_names_and_reasons() -> None:
    source = float32.convert(_model())
    made = int8.convert(source, calibration=[X], precision=Int4())
    reasons = "stem (first layer), depthwise (depthwise), head (last layer)"
    assert any(reasons in note for note in made.notes)
    narrow = int8.convert(
        source, calibration=[X], precision=Int4(edge_bits=4, depthwise_bits=4, scale_per_unit=True)
    )
    assert set(_widths(narrow.flat).values()) == {"INT4"}
    mixed = int8.convert(source, calibration=[X], precision=Int8(), per_layer={"head": Int4()})
    assert _narrow(mixed.flat) == {"head"}
    with pytest.raises(ArgumentError, match=r"per_layer.*stem"):
        int8.convert(source, calibration=[X], per_layer={"no": Int4()})


def test_int8_without_exceptions_is_made_as_before() -> None:
    source = float32.convert(_model())
    plain = int8.convert(source, calibration=[X])
    assert int8.convert(source, calibration=[X], per_layer={"mix": Int8()}).data == plain.data
