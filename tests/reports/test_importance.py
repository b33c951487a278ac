"""The picture of what a budget cut, against the data it is drawn from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgecompress.core.errors import ArgumentError
from edgecompress.core.importance import FilterImportance, Importance
from edgecompress.reports.importance import plot_importance


def _importance() -> Importance:
    filters = [
        FilterImportance(f"layer<{layer}>", n, (n + 1) / 10, 0.01, kept=n > layer)
        for layer in range(4)
        for n in range(6)
    ]
    costs = {"macs": (1000.0, 480.0)}
    return Importance(tuple(filters), 40.0, "Budget(macs=0.5)", costs, {"macs": "MACs"})


def test_filters_of_a_layer_are_sorted_by_importance_for_what_they_save() -> None:
    first, second = (
        FilterImportance("a", 0, 3.0, 1.0, True),
        FilterImportance("a", 1, 4.0, 2.0, False),
    )
    found = Importance((first, second), None, "", {}, {}).by_layer()
    assert found == {"a": [second, first]}
    assert FilterImportance("a", 0, 1.0, 0.0, True).rank == float("inf")


def test_a_page_says_how_many_filters_stay(tmp_path: Path) -> None:
    text = plot_importance(_importance(), tmp_path / "found.html").read_text()
    assert "<h1>Budget(macs=0.5)</h1>" in text and "macs: 1,000 to 480 MACs" in text
    rows = re.findall(r"<tr><td>([^<]*)</td><td>(\d)</td><td>(\d)</td></tr>", text)
    assert rows == [(f"layer&lt;{n}&gt;", str(5 - n), "6") for n in range(4)]
    # A bar for each filter, in the colours of the page's style sheet, and the legend's.
    assert text.count("fill: var(--c1)") == 14 + 1
    assert text.count("fill: var(--c2)") == 10 + 1
    assert "#010203" not in text
    assert text == plot_importance(_importance(), tmp_path / "again.html").read_text()


@pytest.mark.parametrize(("suffix", "head"), [(".svg", b"<?xml"), (".png", b"\x89PNG")])
def test_pictures(tmp_path: Path, suffix: str, head: bytes) -> None:
    path = plot_importance(_importance(), str(tmp_path / f"found{suffix}"))
    assert path.read_bytes().startswith(head)
    assert b"var(--" not in path.read_bytes()


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="`path` must end in .html, .svg, .png"):
        plot_importance(_importance(), tmp_path / "found.pdf")
    with pytest.raises(ArgumentError, match="`importance` must be the importance of a callback"):
        plot_importance(None, tmp_path / "found.png")  # type: ignore[arg-type]
