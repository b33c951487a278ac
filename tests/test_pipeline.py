"""The pipeline as Python functions: what export writes, measures, refuses and says."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import jsonschema
import keras
import numpy as np
import pytest
from keras import layers

import edgecompress as ec
from edgecompress.converters import agreement
from edgecompress.converters.verify import Parity
from edgecompress.core.errors import ArgumentError, EngineError, EngineNotRunError, ModelFileError
from edgecompress.core.fusion import analyse
from edgecompress.core.learnt_ranges import tied
from edgecompress.core.record import (
    CompressionRecord,
    attach_record,
    read_record,
    record_of,
    sidecar_path,
)
from edgecompress.core.results import CheckResult, Report
from edgecompress.engines.run import run_engine
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.pipeline import measuring
from edgecompress.pipeline import parity as agreeing
from edgecompress.targets.profile import load_target

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_process", "float_once")]

_SCHEMA = json.loads((Path(__file__).parents[1] / "docs" / "report.schema.json").read_text())


def _model(name: str = "tiny") -> keras.Model:
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            layers.Conv2D(4, 3, strides=2, activation="relu", name="stem"),
            layers.Conv2D(6, 1, activation="relu", name="mix"),
            layers.Flatten(name="flat"),
            layers.Dense(4, activation="softmax", name="head"),
        ],
        name=name,
    )
    kernel, bias = model.get_layer("head").get_weights()
    # Wide margins between the classes, so that rounding changes few. Biases of zero alone would be
    # left out of the file.
    model.get_layer("head").set_weights([kernel * 10, bias + 0.1])
    return model


@pytest.fixture(scope="session")
def data() -> tuple[np.ndarray, np.ndarray]:
    """Inputs, and labels of which the float model gets every fifth wrong."""
    x = np.random.default_rng(0).normal(size=(60, 8, 8, 1)).astype(np.float32)
    y = _model().predict(x, verbose=0).argmax(1)
    y[::5] = (y[::5] + 1) % 4
    return x, y


@pytest.fixture(scope="session")
def exported(
    tmp_path_factory: pytest.TempPathFactory, data: tuple[np.ndarray, np.ndarray]
) -> tuple[Report, Path]:
    """A report on three targets and the folder it was written to."""
    folder = tmp_path_factory.mktemp("exported") / "build"
    report = ec.export(
        _model(),
        ["nucleo-l4r5zi", load_target("pixel-4"), "host"],
        calibration=data[0],
        evaluate=data,
        min_accuracy=0.5,
        output=folder,
        history={"loss": [2.0, 1.0]},
        argv=["edgecompress", "test"],
    )
    return report, folder


def _check(report: Report, rule: str, target: int = 0) -> CheckResult:
    return next(c for c in report.targets[target].checks if c.rule == rule)


# --- what is written ----------------------------------------------------------------------------


def test_the_report_lists_what_lies_in_the_folder(exported: tuple[Report, Path]) -> None:
    report, folder = exported
    if report.artifacts is None:
        raise AssertionError("no artifacts")
    assert [(a.path, a.kind) for a in report.artifacts] == [
        ("tiny_float32.tflite", "float32"),
        ("tiny_int8.tflite", "int8"),
    ]
    for artifact in report.artifacts:
        content = (folder / artifact.path).read_bytes()
        assert artifact.bytes == len(content)
        assert artifact.sha256 == hashlib.sha256(content).hexdigest()
    assert report.model.sha256 == report.artifacts[1].sha256
    assert report.model.path == str(folder / "tiny_int8.tflite")
    # 4 filters of 3x3 on 3x3 places, 6 of 1x1x4, 54 inputs to 4 classes.
    assert report.model.macs == 4 * 9 * 9 + 6 * 4 * 9 + 54 * 4
    assert report.model.parameters == 4 * 9 + 4 + 6 * 4 + 6 + 54 * 4 + 4
    assert sorted(p.name for p in folder.iterdir()) == [
        "bundle.json", "golden", "golden.npz", "report.html", "report.json", "tiny_float32.tflite",
        "tiny_int8.tflite", "tiny_int8.tflite.edgecompress.json",
    ]  # fmt: skip


def test_report_json_is_the_returned_report(exported: tuple[Report, Path]) -> None:
    report, folder = exported
    stored = json.loads((folder / "report.json").read_text())
    assert stored == json.loads(report.to_json())
    jsonschema.validate(stored, _SCHEMA)
    assert stored["tool"]["argv"] == ["edgecompress", "test"]
    page = (folder / "report.html").read_text()
    assert "tiny_int8.tflite" in page
    assert "<script" not in page.lower()


def test_the_record_lies_beside_the_file(exported: tuple[Report, Path]) -> None:
    record, reason = read_record(exported[1] / "tiny_int8.tflite")
    if record is None:
        raise AssertionError(reason)
    assert record.steps[-1] == {
        "technique": "int8_conversion", "learnt_ranges": 0, "calibration_samples": 60,
    }  # fmt: skip


def test_the_files_hold_what_they_say(exported: tuple[Report, Path]) -> None:
    floats = read_tflite(exported[1] / "tiny_float32.tflite")
    quantized = read_tflite(exported[1] / "tiny_int8.tflite")
    assert [floats.tensors[i].type for i in floats.inputs] == ["FLOAT32"]
    assert [quantized.tensors[i].type for i in quantized.inputs] == ["INT8"]
    assert [quantized.tensors[i].type for i in quantized.outputs] == ["INT8"]


def test_two_exports_give_the_same_bytes(
    exported: tuple[Report, Path], data: tuple[np.ndarray, np.ndarray], tmp_path: Path,
    float_once: dict[str, Any],
) -> None:  # fmt: skip
    float_once.clear()
    # Files for microcontrollers alone have fewer operators.
    targets = ["cortex-m4", load_target("pixel-4")]
    ec.export(_model(), targets, calibration=data[0], output=tmp_path)
    names = [path.name for path in exported[1].iterdir() if path.name.startswith("tiny")]
    assert {"tiny_float32.tflite", "tiny_int8.tflite"} <= set(names)
    for name in names:
        assert (tmp_path / name).read_bytes() == (exported[1] / name).read_bytes(), name


def test_files_can_be_named(data: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    report = ec.export(_model(), ["cortex-m4"], calibration=data[0], output=tmp_path, name="kws-1")
    assert report.model.path == str(tmp_path / "kws-1_int8.tflite")
    assert (tmp_path / "kws-1_float32.tflite").is_file()
    for name in ("", ".kws", "a/b", "a\n", "../kws"):
        with pytest.raises(ArgumentError, match="`name` must be up to 100 letters"):
            ec.export(_model(), ["cortex-m4"], output=tmp_path, name=name)


def test_a_record_of_another_file_is_said(
    trained: keras.Model, data: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "m.keras"
    trained.save(path)
    sidecar = sidecar_path(path).read_text()
    # Edited elsewhere, where nobody knows of the sidecar.
    edited = keras.models.load_model(path)
    edited.get_layer("head").set_weights([w * 2 for w in edited.get_layer("head").get_weights()])
    edited.save(path)
    assert sidecar_path(path).read_text() == sidecar
    report = ec.export(path, ["cortex-m4"], calibration=data[0], output=tmp_path / "a")
    assert any("was written for another version of m.keras" in note for note in report.notes)
    assert any("not those with which training learnt" in note for note in report.notes)
    with pytest.raises(ArgumentError, match="not those with which training learnt.*--calibration"):
        ec.export(path, ["cortex-m4"], output=tmp_path / "b")


def test_what_cannot_be_written_leaves_the_earlier_export(
    data: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    ec.export(_model(), ["cortex-m4"], calibration=data[0], output=tmp_path)
    (tmp_path / "report.json").unlink()
    (tmp_path / "report.json").mkdir()
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    with pytest.raises(ArgumentError, match="It is a folder"):
        ec.export(_model(), ["cortex-m7"], calibration=data[0] * 2, output=tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before


def test_a_reused_folder_holds_the_last_export(
    data: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    ec.export(_model(), ["cortex-m4"], calibration=data[0], output=tmp_path)
    (tmp_path / "tiny_int8.tflite").chmod(0o444)
    report = ec.export(_model(), ["cortex-m4"], calibration=data[0] * 2, output=tmp_path)
    content = (tmp_path / "tiny_int8.tflite").read_bytes()
    assert report.model.sha256 == hashlib.sha256(content).hexdigest()
    assert read_record(tmp_path / "tiny_int8.tflite")[1] is None


# --- what is measured ---------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "engine"), [(0, "tflm"), (1, "litert")])
def test_accuracy_and_parity_are_the_engines(
    exported: tuple[Report, Path], data: tuple[np.ndarray, np.ndarray], target: int, engine: str
) -> None:
    report, folder = exported
    x, y = data
    file = folder / "tiny_int8.tflite"
    tensor = (flat := read_tflite(file)).tensors[flat.inputs[0]]
    codes = np.clip(np.rint(x / tensor.scales[0]) + tensor.zero_points[0], -128, 127)
    outputs = run_engine(engine, file.read_bytes(), [codes.astype(np.int8)]).outputs[0]
    predicted = outputs.reshape(60, 4).argmax(1)
    accuracy = _check(report, "accuracy", target)
    assert accuracy.measured == np.mean(predicted == y)
    assert accuracy.measured < 0.9  # every fifth label is wrong
    assert (accuracy.verdict, accuracy.limit) == ("pass", 0.5)
    assert accuracy.detail["engine"] == engine
    parity = _check(report, "parity", target)
    reference = _model().predict(x, verbose=0).argmax(1)
    assert parity.measured == np.mean(predicted == reference)
    assert parity.detail["samples"] == 60
    assert parity.detail["reference"] == "Keras model"
    assert set(parity.detail["engines"]) == {"litert", "tflm"}
    assert {"stem", "mix"} <= {
        part for entry in parity.detail["layers"] for part in entry["name"].split("/")
    }


def test_the_host_is_timed_and_the_phone_is_not(exported: tuple[Report, Path]) -> None:
    report, _ = exported
    assert [t.name for t in report.targets] == ["nucleo-l4r5zi", "pixel-4", "host"]
    host = _check(report, "latency", 2)
    if host.measured is None or host.low is None or host.high is None:
        raise AssertionError("host not timed")
    assert 0 < host.low <= host.measured <= host.high
    assert host.how_known == "measured_host"
    assert _check(report, "latency", 0).how_known == "predicted"
    phone = _check(report, "latency", 1)
    # Nobody has set a limit, and nothing was run on it.
    assert (phone.measured, phone.verdict) == (None, "not_applicable")
    assert "Only a run on the" in str(phone.reason)


def test_notes_say_where_the_ranges_come_from(exported: tuple[Report, Path]) -> None:
    assert any("60 calibration samples" in note for note in exported[0].notes)


def test_accuracy_below_its_floor_ends_with_4(
    data: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    x, y = data
    np.savez(tmp_path / "x.npz", x=x, y=y)
    # Labels beside the calibration data count as evaluation data.
    report = ec.export(
        _model(), ["cortex-m4"], calibration=tmp_path / "x.npz", min_accuracy=0.95, output=tmp_path
    )
    assert report.exit_code == 4
    reason = _check(report, "accuracy").reason
    assert reason == ("Accuracy is 80.00 % in tflm, below 95.00 %. The Keras model has 80.00 %.")


def test_labels_that_are_no_classes_are_named(
    data: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    values = np.linspace(0, 1, 60)
    report = ec.export(_model(), ["cortex-m4"], calibration=(data[0], values), output=tmp_path)
    assert _check(report, "accuracy").verdict == "not_applicable"
    reason = _check(report, "accuracy").reason
    assert reason is not None and "labels (y) of the calibration data are not used" in reason
    with pytest.raises(ArgumentError, match="`--calibration` must hold class numbers"):
        ec.export(
            _model(),
            ["cortex-m4"],
            calibration=(data[0], values),
            min_accuracy=0.5,
            output=tmp_path,
        )
    with pytest.raises(ArgumentError, match="`--evaluate` must hold class numbers"):
        ec.export(_model(), ["cortex-m4"], evaluate=(data[0], values), output=tmp_path)


def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    a, b = keras.Input((3,), name="a"), keras.Input((2, 5), name="b")
    flat = layers.Flatten()(b)
    both = layers.Concatenate()([a, flat])
    head = layers.Dense(3, activation="softmax", name="head")(both)
    model = keras.Model([a, b], [head, layers.Dense(7, name="wide")(flat)], name="two")
    random = np.random.default_rng(3)
    x = [random.normal(size=(40, *i.shape[1:])).astype(np.float32) for i in model.inputs]
    y = model.predict(x, verbose=0)[0].argmax(1)
    report = ec.export(
        model, ["cortex-m4"], calibration=x, evaluate=(*x, y), min_agreement=0.8, output=tmp_path
    )
    assert report.exit_code == 0
    assert (_check(report, "accuracy").measured or 0) > 0.8
    assert (_check(report, "parity").measured or 0) > 0.8
    assert not any("outputs were compared" in note for note in report.notes)


# --- learnt ranges ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(data: tuple[np.ndarray, np.ndarray]) -> keras.Model:
    model = _model("trained")
    model.compile(optimizer="sgd", loss="sparse_categorical_crossentropy")
    model.fit(*data, epochs=1, batch_size=20, verbose=0, callbacks=[ec.QuantizationAwareTraining()])
    return ec.finalize(model)


def test_a_model_with_learnt_ranges_needs_no_calibration(
    trained: keras.Model, data: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    trained.save(tmp_path / "trained.keras")
    assert sidecar_path(tmp_path / "trained.keras").exists()
    report = ec.export(tmp_path / "trained.keras", ["cortex-m4"], output=tmp_path / "a")
    assert report.exit_code == 0
    parity = _check(report, "parity")
    assert parity.verdict == "not_measured"
    assert parity.reason == "No calibration or evaluation data was given."
    # Nobody knows whether the file does what the model does: no pass, and undecided where asked.
    assert (report.verdict, report.undecided) == ("not_measured", ())
    asked = ec.export(
        tmp_path / "trained.keras", ["cortex-m4"], min_agreement=0.8, output=tmp_path / "b"
    )
    assert (asked.exit_code, asked.undecided_limits) == (6, ("parity on cortex-m4",))
    record, _ = read_record(tmp_path / "a" / "trained_int8.tflite")
    if record is None:
        raise AssertionError("no record")
    assert record.steps[-1]["learnt_ranges"] == len(record.ranges) == len(analyse(trained).taps)
    assert record.steps[-1]["calibration_samples"] == 0
    assert record.steps[0]["technique"] == "quantization_aware_training"

    measured = ec.export(trained, ["cortex-m4"], evaluate=data, output=tmp_path / "b")
    parity = _check(measured, "parity")
    assert parity.verdict == "pass"
    assert parity.detail["reference"] == "Keras model"
    assert set(parity.detail["rounding"]) == {"simulated", "file"}
    assert min(parity.detail["rounding"].values()) > 0.9
    # Evaluation data measure; they do not change the file.
    name = "trained_int8.tflite"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_wrecked_range_fails_parity_and_names_the_layers(
    data: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    model = _model()
    attach_record(model, tied(CompressionRecord(ranges={"stem": (0.0, 0.01)}), model))
    report = ec.export(model, ["cortex-m4"], calibration=data[0], output=tmp_path)
    parity = _check(report, "parity")
    assert report.exit_code == 4
    assert (parity.verdict, parity.limit) == ("fail", agreement.MIN_AGREEMENT)
    assert parity.measured is not None and parity.measured < agreement.MIN_AGREEMENT
    assert parity.reason is not None and "Lowest signal-to-noise" in parity.reason
    worst = [entry["name"] for entry in parity.detail["layers"][:3]]
    assert all(name in parity.reason for name in worst)
    assert "The largest error arises in stem." in parity.reason
    # A floor of the user's own goes before the default one.
    low = ec.export(
        model, ["cortex-m4"], calibration=data[0], min_agreement=0, min_r2=0, output=tmp_path
    )
    assert low.exit_code == 0
    assert _check(low, "parity").measured == parity.measured


def test_learnt_ranges_that_clip_fail_and_the_share_of_rounding_is_said(
    trained: keras.Model, data: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    record = record_of(trained)
    model = keras.models.clone_model(trained)
    model.set_weights(trained.get_weights())
    attach_record(model, dataclasses.replace(record, ranges={**record.ranges, "stem": (0.0, 0.01)}))
    report = ec.export(model, ["cortex-m4"], calibration=data[0], output=tmp_path)
    parity = _check(report, "parity")
    assert (report.exit_code, parity.verdict) == (4, "fail")
    # The file does what the simulation does; what it lost, the ranges have cost.
    assert parity.detail["rounding"]["file"] > 0.9 > parity.detail["rounding"]["simulated"]
    assert parity.reason is not None and "Rounding alone" in parity.reason
    attach_record(model, record)
    assert ec.export(model, ["cortex-m4"], calibration=data[0], output=tmp_path).exit_code == 0


# --- engines that refuse ------------------------------------------------------------------------


def _fail(*args: Any, **kwargs: Any) -> Any:
    raise EngineError("the engine stopped")


def test_an_engines_refusal_stands_above_the_table(
    data: tuple[np.ndarray, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreeing, "verify_in", _fail)
    monkeypatch.setattr(measuring, "load_failure", lambda engine, model: f"{engine} says no")
    report = ec.export(_model(), ["cortex-m4"], calibration=data[0], evaluate=data, output=tmp_path)
    assert report.exit_code == 5
    assert _check(report, "operators").reason == "tflm says no"
    for rule in ("parity", "accuracy"):
        assert _check(report, rule).verdict == "not_measured"
        assert _check(report, rule).reason == "tflm says no"
    jsonschema.validate(json.loads((tmp_path / "report.json").read_text()), _SCHEMA)


def test_an_engine_that_had_no_time_left_leaves_the_operators_open(
    data: tuple[np.ndarray, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_time(*args: Any, **kwargs: Any) -> Any:
        raise EngineNotRunError("tflm was not run")

    monkeypatch.setattr(agreeing, "verify_in", no_time)
    monkeypatch.setattr(measuring, "load_failure", no_time)
    report = ec.export(_model(), ["cortex-m4"], calibration=data[0], evaluate=data, output=tmp_path)
    assert (_check(report, "operators").verdict, report.exit_code) == ("uncertain", 6)
    for rule in ("operators", "parity", "accuracy"):
        assert _check(report, rule).reason == "tflm was not run"


def test_an_engine_that_fails_on_a_sound_file_is_an_error(
    data: tuple[np.ndarray, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreeing, "verify_in", _fail)
    with pytest.raises(EngineError, match="the engine stopped"):
        ec.export(_model(), ["cortex-m4"], calibration=data[0], output=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_without_data_the_engines_still_load_the_file(
    trained: keras.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "load_failure", lambda engine, model: f"{engine} says no")
    report = ec.export(trained, ["cortex-m4"], output=tmp_path)
    assert report.exit_code == 5


def test_an_engine_that_is_not_installed_measures_nothing(
    exported: tuple[Report, Path], data: tuple[np.ndarray, np.ndarray],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    for module in (agreeing, measuring):
        monkeypatch.setattr(
            module, "engine_available", lambda name: None if name == "litert" else f"no {name} here"
        )
    file = exported[1] / "tiny_int8.tflite"
    checked = ec.check(file, ["cortex-m4"], evaluate=data, min_accuracy=0.1)
    accuracy = _check(checked, "accuracy")
    assert (accuracy.verdict, accuracy.limit) == ("not_measured", 0.1)
    assert accuracy.reason == "no tflm here"
    report = ec.export(_model(), ["cortex-m4"], calibration=data[0], output=tmp_path)
    assert _check(report, "parity").reason == "no tflm here"
    assert "Not tried in tflite-runtime: no tflite-runtime here" in report.notes


# --- check --------------------------------------------------------------------------------------


def test_check_finds_what_export_found(
    exported: tuple[Report, Path], data: tuple[np.ndarray, np.ndarray]
) -> None:
    report, folder = exported
    file = folder / "tiny_int8.tflite"
    checked = ec.check(file, ["nucleo-l4r5zi"], evaluate=data, min_accuracy=0.5)
    assert checked.model == report.model
    assert checked.artifacts is None
    for rule in ("file_size", "flash", "arena", "latency", "operators", "accuracy"):
        mine, theirs = _check(checked, rule), _check(report, rule)
        assert (mine.verdict, mine.measured, mine.limit) == (
            theirs.verdict, theirs.measured, theirs.limit,
        )  # fmt: skip
    assert ec.check(file.read_bytes(), ["nucleo-l4r5zi"]).model.sha256 == report.model.sha256


@pytest.mark.parametrize("budget", ["max_ram", "max_flash", "max_file_size"])
def test_budgets_at_their_edge(exported: tuple[Report, Path], budget: str) -> None:
    file = exported[1] / "tiny_int8.tflite"
    rule = {"max_ram": "arena", "max_flash": "flash", "max_file_size": "file_size"}[budget]
    found = _check(ec.check(file, ["cortex-m4"]), rule)
    # The smallest arena that the interpreter starts in may be larger than what it then uses.
    low = max(found.low or 0, found.detail.get("smallest") or 0)
    high = max(found.high or 0, found.detail.get("smallest") or 0)

    def code(limit: float) -> int:
        return ec.check(file, ["cortex-m4"], **{budget: int(limit)}).exit_code  # type: ignore[arg-type]

    assert code(high) == 0
    assert code(low - 1) == 3


@pytest.mark.parametrize("targets", [[], "cortex-m4", Path("a.toml")])
def test_targets_are_a_list(exported: tuple[Report, Path], targets: Any) -> None:
    with pytest.raises(ArgumentError, match="`targets` must be a list"):
        ec.check(exported[1] / "tiny_int8.tflite", targets)


def test_two_targets_of_one_name(exported: tuple[Report, Path]) -> None:
    file = exported[1] / "tiny_int8.tflite"
    core = load_target("cortex-m4")
    assert len(ec.check(file, [core, "cortex-m4"]).targets) == 1
    with pytest.raises(ArgumentError, match="name different targets differently"):
        ec.check(file, ["cortex-m4", dataclasses.replace(core, kernels="reference")])


def test_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="does not exist"):
        ec.check(tmp_path / "no.tflite", ["cortex-m4"])
    with pytest.raises(ModelFileError, match="does not exist"):
        ec.export(tmp_path / "no.keras", ["cortex-m4"], output=tmp_path)
    with pytest.raises(ArgumentError, match="Use `edgecompress export`"):
        ec.check(tmp_path / "a.keras", ["cortex-m4"])
    assert list(tmp_path.iterdir()) == []


# --- reference models ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reference", "shape", "high", "budget"),
    [
        # The ResNet takes pixels from 0 to 255.
        ("pretrainedResnet", "pretrainedResnet_quant.tflite", (32, 32, 3), 255, "40KiB"),
        ("ad01", "ad01_int8.tflite", (640,), 2, "2KiB"),
    ],
)
def test_reference_models(
    shared: Path, tmp_path: Path, name: str, reference: str, shape: tuple[int, ...],
    high: float, budget: str,
) -> None:  # fmt: skip
    folder = shared / "models" / "mlperf_tiny"
    x = np.random.default_rng(0).uniform(0, high, (24, *shape)).astype(np.float32)
    report = ec.export(
        folder / f"{name}.h5", ["nucleo-l4r5zi"], calibration=x, min_agreement=0.8, output=tmp_path,
        # On noise an autoencoder hardly varies, so R2 says nothing.
        min_r2=0,
    )  # fmt: skip
    assert report.exit_code == 0, _check(report, "parity")
    file = tmp_path / f"{name}_int8.tflite"
    assert file.stat().st_size <= (folder / reference).stat().st_size
    assert report.model.macs == read_tflite(folder / reference).macs()

    small = ec.check(file, ["nucleo-l4r5zi"], max_ram=budget)
    assert small.exit_code == 3
    arena = _check(small, "arena")
    if arena.reason is None:
        raise AssertionError("no reason")
    peak = arena.detail["peak_operator"]
    operator = read_tflite(file).operators[peak].name
    assert f"peaks at operator {peak} {operator}" in arena.reason
    largest = arena.detail["peak_tensors"][0]
    assert largest["name"] in arena.reason


@pytest.mark.parametrize(
    ("agree", "samples", "asked", "verdict"),
    [
        (90, 100, None, "pass"),
        (8, 10, None, "uncertain"),  # the 95 % interval of 8 in 10 reaches up to 94 %
        (8, 10, 0.9, "fail"),  # a floor that was asked for is compared as it is
        (80, 100, None, "fail"),
    ],
)
def test_only_enough_samples_fail_the_default_floor(
    agree: int, samples: int, asked: float | None, verdict: str
) -> None:
    output = agreement.OutputAgreement(
        "out", "classes", samples, agree / samples, 30.0, 0.99, 0.99, 0, 4, 0.5
    )
    parity = Parity(
        "litert", "2.3.0", "XNNPACK", samples, "classes", agree / samples, 1.0, 1.0, 0.1, 1.0,
        outputs=(output,),
    )  # fmt: skip
    result = agreeing.parity_check(load_target("pixel-4"), {"litert": parity}, {}, asked)
    assert result.verdict == verdict
    assert (result.reason is None) == (verdict == "pass")


def test_upper_end_of_the_interval_is_wilsons() -> None:
    # scipy.stats.binomtest(k, 10).proportion_ci(method='wilson') for k = 0 and 8.
    assert agreement.likely_at_most(0.0, 10) == pytest.approx(0.2775, abs=1e-4)
    assert agreement.likely_at_most(0.8, 10) == pytest.approx(0.9433, abs=1e-4)


def test_c_sources_carry_the_shipped_file_and_the_largest_arena(tmp_path: Path) -> None:
    model, data = _model(), np.random.default_rng(0).normal(size=(8, 8, 8, 1)).astype("float32")
    report = ec.export(
        model,
        ["cortex-m4", "cortex-m55", "pixel-4"],
        calibration=data,
        c_sources=True,
        output=tmp_path,
    )
    listed = {a.path: a for a in report.artifacts or () if a.kind == "c_source"}
    assert {f"c/{p.name}" for p in (tmp_path / "c").iterdir()} == set(listed)
    for path, artifact in listed.items():
        assert hashlib.sha256((tmp_path / path).read_bytes()).hexdigest() == artifact.sha256
    shipped = (tmp_path / "tiny_int8.tflite").read_bytes()
    text = (tmp_path / "c" / "tiny_data.cc").read_text()
    array = text[text.index("{") + 1 : text.index("}")]
    assert bytes(
        int(value, 16) for value in array.replace("\n", "").split(",") if value.strip()
    ) == (shipped)
    needed = max(
        max(c.measured or 0, c.detail["smallest"])
        for t in report.targets
        for c in t.checks
        if c.rule == "arena" and c.measured
    )
    assert str(-(-int(needed) // 16) * 16) in (tmp_path / "c" / "tiny_config.h").read_text()


def test_c_sources_need_a_microcontroller(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="--c-sources.*microcontroller"):
        ec.export(_model(), ["pixel-4"], c_sources=True, output=tmp_path)
    assert not list(tmp_path.iterdir())


def _pruned_file(folder: Path) -> Path:
    """Returns an int8 file whose weights are mostly zero, so that a code pays."""
    model, x = _pruned_model()
    ec.export(model, ["cortex-m4"], calibration=x, output=folder)
    return folder / "sparse_int8.tflite"


def test_compressed_export_is_smaller_and_computes_the_same(tmp_path: Path) -> None:
    source = _pruned_file(tmp_path / "int8")
    report = ec.export(
        source,
        ["nucleo-l4r5zi"],
        file_format="compressed",
        c_sources=True,
        output=tmp_path / "compressed",
    )
    path = tmp_path / "compressed" / "sparse_compressed.tflite"
    assert report.exit_code == 0
    assert report.model.file_bytes == len(path.read_bytes()) < len(source.read_bytes())
    assert report.model.parameters == read_tflite(source).parameters()
    assert "TFLM_DECODE" in report.model.operators
    x = np.random.default_rng(5).integers(-128, 128, (20, 64)).astype(np.int8)
    before, after = (run_engine("tflm", p.read_bytes(), [x]).outputs[0] for p in (source, path))
    np.testing.assert_array_equal(before, after)
    assert "AddDecode" in (tmp_path / "compressed" / "c" / "sparse_resolver.h").read_text()
    assert any("tensor arena" in note and "predicted latency" in note for note in report.notes)


def test_compressed_export_keeps_tensors_raw_where_ram_is_short(tmp_path: Path) -> None:
    source = _pruned_file(tmp_path / "int8")
    needed = ec.check(source, ["cortex-m4"]).targets[0].checks
    arena = next(c for c in needed if c.rule == "arena")
    tight = int(max(arena.measured or 0, arena.detail["smallest"])) + 256
    report = ec.export(
        source, ["cortex-m4"], file_format="compressed", max_ram=tight, output=tmp_path / "c"
    )
    assert report.exit_code == 0
    assert "TFLM_DECODE" not in report.model.operators
    assert any("raw" in note.lower() for note in report.notes)


@pytest.mark.parametrize("budget", [{"max_ram": 512}, {"max_latency": "1us"}])
def test_a_budget_that_even_the_plain_file_exceeds_fails_the_check(
    budget: dict[str, Any], tmp_path: Path
) -> None:
    source = _pruned_file(tmp_path / "int8")
    report = ec.export(
        source, ["nucleo-l4r5zi"], file_format="compressed", output=tmp_path / "c", **budget
    )
    assert report.exit_code == 3


def _pruned_model() -> tuple[keras.Model, np.ndarray]:
    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(0)
    model = keras.Sequential(
        [keras.Input((64,)), layers.Dense(64, activation="relu"), layers.Dense(4)], name="sparse"
    )
    model.layers[0].kernel.assign(rng.choice([-0.5, 0.0, 0.0, 0.0, 0.5], size=(64, 64)))
    return model, rng.normal(size=(16, 64)).astype("float32")


def test_a_keras_model_is_compressed_in_one_go(tmp_path: Path) -> None:
    model, x = _pruned_model()
    y = model.predict(x, verbose=0).argmax(1)
    report = ec.export(
        model,
        ["nucleo-l4r5zi"],
        file_format="compressed",
        calibration=x,
        evaluate=(x, y),
        output=tmp_path / "a",
    )
    kinds = [artifact.kind for artifact in report.artifacts or ()]
    assert kinds == ["float32", "int8", "compressed"]
    # The same bytes as in two steps.
    ec.export(model, ["cortex-m4"], calibration=x, output=tmp_path / "b")
    ec.export(
        tmp_path / "b" / "sparse_int8.tflite",
        ["nucleo-l4r5zi"],
        file_format="compressed",
        output=tmp_path / "b",
    )
    name = "sparse_compressed.tflite"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    parity, accuracy = _check(report, "parity"), _check(report, "accuracy")
    assert parity.detail["reference"] == "Keras model"
    # LiteRT cannot run the coded file: only the int8 file's layers are compared there.
    assert set(parity.detail["engines"]) == {"tflm"}
    assert parity.detail["layers"]
    assert accuracy.measured is not None and accuracy.measured >= 0.9
    assert not any("tflite-runtime" in note for note in report.notes)


@pytest.mark.parametrize("coding", ["lut", "prune", "huffman"])
def test_codes_are_switched_by_name(coding: str, tmp_path: Path) -> None:
    model, x = _pruned_model()
    report = ec.export(
        model,
        ["cortex-m4"],
        file_format="compressed",
        codings=[coding],
        calibration=x,
        output=tmp_path,
    )
    data = (tmp_path / "sparse_compressed.tflite").read_bytes()
    flat = read_tflite(data)
    # The first four bytes of a decoder's second input: type and version of the code.
    kinds = {
        flat.tensors[o.inputs[1]].raw[0] for o in flat.operators if o.custom_name == "TFLM_DECODE"
    }  # fmt: skip
    assert kinds == {{"lut": 0, "huffman": 1, "prune": 2}[coding]}
    assert report.exit_code == 0


def test_memory_outside_the_arena_holds_the_decoded_weights(tmp_path: Path) -> None:
    source = _pruned_file(tmp_path / "int8")
    reports = [
        ec.export(
            source,
            ["cortex-m4"],
            file_format="compressed",
            decompression_memory=memory,
            c_sources=True,
            output=tmp_path / str(memory),
        )
        for memory in (None, "4KiB")
    ]
    inside, outside = (_check(report, "arena").measured or 0 for report in reports)
    # The kernel of 64 x 64 weights is the largest that is decoded.
    assert inside - outside > 64 * 64 / 2
    assert any("4.0 KiB of the 4.0 KiB outside" in note for note in reports[1].notes)
    file = tmp_path / "4KiB" / "sparse_compressed.tflite"
    checked = ec.check(file, ["cortex-m4", "host"], decompression_memory=4096)
    assert _check(checked, "arena").measured == outside
    assert "SetDecompressionMemory" in (tmp_path / "4KiB" / "c" / "main.cc").read_text()
    assert "SetDecompressionMemory" not in (tmp_path / "None" / "c" / "main.cc").read_text()


@pytest.mark.parametrize(
    ("name", "target", "options", "message"),
    [
        ("model.tflite", "pixel-8", {"file_format": "compressed"}, "microcontroller"),
        ("model.tflite", "cortex-m4", {}, "be a Keras model for --format int8.*compressed"),
        ("model.keras", "cortex-m4", {"codings": ["lut"]}, "--coding.*--format compressed"),
        (
            "model.keras",
            "cortex-m4",
            {"decompression_memory": "1KiB"},
            "--decompression-memory.*--format compressed",
        ),
        (
            "model.tflite",
            "cortex-m4",
            {"file_format": "compressed", "decompression_memory": 0},
            "--decompression-memory.*positive size",
        ),
        (
            "model.tflite",
            "cortex-m4",
            {"file_format": "compressed", "calibration": np.zeros((1, 2))},
            "--calibration.*left out",
        ),
    ],
)
def test_formats_refuse_what_cannot_be(
    name: str, target: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ArgumentError, match=message):
        ec.export(tmp_path / name, [target], output=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
