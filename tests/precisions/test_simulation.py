"""`simulate` against the int8 file in the real engine, code by code."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from edgecompress.converters import float32, int8
from edgecompress.core.errors import ArgumentError
from edgecompress.core.fusion import find_taps, source_of
from edgecompress.core.learnt_ranges import tied
from edgecompress.core.operator_copy import tap_model
from edgecompress.core.record import CompressionRecord, attach_record
from edgecompress.engines.run import run_engine
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.precisions.simulation import simulate

pytestmark = pytest.mark.slow


def conv(x, **options):
    return layers.Conv2D(4, 3, **options)(x)


def unit(x, layer, relu=None):
    return layers.ReLU(relu)(layers.BatchNormalization()(layer(x)))


def residual(x):
    x = unit(x, layers.Conv2D(6, 3, use_bias=False), 6.0)
    y = unit(x, layers.DepthwiseConv2D(3, padding="same", use_bias=False))
    x = layers.ReLU()(layers.Add()([x, layers.BatchNormalization()(layers.Conv2D(6, 1)(y))]))
    x = layers.AveragePooling2D(2)(layers.ZeroPadding2D(1)(x))
    return layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling2D()(x))


def mobile(x):
    x = layers.SeparableConv2D(6, 3, padding="same", activation="hard_swish")(x)
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = layers.Dense(6, activation="sigmoid")(layers.Dense(3, activation="relu")(gate))
    x = layers.MaxPool2D()(layers.Multiply()([x, gate]))
    x = layers.Concatenate()([conv(x, activation="relu"), layers.Dropout(0.3)(conv(x))])
    return layers.Dense(4)(layers.Flatten()(x))


CASES = {
    "residual": residual,
    "mobile": mobile,
    "silu": lambda x: conv(conv(x, activation="silu"), activation="tanh"),
    "concatenate": lambda x: layers.ReLU()(layers.Concatenate()([conv(x), conv(x)])),
    "maximum": lambda x: layers.Maximum()([conv(x), conv(x)]),
    "transpose": lambda x: unit(x, layers.Conv2DTranspose(4, 3, strides=2)),
    "dense": lambda x: unit(layers.Flatten()(x), layers.Dense(6)),
    "pool_relu": lambda x: layers.ReLU(6.0)(layers.AveragePooling2D(2)(conv(x))),
    "rescaling": lambda x: conv(layers.Rescaling(1 / 255)(x), padding="same"),
    "layer_normalization": lambda x: conv(layers.LayerNormalization()(conv(x))),
    "table": lambda x: conv(layers.Activation("softplus")(conv(x))),
    "mean": lambda x: layers.Dense(3)(layers.GlobalAveragePooling2D()(conv(x, activation="relu"))),
    "nearest": lambda x: conv(layers.UpSampling2D()(conv(x))),
    "global_maximum": lambda x: layers.GlobalMaxPooling2D()(conv(x)),
}
CLUSTERED = ("clustered_residual", "clustered_mobile", "clustered_transpose", "clustered_dense")


def randomized(build):
    keras.backend.clear_session(free_memory=False)
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, build(inputs))
    for layer in model.layers:
        if isinstance(layer, (layers.BatchNormalization, layers.LayerNormalization)):
            for weight in layer.weights:
                weight.assign(np.random.uniform(0.5, 1.5, weight.shape))
    return model


def observed(model, x):
    """The record a training with these ranges would leave: taken from the data by hand."""
    taps = {tap.name: tap for tap in find_taps(model)}
    values = {"input:0": x, **{name: y.numpy() for name, y in tap_model(model)(x).items()}}
    ranges = {}
    for name, tap in taps.items():
        source = source_of(tap, taps)
        seen = values[source.name]
        ranges[name] = source.fixed or (float(seen.min()), float(seen.max()))
    return CompressionRecord(({"technique": "quantization_aware_training"},), ranges)


def codes_of_file(model, record, x):
    """The int8 file's output codes, and its output's scale and zero point."""
    file = int8.convert(float32.convert(model), ranges=record.ranges, record=record).data
    flat = read_tflite(file)
    into, out = flat.tensors[flat.inputs[0]], flat.tensors[flat.outputs[0]]
    codes = np.rint(x / np.float32(into.scales[0])) + into.zero_points[0]
    codes = np.clip(codes, -128, 127).astype(np.int8)
    outputs = run_engine("litert", file, [codes]).outputs[0]
    return outputs.astype(int), out.scales[0], out.zero_points[0]


def clustered(kernel):
    """Shares 12 values, half of the channels only the smaller ones: scales would differ."""
    values = np.linspace(-1, 1, 12) * np.abs(kernel).max()
    shared = np.random.choice(values, kernel.shape)
    shared[..., ::2] = np.random.choice(values[3:9], shared[..., ::2].shape)
    return shared


@pytest.mark.parametrize("case", [*CASES, *CLUSTERED])
def test_simulation_agrees_with_the_int8_file(case):
    model = randomized(CASES[case.removeprefix("clustered_")])
    if case in CLUSTERED:
        for layer in model.layers:
            for weight in layer.weights:
                if "kernel" in weight.name:
                    weight.assign(clustered(weight.numpy()))
    x = np.random.normal(size=(40, 8, 8, 3)).astype("f4")
    record = observed(model, x)
    simulated = simulate(model, record)(x).numpy()
    codes, scale, zero_point = codes_of_file(model, record, x)
    want = np.rint(simulated / scale) + zero_point
    error = np.abs(want - codes.reshape(want.shape))
    # Float arithmetic may fall on the other side of a tie: one step, seldom. The kernels of a
    # LayerNormalization's squares and roots round more than once.
    steps, share = (2, 0.03) if case == "layer_normalization" else (1, 0.01)
    assert error.max() <= steps
    assert np.mean(error > 0) < share
    if case not in ("maximum", "global_maximum"):
        # The failing direction: the float model differs from the file far more often.
        plain = np.clip(np.rint(model(x).numpy() / scale) + zero_point, -128, 127)
        assert np.mean(plain != codes.reshape(want.shape)) > 0.02


def test_simulation_leaves_the_model_alone_and_can_be_saved(tmp_path):
    model = randomized(residual)
    x = np.random.normal(size=(8, 8, 8, 3)).astype("f4")
    before = model(x).numpy()
    attach_record(model, tied(observed(model, x), model))
    simulated = simulate(model)
    np.testing.assert_array_equal(model(x), before)
    want = simulated.predict(x, verbose=0)
    # Compiled, a float may fall on the other side of a tie.
    assert np.mean(np.abs(simulated(x).numpy() - want) > 1e-5) < 0.01
    assert np.abs(want - before).max() > 1e-4
    simulated.save(tmp_path / "simulated.keras")
    loaded = keras.models.load_model(tmp_path / "simulated.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), want)


def test_missing_ranges_are_refused():
    model = randomized(lambda x: layers.ReLU(name="first")(conv(x)))
    with pytest.raises(ArgumentError, match="activation range for 'input:0'"):
        simulate(model)
    record = CompressionRecord(ranges={"input:0": (0.0, 1.0)})
    with pytest.raises(ArgumentError, match="activation range for 'first'"):
        simulate(model, record)
