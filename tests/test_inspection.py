"""Inspection: counts against hand-made numbers, the converter, and published MACs."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tf_keras
from rich.console import Console

from edgecompress.core.errors import ModelFileError
from edgecompress.flatbuffers.coding import CODINGS, Layout
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import Operator
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.flatbuffers.tensors import Tensor
from edgecompress.inspection import (
    INSPECT_SCHEMA,
    Inspection,
    inspect_file,
    inspect_keras,
    inspect_tflite,
    render,
)

pytestmark = pytest.mark.slow

_FRAMEWORKS = pytest.mark.parametrize("framework", [keras, tf_keras], ids=["keras3", "tf_keras"])


def _small(framework: Any = keras, norm: bool = False) -> Any:
    """A convolution net with a strided, a depthwise, a pointwise and a dense layer."""
    layers = framework.layers
    inputs = framework.Input((8, 8, 3), batch_size=1)
    x = layers.Conv2D(4, 3, strides=2, padding="same", activation="relu", name="stem")(inputs)
    if norm:
        x = layers.BatchNormalization(name="norm")(x)
    x = layers.DepthwiseConv2D(3, padding="same", name="depth")(x)
    x = layers.Conv2D(6, 1, activation="relu", name="point")(x)
    x = layers.Flatten(name="flat")(x)
    x = layers.Dense(5, name="head")(x)
    model = framework.Model(inputs, x, name="small")
    for layer in model.layers:
        # The converter merges or drops biases that are all zero.
        if hasattr(layer, "bias"):
            layer.bias.assign(np.random.default_rng(len(layer.name)).normal(size=layer.bias.shape))
    return model


def _converted(model: Any, *, float16: bool = False) -> bytes:
    """The converter's own flatbuffer: an account of the model that is independent of ours."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if float16:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]
    return converter.convert()


def _row(inspection: Inspection, name: str) -> Any:
    return next(row for row in inspection.rows if row.name == name)


def _text(inspection: Inspection, **console: Any) -> str:
    out = io.StringIO()
    render(inspection, Console(file=out, **console))
    return out.getvalue()


# 4x4x4 outputs of 3x3x3, 4x4x4 of 3x3, 4x4x6 of 4, 96x5.
_SMALL_MACS = {"stem": 64 * 27, "depth": 64 * 9, "point": 96 * 4, "flat": 0, "head": 480}


@_FRAMEWORKS
def test_keras_rows(framework: Any) -> None:
    model = _small(framework)
    model.get_layer("point").kernel.assign(
        np.where(np.arange(6) < 2, 0.0, np.ones((1, 1, 4, 6))).astype("float32")
    )
    result = inspect_keras(model)
    assert {row.name: row.macs for row in result.rows} == _SMALL_MACS
    assert result.parameters == model.count_params()
    point = _row(result, "point")
    assert (point.type, point.output_shape, point.index) == ("Conv2D", (1, 4, 4, 6), 2)
    assert (point.weights, point.zeros, point.filters, point.zero_filters) == (24, 8, 6, 2)
    assert point.sparsity == pytest.approx(1 / 3)
    assert (point.bits, point.weight_bytes) == (32, 30 * 4)
    assert _row(result, "flat").sparsity is None
    assert any("2 of 19 filters are zero" in note for note in result.notes)
    assert [(end.shape, end.dtype, end.scale) for end in (*result.inputs, *result.outputs)] == [
        ((1, 8, 8, 3), "float32", None),
        ((1, 5), "float32", None),
    ]


@pytest.mark.parametrize("norm", [False, True])
def test_keras_and_its_flatbuffer_agree(norm: bool) -> None:
    model = _small(norm=norm)
    kernel = model.get_layer("stem").kernel
    values = np.array(kernel)
    values[..., 1] = 0
    values[0, 0, 0, 0] = 0
    kernel.assign(values)
    ours, flat = inspect_keras(model), inspect_tflite(read_tflite(_converted(model)))
    assert flat.macs == ours.macs == sum(_SMALL_MACS.values())
    assert flat.weights == ours.weights
    assert flat.zeros == ours.zeros == 28
    assert (flat.filters, flat.zero_filters) == (ours.filters, ours.zero_filters) == (19, 1)
    if not norm:
        assert flat.parameters == ours.parameters == model.count_params()
        assert flat.weight_bytes == ours.weight_bytes


_LAYER_CASES = {
    "Dense": ({"units": 5}, (3, 7), 3 * 5 * 7),
    "Conv1D": ({"filters": 5, "kernel_size": 3, "dilation_rate": 2}, (9, 2), 5 * 5 * 3 * 2),
    "Conv2D": ({"filters": 8, "kernel_size": 3, "groups": 2}, (6, 6, 4), 16 * 8 * 9 * 2),
    "Conv3D": ({"filters": 2, "kernel_size": 2}, (3, 3, 3, 2), 8 * 2 * 8 * 2),
    "DepthwiseConv1D": ({"kernel_size": 3, "depth_multiplier": 2}, (5, 3), 3 * 6 * 3),
    "DepthwiseConv2D": ({"kernel_size": 3, "depth_multiplier": 2}, (6, 6, 4), 16 * 8 * 9),
    "SeparableConv1D": ({"filters": 5, "kernel_size": 3}, (6, 4), 4 * (4 * 3 + 4 * 5)),
    "SeparableConv2D": ({"filters": 5, "kernel_size": 3}, (6, 6, 4), 16 * (4 * 9 + 4 * 5)),
    "Conv1DTranspose": ({"filters": 5, "kernel_size": 3, "strides": 2}, (4, 2), 4 * 2 * 3 * 5),
    "Conv2DTranspose": ({"filters": 5, "kernel_size": 2, "strides": 2}, (3, 3, 4), 9 * 4 * 4 * 5),
    "EinsumDense": ({"equation": "...b,bcd->...cd", "output_shape": (2, 5)}, (3, 7), 3 * 10 * 7),
    "LSTM": ({"units": 3}, (5, 2), 5 * 4 * 3 * (2 + 3)),
    "GRU": ({"units": 3, "return_sequences": True}, (5, 2), 5 * 3 * 3 * (2 + 3)),
    "SimpleRNN": ({"units": 3}, (5, 2), 5 * 3 * (2 + 3)),
    "BatchNormalization": ({}, (5, 2), 0),
    "Embedding": ({"input_dim": 7, "output_dim": 3}, (5,), 0),
    "PReLU": ({}, (5, 2), 0),
    "MaxPooling2D": ({}, (6, 6, 4), 0),
    "Dropout": ({"rate": 0.5}, (6,), 0),
}


@_FRAMEWORKS
@pytest.mark.parametrize("name", _LAYER_CASES)
def test_macs_of_every_layer(framework: Any, name: str) -> None:
    options, shape, macs = _LAYER_CASES[name]
    model = framework.Sequential(
        [framework.Input(shape), getattr(framework.layers, name)(**options)]
    )
    result = inspect_keras(model)
    assert result.macs == macs
    assert result.parameters == model.count_params()
    assert result.notes == ()


def test_macs_of_attention_are_those_of_its_file() -> None:
    query, value = keras.Input((3, 6), 1), keras.Input((5, 4), 1)
    made = keras.layers.MultiHeadAttention(2, 3, value_dim=7, output_shape=8)(query, value)
    model = keras.Model([query, value], made)
    dense = 3 * (6 * 2 * 3 + 2 * 7 * 8) + 5 * (4 * 2 * 3 + 4 * 2 * 7)
    assert inspect_keras(model).macs == dense + 2 * 3 * 5 * (3 + 7)
    converted = inspect_tflite(read_tflite(_converted(model)))
    assert converted.macs == inspect_keras(model).macs


@_FRAMEWORKS
def test_wrapped_layers(framework: Any) -> None:
    layers = framework.layers
    model = framework.Sequential(
        [
            framework.Input((4, 6, 2)),
            layers.TimeDistributed(layers.Conv1D(3, 3)),
            layers.TimeDistributed(layers.Flatten()),
            layers.Bidirectional(layers.LSTM(2)),
        ]
    )
    result = inspect_keras(model)
    # 4 steps of 4 positions with 3 filters of 3x2; both directions of 4 steps of 4 gates.
    assert [row.macs for row in result.rows] == [4 * 4 * 3 * 6, 0, 2 * 4 * 4 * 2 * (12 + 2)]
    assert result.rows[0].type == "TimeDistributed(Conv1D)"
    assert result.parameters == model.count_params()


@_FRAMEWORKS
def test_shared_layer_works_twice_and_weighs_once(framework: Any) -> None:
    shared = framework.layers.Dense(4, name="shared")
    inner = framework.Sequential(
        [framework.Input((4,)), framework.layers.Dense(4, name="inner")], name="nested"
    )
    inputs = framework.Input((4,))
    model = framework.Model(inputs, shared(inner(inner(shared(inputs)))))
    result = inspect_keras(model)
    assert {row.name: (row.macs, row.parameters) for row in result.rows} == {
        "shared": (32, 20),
        "inner": (32, 20),
    }
    assert model.count_params() == result.parameters == 40


def test_subclass_of_a_layer_follows_its_base() -> None:
    class Mine(keras.layers.Dense):
        pass

    result = inspect_keras(keras.Sequential([keras.Input((4,)), Mine(3)]))
    assert (result.macs, result.rows[0].type) == (12, "Mine")


def test_what_cannot_be_counted_is_named() -> None:
    inputs = keras.Input((None, 4))
    x = keras.layers.Conv1D(4, 3, name="open")(inputs)
    x = keras.layers.MultiHeadAttention(1, 2, name="attention")(x, x)
    x = keras.layers.Dot(axes=2, name="product")([x, x])
    result = inspect_keras(keras.Model(inputs, x))
    assert [row.macs for row in result.rows] == [None, None, None]
    for name in ("open", "attention", "product"):
        assert any(f"'{name}'" in note and "not counted" in note for note in result.notes)
    assert "?" in _text(result)


def test_hidden_graph_is_named() -> None:
    class Hidden(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = keras.layers.Dense(3)

        def call(self, x: Any) -> Any:
            return self.dense(x)

    model = Hidden()
    model(np.zeros((1, 4), "float32"))
    result = inspect_keras(model)
    assert (result.parameters, result.rows[0].macs, result.rows[0].output_shape) == (15, None, None)
    assert "shows no graph" in result.notes[0]
    assert inspect_keras(keras.Sequential([keras.layers.Dense(2)])).notes


# --- flatbuffers made by hand: what no converter writes on demand -------------------------------


def _flat(tensors: list[Tensor], operators: list[Operator], **rest: Any) -> FlatModel:
    return FlatModel(b"\0" * 64, tuple(tensors), tuple(operators), (0,), (1,), **rest)


def _ends(size: int, filters: int) -> list[Tensor]:
    return [
        Tensor(0, "in", (1, size), "INT8", scales=(0.5,), zero_points=(3,)),
        Tensor(1, "out", (1, filters), "INT8", scales=(0.5,), zero_points=(3,)),
    ]


def test_zero_means_the_zero_point() -> None:
    values = np.array([[128, 128], [128, 0], [7, 0]], np.uint8)
    weights = Tensor(2, "w", (3, 2), "UINT8", values.tobytes(), (0.1,), (128,))
    row = inspect_tflite(
        _flat([*_ends(2, 3), weights], [Operator(0, "FULLY_CONNECTED", "", 1, (0, 2, -1), (1,))])
    ).rows[0]
    assert (row.zeros, row.zero_filters, row.filters, row.parameters) == (3, 1, 3, 6)


def test_zero_points_of_each_channel() -> None:
    values = np.array([[[[5, 1], [5, 2]]]], np.uint8)  # depthwise: channels last
    weights = Tensor(2, "w", (1, 1, 2, 2), "UINT8", values.tobytes(), (1.0, 1.0), (5, 2), 3)
    row = inspect_tflite(
        _flat([*_ends(2, 2), weights], [Operator(0, "DEPTHWISE_CONV_2D", "", 1, (0, 2), (1,))])
    ).rows[0]
    assert (row.zeros, row.zero_filters, row.filters) == (3, 1, 2)


def test_int4_bits_and_bytes() -> None:
    weights = Tensor(2, "w", (2, 4), "INT4", bytes([0x01, 0x00, 0x00, 0x00]), (0.1,), (0,))
    row = inspect_tflite(
        _flat([*_ends(4, 2), weights], [Operator(0, "FULLY_CONNECTED", "", 1, (0, 2), (1,))])
    ).rows[0]
    assert (row.bits, row.weight_bytes, row.zeros, row.zero_filters) == (4, 4, 7, 1)


def test_sparse_storage_is_named() -> None:
    weights = Tensor(2, "w", (2, 8), "FLOAT32", bytes(12))
    result = inspect_tflite(
        _flat([*_ends(8, 2), weights], [Operator(0, "FULLY_CONNECTED", "", 1, (0, 2), (1,))])
    )
    row = result.rows[0]
    assert (row.zeros, row.zero_filters, row.sparsity) == (None, None, None)
    assert (row.weight_bytes, row.dense_bytes, row.bits) == (12, 64, 6)
    assert "fewer bytes" in result.notes[0]
    assert "12 B stored, 64 B dense" in _text(result)
    assert result.sparsity == 0.0


def test_decoded_weights_belong_to_their_reader() -> None:
    tensors = [
        *_ends(8, 4),
        Tensor(2, "decoded", (4, 8), "INT8", scales=(0.1,), zero_points=(0,)),
        Tensor(3, "encoded", (8,), "UINT8", bytes(8)),
        Tensor(4, "table", (20,), "UINT8", bytes(20)),
    ]
    operators = [
        Operator(0, "CUSTOM", "TFLM_DECODE", 1, (3, 4), (2,)),
        Operator(1, "FULLY_CONNECTED", "", 1, (0, 2), (1,)),
    ]
    decode, dense = inspect_tflite(_flat(tensors, operators)).rows
    assert (decode.parameters, decode.weight_bytes, decode.macs) == (0, 0, 0)
    assert (dense.parameters, dense.weight_bytes, dense.dense_bytes) == (32, 28, 32)
    assert (dense.bits, dense.zeros, dense.macs) == (7, None, 32)


def _coded(values: np.ndarray, coding: str, points: tuple[int, ...]) -> FlatModel:
    """A dense layer whose weights are stored in a code."""
    code = CODINGS[coding](values, Layout(points), None)
    assert code is not None
    scales = (0.1,) * len(points)
    tensors = [
        *_ends(values.shape[1], values.shape[0]),
        Tensor(2, "decoded", values.shape, "INT8", scales=scales, zero_points=points),
        Tensor(3, "encoded", (len(code.data),), "UINT8", code.data),
        Tensor(4, "table", (len(code.ancillary),), "UINT8", code.ancillary),
    ]
    operators = [
        Operator(0, "CUSTOM", "TFLM_DECODE", 1, (3, 4), (2,)),
        Operator(1, "FULLY_CONNECTED", "", 1, (0, 2), (1,)),
    ]
    return _flat(tensors, operators)


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("points", [(0,), (3,), (0, 0, 0, 0)])
def test_zeros_of_coded_weights_are_counted(coding: str, points: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    values = (random.integers(1, 4, (4, 16)) * 5).astype(np.int8)
    values[:, ::3] = points[0]
    values[2] = points[0]
    result = inspect_tflite(_coded(values, coding, points))
    _, dense = result.rows
    assert (dense.zeros, dense.zero_filters) == (int((values == points[0]).sum()), 1)
    assert f"{100 * dense.zeros / 64:.1f}% of 64 weights are zero" in _text(result)
    assert not result.notes or "not counted" not in "".join(result.notes)


def test_no_more_weights_are_decoded_than_takes_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.eye(4, 16, dtype=np.int8)
    monkeypatch.setattr("edgecompress.inspection.tflite._MOST_DECODED", 64)
    assert inspect_tflite(_coded(values, "lut", (0,))).rows[1].zeros == 60
    monkeypatch.setattr("edgecompress.inspection.tflite._MOST_DECODED", 63)
    result = inspect_tflite(_coded(values, "lut", (0,)))
    assert result.rows[1].zeros is None
    assert "stored encoded" in "".join(result.notes)


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("damage", ["code", "table", "header", "shape"])
def test_zeros_of_damaged_codes_are_not_counted(coding: str, damage: str) -> None:
    values = np.random.default_rng(0).integers(1, 9, (4, 64)).astype(np.int8)
    model = _coded(values, coding, (0,))
    tensors = list(model.tensors)
    if damage == "shape":
        tensors[2] = dataclasses.replace(tensors[2], shape=(1 << 16, 1 << 15))
    else:
        at = 3 if damage == "code" else 4
        raw = bytes(tensors[at].raw or b"")
        left = {"code": raw[: len(raw) // 16], "table": raw[:17], "header": b"\x63" + raw[1:]}
        tensors[at] = dataclasses.replace(tensors[at], raw=left[damage])
    result = inspect_tflite(dataclasses.replace(model, tensors=tuple(tensors)))
    assert result.rows[1].zeros is None
    assert result.readable_weights == 0
    assert "zeros not counted" in "".join(result.notes)
    assert "of 0 weights are zero" in _text(result)


def test_custom_operator_and_further_subgraphs_are_named() -> None:
    result = inspect_tflite(
        _flat(_ends(2, 2), [Operator(0, "CUSTOM", "Odd", 1, (0,), (1,))], subgraphs=2)
    )
    assert result.rows[0].macs is None
    assert any("(Odd) is a custom operator" in note for note in result.notes)
    assert any("2 subgraphs" in note for note in result.notes)


def test_shared_constant_counts_once() -> None:
    weights = Tensor(2, "w", (2, 2), "INT8", bytes([1, 2, 0, 0]), (0.1,), (0,))
    middle = Tensor(3, "mid", (1, 2), "INT8", scales=(0.5,), zero_points=(0,))
    operators = [
        Operator(0, "FULLY_CONNECTED", "", 1, (0, 2), (3,)),
        Operator(1, "FULLY_CONNECTED", "", 1, (3, 2), (1,)),
    ]
    model = _flat([*_ends(2, 2), weights, middle], operators)
    result = inspect_tflite(model)
    assert result.parameters == model.parameters() == 4
    assert result.macs == 8
    assert any("Operator 1 shares its weights 'w'" in note for note in result.notes)


def test_peak_of_activations() -> None:
    sizes = [10, 7, 30, 20]  # input, output, and two in between
    tensors = [Tensor(i, str(i), (1, size), "INT8") for i, size in enumerate(sizes)]
    operators = [
        Operator(0, "RELU", "", 1, (0,), (2,)),
        Operator(1, "RELU", "", 1, (2,), (3,)),
        Operator(2, "ADD", "", 1, (3, 0), (1,)),  # the input lives until here
    ]
    result = inspect_tflite(_flat(tensors, operators))
    assert (result.peak_activation_bytes, result.peak_operator) == (60, 1)


def test_float16_weights_belong_to_their_reader() -> None:
    model = _small()
    result = inspect_tflite(read_tflite(_converted(model, float16=True)))
    assert result.parameters == model.count_params()
    assert {row.bits for row in result.rows if row.weights} == {16}
    assert result.weight_bytes == result.dense_bytes == 2 * model.count_params()
    assert result.macs == sum(_SMALL_MACS.values())


# --- reference models ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "macs", "zero_filters"),
    [
        ("ad01_int8.tflite", 264_192, 0),
        ("pretrainedResnet_quant.tflite", 12_501_632, 0),
        ("kws_ref_model.tflite", 2_656_768, 0),
        ("kws_ref_model_float32.tflite", 2_656_768, 0),
        # Its last pointwise layer alone has 234 dead outputs of 256.
        ("vww_96_int8.tflite", 7_489_664, 971),
    ],
)
def test_published_macs(shared: Path, name: str, macs: int, zero_filters: int) -> None:
    path = shared / "models" / "mlperf_tiny" / name
    result = inspect_file(path)
    assert result.macs == macs
    assert result.zero_filters == zero_filters
    assert result.parameters == read_tflite(path).parameters()
    assert result.file_bytes == path.stat().st_size
    assert result.compressed_bytes is not None and result.compressed_bytes < result.file_bytes
    assert max(row.zero_filters or 0 for row in result.rows) == (234 if zero_filters else 0)


def test_published_keras_model_and_its_flatbuffer(shared: Path) -> None:
    folder = shared / "models" / "mlperf_tiny"
    ours, flat = (
        inspect_file(folder / name)
        for name in ("pretrainedResnet.h5", "pretrainedResnet_quant.tflite")
    )
    assert ours.macs == flat.macs == 12_501_632
    assert ours.weights == flat.weights
    assert ours.file_bytes == (folder / "pretrainedResnet.h5").stat().st_size


# --- files, JSON and text -----------------------------------------------------------------------


def test_files(tmp_path: Path) -> None:
    model = _small()
    model.save(tmp_path / "m.keras")
    (tmp_path / "no_suffix").write_bytes(_converted(model))
    from_keras, from_flat = (inspect_file(tmp_path / n) for n in ("m.keras", "no_suffix"))
    assert (from_keras.format, from_flat.format) == ("keras", "tflite")
    assert from_keras.macs == from_flat.macs
    assert from_keras.file_bytes == (tmp_path / "m.keras").stat().st_size
    assert from_keras.name == "m.keras"


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="does not exist"):
        inspect_file(tmp_path / "nothing.keras")
    (tmp_path / "bad.tflite").write_bytes(b"not a model")
    with pytest.raises(ModelFileError, match="TFL3"):
        inspect_file(tmp_path / "bad.tflite")


def test_json_form() -> None:
    result = inspect_tflite(read_tflite(_converted(_small())), name="small.tflite")
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["schema"] == INSPECT_SCHEMA
    assert data["model"]["name"] == "small.tflite"
    for total in ("parameters", "weights", "zeros", "filters", "macs", "weight_bytes"):
        assert data["totals"][total] == sum(layer[total] for layer in data["layers"]) >= 0
    assert data["totals"]["macs"] == sum(_SMALL_MACS.values())
    assert {o["name"] for o in data["operators"]} >= {"CONV_2D", "FULLY_CONNECTED"}
    assert data["inputs"][0]["shape"] == [1, 8, 8, 3]
    assert math.isclose(data["layers"][0]["sparsity"], 0.0)


def test_text_in_a_pipe_shows_every_column_at_full_width() -> None:
    text = _text(inspect_keras(_small()), width=40)
    assert "\x1b" not in text
    head = next(line for line in text.splitlines() if "Parameters" in line)
    assert head.split() == ["#", "Name", "Type", "Output", "Parameters", "Zeros", "Bits", "MACs",
                            "Bytes"]  # fmt: skip
    assert "DepthwiseConv2D" in text and "…" not in text
    assert max(map(len, text.splitlines())) > 40


def test_text_on_a_narrow_terminal_fits_and_says_what_is_left_out() -> None:
    text = _text(inspect_keras(_small()), width=60, force_terminal=True, no_color=True)
    assert "…" not in text
    assert "Left out at this width: " in text and "Name" in text
    assert f"{sum(_SMALL_MACS.values()):,}" in text
