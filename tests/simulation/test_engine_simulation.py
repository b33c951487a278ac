"""`simulate(model, engine=...)` of whole networks against their files in the real engines."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

import edgecompress as ec
from edgecompress.converters.real_values import dequantize, quantized_inputs
from edgecompress.core.errors import ArgumentError, UnsupportedModelError
from edgecompress.engines.run import run_engine
from edgecompress.flatbuffers.artifact import Artifact
from edgecompress.flatbuffers.operators import FILTER_READERS
from edgecompress.simulation import EngineSimulation

pytestmark = pytest.mark.slow
ENGINES = ("litert", "tflm")


def unit(x, layer):
    return layers.ReLU()(layers.BatchNormalization()(layer(x)))


def plain(x):
    x = layers.Conv2D(8, 3, strides=2, activation="relu")(x)
    x = layers.MaxPooling2D()(layers.Conv2D(12, 3, padding="same", activation="relu")(x))
    return layers.Dense(5)(layers.Flatten()(x))


def separable(x):
    x = unit(x, layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False))
    x = unit(x, layers.DepthwiseConv2D(3, padding="same", use_bias=False))
    x = unit(x, layers.Conv2D(12, 1, use_bias=False))
    return layers.Dense(5)(layers.GlobalAveragePooling2D()(x))


def residual(x):
    x = unit(x, layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False))
    y = layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same", use_bias=False)(x))
    x = layers.AveragePooling2D(2)(layers.ReLU()(layers.Add()([x, y])))
    return layers.Dense(5, activation="softmax")(layers.GlobalAveragePooling2D()(x))


def gated(x):
    x = layers.Conv2D(8, 3, activation="hard_swish")(x)
    gate = layers.Dense(8, activation="sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = layers.LeakyReLU(0.2)(layers.Conv2D(6, 3)(layers.Multiply()([x, gate])))
    x = layers.Concatenate()([x, layers.Conv2D(6, 1, activation="tanh")(x)])
    return layers.Dense(5)(layers.Flatten()(layers.ZeroPadding2D(1)(x)))


def sequence(x):
    x = layers.Dense(8)(layers.Reshape((4, 36))(x))
    x = layers.Add()([x, layers.MultiHeadAttention(2, 4)(x, x)])
    x = layers.Bidirectional(layers.LSTM(4, return_sequences=True))(layers.LayerNormalization()(x))
    return layers.Dense(5)(layers.GRU(4)(layers.LSTM(5, return_sequences=True)(x)))


def made(build):
    inputs = keras.Input((12, 12, 1))
    model = keras.Model(inputs, build(inputs))
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([np.random.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    return model


@pytest.mark.parametrize("build", [plain, separable, residual, gated, sequence])
def test_networks_are_computed_bit_for_bit(build) -> None:
    x = np.random.uniform(-1, 1, (220, 12, 12, 1)).astype(np.float32)
    litert = ec.simulate(made(build), engine="litert", calibration=[x[:40]])
    flat = litert.artifact.flat
    codes = quantized_inputs(flat, [x])
    found = {}
    for engine in ENGINES:
        real = run_engine(engine, litert.artifact.data, codes).outputs[0]
        simulated = EngineSimulation(litert.artifact, engine)
        found[engine] = simulated.codes(codes)[0][0]
        np.testing.assert_array_equal(found[engine], real, engine)
        np.testing.assert_array_equal(
            simulated.predict(x), dequantize(real, flat.tensors[flat.outputs[0]])
        )
    # Their arithmetic differs in some of 1,100 outputs, so the comparison can fail.
    steps = np.abs(found["litert"].astype(int) - found["tflm"])
    assert 1 <= steps.max() <= 9


def test_a_changed_weight_changes_the_result() -> None:
    x = np.random.uniform(-1, 1, (20, 12, 12, 1)).astype(np.float32)
    simulated = ec.simulate(made(plain), engine="tflm", calibration=[x])
    artifact = simulated.artifact
    kernel = artifact.flat.tensor(artifact.flat.operators[0], 1)
    other = bytearray(artifact.data)
    other[other.index(kernel.raw) + 4] ^= 0x40
    changed = EngineSimulation(Artifact("int8", bytes(other), "changed"), "tflm")
    codes = quantized_inputs(artifact.flat, [x])
    assert (changed.codes(codes)[0][0] != simulated.codes(codes)[0][0]).any()
    np.testing.assert_array_equal(
        changed.codes(codes)[0][0], run_engine("tflm", bytes(other), codes).outputs[0]
    )


@pytest.fixture(scope="module")
def trained():
    """A network trained quantization-aware, its inputs, its simulations in LiteRT and in float."""
    keras.utils.set_random_seed(0)
    model = made(separable)
    x = np.random.uniform(-1, 1, (64, 12, 12, 1)).astype(np.float32)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    callback = ec.QuantizationAwareTraining()
    model.fit(x, np.arange(64) % 5, batch_size=32, verbose=0, callbacks=[callback])
    return model, x, ec.simulate(model, engine="litert"), ec.simulate(model)


def test_weights_of_the_file_are_those_of_the_simulation(trained) -> None:
    """Element by element: the code of each weight in the file is that of the simulated kernel."""
    _, _, simulated, floats = trained
    flat = simulated.artifact.flat
    readers = [operator for operator in flat.operators if operator.code in FILTER_READERS]
    kernels = [layer.get_weights()[0] for layer in floats.layers if hasattr(layer, "kernel")]
    assert len(readers) == len(kernels) == 4
    for operator, kernel in zip(readers, kernels, strict=True):
        if operator.code == "DEPTHWISE_CONV_2D":
            rows = kernel.reshape(-1, kernel.shape[2]).T
            stored = flat.tensor(operator, 1).values()[0].reshape(-1, kernel.shape[2]).T
        else:
            rows = kernel.reshape(-1, kernel.shape[-1]).T
            stored = flat.tensor(operator, 1).values().reshape(len(rows), -1)
        # A channel's largest weight is 127 steps; folding multiplies the scale, not the codes.
        codes = np.rint(rows / np.abs(rows).max(1, keepdims=True) * 127)
        np.testing.assert_array_equal(stored, codes, operator.code)
        assert len(np.unique(stored)) > 20


def test_ranges_of_training_are_used(trained) -> None:
    _, x, simulated, floats = trained
    real = run_engine(
        "litert", simulated.artifact.data, quantized_inputs(simulated.artifact.flat, [x])
    )
    output = simulated.artifact.flat.tensors[simulated.artifact.flat.outputs[0]]
    np.testing.assert_array_equal(simulated.predict(x), dequantize(real.outputs[0], output))
    # Float rounding and integer rounding part by a step at most.
    assert np.abs(simulated.predict(x) - np.asarray(floats(x))).max() < 1.01 * output.scales[0]


def test_tensors_are_named_by_layer(trained) -> None:
    model, x, simulated, _ = trained
    tensors = simulated.tensors(x[:8])
    named = [layer.name for layer in model.layers if isinstance(layer, layers.ReLU)]
    assert [name for name in tensors if name in named] == named
    relu = keras.Model(model.inputs, model.get_layer(named[0]).output)
    expected = np.asarray(relu([x[:8]]))
    assert tensors[named[0]].shape == expected.shape
    assert np.abs(tensors[named[0]] - expected).max() < 0.1 * expected.max()


def test_what_is_not_known_is_refused_by_operator_and_layer() -> None:
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layers.Dense(6, activation="elu", name="curved")(inputs))
    x = np.random.uniform(-1, 1, (8, 6)).astype(np.float32)
    with pytest.raises(UnsupportedModelError, match=r"ELU .*'curved'.*tflm"):
        ec.simulate(model, engine="tflm", calibration=[x])
    with pytest.raises(ArgumentError, match="'litert' or 'tflm'"):
        ec.simulate(model, engine="cmsis")
    with pytest.raises(ArgumentError, match="calibration"):
        ec.simulate(model, calibration=[x])
    with pytest.raises(ArgumentError, match="calibration"):
        ec.simulate(model, engine="tflm")
