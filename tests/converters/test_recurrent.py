"""Recurrent layers as people write them: no loop in the file, the outputs of Keras."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgecompress.converters import c_array, float32, int8, recurrent_forms
from edgecompress.converters.float32 import Float32Result, Trace
from edgecompress.converters.formats import Costs, FormatRequest
from edgecompress.converters.fused_lstm import LSTM, cell_scale, why_not_fused
from edgecompress.converters.loaders import example_inputs, wrap
from edgecompress.converters.real_values import dequantize, quantized_inputs
from edgecompress.converters.recurrent_forms import FORMS, choose_form
from edgecompress.converters.time_steps import joined, reversed_steps
from edgecompress.converters.verify import verify
from edgecompress.core.errors import ArgumentError, ConversionError, UnsupportedModelError
from edgecompress.engines.run import run_engine
from edgecompress.flatbuffers.artifact import Artifact

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
    x = layers.GRU(4, return_sequences=True, reset_after=False, name="gate")(x)
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
    assert not {"WHILE", "REVERSE_V2", "GATHER", "PACK", "TRANSPOSE"} & set(flat.histogram())
    x = example_inputs(wrap(model).inputs, 5, seed=1)
    for want, have in zip(
        wrap(model).predict(x), run_engine("litert", flat.data, x).outputs, strict=True
    ):
        np.testing.assert_allclose(have, want, atol=1e-5)
    assert "gate (GRU): its 2 time steps are unrolled." in " ".join(found.artifact.notes)


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


def test_long_sequences_are_joined_a_few_steps_at_a_time() -> None:
    import tensorflow as tf

    parts = [tf.fill((1, 2), float(i)) for i in range(23)]
    np.testing.assert_array_equal(joined(parts, 0)[:, 0], np.arange(23))
    x = tf.reshape(tf.range(46.0), (2, 23, 1))
    np.testing.assert_array_equal(reversed_steps(x), x[:, ::-1])
    graph = tf.function(lambda x: joined(tf.split(x, 23, axis=1), 1))
    nodes = graph.get_concrete_function(x).graph.get_operations()
    # A concatenation reads its tensors and an axis.
    assert max(len(node.inputs) for node in nodes if node.type == "ConcatV2") <= 10 + 1


def two_lstms() -> Any:
    body = [layers.Bidirectional(layers.LSTM(3, return_sequences=True)), layers.LSTM(4)]
    return randomized(keras.Sequential([keras.Input((4, 3)), *body]))


@pytest.fixture(scope="module")
def fused() -> tuple[Any, Float32Result, Artifact]:
    """A model, its float and its int8 file with fused layers."""
    model = two_lstms()
    floats = float32.convert(Trace(model, fused=True))
    x = example_inputs(wrap(model).inputs, 60)
    return model, floats, int8.convert(floats, calibration=x, allow_float=False)


@pytest.mark.parametrize("engine", ["litert", "tflm"])
def test_a_fused_lstm_computes_what_keras_does(fused: Any, engine: str) -> None:
    model, floats, quantized = fused
    x = example_inputs(wrap(model).inputs, 40, seed=1)
    (want,) = wrap(model).predict(x)
    for made in (floats.artifact, quantized):
        assert made.flat.histogram()[LSTM] == 3
        assert not {"WHILE", "CUSTOM", "REVERSE_V2", "GATHER"} & set(made.flat.histogram())
    (have,) = run_engine(engine, floats.artifact.data, x).outputs
    np.testing.assert_allclose(have, want, atol=1e-5)
    parity = verify(quantized.flat, reference=want, samples=x, engine=engine, kind="scores")
    assert min(o.r2 for o in parity.outputs if o.r2 is not None) > 0.995
    wrong = wrap(randomized(two_lstms(), 1)).predict(x)
    wrong_parity = verify(quantized.flat, reference=wrong, samples=x, engine=engine, kind="scores")
    assert min(o.r2 for o in wrong_parity.outputs if o.r2 is not None) < 0.5


def test_the_state_of_a_fused_lstm_persists_and_that_is_said(fused: Any) -> None:
    from ai_edge_litert.interpreter import Interpreter

    model, floats, _ = fused
    interpreter = Interpreter(model_content=floats.artifact.data)
    interpreter.allocate_tensors()
    (x,) = example_inputs(wrap(model).inputs)

    def output() -> np.ndarray:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
        interpreter.invoke()
        return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])

    first, second = output(), output()
    assert np.abs(first - second).max() > 1e-3
    interpreter.reset_all_variables()
    np.testing.assert_array_equal(output(), first)
    notes = [note for note in floats.artifact.notes if "reset the interpreter's" in note]
    assert len(notes) == 3
    for data, said in ((floats.artifact.data, True), (example_gru(), False)):
        sources = c_array.generate(data, name="m", arena_bytes=None)
        assert ("interpreter.Reset()" in sources["main.cc"]) is said


def example_gru() -> bytes:
    model = keras.Sequential([keras.Input((2, 3)), layers.GRU(3)])
    return bytes(float32.convert(model).artifact.data)


def test_the_scale_of_a_cell_state() -> None:
    # int16 reaches from -32768 to 32767 steps; a quarter more than was seen must fit.
    assert cell_scale(1.5, 100) == 2.0**-14
    assert cell_scale(1.7, 100) == 2.0**-13
    assert cell_scale(1e-9, 100) == 2.0**-15
    assert cell_scale(500.0, 1000) == 2.0**-9
    # Each step adds at most 1.
    assert cell_scale(None, 3) == 2.0**-13
    assert cell_scale(None, 1000) == 2.0**-11


def test_layers_that_the_fused_operator_does_not_compute() -> None:
    zero = [None, None]
    assert why_not_fused(layers.LSTM(2), zero) is None
    assert why_not_fused(layers.GRU(2), [None]) == "only LSTM has a fused operator"
    assert why_not_fused(layers.LSTM(2, activation="relu"), zero) == "its activation is not tanh"
    reason = "its recurrent activation is not sigmoid"
    assert why_not_fused(layers.LSTM(2, recurrent_activation="hard_sigmoid"), zero) == reason
    assert why_not_fused(layers.LSTM(2, return_state=True), zero) == "its final states are read"
    assert why_not_fused(layers.LSTM(2), [None, 1]) == "the fused operator starts at zero"


def request_for(arena: Any) -> FormatRequest:
    costs = Costs(lambda flat, memory: arena, lambda flat: None, lambda flat: 0.0)
    return FormatRequest("m", None, None, None, None, costs, lambda text: None)


def test_the_form_is_chosen_by_bytes_and_arena(fused: Any) -> None:
    _, floats, quantized = fused
    other = Artifact("int8", example_gru(), "m")
    made = {True: (floats, quantized), False: (floats, other)}

    def chosen(form: str, arena: Any = None) -> Artifact:
        return choose_form(request_for(arena), form, made.__getitem__)[1]

    assert chosen("fused") is quantized
    assert chosen("unrolled") is other
    smaller = quantized if len(quantized.data) < len(other.data) else other
    found = chosen("auto")
    assert found.data is smaller.data
    assert "(--recurrent auto): fused" in found.notes[-1]
    # The arena counts as much as the file.
    for wins, loses in ((quantized, other), (other, quantized)):
        arenas = {wins.data: 10, loses.data: 10**6}
        found = chosen("auto", lambda flat, arenas=arenas: arenas[flat.data])
        assert found.data is wins.data
        assert "976.6 KiB of arena" in found.notes[-1]


@pytest.mark.parametrize("form", FORMS)
def test_the_float_files_made_in_advance_are_those_that_are_chosen_from(
    form: str, fused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, floats, quantized = fused
    flat = floats.artifact.flat
    lstm = recurrent_forms.lstm_operators(flat)[0]
    steps = flat.tensors[lstm.inputs[0]].shape[0]
    monkeypatch.setattr(recurrent_forms, "float_file", lambda request, fused=False: floats)
    for most, found in ((steps, [lstm]), (steps - 1, [lstm]), (steps, [])):
        monkeypatch.setattr(recurrent_forms, "MOST_COMPARED", most)
        monkeypatch.setattr(recurrent_forms, "lstm_operators", lambda flat, found=found: found)
        asked: list[bool] = []

        def made(fused: bool, asked: list[bool] = asked) -> Any:
            asked.append(fused)
            return floats, quantized

        choose_form(request_for(None), form, made)
        assert list(recurrent_forms.float_files(request_for(None), form)) == asked


def test_other_precisions_have_no_fused_form() -> None:
    from edgecompress.converters.formats import FORMATS
    from edgecompress.precisions import PRECISIONS

    options = FORMATS["int8"].options(precision=PRECISIONS["int16x8"](), recurrent="fused")
    request = FormatRequest("m", wrap(two_lstms()), None, None, options, None, print)
    with pytest.raises(ArgumentError, match="`--recurrent` must be auto or unrolled"):
        FORMATS["int8"].make(request)


def test_time_steps_of_a_layer_are_one_batch() -> None:
    keras.utils.set_random_seed(1)
    frames = x = keras.Input((5, 8, 8, 2))
    inner = [layers.Conv2D(4, 3, activation="relu"), layers.BatchNormalization(), layers.Flatten()]
    x = layers.TimeDistributed(keras.Sequential(inner), name="frames")(x)
    x = layers.LSTM(3)(layers.TimeDistributed(layers.Dense(6), name="features")(x))
    model = keras.Model(frames, layers.Dense(2)(x))
    samples = np.random.default_rng(1).normal(size=(20, 5, 8, 8, 2)).astype("f4")
    floats = float32.convert(Trace(model, fused=True))
    codes = floats.artifact.flat.histogram()
    assert codes["CONV_2D"] == 1
    assert not {"PACK", "STRIDED_SLICE", "UNPACK", "TRANSPOSE"} & set(codes) - {"STRIDED_SLICE"}
    assert any(
        "frames (TimeDistributed): its 5 time steps" in note for note in floats.artifact.notes
    )
    outputs = run_engine("litert", floats.artifact.data, [samples]).outputs[0].reshape(20, 2)
    np.testing.assert_allclose(outputs, model.predict(samples, verbose=0), atol=1e-5)
    made = int8.convert(floats, calibration=[samples])
    given = quantized_inputs(made.flat, [samples])
    for engine in ("litert", "tflm"):
        found = run_engine(engine, made.data, given).outputs[0].reshape(20, 2)
        real = dequantize(found, made.flat.tensors[made.flat.outputs[0]])
        assert np.abs(real - model.predict(samples, verbose=0)).max() < 0.1, engine


@keras.saving.register_keras_serializable("tests")  # type: ignore[untyped-decorator]
class Mixing(layers.Layer):  # type: ignore[misc, name-defined]
    """A layer of the user, which need not compute each sample by itself."""

    def call(self, values: Any) -> Any:
        return values - keras.ops.mean(values)

    def compute_output_shape(self, shape: Any) -> Any:
        return shape


def mixing() -> Any:
    inputs = keras.Input((4, 2))
    return keras.Model(inputs, inputs - keras.ops.mean(inputs, axis=0))


@pytest.mark.parametrize(
    "layer", [layers.GRU(2), Mixing(), mixing()], ids=["GRU", "custom", "functions"]
)
def test_other_layers_are_called_for_each_time_step(layer: Any) -> None:
    inputs = keras.Input((3, 4, 2))
    model = keras.Model(inputs, layers.TimeDistributed(layer)(inputs))
    samples = np.random.default_rng(1).normal(size=(6, 3, 4, 2)).astype("f4")
    floats = float32.convert(model)
    assert not any("(TimeDistributed)" in note for note in floats.artifact.notes)
    outputs = run_engine("litert", floats.artifact.data, [samples]).outputs[0]
    by_sample = np.concatenate([model(samples[i : i + 1]) for i in range(6)])
    np.testing.assert_allclose(outputs.reshape(by_sample.shape), by_sample, atol=1e-5)


class Unwritable(layers.Layer):  # type: ignore[misc, name-defined]
    """An operation without a built-in operator."""

    def call(self, values: Any) -> Any:
        import tensorflow as tf

        return tf.raw_ops.Betainc(a=abs(values) + 1, b=abs(values) + 1, x=tf.sigmoid(values))


def test_operators_without_a_built_in_form_are_still_refused() -> None:
    model = keras.Sequential([keras.Input((2, 3)), layers.LSTM(2), Unwritable(name="odd")])
    with pytest.raises(ConversionError, match="no built-in operator exists for .*Betainc"):
        float32.convert(Trace(model, fused=True))


def test_masks_are_named_and_open_lengths_refused() -> None:
    masked = keras.Sequential([keras.Input((2, 3)), layers.Masking(), layers.GRU(3, name="gate")])
    notes = float32.convert(masked).artifact.notes
    assert any(note.startswith("gate (GRU) reads a mask") for note in notes)
    opened = keras.Sequential([keras.Input((None, 3)), layers.GRU(3)])
    with pytest.raises(UnsupportedModelError, match="open dimensions"):
        float32.convert(opened)
