"""bundle.json: what an export tells the demo app, and how damaged bundles are refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import edgecompress as ec
from edgecompress.core.bundle import is_inside, read_bundle
from edgecompress.core.errors import ArgumentError, ModelFileError
from edgecompress.engines.run import run_engine
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.pipeline.bundle import bundle_profile, read_labels, runtime_of
from edgecompress.targets.profile import load_target

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_process")]

_NAMES = ("one", "two", "three")


def _model() -> keras.Model:
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.Conv2D(3, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(3, activation="softmax"),
        ],
        name="tiny",
    )


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(20, 6, 6, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, x: np.ndarray) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "labels.txt").write_text("one\ntwo\nthree\n")
    ec.export(
        _model(),
        ["cortex-m4", "pixel-8"],
        calibration=x,
        output=folder / "build",
        max_latency="2ms",
        max_file_size="64KiB",
        max_ram="64KiB",
        labels=folder / "labels.txt",
    )
    return folder / "build"


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    for path in exported.rglob("*"):
        if path.is_file():
            place = tmp_path / path.relative_to(exported)
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(path.read_bytes())
    return tmp_path


def _content(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "bundle.json").read_text())
    return found


def test_the_bundle_is_what_its_schema_says(
    exported: Path, check_whole: Callable[[Any, str], None]
) -> None:
    content = _content(exported)
    check_whole(content, "bundle")
    assert content["name"] == "tiny"
    assert content["target"] == "pixel-8"
    assert content["labels"] == list(_NAMES)
    # The limit of RAM is the microcontroller's arena.
    assert content["budgets"] == {
        "max_latency_us": 2000.0, "max_file_size": 65536, "max_ram": None, "min_accuracy": None,
    }  # fmt: skip
    assert content["record"]["steps"][-1]["technique"] == "int8_conversion"
    # The file that ships stands first.
    assert [m["kind"] for m in content["models"]] == ["int8", "float32"]
    for model in content["models"]:
        data = (exported / model["file"]).read_bytes()
        assert model["sha256"] == hashlib.sha256(data).hexdigest()
        assert model["bytes"] == len(data)
        assert model["runtime"] == "litert"
        flat = read_tflite(data)
        for side, indices in (("inputs", flat.inputs), ("outputs", flat.outputs)):
            tensor = flat.tensors[indices[0]]
            assert model[side][0]["shape"] == list(tensor.shape)
            assert model[side][0]["dtype"] == tensor.type.lower()
            assert model[side][0]["scale"] == (tensor.scales[0] if tensor.scales else None)
            assert model[side][0]["zero_point"] == (
                tensor.zero_points[0] if tensor.scales else None
            )


def test_golden_files_are_what_the_engine_says(exported: Path, x: np.ndarray) -> None:
    stored = np.load(exported / "golden.npz")
    models = _content(exported)["models"]
    assert models
    for model in models:
        golden, dtype = model["golden"], model["inputs"][0]["dtype"]
        assert golden["samples"] == 8
        for path, digest in golden["sha256"].items():
            assert digest == hashlib.sha256((exported / path).read_bytes()).hexdigest()
        flat = np.frombuffer((exported / golden["inputs"][0]).read_bytes(), dtype)
        inputs = flat.reshape(8, 6, 6, 1)
        # Real samples, spread over all of them, as the file takes them.
        chosen = x[np.arange(8) * 20 // 8]
        if dtype == "int8":
            scale, zero = model["inputs"][0]["scale"], model["inputs"][0]["zero_point"]
            chosen = np.clip(np.rint(chosen / np.float32(scale)) + zero, -128, 127)
        assert np.array_equal(inputs, chosen.astype(dtype))
        run = run_engine("litert", (exported / model["file"]).read_bytes(), [inputs])
        output = (exported / golden["outputs"][0]).read_bytes()
        assert output == run.outputs[0].tobytes()
        assert (golden["engine"], golden["engine_version"]) == ("LiteRT", run.version)
        assert golden["kernels"] == run.kernels
        assert (golden["tolerance"] is None) == (dtype == "int8")
        assert np.array_equal(stored[f"{model['kind']}_input_0"], inputs)
        assert np.array_equal(stored[f"{model['kind']}_output_0"], run.outputs[0])


def test_a_bundle_is_read_as_it_was_written(exported: Path) -> None:
    bundle = read_bundle(exported)
    assert bundle == read_bundle(exported / "bundle.json")
    assert bundle.to_json() == (exported / "bundle.json").read_text()
    assert set(bundle.files()) == {
        "bundle.json", "tiny_int8.tflite", "tiny_float32.tflite",
        *(f"golden/{k}_{e}_0.bin" for k in ("int8", "float32") for e in ("input", "output")),
    }  # fmt: skip
    samples = bundle.samples(bundle.models[0])
    if samples is None:
        raise AssertionError("no samples")
    assert samples[0][0].shape == (8, 6, 6, 1)
    assert samples[1][0].shape == (8, 3)


def test_without_samples_there_is_no_golden_output_and_a_note(
    exported: Path, tmp_path: Path, check_whole: Callable[[Any, str], None]
) -> None:
    report = ec.export(
        exported / "tiny_int8.tflite", ["host"], file_format="binary-weights", output=tmp_path
    )
    content = _content(tmp_path)
    check_whole(content, "bundle")
    assert {m["golden"] for m in content["models"]} == {None}
    assert content["labels"] is None
    assert not (tmp_path / "golden").exists()
    assert any("no golden outputs" in note for note in report.notes)
    read_bundle(tmp_path)


@pytest.mark.parametrize(
    ("operator", "runtime"), [("", "litert"), ("LceBconv2d", "lce"), ("TFLM_DECODE", "tflm")]
)
def test_custom_operators_name_the_runtime(operator: str, runtime: str, exported: Path) -> None:
    flat = read_tflite(exported / "tiny_int8.tflite")
    first = dataclasses.replace(flat.operators[0], custom_name=operator)
    changed = dataclasses.replace(flat, operators=(first, *flat.operators[1:]))
    assert runtime_of(changed) == runtime


def test_microcontrollers_get_no_bundle(x: np.ndarray, tmp_path: Path) -> None:
    ec.export(_model(), ["cortex-m4"], calibration=x, output=tmp_path)
    assert not (tmp_path / "bundle.json").exists()
    with pytest.raises(ArgumentError, match="`--labels` must go with a phone or the host"):
        ec.export(_model(), ["cortex-m4"], calibration=x, output=tmp_path, labels=_NAMES)


def test_labels_that_do_not_fit_are_refused(x: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="name the 3 values of the first output.*'2 names'"):
        ec.export(_model(), ["pixel-8"], calibration=x, output=tmp_path, labels=_NAMES[:2])
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "gap.txt").write_text("one\n\nthree\n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    for name, text in (("gap", "one class in each line"), ("bytes", "not UTF-8"),
                       ("none", "does not exist")):  # fmt: skip
        with pytest.raises(ArgumentError, match=text):
            read_labels(tmp_path / f"{name}.txt")


@pytest.mark.parametrize(
    "path", ["", "/a", "../a", "a/../b", "a//b", "a/", "./a", "C:/a", "a\\b", "a\0"]
)
def test_paths_that_lead_outside(path: str, copy: Path) -> None:
    assert not is_inside(path)
    content = _content(copy)
    content["models"][0]["file"] = path
    (copy / "bundle.json").write_text(json.dumps(content))
    with pytest.raises(ModelFileError, match=r"models\[0\]\.file must be a path inside"):
        read_bundle(copy)


def _set(*keys: Any, value: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = place = _content(folder)
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        (folder / "bundle.json").write_text(json.dumps(content))

    return change


_GOLDEN = "golden/int8_output_0.bin"


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda f: (f / "bundle.json").unlink(), "does not exist. Give the folder"),
        (lambda f: (f / "bundle.json").write_text("{"), "is not valid JSON"),
        (lambda f: (f / "bundle.json").write_text("[]"), "schema must be edgecompress.bundle/1"),
        (lambda f: (f / "bundle.json").write_bytes(b"\xff"), "is not UTF-8 text"),
        (_set("schema", value="edgecompress.bundle/2"), "Got 'edgecompress.bundle/2'"),
        (_set("budgets", "max_ram", value=float("nan")), "NaN is not a JSON number"),
        (_set("models", value=[]), "a list of at least one model"),
        (_set("models", value={}), "models must be a list"),
        (_set("models", 0, value=3), "models[0] must be an object. Got 3."),
        (_set("models", 0, "sha256", value="xy"), "64 hexadecimal digits"),
        (_set("models", 0, "runtime", value="onnx"), "litert, lce, tflm"),
        (_set("models", 0, "bytes", value=True), "models[0].bytes must be a whole number"),
        (_set("models", 0, "inputs", 0, "shape", value=[1, -2]), "a list of sizes"),
        (_set("models", 0, "inputs", 0, "shape", value=[1] * 33), "a list of sizes"),
        (_set("models", 0, "inputs", 0, "dtype", value="int3"), "Got 'int3'"),
        (_set("models", 0, "golden", "samples", value=0), "samples must be at least 1"),
        (_set("models", 0, "golden", "samples", value=9), "but bundle.json says"),
        (_set("models", 0, "golden", "outputs", value=[]), "must be 1 files"),
        (_set("models", 0, "golden", "outputs", value=["a.bin"]), "a.bin has none"),
        (lambda f: (f / "tiny_int8.tflite").write_bytes(b"x"), "has 1 bytes"),
        (lambda f: (f / "tiny_int8.tflite").unlink(), "Export again"),
        (lambda f: (f / _GOLDEN).write_bytes(bytes(24)), "is another file than bundle.json"),
        (lambda f: (f / _GOLDEN).write_bytes(bytes(23)), "has 23 bytes"),
    ],
)  # fmt: skip
def test_damaged_bundles_are_one_line(damage: Callable[[Path], Any], text: str, copy: Path) -> None:
    damage(copy)
    with pytest.raises(ModelFileError) as caught:
        read_bundle(copy)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("names", [("host", "pixel-4", "cortex-m4"), ("cortex-m4", "pixel-4")])
def test_a_phone_goes_before_the_host(names: tuple[str, ...]) -> None:
    chosen = bundle_profile([load_target(name) for name in names])
    assert chosen is not None and chosen.name == "pixel-4"
    assert bundle_profile([load_target("cortex-m4")]) is None
