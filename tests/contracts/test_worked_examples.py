"""The worked examples of docs/adding_a_*.md: their code runs, and is that of the toys."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_ROOT = Path(__file__).resolve().parents[2]
_PAGES = sorted((_ROOT / "docs").glob("adding_a_*.md"))
# Page -> the toy that it shows, which other tests drive by Python and by the command line.
_TOYS = {
    "precision": "precision",
    "loss": "loss",
    "rewrite": "rewrite",
    "range_method": "range_method",
    "technique": "technique",
    "format": "format_with_option",
    "recipe": "recipe_with_option",
    "target_family": "family",
    "rule": "rule",
    "runner": "runner",
}
# Page -> what its program prints last.
_PRINTS = {
    "schedule": "0.4 False",
    "criterion": "Drift(momentum=0.5)",
    "pattern": "Rows()",
    "precision": "['float32', 'coarse']",
    "loss": "['The original model teaches by LogitDistance(weight=0.25).']",
    "rewrite": "74 -> 64 {'technique': 'drop-zero-biases', 'tolerance': 1e-06, 'biases': 10}",
    "range_method": "-2.80 to 2.09, values -3.77 to 3.07",
    "technique": "['partial-correction']",
    "format": "The tag is red.",
    "recipe": "thinning 0.25 ['original', 'int8', 'prune', 'file']",
    "target_family": "['4 lanes take 16 us.']",
    "rule": "3 It has 2 operators, the limit is 1.",
    "runner": "['--warmups']",
}
_LONGEST = 75


def _name(page: Path) -> str:
    return page.stem.removeprefix("adding_a_")


def _blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.docs
@pytest.mark.parametrize("page", _PAGES, ids=_name)
def test_it_runs_as_it_stands(page: Path, tmp_path: Path, run_python: Callable[..., Any]) -> None:
    # In a process of its own: it registers something.
    done = run_python(["-P", "-c", "\n".join(_blocks(page))], cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == _PRINTS[_name(page)]


@pytest.mark.parametrize("name", _TOYS)
def test_it_shows_a_toy_that_is_driven_by_tests(name: str) -> None:
    toy = (Path(__file__).parent / "plugins" / f"{_TOYS[name]}.py").read_text()
    code = re.sub(r'\A""".*?"""\n\n', "", toy, flags=re.DOTALL)
    assert _blocks(_ROOT / "docs" / f"adding_a_{name}.md")[0] == code


@pytest.mark.parametrize("page", _PAGES, ids=_name)
def test_it_is_a_page_and_names_three_files(page: Path) -> None:
    text = page.read_text()
    assert len(text.splitlines()) <= _LONGEST
    thing, imported, test = re.findall(
        r"^\d\. (.*?)(?=^\d\. |\n\n)", text, re.DOTALL | re.MULTILINE
    )
    for part in (thing, imported):
        (path, *_) = re.findall(r"`((?:edgecompress|converters|targets)/[\w/<>]+\.py)`", part)
        assert (_ROOT / path).parent.is_dir(), path
    contracts = re.findall(r"`(tests/(?:\w+/)+\w+\.py)`", test)
    assert contracts and all((_ROOT / path).is_file() for path in contracts)
    assert f"docs/{page.name}" in (_ROOT / "CONTRIBUTING.md").read_text()


def test_every_page_is_known_here() -> None:
    assert {_name(page) for page in _PAGES} == set(_PRINTS) and set(_TOYS) <= set(_PRINTS)
