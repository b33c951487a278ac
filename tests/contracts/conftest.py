"""Toy packages outside of edgecompress, installed for one test each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_PLUGINS = Path(__file__).parent / "plugins"
_LONGEST = 40


@dataclass(frozen=True)
class Installed:
    """A folder of installed packages, and what runs with them."""

    packages: Path
    folder: Path
    run_python: Callable[..., subprocess.CompletedProcess[str]]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs Python with the packages, in a folder of the test's own."""
        return self.run_python(["-P", *arguments], env=self._environment(), cwd=self.folder)

    def started(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs the installed `edgecompress` in a process that Python starts."""
        return subprocess.run(
            [Path(sys.executable).with_name("edgecompress"), *arguments], env=self._environment(),
            cwd=self.folder, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(self.packages), "COLUMNS": "200"}

    def command(self, *arguments: str, code: int = 0) -> str:
        """Runs `edgecompress`; returns what it printed, errors included."""
        done = self.run("-m", "edgecompress", *arguments)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def python(self, program: str) -> Any:
        """Runs a program that prints JSON last; returns it."""
        done = self.run("-c", program)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def installed(
    tmp_path: Path, run_python: Callable[..., subprocess.CompletedProcess[str]]
) -> Callable[..., Installed]:
    """Installs toys of `plugins/` as packages with an entry point each."""

    def install(*names: str) -> Installed:
        packages, folder = tmp_path / "packages", tmp_path / "work"
        folder.mkdir()
        for name in names:
            source = (_PLUGINS / f"{name}.py").read_text()
            assert len(source.splitlines()) <= _LONGEST
            info = packages / f"toy_{name}-1.0.dist-info"
            info.mkdir(parents=True)
            (packages / f"toy_{name}.py").write_text(source)
            (info / "METADATA").write_text(
                f"Metadata-Version: 2.1\nName: toy-{name}\nVersion: 1.0\n"
            )
            (info / "entry_points.txt").write_text(
                f"[edgecompress.plugins]\ntoy-{name} = toy_{name}\n"
            )
        return Installed(packages, folder, run_python)

    return install
