"""The harnesses find a planted bug, and run their seeds without a finding."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

_FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "fuzz"
_KINDS = ("archive", "flatbuffer", "json", "npz", "toml")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("atheris") is None, reason="atheris is not installed"
    ),
]


def _run(kind: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = str(_FOLDER / f"fuzz_{kind}.py")
    return subprocess.run(
        [sys.executable, program, *arguments], capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("kind", _KINDS)
def test_seeds_are_no_findings(kind: str) -> None:
    seeds = sorted(str(path) for path in (_FOLDER / "corpus" / kind).iterdir())
    assert len(seeds) >= 4
    done = _run(kind, *seeds)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_planted_bug_is_found(tmp_path: Path) -> None:
    done = _run("npz", "--plant", "--seconds", "60", "--keep", str(tmp_path))
    assert done.returncode != 0
    assert "PlantedError" in done.stdout + done.stderr
    assert list(tmp_path.iterdir())
