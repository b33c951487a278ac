"""One kind of the table of docs/trust.md, healthy and destroyed, and the table itself."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.slow

_ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def trust() -> ModuleType:
    """The script that prints the table."""
    spec = importlib.util.spec_from_file_location(
        "trust_table", _ROOT / "benchmarks" / "trust_table.py"
    )
    if spec is None or spec.loader is None:
        raise AssertionError("benchmarks/trust_table.py cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules["trust_table"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.usefixtures("float_once")
def test_two_heads_healthy_and_destroyed(trust: ModuleType) -> None:
    cells = trust.row(trust.CASES["two heads"])
    assert set(cells) == set(trust.COLUMNS)
    assert {name: str(cell) for name, cell in cells.items() if cell.right is not True} == {}
    passed = {name for name, cell in cells.items() if cell.verdict == "pass"}
    assert passed == {"healthy", "ranges measured again"}


def test_a_wrong_verdict_is_noticed(trust: ModuleType) -> None:
    assert trust.Cell("pass", 0, 0.99, "").right is True
    assert trust.Cell("fail", 4, 0.99, "").right is False
    assert trust.Cell("pass", 0, 0.5, "").right is False
    assert trust.Cell("uncertain", 6, 0.5, "").right is True
    assert trust.Cell("pass", 0, 0.9, "").right is None


def test_the_page_has_a_row_for_each_kind_and_no_wrong_cell(trust: ModuleType) -> None:
    page = (_ROOT / "docs" / "trust.md").read_text()
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", page, re.MULTILINE)
    table = {name: cells.split(" | ") for name, cells in rows}
    assert set(trust.CASES) <= set(table)
    for name in trust.CASES:
        assert len(table[name]) == len(trust.COLUMNS)
        for column, cell in zip(trust.COLUMNS, table[name], strict=True):
            sound = column in trust.SOUND_COLUMNS or cell.endswith("not reached")
            assert cell.startswith("PASS") == sound, (name, column, cell)
    assert page.count("not reached") == 1, "learnt ranges do not reach a file with Normalization"
    assert "WRONG" not in page and "PROVES NOTHING" not in page
