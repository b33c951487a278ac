"""Keras -> float32 flatbuffer, judged by LiteRT in a process of its own against Keras."""

from __future__ import annotations

import functools
import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompress.converters import float32
from edgecompress.converters.loaders import example_inputs, load_model, wrap
from edgecompress.core.errors import ConversionError, UnsupportedModelError
from edgecompress.engines.run import run_engine
from edgecompress.flatbuffers.reading import read_tflite

keras = pytest.importorskip("keras")

pytestmark = pytest.mark.slow
layers = keras.layers


def trained_norm(name: str) -> Any:
    """A BatchNorm whose statistics are not the neutral ones it starts with."""
    uniform = keras.initializers.RandomUniform
    return layers.BatchNormalization(
        name=name,
        gamma_initializer=uniform(0.5, 2, seed=1), beta_initializer=uniform(-1, 1, seed=2),
        moving_mean_initializer=uniform(-1, 1, seed=3),
        moving_variance_initializer=uniform(0.5, 2, seed=4),
    )  # fmt: skip


def residual() -> Any:
    image = keras.Input((12, 12, 3), name="image")
    x = layers.Conv2D(6, 3, padding="same", use_bias=False, name="stem")(image)
    x = layers.ReLU(name="stem_relu")(trained_norm("stem_norm")(x))
    y = layers.DepthwiseConv2D(3, padding="same", name="dw")(x)
    y = layers.ReLU(6.0, name="dw_relu")(trained_norm("dw_norm")(y))
    y = trained_norm("pw_norm")(layers.Conv2D(6, 1, name="pw")(y))
    z = layers.ReLU(name="join_relu")(layers.Add(name="join")([x, y]))
    z = layers.Dropout(0.3, name="drop")(layers.GlobalAveragePooling2D(name="pool")(z))
    z = layers.Dense(4, activation="softmax", name="head")(z)
    return keras.Model(image, z, name="residual")


def check_outputs(model: Any, result: float32.Float32Result, samples: int = 4) -> None:
    loaded = wrap(model)
    inputs = example_inputs(loaded.inputs, samples, seed=5)
    expected = loaded.predict(inputs)
    outputs = run_engine("litert", result.artifact.data, inputs).outputs
    assert len(outputs) == len(expected)
    for have, want in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(have.reshape(want.shape), want, rtol=1e-3, atol=1e-4)


def test_folds_batch_norm_and_computes_what_keras_does() -> None:
    model = residual()
    result = float32.convert(model)
    flat = read_tflite(result.artifact.data)
    assert flat.histogram() == {
        "CONV_2D": 2, "DEPTHWISE_CONV_2D": 1, "ADD": 1, "AVERAGE_POOL_2D": 1, "FULLY_CONNECTED": 1,
        "SOFTMAX": 1,
    }  # fmt: skip
    assert [flat.tensors[i].shape for i in flat.inputs] == [(1, 12, 12, 3)]
    assert [flat.tensors[i].name for i in flat.inputs] == ["image"]
    assert not flat.metadata and not flat.description
    assert not any(t.dynamic for t in flat.tensors)
    assert (result.artifact.kind, result.artifact.source) == ("float32", "residual")
    check_outputs(model, result)


def test_taps_lie_where_fused_operators_end() -> None:
    model = residual()
    result = float32.convert(model)
    flat = read_tflite(result.artifact.data)
    index = {tensor.name: tensor.index for tensor in flat.tensors}
    image = example_inputs(wrap(model).inputs, 1, seed=9)
    # Independent of the converter's own mapping: LiteRT's values of the named tensors.
    taps = {tap: name for tap, name in result.tap_tensors.items() if tap != "input:0"}
    wanted = [index[name] for name in taps.values()]
    seen = run_engine("litert", result.artifact.data, image, tensors=wanted).tensors
    for tap, number in zip(taps, wanted, strict=True):
        layer = tap.removesuffix("/pre_activation")
        expected = keras.Model(model.input, model.get_layer(layer).output)(image[0]).numpy()
        if tap.endswith("/pre_activation"):
            head = model.get_layer(layer)
            expected = keras.Model(model.input, head.input)(image[0]).numpy() @ head.kernel.numpy()
        np.testing.assert_allclose(seen[number][0].reshape(expected.shape), expected, atol=1e-4)
    ends = {"stem_relu", "dw_relu", "pw_norm", "join_relu", "head", "head/pre_activation"}
    assert ends <= set(taps)
    assert not {"stem", "stem_norm", "dw", "pw", "join"} & set(taps)
    assert result.tap_tensors["input:0"] == "image"
    # Tensors carry their taps' names.
    assert taps["stem_relu"] == "stem_relu"


def test_match_by_value() -> None:
    a, b = np.float32([[1, 2, 3, 4]]), np.float32([[5, 6, 7, 8]])
    zero = np.zeros((1, 4), np.float32)
    values = {3: a, 5: b, 7: b.copy(), 9: zero, 11: a.reshape(1, 2, 2)}
    match = float32.match_by_value
    assert match({"a": a * (1 + 1e-5)}, values) == {"a": 3}
    assert match({"image": a.reshape(1, 2, 2)}, values) == {"image": 11}  # the shape decides
    assert match({"flat": a.reshape(4, 1)}, {3: a}) == {"flat": 3}  # dropped reshape
    assert match({"first": b, "second": b}, values) == {"first": 5, "second": 7}
    assert match({"only": b}, values) == {}  # two tensors, one tap: not to be told
    assert match({"only": b}, values, {7: 5}) == {"only": 5}  # unless one is made of the other
    assert match({"only": b}, values, {7: 3, 5: 3}) == {}
    assert match({"other": a + 1}, values) == {}
    assert match({"x": a, "same": a}, {3: a}) == {"x": 3, "same": 3}
    # A tensor that differs in one element of many, or is NaN, is another one.
    long = np.linspace(1, 2, 1000, dtype=np.float32)
    for wrong in (7, np.nan):
        other = long.copy()
        other[501] = wrong
        assert match({"long": long}, {3: other}) == {}
        assert match({"long": long}, {3: other, 5: long * (1 + 1e-5)}) == {"long": 5}


def test_several_inputs_and_outputs() -> None:
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b", dtype="int32")
    embedded = layers.Flatten()(layers.Embedding(4, 2)(b))
    joined = layers.Concatenate(name="joined")([layers.Dense(2, name="dense")(a), embedded])
    for inputs in ([a, b], {"a": a, "b": b}):
        model = keras.Model(inputs, {"joined": joined, "again": a})
        result = float32.convert(model)
        flat = read_tflite(result.artifact.data)
        assert [flat.tensors[i].type for i in flat.inputs] == ["FLOAT32", "INT32"]
        check_outputs(model, result)


@pytest.mark.parametrize("layer", [
    layers.LSTM(3), layers.GRU(3, unroll=True), layers.MultiHeadAttention(2, 2),
    layers.Conv1D(3, 2, activation="gelu"), layers.UpSampling1D(2), layers.LayerNormalization(),
], ids=lambda layer: type(layer).__name__)  # fmt: skip
def test_layers_that_need_more_than_one_operator(layer: Any) -> None:
    x = keras.Input((5, 4))
    attention = isinstance(layer, layers.MultiHeadAttention)
    model = keras.Model(x, layer(x, x) if attention else layer(x))
    check_outputs(model, float32.convert(model))


def test_dropout_of_recurrent_layers_is_left_out_of_the_file_and_stays_in_the_model() -> None:
    cells = [layers.LSTMCell(3, dropout=0.4), layers.GRUCell(2, recurrent_dropout=0.3)]
    model = keras.Sequential([keras.Input((4, 3)), layers.RNN(cells)])
    check_outputs(model, float32.convert(model))
    assert (cells[0].dropout, cells[1].recurrent_dropout) == (0.4, 0.3)


SCRIPT = """
import sys, hashlib, keras
if sys.argv[2] == "busy":  # Other names, other counters, other traces before.
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    model.predict(keras.ops.ones((1, 2)), verbose=0)
from edgecompress.converters import float32, loaders
loaded = loaders.load_model(sys.argv[1])
if sys.argv[2] == "busy":
    float32.convert(loaded)
print(hashlib.sha256(float32.convert(loaded).artifact.data).hexdigest())
"""


def test_equal_bytes_in_every_process_and_nothing_printed(
    tmp_path: Path, run_python: Callable[..., Any]
) -> None:
    residual().save(tmp_path / "residual.keras")
    here = hashlib.sha256(float32.convert(load_model(tmp_path / "residual.keras")).artifact.data)
    started = functools.partial(subprocess.run, capture_output=True, text=True)
    for state, run in (("fresh", lambda words: started([sys.executable, *words])),
                       ("busy", run_python)):  # fmt: skip
        done = run(["-c", SCRIPT, str(tmp_path / "residual.keras"), state])
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == here.hexdigest()
        assert "Saved artifact" not in done.stderr and "TFLite" not in done.stderr


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    float32.convert(residual())
    assert capfd.readouterr() == ("", "")


def test_missing_operators_are_named_with_their_layers(capfd: pytest.CaptureFixture[str]) -> None:
    import tensorflow as tf

    x = keras.Input((4, 4))
    y = layers.Activation(tf.math.digamma, name="strange")(layers.Dense(4, name="plain")(x))
    model = keras.Model(x, layers.Activation(tf.linalg.cholesky, name="factor")(y), name="odd")
    with pytest.raises(ConversionError) as caught:
        float32.convert(model)
    text = str(caught.value)
    assert "Digamma (layer strange)" in text and "Cholesky (layer factor)" in text
    assert "plain" not in text and "\n" not in text
    assert capfd.readouterr() == ("", "")


def test_open_dimensions_and_strings_are_refused() -> None:
    image = keras.Input((None, None, 3), name="photo")
    with pytest.raises(UnsupportedModelError, match="'photo'.*open dimensions"):
        float32.convert(keras.Model(image, layers.GlobalAveragePooling2D()(image)))
    text = keras.Input((1,), dtype="string", name="words")
    with pytest.raises(UnsupportedModelError, match="'words'.*string"):
        float32.convert(keras.Model(text, layers.Identity()(text)))


def test_a_file_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = residual(), residual()
    other.get_layer("head").bias.assign([5, -5, 0, 0])
    wrong = float32.to_flatbuffer(wrap(other), False)
    monkeypatch.setattr(float32, "to_flatbuffer", lambda loaded, verbose: wrong)
    with pytest.raises(ConversionError, match="computes another output 0"):
        float32.convert(model)


def test_saved_model_and_keras_2(tmp_path: Path) -> None:
    model = residual()
    model.export(tmp_path / "saved", verbose=False)
    result = float32.convert(load_model(tmp_path / "saved"))
    assert dict(result.tap_tensors) == {"input:0": "image"}
    check_outputs(model, result)
    import tf_keras

    legacy = tf_keras.Sequential([tf_keras.layers.Input((4,)), tf_keras.layers.Dense(2)])
    check_outputs(legacy, float32.convert(legacy))


@pytest.mark.parametrize("name, macs", [("ad01", 264_192), ("pretrainedResnet", 12_501_632)])
def test_published_models(shared: Path, name: str, macs: int) -> None:
    loaded = load_model(shared / "models" / "mlperf_tiny" / f"{name}.h5")
    result = float32.convert(loaded)
    flat = read_tflite(result.artifact.data)
    assert flat.macs() == macs
    assert not {"MUL", "SUB", "RSQRT"} & set(flat.histogram())  # every BatchNorm is folded
    check_outputs(loaded, result, samples=2)


@pytest.mark.parametrize("place", ["model", "layer"])
@pytest.mark.parametrize("name", ["a\nb", "a b", "caf\u00e9"])
def test_a_name_that_tensorflow_does_not_take_is_named_with_the_rule(name: str, place: str) -> None:
    layer = keras.layers.Dense(2, name=name if place == "layer" else None)
    model = keras.Sequential([keras.Input((4,)), layer], name=name if place == "model" else None)
    with pytest.raises(ConversionError) as caught:
        float32.convert(model)
    text = str(caught.value)
    assert f"do not take the name {name!r} of the model or of a layer" in text
    assert "letters of English, digits" in text and "\n" not in text
    # Nothing of it is left in the process.
    later = keras.layers.Dense(2, name="later")
    later.build((None, 4))
    assert later.kernel.path == "later/kernel"
