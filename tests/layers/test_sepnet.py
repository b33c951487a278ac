"""SEP-Net blocks against numpy, and their group-wise convolutions in the int8 engines."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompress.converters import compressed, float32, int8
from edgecompress.core.errors import ArgumentError
from edgecompress.engines.run import run_engine
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.layers.sepnet import PatternResidualBlock, SEPNetModule, sepnet

keras = pytest.importorskip("keras")

pytestmark = pytest.mark.slow
kl = keras.layers
_RNG = np.random.default_rng(0)


def convolve(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """A convolution with padding "same" and stride 1, in as many groups as its shape tells."""
    size, inputs = kernel.shape[0], kernel.shape[2]
    groups = x.shape[-1] // inputs
    outputs = kernel.shape[3] // groups
    before = (size - 1) // 2
    padded = np.pad(x, ((0, 0), (before, size - 1 - before), (before, size - 1 - before), (0, 0)))
    result = np.zeros((*x.shape[:3], kernel.shape[3]))
    for i in range(size):
        for j in range(size):
            window = padded[:, i : i + x.shape[1], j : j + x.shape[2]]
            for g in range(groups):
                source = window[..., g * inputs : (g + 1) * inputs]
                place = slice(g * outputs, (g + 1) * outputs)
                result[..., place] += source @ kernel[i, j, :, place]
    return result


def norm(x: np.ndarray) -> np.ndarray:
    """A BatchNormalization as it is made."""
    return x / np.sqrt(1 + 1e-3)


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def block(x: np.ndarray, model: Any, name: str) -> np.ndarray:
    pattern = convolve(x, np.array(model.get_layer(f"{name}_pattern").kernel))
    pointwise = convolve(x, np.array(model.get_layer(f"{name}_pointwise").kernel))
    return relu(norm(pattern) + norm(pointwise))


def randomize(model: Any) -> None:
    """Gives BatchNormalization layers something to do, negative factors among it."""
    for layer in model.layers:
        if isinstance(layer, kl.BatchNormalization):
            shape = layer.gamma.shape
            layer.gamma.assign(_RNG.choice([-1.5, 0.5, 1.0], shape))
            layer.beta.assign(_RNG.normal(0, 0.2, shape))
            layer.moving_mean.assign(_RNG.normal(0, 0.2, shape))
            layer.moving_variance.assign(_RNG.uniform(0.5, 2, shape))


@pytest.mark.parametrize(("groups", "size"), [(1, 3), (2, 2), (4, 5)])
def test_block_by_numpy(groups: int, size: int) -> None:
    inputs = keras.Input((6, 5, 8))
    outputs = PatternResidualBlock(12, kernel_size=size, groups=groups, name="b")(inputs)
    model = keras.Model(inputs, outputs)
    assert model.get_layer("b_pattern").kernel.shape == (size, size, 8 // groups, 12)
    x = _RNG.normal(size=(3, 6, 5, 8)).astype("f4")
    want = block(x, model, "b")
    np.testing.assert_allclose(model.predict(x, verbose=0), want, rtol=1e-4, atol=1e-5)


def test_module_by_numpy() -> None:
    inputs = keras.Input((4, 4, 16))
    model = keras.Model(inputs, SEPNetModule(16, groups=2, widths=(6, 4), name="m")(inputs))
    assert [layer.name for layer in model.layers[1:]] == [
        "m_reduce", "m_reduce_norm", "m_reduce_relu",
        "m_prb1_pattern", "m_prb1_pointwise", "m_prb1_pattern_norm", "m_prb1_pointwise_norm",
        "m_prb1_add", "m_prb1_relu",
        "m_prb2_pattern", "m_prb2_pointwise", "m_prb2_pattern_norm", "m_prb2_pointwise_norm",
        "m_prb2_add", "m_prb2_relu",
        "m_recover", "m_recover_norm", "m_add", "m_relu",
    ]  # fmt: skip
    x = _RNG.normal(size=(2, 4, 4, 16)).astype("f4")
    y = relu(norm(convolve(x, np.array(model.get_layer("m_reduce").kernel))))
    y = block(block(y, model, "m_prb1"), model, "m_prb2")
    want = relu(x + norm(convolve(y, np.array(model.get_layer("m_recover").kernel))))
    np.testing.assert_allclose(model.predict(x, verbose=0), want, rtol=1e-4, atol=1e-5)


def test_the_widths_of_the_papers_table() -> None:
    """64, 128 and 256 channels: reduced to a half, blocks of a half and a quarter, 4 groups."""
    model = sepnet((64, 64, 3), 10)
    for number, filters in enumerate((64, 128, 256, 256), 1):
        for name, width, groups, size in (
            ("reduce", filters // 2, 1, 1),
            ("prb1_pointwise", filters // 2, 4, 1),
            ("prb1_pattern", filters // 2, 4, 3),
            ("prb2_pointwise", filters // 4, 4, 1),
            ("prb2_pattern", filters // 4, 4, 3),
            ("recover", filters, 1, 1),
        ):
            layer = model.get_layer(f"module{number}_{name}")
            found = (layer.filters, layer.groups, layer.kernel_size)
            assert found == (width, groups, (size, size)), layer.name
    stages = [model.get_layer(f"conv{stage}") for stage in (1, 2, 3)]
    assert [(c.filters, c.kernel_size[0], c.strides[0], c.groups) for c in stages] == [
        (64, 5, 2, 1), (128, 3, 2, 1), (256, 3, 2, 4),
    ]  # fmt: skip
    assert model.get_layer("module1_relu").output.shape == (None, 32, 32, 64)
    assert model.output_shape == (None, 10)


def test_models_are_plain_keras(tmp_path: Path) -> None:
    model = sepnet((8, 8, 1), 3, filters=(8,), modules=(1,), groups=2, classifier_activation=None)
    assert all(type(layer).__module__.startswith("keras.") for layer in model.layers)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    x = _RNG.normal(size=(2, 8, 8, 1)).astype("f4")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


@pytest.fixture(scope="module")
def converted() -> tuple[Any, np.ndarray, bytes]:
    keras.utils.set_random_seed(5)
    model = sepnet(
        (10, 10, 2), 4, filters=(8, 16, 32), modules=(1, 1, 0), groups=2, stem_strides=1,
        classifier_activation=None,
    )  # fmt: skip
    randomize(model)
    for layer in model.layers:
        if isinstance(layer, kl.Conv2D) and layer.kernel_size != (1, 1):
            kernel = np.array(layer.kernel)
            layer.kernel.assign(np.where(kernel >= 0, 1, -1) * np.abs(kernel).mean((0, 1, 2)))
    x = _RNG.normal(size=(60, 10, 10, 2)).astype("f4")
    return model, x, int8.convert(float32.convert(model), calibration=[x]).data


def test_groups_stay_one_operator(converted: tuple[Any, np.ndarray, bytes]) -> None:
    model, _, data = converted
    flat = read_tflite(data)
    convolutions = [layer for layer in model.layers if isinstance(layer, kl.Conv2D)]
    assert flat.histogram() == {
        "CONV_2D": len(convolutions), "ADD": 6, "AVERAGE_POOL_2D": 1, "FULLY_CONNECTED": 1,
    }  # fmt: skip
    filters = [flat.tensor(o, 1) for o in flat.operators if o.code == "CONV_2D"]
    shapes = sorted(tensor.shape for tensor in filters if tensor is not None)
    wanted = sorted(tuple(np.moveaxis(np.array(c.kernel), -1, 0).shape) for c in convolutions)
    assert shapes == wanted
    # Patterns are codes of -127 and 127, negative factors of BatchNormalization folded in.
    codes = [set(np.unique(t.values())) for t in filters if t is not None and t.shape[1] > 1]
    assert codes == [{-127, 127}] * 7


@pytest.mark.parametrize("engine", ["litert", "tflm", "tflite-runtime"], indirect=True)
def test_grouped_int8_convolutions_run_everywhere(
    converted: tuple[Any, np.ndarray, bytes], engine: str
) -> None:
    model, x, data = converted
    flat = read_tflite(data)
    source, result = flat.tensors[flat.inputs[0]], flat.tensors[flat.outputs[0]]
    steps = np.round(x / source.scales[0]) + source.zero_points[0]
    codes = run_engine(engine, data, [np.clip(steps, -128, 127).astype(np.int8)]).outputs[0]
    have = (codes.reshape(60, 4).astype("f4") - result.zero_points[0]) * result.scales[0]
    want = model.predict(x, verbose=0)
    noise = ((have - want) ** 2).sum() / ((want - want.mean(0)) ** 2).sum()
    assert noise < 0.01


def test_patterns_take_one_bit_and_are_exact(converted: tuple[Any, np.ndarray, bytes]) -> None:
    _, _, data = converted
    result = compressed.compress(data, samples=4)
    assert result.verified_samples == 4
    flat = read_tflite(data)
    patterns = [t for t in result.tensors if flat.tensors[t.index].shape[1:3] != (1, 1)]
    coded = [t for t in patterns if t.bytes_before >= 512]
    assert coded and {t.coding for t in coded} == {"lut"}
    for tensor in coded:
        assert tensor.bytes_after <= tensor.bytes_before / 8 + 64


X = keras.Input((8, 8, 8))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: PatternResidualBlock(0), "`filters` must be a whole number, 1 or more. Got 0."),
        (lambda: PatternResidualBlock(8, 1), "`kernel_size` must be a whole number, 2 or more"),
        (lambda: PatternResidualBlock(8, groups=3), "`filters` must be a multiple of groups=3"),
        (lambda: PatternResidualBlock(8, name="a/b"), "`name` must be a text without '/'"),
        (lambda: PatternResidualBlock(9, groups=3)(X), "have a multiple of groups=3 channels"),
        (lambda: PatternResidualBlock(8)(np.ones((1, 8, 8, 8))), "tensor of the functional API"),
        (lambda: PatternResidualBlock(8)(keras.Input((8, 8))), "tensor of the functional API"),
        (lambda: PatternResidualBlock(8)(keras.Input((8, 8, None))), "known number of channels"),
        (lambda: SEPNetModule(24), "`filters` must be a multiple of 4 * groups = 16"),
        (lambda: SEPNetModule(16)(X), "`inputs` must have filters=16 channels"),
        (lambda: SEPNetModule(16, widths=(8, 6)), "`widths` must be a multiple of groups=4. Got 6"),
        (lambda: SEPNetModule(16, widths=8), "`widths` must be a pair of channel counts. Got 8."),
        (lambda: sepnet((8, 8), 3), "`input_shape` must be (height, width, channels)"),
        (lambda: sepnet((8, None, 1), 3), "`input_shape` must be a whole number"),
        (lambda: sepnet((8, 8, 1), 0), "`classes` must be a whole number, 1 or more. Got 0."),
        (lambda: sepnet((8, 8, 1), 3, (16,)), "one number for each stage of filters=(16,)"),
        (lambda: sepnet((8, 8, 1), 3, (16,), (-1,)), "`modules` must be a whole number, 0 or more"),
        (lambda: sepnet((8, 8, 1), 3, (12,), (1,)), "`filters` must be a multiple of 4 * groups"),
    ],
)
def test_mistakes_are_named(make: Any, text: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(text)):
        make()
