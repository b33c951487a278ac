"""Measurement files: what is refused, and what verdict their times allow."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import edgecompress as ec
from edgecompress.cli import main
from edgecompress.core.errors import ArgumentError, ModelFileError
from edgecompress.core.files import sha256
from edgecompress.core.results import exit_code
from edgecompress.targets.measurement import (
    Measurement,
    parse_measurement,
    read_measurement,
)
from edgecompress.targets.measurement_checks import (
    budget_checks,
    latency_check,
    recorded_checks,
    to_record,
)

pytestmark = pytest.mark.slow

_DOCS = Path(__file__).parents[1] / "docs"
_SCHEMA = json.loads((_DOCS / "measurement.schema.json").read_text())
_REPORT = json.loads((_DOCS / "report.schema.json").read_text())
_STATE = {
    "thermal_before": 0, "thermal_after": 0, "thermal_headroom_before": None,
    "thermal_headroom_after": None, "battery_before": 0.9, "battery_after": 0.9,
    "battery_temperature_c": 30.1, "charging": False, "power_save": False, "governor": None,
    "load_before": None, "load_after": None, "available_kb": 4000000,
}  # fmt: skip
_DEVICE = {
    "manufacturer": "Google", "model": "Pixel 8", "soc": "Tensor G3", "abi": "arm64-v8a",
    "android": "14", "sdk": 34, "build_fingerprint": "google/shiba", "cpu_features": ["asimddp"],
    "cores": 9, "max_freq_khz": [None] * 9, "ram_kb": 7800000,
}  # fmt: skip


def _measurement(digest: str, **changes: Any) -> dict[str, Any]:
    repeats = changes.pop("repeats", [100.0, 101.0, 102.0])
    entry = {
        "tier": "measured_device",
        "target": "pixel-8",
        "model": {"sha256": digest, "bytes": 10, "kind": "int8", "file": "tiny_int8.tflite"},
        "runtime": {
            "name": "TensorFlow Lite", "version": "2.16.1", "api": "Interpreter",
            "delegate": "XNNPACK", "kernels": "XNNPACK",
        },
        "config": {
            "threads": 1, "xnnpack": True, "affinity": None, "warmup": 10, "runs": 50,
            "min_s": 1.0, "repeats": 3, "processes": 1, "input": "golden",
        },
        "state": dict(_STATE),
        "latency_us": {
            "init": 900.0, "first": 200.0, "warmup": 120.0, "min": 99.0, "p5": 99.5,
            "median": 101.0, "p90": 102.0, "p95": 103.0, "max": 130.0, "mean": 101.5, "std": 2.0,
            "spread_pct": 2.0, "samples": 60, "inferences_per_sample": 1,
            "repeat_medians": repeats, "histogram": {"edges": [99.0, 110.0], "counts": [60]},
        },
        "memory_kb": {"init": 100.0, "overall": 200.0, "peak": None},
        "golden": {
            "checked": 24, "equal": 24, "max_steps": 0, "max_error": None, "passed": True,
            "kernels": "XNNPACK",
        },
        "checks": [],
        "output_sha256": None,
        "error": None,
        "time": "2026-01-02T03:04:05Z",
    }  # fmt: skip
    return {**entry, **changes}


def _file(*measurements: dict[str, Any], **changes: Any) -> dict[str, Any]:
    file = {
        "schema": "edgecompress.measurement/1",
        "tool": {"name": "edgecompress-demo", "version": "1.0"},
        "time": "2026-01-02T03:04:05Z",
        "bundle": {"name": "tiny", "target": "pixel-8", "sha256": "b" * 64},
        "device": _DEVICE,
        "state": _STATE,
        "measurements": list(measurements),
        "error": None,
        **changes,
    }
    jsonschema.validate(file, _SCHEMA)
    return file


@pytest.fixture(scope="module")
def model(tiny: Path) -> Path:
    return tiny / "classifier_int8.tflite"


@pytest.fixture
def stored(tmp_path: Path, model: Path) -> Callable[..., Path]:
    """Writes a measurement file of the model, as changed."""

    def store(*measurements: dict[str, Any], **changes: Any) -> Path:
        path = tmp_path / "result.json"
        entries = measurements or (_measurement(sha256(model.read_bytes())),)
        path.write_text(json.dumps(_file(*entries, **changes)))
        return path

    return store


def _slowed(**state: Any) -> dict[str, Any]:
    return {"state": {**_STATE, **state}}


@pytest.mark.parametrize(
    ("limit", "changes", "verdict", "reason"),
    [
        (102.0, {}, "pass", None),
        (101.9, {}, "uncertain", "100.0 us to 102.0 us straddles the limit of 101.9 us"),
        (99.9, {}, "fail", "is above the limit of 99.9 us (int8, 1 thread, XNNPACK on)."),
        (None, {}, "not_applicable", None),
        (900, {"repeats": [100.0, 105.0]}, "pass", None),
        (900, {"repeats": [100.0, 105.1]}, "uncertain", "The repeats lie 5.1 % apart"),
        (9, {"repeats": [100.0, 105.1]}, "uncertain", "The repeats lie 5.1 % apart"),
        (900, _slowed(thermal_after=1), "uncertain", "got hotter (thermal status 0 to 1)"),
        (900, _slowed(thermal_before=1, thermal_after=1), "pass", None),
        (900, _slowed(thermal_before=2, thermal_after=2), "uncertain", "throttled"),
        (900, _slowed(thermal_before=None, thermal_after=None), "pass", None),
        (900, {"golden": None}, "pass", None),
        (900, {"error": {"code": "memory", "message": "Too large."}}, "not_measured", "Too large."),
        (900, {"latency_us": None}, "not_measured", "It was not timed."),
    ],
)  # fmt: skip
def test_verdict_on_times(
    limit: float | None, changes: dict[str, Any], verdict: str, reason: str | None
) -> None:
    found = latency_check(Measurement(_measurement("a" * 64, **changes)), limit)
    assert found.verdict == verdict
    assert (found.reason is None) if reason is None else (reason in str(found.reason))
    if found.measured is not None:
        assert (found.measured, found.how_known) == (101.0, "measured_device")


def test_wrong_outputs_allow_no_verdict() -> None:
    entry = _measurement("a" * 64)
    entry["golden"]["passed"] = False
    found = latency_check(Measurement(entry), 900.0)
    assert found.verdict == "uncertain"
    assert "differ from the golden ones" in str(found.reason)


_NO_BUDGETS = {"max_latency_us": None, "max_file_size": None, "max_ram": None}


@pytest.mark.parametrize(
    ("budgets", "changes", "verdicts", "code"),
    [
        ({}, {}, ["not_applicable"] * 3 + ["pass"], 0),
        ({"max_latency_us": 102.0, "max_file_size": 10, "max_ram": 204800}, {}, ["pass"] * 4, 0),
        ({"max_latency_us": 99.0}, {}, ["fail", "not_applicable", "not_applicable", "pass"], 3),
        ({"max_latency_us": 101.0}, {},
         ["uncertain", "not_applicable", "not_applicable", "pass"], 6),
        ({"max_file_size": 9}, {}, ["not_applicable", "fail", "not_applicable", "pass"], 3),
        ({"max_ram": 204799}, {}, ["not_applicable", "not_applicable", "fail", "pass"], 3),
        ({"max_ram": 204799}, {"memory_kb": {"init": None, "overall": None, "peak": None}},
         ["not_applicable", "not_applicable", "not_measured", "pass"], 6),
        ({}, {"golden": None}, ["not_applicable"] * 4, 0),
        ({"max_latency_us": 9.0}, {"golden": {
            "checked": 24, "equal": 20, "max_steps": 3, "max_error": None, "passed": False,
            "kernels": "XNNPACK",
        }}, ["uncertain", "not_applicable", "not_applicable", "fail"], 4),
        ({}, {"golden": {
            "checked": 24, "equal": 20, "max_steps": None, "max_error": None, "passed": False,
            "kernels": "XNNPACK",
        }}, ["uncertain", "not_applicable", "not_applicable", "fail"], 4),
    ],
)  # fmt: skip
def test_checks_of_a_measurement_file_are_those_of_a_report(
    budgets: dict[str, float], changes: dict[str, Any], verdicts: list[str], code: int
) -> None:
    entry = _measurement("a" * 64, **changes)
    found = budget_checks(Measurement(entry), {**_NO_BUDGETS, **budgets})
    assert [check.rule for check in found] == ["latency", "file_size", "ram", "golden"]
    assert [check.verdict for check in found] == verdicts
    assert exit_code(found) == code
    stored = {**entry, "checks": [to_record(check) for check in found]}
    jsonschema.validate(_file(stored), _SCHEMA)
    again = recorded_checks(Measurement(json.loads(json.dumps(stored))))
    assert [to_record(check) for check in again] == [to_record(check) for check in found]
    assert [check.how_known for check in again] == [check.how_known for check in found]
    assert exit_code(again) == code


def test_a_failed_rule_decides_before_an_undecided_one() -> None:
    golden = {"checked": 2, "equal": 1, "max_steps": 1, "max_error": None, "passed": False,
              "kernels": "XNNPACK"}  # fmt: skip
    entry = _measurement("a" * 64, golden=golden)
    found = budget_checks(Measurement(entry), {**_NO_BUDGETS, "max_ram": 1})
    assert {check.rule for check in found if check.verdict == "fail"} == {"ram", "golden"}
    assert exit_code(found) == 3
    assert exit_code(check for check in found if check.rule != "ram") == 4
    assert exit_code(()) == 0


def test_without_a_limit_a_doubted_time_is_no_pass() -> None:
    entry = _measurement("a" * 64)
    entry["golden"]["passed"] = False
    found = latency_check(Measurement(entry), None)
    assert (found.verdict, found.undecided) == ("uncertain", False)


@pytest.mark.parametrize(
    ("budget", "grown", "code", "verdict"),
    [
        ("200KiB", 200.0, 0, "pass"),
        ("199KiB", 200.0, 3, "fail"),
        ("200KiB", None, 6, "not_measured"),
    ],
)
def test_the_memory_of_the_process_counts_where_it_was_measured(
    model: Path,
    stored: Callable[..., Path],
    capfd: pytest.CaptureFixture[str],
    budget: str,
    grown: float | None,
    code: int,
    verdict: str,
) -> None:
    entry = _measurement(sha256(model.read_bytes()))
    entry["memory_kb"]["overall"] = grown
    command = ["check", str(model), "-t", "pixel-8", "-q", "--json", "--max-ram", budget]
    assert main([*command, "--measured", str(stored(entry))]) == code
    (memory,) = (
        c
        for c in json.loads(capfd.readouterr().out)["targets"][0]["checks"]
        if c["rule"] == "arena"
    )
    assert (memory["verdict"], memory["limit"]) == (verdict, int(budget[:3]) * 1024)
    # Without a measurement nobody knows; beside a microcontroller the limit is meant for its arena.
    assert main(command) == 6
    assert 'rule": "arena' in capfd.readouterr().out
    assert main([*command, "-t", "cortex-m4"]) == 0


def test_check_takes_the_measured_latency(
    model: Path, stored: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["check", str(model), "-t", "pixel-8", "-q", "--json", "--measured", str(stored())]
    for limit, code in (("102us", 0), ("99us", 3)):
        assert main([*command, "--max-latency", limit]) == code
        report = json.loads(capfd.readouterr().out)
        jsonschema.validate(report, _REPORT)
        phone = next(c for c in report["targets"][0]["checks"] if c["rule"] == "latency")
        assert phone["verdict"] == ("pass" if code == 0 else "fail")
        assert phone["measured"] == 101.0
        assert phone["how_known"] == "measured_device"
        assert phone["detail"]["runtime"]["version"] == "2.16.1"
    assert main([*command, "-t", "cortex-m4"]) == 0
    board = json.loads(capfd.readouterr().out)["targets"][1]["checks"]
    assert next(c for c in board if c["rule"] == "latency")["measured"] != 101.0


def test_of_several_settings_the_plain_one_counts(model: Path, stored: Callable[..., Path]) -> None:
    digest = sha256(model.read_bytes())
    entries = []
    for threads, xnnpack, median in ((4, True, 50.0), (1, False, 300.0), (1, True, 100.0)):
        entry = _measurement(digest, repeats=[median])
        entry["config"] |= {"threads": threads, "xnnpack": xnnpack}
        entry["latency_us"]["median"] = median
        entries.append(entry)
    report = ec.check(model, ["pixel-8"], measured=stored(*entries))
    assert next(c for c in report.targets[0].checks if c.rule == "latency").measured == 100.0


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"digest": "c" * 64}, "must be of this model (SHA-256 "),
        ({"bundle": {"name": "t", "target": "pixel-4", "sha256": "b" * 64}}, "Got 'pixel-4'"),
        ({"bundle": None}, "must be of a target of this command (pixel-8)"),
        ({"tier": "measured_host"}, "must be measured on Google Pixel 8"),
        ({"target": "pixel-4"}, "must be measured on Google Pixel 8"),
        ({"failed": True}, "The run failed: No space."),
    ],
)  # fmt: skip
def test_results_of_something_else_are_refused(
    changes: dict[str, Any], text: str, model: Path, stored: Callable[..., Path]
) -> None:
    entry = _measurement(changes.pop("digest", sha256(model.read_bytes())))
    entry |= {key: changes.pop(key) for key in ("tier", "target") if key in changes}
    if changes.pop("failed", False):
        path = stored(error={"code": "storage", "message": "No space."})
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "measurements": []}))
    else:
        path = stored(entry, **changes)
    with pytest.raises(ArgumentError) as caught:
        ec.check(model, ["pixel-8"], measured=path)
    assert text in str(caught.value)


def _set(*keys: Any, value: Any) -> Callable[[dict[str, Any]], str]:
    def change(content: dict[str, Any]) -> str:
        place: Any = content
        for key in keys[:-1]:
            place = place[key]
        if value is _set:
            del place[keys[-1]]
        else:
            place[keys[-1]] = value
        return json.dumps(content)

    return change


_M = ("measurements", 0)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda c: json.dumps(c)[:-40], "The file is cut off."),
        (lambda c: "", "The file is cut off."),
        (lambda c: "[" * 100_000, "is not a measurement file"),
        (lambda c: "[]", "must have the schema edgecompress.measurement/1. Got 'None'"),
        (_set("schema", value="edgecompress.measurement/2"), "Got 'edgecompress.measurement/2'"),
        (_set(*_M, "latency_us", "median", value=float("nan")), "NaN is not a JSON number"),
        (_set(*_M, "latency_us", "median", value=float("inf")), "Infinity is not a JSON number"),
        (lambda c: json.dumps(c).replace("101.5", "1e999"), "1e999 is not finite"),
        (_set(*_M, "latency_us", "median", value="9"), "latency_us.median must be a number. Got"),
        (_set(*_M, "latency_us", "median", value=-1), "must be at least 0"),
        (_set(*_M, "latency_us", "repeat_medians", value=[]), "a list of times above 0"),
        (_set(*_M, "latency_us", "repeat_medians", value=[0.0]), "a list of times above 0"),
        (_set(*_M, "latency_us", "cpu_medians", value="9"), "cpu_medians must be a list or null"),
        (_set(*_M, "latency_us", "cpu_medians", value=[0.0]), "a list of times above 0"),
        (_set(*_M, "latency_us", "histogram", "counts", value=[]), "a list of at least 1 count"),
        (_set(*_M, "model", "sha256", value=_set), "measurements[0].model.sha256 must be there"),
        (_set(*_M, "tier", value="predicted"), "measured_device or measured_host"),
        (_set(*_M, "config", "threads", value=True), "config.threads must be a whole number"),
        (_set(*_M, "golden", "passed", value=1), "golden.passed must be true or false"),
        (_set("measurements", value={}), "measurements must be a list"),
        (_set("bundle", value=_set), "bundle must be there"),
    ],
)  # fmt: skip
def test_damaged_files_are_one_line(damage: Callable[[dict[str, Any]], str], text: str) -> None:
    content = copy.deepcopy(_file(_measurement("a" * 64)))
    with pytest.raises(ModelFileError) as caught:
        parse_measurement(damage(content).encode(), "result.json")
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="does not exist"):
        read_measurement(tmp_path / "none.json")
