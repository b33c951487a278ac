"""Plugins are found by entry point, loaded once, and refused by name where they are broken."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_GOOD = """
from edgecompress.core.errors import UnknownNameError
import edgecompress.schedules.base as base
LOADED = []
LOADED.append(1)
"""
_PROGRAM = """
from edgecompress.core.registry import Registry
names = Registry("name")
names.register("own")(1)
try:
    print(sorted(names), len(names), "own" in names)
    print(sorted(names))
except Exception as error:
    print(type(error).__name__, error)
    try:
        names["own"]
    except Exception as again:
        print(type(again).__name__)
import sys
print("toy" in sys.modules)
"""


def _install(folder: Path, source: str) -> None:
    (folder / "toy.py").write_text(source)
    info = folder / "toy_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[edgecompress.plugins]\ntoy = toy\n")


def _run(folder: Path) -> str:
    program = f"import sys; sys.path.insert(0, {str(folder)!r})\n{_PROGRAM}"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_a_plugin_is_loaded_when_a_registry_is_read(tmp_path: Path) -> None:
    _install(tmp_path, _GOOD)
    assert _run(tmp_path) == "['own'] 1 True\n['own']\nTrue\n"


@pytest.mark.parametrize(
    "source, said",
    [
        ("raise RuntimeError('boom')", "RuntimeError: boom"),
        ("import no_such_module_xyz", "No module named 'no_such_module_xyz'"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        (
            "from edgecompress.schedules.base import SCHEDULES\n"
            "import edgecompress.schedules.constant\n"
            "SCHEDULES.register('constant_sparsity')(1)",
            "is registered twice",
        ),
    ],
)
def test_a_broken_plugin_ends_the_command_every_time(
    tmp_path: Path, source: str, said: str
) -> None:
    _install(tmp_path, source)
    printed = _run(tmp_path).splitlines()
    assert printed[0].startswith("PluginError The plugin toy of toy-package cannot be used: ")
    assert said in printed[0]
    assert printed[1] == "PluginError"
