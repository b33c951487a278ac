"""A format from a package outside, found by entry point: no file of the product knows it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("keras")

_TOY = Path(__file__).parent / "plugins" / "format_with_option.py"
_PROGRAM = """
import json, sys
import keras, numpy as np
from edgecompress.cli import main
from edgecompress.pipeline import build, build_request

keras.utils.set_random_seed(0)
model = keras.Sequential(
    [keras.Input((6,)), keras.layers.Dense(8, activation="relu"),
     keras.layers.Dense(2, activation="softmax")], name="toy"
)
x = np.random.default_rng(0).normal(size=(80, 6)).astype("f4")

def refused(target, **given):
    try:
        build_request(model, [target], calibration=x, **given)
    except Exception as error:
        return f"{type(error).__name__}: {error}"

request = build_request(
    model, ["host"], calibration=x, file_format="tagged", format_options={"tag": "red"}
)
made = build(request)
said = {
    "kinds": [artifact.kind for artifact in made.artifacts],
    "notes": list(made.notes),
    "unknown": refused("host", file_format="taged"),
    "other": refused("host", format_options={"tag": "red"}),
    "kind": refused("host", file_format="tagged", format_options={"tag": 3}),
    "target": refused("cortex-m4", file_format="tagged"),
}
model.save("toy.keras")
np.savez("x.npz", x=x)
said["exit"] = main(["export", "toy.keras", "--target", "host", "--format", "tagged",
                     "--calibration", "x.npz", "--output", "out"])
print()
print(json.dumps(said))
"""


def test_the_toy_is_small() -> None:
    assert len(_TOY.read_text().splitlines()) <= 40


def test_it_is_a_format_like_any_other(tmp_path: Path) -> None:
    info = tmp_path / "packages" / "toy_format-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-format\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[edgecompress.plugins]\ntoy = toy_format\n")
    (info.parent / "toy_format.py").write_text(_TOY.read_text())
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        env={**os.environ, "PYTHONPATH": str(info.parent)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["kinds"] == ["float32", "tagged"]
    assert "The tag is red." in said["notes"]
    assert "tagged" in said["unknown"] and said["unknown"].startswith("UnknownNameError")
    assert "--tag" in said["other"] and "--format tagged" in said["other"]
    assert "--tag" in said["kind"]
    assert "It is a toy." in said["target"]
    # By the command line, in the process that reads the model's file, too.
    assert said["exit"] == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [artifact["kind"] for artifact in report["artifacts"]] == ["float32", "tagged"]
    assert "The tag is none." in report["notes"]
    assert (tmp_path / "out" / "toy_tagged.tflite").is_file()
