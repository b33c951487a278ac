"""The command prints nothing of what TensorFlow says when it is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_SCRIPT = Path(sys.executable).with_name("edgecompress")


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [("--help", 0), ("no.keras --data no.npz -t no-such-board -o never", 1)],
)
def test_standard_error_holds_the_error_alone(tmp_path: Path, arguments: str, lines: int) -> None:
    done = subprocess.run(
        [_SCRIPT, "search", *arguments.split()], cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert len(done.stderr.splitlines()) == lines, done.stderr
    assert not (tmp_path / "never").exists()
