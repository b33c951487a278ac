"""The formats of export: what each writes, proves and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import keras
import numpy as np
import pytest
from keras import layers

import edgecompress as ec
from edgecompress.converters.formats import FORMATS, FormatRequest, register
from edgecompress.core.errors import ArgumentError, ConversionError, UnknownNameError
from edgecompress.core.results import CheckResult, Report
from edgecompress.engines.run import engine_available, run_engine
from edgecompress.flatbuffers.reading import read_tflite

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_process")]

_SCHEMA = json.loads((Path(__file__).parents[1] / "docs" / "report.schema.json").read_text())
_FORMS = ("int8", "int4", "int4-dense", "int2", "smallest")


def _check(report: Report, rule: str, target: int = 0) -> CheckResult:
    return next(c for c in report.targets[target].checks if c.rule == rule)


def _kinds(report: Report) -> list[str]:
    return [artifact.kind for artifact in report.artifacts or ()]


@pytest.fixture(scope="module")
def binary() -> tuple[keras.Model, np.ndarray]:
    """A model whose kernels hold one magnitude, and inputs for it."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 8)),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(8),
        ],
        name="signs",
    )
    for layer in (model.layers[0], model.layers[2]):
        kernel, bias = layer.get_weights()
        layer.set_weights([np.where(kernel >= 0, 0.05, -0.05), rng.normal(0, 0.1, size=bias.shape)])
    return model, rng.normal(size=(40, 8, 8, 8)).astype("float32")


# --- binary-weights -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def binary_weights(
    binary: tuple[keras.Model, np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Report, Path]:
    model, x = binary
    folder = tmp_path_factory.mktemp("bits")
    report = ec.export(
        model,
        ["host"],
        file_format="binary-weights",
        smallest=True,
        calibration=x,
        evaluate=(x, model.predict(x, verbose=0).argmax(1)),
        output=folder,
    )
    return report, folder


def test_every_form_of_binary_weights_is_written_and_timed(
    binary_weights: tuple[Report, Path],
) -> None:
    report, folder = binary_weights
    # Codes of -127 and 127 are int8 as it is: no second file of that.
    assert _kinds(report) == ["float32", "int8", *(f"binary-weights-{name}" for name in _FORMS[1:])]
    assert any("No file of its own for int8" in note for note in report.notes)
    for artifact in report.artifacts or ():
        data = (folder / artifact.path).read_bytes()
        assert len(data) == artifact.bytes
        assert artifact.compressed_bytes is not None
        assert (artifact.host_latency_us is None) == (artifact.kind in ("float32", "int8"))
    jsonschema.validate(json.loads((folder / "report.json").read_text()), _SCHEMA)
    assert report.exit_code == 0


def test_the_asked_form_is_checked_against_keras(
    binary_weights: tuple[Report, Path], binary: tuple[keras.Model, np.ndarray]
) -> None:
    report, _ = binary_weights
    assert report.model.path.endswith("signs_binary-weights-smallest.tflite")
    assert report.model.file_bytes == min(a.bytes for a in report.artifacts or ())
    assert report.model.parameters == binary[0].count_params()
    parity = _check(report, "parity")
    assert (parity.verdict, parity.detail["reference"]) == ("pass", "Keras model")
    assert parity.detail["layers"]  # Those of the int8 file.
    assert _check(report, "accuracy").measured is not None
    assert any("on this computer" in note and note.startswith("int2:") for note in report.notes)


def test_binary_weights_of_a_tflite_file_equal_those_of_its_model(
    binary_weights: tuple[Report, Path], tmp_path: Path
) -> None:
    _, folder = binary_weights
    report = ec.export(
        folder / "signs_int8.tflite",
        ["pixel-8"],
        file_format="binary-weights",
        weight_format="int4",
        output=tmp_path,
    )
    name = "signs_binary-weights-int4.tflite"
    assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert report.model.path.endswith(name)
    assert _check(report, "parity").detail["max_error_steps"] <= 2


# --- sparse -------------------------------------------------------------------------------------


def _dense(zero_blocks: float) -> keras.Model:
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    model = keras.Sequential(
        [keras.Input((256,)), layers.Dense(256, activation="relu"), layers.Dense(4)], name="blocks"
    )
    kernel = rng.normal(size=(64, 4, 256)) * (rng.random((64, 1, 256)) >= zero_blocks)
    model.layers[0].kernel.assign(kernel.reshape(256, 256))
    return model


def test_sparse_file_is_smaller_and_computes_the_same(tmp_path: Path) -> None:
    model = _dense(0.95)
    x = np.random.default_rng(1).normal(size=(20, 256)).astype("float32")
    report = ec.export(model, ["pixel-8"], file_format="sparse", calibration=x, output=tmp_path)
    assert _kinds(report) == ["float32", "sparse"]
    data = (tmp_path / "blocks_sparse.tflite").read_bytes()
    assert len(data) < 0.5 * len((tmp_path / "blocks_float32.tflite").read_bytes())
    outputs = run_engine("litert", data, [x]).outputs[0]
    np.testing.assert_allclose(outputs, model.predict(x, verbose=0), atol=1e-4)
    assert all(a.host_latency_us for a in report.artifacts or ())
    assert _check(report, "parity").measured == 1.0


def test_weights_without_zero_blocks_are_no_sparse_file(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="blocks"):
        ec.export(_dense(0.5), ["pixel-8"], file_format="sparse", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- xnor ---------------------------------------------------------------------------------------


def _signs() -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(32, 3, padding="same", use_bias=False)(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.Add()([x, layers.BatchNormalization()(ec.BinaryConv2D(32, 3, name="bits")(x))])
    x = layers.Dense(4)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, x, name="bnn")


@pytest.mark.skipif(engine_available("lce") is not None, reason=str(engine_available("lce") or ""))
def test_xnor_export_runs_in_its_own_engine(tmp_path: Path) -> None:
    model = _signs()
    x = np.random.default_rng(1).normal(size=(60, 8, 8, 3)).astype("float32")
    y = model.predict(x, verbose=0).argmax(1)
    report = ec.export(
        model,
        ["pixel-8"],
        file_format="xnor",
        calibration=x,
        evaluate=(x, y),
        min_accuracy=0.9,
        output=tmp_path,
    )
    assert _kinds(report) == ["float32", "xnor"]
    assert "LceBconv2d" in report.model.operators
    assert report.model.binary_macs == 8 * 8 * 32 * 32 * 9
    assert _check(report, "operators").verdict == "pass"
    assert _check(report, "accuracy").detail["engine"] == "lce"
    assert _check(report, "parity").detail["engine"] == "lce"
    assert any("unresolved custom op" in note for note in report.notes)
    # The same file on a stock runtime.
    stock = ec.check(tmp_path / "bnn_xnor.tflite", ["pixel-8"])
    assert stock.exit_code == 5
    assert "Larq Compute Engine" in str(_check(stock, "operators").reason)


# --- What is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("cortex-m4", {"file_format": "binary-weights"}, "--target.*phone or this computer"),
        ("cortex-m4", {"file_format": "sparse"}, "--target.*phone or this computer"),
        ("cortex-m4", {"file_format": "xnor"}, "--target.*phone or this computer"),
        ("host", {"smallest": True}, "--smallest.*--format binary-weights"),
        ("host", {"weight_format": "int2"}, "--weight-format.*--format binary-weights"),
        (
            "host",
            {"file_format": "binary-weights", "weight_format": "int4", "smallest": True},
            "--smallest.*left out",
        ),
    ],
)
def test_what_does_not_go_together(
    target: str,
    options: dict[str, Any],
    message: str,
    binary: tuple[keras.Model, np.ndarray],
    tmp_path: Path,
) -> None:
    with pytest.raises(ArgumentError, match=message):
        ec.export(binary[0], [target], output=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_unknown_forms_are_named(binary: tuple[keras.Model, np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="int4-dense"):
        ec.export(
            binary[0],
            ["host"],
            file_format="binary-weights",
            weight_format="int4-dens",
            output=tmp_path / "out",
        )


def test_formats_are_registered_once() -> None:
    assert list(FORMATS) == ["binary-weights", "compressed", "int8", "sparse", "xnor"]
    with pytest.raises(ValueError, match="registered twice"):

        @register("int8")
        def _again(request: FormatRequest) -> Any: ...


def test_files_of_other_formats_keep_their_bytes(
    binary_weights: tuple[Report, Path], binary: tuple[keras.Model, np.ndarray], tmp_path: Path
) -> None:
    model, x = binary
    ec.export(model, ["host"], calibration=x, output=tmp_path)
    name = "signs_int8.tflite"
    assert (tmp_path / name).read_bytes() == (binary_weights[1] / name).read_bytes()
    assert read_tflite(tmp_path / name).parameters() == model.count_params()
