"""The pages of docs/ say what is so: their code runs, their links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[1]
_PAGES = sorted([*(_ROOT / "docs").glob("*.md"), *_ROOT.glob("*.md")])
# Pages whose Python blocks, run one after the other, make a whole program.
_PROGRAMS = (
    "binary_and_ternary",
    "deep_compression",
    "finalize",
    "getting_started",
    "group_lasso",
    "pruning",
    "qat",
    "sepnet",
    "weight_clustering",
)


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("name", [n for n in _PROGRAMS if n != "getting_started"])
def test_program_runs(name: str, tmp_path: Path) -> None:
    blocks = _blocks(_ROOT / "docs" / f"{name}.md", "python")
    assert blocks
    result = _run([sys.executable, "-P", "-c", "\n".join(blocks)], tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]


def test_getting_started_runs_to_the_verdict(tmp_path: Path) -> None:
    page = _ROOT / "docs" / "getting_started.md"
    result = _run([sys.executable, "-P", "-c", "\n".join(_blocks(page, "python"))], tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    shrunk, verdict = result.stdout.strip().splitlines()
    before, after = map(int, re.findall(r"\d+", shrunk))
    assert after < before
    # The phone is not attached, so its latency is not measured; nothing failed.
    assert verdict == "not_measured 0"

    # Who exports from Python alone finds the file that the commands below name.
    checked = re.findall(r"edgecompress (?:check|inspect) (\S+)", page.read_text())
    assert len(checked) == 3
    assert all((tmp_path / path).is_file() for path in checked)

    (tmp_path / "my-board.toml").write_text(_blocks(page, "toml")[0])
    shell = "\n".join(_blocks(page, "sh")).replace("\\\n", " ")
    commands = [line for line in shell.splitlines() if line.startswith("edgecompress ")]
    assert len(commands) == 5
    bin_folder = Path(sys.executable).parent
    for command in commands:
        done = _run([str(bin_folder / "edgecompress"), *command.split()[1:]], tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_a_dead_link_would_be_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("[there](nowhere.md)")
    with pytest.raises(AssertionError, match=r"nowhere\.md"):
        test_links_lead_somewhere(page)
