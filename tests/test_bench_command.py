"""`bench`: a phone behind a fake adb, this computer, and the verdicts that both lead to."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import keras
import numpy as np
import pytest
from keras import layers

import edgecompress as ec
from edgecompress.cli import main
from edgecompress.cli.app import app
from edgecompress.core.errors import (
    ArgumentError,
    DeviceError,
    EdgeCompressError,
    MissingDependencyError,
    ModelFileError,
)
from edgecompress.pipeline.bench_runner import BenchResult, bench, compare_golden
from edgecompress.targets.phones import adb

pytestmark = pytest.mark.slow

_DOCS = Path(__file__).parents[1] / "docs"
_FILES = "sdcard/Android/data/io.edgecompress.demo/files"

Bench = Callable[..., BenchResult]


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(20, 6, 6, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Keras file whose name shells and file systems misread."""
    keras.utils.set_random_seed(1)
    made = keras.Sequential(
        [keras.Input((6, 6, 1)), layers.Conv2D(3, 3), layers.Flatten(), layers.Dense(3)]
    )
    path = tmp_path_factory.mktemp("model") / "t\u00efny $(x).keras"
    made.save(path)
    return path


def _export(model: Path, target: str, x: np.ndarray, folder: Path, **options: Any) -> Any:
    return ec.export(model, [target], calibration=x, output=folder, **options)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, model: Path, x: np.ndarray) -> Path:
    folder = tmp_path_factory.mktemp("export") / "b\u00fcndle 1"
    _export(model, "pixel-8", x, folder, max_latency="102us", max_ram="1MiB")
    return folder


@pytest.fixture
def run(
    phone: Path,
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    check_whole: Callable[[Any, str], None],
) -> Bench:
    """Runs `bench --adb` on the fake phone; capitals are its environment."""

    def call(**options: Any) -> BenchResult:
        for name in [name for name in options if name.isupper()]:
            monkeypatch.setenv(f"FAKE_{name}", options.pop(name))
        options = {"processes": 3, "poll_s": 0.01, "adb": True, **options}
        result = bench(bundle, output=tmp_path / "result.json", **options)
        assert json.loads((tmp_path / "result.json").read_text()) == json.loads(result.to_json())
        check_whole(json.loads(result.to_json()), "measurement")
        return result

    return call


# --- a phone ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("in_process")
def test_a_run_ends_in_a_verdict_that_check_takes(
    run: Bench, phone: Path, model: Path, x: np.ndarray, tmp_path: Path
) -> None:
    said: list[str] = []
    result = run(MEDIANS="100,101,102", progress=said.append)
    assert (result.verdict, result.exit_code) == ("pass", 0)
    assert len(result.data["measurements"]) == 1
    entry = result.data["measurements"][0]
    assert entry["config"]["processes"] == 3
    latency = entry["latency_us"]
    assert latency["repeat_medians"] == [100.0, 101.0, 102.0]
    assert (latency["min"], latency["median"], latency["max"]) == (95.0, 101.0, 152.0)
    assert latency["samples"] == 150
    # 3 within a process, and means of 100, 101 and 102.
    assert latency["std"] == pytest.approx(np.sqrt(9 + 2 / 3))
    assert sum(latency["histogram"]["counts"]) == 150
    assert [c["verdict"] for c in result.checks] == ["pass", "not_applicable", "pass", "pass"]
    extras = json.loads((phone / "extras.json").read_text())
    assert (extras["threads"], extras["xnnpack"], extras["models"]) == ("1", "on", "int8")
    assert any("Process 1 of 3" in text and "int8 threads=1" in text for text in said)
    assert "Verdict: PASS" in result.text()
    assert "101.0 us, 100.0 us to 102.0 us in 3 processes" in result.text()
    # No result is left on the phone, and the app was stopped at the end.
    assert not list((phone / _FILES / "results").iterdir())
    assert len((phone / ".stops").read_text()) == 4

    report = _export(model, "pixel-8", x, tmp_path / "again", max_latency="99us",
                     measured=tmp_path / "result.json")  # fmt: skip
    found = next(c for c in report.targets[0].checks if c.rule == "latency")
    assert (found.verdict, found.measured, found.how_known) == ("fail", 101.0, "measured_device")


def test_equal_files_are_not_pushed_again(run: Bench, phone: Path) -> None:
    run(processes=1)
    first = len((phone / ".pushes").read_text())
    # Two models, two golden files of each, and bundle.json.
    assert first == 7
    damaged = next((phone / _FILES / "bundles").rglob("*int8.tflite"))
    # As large as the right one.
    damaged.write_bytes(bytes(damaged.stat().st_size))
    assert run(processes=1).verdict == "pass"
    assert len((phone / ".pushes").read_text()) == first + 1


@pytest.mark.parametrize(
    ("settings", "verdict", "code", "allowed", "reason"),
    [
        ({"max_latency": "99us"}, "fail", 3, 3, "is above the limit of 99.0 us"),
        ({"MEDIANS": "100,106"}, "uncertain", 6, 0, "The repeats lie 6.0 % apart"),
        ({"THERMAL": "0-0,0-1"}, "uncertain", 6, 0, "got hotter (thermal status 0 to 1)"),
        ({"THERMAL": "3-3"}, "uncertain", 6, 0, "throttled (thermal status 3)"),
        ({"FAULTS": "wrong_outputs"}, "fail", 4, 4, "by up to 9 steps"),
        ({"FAULTS": "refused"}, "fail", 5, 5, "It needs Larq Compute Engine."),
        ({"FAULTS": "no_room"}, "fail", 1, 1, "There is no room."),
    ],
)  # fmt: skip
def test_verdicts(
    run: Bench, settings: dict[str, str], verdict: str, code: int, allowed: int, reason: str
) -> None:
    result = run(processes=2, **settings)
    assert (result.verdict, result.exit_code) == (verdict, code)
    assert (result.exit_code_for(False), result.exit_code_for(True)) == (code, allowed)
    assert reason in result.text()


def test_a_hot_phone_cools_down_between_processes(run: Bench) -> None:
    said: list[str] = []
    run(processes=2, THERMAL="0-2,0-0", STATUS="2,1,0", progress=said.append)
    assert [text for text in said if "Cooling" in text] == [
        f"Cooling down: thermal status {status}, 0 at the start" for status in (2, 1)
    ]


def test_a_phone_that_stays_hot_does_not_hang(run: Bench) -> None:
    said: list[str] = []
    result = run(processes=2, THERMAL="0-2", STATUS="2", cooldown_s=0.1, progress=said.append)
    assert "The phone did not cool down within 0.1 s" in said
    assert result.verdict == "uncertain"


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"DEVICES": ""}, DeviceError, "No phone is connected"),
        ({"DEVICES": "A\tdevice\nB\tdevice"}, ArgumentError, "Connected: A, B."),
        ({"serial": "C"}, ArgumentError, "must name a connected phone. Got 'C'"),
        ({"DEVICES": "A\tunauthorized"}, DeviceError, "A does not trust this computer: unlock it"),
        ({"DEVICES": "A\toffline"}, DeviceError, "The phone A is offline: reconnect"),
        ({"DEVICES": "A\tno permissions (udev)"}, DeviceError, "'no permissions (udev)'"),
        ({"FAULTS": "server"}, DeviceError, "cannot connect to daemon"),
        ({"FAULTS": "no_app"}, DeviceError, "The demo app is not installed on the phone PHONE1"),
        ({"FAULTS": "old_app"}, DeviceError, "does not exist."),
        ({"FAULTS": "push"}, DeviceError, "No space left on device."),
        ({"FAULTS": "no_sha256sum"}, DeviceError, "has no sha256sum"),
        ({"FAULTS": "short_push"}, DeviceError, "is another file on the phone PHONE1"),
        ({"FAULTS": "killed"}, DeviceError, "The app was killed before it had a result (PHONE1). "
         "Its log ends: E AndroidRuntime: java.lang.OutOfMemoryError"),
        ({"FAULTS": "endless", "timeout_s": 0.3, "min_seconds": 0.1}, DeviceError,
         "No result came within 0.3 s"),
        ({"FAULTS": "unplugged"}, DeviceError, "was it unplugged?"),
        ({"FAULTS": "pull"}, DeviceError, "Permission denied."),
        ({"FAULTS": "truncated"}, ModelFileError, "The phone's result is not a measurement file"),
        ({"FAULTS": "nan"}, ModelFileError, "NaN is not a JSON number"),
        ({"FAULTS": "other_model"}, ModelFileError, "of another model (SHA-256 cccccccccccc"),
        ({"FAULTS": "other_bundle"}, ModelFileError, "is of another bundle"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_one_line_and_writes_nothing(
    run: Bench,
    settings: dict[str, Any],
    error: type[EdgeCompressError],
    text: str,
    tmp_path: Path,
) -> None:
    with pytest.raises(error) as caught:
        run(processes=1, **settings)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "result.json").exists()


def test_one_of_two_phones_is_chosen_by_its_serial(run: Bench) -> None:
    assert run(DEVICES="A\toffline\nB\tdevice", serial="B", processes=1).verdict == "pass"


def test_an_adb_that_hangs_is_stopped(run: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adb, "_ANSWER_S", 0.2)
    begin = time.monotonic()
    with pytest.raises(DeviceError, match=r"adb gave no answer within 0.4 s \(`devices`\)"):
        run(FAULTS="hang")
    assert time.monotonic() - begin < 60


def test_without_adb(bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="apt install adb"):
        bench(bundle, adb=True)


# --- the app's own code -------------------------------------------------------------------------


def test_the_apps_core_runs_the_bundle(run: Bench, jvm_app: str) -> None:
    result = run(APP=jvm_app, processes=2, min_seconds=0.1, models=("int8", "float32"))
    assert result.failures == []
    assert [m["model"]["kind"] for m in result.data["measurements"]] == ["int8", "float32"]
    for entry in result.data["measurements"]:
        assert entry["config"]["processes"] == 2
        assert entry["golden"]["checked"] == 24
        assert entry["golden"]["same_answer"] == 8
        golden = next(check for check in entry["checks"] if check["rule"] == "golden")
        assert golden["verdict"] == "pass"


# --- this computer ------------------------------------------------------------------------------


@pytest.mark.usefixtures("in_process")
def test_the_host_is_measured_in_the_same_form(
    model: Path,
    x: np.ndarray,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    check_whole: Callable[[Any, str], None],
) -> None:
    _export(model, "host", x, tmp_path / "build")
    command = ["bench", str(tmp_path / "build"), "--host", "--processes", "2", "--min-seconds",
               "0.05", "--model", "int8", "--model", "float32", "--json", "-q"]  # fmt: skip
    assert main(command) == 0
    out, err = capfd.readouterr()
    assert err == ""
    result = json.loads(out)
    check_whole(result, "measurement")
    assert json.loads((tmp_path / "build" / "measurement.json").read_text()) == result
    assert [m["model"]["kind"] for m in result["measurements"]] == ["int8", "float32"]
    for entry in result["measurements"]:
        assert entry["tier"] == "measured_host"
        assert (entry["golden"]["passed"], entry["golden"]["allowed_steps"]) in (
            (True, 0), (True, None),
        )  # fmt: skip
        assert entry["golden"]["equal"] == entry["golden"]["checked"] == 24
        assert len(entry["latency_us"]["repeat_medians"]) == 2
        counts = entry["latency_us"]["histogram"]["counts"]
        assert sum(counts) == entry["latency_us"]["samples"]
    measured = tmp_path / "build" / "measurement.json"
    file = next((tmp_path / "build").glob("*_int8.tflite"))
    report = ec.check(file, ["host"], measured=measured)
    found = next(c for c in report.targets[0].checks if c.rule == "latency")
    assert found.how_known == "measured_host"
    cpu = result["measurements"][0]["latency_us"]["cpu_medians"]
    assert (found.low, found.high) == (min(cpu), max(cpu))


@pytest.mark.parametrize(
    ("got", "want", "steps", "passed", "equal"),
    [
        (np.int8([[1, 2]]), np.int8([[1, 2]]), 0, True, 2),
        (np.int8([[1, 3]]), np.int8([[1, 2]]), 0, False, 1),
        (np.int8([[1, 3]]), np.int8([[1, 2]]), 1, True, 1),
        (np.int8([[-128, 3]]), np.int8([[127, 3]]), 1, False, 1),
        (np.float32([[1000.5]]), np.float32([[1000.0]]), 0, True, 0),
        (np.float32([[0.0015]]), np.float32([[0.0]]), 0, False, 0),
        (np.float32([[np.nan]]), np.float32([[0.0]]), 0, False, 0),
    ],
)
def test_golden_outputs_are_compared_by_their_type(
    got: np.ndarray, want: np.ndarray, steps: int, passed: bool, equal: int
) -> None:
    found = compare_golden([got], [want], steps, 1e-3)
    assert (found["passed"], found["equal"]) == (passed, equal)
    json.dumps(found, allow_nan=False)


# --- the command --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            "",
            "`--host or --adb` must be given. Got None. --host measures on this computer, --adb on "
            "the phone",
        ),
        ("--host --adb", "`--host` must be left out with --adb."),
        ("--host --serial A", "`--serial` must go with --adb"),
        ("--adb --runner ap", "Did you mean app?"),
        ("--host --model int9", "Did you mean int8?"),
        ("--host --processes 0", "`--processes` must be at least 1"),
        ("--host --threads 0", "`--threads` must be at least 1"),
        ("--host --min-seconds 700", "less than --timeout 600"),
        ("--host --max-latency 3", "a positive time with a unit"),
        ("--host -o nowhere/result.json", "`--output` must be a file in a folder that exists"),
    ],
)
def test_wrong_options(
    options: str, text: str, bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(bundle), *options.split()]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert text in err


def test_a_folder_without_a_bundle(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(tmp_path), "--host"]) == 1
    assert "Give the folder of an export" in capfd.readouterr().err


def test_the_guide_names_every_option() -> None:
    guide = (_DOCS / "command_line.md").read_text()
    context = click.Context(app)
    command = app.get_command(context, "bench")
    assert command is not None
    section = guide[guide.index("## bench") : guide.index("## Options")]
    for parameter in command.get_params(context):
        name = parameter.opts[0]
        if name.startswith("--") and name not in (
            "--json",
            "--quiet",
            "--verbose",
            "--allow-undecided",
            "--help",
        ):
            assert re.search(rf"`(-\w, )?{name}\b", section), name
