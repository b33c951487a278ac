"""SECURITY.md names a test for each class of attack, and each of these tests exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from edgecompress.converters import hdf5_files
from edgecompress.core import reading, structured
from edgecompress.flatbuffers import reading as flatbuffer

_ROOT = Path(__file__).resolve().parents[1]
_PAGE = _ROOT / "SECURITY.md"
_HEADING = "## Classes of attack, and the test of each"


def _rows(page: str) -> list[list[str]]:
    """Returns the rows of the table of attacks: attack, what stops it, tests."""
    table = page.partition(_HEADING)[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def _missing(page: str) -> list[str]:
    """Returns what the table of attacks says wrongly, one line each."""
    wrong = []
    for row in _rows(page):
        if len(row) != 3:
            wrong.append(f"{row[0]}: {len(row)} columns, not 3 (| in a cell?)")
            continue
        attack, stops, cell = row
        if attack.startswith("**") and not stops + cell:
            continue
        tests = re.findall(r"`([^`]+)`", cell)
        if not stops or not tests:
            wrong.append(f"{attack}: nothing stops it, or no test")
        wrong += [f"{attack}: there is no {test}" for test in tests if not _exists(test)]
    return wrong


def _exists(test: str) -> bool:
    path, *names = test.split("::")
    if not names or not (_ROOT / path).is_file():
        return False
    text = (_ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".java"):
        return f"@Test\n    public void {names[0]}(" in text
    body = ast.parse(text).body
    for name in names:
        found = [
            node
            for node in body
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name
        ]
        if not found:
            return False
        body = found[0].body
    return names[-1].startswith("test")


def test_every_attack_has_a_test_that_exists() -> None:
    page = _PAGE.read_text(encoding="utf-8")
    assert len(_rows(page)) > 15
    assert not _missing(page)


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ("| attack | refused | `tests/test_security.py::test_none` |", "there is no"),
        ("| attack | refused | `tests/none.py::test_every_attack` |", "there is no"),
        ("| attack | refused | `tests/test_security.py` |", "there is no"),
        ("| attack | refused | `tests/test_security.py::_rows` |", "there is no"),
        ("| attack | refused | later |", "no test"),
        ("| attack | | `tests/test_security.py::test_a_gap_is_seen` |", "nothing stops it"),
        ("| a|b | refused | `tests/test_security.py::test_a_gap_is_seen` |", "4 columns"),
    ],
)
def test_a_gap_is_seen(row: str, text: str) -> None:
    whole = "| attack | refused | `tests/test_security.py::test_a_gap_is_seen` |"
    table = f"{_HEADING}\n\n| attack | what stops it | test |\n| --- | --- | --- |\n"
    assert not _missing(f"{table}{whole}\n")
    (wrong,) = _missing(f"{table}{whole}\n{row}\n")
    assert text in wrong


def _size(size: int) -> str:
    """Returns bytes in the largest unit that leaves no fraction, up to GiB."""
    unit = next(unit for unit in (30, 20, 10) if size % (1 << unit) == 0)
    return f"{size >> unit:,} {({30: 'GiB', 20: 'MiB', 10: 'KiB'})[unit]}"


def test_limits_of_files_are_those_of_the_code() -> None:
    table = (
        _PAGE.read_text(encoding="utf-8").partition("## Limits of files")[2].partition("\n## ")[0]
    )
    rows = dict(re.findall(r"^\| (.+) \| (.+) \|$", table, re.MULTILINE)[2:])
    inflated = (
        f"{_size(reading.INFLATED_LIMIT)} or {reading.INFLATED_RATIO} times the file, "
        "whichever is more; "
    )
    depth = f"{reading.DEPTH_LIMIT} levels"
    assert list(rows.values()) == [
        _size(reading.MODEL_LIMIT),
        _size(reading.DATA_LIMIT),
        f"{_size(reading.JSON_LIMIT)}, {depth}",
        _size(reading.TEXT_LIMIT),
        f"{_size(reading.TOML_LIMIT)}, {depth}, keys of {structured._KEY_PARTS} parts",
        f"{inflated}{reading.MEMBERS_LIMIT:,} members",
        f"{inflated}{hdf5_files._MOST_OBJECTS:,} objects",
        _size(flatbuffer._LARGEST_TENSOR),
    ]
