"""A rewrite from a package outside, found by entry point: no file of the product knows it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("keras")

_TOY = Path(__file__).parent / "plugins" / "rewrite.py"
_PROGRAM = """
import json, sys
import keras, numpy as np
import edgecompress as ec
from edgecompress.core.record import record_of

keras.utils.set_random_seed(0)
model = keras.Sequential(
    [keras.Input((6,)), keras.layers.Dense(8, name="hidden", activation="relu"),
     keras.layers.Dense(2, name="head", activation="softmax")]
)
small = ec.finalize(model, rewrites=["drop-bias:layer=hidden"])
said = {"steps": record_of(small).steps, "parameters": small.count_params()}
x = np.random.default_rng(0).normal(size=(80, 6)).astype("f4")
given = dict(targets=["cortex-m4"], sparsity=0, clusters=0, output=sys.argv[1])
try:
    ec.compress(model, (x, (x[:, 0] > 0).astype("i4")), surgery=["no-such"], **given)
except Exception as error:
    said["refused"] = f"{type(error).__name__}: {error}"
result = ec.compress(model, (x, (x[:, 0] > 0).astype("i4")), surgery="drop-bias", **given)
said["stages"] = [(stage.name, stage.epochs) for stage in result.stages]
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def plugged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages that holds the toy and its entry point."""
    folder = tmp_path_factory.mktemp("packages")
    (folder / "toy_rewrite.py").write_text(_TOY.read_text())
    info = folder / "toy_rewrite-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-rewrite\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[edgecompress.plugins]\ntoy = toy_rewrite\n")
    return folder


def test_the_toy_is_small() -> None:
    assert len(_TOY.read_text().splitlines()) <= 40


def test_it_is_used_by_name_and_recorded(plugged: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": str(plugged)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["steps"][0] == {"technique": "drop-bias", "layer": "hidden", "biases": 8}
    assert said["parameters"] == 6 * 8 + 8 * 2 + 2
    assert "no-such" in said["refused"] and "drop-bias" in said["refused"]
    assert ["surgery", 0] in said["stages"]
    report = json.loads((tmp_path / "out" / "compression.json").read_text())
    assert report["settings"]["surgery"] == [{"name": "drop-bias", "config": {"layer": "head"}}]
    record = json.loads(next((tmp_path / "out").glob("*.keras.edgecompress.json")).read_text())
    assert "drop-bias" in [step["technique"] for step in record["record"]["steps"]]
