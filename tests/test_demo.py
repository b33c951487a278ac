"""The demonstration, up to the benchmark of its model on a phone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgecompress.cli import main

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make demo` writes, trained for a moment only."""
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-P", "-m", "edgecompress.demo", "--epochs", "1"]
    done = subprocess.run([*command, "--output", folder], capture_output=True, text=True)
    # No phone was there to measure, and nothing failed.
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Verdict: NOT MEASURED" in done.stdout
    return folder


def test_the_demo_goes_to_the_phone_and_back(
    demo: Path, phone: Path, jvm_app: str, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str], tmp_path: Path, check_whole: Callable[[Any, str], None],
) -> None:  # fmt: skip
    """The bundle on a phone whose app is the real one, run on this computer."""
    monkeypatch.setenv("FAKE_APP", jvm_app)
    result = tmp_path / "measurement.json"
    # Three processes of a busy computer may lie far apart, which leaves the limit undecided.
    command = ["bench", str(demo), "--adb", "--processes", "3", "-o", str(result)]
    command.append("--allow-undecided")
    assert main([*command, "--quiet"]) == 0
    assert "fashion" in capfd.readouterr().out
    data = json.loads(result.read_text())
    check_whole(data, "measurement")
    check_whole(json.loads((demo / "bundle.json").read_text()), "bundle")
    (entry,) = data["measurements"]
    checks = {check["rule"]: check for check in entry["checks"]}
    assert entry["tier"] == "measured_device"
    # Too slow they are not.
    assert checks["latency"]["verdict"] in ("pass", "uncertain")
    assert checks["golden"]["verdict"] == "pass"
    assert (entry["golden"]["samples"], entry["golden"]["same_answer"]) == (8, 8)
    int8 = str(demo / "fashion_int8.tflite")
    command = ["check", int8, "--target", "pixel-4", "--max-latency", "100ms", "--json",
               "--allow-undecided"]  # fmt: skip
    assert main([*command, "--measured", str(result)]) == 0
    (target,) = json.loads(capfd.readouterr().out)["targets"]
    latency = next(check for check in target["checks"] if check["rule"] == "latency")
    assert latency["how_known"] == "measured_device"
    assert latency["measured"] == pytest.approx(entry["latency_us"]["median"])
