"""int16x8 against plain numpy, in its files, and on a board and a phone."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest

import edgecompress as ec
from edgecompress.converters import float32, int8
from edgecompress.converters.real_values import dequantize, quantized_inputs
from edgecompress.core.errors import ArgumentError
from edgecompress.core.record import CompressionRecord, record_of
from edgecompress.engines.registry import LITERT, TFLM
from edgecompress.engines.run import engine_available, run_engine
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.pipeline.builder import build
from edgecompress.pipeline.request import build_request
from edgecompress.precisions.base import trained_precision
from edgecompress.precisions.fake_quantization import fake_quantize_symmetric
from edgecompress.precisions.int16x8 import Int16x8
from edgecompress.precisions.simulation import simulate

pytestmark = pytest.mark.slow

layers = keras.layers

_RNG = np.random.default_rng(7)
X = _RNG.normal(size=(48, 8, 8, 1)).astype("f4")
Y = (X[:, :4].mean((1, 2, 3)) > 0).astype("i4")


def _model() -> keras.Model:
    keras.utils.set_random_seed(1)
    image = keras.Input((8, 8, 1))
    x = layers.Conv2D(4, 3, use_bias=False, name="conv")(image)
    x = layers.ReLU(name="rectified")(layers.BatchNormalization(name="norm")(x))
    y = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.Add(name="sum")([x, y])
    gate = layers.Conv2D(4, 1, activation="sigmoid", name="gate")(x)
    x = layers.Multiply(name="gated")([x, gate])
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, layers.Dense(3, activation="softmax", name="head")(x), name="tiny")


@pytest.fixture(scope="module")
def trained() -> keras.Model:
    model = _model()
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    model.fit(X, Y, verbose=0, callbacks=[ec.QuantizationAwareTraining(ec.Int16x8())])
    return model


@pytest.fixture(scope="module")
def file(trained: keras.Model) -> FlatModel:
    made = int8.convert(float32.convert(trained), record=record_of(trained), precision=Int16x8())
    return made.flat


def _numpy(tensor: object) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(tensor))


@pytest.mark.parametrize(("low", "high"), [(-3.0, 1.5), (0.0, 6.0), (-0.25, 0.0), (0.5, 2.0)])
def test_activations_match_numpy(low: float, high: float) -> None:
    values = np.linspace(2 * low - 1, 2 * high + 1, 999).astype("f4")
    scale = np.float32(max(abs(low), abs(high))) / np.float32(32767)
    codes = np.clip(np.rint(values / scale), -32768, 32767)
    got = _numpy(fake_quantize_symmetric(values, low, high))
    np.testing.assert_allclose(got, codes * scale, rtol=1e-6, atol=scale / 100)
    # Of two neighbouring codes, only one is right.
    assert np.abs(np.rint(got / scale) - codes).max() == 0
    assert np.abs(_numpy(fake_quantize_symmetric(values, low, high, 8)) - got).max() > 10 * scale


def test_the_gradient_stops_outside_the_range() -> None:
    import tensorflow as tf

    values = tf.constant([-5.0, -0.5, 0.7, 1.2])
    with tf.GradientTape() as tape:
        tape.watch(values)
        rounded = fake_quantize_symmetric(values, -0.2, 1.0)
    # Codes are symmetric: the range reaches down to -1 as well.
    assert tape.gradient(rounded, values).numpy().tolist() == [0, 1, 1, 0]


def test_the_file_is_integer_with_one_scale_for_dense_layers(file: FlatModel) -> None:
    kinds = {t.type for t in file.tensors if t.scales or t.type.startswith("FLOAT")}
    assert kinds == {"INT8", "INT16", "INT64"}
    by_code = {operator.code: operator for operator in file.operators}
    dense = file.tensor(by_code["FULLY_CONNECTED"], 1)
    convolution = file.tensor(by_code["CONV_2D"], 1)
    assert dense is not None and len(dense.scales or ()) == 1
    assert convolution is not None and len(convolution.scales or ()) == 4
    for code in ("SOFTMAX", "LOGISTIC"):
        out = file.output(by_code[code])
        assert out.scales == (1 / 32768,) and out.zero_points == (0,)


def test_the_weights_in_the_file_are_those_of_the_simulation(
    trained: keras.Model, file: FlatModel
) -> None:
    dense = next(o for o in file.operators if o.code == "FULLY_CONNECTED")
    stored = file.tensor(dense, 1)
    assert stored is not None
    kernel = next(_numpy(w) for w in simulate(trained).weights if tuple(w.shape) == (4, 3))
    np.testing.assert_allclose(stored.values().T * (stored.scales or ())[0], kernel, rtol=1e-6)


def test_the_file_computes_what_training_simulated(trained: keras.Model, file: FlatModel) -> None:
    wanted = simulate(trained).predict(X, verbose=0)
    plain = trained.predict(X, verbose=0)
    for engine in (LITERT, TFLM):
        if engine_available(engine) is not None:
            continue
        outputs = run_engine(engine, file.data, quantized_inputs(file, [X])).outputs[0]
        got = dequantize(outputs, file.tensors[file.outputs[0]])
        # The kernel of the softmax interpolates in a table.
        assert np.abs(got - wanted).max() < 2e-3, engine
        assert (got.argmax(1) == wanted.argmax(1)).mean() > 0.97
    assert np.abs(plain - wanted).max() > 1e-6


def test_int8_is_coarser(trained: keras.Model, file: FlatModel) -> None:
    """The same ranges and weights in int8: the error that 16 bits avoid."""
    small = int8.convert(float32.convert(trained), record=record_of(trained), precision=ec.Int8())
    assert any("Training simulated int16x8, the file is int8" in note for note in small.notes)
    wanted = trained.predict(X, verbose=0)
    errors = []
    for flat in (small.flat, file):
        outputs = run_engine(LITERT, flat.data, quantized_inputs(flat, [X])).outputs[0]
        errors.append(np.abs(dequantize(outputs, flat.tensors[flat.outputs[0]]) - wanted).mean())
    assert errors[1] < errors[0] / 2


def test_the_record_restores_its_settings() -> None:
    step = {"technique": "quantization_aware_training", "quantizer": "int16x8", "momentum": 0.5}
    assert trained_precision(CompressionRecord(steps=(step,))) == Int16x8(momentum=0.5)
    with pytest.raises(ArgumentError, match="momentum"):
        trained_precision(CompressionRecord(steps=({**step, "momentum": 7},)))


def test_scales_for_each_unit_of_a_dense_layer_are_refused(trained: keras.Model) -> None:
    with pytest.raises(ArgumentError, match="dense_per_channel.*int16x8"):
        int8.convert(float32.convert(trained), precision=Int16x8(), dense_per_channel=True)


def test_export_follows_training(trained: keras.Model) -> None:
    request = build_request(trained, ["cortex-m4", "pixel-8"], evaluate=(X, Y), bundle=False)
    made = build(dataclasses.replace(request))
    assert made.main.kind == "int16x8"
    for target in made.targets:
        checks = {check.rule: check for check in target.checks}
        assert checks["operators"].verdict == "pass", checks["operators"].reason
        assert checks["parity"].verdict == "pass", checks["parity"].reason


def test_after_training_with_calibration() -> None:
    made = int8.convert(float32.convert(_model()), calibration=[X], precision=Int16x8())
    assert made.kind == "int16x8"
    assert made.flat.tensors[made.flat.inputs[0]].type == "INT16"
    assert not any("stays in float" in note for note in made.notes)


def _clustered() -> keras.Model:
    """Few values, with other maxima in other channels, under BatchNormalization."""
    keras.utils.set_random_seed(5)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(8, 3, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(4),
        ]
    )
    rng = np.random.default_rng(5)
    model.layers[1].set_weights([rng.uniform(0.5, 2, 8), *rng.normal(size=(2, 8)), np.ones(8)])
    kernel = model.layers[0].get_weights()[0] * np.linspace(0.2, 1, 8)
    values = np.quantile(kernel, np.linspace(0, 1, 8))
    nearest = np.abs(kernel[..., None] - values).argmin(-1)
    model.layers[0].set_weights([values[nearest].astype("f4")])
    return model


def test_shared_values_keep_biases_of_64_bits() -> None:
    model = _clustered()
    x = _RNG.normal(size=(8, 8, 8, 3)).astype("f4")
    made = int8.convert(float32.convert(model), calibration=[x], precision=Int16x8())
    assert any("One weight scale" in note for note in made.notes)
    bias = made.flat.tensor(made.flat.operators[0], 2)
    assert bias is not None and bias.type == "INT64"
    wanted = model.predict(x, verbose=0)
    outputs = run_engine(LITERT, made.data, quantized_inputs(made.flat, [x])).outputs[0]
    got = dequantize(outputs, made.flat.tensors[made.flat.outputs[0]])
    assert np.abs(got - wanted).max() < 0.03 * np.ptp(wanted)


def test_a_folded_dense_layer_is_named() -> None:
    step = {"technique": "quantization_aware_training", "quantizer": "int16x8"}
    keras.utils.set_random_seed(6)
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(5, name="folded"), layers.BatchNormalization()]
    )
    model.layers[1].set_weights([*np.random.default_rng(6).uniform(0.5, 2, size=(4, 5))])
    x = _RNG.normal(size=(8, 6)).astype("f4")
    source, record = float32.convert(model), CompressionRecord(steps=(step,))
    made = int8.convert(source, calibration=[x], record=record, precision=Int16x8())
    assert any("not simulated: folded:" in note for note in made.notes)
    plain = int8.convert(source, calibration=[x], precision=Int16x8())
    assert not any("not simulated" in note for note in plain.notes)


def test_prescribed_ranges_have_steps_of_the_kernels() -> None:
    """Softmax, sigmoid and tanh: codes of 1/32768, as the kernels prescribe."""
    values = np.float32([0.0, 0.7, 0.99999, -0.3])
    rounded = Int16x8().fake_quantize(values, *Int16x8().fixed_range(0.0, 255 / 256))
    codes = np.clip(np.rint(values * 32768), -32768, 32767)
    np.testing.assert_array_equal(np.asarray(rounded), codes.astype("f4") / np.float32(32768))
