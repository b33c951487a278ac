"""Binary layers: their arithmetic in numpy, larq's semantics, training, files."""

from __future__ import annotations

import itertools
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from edgecompress.converters import float32
from edgecompress.converters.loaders import load_model
from edgecompress.core.errors import ArgumentError, UnknownNameError
from edgecompress.engines.run import run_engine
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.inspection import inspect_keras
from edgecompress.layers.binary import (
    BinaryConv2D,
    BinaryDense,
    WeightClip,
    frozen_kernels,
    same_padding,
)

pytestmark = pytest.mark.slow

OTHER = np.random.default_rng(5)


def signs(x: np.ndarray) -> np.ndarray:
    return np.where(x < 0, -1.0, 1.0)


def normal(*shape: int) -> np.ndarray:
    return OTHER.normal(size=shape).astype(np.float32)


def convolution(x: np.ndarray, w: np.ndarray, stride: int, dilation: int) -> np.ndarray:
    """A convolution without padding, by its definition."""
    kh, kw = w.shape[:2]
    rows = (x.shape[1] - (kh - 1) * dilation - 1) // stride + 1
    columns = (x.shape[2] - (kw - 1) * dilation - 1) // stride + 1
    y = np.zeros((len(x), rows, columns, w.shape[3]))
    for i, j in itertools.product(range(rows), range(columns)):
        for a, b in itertools.product(range(kh), range(kw)):
            y[:, i, j] += x[:, i * stride + a * dilation, j * stride + b * dilation] @ w[a, b]
    return y


def expected(layer: BinaryConv2D, x: np.ndarray) -> np.ndarray:
    w = np.asarray(layer.kernel)
    weights = signs(w)
    if layer.scale:
        weights = weights * np.abs(w).mean((0, 1, 2))
    x = signs(x) if layer.input_quantizer else x
    stride, dilation = layer.strides[0], layer.dilation_rate[0]
    if layer.padding != "valid":
        amounts = [(0, 0)]
        for size, kernel in zip(x.shape[1:3], w.shape[:2], strict=True):
            extent = (kernel - 1) * dilation + 1
            total = max((-(-size // stride) - 1) * stride + extent - size, 0)
            amounts.append((total // 2, total - total // 2))
        value = 1 if layer.padding == "same_one" else 0
        x = np.pad(x, [*amounts, (0, 0)], constant_values=value)
    y = convolution(x, weights, stride, dilation)
    if layer.bias is not None:
        y = y + np.asarray(layer.bias)
    return np.maximum(y, 0) if layer.activation is keras.activations.relu else y


# ---- values


CASES: list[dict[str, Any]] = [
    {},
    {"padding": "same"},
    {"padding": "valid"},
    {"strides": 2},
    {"strides": 2, "padding": "same"},
    {"strides": 3, "padding": "valid"},
    {"dilation_rate": 2},
    {"dilation_rate": 2, "padding": "valid"},
    {"scale": True},
    {"use_bias": True, "bias_initializer": "random_normal", "activation": "relu"},
    {"input_quantizer": None, "padding": "valid"},
    {"input_quantizer": "approx_sign", "kernel_quantizer": "swish_sign", "kernel_size": (1, 4)},
]


@pytest.mark.parametrize("settings", CASES, ids=lambda case: "-".join(case) or "plain")
def test_convolution_is_that_of_signs(settings: dict[str, Any]) -> None:
    layer = BinaryConv2D(4, **{"kernel_size": 3, **settings})
    x = normal(2, 7, 6, 5)
    y = np.asarray(layer(x))
    np.testing.assert_allclose(y, expected(layer, x), rtol=1e-5, atol=1e-5)
    assert layer.compute_output_shape((None, 7, 6, 5)) == (None, *y.shape[1:])


def test_without_scale_outputs_are_whole_numbers_of_the_right_parity() -> None:
    y = np.asarray(BinaryConv2D(4, 3)(normal(2, 5, 5, 3)))
    np.testing.assert_array_equal(y % 2, 1)  # 27 products of +1 and -1
    assert np.abs(y).max() <= 27


def test_zero_weights_and_zero_inputs_count_as_one() -> None:
    layer = BinaryConv2D(1, 1)
    layer.build((None, 1, 1, 3))
    layer.kernel.assign(np.array([0.0, -0.0, -1e-9], np.float32).reshape(1, 1, 3, 1))
    np.testing.assert_array_equal(layer(np.zeros((1, 1, 1, 3), np.float32)), [[[[1.0]]]])


def test_dense_is_the_product_of_signs() -> None:
    for shape, settings in (
        ((3, 8), {}),
        ((3, 8), {"scale": True, "use_bias": True, "bias_initializer": "random_normal"}),
        ((2, 5, 8), {}),
        ((2, 3, 4, 8), {"input_quantizer": None}),
    ):
        layer = BinaryDense(4, **settings)
        x = normal(*shape)
        y = np.asarray(layer(x))
        w = np.asarray(layer.kernel)
        weights = signs(w) * (np.abs(w).mean(0) if layer.scale else 1)
        wanted = (signs(x) if layer.input_quantizer else x) @ weights
        wanted = wanted + (0 if layer.bias is None else np.asarray(layer.bias))
        np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)
        assert layer.compute_output_shape(x.shape) == y.shape


@pytest.mark.parametrize("size", range(1, 9))
def test_padding_is_tensorflows(size: int) -> None:
    x = normal(1, size, size, 1)
    for kernel, stride, dilation in ((1, 1, 1), (2, 1, 1), (3, 1, 1), (3, 2, 1), (4, 3, 1),
                                     (5, 2, 1), (3, 1, 2)):  # fmt: skip
        w = normal(kernel, kernel, 1, 1)
        amounts = same_padding(size, kernel, stride, dilation)
        padded = tf.pad(x, [(0, 0), amounts, amounts, (0, 0)])
        ours = tf.nn.conv2d(padded, w, stride, "VALID", dilations=dilation)
        theirs = tf.nn.conv2d(x, w, stride, "SAME", dilations=dilation)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_an_unknown_size_needs_a_stride_of_one_or_another_padding() -> None:
    open_input = keras.Input((None, None, 2))
    x = normal(1, 6, 5, 2)
    layer = BinaryConv2D(3, 3)
    model = keras.Model(open_input, layer(open_input))
    np.testing.assert_allclose(model(x), expected(layer, x), atol=1e-5)
    assert BinaryConv2D(3, 3, strides=2, padding="same")(open_input).shape == (None, None, None, 3)
    with pytest.raises(ArgumentError, match='known height and width for padding "same_one"'):
        BinaryConv2D(3, 3, strides=2)(open_input)


def test_bits_and_scale_are_readable() -> None:
    layer = BinaryConv2D(4, 3, scale=True)
    with pytest.raises(ArgumentError, match="must be built"):
        layer.kernel_bits()
    layer.build((None, 8, 8, 5))
    kernel = np.asarray(layer.kernel)
    bits = layer.kernel_bits()
    assert (bits.dtype, bits.shape) == (np.uint8, kernel.shape)
    np.testing.assert_array_equal(2.0 * bits - 1, signs(kernel))
    np.testing.assert_allclose(layer.kernel_scale(), np.abs(kernel).mean((0, 1, 2)), rtol=1e-6)
    plain = BinaryDense(2)
    plain.build((None, 3))
    np.testing.assert_array_equal(plain.kernel_scale(), [1, 1])


def test_half_precision_does_not_turn_small_weights() -> None:
    layer = BinaryDense(1, dtype="mixed_float16")
    layer.build((None, 4))
    layer.kernel.assign(np.full((4, 1), -1e-9, np.float32))
    y = layer(np.ones((1, 4), np.float16))
    assert y.dtype == tf.float16
    np.testing.assert_array_equal(y, [[-4.0]])


# ---- training


def test_kernel_gradient_passes_within_one_and_carries_the_scale() -> None:
    x, above = normal(6, 3), normal(6, 2)
    w = np.array([[0.5, -1.5], [-0.25, 0.75], [2.0, -1.0]], np.float32)
    for scale in (False, True):
        layer = BinaryDense(2, scale=scale, kernel_constraint=WeightClip(5))
        layer.build((None, 3))
        layer.kernel.assign(w)
        with tf.GradientTape() as tape:
            total = ops.sum(layer(x) * above)
        found = tape.gradient(total, layer.kernel.value)
        alpha = np.abs(w).mean(0) if scale else 1.0
        wanted = (signs(x).T @ above) * alpha * (np.abs(w) <= 1)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_input_gradient_is_the_quantizers() -> None:
    layer = BinaryDense(2, input_quantizer="approx_sign")
    layer.build((None, 3))
    x = tf.constant([[0.5, -0.25, 1.5]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = ops.sum(layer(x))
    wanted = signs(np.asarray(layer.kernel)).sum(1) * np.array([1.0, 1.5, 0.0])
    np.testing.assert_allclose(tape.gradient(total, x)[0], wanted, atol=1e-6)


def test_weights_stay_within_one_in_training() -> None:
    model = keras.Sequential([keras.Input((4,)), BinaryDense(3), layers.BatchNormalization()])
    model.compile(keras.optimizers.SGD(50.0), "mse")
    model.fit(normal(16, 4), normal(16, 3), epochs=3, verbose=0)
    kernel = np.asarray(model.layers[0].kernel)
    assert np.abs(kernel).max() == 1
    assert np.asarray(WeightClip(0.5)(kernel)).max() <= 0.5


def test_a_missing_clip_warns_in_one_sentence() -> None:
    with pytest.warns(UserWarning, match="starve") as caught:
        layer = BinaryConv2D(2, 3, kernel_constraint=None)
    assert layer.kernel_constraint is None
    text = str(caught[0].message)
    assert text.count(". ") == 0 and '"weight_clip"' in text


def toy() -> tuple[np.ndarray, np.ndarray]:
    """Images of a noisy bar, upright or lying: no single pixel tells which."""
    random = np.random.default_rng(1)
    x = random.normal(scale=0.5, size=(400, 8, 8, 1)).astype(np.float32)
    y = np.arange(400) % 2
    for image, lying, place in zip(x, y, random.integers(1, 7, 400), strict=True):
        image[(place, slice(None)) if lying else (slice(None), place)] += 1.5
    return x, y


def test_a_binary_network_learns() -> None:
    x, y = toy()
    inputs = keras.Input((8, 8, 1))
    z = layers.Conv2D(16, 3, padding="same", use_bias=False)(inputs)
    z = layers.BatchNormalization(momentum=0.8)(z)
    for _ in range(2):
        short = z
        z = BinaryConv2D(16, 3, input_quantizer="approx_sign")(z)
        z = layers.Add()([layers.BatchNormalization(momentum=0.8)(z), short])
    z = layers.BatchNormalization(momentum=0.8)(BinaryDense(16)(layers.Flatten()(z)))
    model = keras.Model(inputs, layers.Dense(2)(z))
    model.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    before = [layer.kernel_bits() for layer in model.layers if isinstance(layer, BinaryConv2D)]
    model.fit(x[:300], y[:300], epochs=12, batch_size=32, verbose=0)
    assert model.evaluate(x[300:], y[300:], verbose=0)[1] > 0.9
    after = [layer.kernel_bits() for layer in model.layers if isinstance(layer, BinaryConv2D)]
    # Bits have turned, so training went through both signs.
    assert all((a != b).mean() > 0.02 for a, b in zip(before, after, strict=True))


# ---- files


def small_net() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            BinaryConv2D(4, 3, strides=2, padding="same_one", scale=True, name="conv"),
            layers.Flatten(),
            BinaryDense(2, use_bias=True, input_quantizer="swish_sign", name="dense"),
        ]
    )


SETTINGS: dict[str, Any] = {
    "activation": "relu",
    "use_bias": True,
    "input_quantizer": "approx_sign",
    "kernel_quantizer": "swish_sign",
    "scale": True,
    "kernel_initializer": "he_normal",
    "bias_initializer": "ones",
    "kernel_regularizer": "l2",
    "bias_regularizer": "l1",
    "kernel_constraint": WeightClip(0.5),
    "bias_constraint": "non_neg",
    "name": "mine",
}


@pytest.mark.parametrize(
    "layer",
    [
        BinaryConv2D(4, (3, 2), strides=(2, 1), padding="same", **SETTINGS),
        BinaryConv2D(4, 3, dilation_rate=2, padding="valid", input_quantizer=None),
        BinaryDense(4, **SETTINGS),
    ],
    ids=["conv", "dilated", "dense"],
)
def test_every_argument_survives_its_configuration(layer: keras.layers.Layer) -> None:
    config = json.loads(json.dumps(layer.get_config()))
    again = type(layer).from_config(config)
    assert json.loads(json.dumps(again.get_config())) == config
    if layer.name == "mine":
        # Every argument is away from its default, and nothing of it was lost.
        plain = type(layer)(2, *([3] if isinstance(layer, BinaryConv2D) else [])).get_config()
        assert not [name for name in SETTINGS if config[name] == plain[name]]
        assert again.kernel_constraint.clip_value == 0.5
        assert again.kernel_initializer.__class__.__name__ == "HeNormal"


def test_a_file_loads_without_importing_the_layers(
    tmp_path: Path, run_python: Callable[..., Any]
) -> None:
    model = small_net()
    path = tmp_path / "net.keras"
    model.save(path)
    x = normal(4, 6, 6, 3)
    np.testing.assert_array_equal(load_model(path).predict([x])[0], model(x))
    program = (
        "import sys\nfrom edgecompress.cli import main\n"
        "sys.argv = ['edgecompress', 'inspect', sys.argv[1]]\nmain()"
    )
    done = run_python(["-P", "-c", program, path])
    assert done.returncode == 0, done.stderr[-2000:]
    assert "BinaryConv2D" in done.stdout and "binary MACs" in done.stdout


def test_a_class_that_only_claims_to_be_ours_is_refused(tmp_path: Path) -> None:
    path, changed = tmp_path / "net.keras", tmp_path / "changed.keras"
    small_net().save(path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            text = old.read(name)
            new.writestr(name, text.replace(b"BinaryDense", b"BinaryDance"))
    with pytest.raises(Exception, match="BinaryDance.*not registered"):
        load_model(changed)


def test_inspection_counts_bits_and_binary_macs_apart() -> None:
    model = small_net()
    model.get_layer("conv").kernel.assign(np.zeros((3, 3, 3, 4), np.float32))
    rows = {row.name: row for row in inspect_keras(model).rows}
    conv, dense = rows["conv"], rows["dense"]
    assert (conv.bits, conv.macs, conv.binary_macs) == (1, 0, 3 * 3 * 4 * 27)
    # A latent zero is a +1.
    assert (conv.zeros, conv.filters, conv.zero_filters) == (0, 4, 0)
    assert (dense.bits, dense.macs, dense.binary_macs, dense.parameters) == (1, 0, 72, 74)
    inspection = inspect_keras(model)
    assert (inspection.macs, inspection.binary_macs) == (0, 972 + 72)
    assert any("2 layers compute with one bit" in note for note in inspection.notes)
    float_input = keras.Sequential([keras.Input((5,)), BinaryDense(2, input_quantizer=None)])
    (row,) = inspect_keras(float_input).rows
    assert (row.bits, row.macs, row.binary_macs) == (1, 10, 0)


def test_frozen_kernels_are_constants_of_signs() -> None:
    model = small_net()
    x = normal(3, 6, 6, 3)
    wanted = np.asarray(model(x))
    with frozen_kernels():
        np.testing.assert_allclose(model(x), wanted, atol=1e-6)
    result = float32.convert(model)
    flat = read_tflite(result.artifact.data)
    filters = [flat.tensors[o.inputs[1]] for o in flat.operators if o.code == "CONV_2D"]
    assert len(filters) == 2 and all(tensor.is_constant for tensor in filters)
    # Signs of activations only: those of weights would be computed at every inference.
    assert flat.histogram()["SELECT_V2"] == 2
    for tensor in filters:
        sizes = np.abs(tensor.values()).reshape(tensor.shape[0], -1)
        np.testing.assert_allclose(sizes, np.broadcast_to(sizes[:, :1], sizes.shape), rtol=1e-6)
    run = run_engine("litert", result.artifact.data, [x])
    np.testing.assert_allclose(run.outputs[0], wanted, atol=1e-4)


# ---- arguments


@pytest.mark.parametrize(
    "settings, text",
    [
        ({"filters": 0}, "`filters` must be a positive integer. Got 0"),
        ({"kernel_size": (3, 3, 3)}, "`kernel_size` must be a positive integer or a pair"),
        ({"strides": 0}, "`strides` must be"),
        ({"padding": "causal"}, "one of same_one, same, valid. Got 'causal'"),
        ({"strides": 2, "dilation_rate": 2}, "`dilation_rate` must be 1 where strides"),
    ],
)
def test_bad_arguments_are_named(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        BinaryConv2D(**{"filters": 4, "kernel_size": 3, **settings})


def test_unknown_quantizers_and_limits_are_named() -> None:
    with pytest.raises(UnknownNameError, match="swish_sign"):
        BinaryDense(2, input_quantizer="swish")
    with pytest.raises(UnknownNameError, match="quantizer"):
        BinaryDense(2, kernel_quantizer="int8")
    with pytest.raises(ArgumentError, match="`units` must be a positive integer"):
        BinaryDense(1.5)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="clip_value"):
        WeightClip(0)
