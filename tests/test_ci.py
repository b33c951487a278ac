"""What the Makefile, CI and the commit hooks run: all tests, and everywhere the same tools."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[1]
_QUICK = "not slow and not docs"


def _makefile() -> str:
    # A line that ends in a backslash goes on.
    return (_ROOT / "Makefile").read_text().replace("\\\n", " ")


def _recipe(makefile: str, target: str) -> list[list[str]]:
    """Returns the commands of a target and of those it needs, as words."""
    needs, body = re.findall(
        rf"^{re.escape(target)}:([^=\n]*)\n((?:\t.*\n|\s*#.*\n)*)", makefile, re.MULTILINE
    )[0]
    found = []
    for need in needs.split():
        found += _recipe(makefile, need) if not need.startswith("$") else []
    lines = [line.strip() for line in body.splitlines()]
    return found + [shlex.split(line) for line in lines if line and not line.startswith("#")]


def _selections(commands: list[list[str]]) -> list[str | None]:
    """Returns what each call of pytest selects by markers; None for everything."""
    found: list[str | None] = []
    for words in commands:
        if any(word.endswith("/pytest") for word in words):
            narrowed = {"-k", "--deselect", "--ignore", "-x"} & set(words)
            assert not narrowed and not [w for w in words if w.startswith("tests")], words
            found.append(words[words.index("-m") + 1] if "-m" in words else None)
    return found


def _pytest_options() -> dict[str, list[str]]:
    pyproject = tomllib.loads((_ROOT / "pyproject.toml").read_text())
    options: dict[str, list[str]] = pyproject["tool"]["pytest"]["ini_options"]
    return options


def test_make_test_runs_every_test_and_make_quick_leaves_out_the_marked_ones() -> None:
    makefile = _makefile()
    assert _selections(_recipe(makefile, "test")) == [None]
    assert _selections(_recipe(makefile, "quick")) == [_QUICK]
    options = _pytest_options()
    assert not {"-m", "-k", "--deselect", "--ignore"} & set(options["addopts"])
    assert options["testpaths"] == ["tests"]
    assert [line.partition(":")[0] for line in options["markers"]] == ["slow", "docs"]


def test_a_selection_in_make_test_would_be_seen() -> None:
    makefile = _makefile().replace("reorder\n", 'reorder -m "not slow"\n', 1)
    assert _selections(_recipe(makefile, "test")) == ["not slow"]


def test_ci_runs_make_test() -> None:
    text = (_ROOT / ".ci" / "run").read_text()
    *_, app, last = text.strip().splitlines()
    assert "set -e" in text
    assert shlex.split(app)[:3] == ["make", "-j", "2"] and "android" in shlex.split(app)
    assert shlex.split(last)[:3] == ["exec", "make", "-j"]
    assert {"test", "fuzz"} <= set(shlex.split(last))
    assert _recipe(_makefile(), "android") == [["$(MAKE)", "android-test"], ["$(MAKE)", "apk"]]


def test_marked_tests_are_collected_without_a_selection(tmp_path: Path) -> None:
    """With this project's own options: nothing here leaves a marked test out."""
    (tmp_path / "pyproject.toml").write_bytes((_ROOT / "pyproject.toml").read_bytes())
    folder = tmp_path / "tests"
    folder.mkdir()
    for name in ("conftest.py", "programs.py", "short_fits.py"):
        (folder / name).write_bytes((_ROOT / "tests" / name).read_bytes())
    source = "import pytest\n"
    for number, marker in enumerate(("slow", "docs", "filterwarnings")):
        source += f"@pytest.mark.{marker}\ndef test_{number}(): pass\n"
    (folder / "test_marked.py").write_text(source)

    def collected(*selection: str) -> int:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "pytest", "--collect-only", "-q", *selection],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return len(re.findall(r"::test_\d", done.stdout))

    assert collected() == 3
    assert collected("-m", _QUICK) == 1


def _marks(source: str) -> set[str]:
    return set(re.findall(r"pytest\.mark\.(slow|docs)\b", source))


def test_both_markers_are_used() -> None:
    sources = [path.read_text() for path in (_ROOT / "tests").rglob("test_*.py")]
    marked = [marks for source in sources if (marks := _marks(source))]
    assert set().union(*marked) == {"slow", "docs"}
    # Most files run in `make quick`: a frame that marks everything tests nothing.
    assert len(marked) < len(sources) / 2


@pytest.mark.parametrize("hook", ["ruff-check", "ruff-format", "mypy"])
def test_commit_hooks_run_the_tools_of_make_lint(hook: str) -> None:
    text = (_ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"- id: (\S+)", text) == ["ruff-check", "ruff-format", "mypy"]
    assert re.findall(r"- repo: (\S+)", text) == ["local"]
    (entry,) = re.findall(rf"- id: {hook}\n(?: {{8}}.*\n)*? {{8}}entry: (.*)\n", text)
    lint = [" ".join(words) for words in _recipe(_makefile(), "lint")]
    if hook == "mypy":
        (command,) = re.findall(r"^make (\w+)$", entry)
        wanted = " ".join(_recipe(_makefile(), command)[-1])
        assert "/mypy -p edgecompress" in wanted
    else:
        tool = entry.removesuffix(" --force-exclude")
        assert tool.startswith(".venv/bin/ruff ")
        wanted = tool.replace(".venv", "$(VENV)")
        lint = [re.sub(r"( --check)? \.$", "", line) for line in lint]
    assert wanted in lint
