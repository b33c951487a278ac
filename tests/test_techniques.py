"""docs/techniques.md names every technique, and its numbers stand on the pages that it links to."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

import edgecompress as ec
from edgecompress.comparison.stages import BASELINES, callback_names
from edgecompress.converters.formats import FORMATS
from edgecompress.criteria.base import CRITERIA
from edgecompress.flatbuffers.coding import CODINGS
from edgecompress.patterns.base import PATTERNS
from edgecompress.post_training.techniques import TECHNIQUES
from edgecompress.precisions import PRECISIONS
from edgecompress.precisions.ranges.base import RANGES
from edgecompress.recipes import RECIPES
from edgecompress.schedules.base import SCHEDULES
from edgecompress.searching.techniques import TECHNIQUES as SEARCHED
from edgecompress.surgery import REWRITES
from edgecompress.surgery.factors.base import FACTORIZATIONS
from edgecompress.training.base import LAYER_LOSSES, LOSSES

_DOCS = Path(__file__).resolve().parents[1] / "docs"
_PAGE = (_DOCS / "techniques.md").read_text()

_REGISTRIES: Mapping[str, Mapping[str, object]] = {
    "criteria": CRITERIA, "patterns": PATTERNS, "schedules": SCHEDULES, "precisions": PRECISIONS,
    "ranges": RANGES, "rewrites": REWRITES, "factorizations": FACTORIZATIONS, "losses": LOSSES,
    "layer losses": LAYER_LOSSES, "formats": FORMATS, "codings": CODINGS, "techniques": TECHNIQUES,
    "recipes": RECIPES, "baselines": BASELINES,
}  # fmt: skip


def _own(registry: Mapping[str, object]) -> set[str]:
    """Returns the names that this package registers; tests and plugins register more."""
    found = set()
    for name, entry in registry.items():
        # A format is an object of this package, whoever makes its files.
        maker = getattr(entry, "make", entry)
        home, own = getattr(maker, "__module__", ""), getattr(maker, "__name__", None)
        # Examples in docstrings register classes that no module has.
        if own is not None and not hasattr(sys.modules.get(home), own):
            continue
        if not home or home.startswith("edgecompress"):
            found.add(name)
    return found


def _missing(page: str, names: set[str]) -> set[str]:
    return {name for name in names if f"`{name}`" not in page}


@pytest.mark.parametrize("axis", _REGISTRIES)
def test_everything_registered_is_on_the_page(axis: str) -> None:
    names = _own(_REGISTRIES[axis])
    assert names
    assert _missing(_PAGE, names) == set()


def test_every_callback_is_on_the_page() -> None:
    assert _missing(_PAGE, set(callback_names())) == set()


def test_a_name_that_is_not_there_would_be_seen() -> None:
    assert _missing("| `taylor` |", {"taylor", "fisher"}) == {"fisher"}


def _names_of(page: str) -> set[str]:
    """Returns what the first column of the tables names, and the calls."""
    first = re.findall(r"^\| (`[^|]*) \|", page, re.MULTILINE)
    return {name for cell in first for name in re.findall(r"`([^`]+)`", cell)}


def test_nothing_on_the_page_is_gone() -> None:
    registries = [*_REGISTRIES.values(), SEARCHED]
    known = {name for registry in registries for name in registry} | set(ec.__all__)
    assert _names_of(_PAGE) - known == set()


def _cells(page: str) -> list[tuple[str, str]]:
    """Returns (text, linked page) of the cells that copy numbers; a heading links its column."""
    found, headings = [], list[str]()
    for line in page.splitlines():
        cells = line.strip("| ").split(" | ") if line.startswith("|") else []
        headings = (headings or cells) if cells else []
        for heading, cell in zip(headings, [f" {cell}" for cell in cells], strict=False):
            link = re.search(r"\]\((\w+\.md)", cell) or re.search(r"\]\((\w+\.md)", heading)
            if link and re.search(r"\d", cell) and cell.strip() != heading:
                found.append((re.sub(r"\(?\[[^]]*\]\([^)]*\)", "", cell), link[1]))
    return found


# Numbers with a unit, a sign or a fraction; names and counts in words are left alone.
_NUMBER = re.compile(r"(?<![\w.-])[+-]?\d[\d,]*(?:\.\d+)?(?= (?:%|B|us|KiB|points|times)|\b)")


@pytest.mark.parametrize(("text", "linked"), _cells(_PAGE))
def test_numbers_stand_on_the_pages_that_are_linked(text: str, linked: str) -> None:
    numbers = [n for n in _NUMBER.findall(text) if "." in n or "," in n or "%" in text]
    page = (_DOCS / linked).read_text()
    assert [number for number in numbers if number not in page] == []


def test_a_changed_number_would_be_seen() -> None:
    assert len(_cells(_PAGE)) > 30
    assert _NUMBER.findall("dense: +0.11 points, 74,360 of 10") == ["+0.11", "74,360", "10"]
    table = "| what | [curves](pruning.md#curves) |\n| --- | --- |\n| a | -9.99 |"
    assert _cells(table) == [(" -9.99", "pruning.md")]
    assert _cells("| x |\n| --- |\n| 9.99 % ([a](qat.md#b)) |") == [(" 9.99 % )", "qat.md")]
