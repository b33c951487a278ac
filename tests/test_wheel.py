"""The wheel holds every module and data file of the tree, under one import name."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

_ROOT = Path(__file__).resolve().parents[1]
_DATA = (".py", ".toml", ".json", ".jinja", ".css", ".csv", ".npz", ".typed")


def _tree() -> set[str]:
    files = {}
    for folder, package in (
        ("edgecompress", "edgecompress"),
        ("converters", "edgecompress/converters"),
        ("targets", "edgecompress/targets"),
    ):
        for path in (_ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix in _DATA or path.name == "py.typed":
                files[f"{package}/{path.relative_to(_ROOT / folder).as_posix()}"] = path
    # The sources of the app: all of them, without its tests and what a build leaves.
    app = _ROOT / "android_demo"
    for path in app.rglob("*"):
        name = path.relative_to(app).as_posix()
        if path.is_file() and not name.startswith(("target/", "app/src/test/")):
            files[f"edgecompress/android_demo/{name}"] = path
    return {name for name in files if "__pycache__" not in name}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("git") is None or not (_ROOT / ".git").exists():
        pytest.skip("git is not installed, or this is not a checkout")
    folder = tmp_path_factory.mktemp("wheel")
    # Built from a copy so that an old build/ folder cannot lend files to the wheel.
    source = folder / "source"
    listed = subprocess.run(
        ["git", "-C", str(_ROOT), "ls-files", "-co", "--exclude-standard"],
        check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    for name in listed:
        if (_ROOT / name).is_file():
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((_ROOT / name).read_bytes())
    result = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(source)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    return next(folder.glob("*.whl"))


def test_wheel_equals_tree(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = {n for n in archive.namelist() if ".dist-info/" not in n}
    assert inside == _tree()


def test_only_one_top_level_name(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {n.split("/")[0] for n in archive.namelist()}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"edgecompress"}


def test_wheel_carries_licence_and_entry_point(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        entry = next(n for n in names if n.endswith("entry_points.txt"))
        assert b"edgecompress = edgecompress.cli:main" in archive.read(entry)
    assert any(n.endswith("licenses/LICENSE") for n in names)
