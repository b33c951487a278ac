"""The table of kernels: against numpy, the file's own bytes, and published rows."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from edgecompress.converters import compressed, float32, int8
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.recipes.layer_table import (
    file_tensors,
    input_densities,
    kernels,
    match_file,
    stored_bytes,
    table,
)
from edgecompress.recipes.results import Cost, LayerResult, Totals, mean_bits
from edgecompress.recipes.storage import Storage, storage

_RNG = np.random.default_rng(0)


def _model() -> keras.Model:
    """Kernels of every form that a file may turn, two of them of one shape."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 2))
    x = layers.Conv2D(4, 3, use_bias=False, name="conv")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.SeparableConv2D(6, 3, name="separable")(x)
    x = layers.Conv2DTranspose(3, 2, strides=2, name="transpose")(x)
    x = layers.Flatten(name="flat")(x)
    x = layers.Dense(16, activation="relu", name="first")(x)
    x = layers.Dense(16, activation="relu", name="second")(x)
    x = layers.Dense(16, name="third")(x)
    model = keras.Model(inputs, x)
    # Some channels with the sign turned.
    model.get_layer("norm").gamma.assign([1.0, -1.0, 0.5, -2.0])
    return model


def _file(model: keras.Model, codings: tuple[str, ...] = ("lut", "prune", "huffman")) -> bytes:
    x = _RNG.normal(size=(20, 8, 8, 2)).astype("float32")
    artifact = int8.convert(float32.convert(model), calibration=[x])
    return compressed.compress(artifact, codings=codings, verify=False).artifact.data


def test_kernels_with_their_macs() -> None:
    found = {kernel.name: kernel for kernel in kernels(_model())}
    places = 6 * 6, 4 * 4
    assert {name: kernel.macs for name, kernel in found.items()} == {
        "conv": places[0] * 9 * 2 * 4,
        "separable/depthwise_kernel": places[1] * 9 * 4,
        "separable/pointwise_kernel": places[1] * 4 * 6,
        "transpose": places[1] * 4 * 6 * 3,
        "first": 8 * 8 * 3 * 16,
        "second": 256,
        "third": 256,
    }
    assert found["conv"].values.shape == (3, 3, 2, 4)


def test_shared_and_nested_layers_count_once() -> None:
    shared = layers.Dense(4, name="same")
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="same")], name="inner")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, inner(shared(shared(inputs))))
    found = kernels(model)
    assert [kernel.key for kernel in found] == [("same", 0, "kernel"), ("same", 1, "kernel")]
    # The shared layer works twice.
    assert [kernel.macs for kernel in found] == [32, 16]


class TestFile:
    def test_every_kernel_is_found(self) -> None:
        model = _model()
        layer_kernels = kernels(model)
        tensors = file_tensors(read_tflite(_file(model)))
        assert len(tensors) == len(layer_kernels) == 7
        found = match_file(layer_kernels, tensors)
        assert len(found) == 7
        # Of the two of one shape each has its own.
        for name in ("second", "third"):
            codes = found[name, 0, "kernel"].rows.astype(float)
            kernel = np.asarray(model.get_layer(name).kernel).T
            assert np.abs(codes / 127 - kernel / np.abs(kernel).max()).max() < 0.01

    def test_another_model_is_not_found(self) -> None:
        data = _file(_model())
        other = _model()
        for layer in other.layers:
            layer.set_weights([_RNG.normal(size=w.shape) for w in layer.get_weights()])
        assert match_file(kernels(other), file_tensors(read_tflite(data))) == {}

    @pytest.mark.parametrize("coding", ["lut", "prune", "huffman"])
    def test_codings_and_bytes(self, coding: str) -> None:
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [keras.Input((64,)), layers.Dense(64, name="big"), layers.Dense(4, name="small")]
        )
        values = _RNG.choice([-1.0, 0.0, 0.0, 0.0, 0.5], size=(64, 64))
        model.get_layer("big").kernel.assign(values)
        x = _RNG.normal(size=(20, 64)).astype("float32")
        artifact = int8.convert(float32.convert(model), calibration=[x])
        result = compressed.compress(artifact, codings=[coding], verify=False)
        rows, notes = table(
            kernels(model), kernels(model), 5, {}, read_tflite(result.artifact.data)
        )
        assert [row.coding for row in rows] == [coding, "raw"]
        # The compressor's own count of the same bytes.
        assert rows[0].file_bytes == max(result.tensors, key=lambda t: t.bytes_before).bytes_after
        assert rows[1].file_bytes == 256
        assert notes == ()

    def test_a_table_that_two_share_counts_once(self) -> None:
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [keras.Input((48,)), layers.Dense(48, name="one"), layers.Dense(48, name="two")]
        )
        for name in ("one", "two"):
            values = np.rint(_RNG.normal(size=(48, 48)) * 20) / 60
            values[0, 0] = 127 / 60
            model.get_layer(name).kernel.assign(values)
        x = _RNG.normal(size=(20, 48)).astype("float32")
        artifact = int8.convert(float32.convert(model), calibration=[x])
        result = compressed.compress(artifact, codings=["huffman"], verify=False)
        assert any(tensor.shared_book for tensor in result.tensors)
        tensors = file_tensors(read_tflite(result.artifact.data))
        assert sum(t.bytes for t in tensors) == sum(t.bytes_after for t in result.tensors)

    def test_kernels_that_are_no_filters_are_named(self) -> None:
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input((4,), dtype="int32"),
                layers.Embedding(10, 6, name="words"),
                layers.Flatten(),
                layers.Dense(3, name="head"),
            ]
        )
        x = _RNG.integers(0, 10, (20, 4)).astype("int32")
        data = int8.convert(float32.convert(model), calibration=[x]).data
        rows, notes = table(kernels(model), kernels(model), 5, {}, read_tflite(data))
        assert [(row.name, row.coding) for row in rows] == [("words", None), ("head", "raw")]
        assert rows[0].file_bytes is None and "words" in notes[0]


def test_input_densities_by_numpy() -> None:
    model = _model()
    x = _RNG.normal(size=(16, 8, 8, 2)).astype("float32")
    found = input_densities(model, x)
    by_name = {name: found[id(model.get_layer(name))] for name in ("conv", "separable", "third")}
    # The model's own input counts as 1, zeros in it or not.
    assert by_name["conv"] == 1
    relu = keras.Model(model.inputs, model.get_layer("relu").output).predict(x, verbose=0)
    second = keras.Model(model.inputs, model.get_layer("second").output).predict(x, verbose=0)
    assert by_name["separable"] == pytest.approx((relu != 0).mean())
    assert by_name["third"] == pytest.approx((second != 0).mean())
    assert 0.2 < by_name["separable"] < 0.8


def test_what_flatten_makes_of_the_input_counts_as_input() -> None:
    model = keras.Sequential([keras.Input((2, 2)), layers.Flatten(), layers.Dense(3, name="first")])
    assert input_densities(model, np.zeros((4, 2, 2))) == {id(model.get_layer("first")): 1.0}


# Learning both Weights and Connections, table 2 (LeNet-300-100), https://arxiv.org/abs/1506.02626:
# weights, Weights%, Act% of the layer before, FLOP%; all printed as whole numbers.
_PUBLISHED_FLOPS = {
    "fc1": (235_200, 8, 100, 8),
    "fc2": (30_000, 9, 38, 4),
    "fc3": (1_000, 26, 65, 17),
}


def _layer(weights: int, kept: float, density: float, **rest: int) -> LayerResult:
    values = np.zeros(weights)
    values[: round(kept * weights)] = 0.5
    return LayerResult("fc", "Dense", weights, storage(values), weights, weights, density, **rest)


@pytest.mark.parametrize("name", _PUBLISHED_FLOPS)
def test_published_flops(name: str) -> None:
    weights, percent, before, flops = _PUBLISHED_FLOPS[name]
    # Whole numbers lie within half a percent of the true ones.
    shares = [
        _layer(weights, (percent + off) / 100, min(before + off, 100) / 100).flop_share
        for off in (-0.5, 0.5)
    ]
    assert 100 * shares[0] - 0.5 <= flops <= 100 * shares[1] + 0.5
    whole = _layer(weights, percent / 100, 1.0).flop_share
    assert name == "fc1" or abs(100 * whole - flops) > 4


class TestResults:
    def test_removed_channels_count_against_the_original(self) -> None:
        """A kernel of 100 weights of which 40 are left, 10 of them other than zero."""
        values = np.zeros(40)
        values[::4] = 0.5
        layer = LayerResult("fc", "Dense", 100, storage(values, 2), 1000, 400, 0.5)
        assert layer.kept_share == 0.1 and layer.original_bytes == 400
        assert layer.macs_kept == 100 and layer.flop_share == 0.05
        # 10 entries of 1 + 2 bits and one value.
        assert layer.quantized_rate == ((10 * 3 + 32 + 7) // 8) / 400

    def test_unknown_macs_stay_unknown(self) -> None:
        layer = LayerResult("fc", "LSTM", 4, storage(np.ones(4)), None, None, 1.0)
        assert layer.macs_kept is None and layer.flop_share is None
        totals = _totals(layer, _layer(100, 0.5, 1.0))
        assert (totals.macs, totals.macs_kept) == (100, 50)

    def test_totals_by_hand(self) -> None:
        first, second = _layer(1000, 0.1, 1.0, file_bytes=80), _layer(100, 0.5, 0.5)
        totals = _totals(first, second)
        assert (totals.weights, totals.kept) == (1100, 150)
        assert totals.parameter_rate == 1100 / 150
        assert totals.original_bytes == 4400
        assert totals.paper_rate == 4400 / totals.huffman_bytes
        assert totals.flop_share == pytest.approx((100 + 25) / 1100)
        assert totals.file_rate == 10 and totals.macs_rate == 1
        assert totals.sum(lambda layer: layer.file_bytes) == 80
        assert totals.latency.rate == 0.25 and totals.latency.uncoded_rate == 2
        assert totals.instructions.rate is None

    def test_mean_bits_weigh_by_entries(self) -> None:
        rows = [
            Storage(10, 10, 10, 2, 1, 0, 64, 10, 0),
            Storage(90, 30, 30, 16, 4, 5, 512, 90, 60),
        ]
        assert mean_bits(rows, "weight_bits") == (10 * 1 + 30 * 4) / 40
        assert mean_bits(rows, "huffman_index_bits") == 60 / 40
        assert mean_bits([], "weight_bits") == 0


def _totals(*rows: LayerResult) -> Totals:
    return Totals(
        rows, 10_000, 3_000, 1_000, 900, "board", Cost(10.0, 5.0, 40.0), Cost(None, 5.0, 40.0),
        Cost(3_000, 2_000, 9_000), 1_200, 1_100,
    )  # fmt: skip


def test_stored_bytes_are_those_of_the_kernels() -> None:
    model = keras.Sequential([keras.Input((20,)), layers.Dense(10)])
    kernel = np.where(_RNG.random((20, 10)) < 0.3, 0.5, 0)
    model.layers[-1].kernel.assign(kernel)
    found = stored_bytes(kernels(model), 4)
    assert found == (200, np.count_nonzero(kernel), storage(kernel, 4).quantized_bytes)
